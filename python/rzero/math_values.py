# SPDX-License-Identifier: Apache-2.0
"""The value of an expression at one point: enough to see that two expressions are different.

If two terms differ by more than rounding where every variable has some positive value, no rule of algebra
makes them equal. The converse is not claimed: values that agree decide nothing. Only nodes whose value is
beyond doubt are computed; percentages (math-verify lets 9% be 9), lone variables (it compares their names),
relations, matrices, integrals and what is huge or tiny have no value here.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import sympy
from mpmath.ctx_mp import MPContext

Values = tuple[Any, ...]

DIGITS = 40
# Beyond these an intermediate value could lose so many digits that the result means nothing.
HUGE, TINY = 1e15, 1e-6
LARGEST_POWER = 64
MOST_NODES, MOST_LEVELS = 300, 40
# math-verify rounds to 6 decimals where a decimal is involved; this is well beyond that.
APART = 1e-4

# The functions that are computed, by the class of the node, with their names in mpmath.
FUNCTIONS: Mapping[type, str] = MappingProxyType(
    {sympy.sin: "sin", sympy.cos: "cos", sympy.tan: "tan", sympy.Abs: "fabs", sympy.atan: "atan"}
)


def values_of(expression: Any) -> Values | None:
    """The value of a term, of the members of a finite set or tuple, or of an interval's ends; None if in
    doubt.
    """
    if isinstance(expression, sympy.FiniteSet | sympy.Tuple):
        members = expression.args
    elif isinstance(expression, sympy.Interval):
        members = (expression.start, expression.end)
    else:
        members = (expression,)
    found = []
    for member in members:
        if not isinstance(member, sympy.Expr) or isinstance(member, sympy.Symbol) or _is_large(member):
            return None
        value = _value(member, MOST_LEVELS)
        if value is None:
            return None
        found.append(value)
    return tuple(found)


def far_apart(one: Values | None, other: Values | None) -> bool:
    """Whether a value on either side is unlike all values on the other: then no pairing makes them equal."""
    if one is None or other is None:
        return False
    return _has_stranger(one, other) or _has_stranger(other, one)


def _has_stranger(values: Sequence[Any], others: Sequence[Any]) -> bool:
    return any(all(abs(x - y) > APART * max(1.0, abs(x), abs(y)) for y in others) for x in values)


def _is_large(expression: sympy.Expr) -> bool:
    return any(count == MOST_NODES for count, _ in enumerate(sympy.preorder_traversal(expression)))


@lru_cache(maxsize=1)
def _context() -> Any:
    # A context of our own: the global one belongs to sympy.
    context = MPContext()
    context.dps = DIGITS
    return context


def _value(node: Any, levels: int) -> Any:
    """The value as a number of mpmath; None where it is in doubt."""
    if levels == 0:
        return None
    if isinstance(node, sympy.Number | sympy.NumberSymbol | sympy.Symbol) or node == sympy.I:
        value = _leaf(node)
    else:
        arguments = [_value(argument, levels - 1) for argument in node.args]
        value = None if None in arguments else _combined(node, arguments)
    return value if value is not None and abs(value) < HUGE else None


def _leaf(node: Any) -> Any:
    context = _context()
    if isinstance(node, sympy.Float):
        return context.mpf(node._mpf_)
    if isinstance(node, sympy.Rational):
        # The size of what a hostile answer holds is looked at before anything is computed with it.
        if max(abs(node.p), node.q).bit_length() > 64:
            return None
        return context.mpf(int(node.p)) / int(node.q)
    if isinstance(node, sympy.Symbol):
        return context.mpf(1) / 2 + context.mpf(zlib.crc32(node.name.encode()) % 99991) / 99991
    return {sympy.pi: context.pi + 0, sympy.E: context.e + 0, sympy.I: context.mpc(0, 1)}.get(node)


def _combined(node: Any, arguments: Sequence[Any]) -> Any:
    context = _context()
    if type(node) is sympy.Add:
        return context.fsum(arguments)
    if type(node) is sympy.Mul:
        return context.fprod(arguments)
    if type(node) is sympy.Pow:
        base, exponent = arguments
        if abs(base) < TINY or abs(exponent) > LARGEST_POWER:
            return None
        return context.power(base, exponent)
    if type(node) is sympy.log:
        return context.log(arguments[0]) if len(arguments) == 1 and abs(arguments[0]) > TINY else None
    if type(node) in FUNCTIONS:
        return getattr(context, FUNCTIONS[type(node)])(arguments[0])
    return None
