# SPDX-License-Identifier: Apache-2.0
"""`python -m rzero` is the command rzero."""

from rzero.cli import main

if __name__ == "__main__":
    main()
