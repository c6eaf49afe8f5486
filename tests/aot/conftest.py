# SPDX-License-Identifier: Apache-2.0
"""Triton kernels through the compiler: never in a process whose triton interprets."""

import os

import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    raise pytest.UsageError("needs a process without TRITON_INTERPRET=1: make test-gpu-code")
