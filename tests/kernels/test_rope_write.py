# SPDX-License-Identifier: Apache-2.0
"""rope_write is rope and then kv_write, bit for bit."""

import pytest
import torch
from harness import BACKENDS, CPU, DTYPES, apart, assert_same_bits, randn
from test_rope import EPS, positions, tables

from rzero.kernels.dispatch import choose
from rzero.kernels.rope import ROPE
from rzero.kernels.rope_write import ROPE_WRITE

T, H, G, E, P, S = 5, 4, 2, 6, 4, 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_and_values_land_in_their_slots(backend: str, dtype: torch.dtype) -> None:
    qkv = apart(randn(T, (H + 2 * G) * E, dtype=dtype))
    norms = [randn(E, dtype=dtype, seed=1), randn(E, dtype=dtype, seed=2)]
    rope = (qkv, positions(T), *tables(E), H, G, *norms)
    pages = [apart(torch.zeros(P, S, G, E, dtype=dtype)) for _ in range(2)]
    slot_T = torch.tensor([11, 2, 3, 7, 0])
    q_THE = choose(ROPE_WRITE, CPU, backend)[0](
        *rope, slot_T=slot_T, k_pages_PSGE=pages[0], v_pages_PSGE=pages[1], eps=EPS
    )
    wanted = choose(ROPE, CPU, backend)[0](*rope, eps=EPS)
    assert_same_bits((q_THE, *(x.flatten(0, 1)[slot_T] for x in pages)), wanted)
    untouched = [slot for slot in range(P * S) if slot not in slot_T.tolist()]
    assert not any(x.flatten(0, 1)[untouched].any() for x in pages)
