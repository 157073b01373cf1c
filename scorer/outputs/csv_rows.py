"""The forms of rows that are CSV: pairs of label and confidence, or labels alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scorer.errors import UsageError
from scorer.kernels import loops
from scorer.kernels.numpy_rows import quote_id
from scorer.kernels.packed import PackedStrings
from scorer.outputs.cells import Cells, decimals, listed, numbers, same, text_rows, texts
from scorer.outputs.row_format import PLAIN, Labels, Pack, RowOptions, Scores, check_fit, check_rows, kept_labels

_WIDTH = 16  # bytes of a pair, about


class Pairs:
    """The official form of YouTube-8M's starter code: `id,label confidence label confidence ...`, six decimals."""

    header = b"VideoId,LabelConfidencePairs\n"
    pack: Pack | None = None

    def __init__(self, options: RowOptions = PLAIN) -> None:
        _refuse_names(options)
        self._threshold = options.threshold

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        if not self._threshold:
            return format_rows(ids, labels, scores)
        check_rows(ids, labels, scores)
        return text_rows(ids, labels, scores, _WIDTH * labels.shape[1] + _WIDTH, self._block)

    def _block(self, ids: Sequence[bytes], labels: Labels, scores: Scores) -> Iterator[Cells]:
        gap = same(b" ", labels.size).reshape(*labels.shape, 1)
        pairs = [numbers(labels), gap, decimals(scores)]
        return _row(ids, listed(pairs, b" ", kept_labels(scores, self._threshold)))


class LabelsOnly:
    """`id,label label ...`, best first."""

    header = b"VideoId,Label\n"
    pack: Pack | None = None

    def __init__(self, options: RowOptions = PLAIN) -> None:
        _refuse_names(options)
        self._threshold = options.threshold

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        check_rows(ids, labels, scores)
        return text_rows(ids, labels, scores, _WIDTH * labels.shape[1] + _WIDTH, self._block)

    def _block(self, ids: Sequence[bytes], labels: Labels, scores: Scores) -> Iterator[Cells]:
        return _row(ids, listed([numbers(labels)], b" ", kept_labels(scores, self._threshold)))


def format_rows(ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
    """The rows of n videos: the same bytes as `scorer.kernels.numpy_rows.format_rows_plain`.

    Args:
        ids: n ids.
        labels: int64 (n, k).
        scores: float32 (n, k) in [0, 1].

    Raises:
        ModelError: a score that is not in [0, 1].
        UsageError: shapes that do not belong together.
    """
    check_fit(ids, labels, scores)
    try:
        return loops.active.format_rows(ids, labels, scores)
    except ValueError:  # of the loops, which look at every score anyway
        check_rows(ids, labels, scores)  # says which video's
        raise


def _row(ids: Sequence[bytes], cells: Cells) -> Iterator[Cells]:
    yield texts([quote_id(name) for name in ids])
    yield same(b",", len(ids))
    yield cells
    yield same(b"\n", len(ids))


def _refuse_names(options: RowOptions) -> None:
    if options.names is not None:
        raise UsageError("rows of CSV hold no names of labels", remedy="choose jsonl or parquet")
