"""`score` from its command line: one line and one exit code for everything that can be wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.cli import score as command
from scorer.errors import BROKEN_PIPE, InputError, ResumeError, ShardError
from scorer.inputs.source import absolute
from scorer.job.spec import Job, Stopped
from scorer.job.workers import Cluster
from scorer.model.predictor import Predictor
from scorer.system.signals import StopRequest
from tests import onnx_models, shards
from tests.scorer.fakes import FACTS, INPUTS, LABELS, FakePredictor, write_shards


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return onnx_models.save_model(tmp_path_factory.mktemp("model") / "tiny.onnx", inputs=INPUTS, labels=LABELS)


@pytest.fixture
def run(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs `score` in an empty folder with the tiny model, unless the arguments choose another."""
    monkeypatch.chdir(tmp_path)

    def score(*arguments: str) -> Outcome:
        given = [*arguments] if "--model" in arguments else [*arguments, "--model", model]
        try:
            code = command.main(given)
        except SystemExit as exit:
            code = int(exit.code or 0)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return score


def record(**changes: Any) -> bytes:
    features = {name: np.zeros(width, np.float32) for name, width in INPUTS.items()}
    name = changes.pop("id", "x")
    features.update(changes)
    return shards.example(name, [1], {key: value for key, value in features.items() if value is not None})


def good(path: str = "good.tfrecord") -> str:
    return shards.write_shard(path, [record(id=f"v{row}") for row in range(5)])


def one(*payloads: bytes) -> str:
    return shards.write_shard("bad.tfrecord", [record(id="first"), *payloads])


def raw(data: bytes, name: str = "bad.tfrecord") -> str:
    Path(name).write_bytes(data)
    return name


def damaged(damage: Callable[[str], None]) -> str:
    path = good("bad.tfrecord")
    damage(path)
    return path


def unreadable() -> str:
    path = good("bad.tfrecord")
    os.chmod(path, 0)
    if os.access(path, os.R_OK):
        pytest.skip("the superuser may read everything")
    return path


def fifo(path: str) -> str:
    os.mkfifo(path)
    return path


def link(target: str, path: str) -> str:
    os.symlink(target, path)
    return path


def folder(path: str) -> str:
    os.mkdir(path)
    return path


# what is wrong: (a shard made in the working folder, exit code, what the line says)
BAD_SHARDS: dict[str, tuple[Callable[[], str], int, str]] = {
    "no such file": (lambda: "absent.tfrecord", 3, r"absent\.tfrecord: no such file"),
    "empty glob": (lambda: "absent*.tfrecord", 3, r"absent\*\.tfrecord: no file matches"),
    "folder without shards": (lambda: folder("empty"), 3, r"empty: no shard in it \(\.tfrecord, "),
    "dangling link": (lambda: link("absent", "bad.tfrecord"), 3, r"bad\.tfrecord: no such file"),
    "link to itself": (lambda: link("bad.tfrecord", "bad.tfrecord"), 3, r"bad\.tfrecord: "),
    "pipe": (lambda: fifo("bad.tfrecord"), 3, r"bad\.tfrecord is not a regular file"),
    "unreadable": (unreadable, 3, r"bad\.tfrecord: permission denied"),
    "name with NUL": (lambda: "a\0b", 3, "null"),
    "same shard twice": (lambda: link(good("other.tfrecord"), "bad.tfrecord"), 2, "same shard"),
    "empty file": (lambda: raw(b""), 4, r"bad\.tfrecord: record 0 at byte 0"),
    "truncated": (lambda: damaged(lambda path: os.truncate(path, 200)), 4, r"bad\.tfrecord: record 1 at byte \d+"),
    "payload bit": (lambda: damaged(lambda path: shards.damage_payload(path, 3)), 4, r"record 3 at byte \d+"),
    "length bit": (lambda: damaged(lambda path: shards.damage_length(path, 2)), 4, r"record 2 at byte \d+"),
    "no TFRecord": (lambda: raw(b"VideoId,LabelConfidencePairs\n" * 9), 4, r"record 0 at byte 0"),
    "missing feature": (lambda: one(record(mean_rgb=None)), 5, r"record 1 at byte \d+: .*mean_rgb"),
    "wrong width": (lambda: one(record(mean_rgb=np.zeros(5))), 5, r"record 1 at byte \d+: .*mean_rgb"),
    "NaN": (lambda: one(record(mean_audio=np.array([0, np.nan]))), 5, r"record 1 at byte \d+: .*mean_audio"),
    "no id": (lambda: one(record(id=None)), 5, r"record 1 at byte \d+: .*id"),
    "no example": (lambda: one(b"\xff" * 9), 5, r"record 1 at byte \d+"),
}


