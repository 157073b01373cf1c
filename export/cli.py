"""The command `export`. Nothing heavy is imported before the arguments are known to be good."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from export.remedies import EXPORT
from scorer.cli.command import Parser, add_allow_empty, add_columns, run
from scorer.errors import InputError, ModelError, UsageError, printable
from scorer.system.phases import phase
from scorer.system.tables import paragraph, terminal_width
from scorer.system.terminal import print_stderr
from train.registry import names

if TYPE_CHECKING:
    from export.build import Exported, TracedCheckpoint
    from export.timing import Timing
    from export.videos import VideoSample
    from scorer.inputs.source import Source

SAMPLES = "samples/*.tfrecord"
PRECISIONS = ("fp32", "fp16", "int8")
"""In the order in which `all` writes them: of the last one models/default.onnx is a copy."""

_EPILOG = """\
examples:
  yt8m export --model bilstm          runs/bilstm -> models/bilstm.onnx, checked
  yt8m export --all --precision all --check 'shards/validate01[23]*.tfrecord'
  yt8m export --checkpoint bought.safetensors --precision int8 \\
      --calibrate 'shards/validate00*.tfrecord'

fp32 computes the same function as the checkpoint, to 1e-5 of a probability.
int8 is for CPUs, fp16 for CUDA; each may cost at most 0.002 of MAP@10, 0.003 of
GAP@20 and 3% of the top-10, measured on the labelled shards of --check.

The last file written is copied to DIR/default.onnx, and `score` uses
models/default.onnx where no model is named: with --precision all the int8 file,
with --all the last model's.

exit codes:
   0  done
   2  a wrong command line
   3  a shard is absent, unreadable or changed while it was read, or the shards
      hold too few labels
   4  a shard is damaged
   5  a record is not what the model reads
   6  a checkpoint is absent, damaged, or of another version, or cannot be
      converted
   7  a runtime or package is absent or failed
   8  a model cannot be written
  11  a model does not answer as its checkpoint does; it was not written
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `export` with `argv` (the process's own arguments by default); returns the exit code."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    try:
        return run("export", EXPORT, lambda: _export(options), "cpu,train")
    except KeyboardInterrupt:
        print_stderr("export: stopped; models written before stand")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser("export", "Turn each trained model into one ONNX file, checked against its checkpoint.", _EPILOG)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", choices=names(), help="the best checkpoint of RUNS/MODEL")
    which.add_argument("--all", action="store_true", help="the three models")
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="any best.safetensors, wherever it was trained")
    parser.add_argument("--precision", choices=(*PRECISIONS, "all"), default="fp32", help="[fp32]")
    parser.add_argument(
        "--embeddings", action="store_true", help="have the files give what their last layer reads of each video too"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="where the files must pass their gates, beside the CPU [auto: a GPU, if any]",
    )
    videos = parser.add_argument_group("videos: files, quoted patterns, or folders")
    videos.add_argument("--check", nargs="+", metavar="SHARD", help=f"to check the files on [{SAMPLES}]")
    videos.add_argument("--calibrate", nargs="+", metavar="SHARD", help="to take int8's ranges from [as --check]")
    add_columns(videos)
    add_allow_empty(videos)
    folders = parser.add_argument_group("folders and files")
    folders.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs are [runs]")
    folders.add_argument(
        "-o", "--output", type=Path, default=Path("models"), metavar="DIR", help="where models go [models]"
    )
    folders.add_argument(
        "--vocabulary",
        type=Path,
        metavar="CSV",
        help="names of the labels (docs/formats.md), such as YouTube-8M's vocabulary.csv",
    )
    parser.add_argument("--draw", action="store_true", help="a picture beside each model, as trained and as exported")
    parser.add_argument("--no-speed", action="store_true", help="do not time the result against the plain export")
    return parser


def _export(options: argparse.Namespace) -> int:
    from scorer.inputs.discover import find_shards
    from train.checkpoint import metadata

    checkpoints = _checkpoints(options)
    for checkpoint in checkpoints:
        metadata(checkpoint)  # all of them are there before the first is exported
    given = {name: names for name in ("check", "calibrate") if (names := getattr(options, name))}
    shards = {name: find_shards(names, allow_empty=options.allow_empty) for name, names in given.items()}
    for checkpoint in checkpoints:
        _export_one(options, checkpoint, shards)
    return 0


def _checkpoints(options: argparse.Namespace) -> list[Path]:
    if options.checkpoint:
        return [options.checkpoint]
    return [options.runs / name / "best.safetensors" for name in (names() if options.all else [options.model])]


