# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with the process of a command.

A training step frees gigabytes of activations, and the next one asks for as much. glibc gives large blocks
back at once, and the system clears every page before it hands it out again: a tenth of a step on a CPU
(docs/notebook.md). The setting is the whole process's, so commands make it and the engine, which may be
somebody's guest, does not.
"""

import ctypes
import platform

# Of mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGEST_KEPT_BYTES = -1, 1 << 30


def keep_freed_memory() -> None:
    """Keep freed blocks of up to 1 GiB for later ones. Nothing happens where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    c = ctypes.CDLL(None)
    c.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    c.mallopt(M_TRIM_THRESHOLD, NEVER)