@pytest.mark.parametrize("wrong", BAD_SHARDS)
def test_a_bad_shard_is_one_line_and_no_output(run: Callable[..., Outcome], wrong: str) -> None:
    make, code, says = BAD_SHARDS[wrong]
    outcome = run(good("other.tfrecord") if wrong == "same shard twice" else good(), make(), "-o", "preds.csv")
    assert outcome.code == code, outcome.err
    assert re.fullmatch(r"score: [^\n]*; [^\n]*\n", outcome.err), "one line that ends with a remedy"
    assert re.search(says, outcome.err)
    assert not list(Path().glob("*preds.csv*")), "an output, or something beside it, was left"
    assert not list(Path().glob(".preds.csv*")), "work without a commit was left"


# what is wrong: (arguments after a good shard, exit code, what the line says)
BAD_COMMANDS: dict[str, tuple[Callable[[], list[str]], int, str]] = {
    "unknown option": (lambda: ["-o", "preds.csv", "--fast"], 2, "unrecognized arguments: --fast"),
    "part of an option": (lambda: ["-o", "preds.csv", "--rest"], 2, "unrecognized arguments: --rest"),
    "no output": (lambda: [], 2, "required: -o"),
    "k of 0": (lambda: ["-o", "preds.csv", "--top-k", "0"], 2, "'0' is no whole number of at least 1"),
    "k past the labels": (lambda: ["-o", "preds.csv", "--top-k", "31"], 2, r"k is 31, outside 1\.\.30"),
    "a million threads": (lambda: ["-o", "preds.csv", "--threads", "1000000"], 2, "1000000 is more than 256"),
    "a thousand threads": (lambda: ["-o", "preds.csv", "--threads", "1000"], 2, "1000 is more than 256"),
    "a huge batch": (lambda: ["-o", "preds.csv", "--batch-size", "9999999999"], 2, "9999999999 is more than"),
    "batch size": (lambda: ["-o", "preds.csv", "--batch-size", "many"], 2, "'many' is no whole number"),
    "share of a GPU": (lambda: ["-o", "preds.csv", "--ray", "--ray-gpus", "half"], 2, "'half' is neither a share of a"),
    "less than no GPU": (lambda: ["-o", "preds.csv", "--ray", "--ray-gpus=-1"], 2, "'-1' is neither a share of a GPU"),
    "both resume policies": (lambda: ["-o", "preds.csv", "--resume", "--restart"], 2, "not allowed with"),
    "errors that stop": (
        lambda: ["-o", "preds.csv", "--max-errors", "3"],
        2,
        "--max-errors counts quarantined records",
    ),
    "resume of a stream": (
        lambda: ["-o", "-", "--resume"],
        2,
        "only a file can be resumed, and - is none; leave --resume out",
    ),
    "output is a shard": (lambda: ["-o", "good.tfrecord"], 2, r"good\.tfrecord is a shard and the output"),
    "output links to a shard": (lambda: ["-o", link("good.tfrecord", "preds.csv")], 2, "is a shard and the output"),
    "no model": (lambda: ["-o", "preds.csv", "--model", "absent"], 6, "absent: no such model; .*models/"),
    "model with a long name": (lambda: ["-o", "preds.csv", "--model", "m" * 300], 6, "m: File name too long"),
    "model that links to itself": (lambda: ["-o", "preds.csv", "--model", link("m", "m")], 6, "m: Too many levels"),
    "text as a model": (lambda: ["-o", "preds.csv", "--model", raw(b"text" * 99)], 6, r"bad\.tfrecord"),
    "model without metadata": (lambda: ["-o", "preds.csv", "--model", bare_model()], 6, r"bare\.onnx"),
    "absent device": (lambda: ["-o", "preds.csv", "--device", "cuda:99"], 7, "cuda:99|CUDA"),
    "unknown device": (lambda: ["-o", "preds.csv", "--device", "abacus"], 2, "abacus"),
    "unknown extension": (lambda: ["-o", "preds.xlsx"], 2, r"no format of \.xlsx; name it \.csv, "),
    "unknown format": (lambda: ["-o", "preds.txt", "--format", "xlsx"], 2, "no format 'xlsx'; choose one of"),
    "format of another name": (lambda: ["-o", "preds.csv", "--format", "jsonl"], 2, "its name says pairs"),
    "compressed stream": (
        lambda: ["-o", "-", "--format", "jsonl.gz"],
        2,
        "- takes rows as they come, none that are packed; name a file",
    ),
    "names in CSV": (lambda: ["-o", "preds.csv", "--names"], 2, "hold no names of labels; choose jsonl"),
    "no names": (lambda: ["-o", "preds.jsonl", "--names"], 2, "has no names of labels; give them with --vocabulary"),
    "absent vocabulary": (lambda: ["-o", "preds.jsonl", "--vocabulary", "absent.csv"], 3, "absent.csv: No such file"),
    "threshold": (lambda: ["-o", "preds.csv", "--threshold", "50"], 2, "'50' is no confidence from 0 to 1"),
    "output in no folder": (lambda: ["-o", "absent/preds.csv"], 8, r"there is no folder .*absent"),
    "output is a folder": (lambda: ["-o", folder("out")], 8, "out is a folder"),
    "output ends with /": (lambda: ["-o", "absent/"], 8, "absent/ is a folder"),
    "output under a file": (lambda: ["-o", "good.tfrecord/preds.csv"], 8, "Not a directory"),
    "output links to itself": (lambda: ["-o", link("preds.csv", "preds.csv")], 8, "Too many levels"),
    "output is a socket": (lambda: ["-o", socket("preds.csv")], 8, r"preds\.csv: cannot be opened"),
    "long name": (lambda: ["-o", "p" * 250], 8, "too long"),
    "no space": (lambda: ["-o", "/dev/full"], 8, "/dev/full: cannot be written: No space left"),
}


