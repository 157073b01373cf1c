"""The form of rows that is JSON lines: an object a video."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from scorer.errors import UsageError
from scorer.kernels.packed import PackedStrings
from scorer.outputs.cells import Cells, decimals, listed, numbers, same, text_rows, texts
from scorer.outputs.row_format import PLAIN, Labels, Pack, RowOptions, Scores, check_rows, kept_labels

_WIDTH = 20  # bytes of a label and its confidence, about
_LONGEST_NAME = 1024  # bytes; one longer name would widen every cell


class JsonLines:
    """`{"id":"...","labels":[...],"names":[...],"scores":[...]}`, best first, `names` only where there are some."""

    header = b""
    pack: Pack | None = None

    def __init__(self, options: RowOptions = PLAIN) -> None:
        """Raises UsageError for a name that is too long."""
        self._threshold = options.threshold
        self._names = None if options.names is None else texts([*map(_name, options.names)])

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        check_rows(ids, labels, scores)
        name = 0 if self._names is None else self._names.shape[1]
        return text_rows(ids, labels, scores, (_WIDTH + name) * (labels.shape[1] + 2), self._block)

    def _block(self, ids: Sequence[bytes], labels: Labels, scores: Scores) -> Iterator[Cells]:
        n, counts = len(ids), kept_labels(scores, self._threshold)
        yield same(b'{"id":', n)
        yield texts([*map(_quoted, ids)])
        yield same(b',"labels":[', n)
        yield listed([numbers(labels)], b",", counts)
        if self._names is not None:
            yield same(b'],"names":[', n)
            yield listed([self._names[labels]], b",", counts)
        yield same(b'],"scores":[', n)
        yield listed([decimals(scores)], b",", counts)
        yield same(b"]}\n", n)


def _quoted(text: bytes) -> bytes:
    return json.dumps(text.decode(errors="replace"), ensure_ascii=False).encode()


def _name(name: str) -> bytes:
    text = json.dumps(name, ensure_ascii=False).encode(errors="replace")
    if len(text) > _LONGEST_NAME:
        raise UsageError(f"the label's name {name[:20]!r}... has {len(text)} bytes", remedy="shorten it")
    return text
