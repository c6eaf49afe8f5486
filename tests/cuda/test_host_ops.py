# SPDX-License-Identifier: Apache-2.0
"""csrc/paged_attention.cu and csrc/kv_write.cu on the CPU, judged as every backend is."""

import pytest
import torch
from harness import DTYPES, apart, assert_same_bits, frobenius, peak, randn
from test_paged_attention import Cache

from rzero.kernels.kv_write import copy_pages_ref, kv_write_ref
from rzero.kernels.kv_write_cuda import copy_pages_cuda, kv_write_cuda
from rzero.kernels.paged_attention import paged_attention_ref
from rzero.kernels.paged_attention_cuda import paged_attention_cuda

HEADS = ((4, 2, 32), (7, 1, 64), (3, 3, 6), (4, 1, 128))
# Rows of q and length of each sequence: decoding, a whole prompt, a chunk of one, a sequence that waits.
STEP = ((1, 1), (1, 70), (5, 5), (3, 20), (0, 17), (0, 0), (1, 16))
ROWS, LENGTHS = [r for r, _ in STEP], [n for _, n in STEP]
pytestmark = pytest.mark.usefixtures("on_host")


@pytest.mark.parametrize("S", [1, 5, 16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_attention_errs_as_torch_does(heads: tuple[int, int, int], dtype: torch.dtype, S: int) -> None:
    H, G, E = heads
    q_THE = randn(sum(ROWS), H, E, dtype=dtype, seed=99)
    args, scale = Cache(LENGTHS, S, G, E, dtype).args(ROWS, LENGTHS), E**-0.5
    truth = paged_attention_ref(q_THE.double(), *(x.double() for x in args[:2]), *args[2:], scale)
    torchs = paged_attention_ref(q_THE, *args, scale).double() - truth
    got = paged_attention_cuda(apart(q_THE), *args, scale)
    assert got.dtype == dtype and truth.norm() > 0
    for norm, slack in ((frobenius, 1.25), (peak, 2.5)):
        assert norm(got.double() - truth) <= slack * norm(torchs) + 2e-7 * norm(truth)


def test_unaligned_rows_have_the_bits_of_aligned_ones() -> None:
    q_THE = randn(sum(ROWS), 4, 32, dtype=torch.bfloat16, seed=99)
    apart_pages = Cache(LENGTHS, 4, 2, 32, torch.bfloat16).args(ROWS, LENGTHS)  # rows of 35 elements
    dense_pages = (*(x.contiguous() for x in apart_pages[:2]), *apart_pages[2:])
    assert apart_pages[0].stride(2) % 8 and not dense_pages[0].stride(2) % 8
    assert_same_bits(
        *(paged_attention_cuda(q_THE, *args, 0.2) for args in (apart_pages, dense_pages)),
    )


def test_token_by_token_in_chunks_and_with_any_page_size_are_the_same_bits() -> None:
    (H, G, E), N, scale = (4, 2, 32), 41, 0.2
    q_THE = randn(N, H, E, dtype=torch.bfloat16, seed=99)
    wanted = None
    for S, chunk in ((16, N), (16, 1), (16, 7), (3, 5), (64, N)):
        cache = Cache([N], S, G, E, torch.bfloat16)
        steps = [(i, min(i + chunk, N)) for i in range(0, N, chunk)]
        parts = [paged_attention_cuda(q_THE[i:j], *cache.args([j - i], [j]), scale) for i, j in steps]
        wanted = torch.cat(parts) if wanted is None else wanted
        assert_same_bits(torch.cat(parts), wanted)


def test_page_that_is_not_there_gives_nan_and_a_row_of_no_sequence_zero() -> None:
    k_pages, v_pages = randn(2, 3, 4, 2, 8)
    table_BM = torch.tensor([[0, 1], [1, 7], [2, -1]], dtype=torch.int32)
    starts, lengths = (torch.tensor(x, dtype=torch.int32) for x in ([0, 1, 2, 3], [8, 5, 9]))
    o_THE = paged_attention_cuda(randn(5, 4, 8), k_pages, v_pages, table_BM, starts, lengths, 0.3)
    assert o_THE[0].isfinite().all() and o_THE[1:3].isnan().all() and not o_THE[3:].any()


def test_no_rows() -> None:
    k_pages, v_pages = torch.zeros(2, 3, 4, 2, 8)
    table_BM, starts, lengths = (torch.zeros(s, dtype=torch.int32) for s in ((0, 5), (1,), (0,)))
    got = paged_attention_cuda(torch.zeros(0, 4, 8), k_pages, v_pages, table_BM, starts, lengths, 1.0)
    assert got.shape == (0, 4, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("E", [6, 8])  # 8: in units of 16 bytes, where rows are dense
@pytest.mark.parametrize("T", [0, 1, 9])
def test_only_the_named_slots_change(T: int, E: int, is_dense: bool, dtype: torch.dtype) -> None:
    view = (lambda x: x) if is_dense or T == 0 else apart
    k_pages, v_pages = (view(randn(7, 4, 2, E, dtype=dtype, seed=seed)) for seed in (1, 2))
    k_TGE, v_TGE = (view(randn(T, 2, E, dtype=dtype, seed=seed)) for seed in (3, 4))
    slot_T = torch.randperm(28, generator=torch.Generator().manual_seed(0))[:T]
    wanted = [k_pages.clone(), v_pages.clone()]
    kv_write_ref(k_TGE, v_TGE, slot_T, *wanted)
    kv_write_cuda(k_TGE, v_TGE, slot_T, k_pages, v_pages)
    assert_same_bits((k_pages, v_pages), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("E", [6, 8])
@pytest.mark.parametrize(("src", "dst"), [([], []), ([2], [5]), ([1, 1, 3], [0, 4, 6])])
def test_pages_are_copied_whole(
    src: list[int], dst: list[int], E: int, is_dense: bool, dtype: torch.dtype
) -> None:
    view = (lambda x: x) if is_dense else apart
    k_pages, v_pages = (view(randn(7, 4, 2, E, dtype=dtype, seed=seed)) for seed in (1, 2))
    numbers = [torch.tensor(n, dtype=torch.int64) for n in (src, dst)]
    wanted = [k_pages.clone(), v_pages.clone()]
    copy_pages_ref(*wanted, *numbers)
    copy_pages_cuda(k_pages, v_pages, *numbers)
    assert_same_bits((k_pages, v_pages), wanted)


def test_number_outside_the_pages_moves_nothing() -> None:
    k_pages, v_pages = randn(2, 7, 4, 2, 8)
    before = [k_pages.clone(), v_pages.clone()]
    kv_write_cuda(randn(3, 2, 8), randn(3, 2, 8), torch.tensor([-1, 28, 2**40]), k_pages, v_pages)
    copy_pages_cuda(k_pages, v_pages, torch.tensor([7, -1, 0]), torch.tensor([0, 1, 2**40]))
    assert_same_bits((k_pages, v_pages), before)


@pytest.mark.parametrize(
    ("name", "index", "wrong"),
    [
        ("q_THE", 0, torch.zeros(3, 8)),
        ("q_THE", 0, torch.zeros(3, 4, 200)),
        ("k_pages_PSGE", 1, torch.zeros(3, 4, 3, 8)),
        ("v_pages_PSGE", 2, torch.zeros(3, 4, 2, 8).double()),
        ("page_table_BM", 3, torch.zeros(2, 2, dtype=torch.int64)),
        ("q_start_B1", 4, torch.zeros(2, dtype=torch.int32)),
        ("kv_len_B", 5, torch.zeros(3, dtype=torch.int32)),
    ],
)
def test_wrong_tensor_is_named(name: str, index: int, wrong: torch.Tensor) -> None:
    args = [randn(3, 4, 8), *randn(2, 3, 4, 2, 8), torch.zeros(2, 2, dtype=torch.int32)]
    args += [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 3], [8, 5])]
    args[index] = wrong
    with pytest.raises(ValueError, match=f"paged_attention: {name} must be"):
        paged_attention_cuda(*args, 1.0)
