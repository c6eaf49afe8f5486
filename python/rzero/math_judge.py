# SPDX-License-Identifier: Apache-2.0
"""Whether two answers in LaTeX are the same mathematics, by math-verify. Runs in a grading process only."""

import logging
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

# What math-verify cannot read is an unequal answer here, not something to print.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())


def same(a: str, b: str) -> bool:
    """Symmetric: math-verify is asked both ways, because it treats a gold `x=5` unlike an answered one."""
    one, other = _parsed(a), _parsed(b)
    return _verify(one, other) or _verify(other, one)


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Any:
    # Limits of time are the caller's: it kills the process.
    return parse(f"${text}$", extraction_config=TARGETS, parsing_timeout=None)


def _verify(gold: Any, answer: Any) -> bool:
    return bool(verify(gold, answer, timeout_seconds=None))
