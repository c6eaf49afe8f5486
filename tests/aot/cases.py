# SPDX-License-Identifier: Apache-2.0
"""Calls of the Triton kernels as a model makes them: shapes, strides and types decide what is compiled.

One function per op yields the name of a case and the call. Tensors are made inside the call and hold nothing:
no kernel runs.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Call = Callable[[], object]
Cases = Iterator[tuple[str, Call]]

BF16 = torch.bfloat16
TOKENS = 4096


class Model(NamedTuple):
    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    has_head_norms: bool


MODELS = (
    Model("Qwen2.5-0.5B", 896, 4864, 14, 2, 64, 151936, False),
    Model("Qwen3-4B", 2560, 9728, 32, 8, 128, 151936, True),
)


def empty(*shape: int, dtype: torch.dtype = BF16, needs_grad: bool = False) -> Tensor:
    return torch.empty(shape, dtype=dtype, requires_grad=needs_grad)


def with_gradient(function: Callable[..., Tensor | tuple[Tensor, ...]], *leaves: Tensor) -> None:
    """Calls the function and its backward for the gradients of all leaves."""
    inputs = [leaf.requires_grad_() for leaf in leaves]
    out = function(*inputs)
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    torch.autograd.grad(outs, inputs, [torch.empty_like(y) for y in outs])


def rmsnorm() -> Cases:
    from rzero.kernels.rmsnorm_triton import add_rmsnorm_triton, rmsnorm_triton

    def call(D: int, dtype: torch.dtype) -> None:
        x, residual, w = empty(TOKENS, D, dtype=dtype), empty(TOKENS, D, dtype=dtype), empty(D, dtype=dtype)
        with_gradient(lambda x, w: rmsnorm_triton(x, w, 1e-6), x, w)
        with_gradient(lambda x, r, w: add_rmsnorm_triton(x, r, w, 1e-6), x, residual, w)

    for model in MODELS:
        yield f"rmsnorm {model.name}", partial(call, model.hidden, BF16)
    yield "rmsnorm float32", partial(call, MODELS[0].hidden, torch.float32)


def linear() -> Cases:
    from rzero.kernels.linear_triton import linear_triton

    def call(K: int, N: int, dtype: torch.dtype) -> None:
        with_gradient(
            linear_triton, empty(TOKENS, K, dtype=dtype), empty(N, K, dtype=dtype), empty(N, dtype=dtype)
        )

    for model in MODELS:
        outputs = (model.heads + 2 * model.kv_heads) * model.head_size
        yield f"linear {model.name}", partial(call, model.hidden, outputs, BF16)
    yield "linear float16", partial(call, MODELS[0].hidden, 1152, torch.float16)
    yield "linear float32", partial(call, MODELS[0].hidden, 1152, torch.float32)


def linear_logprob() -> Cases:
    from rzero.kernels.linear_logprob_triton import linear_logprob_triton

    def call(D: int, V: int, dtype: torch.dtype) -> None:
        h, w = (empty(rows, D, dtype=dtype, needs_grad=True) for rows in (TOKENS, V))
        logp, _ = linear_logprob_triton(h, w, empty(TOKENS, dtype=torch.int64), 0.7)
        torch.autograd.grad(logp, (h, w), torch.empty_like(logp))

    for model in MODELS:
        yield f"linear_logprob {model.name}", partial(call, model.hidden, model.vocab, BF16)
    # The chunks of the vocabulary are the same program over and over: one is enough.
    yield "linear_logprob float32", partial(call, MODELS[0].hidden, 4096, torch.float32)


def policy_loss() -> Cases:
    from rzero.kernels.policy_loss import ESTIMATORS, MODES, PolicyLossConfig
    from rzero.kernels.policy_loss_triton import group_advantage_triton, policy_loss_triton

    def call(estimator: str, has_ref: bool) -> None:
        logp, old, ref, advantage, weight = (empty(TOKENS, dtype=torch.float32) for _ in range(5))
        cfg = PolicyLossConfig(kl_estimator=estimator)  # type: ignore[arg-type]
        out = policy_loss_triton(logp.requires_grad_(), old, ref if has_ref else None, advantage, weight, cfg)
        torch.autograd.grad(out.loss, logp)

    for estimator in ESTIMATORS:
        yield f"policy_loss {estimator}", partial(call, estimator, True)
    yield "policy_loss without reference", partial(call, "k3", False)
    rewards, groups = empty(TOKENS, dtype=torch.float32), empty(TOKENS, dtype=torch.int64)
    for mode in MODES:
        yield f"group_advantage {mode}", partial(group_advantage_triton, rewards, groups, mode)


def adamw() -> Cases:
    from rzero.kernels.adamw import AdamwStep
    from rzero.kernels.adamw_triton import adamw_triton

    def call(dtype: torch.dtype, has_master: bool) -> None:
        exp_avg, exp_avg_sq, master = (empty(4096, 896, dtype=torch.float32) for _ in range(3))
        param, grad = empty(4096, 896, dtype=dtype), empty(4096, 896, dtype=dtype)
        how = AdamwStep(1e-6, 0.9, 0.999, 1e-8, 0.01, 1)
        adamw_triton(param, grad, exp_avg, exp_avg_sq, master if has_master else None, how)

    yield "adamw float32", partial(call, torch.float32, False)
    yield "adamw bfloat16 with master", partial(call, BF16, True)
    yield "adamw bfloat16", partial(call, BF16, False)


OPS = (rmsnorm, linear, linear_logprob, policy_loss, adamw)


def all_cases() -> dict[str, Call]:
    cases = [case for op in OPS for case in op()]
    assert len({name for name, _ in cases}) == len(cases), "a name is used twice"
    return dict(cases)
