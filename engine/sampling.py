# SPDX-License-Identifier: Apache-2.0
"""SamplingParams: how the answers to one prompt are drawn. Names and meanings as in vLLM where they are the
same thing.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rzero.engine.errors import InputError

SEED_LIMIT = 2**64
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How many answers, from which distribution, and where they end. InputError for a bad field."""

    n: int = 1
    """Answers per prompt; they share the prompt's pages."""
    temperature: float = 1.0
    """0 takes the most likely token (the lowest id among equals)."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely tokens whose probabilities reach this sum; 1 keeps all."""
    min_p: float = 0.0
    """Keep tokens with at least this fraction of the most likely token's probability; 0 keeps all."""
    max_tokens: int = 16
    """An answer has at most this many tokens; the context length may end it earlier."""
    stop: str | Sequence[str] = ()
    """Strings that end an answer; the text ends before the string, the token ids include it."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end an answer beside the end of sequence; the ids include them, the text does not."""
    seed: int | None = None
    """Answer j's random numbers are those of prompt, seed and j. None: the engine's, per request."""
    ignore_eos: bool = False
    """Go on after the model's end of sequence (for benchmarks)."""
    logprobs: bool = True
    """Report the two log-probs of each token."""

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            if self.__dict__[name] is None:
                raise InputError(f"{name} is None; it must be a sequence, () for nothing")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for name in ("n", "max_tokens"):
            check_int(name, self.__dict__[name], low=1)
        # The kernels take int32 and float32; what they would refuse in the middle of a step is refused here.
        check_int("top_k", self.top_k, low=0, high=2**31 - 1)
        _check_float("temperature", self.temperature, 0.0, _LARGEST)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("top_p", self.top_p, 0.0, 1.0)
        if np.float32(self.top_p) == 0:
            raise InputError(f"top_p is {self.top_p}, which keeps no token; it must be above 0 and at most 1")
        if self.seed is not None:
            check_int("seed", self.seed, low=0, high=SEED_LIMIT - 1)
            object.__setattr__(self, "seed", int(self.seed))
        for token in self.stop_token_ids:
            check_int("stop_token_ids", token, low=0)
        for text in stop:
            if not isinstance(text, str) or not text:
                raise InputError(f"stop contains {text!r}; each stop string must be a text that is not empty")
        if self.temperature == 0 and self.n > 1:
            raise InputError(
                f"temperature is 0 and n is {self.n}: all {self.n} answers would be the same; "
                "use n=1 or a temperature above 0"
            )


def check_int(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises InputError for what is no whole number between low and high."""
    allowed = f"at least {low}" if high is None else f"between {low} and {high}"
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} is {value!r}; it must be a whole number, {allowed}")
    if value < low or (high is not None and value > high):
        raise InputError(f"{name} is {value}; it must be {allowed}")


def _check_float(name: str, value: object, low: float, high: float) -> None:
    allowed = f"between {low:g} and {high:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)):
        raise InputError(f"{name} is {value!r}; it must be a number, {allowed}")
    if not (low <= value <= high and math.isfinite(value)):
        raise InputError(f"{name} is {value}; it must be {allowed}")


def answer_keys(prompt: npt.NDArray[np.int64], seed: int, n: int) -> npt.NDArray[np.int64]:
    """The 64-bit random keys of n answers: key j depends on the prompt's token ids, the seed and j alone.

    The prompt takes part so that prompts sampled with one seed do not draw the same random numbers.
    """
    text = hashlib.blake2b(prompt.tobytes(), digest_size=8, key=seed.to_bytes(16, "little"))
    first = np.array([int.from_bytes(text.digest(), "little")], dtype=np.uint64)
    with np.errstate(over="ignore"):
        return _mix(np.add(first, np.arange(n, dtype=np.uint64))).view(np.int64)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that mixes every bit into all."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
