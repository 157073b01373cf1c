"""`score` that commits after every chunk, with a model that takes its time, so that kills meet parts at work.

python -m tests.scorer.job.slow_score ARGUMENTS
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial

from scorer.cli import score
from scorer.job import spec
from scorer.model.model import Model
from scorer.model.predictor import DEFAULT_K, Embeddings, Features, Predictions, Predictor

SECONDS = "YT8M_TEST_SECONDS_A_BATCH"
_open = score._open


class Slowly:
    """A model that waits before each batch, as long as the environment says where the command runs."""

    def __init__(self, model: Model, seconds: float) -> None:
        self.facts, self.batch_size, self.slots, self.notes = model.facts, model.batch_size, model.slots, model.notes
        self.buffer = model.buffer
        self._model, self._seconds = model, seconds

    def run(self, features: Features, k: int = DEFAULT_K) -> Predictions:
        time.sleep(self._seconds)
        return self._model.run(features, k)

    def embed(self, features: Features, k: int = DEFAULT_K) -> tuple[Predictions, Embeddings]:
        time.sleep(self._seconds)
        return self._model.embed(features, k)


def open_slowly(seconds: float, path: str, options: argparse.Namespace, device: str | None = None) -> Predictor:
    return Slowly(_open(path, options, device), seconds)


def main() -> int:
    score._open = partial(open_slowly, float(os.environ[SECONDS]))  # type: ignore[assignment]
    spec.Job = partial(spec.Job, commit_seconds=0.0)  # type: ignore[assignment, misc]
    return score.main()


if __name__ == "__main__":
    from tests.scorer.job import slow_score  # by that name, under which workers find it

    sys.exit(slow_score.main())
