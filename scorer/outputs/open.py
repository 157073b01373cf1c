"""From what a user named as the output to the sink that writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias

from scorer.errors import Hint, ResumeError, UsageError
from scorer.inputs.addresses import is_address
from scorer.outputs.file import open_file
from scorer.outputs.journal import read_journal
from scorer.outputs.paths import output_paths
from scorer.outputs.row_format import RowFormat
from scorer.outputs.sink import JobKey, ResumePolicy, Sink

if TYPE_CHECKING:
    from scorer.outputs.embeddings import EmbeddingOutput

SinkOpener: TypeAlias = Callable[[str, JobKey, RowFormat, ResumePolicy], AbstractContextManager[Sink]]
"""From an address, the job, the form of the rows and what to do about an unfinished run to the sink.

Raises OutputError or ResumeError.
"""

_openers: dict[str, SinkOpener] = {}


def register_sink(scheme: str, opener: SinkOpener) -> None:
    """Have outputs named `scheme://...` opened by `opener`."""
    _openers[scheme] = opener


def check_output(output: str) -> None:
    """Say at once what is wrong with the name of an output. Raises OutputError."""
    if _opener(output) is not None:
        return
    if is_address(output):
        from scorer.outputs.object_sink import check_object

        check_object(output)
    else:
        output_paths(output)


def open_sink(
    output: str,
    key: JobKey,
    row_format: RowFormat,
    policy: ResumePolicy,
    wait: Callable[[], None],
    embeddings: EmbeddingOutput | None = None,
) -> AbstractContextManager[Sink]:
    """The sink that writes `output` in this format, and embeddings where they are to go somewhere; `wait` as for
    `open_stream`.

    Raises:
        OutputError: it cannot be written.
        ResumeError: as `open_file`.
        UsageError: to resume what cannot be, or a format or embeddings that only a file can have.
    """
    if embeddings is not None:
        check_embeddings_output(output, embeddings)
    if (opener := _opener(output)) is not None:
        return opener(output, key, row_format, policy)
    if is_address(output):
        from scorer.outputs.object_sink import open_object

        return open_object(output, key, row_format, policy, embeddings)
    paths = output_paths(output)
    if paths is not None:
        return open_file(paths, key, row_format, policy, embeddings=embeddings)
    if policy == "resume":
        raise UsageError(f"only a file can be resumed, and {output} is none", hints=(Hint.NO_RESUME,))
    if row_format.pack is not None:
        raise UsageError(f"{output} takes rows as they come, none that are packed", remedy="name a file")
    from scorer.outputs.stream import open_stream

    return open_stream(output, row_format, wait)


def check_embeddings_output(output: str, embeddings: EmbeddingOutput) -> None:
    """Say at once why embeddings cannot be written beside `output`. Raises UsageError."""
    paths = None if is_address(output) else output_paths(output)
    if _opener(output) is not None or (paths is None and not is_address(output)):
        raise UsageError(f"embeddings are written beside a file, and {output} is none", remedy="name one")
    own = embeddings.paths.final
    if paths is not None and own in (paths.final, paths.done, paths.final_quarantine):
        raise UsageError(f"embeddings and predictions are both to be {own}", remedy="name another file")


def begun_options(output: str) -> Mapping[str, Any]:
    """What decides the rows of the unfinished job that left its work on `output`.

    Empty where there is none, or none that can be read, which whoever resumes it says. Only the first line of the
    journal is read: the whole of it only counts under the lock of who resumes it.
    """
    if _opener(output) is not None:
        return {}
    if is_address(output):
        from scorer.outputs.object_sink import work_paths

        paths = work_paths(output)
    elif (local := output_paths(output)) is not None:
        paths = local
    else:
        return {}
    try:
        return read_journal(paths.journal, most=1).options
    except (OSError, ResumeError):
        return {}


def _opener(output: str) -> SinkOpener | None:
    scheme, found, _ = output.partition("://")
    return _openers.get(scheme) if found else None
