"""The command: what it writes, what it refuses, and that a broken model is not left behind."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from export.cli import main
from export.graph import Graph
from export.reduce import reduce as original
from export.tracing import Untranslatable
from scorer.errors import DeviceError, GateError
from scorer.model.model import Model
from scorer.model.predictor import Features, Predictions
from tests.export.small import CONFIGS, save_run, small_checkpoint, write_videos
from tests.shards import damage_payload
from train.layers import count_parameters


def run(runs: Path, out: Path, *arguments: str) -> int:
    return main(["--runs", str(runs), "--output", str(out), "--no-speed", *arguments])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_files_obey_the_contract(name: str, tmp_path: Path) -> None:
    checkpoint = save_run(tmp_path / "runs", name)
    out = tmp_path / "models"
    assert run(tmp_path, out, "--checkpoint", str(checkpoint)) == 0
    config = CONFIGS[name]
    assert files(out) == sorted(["default.onnx", f"{config.name}.onnx"])
    model = Model.open(str(out / f"{config.name}.onnx"), device="cpu")
    assert model.facts.inputs == dict(config.inputs)
    assert model.facts.labels == config.labels
    scores, labels = model.run({n: np.zeros((5, w), np.float32) for n, w in config.inputs}, k=min(20, config.labels))
    assert scores.shape == labels.shape == (5, min(20, config.labels))
    assert (np.diff(scores, axis=1) <= 0).all()
    report = json.loads(model.facts.metadata["yt8m.parity"])
    assert report["pytorch"]["max_difference"] <= 1e-5
    assert report["pytorch"]["batches"] == [1, 2, 3, 17, 256]
    assert json.loads(model.facts.metadata["yt8m.operators"]) == []


def test_two_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for folder in ("a", "somewhere/else"):
        here = tmp_path / folder
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        save_run(Path("runs"), "lstm-wide")
        write_videos(Path("check.tfrecord"), CONFIGS["lstm-wide"], 2100)
        assert main(["--model", "lstm", "--precision", "all", "--check", "check.tfrecord", "--no-speed"]) == 0
        contents.append({path.name: path.read_bytes() for path in Path("models").iterdir()})
    assert sorted(contents[0]) == ["default.onnx", "lstm.fp16.onnx", "lstm.int8.onnx", "lstm.onnx"]
    assert contents[0] == contents[1]
    for data in contents[0].values():
        for trace in (b"/home", b"/root", str(tmp_path).encode(), b".py", b"tfrecord"):
            assert trace not in data


def test_broken_weights_leave_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(graph: Graph) -> Graph:
        good = original(graph)
        dense = good.ops["classify"]
        dense.values["bias"][7] += 0.01
        return good

    monkeypatch.setattr("export.build.reduce", breaking)
    save_run(tmp_path / "runs", "dmrnet")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 11
    assert files(tmp_path / "models") == []
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for size in (1, 2, 3, 17, 256):
        assert f"batch of {size}: " in message


def test_a_failed_gate_leaves_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path / "runs", "dmrnet")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 0
    before = (tmp_path / "models/dmrnet.onnx").read_bytes()
    monkeypatch.setattr("export.parity.BOUND", -1.0)
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 11
    assert (tmp_path / "models/dmrnet.onnx").read_bytes() == before
    assert files(tmp_path / "models") == ["default.onnx", "dmrnet.onnx"]


def test_every_file_passes_the_full_check(tmp_path: Path) -> None:
    save_run(tmp_path / "runs", "bilstm-4-steps")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "bilstm") == 0
    model = onnx.load(tmp_path / "models/bilstm.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "LSTM" in {node.op_type for node in model.graph.node}
    names = [tensor.name for tensor in model.graph.initializer]
    read = {name for node in model.graph.node for name in node.input}
    assert set(names) <= read, "an initialiser that nothing reads"
    assert len({tensor.SerializeToString() for tensor in model.graph.initializer}) == len(names)


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 6
    assert "no such checkpoint" in capsys.readouterr().err
    assert files(tmp_path / "models") == []


def test_a_half_written_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_run(tmp_path / "runs", "lstm")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    (tmp_path / "models").write_text("a file where the folder should be")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 8
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, proto: onnx.ModelProto) -> int:
        path.write_bytes(proto.SerializeToString()[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("export.build.write", full)
    save_run(tmp_path / "runs", "lstm")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 8
    assert "No space left" in capsys.readouterr().err
    assert files(tmp_path / "models") == []


def test_an_error_of_the_gates_is_not_said_to_be_about_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "elsewhere")

    monkeypatch.setattr("export.build._gate", fail)
    save_run(tmp_path / "runs", "lstm")
    with pytest.raises(OSError, match="elsewhere"):
        run(tmp_path / "runs", tmp_path / "models", "--model", "lstm")
    assert files(tmp_path / "models") == []


def test_memory_that_runs_out_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("export.build.convert", lambda *_: torch.empty(1 << 60))
    save_run(tmp_path / "runs", "lstm")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 7
    assert capsys.readouterr().err == "export: out of memory; give fewer shards to --check and --calibrate\n"
    assert files(tmp_path / "models") == []


def test_a_checkpoint_of_another_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "new.safetensors", {"format": "2"})
    assert run(tmp_path, tmp_path / "models", "--checkpoint", str(tmp_path / "new.safetensors")) == 6
    assert "format 2" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("dropout", 7), ("width", 2.5)])
def test_a_configuration_that_no_model_has(
    key: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = small_checkpoint("dmrnet")
    path = tmp_path / "odd.safetensors"
    config = json.dumps({**json.loads(good.config.to_json()), key: value})
    save_file(good.state, path, {"format": "1", "config": config, "metrics": "{}"})
    assert run(tmp_path, tmp_path / "models", "--checkpoint", str(path)) == 6
    assert capsys.readouterr().err.count("\n") == 1


def checkpoint_error(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that `export --checkpoint` ends with."""
    assert run(path.parent, path.parent / "models", "--checkpoint", str(path)) == 6
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def test_a_run_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = save_run(tmp_path, "lstm")
    assert f"lstm is a folder, not a checkpoint; give {best}" in checkpoint_error(best.parent, capsys)
    (tmp_path / "empty").mkdir()
    assert "give the best.safetensors of a run" in checkpoint_error(tmp_path / "empty", capsys)


