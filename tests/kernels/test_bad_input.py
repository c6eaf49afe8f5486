# SPDX-License-Identifier: Apache-2.0
"""Bad input for every op: one exception that names the op, the argument and its shape, never a crash.

A valid call of each op, and every way to spoil one of its tensors: another type, rank, size, stride or
device; numbers that point outside. Empty batches are legal.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from cases import POSITIONS, positions, tables
from harness import CPU, needs_native, randn
from torch import Tensor

from rzero.kernels import OPS, AdamwStep, Kernels, LoraPart, Op, PolicyLossConfig, Segments, resolve

T, D, H, G, E, P, S, V = 5, 8, 4, 2, 6, 7, 4, 11


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def longs(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def bound(op: Op, *given: Any, **named: Any) -> inspect.BoundArguments:
    return inspect.signature(op.reference).bind(*given, **named)


def pages() -> tuple[Tensor, Tensor]:
    return randn(P, S, G, E), randn(P, S, G, E, seed=1)


def valid(op: Op, n: int = T) -> inspect.BoundArguments:
    """A call of the op that succeeds; n: tokens, rows or answers, 0 or T."""
    k_pages, v_pages = pages()
    slots = longs(3, 9, 27, 0, 12)[:n]
    turn = (randn(n, (H + 2 * G) * E), positions(n), *tables(E), H, G, randn(E), randn(E, seed=1))
    segments = Segments(ints(0, 3), ints(3, 2), ints(0, 0), ints(0, 2)) if n else Segments(*[ints()] * 4)
    paged = (
        (ints(*range(6)).view(2, 3), ints(0, 3, 5), ints(9, 2)) if n else (ints().view(0, 3), ints(0), ints())
    )
    settings = (
        torch.ones(n),
        ints(*[3] * n),
        torch.ones(n),
        torch.zeros(n),
        longs(*range(n)),
        longs(*range(n)),
    )
    table: dict[str, Callable[[], inspect.BoundArguments]] = {
        "linear": lambda: bound(op, randn(n, D), randn(3, D), randn(3)),
        "lora": lambda: bound(
            op, randn(n, 3), randn(n, D), [LoraPart(randn(2, D), randn(3, 2), 1.0, 0, 0, n)]
        ),
        "rmsnorm": lambda: bound(op, randn(n, D), randn(D), 1e-6),
        "add_rmsnorm": lambda: bound(op, randn(n, D), randn(n, D), randn(D), 1e-6),
        "rope": lambda: bound(op, *turn, eps=1e-6),
        "rope_write": lambda: bound(
            op, *turn, slot_T=slots, k_pages_PSGE=k_pages, v_pages_PSGE=v_pages, eps=1e-6
        ),
        "swiglu": lambda: bound(op, randn(n, 2 * D)),
        "kv_write": lambda: bound(op, randn(n, G, E), randn(n, G, E), slots, k_pages, v_pages),
        "copy_pages": lambda: bound(op, k_pages, v_pages, longs(1, 1, 3)[:n], longs(0, 4, 6)[:n]),
        "paged_attention": lambda: bound(op, randn(n, H, E), k_pages, v_pages, *paged, 0.4),
        "attention": lambda: bound(op, randn(n, H, E), randn(n, G, E), randn(n, G, E), segments, 0.4),
        "linear_logprob": lambda: bound(op, randn(n, D), randn(V, D), longs(0, 3, 10, 1, 1)[:n], 0.7),
        "sample": lambda: bound(op, randn(n, V), *settings),
        "policy_loss": lambda: bound(op, *(randn(n, seed=i) for i in range(5)), PolicyLossConfig()),
        "group_advantage": lambda: bound(op, randn(n), longs(1, 1, 1, 2, 2)[:n]),
        "adamw": lambda: bound(
            op, *(randn(n, 3).abs() for _ in range(5)), AdamwStep(0.1, 0.9, 0.99, 1e-8, 0.0, 1)
        ),
        "bleu": lambda: bound(op, [[1, 2, 3, 4]] * n),
    }
    return table[op.name]()


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "type": lambda x: x.to(torch.int16 if x.is_floating_point() else torch.float32),
    "rank": lambda x: x[None],
    "size": lambda x: torch.cat((x, x[:1])) if len(x) > 1 else x[:0],
    "last size": lambda x: x[..., :-1].contiguous(),
    "stride": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
    "device": lambda x: x.to("meta"),
}
# What an implementation may take all the same.
LEGAL = {
    ("linear", "stride"), ("sample", "stride"), ("group_advantage", "stride"), ("adamw", "stride"),
    # The first tensor says how many rows, columns or pages there are.
    ("linear x_TK", "size"), ("linear w_NK", "size"), ("rmsnorm x_TD", "size"),
    ("swiglu gate_up_T2F", "size"), ("linear_logprob w_VD", "size"), ("sample logits_BV", "last size"),
    ("paged_attention page_table_BM", "last size"),
}  # fmt: skip


def spoilt(op: Op) -> Iterator[tuple[str, str, inspect.BoundArguments]]:
    """(argument, what is wrong with it, the call) for every tensor of the op's call."""
    for name, value in valid(op).arguments.items():
        if isinstance(value, Tensor):
            for what, spoil in SPOILT.items():
                call = valid(op)
                call.arguments[name] = spoil(value)
                yield name, what, call
        elif isinstance(value, Segments):
            for field in Segments._fields:
                for what, spoil in SPOILT.items():
                    call = valid(op)
                    changed = value._replace(**{field: spoil(value._asdict()[field])})
                    call.arguments[name] = changed
                    yield field, what, call


