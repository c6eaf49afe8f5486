# SPDX-License-Identifier: Apache-2.0
"""SamplingParams refuse what cannot be served, and random keys are functions of prompt, seed and index."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from rzero.engine.errors import InputError
from rzero.engine.sampling import SamplingParams, answer_keys

BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"n": 0}, "n is 0; it must be at least 1"),
    ({"n": 1.5}, "n is 1.5; it must be a whole number"),
    ({"n": True}, "n is True"),
    ({"max_tokens": 0}, "max_tokens is 0"),
    ({"temperature": -0.1}, "temperature is -0.1; it must be between 0 and 3.40282e+38"),
    ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"),
    ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
    ({"temperature": 1e39}, "temperature is 1e+39"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_k": 2**31}, "top_k is 2147483648; it must be between 0 and 2147483647"),
    ({"top_p": 1e-46}, "top_p is 1e-46, which keeps no token"),
    ({"top_p": 0}, "top_p is 0, which keeps no token"),
    ({"top_p": 1.01}, "top_p is 1.01; it must be between 0 and 1"),
    ({"min_p": -0.5}, "min_p is -0.5"),
    ({"min_p": 2}, "min_p is 2"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**64}, "seed is 18446744073709551616; it must be between 0 and 18446744073709551615"),
    ({"stop": ["a", ""]}, "stop contains ''"),
    ({"stop": [3]}, "stop contains 3"),
    ({"stop": None}, "stop is None"),
    ({"stop_token_ids": [-4]}, "stop_token_ids is -4"),
    ({"temperature": 0, "n": 4}, "temperature is 0 and n is 4"),
)


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_field_is_named_with_its_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SamplingParams(**fields)
    assert message in str(error.value)


def test_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="top_q"):
        SamplingParams(top_q=1)  # type: ignore[call-arg]


def test_one_stop_string_may_be_given_bare() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop == ("ab", "c")


def test_params_cannot_change_and_can_be_compared() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2  # type: ignore[misc]
    assert dataclasses.replace(SamplingParams(n=2), n=1) == SamplingParams()


def test_keys_depend_on_prompt_seed_and_index_alone() -> None:
    prompt = np.array([1, 2, 3])
    keys = answer_keys(prompt, seed=0, n=64)
    assert np.array_equal(keys[:8], answer_keys(prompt, seed=0, n=8))
    others = [answer_keys(prompt, seed=s, n=64) for s in range(1, 20)]
    others += [answer_keys(np.array(ids), seed=0, n=64) for ids in ([1, 2], [3, 2, 1], [1, 2, 3, 0])]
    everything = np.concatenate([keys, *others])
    assert len(np.unique(everything)) == len(everything)


def test_key_bits_are_balanced() -> None:
    keys = np.concatenate([answer_keys(np.array([1]), seed, 16) for seed in range(256)])
    bits = np.unpackbits(keys.view(np.uint8).reshape(-1, 8), axis=1).mean(axis=0)
    assert (abs(bits - 0.5) < 5 * 0.5 / math.sqrt(len(keys))).all()