def test_pytorchs_own_files_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for new in (True, False):
        torch.save({"x": torch.zeros(1)}, tmp_path / "model.pt", _use_new_zipfile_serialization=new)
        assert "model.pt is a PyTorch checkpoint, not a checkpoint; give the best" in checkpoint_error(
            tmp_path / "model.pt", capsys
        )


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html>", "an HTML or XML page"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (bytes(600), "nothing but zeros"),
    ],
)
def test_other_files_are_no_checkpoints(
    content: bytes, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.safetensors").write_bytes(content)
    assert f"is {kind}, not a checkpoint" in checkpoint_error(tmp_path / "best.safetensors", capsys)


def test_a_training_state_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"format": "1", "config": small_checkpoint("lstm").config.to_json(), "progress": "{}"}
    save_file({"model.x": torch.zeros(1)}, tmp_path / "last.safetensors", about)
    assert "give the best.safetensors beside it" in checkpoint_error(tmp_path / "last.safetensors", capsys)


def test_a_pipe_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in checkpoint_error(tmp_path / "pipe", capsys)


@pytest.mark.parametrize("key", ["joint_blocks", "input_blocks", "width", "labels"])
def test_a_small_file_of_a_giant_model_is_refused_at_once(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = small_checkpoint("dmrnet")
    config = json.dumps({**json.loads(good.config.to_json()), key: 10**9})
    save_file(good.state, tmp_path / "bomb.safetensors", {"format": "1", "config": config, "metrics": "{}"})
    assert f"{key} is 1000000000" in checkpoint_error(tmp_path / "bomb.safetensors", capsys)


def test_all_wants_every_run_before_it_writes_one(tmp_path: Path) -> None:
    save_run(tmp_path / "runs", "dmrnet")
    assert run(tmp_path / "runs", tmp_path / "models", "--all") == 6
    assert files(tmp_path / "models") == []
    for name in ("lstm", "bilstm"):
        save_run(tmp_path / "runs", name)
    assert run(tmp_path / "runs", tmp_path / "models", "--all") == 0
    assert files(tmp_path / "models") == ["bilstm.onnx", "default.onnx", "dmrnet.onnx", "lstm.onnx"]


def test_an_unknown_precision(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, tmp_path, "--model", "lstm", "--precision", "int2")
    assert caught.value.code == 2


def test_int8_passes_its_gates_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_run(tmp_path / "runs", "lstm-wide")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm-wide"], 2100)
    arguments = ["--checkpoint", str(checkpoint), "--precision", "all", "--check", shard]
    assert run(tmp_path, tmp_path / "models", *arguments) == 0
    assert re.search(r"MAP@10\s+[01]\.", capsys.readouterr().out)
    assert files(tmp_path / "models") == ["default.onnx", "lstm.fp16.onnx", "lstm.int8.onnx", "lstm.onnx"]
    model = Model.open(str(tmp_path / "models/lstm.int8.onnx"), device="cpu")
    report = json.loads(model.facts.metadata["yt8m.parity"])
    assert set(report["quality"]["quality"]) == {"MAP@10", "GAP@10", "Hit@1", "PERR"}
    assert report["independence"]["same_bits"]
    assert model.facts.metadata["yt8m.precision"] == "int8"
    default, int8 = (tmp_path / "models" / name for name in ("default.onnx", "lstm.int8.onnx"))
    assert default.read_bytes() == int8.read_bytes()


def test_int8_that_changes_answers_is_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_run(tmp_path / "runs", "lstm")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm"], 2100)
    arguments = ["--checkpoint", str(checkpoint), "--precision", "int8", "--check", shard]
    assert run(tmp_path, tmp_path / "models", *arguments) == 11
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "of the top-10 are the same, not 97%" in message
    assert files(tmp_path / "models") == []


def test_int8_on_one_answer_for_a_whole_batch_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dynamic(Model):
        def run(self, features: Any, k: int = 10) -> Any:
            scale = max(float(np.abs(values).max()) for values in features.values()) / 127
            return super().run({n: np.round(values / scale) * np.float32(scale) for n, values in features.items()}, k)

    monkeypatch.setattr("export.build.Model", Dynamic)
    checkpoint = save_run(tmp_path / "runs", "lstm-wide")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm-wide"], 2100)
    arguments = ["--checkpoint", str(checkpoint), "--precision", "int8", "--check", shard]
    assert run(tmp_path, tmp_path / "models", *arguments) == 11
    assert files(tmp_path / "models") == []


def test_int8_wants_real_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm", "--precision", "int8") == 2
    assert "--calibrate" in capsys.readouterr().err


@pytest.mark.parametrize(("labelled", "count"), [(False, 2100), (True, 1999)])
def test_check_shards_with_too_few_labels(
    labelled: bool, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "runs", "lstm")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm"], count, labelled=labelled)
    arguments = ["--model", "lstm", "--precision", "int8", "--check", shard]
    assert run(tmp_path / "runs", tmp_path / "models", *arguments) == 3
    assert "labelled videos" in capsys.readouterr().err
    assert files(tmp_path / "models") == []


def test_a_damaged_check_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm"], 30)
    damage_payload(shard, 7)
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm", "--check", shard) == 4
    assert "record 7" in capsys.readouterr().err


def test_a_check_shard_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    shard = tmp_path / "a.tfrecord.gz"
    shard.write_bytes(gzip.compress(b"x" * 99))
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm", "--check", str(shard)) == 4
    assert "not a TFRecord file but text that begins 'xxxx" in capsys.readouterr().err


def test_a_model_without_a_translation_is_exported_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Graph:
        raise Untranslatable("no translation of Novelty")

    monkeypatch.setattr("export.build.trace", refuse)
    save_run(tmp_path / "runs", "dmrnet")
    for folder in ("first", "second"):
        assert run(tmp_path / "runs", tmp_path / folder, "--model", "dmrnet", "--draw") == 0
    assert "exported plainly" in capsys.readouterr().out
    assert files(tmp_path / "first") == ["default.onnx", "dmrnet.onnx"]
    contents = [(tmp_path / folder / "dmrnet.onnx").read_bytes() for folder in ("first", "second")]
    assert contents[0] == contents[1]
    assert b".py" not in contents[0]
    assert run(tmp_path / "runs", tmp_path / "third", "--model", "dmrnet", "--precision", "fp16") == 6


def test_speed_is_measured_against_the_plain_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    assert main(["--model", "lstm", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "models")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"as trained.* 34 .*1\.00", shown)
    assert "operators: nodes of ONNX" in shown


@pytest.mark.parametrize("columns", ["30", "50", "80", "200"])
def test_numbers_are_whole_in_any_width(
    columns: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    save_run(tmp_path / "runs", "bilstm")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "bilstm") == 0
    shown = capsys.readouterr().out
    size = (tmp_path / "models/bilstm.onnx").stat().st_size
    assert re.search(rf"bilstm\.onnx.* {size:,}$", shown, re.MULTILINE)
    trained = count_parameters(small_checkpoint("bilstm").model())
    assert re.search(rf"as trained.* {trained:,}\b", shown), "not as train counts them"


def test_the_new_default_is_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.chdir(tmp_path)
    save_run(Path("runs"), "lstm-wide")
    write_videos(Path("a.tfrecord"), CONFIGS["lstm-wide"], 2100)
    given = ["--model", "lstm", "--precision", "all", "--check", "a.tfrecord", "--no-speed"]
    assert main(given) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "models/default.onnx is now a copy of lstm.int8.onnx: `score` and Scorer() in this folder use it"
    )
    assert "--model bundled" in last
    assert main([*given, "--output", "elsewhere"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "elsewhere/default.onnx is now a copy of lstm.int8.onnx"
    metadata = Model.open("models/default.onnx", device="cpu").facts.metadata
    assert metadata["yt8m.videos"] == "1234"
    assert json.loads(metadata["yt8m.ranges"]) == {"mean_rgb": [-2.5, 3.0], "mean_audio": [-2.5, 3.0]}


def test_a_full_temporary_folder_leaves_speed_unmeasured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, proto: onnx.ModelProto) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("export.timing.write", full)
    save_run(tmp_path / "runs", "lstm")
    assert main(["--model", "lstm", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "models")]) == 0
    captured = capsys.readouterr()
    assert captured.err == "export: not timed: No space left on device\n"
    assert "same top-10" in captured.out
    assert files(tmp_path / "models") == ["default.onnx", "lstm.onnx"]