def bare_model() -> str:
    import onnx

    model = onnx_models.build_model(inputs=INPUTS, labels=LABELS)
    del model.metadata_props[:]
    onnx.save(model, "bare.onnx")
    return "bare.onnx"


def socket(path: str) -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
    return path


@pytest.mark.parametrize("linked", [False, True])
def test_the_model_is_never_the_output(run: Callable[..., Outcome], model: str, linked: bool) -> None:
    Path("m.onnx").write_bytes(before := Path(model).read_bytes())
    output = link("m.onnx", "preds.csv") if linked else "m.onnx"
    outcome = run(good(), "-o", output, "--model", "./m.onnx", "--restart")
    assert outcome.code == 2
    assert f"is the model and the output {output} too" in outcome.err
    assert Path("m.onnx").read_bytes() == before


@pytest.mark.parametrize("wrong", BAD_COMMANDS)
def test_a_bad_command_is_one_line_and_no_output(run: Callable[..., Outcome], wrong: str) -> None:
    make, code, says = BAD_COMMANDS[wrong]
    shard = good()
    before = Path(shard).read_bytes()
    outcome = run(shard, *make())
    assert outcome.code == code, outcome.err
    lines = outcome.err.splitlines()
    assert lines[-1].startswith("score: ")
    assert len(lines) == 1 or lines[0].startswith("usage: "), "one line, or argparse's usage before it"
    assert re.search(says, lines[-1])
    assert not outcome.out
    assert Path(shard).read_bytes() == before
    assert not [path for path in Path().rglob("*preds.csv*") if path.is_file() and not path.is_symlink()], "an output"
    assert not [path for path in Path().rglob(".*") if path.is_file()], "work was left"


def test_every_exit_code_is_in_the_help_and_the_documentation() -> None:
    operations = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    codes = [int(line.split()[0]) for line in command._EPILOG.splitlines() if re.match(r" +\d+  ?\S", line)]
    assert codes == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 130, 141]
    for code in codes:
        assert f"| {code} |" in operations


