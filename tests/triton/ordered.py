# SPDX-License-Identifier: Apache-2.0
"""A tl.dot whose rows do not depend on one another: BLAS sums in an order that depends on the place of a row
in its block. With it, equal bits show that a kernel computes a row in the same steps wherever it is.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[Any]


def _matmul(a: Array, b: Array, dtype: Any) -> Array:
    a, b = a.astype(dtype), b.astype(dtype)
    out = np.zeros((a.shape[0], b.shape[1]), dtype)
    for k in range(a.shape[1]):
        out += a[:, k : k + 1] * b[k]
    return out


def install(patch: pytest.MonkeyPatch) -> None:
    """Replaces numpy.matmul, which the interpreter's tl.dot is, until `patch` is undone."""
    patch.setattr(np, "matmul", _matmul)
