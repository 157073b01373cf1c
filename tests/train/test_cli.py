"""The command: its runs, its signals and its one-line errors."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shards import example, field, flip_bit, sources, write_shard
from tests.train.shards import INPUTS, write
from train import checkpoint
from train.cli import main
from train.data import load
from train.distillation.tiles import Work
from train.registry import names
from train.training import Training

OF_LSTM, OF_DMRNET = "embedding=12 hidden=8 head=16", "width=16"
PLAIN = "--inputs mean_rgb:8 mean_audio:4 --epochs 2 --keep --set batch=16 schedule=constant warmup=0"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_with_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("scorer.system.phases.FIRST_SECONDS", 60.0)  # on a slow machine errors would not stand alone
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    write(tmp_path / "a.tfrecord", 120)
    write(tmp_path / "b.tfrecord", 40, seed=1)


def tiny(*arguments: str) -> list[str]:
    """The command line for tiny models, with the settings that the models asked for read."""
    after = list(arguments)[arguments.index("--model") + 1 :] if "--model" in arguments else list(names())
    models = list(itertools.takewhile(lambda name: name in names(), after))
    given = PLAIN + f" {OF_DMRNET}" * ("dmrnet" in models) + f" {OF_LSTM}" * bool({"lstm", "bilstm"} & set(models))
    own = {pair.partition("=")[0] for pair in arguments if "=" in pair}
    words = [word for word in shlex.split(given) if word.partition("=")[0] not in own]
    for option in ("--epochs", "--inputs"):
        if option in arguments:
            start = words.index(option)
            end = next(i for i in range(start + 1, len(words)) if words[i].startswith("--"))
            del words[start:end]
    if "--set" in arguments:
        rest = list(arguments)
        start = rest.index("--set")
        del rest[start]
        pairs = list(itertools.takewhile(lambda word: not word.startswith("--"), rest[start:]))
        return [*words, *pairs, "--data", "a.tfrecord", *rest[:start], *rest[start + len(pairs) :]]
    return [*words, "--data", "a.tfrecord", *arguments]


def train(*arguments: str) -> int:
    return main(tiny(*arguments))


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "train", *tiny(*arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def last(model: str, runs: str = "runs") -> dict[str, torch.Tensor]:
    return checkpoint.read(Path(runs, model, checkpoint.LAST))[0]


def test_trains_the_three_models_and_shows_them_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--valid", "b.tfrecord", "--cache", "cache") == 0
    shown = capsys.readouterr()
    for model in ("dmrnet", "lstm", "bilstm"):
        assert sorted(path.name for path in Path("runs", model).iterdir()) == [
            "best.safetensors",
            "config.json",
            "curves.png",
            "last.safetensors",
            "metrics.jsonl",
        ]
        assert Path("runs", model, "curves.png").read_bytes().startswith(b"\x89PNG")
        assert f"{model}: epoch 2/2" in shown.err
        assert model in shown.out
    assert "MAP@10" in shown.out
    assert "PERR" in shown.out


def test_soft_labels_are_computed_once_and_a_wait_for_them_says_where_it_stands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer.system.phases.FIRST_SECONDS", 0.01)
    monkeypatch.setattr("scorer.system.phases.LINE_SECONDS", 0.0)
    assert train("--model", "lstm", "--cache", "cache") == 0
    shown = capsys.readouterr().err
    assert re.search(r"^[-\d]+ [:\d]+  train: soft labels of \d+ videos, \d+%, 0:00:\d\d left$", shown, re.M)
    assert re.search(r"^[-\d]+ [:\d]+  lstm: step \d+/\d+, 0:\d\d left$", shown, re.M)
    assert len(list(Path("cache").glob("soft-*.safetensors"))) == 1
    assert train("--model", "lstm", "--cache", "cache", "--seed", "1", "--restart") == 0
    assert "soft labels" not in capsys.readouterr().err


def test_a_stop_while_soft_labels_are_computed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Work.add

    def interrupt(work: Work, amount: float) -> None:
        if not work.done:
            work.done = 1e-9
            os.kill(os.getpid(), signal.SIGINT)
        add(work, amount)

    monkeypatch.setattr(Work, "add", interrupt)
    assert train("--model", "lstm") == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert "stopped while at it: soft labels of" in last
    assert last.endswith("--resume")


@pytest.mark.parametrize("better", [True, False])
def test_of_soft_labels_in_parts_and_own_labels_the_held_out_videos_choose(
    better: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.distillation.soft_labels.MOST_VIDEOS", 60)
    trial = Training.trial

    def rigged(training: Training, *given: Any) -> float:
        return trial(training, *given) - 2 * (training.config.soft != better)

    monkeypatch.setattr(Training, "trial", rigged)
    assert train("--model", "lstm") == 0
    shown = capsys.readouterr().err
    assert "in 2 parts, each by a teacher of 60 videos" in shown
    assert ("soft labels it is" if better else "the videos' own labels it is") in shown
    assert json.loads(Path("runs/lstm/config.json").read_text())["train"]["soft"] is better
    assert train("--model", "lstm", "--resume") == 0
    assert train("--model", "lstm", "--restart", "--set", "soft=true") == 0
    assert "it is" not in capsys.readouterr().err


def test_rgb_alone() -> None:
    assert train("--model", "bilstm", "--inputs", "mean_rgb:8") == 0
    assert checkpoint.load("runs/bilstm/best.safetensors").config.inputs == (("mean_rgb", 8),)


def test_columns_with_other_names_and_empty_shards(capsys: pytest.CaptureFixture[str]) -> None:
    arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    plain = load(sources(["a.tfrecord"]), INPUTS, None)
    columns = {f"my_{name}": [*values] for (name, _), values in zip(INPUTS, plain.features, strict=True)}
    labels = [row[row >= 0].tolist() for row in plain.labels]
    parquet.write_table(
        arrow.table({"id": [id.decode() for id in plain.ids], "labels": labels, **columns}), "a.parquet"
    )
    Path("empty.parquet").touch()
    named = ",".join(f"{name}=my_{name}" for name, _ in INPUTS)
    shards = ["--data", "a.parquet", "empty.parquet"]
    assert train("--model", "lstm") == 0
    expected = checkpoint.digest(checkpoint.load("runs/lstm/best.safetensors").state)
    assert train("--model", "lstm", *shards, "--columns", named, "--allow-empty", "--restart") == 0
    assert checkpoint.digest(checkpoint.load("runs/lstm/best.safetensors").state) == expected
    assert train("--model", "lstm", *shards, "--columns", named, "--restart") == 4
    assert capsys.readouterr().err.endswith("or use --allow-empty, or leave the shard out\n")
    assert train("--model", "lstm", "--data", "a.parquet", "--restart") == 3
    assert "or say which it is with --columns" in capsys.readouterr().err.splitlines()[-1]


def test_a_finished_run_stands_unless_it_is_to_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--model", "lstm") == 0
    first = last("lstm")
    assert "runs/lstm holds a finished run; replace it with --restart" in one_line(capsys, train("--model", "lstm"), 9)
    assert train("--model", "lstm", "--resume") == 0
    assert "runs/lstm is finished and stands" in capsys.readouterr().err
    assert "other settings" in one_line(capsys, train("--model", "lstm", "--resume", "--seed", "1"), 9)
    assert all(torch.equal(first[name], tensor) for name, tensor in last("lstm").items())
    assert train("--model", "lstm", "--seed", "1", "--restart") == 0
    assert not torch.equal(first["model.dense.weight"], last("lstm")["model.dense.weight"])


def test_of_a_finished_run_the_state_goes_and_it_stands_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    command = [word for word in tiny("--model", "lstm") if word != "--keep"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "train: runs/lstm is done; next: yt8m export --model lstm" in shown.err
    assert not Path("runs/lstm/last.safetensors").exists()
    assert "holds a finished run" in one_line(capsys, main(command), 9)
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == shown.out
    Path("runs/lstm/metrics.jsonl").write_text("[[")
    assert "damaged metrics.jsonl" in one_line(capsys, main([*command, "--resume"]), 6)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_resumes_to_the_same_weights(number: signal.Signals, code: int) -> None:
    endless = ("--model", "bilstm", "--epochs", "100000")
    run = start(*endless)
    assert run.stderr is not None
    for line in run.stderr:
        if "epoch 3/" in line:
            break
    run.send_signal(number)
    _, rest = run.communicate(timeout=60)
    assert run.returncode == code
    assert "--resume" in rest.splitlines()[-1]
    tensors, metadata = checkpoint.read(Path("runs/bilstm/last.safetensors"))
    progress = json.loads(metadata["progress"])
    assert progress["epoch"] >= 3
    _shorten(tensors, metadata, progress["epoch"] + 1)
    torch.set_num_threads(1)
    assert train("--model", "bilstm", "--epochs", str(progress["epoch"] + 1), "--resume") == 0
    assert train("--model", "bilstm", "--epochs", str(progress["epoch"] + 1), "--runs", "whole") == 0
    whole = last("bilstm", "whole")
    assert all(torch.equal(whole[name], tensor) for name, tensor in last("bilstm").items())


def _shorten(tensors: dict[str, torch.Tensor], metadata: dict[str, str], epochs: int) -> None:
    """Give an endless run an end. The rate is constant, so that only the number of epochs knows the difference."""
    metadata["train"] = json.dumps(json.loads(metadata["train"]) | {"epochs": epochs})
    checkpoint.write(Path("runs/bilstm/last.safetensors"), tensors, metadata)


def test_an_unfinished_run_is_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--model", "lstm") == 0
    path = Path("runs/lstm/last.safetensors")
    tensors, metadata = checkpoint.read(path)
    metadata["train"] = json.dumps(json.loads(metadata["train"]) | {"epochs": 3})
    checkpoint.write(path, tensors, metadata)
    assert "unfinished" in one_line(capsys, train("--model", "lstm"), 9)
    assert "other settings" in one_line(capsys, train("--model", "lstm", "--resume", "--epochs", "3", "--seed", "5"), 9)
    other = train("--model", "lstm", "--resume", "--epochs", "3", "--data", "b.tfrecord")
    assert "other videos" in one_line(capsys, other, 9)
    assert train("--model", "lstm", "--restart") == 0


def test_an_unfinished_run_of_a_later_model_is_in_the_way_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--model", "lstm", "--epochs", "1") == 0
    path = Path("runs/lstm/last.safetensors")
    tensors, metadata = checkpoint.read(path)
    checkpoint.write(path, tensors, metadata | {"train": metadata["train"].replace('"epochs": 1', '"epochs": 3')})
    assert "runs/lstm holds an unfinished run" in one_line(capsys, train("--model", "dmrnet", "lstm"), 9)
    assert not Path("runs/dmrnet").exists()


def test_the_printed_command_resumes_where_a_later_model_has_an_older_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first command resumes what was begun; the second replaces the older run, as the stopped command would."""
    assert train("--model", "lstm", "--epochs", "1", "--seed", "1") == 0
    monkeypatch.setattr("sys.argv", ["yt8m train"])
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_must_stop", lambda *_: True)
        assert train("--model", "dmrnet", "lstm", "--restart") == 128
    printed = capsys.readouterr().err.splitlines()[-1].partition("resume with: ")[2]
    first, second = (shlex.split(command) for command in printed.split(" && "))
    assert first[:2] == second[:2] == ["yt8m", "train"]
    assert (first[-3:], second[-2:]) == (["--model", "dmrnet", "--resume"], ["--model", "lstm"])