def is_legal(op: Op, name: str, what: str) -> bool:
    return (op.name, what) in LEGAL or (f"{op.name} {name}", what) in LEGAL


def function(op: Op, kernels: Kernels) -> Callable[..., Any]:
    return getattr(kernels, op.name)  # type: ignore[no-any-return]


KINDS = (
    "ref",
    pytest.param("native", marks=needs_native),
    pytest.param("debug", marks=needs_native),
)


@pytest.fixture(params=KINDS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return resolve(CPU, {"default": "ref"} if request.param == "ref" else {}, debug=request.param == "debug")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_valid_and_empty_calls_succeed(kernels: Kernels, op: Op) -> None:
    for n in (T, 0):
        call = valid(op, n)
        function(op, kernels)(*call.args, **call.kwargs)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_spoilt_tensor_is_named_with_its_shape(kernels: Kernels, op: Op) -> None:
    for name, what, call in spoilt(op):
        if is_legal(op, name, what):
            continue
        first = next(iter(call.arguments))
        try:
            function(op, kernels)(*call.args, **call.kwargs)
        except ValueError as error:
            text = str(error)
        else:
            assert what == "device" and name == first, f"{name} of a wrong {what} is not refused"
            continue
        # Where sizes disagree, either of the two may be the wrong one.
        named = [argument for argument in (*call.arguments, *Segments._fields) if argument in text]
        assert ":" in text and named, f"{name}, {what}: {text}"
        assert name in named or what != "stride", f"{name}, {what}: {text}"


OUTSIDE = (
    ("rope", {"pos_T": longs(0, 1, 2, 3, POSITIONS)}, "pos_T"),
    ("rope", {"pos_T": longs(-1, 1, 2, 3, 4)}, "pos_T"),
    ("rope_write", {"pos_T": longs(0, 1, 2, 3, POSITIONS)}, "pos_T"),
    ("rope_write", {"slot_T": longs(0, 1, 2, 3, P * S)}, "slot_T"),
    ("kv_write", {"slot_T": longs(0, 1, 2, 3, P * S)}, "slot_T"),
    ("kv_write", {"slot_T": longs(0, 1, 2, 3, -1)}, "slot_T"),
    ("copy_pages", {"src": longs(1, 1, P)}, "src"),
    ("copy_pages", {"dst": longs(0, -1, 6)}, "dst"),
    ("paged_attention", {"page_table_BM": ints(0, 1, P, 3, 4, 5).view(2, 3)}, "page_table_BM"),
    ("paged_attention", {"page_table_BM": ints(0, -1, 2, 3, 4, 5).view(2, 3)}, "page_table_BM"),
    ("paged_attention", {"kv_len_B": ints(13, 2)}, "kv_len_B"),
    ("paged_attention", {"kv_len_B": ints(2, 2)}, "kv_len_B"),
    ("paged_attention", {"q_start_B1": ints(0, 3, 4)}, "q_start_B1"),
    ("attention", {"segments": Segments(ints(0, 3), ints(3, 3), ints(0, 0), ints(0, 2))}, "rows"),
    ("attention", {"segments": Segments(ints(0, 3), ints(3, 2), ints(0, 0), ints(0, 6))}, "segment 1"),
    ("linear_logprob", {"target_T": longs(0, 3, V, 1, 1)}, "target_T"),
    ("linear_logprob", {"target_T": longs(0, 3, -1, 1, 1)}, "target_T"),
    ("linear_logprob", {"temperature": 0.0}, "temperature"),
    ("sample", {"logits_BV": torch.full((T, V), -torch.inf)}, "logits_BV"),
    ("sample", {"logits_BV": torch.full((T, V), torch.nan)}, "logits_BV"),
    ("sample", {"top_p_B": torch.zeros(T)}, "top_p_B"),
    ("group_advantage", {"reward_B": torch.full((T,), torch.nan)}, "reward_B"),
    ("bleu", {"token_ids": [[1.5]]}, "tokens"),
)


@pytest.mark.parametrize(("name", "change", "named"), OUTSIDE)
def test_number_that_points_nowhere_is_refused(
    kernels: Kernels, name: str, change: dict[str, Any], named: str
) -> None:
    [op] = [op for op in OPS if op.name == name]
    call = valid(op)
    call.arguments.update(change)
    with pytest.raises(ValueError, match=named):
        function(op, kernels)(*call.args, **call.kwargs)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kv_write", {"slot_T": longs(0, 1, 2, 3, 3)}, r"slot_T of shape \[5\] names a slot twice"),
        ("copy_pages", {"dst": longs(0, 0, 6)}, r"dst of shape \[3\] names a page twice"),
        ("copy_pages", {"dst": longs(0, 1, 6)}, "names a page that is read"),
    ],
)
def test_debug_sees_what_would_depend_on_the_order_of_writes(
    name: str, change: dict[str, Any], message: str
) -> None:
    [op] = [op for op in OPS if op.name == name]
    call = valid(op)
    call.arguments.update(change)
    with pytest.raises(ValueError, match=message):
        function(op, resolve(CPU, debug=True))(*call.args, **call.kwargs)


