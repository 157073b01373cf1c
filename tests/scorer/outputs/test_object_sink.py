"""Outputs in object stores: uploads that are cut or refused, work that waits, and kills."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scorer.errors import OutputError, ResumeError, UsageError
from scorer.inputs import remote
from scorer.inputs.discover import find_shards
from scorer.outputs import object_sink
from scorer.outputs.open import check_output
from scorer.outputs.sink import ResumePolicy
from tests.scorer.outputs.harness import RECORDS, ObjectHarness, SinkDriver, key, record
from tests.scorer.outputs.test_conformance import exactly
from tests.stores import s3
from tests.stores.proxy import Verdict, proxy

WHOLE = (exactly(sum(RECORDS)), record())


@pytest.fixture
def harness(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectHarness:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return ObjectHarness(tmp_path, s3_server)


@pytest.fixture
def judged(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[str, str], Verdict]]]:
    """Has s3:// mean a proxy that asks the last judge of this list."""
    judges: list[Callable[[str, str], Verdict]] = [lambda method, path: ""]
    with proxy(s3_server, lambda method, path: judges[-1](method, path)) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        remote._object_store.cache_clear()
        yield judges


@pytest.fixture
def in_parts(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few rows of these tests are sent in several parts."""
    monkeypatch.setattr(object_sink, "ONE_REQUEST_BYTES", 100)
    monkeypatch.setattr(object_sink, "_PART_BYTES", 150)
    monkeypatch.setattr(object_sink, "_RETRIES", {"max_retries": 1})
    monkeypatch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)


def complete(harness: ObjectHarness, policy: ResumePolicy = "refuse") -> None:
    with harness.open(key(), policy) as sink:
        if sink.completed is None:
            SinkDriver(sink, key()).complete()
        else:
            sink.complete(sink.completed)


@pytest.mark.usefixtures("in_parts")
def test_rows_in_several_parts_become_one_object(harness: ObjectHarness) -> None:
    complete(harness)
    assert harness.output() == WHOLE
    assert harness.unfinished() == []


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("verdict", ["403", "cut"])
@pytest.mark.parametrize("number", range(6))
def test_an_upload_that_ends_at_any_request_leaves_nothing_visible_and_is_resumed(
    harness: ObjectHarness, judged: list[Callable[[str, str], Verdict]], number: int, verdict: Verdict
) -> None:
    seen: list[str] = []

    def judge(method: str, path: str) -> Verdict:
        if method == "HEAD":
            return ""
        seen.append(path)
        return verdict if len(seen) > number and method != "DELETE" else ""

    judged.append(judge)
    with pytest.raises(OutputError, match=r"preds\.csv: cannot be written"):
        complete(harness)
    assert harness.object(".done.json") is None
    rows = harness.object()
    assert rows is None or len(rows.splitlines()) == len(WHOLE[0]) + 1
    assert [name for name in harness.unfinished() if not name.startswith(".")] == [], "an upload was not aborted"
    judged.append(lambda method, path: "")
    with pytest.raises(ResumeError, match=r"s3://bucket/.*preds\.csv: an earlier run stopped"):
        complete(harness)
    complete(harness, "resume")
    assert harness.output() == WHOLE
    assert harness.unfinished() == []


@pytest.mark.usefixtures("in_parts")
def test_an_upload_that_was_killed_is_named_with_what_aborts_it(
    harness: ObjectHarness, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        snapshots.append(harness.snapshot())
        raise Killed

    snapshots: list[Path] = []
    put = object_sink._put
    monkeypatch.setattr(object_sink, "_put", killed)
    with pytest.raises(Killed):
        complete(harness)
    monkeypatch.setattr(object_sink, "_put", put)
    assert capfd.readouterr().err == ""
    harness.restore(snapshots[-1])
    complete(harness, "resume")
    said = capfd.readouterr().err
    assert "an upload was cut off" in said
    assert "aws s3api abort-multipart-upload --bucket bucket --key " in said
    assert harness.output() == WHOLE
    assert harness.unfinished() == []


def test_what_cannot_be_an_output(s3_server: str, judged: list[Callable[[str, str], Verdict]]) -> None:
    for address, says in (
        ("https://host/preds.csv", "outputs go to files or object stores"),
        ("sftp://me:hidden@host/preds.csv", r"sftp://me:\*\*\*@host/preds.csv: outputs go"),
        ("s3://bucket", "names no object"),
        ("s3://bucket/folder/", "names no object"),
    ):
        with pytest.raises(OutputError, match=says):
            check_output(address)
    check_output("s3://bucket/absent/preds.csv")
    with pytest.raises(OutputError, match=r"cannot be written: there is no s3://nobucket; check the address$"):
        check_output("s3://nobucket/preds.csv")
    judged.append(lambda method, path: "403")
    with pytest.raises(OutputError, match=r"preds\.csv: cannot be written: .*; check the credentials"):
        check_output("s3://bucket/preds.csv")


def test_a_shard_is_no_output(s3_server: str) -> None:
    s3.client(s3_server).put_object(Bucket=s3.BUCKET, Key="a.tfrecord", Body=b"x")
    with pytest.raises(UsageError, match="is a shard and the output"):
        find_shards(["s3://bucket/a.tfrecord"], "s3://bucket/a.tfrecord")
