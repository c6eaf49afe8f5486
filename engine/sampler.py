# SPDX-License-Identifier: Apache-2.0
"""The sampling half of the engine: takes requests, steps the running batch, hands out outputs.

One step: plan (scheduler.py), forward pass and draw (runner.py), stop conditions (batch.py, texts.py),
outputs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rzero.engine.batch import Answer, Ints, Request
from rzero.engine.config import ModelConfig
from rzero.engine.errors import InputError
from rzero.engine.outputs import RequestOutput, Sample
from rzero.engine.runner import Runner
from rzero.engine.sampling import SEED_LIMIT, SamplingParams, answer_keys, check_int
from rzero.engine.scheduler import Scheduler
from rzero.engine.texts import Texts
from rzero.engine.tokenizer import Tokenizer
from rzero.engine.weights import Weights

Prompt = str | Sequence[int]
Callback = Callable[[RequestOutput], None]


@dataclass(eq=False, slots=True)
class _Open:
    """A request whose answers are not all there."""

    request: Request
    samples: list[Sample | None]
    missing: int
    callback: Callback | None
    is_returned: bool
    """Whether `step` returns the output; generate() keeps its own."""


class Sampler:
    """Requests in, outputs out. `Engine` documents what its methods of the same names do."""

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        weights: Weights,
        scheduler: Scheduler,
        runner: Runner,
        seed: int,
    ) -> None:
        check_int("seed", seed, low=0, high=SEED_LIMIT - 2)
        self._config, self._tokenizer, self._weights = config, tokenizer, weights
        self._scheduler, self._runner, self._seed = scheduler, runner, int(seed)
        self._texts = Texts(tokenizer, config.vocab_size)
        self._requests = 0
        self._version = weights.version
        self._open: dict[int, _Open] = {}
        self._ready: deque[tuple[_Open, RequestOutput]] = deque()
        self._unclaimed: list[RequestOutput] = []

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        role: str = "base",
        on_output: Callback | None = None,
    ) -> list[RequestOutput]:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise InputError(
                f"there are {len(prompts)} prompts and {len(each)} params; give one, or one for each"
            )
        requests = []
        for i, (prompt, chosen) in enumerate(zip(prompts, each, strict=True)):
            try:
                requests.append(self._request(prompt, chosen, role))
            except InputError as error:
                raise InputError(f"prompts[{i}]: {error}") from error
        outputs = {r.request_id: RequestOutput(r.request_id, r.prompt.tolist(), []) for r in requests}

        def keep(output: RequestOutput) -> None:
            outputs[output.request_id] = output
            if on_output is not None:
                on_output(output)

        pending = set(outputs)
        try:
            for request in requests:
                self._enqueue(request, keep, is_returned=False)
            while not pending.isdisjoint(self._open) or self._ready:
                self._step()
        finally:
            for request_id in pending.intersection(self._open):
                self.cancel(request_id)
            self._ready = deque(item for item in self._ready if item[1].request_id not in pending)
        return list(outputs.values())

    def submit(
        self, prompt: Prompt, params: SamplingParams, role: str = "base", callback: Callback | None = None
    ) -> int:
        request = self._request(prompt, params, role)
        self._enqueue(request, callback, is_returned=True)
        return request.request_id

    def step(self) -> list[RequestOutput]:
        self._step()
        outputs, self._unclaimed = self._unclaimed, []
        return outputs

    @property
    def has_work(self) -> bool:
        return bool(self._open or self._ready or self._unclaimed)

    def cancel(self, request_id: int) -> bool:
        if self._open.pop(request_id, None) is None:
            return False
        self._scheduler.cancel(request_id)
        return True

    def abort(self) -> None:
        self._scheduler.clear()
        self._open.clear()

    def in_flight(self, role: str) -> int:
        """How many requests of a role are not complete."""
        return sum(entry.request.role == role for entry in self._open.values())

    def _request(self, prompt: Prompt, params: SamplingParams, role: str) -> Request:
        self._weights.role(role)
        ids = self._prompt_ids(prompt)
        if params.stop and self._tokenizer is None:
            raise InputError(f"stop is {params.stop}, but this engine has no tokenizer; use stop_token_ids")
        stop_ids = list(params.stop_token_ids)
        last_id = self._config.vocab_size - 1
        if stop_ids and max(stop_ids) > last_id:
            raise InputError(
                f"stop_token_ids contains {max(stop_ids)}; the vocabulary has the ids 0 to {last_id}"
            )
        if not params.ignore_eos:
            stop_ids += self._tokenizer.eos_ids if self._tokenizer else self._config.eos_token_ids
        number = self._requests
        self._requests += 1
        # Above 2^64, so that it meets no seed that a request can ask for.
        seed = ((self._seed + 1) << 64) + number if params.seed is None else params.seed
        request = Request(
            request_id=number,
            role=role,
            prompt=ids,
            params=params,
            keys=answer_keys(ids, seed, params.n),
            max_tokens=max(1, min(params.max_tokens, self._scheduler.max_length - len(ids))),
            stop_ids=np.array(stop_ids, np.int64),
            stop_enders=self._texts.enders(tuple(params.stop)) if params.stop else None,
        )
        self._scheduler.check_fits(request)
        return request

    def _prompt_ids(self, prompt: Prompt) -> Ints:
        if isinstance(prompt, str):
            if self._tokenizer is None:
                raise InputError("the prompt is a text, but this engine has no tokenizer; give token ids")
            ids = np.array(self._tokenizer.encode(prompt), np.int64)
        else:
            try:
                given = np.array(prompt)
            except ValueError:  # lists of several lengths within
                given = np.zeros((0, 0))
            if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
                raise InputError(f"the prompt is {prompt!r:.60}; it must be a text or a list of token ids")
            ids = given.astype(np.int64)
        if not len(ids):
            raise InputError("the prompt is empty; it must have at least one token")
        last_id = self._config.vocab_size - 1
        bad = np.flatnonzero((ids < 0) | (ids > last_id))
        if len(bad):
            place = bad[0]
            raise InputError(
                f"token {place} of the prompt is {ids[place]}; the vocabulary has the ids 0 to {last_id}"
            )
        return ids

    def _enqueue(self, request: Request, callback: Callback | None, is_returned: bool) -> None:
        n = request.params.n
        self._scheduler.submit(request)
        self._open[request.request_id] = _Open(request, [None] * n, n, callback, is_returned)

    def _step(self) -> None:
        if not self._ready and self._scheduler.has_work:
            is_whole = False
            try:
                self._advance()
                is_whole = True
            finally:
                if not is_whole:  # an interrupt may have come between any two lines: nothing can be trusted
                    self.abort()
        while self._ready:
            entry, output = self._ready.popleft()
            if entry.is_returned:
                self._unclaimed.append(output)
            if entry.callback is not None:
                entry.callback(output)

    def _advance(self) -> None:
        scheduler = self._scheduler
        if self._version != self._weights.version:
            scheduler.regroup()
            self._version = self._weights.version
        plan = scheduler.plan()
        drawn = self._runner.run(plan, scheduler.batch, self._weights.role)
        scheduler.commit(plan)
        reasons = scheduler.batch.advance(*drawn)
        self._texts.stop(scheduler.batch, reasons)
        for answer in scheduler.retire(reasons):
            self._collect(answer)

    def _collect(self, answer: Answer) -> None:
        entry = self._open[answer.request.request_id]
        entry.samples[answer.index] = self._texts.sample(answer)
        entry.missing -= 1
        if not entry.missing:
            del self._open[answer.request.request_id]
            samples = [sample for sample in entry.samples if sample is not None]
            output = RequestOutput(answer.request.request_id, answer.request.prompt.tolist(), samples)
            self._ready.append((entry, output))
