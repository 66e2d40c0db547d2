"""`lockgate COMMAND …` and `python -m lockgate COMMAND …`."""

from __future__ import annotations

import sys

from lockgate.cli import main

if __name__ == "__main__":
    sys.exit(main())
