# SPDX-License-Identifier: Apache-2.0
"""The engine: one model, its weights by role, one page pool. It samples from every role and trains it.

    engine = Engine("Qwen/Qwen3-0.6B")
    [output] = engine.generate(["1 + 1 ="], SamplingParams(n=4, max_tokens=32, seed=0))

Where the engine `is_exact` (on a CPU by default, on a GPU with numerics="exact"), an answer is a function of
prompt, weights, params and seed: neither the rest of the batch nor the page pool, the chunks of prefill or a
restart change a token or a log-prob. Elsewhere they may change last bits, and so a token. An engine has no
threads, signals or globals; two of them can live in one process. It is driven from one thread.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING

import torch

from rzero.engine import adapter_folder, checkpoint
from rzero.engine.config import ModelConfig
from rzero.engine.decode_graphs import recorder
from rzero.engine.device import current, torch_device
from rzero.engine.dtype import choose_dtype
from rzero.engine.errors import InputError
from rzero.engine.grpo import TrainConfig, TrainGroup
from rzero.engine.kv_cache import KvCache, choose_num_pages
from rzero.engine.memory import gib
from rzero.engine.numerics import Numerics, backends, described, is_exact, must_score, why_not_exact
from rzero.engine.optimizer_8bit import usable_optimizer
from rzero.engine.outputs import RequestOutput
from rzero.engine.rope_table import rope_tables
from rzero.engine.runner import Runner
from rzero.engine.sampler import Callback, Prompt, Sampler
from rzero.engine.sampling import SamplingParams
from rzero.engine.scheduler import Scheduler
from rzero.engine.tokenizer import Tokenizer, load_tokenizer
from rzero.engine.weights import ModelWeights, Weights
from rzero.kernels import Kernels, resolve

if TYPE_CHECKING:
    from rzero.engine.optimizer import OptimizerName, State
    from rzero.engine.trainer import StepMetrics, Trainer


@dataclass(frozen=True)
class Model:
    """A model that is already in memory, for an engine that loads none."""

    config: ModelConfig
    weights: ModelWeights
    tokenizer: Tokenizer | None = None
    """None: prompts are token ids, texts are empty."""
    folder: Path | None = None
    """Where tokenizer and generation settings of saved checkpoints come from."""


def load_model(name_or_path: str | Path, dtype: str = "auto", device: str = "cpu") -> Model:
    """Load a Hugging Face folder or a hub name; dtype as for `Engine`."""
    folder = checkpoint.resolve_model(name_or_path)
    config = checkpoint.load_config(folder)
    tokenizer = load_tokenizer(folder, config)
    place = torch_device(device)
    weights = checkpoint.load_weights(folder, config, choose_dtype(dtype, place)[0], place)
    return Model(config, weights, tokenizer, folder)


class Engine:
    """Samples and trains. Not for use from several threads at once."""

    def __init__(
        self,
        model: str | Path | Model,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        kernels: Mapping[str, str] = MappingProxyType({}),
        debug: bool = False,
        page_size: int = 16,
        num_pages: int | None = None,
        kv_cache_bytes: int | None = None,
        max_seqs: int = 256,
        max_batch_tokens: int = 2048,
        max_model_len: int | None = None,
        threads: int | None = None,
        optimizer: "OptimizerName" = "adamw",
        numerics: Numerics = "auto",
        cuda_graphs: bool = False,
        seed: int = 0,
    ) -> None:
        """Load a model for sampling and training.

        model: a Hugging Face folder, a hub name, or a Model in memory (then `dtype` is that of its weights).
        dtype: auto (what the machine multiplies fast), float32 or bfloat16. kernels: op (or "default") to
        backend, see `rzero.kernels.resolve`. debug: check the arguments of every kernel call, page and token
        numbers included.
        page_size: tokens per page. num_pages or kv_cache_bytes: size of the page pool; default: max_seqs
        sequences of max_model_len, at most a share of the free memory. Pages are allocated on first use.
        max_seqs: answers that run at a time. max_batch_tokens: tokens per step, prefill chunks included.
        max_model_len: prompt and answer together; default: the model's positions. threads: torch's number in
        this process; default: unchanged. seed: of requests whose params have none.
        optimizer: adamw, or adamw_8bit, whose moments take a quarter (needs bitsandbytes).
        numerics: exact takes kernels by which the sampler's log-probs are the trainer's and refuses others;
        fast does not rely on equality; auto is exact on a CPU, fast on a GPU. `is_exact` says which it is.
        cuda_graphs: record the steps that decode and replay them (decode_graphs.py); no GPU has shown it yet.
        Raises InputError for anything the caller can mend.
        """
        _check_sizes(page_size=page_size, max_seqs=max_seqs, max_batch_tokens=max_batch_tokens)
        _set_threads(threads)
        self._optimizer = usable_optimizer(optimizer)
        loaded = _on_device(model, dtype, device)
        self.config, self.tokenizer, self.folder = loaded.config, loaded.tokenizer, loaded.folder
        self.device, self.dtype = torch_device(device), loaded.weights.embed.dtype
        self.kernels = _resolve(self.device, backends(numerics, self.device, kernels), debug)
        self._why_not_exact = why_not_exact(self.kernels, self.device)
        self.is_exact = is_exact(numerics, self._why_not_exact)
        self.max_model_len = _context(self.config, max_model_len)
        self.weights = Weights(self.config, loaded.weights)
        page_bytes = page_size * self.config.kv_bytes_per_token(self.dtype.itemsize)
        wanted = max_seqs * -(-self.max_model_len // page_size)
        pages = choose_num_pages(page_bytes, num_pages, kv_cache_bytes, wanted, self.device), page_size
        record = recorder(cuda_graphs, self.kernels, self.device, debug)
        self._cache = KvCache(self.config, *pages, self.dtype, self.device, max_seqs if record else 0)
        self._scheduler = Scheduler(*pages, max_seqs, max_batch_tokens, self.max_model_len, self.weights.base)
        self._tables = rope_tables(self.config, self.max_model_len, self.device)
        how = max_batch_tokens, self._scheduler.batch.max_seqs, self.is_exact and must_score(self.kernels)
        self._runner = Runner(self.config, self.kernels, self._cache, self._tables, *how, record)
        shared = self.config, self.tokenizer, self.weights, self._scheduler, self._runner
        self._sampler = Sampler(*shared, seed)
        self._trainer: Trainer | None = None

    # ---- sampling

    def generate(
        self,
        prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        role: str = "base",
        on_output: Callback | None = None,
    ) -> list[RequestOutput]:
        """Sample answers to every prompt (text or token ids) and return the outputs in the order of the
        prompts.

        params: one for all, or one for each. on_output is called with each output as soon as it is
        complete; what it raises reaches the caller, and so does Ctrl-C: the call's requests are then
        cancelled, the engine stays usable. Raises InputError, before anything runs, for a prompt or params
        that cannot be served.
        """
        return self._sampler.generate(prompts, params, role, on_output)

    def submit(
        self, prompt: Prompt, params: SamplingParams, role: str = "base", callback: Callback | None = None
    ) -> int:
        """Queue one prompt and return the request's id; `step` computes it and calls `callback` with its
        output.

        Raises InputError for what cannot be served, with the numbers.
        """
        return self._sampler.submit(prompt, params, role, callback)

    def step(self) -> list[RequestOutput]:
        """One forward pass over the running batch. Returns the submitted requests that are complete now.

        One step mixes the roles that share all tensors but adapters; others take turns. A request that a
        callback submits joins the next step. What a callback raises comes out here; outputs that were
        not yet handed out come with the next call. If the step itself is interrupted or fails, all requests
        are aborted and the engine stays usable.
        """
        return self._sampler.step()

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to compute or to hand out."""
        return self._sampler.has_work

    def cancel(self, request_id: int) -> bool:
        """Forget a request, its pages are free at once; False if it is unknown or complete."""
        return self._sampler.cancel(request_id)

    def release_kv(self) -> None:
        """Give the page pool's memory back, for example to training; the next step takes it again.

        Requests in flight stay and are computed again from their tokens.
        """
        self._scheduler.give_up_pages()
        self._runner.forget_graphs()
        self._cache.release()

    # ---- roles

    def fork(self, role: str, of: str = "base") -> None:
        """A new role with the tensors of another; nothing is copied until one of the two is trained."""
        self.weights.fork(role, of)

    def drop(self, role: str) -> None:
        """Forget a role and its optimizer state. Raises InputError while requests of the role are
        in flight.
        """
        if count := self._sampler.in_flight(role):
            raise InputError(
                f"role {role!r} has {count} requests in flight; finish or cancel them before dropping it"
            )
        self._runner.forget_graphs()
        self.weights.drop(role)
        self.reset_optimizer(role)

    def load(self, role: str, folder: str | Path, of: str = "base") -> None:
        """Set a role's tensors, new role or old, from a Hugging Face folder of a model of the same shape.

        A PEFT folder gives the role its adapters over the tensors of the role `of`, which are shared. The
        role's optimizer begins anew: its moments were of other values.
        """
        path = Path(folder)
        if (path / adapter_folder.ADAPTER_CONFIG).is_file():
            base = self.weights.role(of)
            if base.lora is not None:
                raise InputError(f"role {of!r} has adapters; {path} needs a role without any below it")
            adapted = adapter_folder.load_adapter(path, self.config, base)
            self.release_kv()
            self.weights.replace(role, adapted)
            self.reset_optimizer(role)
            return
        if (config := checkpoint.load_config(path)) != self.config:
            raise InputError(f"{path}: config.json describes another model than the engine's: {config}")
        self.release_kv()
        self.weights.replace(role, checkpoint.load_weights(path, self.config, self.dtype, self.device))
        self.reset_optimizer(role)

    def save(self, role: str, folder: str | Path, as_adapter: bool = False) -> None:
        """Write a role as a Hugging Face folder, adapters merged, replacing the folder in one step.

        as_adapter: write the adapters alone, as a PEFT folder over the model that the engine was loaded from.
        """
        weights = self.weights.role(role)
        if not as_adapter:
            checkpoint.save_hf(Path(folder), self.config, weights, self.folder)
        elif weights.lora is None:
            raise InputError(f"role {role!r} has no adapters; save it with as_adapter=False")
        else:
            adapter_folder.save_adapter(Path(folder), weights, str(self.folder or self.config.model_type))

    def tensors(self, role: str = "base") -> dict[str, torch.Tensor]:
        """A role's tensors under the names that transformers uses: views of what the engine samples from.

        A transformers model whose parameters are given these tensors (`parameter.data = tensor`) shares the
        engine's memory: whoever trains that model in place changes what the next step samples from. Adapters
        are not among them.
        """
        return checkpoint.hf_tensors(self.config, self.weights.role(role))

    # ---- training

    def train_step(
        self, role: str, groups: Sequence[TrainGroup], cfg: TrainConfig, reference: str | None = None
    ) -> "StepMetrics":
        """One GRPO update of a role's tensors, see `Trainer.train_step`. The page pool's memory is given back
        first.

        Requests of the role that are in flight go on under the new weights.
        """
        self.release_kv()
        with current(self.device):
            return self._train().train_step(role, groups, cfg, reference)

    def logprobs(
        self, role: str, answers: Sequence[tuple[Sequence[int], Sequence[int]]], temperature: float = 1.0
    ) -> list[list[float]]:
        """Log-prob of every token of each answer, given as (prompt, answer) token ids, see
        `Trainer.logprobs`.
        """
        with current(self.device):
            return self._train().logprobs(role, answers, temperature)

    def training_state(self, role: str) -> "State":
        """The exact optimizer state of a role: tensors and step count, to continue bit for bit."""
        return self._train().state(role)

    def load_training_state(self, role: str, state: "State") -> None:
        """Restore what `training_state` gave; the role's weights must be in place."""
        self._train().load_state(role, state)

    @property
    def training_seconds(self) -> Mapping[str, float]:
        """Where the time of all training steps went so far, by part, see `Trainer.seconds`."""
        return self._train().seconds

    def reset_optimizer(self, role: str) -> None:
        """Forget a role's optimizer state."""
        if self._trainer is not None:
            self._trainer.reset(role)

    def _train(self) -> "Trainer":
        # Sampling alone should not pay for the training code's import.
        from rzero.engine.trainer import Trainer

        if self._trainer is None:
            self._trainer = Trainer(self.config, self.weights, self.kernels, *self._tables, self._optimizer)
        return self._trainer

    # ---- the whole

    def describe(self) -> dict[str, str]:
        """What runs here, for people: versions, model, device, number type, memory, and the kernels with
        reasons.
        """
        config, pool, cache = self.config, self._scheduler.pool, self._cache
        used = pool.num_pages - pool.free_count
        return {
            "versions": f"rzero {metadata.version('rzero')}, torch {torch.__version__}, "
            f"python {platform.python_version()}",
            "model": f"{self.folder or config.model_type}, {config.parameters / 1e6:.2f}M parameters",
            "device": f"{self.device}, {torch.get_num_threads()} threads",
            "dtype": str(self.dtype).removeprefix("torch."),
            "numerics": described(self.is_exact, self._why_not_exact, self.device),
            "roles": ", ".join(self.weights.roles),
            "weights": f"{gib(self.weights.total_bytes())}, "
            f"{gib(self.weights.shared_bytes())} saved by sharing",
            "kv cache": f"{pool.num_pages} pages of {pool.page_size} tokens, "
            f"{gib(cache.total_bytes)} at most, {used} pages in use",
            "batch": f"{self._scheduler.batch.max_seqs} answers, "
            f"{self._scheduler.max_batch_tokens} tokens per step, context of {self.max_model_len}"
            + (", decoding by CUDA graphs" if self._runner.is_recording else ""),
            "kernels": "\n".join(map(str, self.kernels.report)),
        }

    def close(self) -> None:
        """Cancel all requests and give back weights, pages and optimizer states; the engine is then of no
        use.
        """
        self._sampler.abort()
        self._runner.forget_graphs()
        self._cache.release()
        self._trainer = None
        for role in self.weights.roles:
            self.weights.drop(role)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1")


def _set_threads(count: int | None) -> None:
    if count is not None:
        _check_sizes(threads=count)
        torch.set_num_threads(count)


def _on_device(model: str | Path | Model, dtype: str, device: str) -> Model:
    if not isinstance(model, Model):
        return load_model(model, dtype, device)
    if (place := model.weights.embed.device) != torch_device(device):
        raise InputError(f"the model's tensors are on {place}, the engine on {device}")
    return model


def _resolve(device: torch.device, wanted: Mapping[str, str], debug: bool) -> Kernels:
    try:
        with current(device):
            return resolve(device, wanted, debug)
    except ValueError as error:
        raise InputError(str(error)) from error


def _context(config: ModelConfig, max_model_len: int | None) -> int:
    if max_model_len is None:
        return config.max_positions
    if not 2 <= max_model_len <= config.max_positions:
        raise InputError(
            f"max_model_len is {max_model_len}; it must be between 2 and the model's {config.max_positions}"
        )
    return max_model_len
