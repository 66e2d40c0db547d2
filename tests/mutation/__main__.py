"""`python -m tests.mutation`, or `make mutate`."""

import sys

from tests.mutation.report import main

sys.exit(main())
