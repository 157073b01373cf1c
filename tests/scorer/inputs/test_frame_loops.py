"""The compiled loop and NumPy make the same of frame-level records, whatever these are."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from scorer.errors import RecordError
from scorer.inputs import frame_reader
from scorer.inputs.batching import batches
from scorer.inputs.frame_reader import frame_record
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.protobuf import Row
from scorer.inputs.records import Level, Schema
from tests import shards
from tests.fuzz.readers.mutations import changed_bytes
from tests.loops import HERE, needs_both, using
from tests.scorer.inputs.test_frames import ODD_FORMS, PLAIN, WIDTHS, Frames, quantised, read
from tests.shards import sequence_example

pytestmark = needs_both


def everything(path: str, schema: Schema, start: Position, which: str) -> list[object]:
    """What is read from there on: bits, ids, labels, faults, in their order."""
    found: list[object] = []
    with using(which):
        for batch in batches(shards.sources([path]), schema, 7, start=start, on_error="skip"):
            found += [batch.start, batch.end, batch.ids, batch.finished, batch.quarantined, repr(batch.label_faults)]
            found += [batch.label_values.tolist(), batch.label_splits.tolist(), batch.labelled_rows.tolist()]
            found += [batch.features[name].tobytes() for name in schema.inputs]
            batch.release()
    return found


def hostile(seed: int) -> list[bytes]:
    """Records of every form, some of them damaged, among plain ones."""
    random = Random(seed)
    forms = [
        *ODD_FORMS.values(),
        *[PLAIN] * 20,
        *[sequence_example(f"w{i}", [i], quantised(i, i)) for i in range(1, 20)],
    ]
    damaged = [changed_bytes(random, random.choice(forms), forms) for _ in range(30)]
    return [PLAIN, *random.sample(forms + damaged, len(forms) + 30)]


@pytest.mark.parametrize("level", ["auto", "frame"])
@pytest.mark.parametrize("seed", range(5))
def test_both_sets_of_loops_find_the_same(tmp_path: Path, seed: int, level: Level) -> None:
    schema, payloads = Schema(WIDTHS, level), hostile(seed)
    path = shards.write_shard(tmp_path / "x", payloads)
    for record in range(5, len(payloads), 9):
        shards.damage_payload(path, record)
    for record, offset in [*enumerate(shards.starts(path))][:: 1 if seed == 0 else 20]:
        start = Position(0, record, offset)
        compiled, numpy = (everything(path, schema, start, which) for which in HERE)
        assert compiled == numpy, record
    with open(path, "r+b") as file:
        file.truncate(shards.starts(path)[-2] + 20)
    compiled, numpy = (everything(path, schema, BEGINNING, which) for which in HERE)
    assert compiled == numpy


@pytest.mark.parametrize("count", [0, 1, 64, 65])
def test_any_number_of_inputs_of_any_width(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    widths = {f"mean_{i}": int(random.integers(1, 700)) for i in range(count)}
    payloads = [
        sequence_example(f"v{i}", [i], quantised_all(int(random.integers(1, 301)), widths, i)) for i in range(4)
    ]
    path = shards.write_shard(tmp_path / "x", payloads)
    compiled, numpy = (everything(path, Schema(widths), BEGINNING, which) for which in HERE)
    assert compiled == numpy
    assert compiled[2] == [b"v0", b"v1", b"v2", b"v3"]


def quantised_all(count: int, widths: dict[str, int], seed: int) -> Frames:
    random = np.random.default_rng(seed)
    return {name[5:]: random.integers(0, 256, (count, width), np.uint8) for name, width in widths.items()}


def test_an_input_that_is_no_mean_has_no_frames(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [PLAIN] * 2)
    compiled, numpy = (everything(path, Schema({"rgb": 6}), BEGINNING, which) for which in HERE)
    assert compiled == numpy


def test_the_compiled_loop_leaves_no_plain_record_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[bytes] = []

    def one(path: str, payload: bytes, schema: Schema, record: int, offset: int) -> Row | RecordError:
        taken.append(payload)
        return frame_record(path, payload, schema, record, offset)

    monkeypatch.setattr(frame_reader, "frame_record", one)
    forms = "plain", "segments", "no labels", "empty labels", "2017", "another list within", "one more of audio"
    plain = [ODD_FORMS[form] for form in forms]
    path = shards.write_shard(tmp_path / "x", [*plain, ODD_FORMS["a name"], *plain])
    with using("compiled"):
        (batch,) = read(path)
    assert (len(batch), taken) == (2 * len(plain) + 1, [ODD_FORMS["a name"]])
