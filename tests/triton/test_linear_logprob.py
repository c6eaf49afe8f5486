# SPDX-License-Identifier: Apache-2.0
"""linear_logprob in Triton: error against float64, parts and chunks that leave no trace, rows that stand
alone, and no [T, V] in memory."""

from functools import partial
from typing import Any

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, native, needs_native
from test_linear_logprob import case, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from rzero.kernels.linear_logprob import LINEAR_LOGPROB, linear_logprob_ref
from rzero.kernels.linear_logprob_triton import PART, linear_logprob_triton
from rzero.kernels.linear_triton import launch

NORMS = ((torch.linalg.vector_norm, 1.25), (lambda x: x.abs().max(), 2.0))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "temperature"), [((1, 8, 25), 1.0), ((37, 72, 1003), 0.6), ((3, 8, 2 * PART + 7), 1.0)], ids=str
)
def test_error_of_both_fast_forms_is_that_of_torch(
    shape: Any, temperature: float, dtype: torch.dtype
) -> None:
    args = case(*shape, dtype)
    truth = run(linear_logprob_ref, [a.double() if a.is_floating_point() else a for a in args], temperature)
    torchs = run(linear_logprob_ref, args, temperature)
    for function in (linear_logprob_triton, native(LINEAR_LOGPROB)):
        got = run(function, args, temperature)
        for name, t, base, ours in zip(
            ("logp", "entropy", "grad_h", "grad_w"), truth, torchs, got, strict=True
        ):
            assert t.norm() > 0
            for norm, slack in NORMS:
                error, allowed = norm(ours - t) / norm(t), slack * norm(base - t) / norm(t) + 1e-6
                assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


