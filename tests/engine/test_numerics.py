# SPDX-License-Identifier: Apache-2.0
"""Exact where the kernels are, refused where it is asked for and they are not."""

import pytest
import torch
from plain import CPU
from small_engine import small_engine

from rzero.engine import InputError
from rzero.engine.numerics import why_not_exact
from rzero.kernels import resolve
from rzero.kernels.native import native_why_not

needs_native = pytest.mark.skipif(native_why_not(CPU) is not None, reason="only the native kernels are exact")


@needs_native
def test_native_kernels_are_exact_and_others_are_named() -> None:
    assert why_not_exact(resolve(CPU), torch.float32, CPU) is None
    mixed = resolve(CPU, {"linear": "ref"})
    assert why_not_exact(mixed, torch.float32, CPU) == (
        "linear runs on the backend ref, whose rows may depend on the batch"
    )
    assert why_not_exact(resolve(CPU, {"bleu": "ref"}), torch.float32, CPU) is None, "bleu is not on the way"
    assert "cuda" in str(why_not_exact(resolve(CPU), torch.float32, torch.device("cuda")))


@needs_native
def test_the_engine_says_which_it_is() -> None:
    assert small_engine().is_exact and "exact" in small_engine().describe()["numerics"]
    fast = small_engine(numerics="fast")
    assert not fast.is_exact and fast.describe()["numerics"] == "fast: asked for"
    reference = small_engine(kernels={"default": "ref"})
    assert not reference.is_exact and "backend ref" in reference.describe()["numerics"]


def test_what_cannot_be_exact_is_refused() -> None:
    with pytest.raises(InputError, match="numerics is exact, but linear runs on the backend ref"):
        small_engine(kernels={"default": "ref"}, numerics="exact")
    with pytest.raises(InputError, match="numerics is 'precise'; it must be one of auto, exact, fast"):
        small_engine(numerics="precise")
