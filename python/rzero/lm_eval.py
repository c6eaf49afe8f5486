# SPDX-License-Identifier: Apache-2.0
"""The standard harness (EleutherAI's lm-evaluation-harness) on our engine.

    pip install '.[eval]'        # in a clone
    python -m rzero.lm_eval run --model rzero --model_args pretrained=DIR --device cpu --tasks gsm8k,hellaswag

is `lm_eval` with one more model, `rzero`; in Python, import this module and give `RZeroLM(...)` or "rzero" to
`lm_eval.simple_evaluate`. Texts are encoded as the harness's own Hugging Face model encodes them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from rzero.config import model_path
from rzero.engine.device import torch_device
from rzero.engine.engine import Engine
from rzero.engine.errors import InputError
from rzero.engine.sampling import SamplingParams

# Requests scored between two steps of the progress bar; neighbours share the computation of their prompt.
SCORED_AT_ONCE = 512
# What tasks may ask of a generation, beside the names of its length and its stop strings.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens")
SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "seed")

Scored = tuple[float, bool]


@register_model("rzero")
class RZeroLM(TemplateLM):
    """A model of the harness: log-likelihoods as training sees them, answers from the sampler."""

    def __init__(
        self,
        *,
        pretrained: str,
        device: str = "cpu",
        dtype: str = "auto",
        max_length: int | None = None,
        max_gen_toks: int = 256,
        max_seqs: int = 256,
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """pretrained: a Hugging Face folder, a hub name, or tiny. dtype: auto, fp32 or bf16. max_length:
        prompt and answer together; None: the model's positions. max_gen_toks: longest answer where a task
        names none. batch_size and max_batch_size are of no effect: the engine packs what fits.
        """
        super().__init__()
        # The harness asks for cuda:0 where it is given no --device; without one that is said in a sentence.
        torch_device(device)
        self.engine = Engine(
            model_path(pretrained),
            device=device,
            dtype=dtype,
            max_model_len=max_length,
            max_seqs=max_seqs,
            threads=threads,
        )
        assert self.engine.tokenizer is not None, "a folder without a tokenizer is refused"
        self.tokenizer = self.engine.tokenizer.hf
        self._name, self._max_gen_toks = pretrained, max_gen_toks

    @property
    def eot_token_id(self) -> int:
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the beginning of sequence, else its end."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def max_length(self) -> int:
        return self.engine.max_model_len

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not (begin and string.startswith(begin))
        assert self.engine.tokenizer is not None
        return self.engine.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    # ---- log-likelihood

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[Scored]:
        pairs = [self._fitting(context, answer) for _, context, answer in requests]
        found: list[Scored] = []
        with tqdm(total=len(pairs), desc="log-likelihoods", disable=disable_tqdm) as bar:
            for begin in range(0, len(pairs), SCORED_AT_ONCE):
                part = pairs[begin : begin + SCORED_AT_ONCE]
                for request, scored in zip(requests[begin:], self._scored(part), strict=False):
                    found.append(scored)
                    self.cache_hook.add_partial("loglikelihood", request[0], scored)
                bar.update(len(part))
        return found

    def _fitting(self, context: Sequence[int], answer: Sequence[int]) -> tuple[list[int], list[int]]:
        """A pair cut on the left, as the harness does, to what the model's positions hold."""
        answer = list(answer)[-(self.max_length - 1) :]
        return list(context)[-(self.max_length - len(answer)) :], answer

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        logprobs = self.engine.logprobs("base", pairs)
        is_greedy = self._greedy(pairs, logprobs)
        return [(math.fsum(each), flag) for each, flag in zip(logprobs, is_greedy, strict=True)]

    def _greedy(
        self, pairs: Sequence[tuple[list[int], list[int]]], logprobs: Sequence[Sequence[float]]
    ) -> list[bool]:
        """Whether greedy decoding would give each answer.

        Tokens that all have more than half of the probability are; one with less than an equal share is not.
        Only what lies between is sampled, once for all answers to the same context.
        """
        certain, hopeless = math.log(0.5), -math.log(self.engine.config.vocab_size)
        unclear: dict[tuple[int, ...], int] = {}
        for (context, answer), each in zip(pairs, logprobs, strict=True):
            if each and hopeless <= min(each) <= certain:
                key = tuple(context)
                unclear[key] = max(unclear.get(key, 0), len(answer))
        params = [
            SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, logprobs=False)
            for length in unclear.values()
        ]
        outputs = self.engine.generate([list(context) for context in unclear], params) if unclear else []
        likeliest = {key: output.samples[0].token_ids for key, output in zip(unclear, outputs, strict=True)}
        flags = []
        for (context, answer), each in zip(pairs, logprobs, strict=True):
            given = likeliest.get(tuple(context), [])
            is_likeliest = len(given) >= len(answer) and given[: len(answer)] == answer
            flags.append(not each or min(each) > certain or is_likeliest)
        return flags

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows = [list(self._windows(request.args[0])) for request in requests]
        flat = [(("", ""), context, answer) for part in windows for context, answer in part]
        sums = iter(
            math.fsum(each)
            for each in self.engine.logprobs("base", [(context, answer) for _, context, answer in flat])
        )
        totals = [math.fsum(next(sums) for _ in part) for part in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Contexts and answers that cover the text once, each as long as the model's positions allow."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length - 1,
            context_len=1,
        )
        for window in windows:
            context, answer = make_disjoint_window(window)
            yield list(context), list(answer)

    # ---- generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        prompts, params = [], []
        for request in requests:
            context, wishes = request.args
            how = self._params(wishes)
            room = self.max_length - how.max_tokens
            if room < 1:
                raise InputError(
                    f"a task asks for {how.max_tokens} tokens, the model holds {self.max_length} in all; "
                    "give max_gen_toks or max_length"
                )
            prompts.append(self.tok_encode(context)[-room:])
            params.append(how)
        with tqdm(total=len(prompts), desc="answers", disable=disable_tqdm) as bar:
            outputs = self.engine.generate(prompts, params, on_output=lambda _: bar.update(1))
        texts = [output.samples[0].text for output in outputs]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _params(self, wishes: Mapping[str, Any]) -> SamplingParams:
        wishes = dict(wishes)
        until = wishes.pop("until", None) or ()
        lengths = [wishes.pop(name) for name in LENGTH_NAMES if name in wishes]
        is_sampled = bool(wishes.pop("do_sample", wishes.get("temperature", 0) != 0))
        given = {name: wishes.pop(name) for name in SAMPLING_NAMES if wishes.get(name) is not None}
        if unknown := [name for name, value in wishes.items() if value is not None]:
            raise InputError(f"a task asks for {unknown[0]}, which is not supported in a generation")
        if not is_sampled:
            given = {"temperature": 0.0}
        stop = [until] if isinstance(until, str) else [text for text in until if text]
        length = int(lengths[0]) if lengths else self._max_gen_toks
        return SamplingParams(max_tokens=length, stop=stop, logprobs=False, **given)


if __name__ == "__main__":
    # The harness knows a model once its module is imported, which this line is the end of.
    cli_evaluate()
