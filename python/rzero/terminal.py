# SPDX-License-Identifier: Apache-2.0
"""Texts of a model on a terminal: what would command it, or pass for a line of ours, does not reach it."""


def printable(text: str, keep: str = "") -> str:
    """`text` with a blank for each character that is not printed (escapes, line ends) and not in `keep`."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def on_one_line(text: str) -> str:
    """`text` without line ends and control characters, and with single blanks."""
    return " ".join(printable(text).split())