def _export_one(options: argparse.Namespace, checkpoint: Path, shards: Mapping[str, Sequence[Source]]) -> None:
    from export.build import export_to, trace_checkpoint
    from export.report import show
    from scorer.model.vocabulary import read_vocabulary
    from train.checkpoint import load

    with phase("export", f"{checkpoint}: reading and reducing"):
        loaded = load(checkpoint)
        names = read_vocabulary(options.vocabulary, loaded.config.labels) if options.vocabulary else None
        traced = trace_checkpoint(loaded, names, embeddings=options.embeddings)
    precisions = PRECISIONS if options.precision == "all" else (options.precision,)
    check, calibration = _videos(shards, traced, precisions, options.columns)
    written = []
    for precision in precisions:
        suffix = "" if precision == "fp32" else f".{precision}"
        path = options.output / f"{loaded.config.name}{suffix}.onnx"
        with phase("export", f"{path}: converting and checking") as at:
            written.append(export_to(path, traced, precision, check, calibration, at, options.device))
    if options.draw:
        _draw(options.output / f"{loaded.config.name}.png", traced)
    timing = None if options.no_speed else _time(traced, written, check)
    show(traced, written, check, timing)
    _set_default(written[-1].path, options.output)


def _time(traced: TracedCheckpoint, written: Sequence[Exported], check: VideoSample) -> Timing | None:
    """What was timed; None, and a line that says why, where it could not be: the models are written by then."""
    from export.timing import time_files

    try:
        with phase("export", f"{traced.checkpoint.config.name}: timing against the plain export") as at:
            return time_files(traced, written, check, at)
    except OSError as error:
        print_stderr(printable(f"export: not timed: {error.strerror or error}"))
    except ModelError as error:
        print_stderr(printable(f"export: not timed: {error.message}"))
    return None


def _videos(
    shards: Mapping[str, Sequence[Source]],
    traced: TracedCheckpoint,
    precisions: Sequence[str],
    columns: Mapping[str, str],
) -> tuple[VideoSample, VideoSample]:
    """The videos to check on and to calibrate on: those given, else the samples if they fit, else random vectors.

    Raises InputError where approximate precisions are to be checked on shards with too few labels, UsageError where
    int8 would have to take its ranges from random vectors.
    """
    from export.videos import random_videos, read_videos

    def read(option: str) -> VideoSample:
        with phase("export", f"reading the shards of --{option}") as at:
            return read_videos(shards[option], traced.inputs, columns=columns, at=at)

    check = read("check") if "check" in shards else _sample_videos(traced.inputs)
    if "check" in shards and check is not None and set(precisions) != {"fp32"}:
        _check_labelled(shards["check"], check)
    calibration = read("calibrate") if "calibrate" in shards else check
    if calibration is None and "int8" in precisions:
        raise UsageError("int8 takes its ranges from real videos", remedy="give shards with --calibrate or --check")
    check = check or random_videos(traced.inputs, 1024)
    return check, calibration or check


def _check_labelled(shards: Sequence[Source], videos: VideoSample) -> None:
    from export.parity import LABELLED

    if videos.labelled < LABELLED:
        reason = f"--check has {videos.labelled:,} labelled videos, the quality of fp16 and int8 needs {LABELLED:,}"
        raise InputError(f"{shards[0].address}: {reason}", remedy="give more labelled shards, or leave --check out")


def _sample_videos(inputs: dict[str, int]) -> VideoSample | None:
    """The sample shards, unless there are none here or the model reads other features."""
    import glob

    from export.videos import read_videos
    from scorer.errors import RecordError
    from scorer.inputs.discover import find_shards

    try:
        return read_videos(find_shards([SAMPLES]), inputs) if glob.glob(SAMPLES) else None
    except RecordError:
        return None


def _draw(path: Path, traced: TracedCheckpoint) -> None:
    from export.draw import draw
    from scorer.outputs.atomic import replacing, writing

    if traced.graph is None or traced.reduced is None:
        print_stderr(printable("export: no picture of a model that train/models/ does not have"))
        return
    with replacing(path) as part, writing(path):
        draw(part, traced.checkpoint.config.name, [("as trained", traced.graph), ("as exported", traced.reduced)])


def _set_default(path: Path, out: Path) -> None:
    """Copy the file that was written last, and say what that changes."""
    from scorer.model.find import MODELS

    default = out / "default.onnx"
    _copy(path, default)
    line = f"{default} is now a copy of {path.name}"
    if out.resolve() == MODELS.resolve():
        line += ": `score` and Scorer() in this folder use it; `--model bundled` is the model they used without it"
    print("\n".join(paragraph(line, terminal_width())), flush=True)


def _copy(source: Path, target: Path) -> None:
    from scorer.outputs.atomic import replacing, writing

    with replacing(target) as part, writing(target):
        shutil.copyfile(source, part)


if __name__ == "__main__":
    sys.exit(main())
