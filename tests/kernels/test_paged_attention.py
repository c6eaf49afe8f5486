# SPDX-License-Identifier: Apache-2.0
"""paged_attention: decoding and chunks of a prompt against float64, and bit for bit against `attention`."""

import pytest
import torch
from attention_inputs import Cache
from cases import STEP
from harness import (
    BACKENDS,
    CPU,
    DTYPES,
    assert_same_bits,
    native,
    needs_native,
    randn,
)
from torch import Tensor

from rzero.kernels.attention import ATTENTION, Segments
from rzero.kernels.dispatch import choose
from rzero.kernels.paged_attention import PAGED_ATTENTION

HEADS = ((4, 2, 32), (14, 2, 64), (3, 1, 6), (2, 2, 128))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_token_by_token_in_chunks_and_in_training_are_the_same_bits(
    instruction_set: str, heads: tuple[int, int, int], dtype: torch.dtype
) -> None:
    (H, G, E), N, scale = heads, 130, 0.2
    q_THE, paged = randn(N, H, E, dtype=dtype, seed=99), native(PAGED_ATTENTION)
    cache = Cache([N], 16, G, E, dtype)
    one = Segments(*(torch.tensor([n], dtype=torch.int32) for n in (0, N, 0, 0)))
    wanted = native(ATTENTION)(q_THE, cache.k[0], cache.v[0], one, scale)
    for chunk in (1, 7, 64, N):
        parts = [
            paged(q_THE[i : i + chunk], *cache.args([min(chunk, N - i)], [min(i + chunk, N)]), scale)
            for i in range(0, N, chunk)
        ]
        assert_same_bits(torch.cat(parts), wanted)
    prompt = 50
    shared = Segments(
        *(
            torch.tensor(n, dtype=torch.int32)
            for n in ([0, prompt], [prompt, N - prompt], [0, 0], [0, prompt])
        )
    )
    assert_same_bits(native(ATTENTION)(q_THE, cache.k[0], cache.v[0], shared, scale), wanted)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequence_has_the_same_bits_alone_and_with_any_page_size(
    instruction_set: str, dtype: torch.dtype, restored_threads: None
) -> None:
    rows, lengths = [r for r, _ in STEP], [n for _, n in STEP]
    q_THE, paged = randn(sum(rows), 4, 32, dtype=dtype, seed=99), native(PAGED_ATTENTION)
    together = paged(q_THE, *Cache(lengths, 16, 2, 32, dtype).args(rows, lengths), 0.2)
    torch.set_num_threads(2)
    for S in (1, 3, 256):
        cache = Cache(lengths, S, 2, 32, dtype)
        assert_same_bits(paged(q_THE, *cache.args(rows, lengths), 0.2), together)
        for b, q in enumerate(q_THE.split(rows)):
            k_pages, v_pages, table_BM, _, _ = cache.args(rows, lengths)
            starts, length = (torch.tensor(x, dtype=torch.int32) for x in ([0, rows[b]], [lengths[b]]))
            alone = paged(q, k_pages, v_pages, table_BM[b : b + 1], starts, length, 0.2)
            assert_same_bits(alone, together[sum(rows[:b]) : sum(rows[: b + 1])])


