# SPDX-License-Identifier: Apache-2.0
# The compiled kernels, bound in csrc/bindings.cpp. Each takes pointers and sizes that its caller in
# rzero.kernels has checked, so their types are not repeated here.
from collections.abc import Callable
from typing import Any

def __getattr__(name: str) -> Callable[..., Any]: ...
