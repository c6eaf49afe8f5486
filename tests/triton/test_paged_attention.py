# SPDX-License-Identifier: Apache-2.0
"""paged_attention in Triton: against float64, and bit for bit in other company."""

from collections.abc import Iterator

import ordered
import pytest
import torch
from attention_inputs import Cache
from harness import DTYPES, apart, assert_same_bits, frobenius, peak, randn
from torch import Tensor
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from rzero.kernels import paged_attention_triton as module
from rzero.kernels.attention import Segments
from rzero.kernels.attention_triton import attention_triton
from rzero.kernels.paged_attention import paged_attention_ref
from rzero.kernels.paged_attention_triton import paged_attention_triton

# rows of q and length of each sequence: decoding, a whole prompt, a chunk, one that waits, an empty one.
STEP = ((1, 1), (1, 70), (5, 5), (9, 67), (0, 17), (0, 0), (1, 16), (2, 129))
ROWS, LENGTHS = [r for r, _ in STEP], [n for _, n in STEP]


@pytest.fixture
def ordered_dot(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    ordered.install(monkeypatch)
    yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", [(4, 2, 32, 16), (7, 1, 20, 5), (3, 3, 10, 1), (12, 2, 80, 32)], ids=str)
def test_error_is_that_of_torch(heads: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """Weights are rounded before they meet the values: one rounding more than torch has."""
    H, G, E, S = heads
    cache, q_THE = Cache(LENGTHS, S, G, E, dtype), randn(sum(ROWS), H, E, dtype=dtype, seed=99)
    args, scale = cache.args(ROWS, LENGTHS), E**-0.5
    truth = paged_attention_ref(q_THE.double(), *(x.double() for x in args[:2]), *args[2:], scale)
    torchs = paged_attention_ref(q_THE, *args, scale).double() - truth
    got = paged_attention_triton(apart(q_THE), *args, scale)
    assert got.dtype == dtype and truth.norm() > 0
    for norm, slack in ((frobenius, 1.6), (peak, 4.0)):
        assert norm(got.double() - truth) <= slack * norm(torchs) + 2e-7 * norm(truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_token_by_token_in_chunks_and_in_training_are_the_same_bits(
    dtype: torch.dtype, ordered_dot: None
) -> None:
    N, scale = 70, 0.2
    q_THE, cache = randn(N, 6, 20, dtype=dtype, seed=99), Cache([N], 16, 2, 20, dtype)
    one = Segments(*(torch.tensor([n], dtype=torch.int32) for n in (0, N, 0, 0)))
    wanted = attention_triton(q_THE, cache.k[0], cache.v[0], one, scale)
    for begin, end in ((0, N), (0, 7), (7, 31), (31, 65), (65, 66), (69, 70)):
        got = paged_attention_triton(q_THE[begin:end], *cache.args([end - begin], [end]), scale)
        assert_same_bits(got, wanted[begin:end])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequence_has_the_same_bits_alone_and_with_any_page_size(
    dtype: torch.dtype, ordered_dot: None
) -> None:
    q_THE = randn(sum(ROWS), 4, 20, dtype=dtype, seed=99)
    together = paged_attention_triton(q_THE, *Cache(LENGTHS, 16, 1, 20, dtype).args(ROWS, LENGTHS), 0.2)
    args = Cache(LENGTHS, 3, 1, 20, dtype).args(ROWS, LENGTHS)
    assert_same_bits(paged_attention_triton(q_THE, *args, 0.2), together)
    for b, q in enumerate(q_THE.split(ROWS)):
        starts, length = (torch.tensor(x, dtype=torch.int32) for x in ([0, ROWS[b]], [LENGTHS[b]]))
        alone = paged_attention_triton(q, *args[:2], args[2][b : b + 1], starts, length, 0.2)
        assert_same_bits(alone, together[sum(ROWS[:b]) : sum(ROWS[: b + 1])])


def test_long_sequences_have_the_same_bits_in_one_program_and_in_several(
    monkeypatch: pytest.MonkeyPatch, ordered_dot: None
) -> None:
    rows, lengths = [2, 1, 1], [513, 3, 1030]
    q_THE, cache = randn(4, 2, 10, seed=99), Cache(lengths, 16, 1, 10, torch.float32)
    args = (q_THE, *cache.args(rows, lengths), 0.3)
    several = paged_attention_triton(*args)
    monkeypatch.setattr(module, "FEW_PROGRAMS", 0)
    assert_same_bits(paged_attention_triton(*args), several)
    torch.testing.assert_close(several, paged_attention_ref(*args))


def test_scores_of_hundreds_neither_overflow_nor_leave_the_largest() -> None:
    cache, q_THE = Cache([40], 16, 1, 20, torch.float32), randn(3, 2, 20, seed=99)
    args = (q_THE, *cache.args([3], [40]), 50.0)
    torch.testing.assert_close(
        paged_attention_triton(*args), paged_attention_ref(*args), rtol=1e-3, atol=1e-3
    )


def test_no_sequences() -> None:
    k_pages, v_pages = torch.zeros(2, 3, 4, 2, 8)
    table_BM, starts, lengths = (torch.zeros(s, dtype=torch.int32) for s in ((0, 5), (1,), (0,)))
    o_THE = paged_attention_triton(torch.zeros(0, 4, 8), k_pages, v_pages, table_BM, starts, lengths, 1.0)
    assert o_THE.shape == (0, 4, 8)


def ints(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: ints([0, 3], [1, 2])}, "names no page"),
        ({5: ints(9, 5)}, "goes beyond the page table"),
        ({5: ints(1, 4)}, "more rows than kv_len_B"),
        ({4: ints(1, 2, 3)}, "does not run from 0"),
        ({4: ints(0, 2, 4)}, "does not run from 0"),
    ],
)
def test_pages_and_lengths_that_cannot_be_are_seen_in_debug_mode(
    change: dict[int, Tensor], message: str
) -> None:
    args = [randn(3, 4, 8), *randn(2, 3, 4, 2, 8), ints([0, 1], [1, 2]), ints(0, 2, 3), ints(8, 5)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(InterpreterError, match=message):
        paged_attention_triton(*args, 1.0)


def test_pages_and_lengths_that_cannot_be_make_nan_and_touch_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU without debug mode: no assertion fires, but the interpreter still checks every access."""
    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions())
    args = (randn(3, 4, 8), *randn(2, 3, 4, 2, 8))
    for table, starts, lengths, bad in (
        (ints([0, 3], [1, 2]), ints(0, 2, 3), ints(8, 5), [0, 1]),
        (ints([0, 1], [-7, 2]), ints(0, 2, 3), ints(8, 5), [2]),
        (ints([0, 1], [1, 2]), ints(0, 2, 3), ints(10, 5), [0, 1]),
        (ints([0] * 200, [1] * 200), ints(0, 2, 3), ints(9000, 5), [0, 1]),
        (ints([0, 1], [1, 2]), ints(0, 2, 9), ints(8, 12), [2]),
    ):
        o_THE = paged_attention_triton(*args, table, starts, lengths, 1.0)
        assert o_THE.isnan().flatten(1).any(1).nonzero().flatten().tolist() == bad


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q_THE", {0: randn(3, 8)}),
        ("q_THE", {0: randn(3, 4, 8).double()}),
        ("q_THE", {0: randn(3, 8, 4).transpose(1, 2)}),
        ("k_pages_PSGE", {1: randn(3, 4, 3, 8)}),
        ("k_pages_PSGE", {1: randn(3, 4, 2, 9)}),
        ("k_pages_PSGE", {1: torch.empty(3, 4, 2, 8, device="meta")}),
        ("v_pages_PSGE", {2: randn(3, 4, 2, 8).double()}),
        ("v_pages_PSGE", {2: randn(4, 4, 2, 8)}),
        ("page_table_BM", {3: torch.zeros(2, 2, dtype=torch.int64)}),
        ("page_table_BM", {3: ints(0, 1)}),
        ("q_start_B1", {4: ints(0, 3)}),
        ("kv_len_B", {5: ints(8, 5, 1)}),
        ("kv_len_B", {5: torch.zeros(2, dtype=torch.int32, device="meta")}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [randn(3, 4, 8), *randn(2, 3, 4, 2, 8), ints([0, 1], [1, 2]), ints(0, 2, 3), ints(8, 5)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"paged_attention: {name} must be"):
        paged_attention_triton(*args, 1.0)
