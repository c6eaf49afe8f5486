# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with a command: what is asked for again is not fetched from the system page by page."""

import platform
import subprocess
import sys

import pytest

ASK_AGAIN = """
import resource, sys
import numpy as np
from rzero.cli.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
np.ones(1 << 26, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.ones(1 << 26, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", ASK_AGAIN, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_a_block_asked_for_again_is_not_cleared_again() -> None:
    # The control asks the system every time; with huge pages that is a fault for every 2 MiB.
    assert page_faults("keep") * 8 < page_faults("leave")
