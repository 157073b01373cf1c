"""`python -m scorer` is the command `score`."""

import sys

from scorer.cli import main

sys.exit(main())