def one_line(capsys: pytest.CaptureFixture[str], code: int, expected: int) -> str:
    """The one line that the command ended with, once the exit code is checked."""
    error = capsys.readouterr().err
    assert code == expected, error
    lines = [line for line in error.splitlines() if line.startswith("train:") and " is done; " not in line]
    assert len(lines) == 1
    assert "Traceback" not in error
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--data", "absent.tfrecord"], 3, "no such file"),
        (["--valid", "a.tfrecord"], 2, "same shard"),
        (["--data", "flipped.tfrecord"], 4, "CRC"),
        (["--data", "unlabelled.tfrecord"], 12, "no labels"),
        (["--data", "cut.tfrecord.gz"], 4, "the compressed data are truncated; download the shard again, or leave"),
        (["--data", "frames.tfrecord"], 5, "frame-level record (a SequenceExample of 'rgb'), not a video-level"),
        (["--data", "outside.tfrecord", "--set", "labels=25"], 5, "train a model of 26 labels, with --set labels=N"),
        (["--data", "negative.tfrecord"], 5, "label -1 is below 0; leave the shard out"),
        (["--data", "two.tfrecord"], 12, "too few"),
        (["--data", "one.tfrecord", "--valid", "b.tfrecord"], 12, "too few"),
        (["--inputs", "mean_rgb:9"], 5, "that it has with --inputs"),
        (["--inputs", "mean_rgb:8", "mean_rgb:8"], 2, "same name"),
        (["--set", "embedding=1000000", "hidden=1000000"], 7, "use a smaller"),
        (["--seed", "-1"], 2, "seed is -1"),
        (["--set", "colour=red"], 2, "no such setting; `yt8m train --list-settings`"),
        (["--set", "hiden=8"], 2, "did you mean hidden?"),
        (["--set", "form=run"], 2, "lstm would not read it, dmrnet would"),
        (["--set", "epochs=3", "--epochs", "2"], 2, "--set epochs=3 and --epochs 2; give one"),
        (["--set", "lr=1", "lr=2"], 2, "give it once"),
        (["--set", "labels=9999999"], 2, "at most 1,048,576"),
        (["--set", "lr=fast"], 2, "not a number"),
        (["--set", "cell=walk"], 2, "choose from"),
        (["--set", "steps=5"], 2, "equal steps"),
        (["--runs", "a.tfrecord"], 8, "cannot be made"),
        (["--device", "cuda:99"], 7, "CUDA"),
        (["--device", "tpu"], 7, "tpu"),
        (["--set", "batch=16", "lr=1e30"], 12, "the loss is"),
        (["--epochs", "1", "--set", "batch=512", "lr=1e38"], 12, "loss is nan after epoch 1"),
    ],
)
def test_errors_are_one_line(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    features = {name: [0.0] * width for name, width in INPUTS}
    write(Path("flipped.tfrecord"), 5)
    flip_bit("flipped.tfrecord", 200)
    write_shard("unlabelled.tfrecord", [example("v", None, features)])
    write(Path("outside.tfrecord"), 5, labels=[25])
    Path("cut.tfrecord.gz").write_bytes(gzip.compress(Path("a.tfrecord").read_bytes())[:-99])
    frames = field(2, field(1, field(1, b"rgb") + field(2, b"")))
    write_shard("frames.tfrecord", [example("v", [1], {}) + frames])
    write(Path("negative.tfrecord"), 5, labels=[-1])
    write(Path("two.tfrecord"), 2)
    write(Path("one.tfrecord"), 1)
    assert message in one_line(capsys, train("--model", "lstm", *arguments), code)
    assert not list(Path().glob("runs/*/*.safetensors"))


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"WORLD_SIZE": "two"}, 2, "the environment has WORLD_SIZE=two, RANK=, LOCAL_RANK=; start several"),
        ({"WORLD_SIZE": "2"}, 2, "the environment has WORLD_SIZE=2, RANK=, LOCAL_RANK=; start several"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, 7, "2 processes do not find each other: "),
    ],
)
def test_an_environment_that_is_not_torchruns_is_one_line(
    environment: dict[str, str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = one_line(capsys, train("--model", "lstm"), code)
    assert message in line
    assert line.endswith("start several processes with torchrun, or unset WORLD_SIZE")


def test_memory_that_runs_out_while_soft_labels_are_computed_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.distillation.cache.compute_part", lambda *_: torch.empty(1 << 60))
    line = one_line(capsys, train("--model", "lstm"), 7)
    assert "can't allocate memory" in line
    assert line.endswith("train without soft labels, --set soft=false")
    monkeypatch.setattr("train.distillation.cache.compute_part", lambda *_: bytes(1 << 60))
    assert "out of memory" in one_line(capsys, train("--model", "lstm"), 7)


def test_compiled_code_is_kept_in_a_private_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    run = start("--model", "lstm", "--epochs", "1")
    _, shown = run.communicate(timeout=120)
    assert run.returncode == 0, shown
    assert not list((tmp_path / "temporary").iterdir())


def test_a_damaged_state(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/lstm").mkdir(parents=True)
    Path("runs/lstm/last.safetensors").write_bytes(b'\x80\x02\0\0\0\0\0\0{"half a file')
    assert "damaged" in one_line(capsys, train("--model", "lstm"), 6)
    assert "damaged" in one_line(capsys, train("--model", "lstm", "--resume"), 6)
    assert train("--model", "lstm", "--restart") == 0


def test_two_processes_give_the_metrics_of_one() -> None:
    """torchrun with gloo: same batches and statistics, so the same numbers except for rounding, one set of files."""
    plain = [
        "--model",
        "dmrnet",
        "--set",
        "labels=25",
        "weights=torch",  # from wider ones rounding grows faster
        "ema=0.98",  # and in an average it shows less: ten videos judge
        "width=16",
        "batch=22",
        "dropout=0",
        "mixup=0",
        "precision=fp32",
    ]
    assert train(*plain, "--runs", "one") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "train"]
    arguments = tiny(*plain, "--runs", "two", "--cache", "cache")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("dmrnet") == 1
    one, two = (
        [json.loads(line) for line in Path(runs, "dmrnet", "metrics.jsonl").read_text().splitlines()]
        for runs in ("one", "two")
    )
    for expected, found in zip(one, two, strict=True):
        for name in ("loss", "valid_loss"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4), name
        for name in ("MAP@10", "GAP@20", "Hit@1", "PERR"):
            assert found[name] == pytest.approx(expected[name], abs=0.005), name


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "from train.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('numpy', 'torch', 'rich', 'matplotlib', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
