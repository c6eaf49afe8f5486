# SPDX-License-Identifier: Apache-2.0
"""rzero: R-Zero self-evolution of a language model in one process."""

__version__ = "0.1.0"
