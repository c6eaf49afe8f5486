# SPDX-License-Identifier: Apache-2.0
"""Whether two answers in LaTeX are the same mathematics, by math-verify. Runs in a grading process only.

A text is parsed once and then found in a cache. Most pairs are different, and proving that to math-verify
costs it a search for simplifications; here their values are compared first, at one point, in 40 digits (see
`rzero.math_values`). Values that are far apart settle the matter, everything else is math-verify's to say.
"""

import logging
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Eq, Expr

from rzero.math_values import Values, far_apart, values_of

# What math-verify cannot read is an unequal answer here, not something to print.
logging.getLogger("math_verify").setLevel(logging.CRITICAL)

TARGETS = (LatexExtractionConfig(), ExprExtractionConfig())
CACHED_TEXTS = 8192


def same(a: str, b: str) -> bool:
    """Symmetric: numbers and terms are asked for in the order of their texts; all else both ways, because
    math-verify treats a gold `x=5` unlike an answered one.
    """
    a, b = sorted((a, b))
    one, other = parsed(a), parsed(b)
    if not one or not other or (_have_values(one[0], other[0]) and far_apart(_values(a), _values(b))):
        return False
    if isinstance(one[0], Expr) and isinstance(other[0], Expr):
        return _verify(one, other)
    return _verify(one, other) or _verify(other, one)


@lru_cache(maxsize=CACHED_TEXTS)
def parsed(text: str) -> Any:
    """What math-verify reads in a text: a list of an expression and its text, or fewer."""
    # Limits of time are the caller's: it kills the process.
    return parse(f"${text}$", extraction_config=TARGETS, parsing_timeout=None)


def _have_values(one: Any, other: Any) -> bool:
    """Whether it is values that are compared: of an equation and a term, math-verify takes the right side."""
    if isinstance(one, Eq) or isinstance(other, Eq):
        return isinstance(one, Expr) or isinstance(other, Expr)
    return True


@lru_cache(maxsize=CACHED_TEXTS)
def _values(text: str) -> Values | None:
    expression = parsed(text)[0]
    return values_of(expression.rhs if isinstance(expression, Eq) else expression)


def _verify(gold: Any, answer: Any) -> bool:
    return bool(verify(gold, answer, timeout_seconds=None))
