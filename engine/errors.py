# SPDX-License-Identifier: Apache-2.0
"""Errors that a caller can act on."""


class InputError(ValueError):
    """A mistake in what the user gave: one sentence that names the field or file, the value and what is
    allowed.

    The command line prints it and exits with status 2.
    """
