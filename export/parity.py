"""Gates: an exported file answers as its checkpoint does, through the session that will serve it, or it is not kept.

    check_parity        fp32: the same probabilities, to 1e-5, in batches of several sizes
    check_quality       int8, fp16: nearly the same top labels and metrics, on labelled videos; of fp16 also as a GPU
                        computes it (export/emulate.py)
    check_independence  any: a video's answer does not depend on its neighbours in a batch
    check_embeddings    any that gives them: PyTorch's, to rounding in fp32, in direction else

Each collects every failure before it raises GateError, and otherwise returns a report for the file's metadata.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.videos import Features, VideoSample
from scorer.errors import GateError
from scorer.evaluation.metrics import exact_metrics
from scorer.model.predictor import ModelFacts, Predictions
from scorer.system.phases import At, nobody, portion

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Report = dict[str, Any]
Reference = Callable[[Features], Floats]

BATCHES = (1, 2, 3, 17, 256)
BOUND = 1e-5
"""Largest difference of a probability from PyTorch's in fp32, and of a video's score from batch to batch."""
HALF_BOUND = 2e-3
"""The latter in fp16, whose sums round otherwise in other shapes: about two units of its last place near 1."""
TOP = 10
MAP_DROP, GAP_DROP, OVERLAP = 0.002, 0.003, 0.97
LABELLED = 2000
"""Videos with labels that the quality gate needs."""
EMBEDDING_BOUND = 1e-5
"""Largest difference of an embedding from PyTorch's in fp32, as a share of their largest value."""
COSINE = {"fp16": 0.9999, "int8": 0.98}
"""Least cosine of an embedding with PyTorch's, in the mean over videos."""
ALONE, SHUFFLED, LARGE = 64, 17, 1024


class Runs(Protocol):
    """What is asked of a model whose quality is checked."""

    def run(self, features: Features, k: int = TOP) -> Predictions: ...


class Embeds(Protocol):
    """What is asked of a model whose embeddings are checked."""

    def embed(self, features: Features, k: int = TOP) -> tuple[Predictions, Floats]: ...


class Checked(Runs, Protocol):
    """A whole file, opened."""

    @property
    def facts(self) -> ModelFacts: ...


def torch_reference(model: nn.Module, inputs: Mapping[str, int]) -> Reference:
    """PyTorch's probabilities (n, labels) for features (n, width) each."""

    def probabilities(features: Features) -> Floats:
        with torch.inference_mode():
            found: Floats = torch.sigmoid(model(*(torch.from_numpy(features[name]) for name in inputs))).numpy()
        return found

    return probabilities


def torch_embeddings(model: nn.Module, inputs: Mapping[str, int]) -> Reference:
    """What the network's `classify`, the Dense that gives the logits, reads of n videos: (n, width)."""

    def embeddings(features: Features) -> Floats:
        read: list[Floats] = []
        hook = model.get_submodule("classify").register_forward_pre_hook(lambda _, x: read.append(x[0].numpy()))
        try:
            with torch.inference_mode():
                model(*(torch.from_numpy(features[name]) for name in inputs))
        finally:
            hook.remove()
        return read[0]

    return embeddings


def expected_of(reference: Reference, videos: VideoSample, at: At = nobody) -> Floats:
    """The reference's probabilities (n, labels) of all videos, 1,024 at a time."""
    parts = []
    for rows in _cut(len(videos), LARGE, at):
        parts.append(reference(videos.rows(rows)))
    return np.concatenate(parts)


def _cut(count: int, size: int, at: At) -> Iterator[slice]:
    """The rows of each batch of `size`; `at` is told when one is done."""
    for start in range(0, count, size):
        yield slice(start, start + size)
        at(min(1.0, (start + size) / count))


def check_parity(
    model: Checked, reference: Reference, inputs: Mapping[str, int], videos: VideoSample, at: At = nobody
) -> Report:
    """Compare signature and all probabilities with PyTorch's, in batches of 1, 2, 3, 17 and 256 videos.

    Raises GateError naming every way in which they differ: a probability by more than 1e-5, or a top-10 that is not
    PyTorch's except for labels within that bound of its tenth.
    """
    failures = _signature(model, inputs)
    worst = 0.0
    for rows in _slices(len(videos)) if not failures else ():
        features = videos.rows(rows)
        expected = reference(features)
        found, labels = _full(model, features)
        difference = float(np.abs(found - expected).max())
        worst = max(worst, difference) if difference == difference else math.inf
        failures += _differences(len(rows), expected, found, labels[:, :TOP])
        at(len(rows) / max(BATCHES))
    if failures:
        raise GateError(f"not the checkpoint's answers: {'; '.join(failures)}", remedy="no model was written")
    return {"batches": list(BATCHES), "videos": videos.source, "max_difference": _rounded(worst), "bound": BOUND}


