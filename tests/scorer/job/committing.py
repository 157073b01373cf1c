"""`score`, committing after every batch instead of once a second: python -m tests.scorer.job.committing ARGUMENTS"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from scorer.cli.score import main
from scorer.job import spec


def committing(folder: Path, counts: Sequence[int], batch_size: int) -> list[str]:
    """The command, over shards of so many videos and a model that are made in `folder`."""
    from tests.onnx_models import save_model
    from tests.scorer.fakes import INPUTS, LABELS, write_shards

    model = save_model(folder / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    options = ["--model", model, "--batch-size", str(batch_size)]
    return [sys.executable, "-m", "tests.scorer.job.committing", *write_shards(folder, counts), *options]


if __name__ == "__main__":
    spec.Job = partial(spec.Job, commit_seconds=0.0)  # type: ignore[assignment, misc]
    sys.exit(main())
