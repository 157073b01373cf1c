"""`score`, committing after every batch instead of once a second: python -m tests.scorer.job.committing ARGUMENTS"""

from __future__ import annotations

import sys
from functools import partial

from scorer.cli.score import main
from scorer.job import spec

if __name__ == "__main__":
    spec.Job = partial(spec.Job, commit_seconds=0.0)  # type: ignore[assignment, misc]
    sys.exit(main())
