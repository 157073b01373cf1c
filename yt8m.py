"""`yt8m COMMAND ...`: one name for every command, and the only one that works bare in bash and zsh, whose own
builtin `export` hides ours. Nothing is imported before the command is known.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": ("train.cli", "train DMRNet, LSTM and BiLSTM on TFRecord shards -> runs/"),
    "export": ("export.cli", "turn a trained model into one ONNX file, checked against it -> models/"),
    "score": ("scorer.cli.score", "label the videos of TFRecord shards with an ONNX file -> predictions"),
    "doctor": ("scorer.cli.doctor", "say what is installed, what works, and what fixes the rest"),
    "inspect": ("scorer.cli.inspection", "print an ONNX file's contract, metadata and reports"),
}

HELP = """\
usage: yt8m COMMAND ...

Label videos: train on YouTube-8M, export to one ONNX file, score anywhere.

commands:
{commands}

options:
  -h, --help  this text; `yt8m COMMAND --help` for a command's own
  --version   the version installed

example:
  yt8m score shards/*.tfrecord -o preds.csv
"""


def help_text() -> str:
    return HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()))


def version() -> str:
    from importlib.metadata import version

    return f"yt8m-edge {version('yt8m-edge')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (scorer/errors.py); 2 for a command that does not exist."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(help_text(), end="")
        return 0
    if command == "--version":
        print(version())
        return 0
    if command not in COMMANDS:
        print(f"yt8m: no command {command!r}; one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    sys.argv = [f"yt8m {command}", *arguments[1:]]
    return int(import_module(COMMANDS[command][0]).main(arguments[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main())