def gradient(args: Any, weight_T: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
    h_TD, w_VD = (x.detach().requires_grad_() for x in args[:2])
    logp_T, _ = linear_logprob_triton(h_TD, w_VD, args[2], 0.8, **how)
    grad_h_TD, grad_w_VD = torch.autograd.grad(logp_T, (h_TD, w_VD), weight_T)
    return grad_h_TD, grad_w_VD


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_of_backward_and_strides_leave_no_trace(dtype: torch.dtype) -> None:
    h_TD, w_VD, target_T = args = case(37, 24, 300, dtype)
    weight_T = torch.linspace(-1, 2, 37)
    wanted = gradient(args, weight_T)
    # Chunks as wide as a tile, the least: the last is a part of one.
    assert_same_bits(gradient(args, weight_T, chunk_bytes=1), wanted)
    assert_same_bits(gradient((apart(h_TD), apart(w_VD), target_T), weight_T), wanted)
    strided = linear_logprob_triton(apart(h_TD), apart(w_VD), target_T)
    assert_same_bits(strided, linear_logprob_triton(h_TD, w_VD, target_T))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_row_alone_has_the_bits_of_the_row_in_a_batch(dtype: torch.dtype) -> None:
    h_TD, w_VD, target_T = args = case(70, 24, 300, dtype)
    weight_T = torch.linspace(-1, 2, 70)
    together, grad_h_TD = linear_logprob_triton(*args, 0.8), gradient(args, weight_T)[0]
    # numpy's product, unlike a GPU's, depends on the place of a row in its tile: the rows keep theirs.
    for here in (slice(0, 1), slice(64, 70), slice(0, 45)):
        alone = (h_TD[here], w_VD, target_T[here])
        assert_same_bits(linear_logprob_triton(*alone, 0.8), [x[here] for x in together])
        assert_same_bits(gradient(alone, weight_T[here])[0], grad_h_TD[here])


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any torch function returned."""

    bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        made = [x.nbytes for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.bytes = max([self.bytes, *made])
        return out


def test_no_tensor_of_all_logits_is_ever_made() -> None:
    T, D, V = 40, 4, 1500
    args = case(T, D, V)
    with Largest() as seen:
        gradient(args, torch.ones(T), chunk_bytes=1)
    assert launch(torch.float32).tile.N * T * 4 <= seen.bytes <= V * D * 4 < T * V * 4 / 9
    with Largest() as seen:
        linear_logprob_ref(*args)
    assert seen.bytes >= T * V * 4


def test_gradient_goes_where_it_is_asked_for() -> None:
    h_TD, w_VD, target_T = case(6, 8, 25)
    for needs_h, needs_w in ((True, False), (False, True)):
        h, w = h_TD.clone().requires_grad_(needs_h), w_VD.clone().requires_grad_(needs_w)
        linear_logprob_triton(h, w, target_T)[0].sum().backward()
        assert (h.grad is not None) == needs_h and (w.grad is not None) == needs_w


def test_a_row_of_nan_stays_alone_and_without_weight_gives_no_gradient() -> None:
    h_TD, w_VD, target_T = case(5, 8, 25)
    h_TD[2] = torch.nan
    h_TD.requires_grad_()
    for values_T in linear_logprob_triton(h_TD, w_VD, target_T):
        assert values_T.isnan().tolist() == [False, False, True, False, False]
    logp_T = linear_logprob_triton(h_TD, w_VD, target_T)[0]
    torch.where(logp_T.isnan(), 0, logp_T).sum().backward()
    assert h_TD.grad is not None and h_TD.grad.isfinite().all() and (h_TD.grad[2] == 0).all()


def test_extreme_logits_and_temperatures_stay_finite() -> None:
    h_TD = torch.tensor([[1000.0], [-1000.0], [0.0]])
    # The first part of the vocabulary is -inf throughout for the first row, the last for the second.
    w_VD = torch.cat([torch.full((PART, 1), -3e38), torch.tensor([[1.0], [0.0], [-1.0]])])
    target_T = torch.tensor([PART, PART + 2, PART + 1])
    for temperature in (1e-4, 1.0, 1e4):
        got = linear_logprob_triton(h_TD[[0, 2]], w_VD, target_T[[0, 2]], temperature)
        wanted = linear_logprob_ref(h_TD[[0, 2]], w_VD, target_T[[0, 2]], temperature)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        few = linear_logprob_triton(h_TD, w_VD[PART:], target_T - PART, temperature)
        assert all(x.isfinite().all() for x in few) and (few[1] >= -1e-6).all() and (few[1] <= 1.0987).all()


def test_no_tokens_are_legal() -> None:
    h_TD, w_VD, target_T = case(3, 8, 25)
    h_TD, w_VD = h_TD[:0].requires_grad_(), w_VD.requires_grad_()
    logp_T, entropy_T = linear_logprob_triton(h_TD, w_VD, target_T[:0])
    assert logp_T.shape == entropy_T.shape == (0,)
    logp_T.sum().backward()
    assert w_VD.grad is not None and (w_VD.grad == 0).all()


def test_target_that_is_no_token_is_refused_or_gives_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    h_TD, w_VD, target_T = case(4, 8, 25)
    target_T[1], target_T[3] = -1, 25
    with pytest.raises(InterpreterError, match="target_T"):
        linear_logprob_triton(h_TD, w_VD, target_T)
    options = interpreter.InterpreterOptions(debug=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", options)
    logp_T, entropy_T = linear_logprob_triton(h_TD, w_VD, target_T)
    assert logp_T.isnan().tolist() == [False, True, False, True] and entropy_T.isfinite().all()


def test_wrong_arguments_are_named() -> None:
    h_TD, w_VD, target_T = case(3, 8, 25)
    for args, name in (
        ((h_TD[0], w_VD, target_T), "h_TD"),
        ((h_TD.double(), w_VD, target_T), "h_TD"),
        ((h_TD, w_VD[:, :7], target_T), "w_VD"),
        ((h_TD, w_VD.half(), target_T), "w_VD"),
        ((h_TD, w_VD, target_T[:2]), "target_T"),
        ((h_TD, w_VD, target_T.int()), "target_T"),
        ((h_TD, w_VD, target_T.to("meta")), "target_T"),
        ((h_TD, w_VD, target_T, 0.0), "temperature"),
    ):
        with pytest.raises(ValueError, match=name):
            partial(linear_logprob_triton, *args)()
