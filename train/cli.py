"""The command `train`. Nothing heavy is imported before the arguments are known to be good."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from scorer.cli.command import Parser, add_allow_empty, add_columns, run, typed_as
from scorer.errors import printable
from scorer.inputs.addresses import redacted
from scorer.system.terminal import print_stderr
from train.overrides import check_settings, overridden, overrides_of
from train.registry import names, spec
from train.remedies import TRAIN

SAMPLES = "samples/*.tfrecord"

_EPILOG = """\
examples:
  yt8m train                               the three models on the sample shards
  yt8m train --model bilstm --data 'shards/validate0[01]*.tfrecord' \\
      --valid 'shards/validate02*.tfrecord'
  yt8m train --model dmrnet --set width=512 form=average epochs=30
  yt8m train --model lstm --inputs mean_rgb:1024                  without audio
  torchrun --nproc-per-node 8 -m yt8m train --data 'shards/*.tfrecord'

A run leaves in RUNS/MODEL/: config.json, best.safetensors (for export),
metrics.jsonl and curves.png, and last.safetensors (for --resume) until it is
finished. Ctrl-C saves and stops. An earlier run is replaced with --restart
alone. A model has as many labels as its videos need, unless --set labels=N says
otherwise.

exit codes:
   0  done
   2  a wrong command line
   3  a shard is absent, unreadable or changed while it was read
   4  a shard is damaged
   5  a record is not what the model reads, or a label is outside the range
   6  a checkpoint is damaged
   7  a device or package is absent or failed
   8  the run's folder cannot be written
   9  an earlier run is in the way, cannot be resumed with these settings, or is
      still running
  12  training cannot continue: no labels, too few videos, a loss that is not
      finite
 130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; resume with --resume
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train` with `argv` (the process's own arguments by default); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    return run("train", TRAIN, lambda: _train(options, arguments), "cpu,train")


def _parser() -> argparse.ArgumentParser:
    parser = Parser("train", "Train DMRNet, LSTM and BiLSTM on labelled shards of video-level features.", _EPILOG)
    parser.add_argument("--model", nargs="+", choices=names(), default=names(), help="which to train [all three]")
    data = parser.add_argument_group("data: files, quoted patterns, or folders")
    data.add_argument("--data", nargs="+", default=[SAMPLES], metavar="SHARD", help=f"to train on [{SAMPLES}]")
    data.add_argument(
        "--valid", nargs="+", metavar="SHARD", help="to validate on [a tenth of the videos, by their ids]"
    )
    add_columns(data)
    add_allow_empty(data)
    data.add_argument("--inputs", nargs="+", type=_input, metavar="NAME:WIDTH", help="[mean_rgb:1024 mean_audio:128]")
    data.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep the decoded videos there, for data larger than memory"
    )
    recipe = parser.add_argument_group("recipe [each model's own]")
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the training videos")
    recipe.add_argument("--seed", type=int, metavar="N", help="of weights, order, dropout and mixup")
    recipe.add_argument("--set", nargs="+", default=[], metavar="SETTING=VALUE", help="any setting")
    recipe.add_argument("--list-settings", action="store_true", help="print all of them, with defaults and meaning")
    runs = parser.add_argument_group("run")
    runs.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs are kept [runs]")
    runs.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto: CUDA where there is one]")
    either = runs.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="resume unfinished runs; finished ones stand")
    either.add_argument("--restart", action="store_true", help="replace earlier runs")
    runs.add_argument("--keep", action="store_true", help="keep last.safetensors of a finished run")
    return parser


def _input(text: str) -> tuple[str, int]:
    name, _, width = text.rpartition(":")
    if not name or not width.isdecimal() or int(width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:WIDTH")
    return name, int(width)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scorer.inputs.discover import find_shards
    from scorer.system.phases import phase
    from scorer.system.signals import stop_on_signals

    if options.list_settings:
        from train.listing import print_settings

        print_settings(options.model)
        return 0
    overrides = overrides_of(options)
    with phase("train", "loading PyTorch"):
        import torch  # noqa: F401
    check_settings(overrides, options.model)
    for name in options.model:
        overridden(spec(name).recipe, overrides)
    find_shards([*options.data, *(options.valid or [])], allow_empty=options.allow_empty)
    with stop_on_signals("train", "saving after the step in hand") as stop:
        from train.runner import Runner
        from train.training import TrainingStopped

        runner = Runner(options, overrides, stop)
        try:
            runner.train_all()
        except TrainingStopped as stopped:
            if os.environ.get("RANK", "0") == "0":
                _log(f"train: {stopped}; resume with: {resume_command(options, arguments, runner.begun)}")
            return stop.exit_code
    return 0


def resume_command(options: argparse.Namespace, arguments: Sequence[str], begun: Sequence[str]) -> str:
    """The command that finishes what was stopped, as the stopped one was typed.

    Two commands where a model that was not begun yet has an older run, which was to be replaced and not resumed.
    """
    program = _program()
    arguments = [redacted(argument) for argument in arguments]
    again = [argument for argument in arguments if argument not in ("--restart", "--resume")]
    later = [name for name in dict.fromkeys(options.model) if name not in begun]
    if not options.restart or not any((options.runs / name).exists() for name in later):
        return shlex.join([*program, *again, "--resume"])
    first = shlex.join([*program, *_without_models(again), "--model", *begun, "--resume"])
    second = shlex.join([*program, *_without_models(arguments), "--model", *later])
    return f"{first} && {second}" if begun else second


def _program() -> list[str]:
    """What was typed to start this command."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", "yt8m", "train"]
    return typed_as("train")


def _without_models(arguments: Sequence[str]) -> list[str]:
    kept, model = [], False
    for argument in arguments:
        model = argument == "--model" or (model and argument in names())
        if not model:
            kept.append(argument)
    return kept


def _log(line: str) -> None:
    print_stderr(printable(line))


if __name__ == "__main__":
    sys.exit(main())