def _signature(model: Checked, inputs: Mapping[str, int]) -> list[str]:
    if model.facts.inputs != dict(inputs):
        return [f"inputs {model.facts.inputs}, not {dict(inputs)}"]
    return []


def _slices(count: int) -> Iterator[Ints]:
    """The rows of each batch: one after the other, starting again where the videos run out."""
    start = 0
    for size in BATCHES:
        yield np.arange(start, start + size) % count
        start += size


def _full(model: Checked, features: Features) -> tuple[Floats, Ints]:
    """Probabilities (n, labels) in the order of the labels, and all labels, best first."""
    scores, labels = model.run(features, k=model.facts.labels)
    probabilities = np.full_like(scores, np.nan)
    np.put_along_axis(probabilities, labels, scores, axis=1)
    return probabilities, labels


def _differences(size: int, expected: Floats, found: Floats, top: Ints) -> list[str]:
    failures = []
    wrong = ~(np.abs(found - expected) <= BOUND)
    if wrong.any():
        row, label = (int(i) for i in np.argwhere(wrong)[0])
        worst = float(np.abs(found - expected)[wrong].max())
        failures.append(
            f"batch of {size}: {int(wrong.sum())} probabilities are off by up to {worst:.2g}, "
            f"video {row}'s label {label} first"
        )
    tenth = -np.partition(-expected, min(TOP, expected.shape[1]) - 1, axis=1)[:, [min(TOP, expected.shape[1]) - 1]]
    outside = np.take_along_axis(expected, top, axis=1) < tenth - BOUND
    if outside.any():
        failures.append(f"batch of {size}: {int(outside.any(axis=1).sum())} videos have another top-{TOP}")
    return failures


def check_quality(model: Runs, expected: Floats, videos: VideoSample, at: At = nobody) -> Report:
    """Compare top-10 sets and metrics with those of the checkpoint, whose probabilities are `expected` (n, labels).

    With 2,000 labelled videos or more: MAP@10 at most 0.002 lower, GAP@20 at most 0.003, at least 97% of the top-10
    the same. With fewer the overlap alone is asked for, and the report says that quality was not measured.

    Raises GateError naming every bound that does not hold, or whose scores are not finite: NaN has an order like any
    other number, so two models that give nothing else would agree.
    """
    depth = min(2 * TOP, expected.shape[1])
    order = np.argsort(-expected, axis=1, kind="stable")[:, :depth]
    best = np.take_along_axis(expected, order, axis=1)
    scores, labels = in_batches(model, videos.features, LARGE, depth, at)
    _check_finite(expected, scores)
    overlap = _overlap(order[:, :TOP], labels[:, :TOP])
    report: Report = {"videos": videos.source, "overlap": round(overlap, 5), "quality": "not measured"}
    failures = [] if overlap >= OVERLAP else [f"{overlap:.2%} of the top-{TOP} are the same, not {OVERLAP:.0%}"]
    if videos.labelled >= LABELLED:
        before = exact_metrics(order, best, videos.label_values, videos.label_splits)
        after = exact_metrics(labels, scores, videos.label_values, videos.label_splits)
        report["quality"] = {name: [round(before[name], 6), round(after[name], 6)] for name in before}
        for name, bound in ((f"MAP@{min(TOP, depth)}", MAP_DROP), (f"GAP@{depth}", GAP_DROP)):
            if not before[name] - after[name] <= bound:
                failures.append(f"{name} falls from {before[name]:.4f} to {after[name]:.4f}, by more than {bound}")
    if failures:
        raise GateError(f"too far from the checkpoint: {'; '.join(failures)}", remedy="no model was written")
    return report


def _check_finite(expected: Floats, scores: Floats) -> None:
    wrong = [
        f"{int((~np.isfinite(values)).sum()):,} of {whose} scores are not finite"
        for whose, values in (("the checkpoint's", expected), ("the file's", scores))
        if not np.isfinite(values).all()
    ]
    if wrong:
        raise GateError("; ".join(wrong), remedy="no model was written")


def _overlap(first: Ints, second: Ints) -> float:
    """Mean share of each row's labels that the other's row has too."""
    return float((first[:, :, None] == second[:, None, :]).any(axis=2).mean())