def test_one_element_may_have_any_stride(kernels: Kernels) -> None:
    """Columns of a table of one segment: torch takes them for contiguous and gives them a stride of 4."""
    columns = torch.tensor([[0, T, 0, 0]], dtype=torch.int32).t().contiguous()
    assert columns[0].stride() == (4,)
    kernels.attention(randn(T, H, E), randn(T, G, E), randn(T, G, E), Segments(*columns), 0.4)
    kernels.rmsnorm(randn(4, T)[:1].t(), randn(1), 1e-6)


def test_greedy_needs_no_random_numbers(kernels: Kernels) -> None:
    [op] = [op for op in OPS if op.name == "sample"]
    call = valid(op)
    call.arguments["temperature_B"] = torch.zeros(T)
    token_B, logp_B, _ = function(op, kernels)(*call.args, **call.kwargs)
    assert torch.equal(token_B, call.arguments["logits_BV"].argmax(-1)) and not logp_B.any()


def test_debug_changes_no_result() -> None:
    plain, debug = resolve(CPU), resolve(CPU, debug=True)
    assert plain.report == debug.report
    for name in ("rmsnorm", "swiglu", "attention", "sample"):
        [op] = [op for op in OPS if op.name == name]
        results = [function(op, kernels)(*valid(op).args, **valid(op).kwargs) for kernels in (plain, debug)]
        for x, y in zip(*((r,) if isinstance(r, Tensor) else r for r in results), strict=True):
            assert torch.equal(x, y)