@needs_native
@pytest.mark.parametrize("heads", [(14, 2, 64), (9, 3, 64), (6, 2, 128), (9, 1, 64), (4, 2, 24)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_of_a_prompt_have_the_bits_of_sequences_that_share_nothing(
    instruction_set: str, heads: tuple[int, int, int], dtype: torch.dtype, restored_threads: None
) -> None:
    """Shared pages are read once for all of them. Several prompts, samples scattered over the batch."""
    H, G, E = heads
    cache = Cache([200, 150, 64, 40], 16, G, E, dtype)
    owner = [0, 1, 0, 2, 0, 3, 0, 1, 3, 0, 2, 1, 0, 0, 0, 0]  # whose first pages a sequence has
    shared = [8, 8, 8, 3, 8, 2, 8, 8, 2, 5, 3, 1, 8, 0, 8, 8]  # and how many
    lengths = [130, 140, 129, 60, 193, 40, 144, 129, 33, 100, 49, 30, 200, 7, 128, 1]
    own = Cache(lengths, 16, G, E, dtype)
    k_pages, v_pages = (
        torch.cat(pair)
        for pair in zip((cache.k_pages, cache.v_pages), (own.k_pages, own.v_pages), strict=True)
    )
    tables = own.table_BM + len(cache.k_pages)
    apart_k, apart_v, apart_BM = own.k_pages.clone(), own.v_pages.clone(), own.table_BM
    for b, (prompt, pages) in enumerate(zip(owner, shared, strict=True)):
        for m in range(min(pages, -(-lengths[b] // 16))):
            page = int(cache.table_BM[prompt, m])
            tables[b, m] = page
            apart_k[apart_BM[b, m]], apart_v[apart_BM[b, m]] = cache.k_pages[page], cache.v_pages[page]
    starts, lengths_B = (
        torch.arange(len(lengths) + 1, dtype=torch.int32),
        torch.tensor(lengths, dtype=torch.int32),
    )
    q_THE, paged = randn(len(lengths), H, E, dtype=dtype, seed=99), native(PAGED_ATTENTION)
    wanted = paged(q_THE, apart_k, apart_v, apart_BM, starts, lengths_B, 0.2)
    assert wanted.isfinite().all()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_same_bits(paged(q_THE, k_pages, v_pages, tables, starts, lengths_B, 0.2), wanted)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_instruction_sets_with_fused_multiply_add_agree(dtype: torch.dtype) -> None:
    """Nothing may depend on the vector width, or a run could not be repeated on another machine. A CPU that
    multiplies bfloat16 adds products of that type in pairs."""
    from rzero.kernels.native import lib

    others = {"baseline", "avx512_bf16"} if dtype == torch.bfloat16 else {"baseline"}
    fused = [name for name in lib.instruction_sets() if name not in others]
    if len(fused) < 2:
        pytest.skip(f"this CPU runs {', '.join(lib.instruction_sets())}")
    rows, lengths, before = [r for r, _ in STEP], [n for _, n in STEP], lib.instruction_set()
    args = Cache(lengths, 16, 2, 32, dtype).args(rows, lengths)
    outputs = []
    for name in fused:
        lib.use_instruction_set(name)
        outputs.append(native(PAGED_ATTENTION)(randn(sum(rows), 4, 32, dtype=dtype), *args, 0.2))
    lib.use_instruction_set(before)
    for other in outputs[1:]:
        assert_same_bits(other, outputs[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_sequences(backend: str) -> None:
    k_pages, v_pages = torch.zeros(2, 3, 4, 2, 8)
    table_BM, starts, lengths = (torch.zeros(s, dtype=torch.int32) for s in ((0, 5), (1,), (0,)))
    f = choose(PAGED_ATTENTION, CPU, backend)[0]
    assert f(torch.zeros(0, 4, 8), k_pages, v_pages, table_BM, starts, lengths, 1.0).shape == (0, 4, 8)


@needs_native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: [[0, 3], [1, 2]]}, "sequence 0 names page 3 in page_table_BM, there are pages 0..2"),
        ({3: [[0, 1], [-1, 2]]}, "sequence 1 names page -1"),
        ({4: [0, 2, 4]}, "must run from 0 to the 3 rows"),
        ({4: [1, 2, 3]}, "must run from 0 to the 3 rows"),
        ({4: [0, 4, 3]}, "sequence 1 has -1 rows"),
        ({5: [1, 4]}, "sequence 0 has 2 rows and kv_len_B 1"),
        ({5: [9, 4]}, "kv_len_B 9, allowed are"),
    ],
)
def test_pages_and_lengths_that_cannot_be_are_refused(change: dict[int, list[int]], message: str) -> None:
    args = [randn(3, 4, 8), *randn(2, 3, 4, 2, 8), [[0, 1], [1, 2]], [0, 2, 3], [8, 5]]
    for i, value in change.items():
        args[i] = value
    args = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.int32) for x in args]
    with pytest.raises(ValueError, match=message):
        native(PAGED_ATTENTION)(*args, 1.0)


@needs_native
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("q_THE", {0: randn(3, 8)}),
        ("k_pages_PSGE", {1: randn(3, 4, 3, 8)}),
        ("k_pages_PSGE", {1: randn(3, 4, 2, 9)}),
        ("v_pages_PSGE", {2: randn(3, 4, 2, 8).double()}),
        ("page_table_BM", {3: torch.zeros(2, 2, dtype=torch.int64)}),
        ("q_start_B1", {4: torch.zeros(2, dtype=torch.int32)}),
        ("kv_len_B", {5: torch.zeros(3, dtype=torch.int32)}),
    ],
)
def test_wrong_tensor_is_named(name: str, change: dict[int, Tensor]) -> None:
    args = [
        randn(3, 4, 8),
        *randn(2, 3, 4, 2, 8),
        torch.zeros(2, 2, dtype=torch.int32),
        torch.tensor([0, 2, 3], dtype=torch.int32),
        torch.tensor([8, 5], dtype=torch.int32),
    ]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(ValueError, match=f"paged_attention: {name} must be"):
        native(PAGED_ATTENTION)(*args, 1.0)
