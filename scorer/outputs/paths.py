"""Which files belong to an output file, and whether a path can be one."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from scorer.errors import OutputError
from scorer.outputs.atomic import LONGER

STANDARD_OUTPUT = "-"
_MOST_LINKS = 40  # as many as the kernel follows


@dataclass(frozen=True)
class OutputPaths:
    """The files of one output, all in one folder; `final` is the path given, with symbolic links followed.

    address: of an output that is an object in a store; `final` then says only where the work on it goes.
    """

    final: Path
    address: str = ""

    @property
    def shown(self) -> str:
        """The output, for messages."""
        return self.address or str(self.final)

    @property
    def rows(self) -> Path:
        return self._hidden("partial")

    @property
    def quarantine(self) -> Path:
        return self._hidden("quarantine")

    @property
    def ids(self) -> Path:
        return self._hidden("ids")

    @property
    def hits(self) -> Path:
        return self._hidden("hits")

    @property
    def packed(self) -> Path:
        return self._hidden("packed")

    @property
    def journal(self) -> Path:
        return self._hidden("journal")

    @property
    def lock(self) -> Path:
        return self._hidden("lock")

    @property
    def final_quarantine(self) -> Path:
        return self.final.with_name(self.final.name + ".quarantine.jsonl")

    @property
    def shown_quarantine(self) -> str:
        return f"{self.address}.quarantine.jsonl" if self.address else str(self.final_quarantine)

    @property
    def done(self) -> Path:
        return self.final.with_name(self.final.name + ".done.json")

    def _hidden(self, kind: str) -> Path:
        return self.final.with_name(f".{self.final.name}.{kind}")


def output_paths(output: str) -> OutputPaths | None:
    """Where the work on `output` goes; None for standard output ("-"), a device or a pipe, written straight through.

    Raises:
        OutputError: no name or too long a one, a folder, a path in no folder, a loop of symbolic links, or a link that
            another user placed there.
    """
    if output == STANDARD_OUTPUT:
        return None
    if not output:
        raise OutputError("the output has no name", remedy="name a file, such as preds.csv")
    try:
        mode = os.stat(output).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:
        raise OutputError(f"{output}: {error}", remedy="choose another output") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return None
    final = Path(os.path.realpath(output))
    if stat.S_ISDIR(mode) or output.endswith(os.sep) or final.is_dir():  # the last: absent/.. is where it starts
        raise OutputError(f"{output} is a folder", remedy="name a file in it, such as preds.csv")
    if not final.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {final.parent}", remedy="make it or choose another output")
    _check_links(output)
    paths = OutputPaths(final)
    _check_name(paths)
    return paths


def _check_links(output: str) -> None:
    """Refuse a link that somebody else placed where the output is to go: it would choose the file to overwrite."""
    path = output
    for _ in range(_MOST_LINKS):
        if not os.path.islink(path):
            return
        if os.lstat(path).st_uid not in (os.geteuid(), 0):
            raise OutputError(f"{path} is a link that belongs to another user", remedy="name the file that is meant")
        path = os.path.join(os.path.dirname(path), os.readlink(path))


def _check_name(paths: OutputPaths) -> None:
    """Refuse at once a name that would be too long with what the last steps add to it."""
    try:
        limit = os.pathconf(paths.final.parent, "PC_NAME_MAX")
    except (OSError, ValueError):  # unknown there
        return
    excess = len(os.fsencode(paths.done.name)) + LONGER - limit  # no other file here has a longer name
    if limit >= 0 and excess > 0:
        most = len(os.fsencode(paths.final.name)) - excess
        raise OutputError(f"{paths.final}: the name is too long", remedy=f"choose one of at most {most} bytes")
