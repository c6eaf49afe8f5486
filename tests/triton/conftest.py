# SPDX-License-Identifier: Apache-2.0
"""Triton kernels under the interpreter: a process of its own, since triton chooses when it is imported."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    raise pytest.UsageError("needs TRITON_INTERPRET=1 and a process of its own: make test-gpu-code")
