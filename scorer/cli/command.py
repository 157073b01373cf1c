"""What every command shares: its parser, how it was typed, and the way from an error to one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from scorer.errors import BROKEN_PIPE, DeviceError, Hint, UsageError, Yt8mError, printable
from scorer.system.memory import is_out_of_memory
from scorer.system.packages import install_command, version
from scorer.system.terminal import print_stderr
from scorer.system.threads import is_refused, no_thread


class Parser(argparse.ArgumentParser):
    """The parser of `yt8m COMMAND`, with --version. Options are not abbreviated: `--rest` would stay in the command
    that resumes.
    """

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"yt8m {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._command = command
        self.add_argument("--version", action=_Version, nargs=0, help="print the version installed, and exit")

    def error(self, message: str) -> NoReturn:
        """One line, its control characters escaped, after the usage.

        argparse's own leaves text in the buffer of a broken standard error, at which Python's exit fails.
        """
        print_stderr(f"{self.format_usage()}{self._command}: {printable(message)}")
        sys.exit(UsageError.exit_code)


def add_columns(parser: argparse._ActionsContainer) -> None:
    """The option --columns, whose value is a dictionary."""
    parser.add_argument(
        "--columns",
        type=_columns,
        default={},
        metavar="FEATURE=COLUMN,...",
        help="of Parquet and Arrow files: columns with other names than id, labels and the model's inputs",
    )


def add_allow_empty(parser: argparse._ActionsContainer) -> None:
    """The option --allow-empty."""
    parser.add_argument(
        "--allow-empty", action="store_true", help="a shard of 0 bytes has no records, and is not damaged"
    )


def _columns(text: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(name and column for name, _, column in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not FEATURE=COLUMN,...")
    return {name: column for name, _, column in pairs}


class _Version(argparse.Action):
    """Looks the version up only where it is asked for."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(f"yt8m-edge {version()}")
        parser.exit()


def typed_as(command: str) -> list[str]:
    """How `command` was called, for the commands that a message suggests: ["yt8m", "score"], say, or through Python."""
    known = {command: [command], f"yt8m {command}": ["yt8m", command]}
    return known.get(os.path.basename(sys.argv[0]), [sys.executable, "-m", "yt8m", command])


def run(command: str, words: Mapping[Hint, str], action: Callable[[], int], extras: str = "cpu") -> int:
    """The exit code of `action`; whatever goes wrong in it is one line on standard error.

    Args:
        words: for the hints of an error, those of this command.
        extras: of the package, that this command needs.
    """
    try:
        return action()
    except Yt8mError as error:
        print_stderr(f"{command}: {error.line(words)}")
        return error.exit_code
    except ModuleNotFoundError as error:
        print_stderr(f"{command}: {error.name} is not installed; {install_command(extras)}")
        return DeviceError.exit_code
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            short = DeviceError("out of memory", hints=(Hint.SMALLER_BATCH,))
        elif is_refused(error):
            short = no_thread()
        else:
            raise
        print_stderr(f"{command}: {short.line(words)}")
        return short.exit_code
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE


def _forget_output() -> None:
    """What is still buffered goes nowhere, else Python complains of the closed pipe once more at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
