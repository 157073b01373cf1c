"""Every error that a command reports in one line.

    Yt8mError                    exit code
    ├── UsageError               2    the command line asks for something that cannot be
    ├── InputError               3    a shard is absent, unreadable or changed while it was read
    ├── ShardError               4    bytes that are not a whole TFRecord file: framing, length or payload CRC
    ├── RecordError              5    a whole record that is not the tf.Example asked for
    ├── ModelError               6    a model or checkpoint that is absent, damaged or of another contract
    ├── DeviceError              7    a provider, device or runtime package that is not there or failed
    ├── OutputError              8    a result that cannot be written
    ├── ResumeError              9    an unfinished run, a changed job
    │   └── BusyError            9    an output that another process holds
    ├── GateError               11    an exported model that does not match its checkpoint
    ├── TrainingError           12    training that cannot continue (NaN loss, no labels, too few videos)
    └── NothingScoredError      13    every record was quarantined, so that there is nothing to write

Codes without an exception: 0 done, 1 a bug of ours, 10 done with records quarantined, 130 and 143 stopped by
SIGINT and SIGTERM, 141 the reader of a pipe has gone. The commands alone turn an error into one line on stderr and its
exit code, and they alone name options: an error carries hints, for which each command has its own words
(`scorer/cli/remedies.py`) and a Python program none.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, Self

PARTIAL_SUCCESS = 10
BROKEN_PIPE = 141
_LONGEST_LINE, _END = 4000, 400
"""Letters of a message that are shown, and how many of them from its end. Paths have at most 4,096 bytes on Linux, and
few have as many as 400."""


def printable(text: str) -> str:
    """`text` in one line, with the control characters escaped that a file's name or content may hold."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Hint(Enum):
    """What would help and is done differently by each command, or not at all: an option, most of the time."""

    SKIP = auto()  # leave bad records out
    ALLOW_EMPTY = auto()  # take a shard without a byte for one without records
    COLUMNS = auto()  # say which column is which feature
    FEATURES = auto()  # ask for the features that the records have
    MORE_ERRORS = auto()  # allow more bad records
    RESUME = auto()  # resume an unfinished run
    RESUME_LATER = auto()  # resume it once the cause is gone
    RESTART = auto()  # discard an unfinished run
    NO_RESUME = auto()  # there is nothing to resume
    ON_CPU = auto()  # run the model on the CPU
    OTHER_MODEL = auto()  # choose a model
    EMBEDDINGS = auto()  # export a model with embeddings, or say where they go
    SMALLER_BATCH = auto()  # fewer videos at a time
    ON_DISK = auto()  # keep decoded videos on a disk
    LOWER_RATE = auto()  # a lower learning rate
    MORE_LABELS = auto()  # a model of more labels
    OTHER_DEVICE = auto()  # choose a device
    SAME_VIDEOS = auto()  # the shards that the run began with
    VALIDATION = auto()  # shards to validate on
    OWN_LABELS = auto()  # learn the videos' own labels


class Yt8mError(Exception):
    """What went wrong, where, and what to do: `str(error)` is the one line a user of the Python interface reads.

    message: what and where.
    remedy: what to do, in words that hold for every caller.
    hints: what else would help, as far as the caller has it.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "", hints: tuple[Hint, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.hints = hints

    def __str__(self) -> str:
        return self.line({})

    def line(self, words: Mapping[Hint, str]) -> str:
        """Message and remedy in one printable line, with a command's `words` for the hints that it has words for.

        Words begin with "or" or "then" where a remedy may stand before them.
        """
        remedies = [self.remedy, *(words[hint] for hint in self.hints if hint in words)]
        remedy = ", ".join(filter(None, remedies)).removeprefix("or ").removeprefix("then ")
        message = printable(self.message)  # a path with two spaces must stay one that can be pasted
        if len(message) > _LONGEST_LINE:  # the file's own words, or another library's about them
            message = f"{message[: _LONGEST_LINE - _END]} ... {message[-_END:]}"
        return f"{message}; {printable(remedy)}" if remedy else message


class UsageError(Yt8mError):
    exit_code = 2


class InputError(Yt8mError):
    exit_code = 3


class _LocatedError(Yt8mError):
    """An error at a known place: `record` is the 0-based index in the shard, `offset` the byte it starts at."""

    def __init__(
        self, path: str, reason: str, *, record: int, offset: int, remedy: str = "", hints: tuple[Hint, ...] = ()
    ) -> None:
        super().__init__(f"{path}: record {record} at byte {offset}: {reason}", remedy=remedy, hints=hints)
        self.path = path
        self.reason = reason
        self.record = record
        self.offset = offset

    def moved(self, by: int) -> Self:
        """The same of the record so many further on, for one whose number was counted from another."""
        where = {"record": self.record + by, "offset": self.offset}
        return type(self)(self.path, self.reason, **where, remedy=self.remedy, hints=self.hints)

    def __reduce__(self) -> tuple[Any, ...]:
        return _located, (type(self), self.path, self.reason, self.record, self.offset), self.__dict__


def _located(kind: type[_LocatedError], path: str, reason: str, record: int, offset: int) -> _LocatedError:
    """For pickle, which calls without keywords."""
    return kind(path, reason, record=record, offset=offset)


class ShardError(_LocatedError):
    exit_code = 4


class RecordError(_LocatedError):
    exit_code = 5


class ModelError(Yt8mError):
    exit_code = 6


class DeviceError(Yt8mError):
    exit_code = 7


class OutputError(Yt8mError):
    exit_code = 8


class ResumeError(Yt8mError):
    exit_code = 9


class BusyError(ResumeError):
    """Another process, or another thread, has the output in hand."""


class GateError(Yt8mError):
    exit_code = 11


class TrainingError(Yt8mError):
    exit_code = 12


class NothingScoredError(Yt8mError):
    exit_code = 13
