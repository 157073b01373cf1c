"""Files of embeddings: as NumPy and pyarrow read them, named by the record, and the same however a job was done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scorer.cli import merge as merge_command
from scorer.cli import score as score_command
from scorer.errors import DeviceError, OutputError, ResumeError, UsageError
from scorer.inputs.discover import find_shards
from scorer.job.part import merge, plan, run_part
from scorer.job.spec import Job
from scorer.kernels import loops
from scorer.model.predictor import Embeddings, Features, Predictions
from scorer.outputs.append import NO_BYTES
from scorer.outputs.embeddings import Npy
from scorer.outputs.sink import shard_id
from tests import shards
from tests.loops import HERE, using
from tests.onnx_models import save_model
from tests.scorer.fakes import FACTS, INPUTS, LABELS, FailingModel, FakePredictor, do, do_as_found, write_shards


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = write_shards(tmp_path / "shards", [20, 0, 15])
    shards.damage_payload(paths[0], 3)
    output, embeddings = str(tmp_path / "preds.csv"), str(tmp_path / "videos.npy")
    return Job(shards.sources(paths), output, on_error="skip", embeddings=embeddings, commit_seconds=0)


def features(job: Job) -> dict[str, list[float]]:
    """What the fake predictor gives of each video, by its id: its features."""
    from scorer.inputs.batching import batches
    from scorer.inputs.records import Schema

    found: dict[str, list[float]] = {}
    for batch in batches(job.shards, Schema(INPUTS), 100, on_error="skip"):
        rows = np.concatenate([batch.features[name] for name in INPUTS], axis=1)
        found |= {id.decode(): row for id, row in zip(batch.ids, rows.tolist(), strict=True)}
    return found


def ids(job: Job) -> list[str]:
    return [line.split(",")[0] for line in Path(job.output).read_text().splitlines()[1:]]


def test_npy_has_the_order_of_the_rows(job: Job) -> None:
    record = do(job).record
    expected, found = features(job), np.load(job.embeddings)
    assert (str(found.dtype), found.shape) == ("float32", (34, FACTS.embeddings))
    assert found.tolist() == [expected[id] for id in ids(job)]
    data = Path(job.embeddings).read_bytes()
    assert record.embeddings is not None
    assert (record.embeddings.name, record.embeddings.bytes) == ("videos.npy", len(data))
    assert record.embeddings.crc32c == loops.active.crc32c(data)
    written = json.loads(Path(f"{job.output}.done.json").read_text())
    assert written["embeddings"] == record.embeddings.to_json()
    assert written["options"]["embeddings"] == FACTS.embeddings


def test_parquet_has_ids(job: Job, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    job = replace(job, embeddings=str(tmp_path / "videos.parquet"))
    do(job)
    table = parquet.read_table(job.embeddings)
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float not null>[{FACTS.embeddings}]"
    assert table["id"].to_pylist() == ids(job)
    expected = features(job)
    assert table["embedding"].to_pylist() == [expected[id] for id in ids(job)]


@pytest.mark.parametrize("extension", ["npy", "parquet"])
def test_the_bytes_depend_on_neither_batches_nor_parts_nor_an_interruption(
    job: Job, tmp_path: Path, extension: str
) -> None:
    if extension == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    job = replace(job, embeddings=str(tmp_path / f"videos.{extension}"))
    do(job, FakePredictor(batch_size=3))
    files = job.output, job.embeddings, f"{job.output}.done.json"
    expected = [Path(path).read_bytes() for path in files]
    do(job, FakePredictor(batch_size=16))
    assert [Path(path).read_bytes() for path in files] == expected
    with pytest.raises(DeviceError):
        do(job, FailingModel(2))
    assert [Path(path).read_bytes() for path in files] == expected, "an older output stays"
    do(replace(job, resume_policy="resume"))
    assert [Path(path).read_bytes() for path in files] == expected
    results = [run_part(job, part, FakePredictor(5)) for part in plan(job.shards, 2)]
    own = tmp_path / "own"
    own.mkdir()
    output, embeddings = own / "preds.csv", own / f"videos.{extension}"
    merge(results, [*map(shard_id, job.shards)], str(output), embeddings=str(embeddings))
    assert [path.read_bytes() for path in (output, embeddings)] == expected[:2]
    assert sorted(path.name for path in own.iterdir()) == sorted(
        ["preds.csv", "preds.csv.done.json", "preds.csv.quarantine.jsonl", f"videos.{extension}"]
    )


def test_no_videos_make_an_empty_file(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", [0])
    job = Job(
        find_shards(paths, allow_empty=True), str(tmp_path / "preds.csv"), embeddings=str(tmp_path / "videos.npy")
    )
    do_as_found(job)
    assert np.load(job.embeddings).shape == (0, FACTS.embeddings)


def test_another_file_or_none_is_another_job(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        do(job, FailingModel(2))
    for other in ("", str(tmp_path / "others.npy")):
        with pytest.raises(ResumeError, match="embeddings"):
            do(replace(job, embeddings=other, resume_policy="resume"))


def test_one_file_has_one_owner(job: Job, tmp_path: Path) -> None:
    class Second(FakePredictor):
        def embed(self, features: Features, k: int = 10) -> tuple[Predictions, Embeddings]:
            with pytest.raises(ResumeError, match=r"videos\.npy"):
                do(replace(job, output=str(tmp_path / "others.csv")))
            return super().embed(features, k)

    do(job, Second())


def test_parts_and_their_merge_must_agree(job: Job, tmp_path: Path) -> None:
    ids = [*map(shard_id, job.shards)]
    having = [run_part(job, plan(job.shards, 1)[0], FakePredictor())]
    lacking = [run_part(replace(job, embeddings=""), plan(job.shards, 1)[0], FakePredictor())]
    with pytest.raises(UsageError, match=r"the parts have embeddings too; name a file for them$"):
        merge(having, ids, job.output)
    with pytest.raises(UsageError, match="the parts were run without embeddings; run them with these"):
        merge(lacking, ids, job.output, embeddings=job.embeddings)


@pytest.mark.parametrize(
    ("output", "embeddings", "message"),
    [
        ("-", "videos.npy", "embeddings are written beside a file, and - is none; name one"),
        ("preds.csv", "videos.csv", "videos.csv: embeddings are written as .npy or .parquet; name it one of these"),
        ("preds.csv", "s3://b/videos.npy", "s3://b/videos.npy: embeddings go to a local file"),
        ("preds.csv", "-", "- is no file, and embeddings go to one; name a file"),
        ("videos.npy", "videos.npy", r"embeddings and predictions are both to be .*/videos.npy; name another file"),
    ],
)
def test_what_cannot_be(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, embeddings: str,
                        message: str) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, OutputError), match=f"^{message}"):
        do(replace(job, output=output, embeddings=embeddings))
    assert not (tmp_path / "preds.csv").exists()


def test_the_command_and_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    paths = write_shards(tmp_path / "shards", [20, 12])
    model = save_model("m.onnx", inputs=INPUTS, labels=LABELS, hidden=5, embeddings=True)
    arguments = [*paths, "--model", model, "--device", "cpu", "-o", "preds.csv", "--embeddings", "videos.npy"]
    assert score_command.main(arguments) == 0
    assert "embeddings videos.npy (768 bytes), 5 numbers a video" in " ".join(capsys.readouterr().err.split())
    expected = Path("videos.npy").read_bytes()
    assert len(expected) == 128 + 32 * 5 * 4
    for part in ("1/2", "2/2"):
        assert score_command.main([*arguments, "--part", part, "--quiet"]) == 0
    parts = ["preds.csv.part-1-of-2", "preds.csv.part-2-of-2"]
    assert merge_command.main([*parts, "-o", "merged.csv", "--embeddings", "merged.npy", "--quiet"]) == 0
    assert Path("merged.npy").read_bytes() == expected
    assert Path("merged.csv").read_bytes() == Path("preds.csv").read_bytes()
    capsys.readouterr()
    assert merge_command.main([*parts, "-o", "merged.csv"]) == 2
    assert capsys.readouterr().err == "merge: the parts have embeddings too; name a file for them, with --embeddings\n"


def test_a_model_without_them_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = write_shards(tmp_path / "shards", [3])
    model = save_model(tmp_path / "m.onnx", inputs=INPUTS, labels=LABELS)
    arguments = [path, "--model", model, "--device", "cpu", "-o", str(tmp_path / "p.csv")]
    assert score_command.main([*arguments, "--embeddings", str(tmp_path / "v.npy")]) == 6
    line = f"score: {model} gives no embeddings; export it with embeddings, as `yt8m export --embeddings` does\n"
    assert capsys.readouterr().err == line
    for taken in (path, model):
        link = tmp_path / "taken.npy"
        link.symlink_to(taken)
        assert score_command.main([*arguments, "--embeddings", str(link)]) == 2
        assert "and the output" in capsys.readouterr().err
        link.unlink()


@pytest.mark.parametrize("rows", [0, 1, 10**9, 10**18])
def test_a_header_is_as_long_for_any_number_of_rows(rows: int) -> None:
    header = Npy(4096).start(rows)
    assert len(header) == len(Npy(4096).start(0)) == 128
    assert f"'shape': ({rows}, 4096), }}".encode() in header


@pytest.mark.parametrize("loop_set", HERE)
@pytest.mark.parametrize("rest", [0, 1, 7, 4096, 100_000])
def test_a_checkpoint_with_another_start(loop_set: str, rest: int) -> None:
    random = np.random.default_rng(rest)
    old, new, behind = random.bytes(128), random.bytes(128), random.bytes(rest)
    with using(loop_set):
        extent = NO_BYTES.add(old).add(behind)
        assert extent.with_start(old, new) == NO_BYTES.add(new).add(behind)
        assert extent.with_start(old, old) == extent
        with pytest.raises(ValueError, match="as long"):
            extent.with_start(old, new[1:])
