"""`yt8m COMMAND ...` and `from yt8m import Scorer`: the one name for everything here.

It is the only name that works bare in bash and zsh, whose own builtin `export` hides ours, and the only one that no
other project has: `train`, `export` and `scorer` lie in many a working folder. So this module loads those that lie
beside it, whatever else the path has under their names. Nothing is imported before it is known to be needed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

TYPE_CHECKING = False  # as typing has it, whose import would take a tenth of the help's time
if TYPE_CHECKING:
    from typing import Any

    from scorer.api import Embedding, Prediction, Scorer

__version__: str
__all__ = ["Embedding", "Prediction", "Scorer", "__version__"]

PACKAGES = ("scorer", "train", "export")
"""Each imports those before it."""

COMMANDS = {
    "train": ("train.cli", "train DMRNet, LSTM and BiLSTM on TFRecord shards -> runs/"),
    "export": ("export.cli", "turn a trained model into one checked ONNX file -> models/"),
    "score": ("scorer.cli.score", "label the videos of shards with an ONNX file -> predictions"),
    "merge": ("scorer.cli.merge", "join the parts of score --part into the predictions of one run"),
    "doctor": ("scorer.cli.doctor", "say what is installed, what works, what fixes the rest"),
    "inspect": ("scorer.cli.inspection", "print an ONNX file's contract, metadata and reports"),
}

HELP = """\
usage: yt8m COMMAND ...

Label videos: train on YouTube-8M, export to one ONNX file, score anywhere.

commands:
{commands}
  help      this text, or that of the command named after it

options:
  -h, --help  this text; `yt8m COMMAND --help` for a command's own
  --version   the version installed

example:
  yt8m score shards/*.tfrecord -o preds.csv
"""


def help_text() -> str:
    return HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (scorer/errors.py); 2 for a command that does not exist."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, *rest = arguments or ["help"]
    if command == "help" and rest:
        command, rest = rest[0], ["--help"]
    if command in ("-h", "--help", "help"):
        print(help_text(), end="")
        return 0
    if command == "--version":
        print(f"yt8m-edge {__getattr__('__version__')}")
        return 0
    if command not in COMMANDS:
        print(f"yt8m: no command {command!r}; {_meant(command)}", file=sys.stderr)
        return 2
    if os.path.basename(sys.argv[0]) == "yt8m":
        sys.argv[0] = f"yt8m {command}"
    return _run(command, rest)


def train() -> int:
    """The console script `train`."""
    return _run("train", sys.argv[1:])


def export() -> int:
    """The console script `export`."""
    return _run("export", sys.argv[1:])


def score() -> int:
    """The console script `score`."""
    return _run("score", sys.argv[1:])


def _run(command: str, arguments: Sequence[str]) -> int:
    module = COMMANDS[command][0]
    for package in PACKAGES[: PACKAGES.index(module.partition(".")[0]) + 1]:
        _import_own(package)
    return int(import_module(module).main(arguments) or 0)


def _meant(command: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(command, COMMANDS, n=1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"


def _import_own(package: str) -> None:
    """Import the package that lies beside this file. Raises ImportError where another of its name is loaded already."""
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    home = os.path.dirname(os.path.abspath(__file__))
    if (loaded := sys.modules.get(package)) is not None:
        origin = getattr(loaded, "__file__", None) or ""
        if os.path.dirname(os.path.dirname(os.path.abspath(origin))) != home:
            raise ImportError(f"{origin} is loaded under the name {package!r}, which yt8m-edge needs; rename it")
        return
    spec = PathFinder.find_spec(package, [home])
    if spec is None or spec.loader is None:
        raise ImportError(f"the package {package!r} is missing beside {__file__}")
    module = sys.modules[package] = module_from_spec(spec)
    spec.loader.exec_module(module)


def __getattr__(name: str) -> Any:
    """Import NumPy and ONNX Runtime only when they are asked for: the commands' --help needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'yt8m' has no attribute {name!r}")
    _import_own("scorer")
    if name == "__version__":
        from scorer.system.packages import version

        return version()
    return getattr(import_module("scorer.api"), name)


if __name__ == "__main__":
    sys.exit(main())
