"""`python -m tests.fuzz`; worker processes could not find their function in here."""

import sys

from tests.fuzz.long_run import main

sys.exit(main())
