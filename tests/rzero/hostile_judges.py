# SPDX-License-Identifier: Apache-2.0
"""A judge for tests of the grading processes: its answers say what to do to the process that judges them."""

import os
import sys


def same(a: str, b: str) -> bool:
    """Equality ignoring case; an answer may be an order instead."""
    for order in (a, b):
        if order == "loop":
            while True:
                pass
        if order == "memory":
            return len(bytearray(1 << 40)) > 0
        if order == "recursion":
            return same(a, b)
        if order == "die":
            os._exit(3)
        if order == "talk":
            print("chatter")
        if order == "raise":
            sys.exit("a bug of the judge")
    return a.casefold() == b.casefold()
