"""`python -m scorer` is the command `score`."""

import sys

from scorer.cli.score import main

sys.exit(main())