def test_rows_and_summary(run: Callable[..., Outcome]) -> None:
    outcome = run(good(), "-o", "preds.csv")
    assert outcome.code == 0
    rows = Path("preds.csv").read_text().splitlines()
    assert rows[0] == "VideoId,LabelConfidencePairs"
    assert [row.split(",")[0] for row in rows[1:]] == ["v0", "v1", "v2", "v3", "v4"]
    assert all(len(row.split(",")[1].split()) == 20 for row in rows[1:])
    for line in ("model ", "device ", "records  5 read = 5 scored + 0 quarantined", "MAP@10", "written  preds.csv"):
        assert line in outcome.err
    assert {path.name for path in Path().iterdir()} == {"good.tfrecord", "preds.csv", "preds.csv.done.json"}


def test_labels_of_another_vocabulary_are_noted(run: Callable[..., Outcome]) -> None:
    features = {name: np.zeros(width, np.float32) for name, width in INPUTS.items()}
    other = shards.write_shard("other.tfrecord", [shards.example("x", [2, LABELS, 4715], features)])
    outcome = run(other, "-o", "preds.csv")
    assert f"2 true labels are none of the {LABELS} labels of the model: another vocabulary?" in outcome.err
    assert json.loads(Path("preds.csv.done.json").read_text())["unknown_labels"] == 2
    assert "true labels" not in run(good(), "-o", "good.csv").err
    assert "unknown_labels" not in Path("good.csv.done.json").read_text()


def test_quiet_says_nothing(run: Callable[..., Outcome]) -> None:
    assert run(good(), "-o", "preds.csv", "--quiet") == Outcome(0, "", "")


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_what_a_job_tells_on_its_way(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, quiet: list[str]
) -> None:
    def stopped(job: Job, model: Predictor, stop: StopRequest, watch: object, log: Callable[[str], None]) -> None:
        log("there are frames beside the means of them")
        raise Stopped(0)

    monkeypatch.setattr("scorer.job.run.score", stopped)
    outcome = run(good(), "-o", "preds.csv", *quiet)
    told = [] if quiet else ["score: there are frames beside the means of them"]
    assert outcome.err.splitlines() == [*told, "score: stopped before anything was kept"]


def test_top_k_and_unlabelled_shards(run: Callable[..., Outcome]) -> None:
    (path,) = write_shards(Path("shards"), [3], labelled=False)
    outcome = run(path, "-o", "preds.csv", "--top-k", "30")
    assert len(Path("preds.csv").read_text().splitlines()[1].split(",")[1].split()) == 60
    assert "MAP" not in outcome.err


def test_standard_output_gets_the_same_rows(run: Callable[..., Outcome]) -> None:
    run(good(), "-o", "preds.csv")
    outcome = run(good(), "-o", "-")
    assert outcome.out == Path("preds.csv").read_text()
    assert "MAP@10" in outcome.err


def test_a_device_is_written_straight_through(run: Callable[..., Outcome]) -> None:
    assert run(good(), "-o", "/dev/null").code == 0
    assert not list(Path("/dev").glob(".null.*"))


def test_patterns_and_folders_stand_for_their_shards(run: Callable[..., Outcome]) -> None:
    a, b, c = write_shards(Path("deep/shards"), [2, 3, 4])
    run(a, b, c, "-o", "named.csv", "--quiet")
    for name, given in (("pattern", "deep/*/?.tfrecord"), ("deep", "**/*.tfrecord"), ("folder", "deep/shards")):
        run(given, "-o", f"{name}.csv", "--quiet")
        assert Path(f"{name}.csv").read_bytes() == Path("named.csv").read_bytes()


def test_folders_that_a_pattern_matches_are_passed_over(run: Callable[..., Outcome]) -> None:
    write_shards(Path("deep/shards"), [2])
    folder("deep/shards/sub.tfrecord")
    for given in ("deep/**", "deep/*/*.tfrecord", "deep/shards"):
        assert run(given, "-o", "preds.csv", "--quiet") == Outcome(0, "", "")
    assert "no file matches" in run("dee*", "-o", "preds.csv").err


def test_an_error_names_a_path_as_it_is(run: Callable[..., Outcome]) -> None:
    assert run("a  b\n.tfrecord", "-o", "preds.csv").err == "score: a  b\\n.tfrecord: no such file; check the path\n"


