"""`score`, committing after every batch and sending in small parts: python -m tests.scorer.job.sending ARGUMENTS"""

from __future__ import annotations

import sys
from functools import partial

from scorer.cli.score import main
from scorer.job import spec
from scorer.outputs import object_sink

if __name__ == "__main__":
    spec.Job = partial(spec.Job, commit_seconds=0.0)  # type: ignore[assignment, misc]
    object_sink.ONE_REQUEST_BYTES, object_sink._PART_BYTES = 1 << 12, 1 << 12
    sys.exit(main())
