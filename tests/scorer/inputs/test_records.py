"""That a record format is one file, which batching, decoding processes and jobs do not know of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scorer.inputs import readers
from scorer.inputs.batching import batches
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.readers import decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.job.spec import Job
from tests import shards
from tests.scorer.fakes import INPUTS, do
from tests.scorer.inputs import toy_format

SCHEMA = Schema(INPUTS)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Registering outlasts a test: the others see the built-in formats alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_registered", [toy_format.JsonLines()])
        yield


def videos(shard: int, count: int) -> list[tuple[str, list[int] | None, dict[str, list[float]]]]:
    random = np.random.default_rng(shard)
    return [
        (
            f"{shard}-{row}",
            [row % 30] if row % 3 else None,
            {name: random.normal(size=width).astype(np.float32).tolist() for name, width in INPUTS.items()},
        )
        for row in range(count)
    ]


def write(folder: Path, kinds: str) -> list[str]:
    """Shards of the same videos: "t" as TFRecord, "j" as JSON lines."""
    folder.mkdir()
    paths = []
    for shard, kind in enumerate(kinds):
        found = videos(shard, 7 + shard)
        path = folder / f"{shard}.shard"
        if kind == "t":
            shards.write_shard(path, [shards.example(*video) for video in found])
        else:
            lines = [{"id": id, **({} if labels is None else {"labels": labels}), **rest} for id, labels, rest in found]
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(str(path))
    return paths


def contents(found: list[Source], workers: int = 0, start: Position = BEGINNING) -> list[object]:
    return [
        (batch.ids, [v.tolist() for v in batch.features.values()], batch.label_values.tolist(), batch.labelled)
        for batch in batches(found, SCHEMA, 4, workers=workers, start=start)
    ]


@pytest.mark.parametrize("kinds", ["jj", "jtj", "tjt"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_the_format(tmp_path: Path, kinds: str, workers: int) -> None:
    expected = contents(shards.sources(write(tmp_path / "t", "t" * len(kinds))))
    assert contents(shards.sources(write(tmp_path / "mixed", kinds)), workers) == expected


def test_a_job_over_it_and_where_it_resumes(tmp_path: Path) -> None:
    as_records = Job(shards.sources(write(tmp_path / "t", "ttt")), str(tmp_path / "t.csv"))
    as_lines = Job(shards.sources(write(tmp_path / "j", "jjj")), str(tmp_path / "j.csv"))
    assert do(as_lines).record.metrics == do(as_records).record.metrics
    assert Path(as_lines.output).read_bytes() == Path(as_records.output).read_bytes()
    whole = contents(list(as_lines.shards))
    ends = [batch.end for batch in batches(as_lines.shards, SCHEMA, 4)]
    for number, end in enumerate(ends, 1):
        assert contents(list(as_lines.shards), start=end) == whole[number:]


def test_its_bad_records_are_quarantined_with_their_place(tmp_path: Path) -> None:
    (path,) = write(tmp_path / "j", "j")
    lines = Path(path).read_bytes().splitlines(keepends=True)
    Path(path).write_bytes(b"".join([*lines[:2], b"no JSON\n", *lines[2:]]))
    (found,) = batches(shards.sources([path]), SCHEMA, 99, on_error="skip")
    assert len(found) == 7
    (bad,) = found.quarantined
    assert (bad.record, bad.offset, bad.reason) == (2, sum(map(len, lines[:2])), "no JSON")
    assert found.finished == [(0, 8)]


def test_blocks_say_where_each_record_is(tmp_path: Path) -> None:
    for path in write(tmp_path / "both", "tj"):
        (source,) = shards.sources([path])
        positions = [
            block.position(row)
            for block in decoded_blocks([(0, source)], SCHEMA, BEGINNING)
            for row in range(len(block))
        ]
        assert [position.record for position in positions] == list(range(len(positions)))
        for position in positions:
            assert (
                next(iter(decoded_blocks([(0, source)], SCHEMA, position)))
                .rows.ids[0]
                .endswith(f"-{position.record}".encode())
            )