def test_a_name_with_brackets_is_a_name(run: Callable[..., Outcome]) -> None:
    assert run(good("good[1].tfrecord"), "-o", "preds[1].csv").code == 0
    assert Path("preds[1].csv").exists()


def test_an_output_link_is_followed(run: Callable[..., Outcome]) -> None:
    folder("elsewhere")
    run(good(), "-o", link("elsewhere/real.csv", "preds.csv"))
    assert Path("preds.csv").is_symlink()
    assert Path("elsewhere/real.csv").read_text().startswith("VideoId")
    assert {path.name for path in Path("elsewhere").iterdir()} == {"real.csv", "real.csv.done.json"}


def test_bad_records_are_quarantined(run: Callable[..., Outcome]) -> None:
    shard = good("bad.tfrecord")
    shards.damage_payload(shard, 1)
    outcome = run(shard, good("other.tfrecord"), "-o", "preds.csv", "--on-error", "skip")
    assert outcome.code == 10
    assert "10 read = 9 scored + 1 quarantined" in outcome.err
    assert "preds.csv.quarantine.jsonl" in outcome.err
    (entry,) = [json.loads(line) for line in Path("preds.csv.quarantine.jsonl").read_text().splitlines()]
    assert (entry["path"], entry["record"], entry["bytes_lost"]) == ("bad.tfrecord", 1, 0)
    assert entry["offset"] == shards.starts(good("same.tfrecord"))[1]
    assert "CRC" in entry["reason"]


def test_shards_of_another_kind_leave_the_older_output(run: Callable[..., Outcome]) -> None:
    assert run(good(), "-o", "preds.csv").code == 0
    before = Path("preds.csv").read_bytes()
    other = shards.write_shard("other.tfrecord", [record(mean_rgb=None, id=f"v{row}") for row in range(4)])
    outcome = run(other, "-o", "preds.csv", "--on-error", "skip")
    assert outcome.code == 13
    assert outcome.err.count("\n") == 1
    says = r"score: none of the 4 records could be scored; the first, other\.tfrecord: record 0 at byte 0: "
    assert re.match(says + "feature 'mean_rgb' is missing", outcome.err)
    assert outcome.err.endswith("give shards of the kind that the model reads, or choose a model with --model\n")
    assert Path("preds.csv").read_bytes() == before
    assert not [path.name for path in Path().iterdir() if path.name.startswith(".")]


def test_empty_shards_where_they_are_allowed(run: Callable[..., Outcome]) -> None:
    names = [raw(b"", "empty1.tfrecord"), good(), raw(b"", "empty2.tfrecord")]
    outcome = run(*names, "-o", "preds.csv")
    assert outcome.code == 4
    assert "or use --allow-empty, or use --on-error skip" in outcome.err
    assert run(*names, "-o", "preds.csv", "--allow-empty").code == 0
    assert run(names[1], "-o", "plain.csv").code == 0
    assert Path("preds.csv").read_bytes() == Path("plain.csv").read_bytes()
    record = json.loads(Path("preds.csv.done.json").read_bytes())
    assert [shard["records"] for shard in record["shards"]] == [0, record["scored"], 0]
    assert run(names[0], "-o", "none.csv", "--allow-empty").code == 0
    assert Path("none.csv").read_bytes() == b"VideoId,LabelConfidencePairs\n"


def test_more_bad_records_than_allowed_stop_the_job(run: Callable[..., Outcome]) -> None:
    shard = good("bad.tfrecord")
    for row in (1, 3):
        shards.damage_payload(shard, row)
    assert run(shard, "-o", "preds.csv", "--on-error", "skip", "--max-errors", "2").code == 10
    outcome = run(shard, "-o", "other.csv", "--on-error", "skip", "--max-errors", "1")
    assert outcome.code == 5
    assert "2 records are quarantined by now, and 1 may be" in outcome.err
    assert outcome.err.endswith("; raise --max-errors, then resume with --resume\n")
    assert not Path("other.csv").exists()
    assert run(shard, "-o", "other.csv", "--on-error", "skip", "--resume").code == 10
    assert Path("other.csv").read_bytes() == Path("preds.csv").read_bytes()