def test_a_device_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    checkpoint = str(save_run(tmp_path / "runs", "lstm"))
    assert run(tmp_path, tmp_path / "models", "--checkpoint", checkpoint, "--device", "cuda") == DeviceError.exit_code
    assert files(tmp_path / "models") == []


@pytest.mark.parametrize("device", [[], ["--device", "cuda"], ["--device", "cuda:1"]])
@pytest.mark.parametrize("rounds", [False, True])
def test_a_file_must_pass_on_a_gpu_too_where_there_is_one(
    device: list[str], rounds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Model.open

    def elsewhere(path: str, *, device: str, **options: Any) -> Model | OnGpu:
        model = opened(path, device="cpu")
        return model if device == "cpu" else OnGpu(model, 2 if rounds else 9)

    monkeypatch.setattr(Model, "open", elsewhere)
    monkeypatch.setattr("export.build.has_cuda", lambda runtime: True)
    checkpoint = save_run(tmp_path / "runs", "lstm")
    code = run(tmp_path, tmp_path / "models", "--checkpoint", str(checkpoint), *device)
    captured = capsys.readouterr()
    if rounds:
        assert code == GateError.exit_code
        assert captured.err.startswith("export: on cuda:7: not the checkpoint's answers")
        assert files(tmp_path / "models") == []
    else:
        assert code == 0
        assert "; passed on cuda:7 too" in " ".join(captured.out.split())


def test_without_a_gpu_the_cpu_is_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where ONNX Runtime has a CUDA provider that does not open."""
    checkpoint = save_run(tmp_path / "runs", "lstm")
    monkeypatch.setattr("scorer.model.placement.has_cuda", lambda runtime: False)  # a machine of the tests may have one
    for listed in (False, True):
        monkeypatch.setattr("export.build.has_cuda", lambda runtime, listed=listed: listed)
        assert run(tmp_path, tmp_path / "models", "--checkpoint", str(checkpoint)) == 0
        assert "passed on" not in " ".join(capsys.readouterr().out.split())


class OnGpu:
    """A model that says it is on a GPU, whose scores have so many decimals."""

    def __init__(self, model: Model, decimals: int) -> None:
        self.facts, self._model, self._decimals = replace(model.facts, device="cuda:7"), model, decimals

    def run(self, features: Features, k: int) -> Predictions:
        scores, labels = self._model.run(features, k)
        return Predictions(np.round(scores, self._decimals), labels)