def check_independence(model: Checked, videos: VideoSample, bound: float = BOUND, at: At = nobody) -> Report:
    """Score the same videos in order by 1,024, shuffled by 1,024 and by 17, and alone; compare.

    Raises GateError where a score differs by more than `bound`, or a label except for such a tie.
    """
    rows = np.arange(LARGE) % len(videos)
    shuffled = np.random.default_rng(0).permutation(LARGE)
    k = min(TOP, model.facts.labels)
    expected = in_batches(model, videos.rows(rows), LARGE, k, portion(at, 0.0, 0.4))
    failures, same = [], True
    for size, chosen in ((LARGE, shuffled), (SHUFFLED, shuffled[: 16 * SHUFFLED]), (1, shuffled[:ALONE])):
        found = in_batches(model, videos.rows(rows[chosen]), size, k)
        scores, labels = expected[0][chosen], expected[1][chosen]
        same &= bool(np.array_equal(scores, found[0]) and np.array_equal(labels, found[1]))
        at(0.8)
        failures += _differing(size, bound, (scores, labels), found)
    if failures:
        raise GateError(f"answers change with the batch: {'; '.join(failures)}", remedy="no model was written")
    return {"alone": ALONE, "batches": [SHUFFLED, LARGE], "same_bits": same, "bound": bound}


def _differing(size: int, bound: float, expected: tuple[Floats, Ints], found: tuple[Floats, Ints]) -> list[str]:
    differences = np.abs(expected[0] - found[0])
    difference = float(differences.max())
    moved = (expected[1] != found[1]) & ~(differences <= bound)
    if difference <= bound and not moved.any():
        return []
    return [f"in batches of {size} a score differs by {difference:.2g} and {int(moved.sum())} labels change"]


def in_batches(model: Runs, features: Features, size: int, k: int, at: At = nobody) -> tuple[Floats, Ints]:
    """Scores and labels (n, k) of n videos, `size` at a time."""
    count = len(next(iter(features.values())))
    parts = []
    for rows in _cut(count, size, at):
        parts.append(model.run({name: values[rows] for name, values in features.items()}, k))
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([labels for _, labels in parts])


def check_embeddings(
    model: Embeds, reference: Reference, videos: VideoSample, precision: str, at: At = nobody
) -> Report:
    """Compare embeddings with PyTorch's, in batches of 1, 2, 3, 17 and 256 videos.

    In fp32 no value may differ by more than 1e-5 of the largest one. int8 and fp16 round what the last layer reads, and
    the ones before it: there the mean cosine of the two is asked for, since it is by direction that embeddings are
    compared.

    Raises GateError.
    """
    pairs = [(model.embed(some)[1], reference(some)) for some in map(videos.rows, _slices(len(videos)))]
    at(1.0)
    for found, expected in pairs:
        if found.shape != expected.shape:
            raise GateError(f"embeddings are {found.shape}, not {expected.shape}", remedy="no model was written")
    found, expected = (np.concatenate(some) for some in zip(*pairs, strict=True))
    share = float(np.abs(found - expected).max() / (np.abs(expected).max() or 1.0))
    cosine = _cosine(found, expected)
    if precision == "fp32" and not share <= EMBEDDING_BOUND:
        reason = f"embeddings are off by up to {share:.2g} of their largest value, not {EMBEDDING_BOUND}"
        raise GateError(reason, remedy="no model was written")
    if precision != "fp32" and not cosine >= COSINE[precision]:
        reason = f"embeddings have a cosine of {cosine:.4f} with the checkpoint's, not {COSINE[precision]}"
        raise GateError(reason, remedy="no model was written")
    width = found.shape[1]
    if precision == "fp32":
        return {"width": width, "max_difference": _rounded(share), "bound": EMBEDDING_BOUND}
    return {"width": width, "cosine": round(cosine, 4), "bound": COSINE[precision]}


def _cosine(one: Floats, other: Floats) -> float:
    """The mean over rows; 1 for two that are zero."""
    products = np.sum(one * other, axis=1, dtype=np.float64)
    norms = np.sqrt(np.sum(one * one, axis=1, dtype=np.float64) * np.sum(other * other, axis=1, dtype=np.float64))
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    return float(np.where(both_zero, 1.0, products / np.maximum(norms, 1e-30)).mean())


def _rounded(value: float) -> float:
    """Up to one significant digit, so that the last bits of another kernel do not change the file."""
    if value == 0:
        return 0.0
    digit = 10.0 ** math.floor(math.log10(value))
    return float(f"{math.ceil(value / digit) * digit:.0e}")