def test_a_hostile_name_cannot_drive_the_terminal(run: Callable[..., Outcome]) -> None:
    outcome = run("\x1b[2Jabsent.tfrecord", "-o", "preds.csv")
    assert "\x1b" not in outcome.err
    assert "\\x1b[2Jabsent.tfrecord" in outcome.err


def test_a_closed_pipe_ends_quietly(model: str, tmp_path: Path) -> None:
    shard = good(str(tmp_path / "good.tfrecord"))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "scorer", shard, "-o", "-", "--model", model]
    result = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (BROKEN_PIPE, "")


@pytest.mark.parametrize(
    ("given", "resuming"),
    [
        ("a -o b", "score --resume a -o b"),
        ("--restart -o b -- --restart -a", "score --resume -o b -- --restart -a"),
        ("--resume 'a b' -o c", "score --resume 'a b' -o c"),
    ],
)
def test_the_command_that_resumes(monkeypatch: pytest.MonkeyPatch, given: str, resuming: str) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/score"])
    assert command._resuming(shlex.split(given)) == resuming


@pytest.mark.parametrize("stderr", ["2>&-", "2>&1 >&3 | :"])
@pytest.mark.parametrize(("shard", "code"), [("good.tfrecord", 0), ("absent.tfrecord", 3), ("--fast", 2)])
def test_a_standard_error_that_is_closed_or_broken_changes_no_exit_code(
    model: str, tmp_path: Path, stderr: str, shard: str, code: int
) -> None:
    good(str(tmp_path / "good.tfrecord"))
    given = shard if shard.startswith("-") else tmp_path / shard
    score = f"{sys.executable} -m scorer {given} -o {tmp_path}/preds.csv --model {model}"
    script = f"exec 3>&1; {{ sleep 0.1; {score}; }} {stderr}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert (result.returncode, result.stdout) == (code, "")
    assert code != 0 or (tmp_path / "preds.csv").read_text().count("\n") == 6


@pytest.mark.parametrize("stderr", ["2>&-", "2>&1 >&3 | :"])
def test_quarantined_records_that_nobody_hears_of_change_no_exit_code(model: str, tmp_path: Path, stderr: str) -> None:
    shard = good(str(tmp_path / "bad.tfrecord"))
    shards.damage_payload(shard, 1)
    score = f"{sys.executable} -m scorer {shard} -o - --on-error skip --model {model} >{tmp_path}/preds.csv"
    script = f"exec 3>&1; {{ sleep 0.1; {score}; }} {stderr}; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert (result.returncode, result.stdout) == (10, "")
    assert (tmp_path / "preds.csv").read_text().count("\n") == 5


def test_a_standard_output_that_is_closed_is_an_error_and_no_files_end(model: str, tmp_path: Path) -> None:
    shard = good(str(tmp_path / "good.tfrecord"))
    command = f"{sys.executable} -m scorer {shard} -o - --model {model} >&-"
    result = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (8, "score: -: cannot be written: Bad file descriptor\n")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom scorer.cli import score\n"
        "try: score.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'onnxruntime', 'rich', 'torch', 'onnx'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.startswith("usage: yt8m score")
    assert result.stderr == "[]\n"


def test_a_working_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match="the working folder is gone"):
        absolute("a.tfrecord")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not show a process's threads")
def test_numpy_starts_no_threads(tmp_path: Path) -> None:
    script = (
        "import os; from scorer.cli import score; score.main(['absent', '-o', 'preds.csv']); import numpy\n"
        "print(len(os.listdir('/proc/self/task')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout == "1\n"


def test_json_lines_with_the_names_of_a_vocabulary(run: Callable[..., Outcome]) -> None:
    good()
    Path("names.csv").write_text("Index,Name\n" + "".join(f"{label},label {label}\n" for label in range(LABELS)))
    assert run("good.tfrecord", "-o", "preds.jsonl", "--vocabulary", "names.csv", "-k", "3").code == 0
    rows = [json.loads(line) for line in Path("preds.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"v{row}" for row in range(5)]
    assert all(row["names"] == [f"label {label}" for label in row["labels"]] for row in rows)
    assert all(len(row["labels"]) == len(row["scores"]) == 3 for row in rows)
    stated = json.loads(Path("preds.jsonl.done.json").read_text())["options"]
    assert (stated["format"], len(stated["names_sha256"])) == ("jsonl", 64)


def test_labels_above_a_threshold(run: Callable[..., Outcome]) -> None:
    good()
    assert run("good.tfrecord", "-o", "preds.csv", "--format", "labels", "--threshold", "1").code == 0
    assert Path("preds.csv").read_text() == "VideoId,Label\n" + "".join(f"v{row},\n" for row in range(5))
    assert json.loads(Path("preds.csv.done.json").read_text())["options"]["threshold"] == 1.0


@pytest.mark.parametrize(
    ("runtime", "size"),
    [
        ("onnxruntime 1.31.1 on NVIDIA H100, batches of 4,096", 4096),
        ("onnxruntime 1.31.1 on NVIDIA H100, batches of 9,999,999,999", None),
        ("onnxruntime 1.31.1 on NVIDIA H100, batches of ,", None),
        ("onnxruntime 1.32.0", None),
    ],
)
def test_a_resumed_job_keeps_the_size_of_its_batches_where_that_decides_bits(
    runtime: str, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer.outputs.open.begun_options", lambda output: {"runtime": runtime})
    assert command._size_begun(Namespace(part=None, ray_parts=None, output="preds.csv")) == size


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The most videos in a batch for which a GPU has memory, on which the model opens; the last one counts."""
    most = [4096]

    def opened(path: str, *, batch_size: int | None, **options: Any) -> FakePredictor:
        size = min(batch_size or 4096, most[-1])
        return FakePredictor(size, facts=replace(FACTS, path=path, runtime=f"fake 1 on GPU, batches of {size:,}"))

    monkeypatch.setattr("scorer.model.model.Model.open", opened)
    return most


@pytest.mark.parametrize("part", [(), ("--part", "1/1")])
def test_a_job_in_batches_of_another_size_says_how_it_is_resumed(
    run: Callable[..., Outcome], memory: list[int], part: tuple[str, ...]
) -> None:
    """A score's last bits depend on the size of batches on a GPU, and that on the memory there."""
    paths = write_shards(Path(), [4200, 9])
    whole = run(*paths, "-o", "whole.csv", "--batch-size", "2048", *part)
    last = Path(paths[1]).read_bytes()
    Path(paths[1]).write_bytes(last[:-9])
    memory.append(2048)
    command = *paths, "-o", "preds.csv", *part
    assert run(*command, "--batch-size", "4096").code == ShardError.exit_code
    Path(paths[1]).write_bytes(last)
    memory.append(4096)
    refused = run(*command, "--batch-size", "4096", "--resume")
    assert refused.code == ResumeError.exit_code
    assert all(f"batches of {size}" in refused.err for size in ("2,048", "4,096"))
    assert refused.err.endswith("; restore that, with --batch-size 2048, or start again with --restart\n")
    memory.append(1024)
    refused = run(*command, "--resume")
    assert refused.code == ResumeError.exit_code
    assert refused.err.endswith("; restore that, with memory for batches of 2048, or start again with --restart\n")
    memory.append(4096)
    done = run(*command, "--batch-size", "2048", "--resume")
    assert (done.code, whole.code) == (0, 0), done.err
    assert "of an earlier run" in done.err
    if not part:
        assert Path("preds.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize(
    ("more", "place"),
    [((), "score_on_cluster"), (("--ray-parts", "2"), "score_parts_on_cluster")],
)
def test_workers_of_a_cluster_open_the_file_that_is_open_here(
    run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], place: str
) -> None:
    """Not the one that was found first, beside which a GPU finds one in fp16."""
    Path("models").mkdir()
    for name in ("default.onnx", "tiny.fp16.onnx"):
        onnx_models.save_model(Path("models") / name, inputs=INPUTS, labels=LABELS)
    opened: list[str] = []

    def scored(*given: object) -> None:
        opened.extend(cluster.open(None).facts.path for cluster in given if isinstance(cluster, Cluster))
        raise Stopped(0)

    monkeypatch.setattr(f"scorer.job.cluster.{place}", scored)
    monkeypatch.setattr("scorer.model.find._fp16_twin", lambda facts: "models/tiny.fp16.onnx")
    monkeypatch.setattr(sys, "argv", ["score"])
    command.main([good(), "-o", "preds.csv", "--ray", *more])
    assert opened == ["models/tiny.fp16.onnx"]
