"""Makes the sample shards: made-up videos in the real format, drawn from statistics of real ones.

    python -m samples.generate                          statistics.npz -> samples0000.tfrecord ...
    python -m samples.generate --fit SHARDS             real shards -> statistics.npz, then the same

statistics.npz here: `--fit '../shared/data/yt8m/validate00??.tfrecord' '../shared/data/yt8m/validate01[01]?.tfrecord'`.

`--fit` reads real YouTube-8M shards and keeps aggregates alone, never a record: for each of the most frequent labels
(at least 50 videos each) the mean of its videos' features and how often it meets each of the others, and for all videos
together the main directions in which features leave the mean of their labels. A sample is then

    labels   one by its frequency, the others by how often they meet those already there
    x        mean over its labels of their mean vectors + noise along the main directions + noise of each feature

The same seed gives the same bytes on every machine: numbers come from NumPy's frozen RandomState, sums are taken
elementwise in float64, and features are rounded, so that no BLAS and no last bit of a logarithm shows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.shards import bytes_feature, entry, example_of, float_feature, int64_feature, write_shard

HERE = Path(__file__).parent
STATISTICS = HERE / "statistics.npz"
SEED = 2018
SHARDS, VIDEOS = 3, 64
LOW, HIGH = -255 / 128, 257 / 128
"""The range of real features: dequantised from 8 bits."""
WIDTHS = {"mean_rgb": 1024, "mean_audio": 128}
ID_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@dataclass
class Statistics:
    """What is kept of real videos; K labels, R directions, W = 1152 features (rgb, then audio).

    labels: int (K,) label numbers. together: float (K, K) videos with both labels; the diagonal counts each label.
    counts: int (10,) how many videos have 1, 2, ... 10 labels.
    means: float (K, W) mean features by label. directions: float (R, W) of one standard deviation each.
    spread: float (W,) standard deviation that is left.
    """

    labels: NDArray
    together: NDArray
    counts: NDArray
    means: NDArray
    directions: NDArray
    spread: NDArray


# ---- fitting


def read(patterns: Sequence[str]) -> tuple[NDArray, NDArray, NDArray]:
    """Features float32 (N, 1152), label values int64 (M,) and splits int64 (N + 1,) of the shards that match."""
    from scorer.inputs.batching import batches
    from scorer.inputs.discover import find_shards
    from scorer.inputs.records import Schema

    features, values, splits = [], [], [np.zeros(1, np.int64)]
    for batch in batches(find_shards(patterns), Schema(WIDTHS), 1024):
        features.append(np.hstack([batch.features[name] for name in WIDTHS]))
        values.append(batch.label_values.copy())
        splits.append(batch.label_splits[1:] + splits[-1][-1])
        batch.release()
    return np.concatenate(features), np.concatenate(values), np.concatenate(splits)


def fit(patterns: Sequence[str], *, labels: int = 120, at_least: int = 50, directions: int = 48) -> Statistics:
    """Aggregate real shards. A count below 5 is dropped from `together`, so that no single video shows."""
    features, values, splits = read(patterns)
    frequency = np.bincount(values)
    chosen = np.sort(np.argsort(-frequency, kind="stable")[:labels])
    chosen = chosen[frequency[chosen] >= at_least]
    has = np.zeros((len(features), len(chosen)), np.float32)
    row, column = np.repeat(np.arange(len(features)), np.diff(splits)), np.searchsorted(chosen, values)
    column[column == len(chosen)] = 0
    known = chosen[column] == values
    has[row[known], column[known]] = 1
    features, has = features[has.any(1)], has[has.any(1)]
    means = has.T @ features / has.sum(0)[:, None]
    left = features - has @ means / has.sum(1)[:, None]
    main, each = _directions(left, directions)
    together = has.T @ has
    counts = np.bincount(np.diff(splits), minlength=11)[1:11]
    return Statistics(chosen, np.where(together < 5, 0, together), counts, means, main, each)


def _directions(left: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """The `count` main directions of residuals (N, W), and the standard deviation of what they do not explain."""
    variance, vectors = np.linalg.eigh(np.cov(left, rowvar=False))
    main = (vectors[:, -count:] * np.sqrt(variance[-count:])).T
    return main, np.sqrt(np.maximum(left.var(0) - (main**2).sum(0), 0))


def save(statistics: Statistics, path: Path = STATISTICS) -> None:
    """Write the statistics: integers as they are, vectors as int8 with one scale an array."""
    arrays: dict[str, NDArray] = {
        "labels": statistics.labels.astype(np.uint16),
        "together": statistics.together.astype(np.uint32),
        "counts": statistics.counts.astype(np.uint32),
    }
    for name in ("means", "directions", "spread"):
        values = getattr(statistics, name)
        scale = np.abs(values).max() / 127
        arrays[name] = np.round(values / scale).astype(np.int8)
        arrays[f"{name}_scale"] = np.array(scale)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def load(path: Path = STATISTICS) -> Statistics:
    with np.load(path) as file:
        vectors = [file[name].astype(float) * file[f"{name}_scale"] for name in ("means", "directions", "spread")]
        return Statistics(file["labels"].astype(int), file["together"].astype(float), file["counts"], *vectors)


# ---- sampling


def draw_labels(statistics: Statistics, random: np.random.RandomState) -> list[int]:
    """Rows of the statistics, not label numbers: one by its frequency, the others by the company it keeps."""
    share = statistics.counts / statistics.counts.sum()
    wanted = 1 + _pick(share, random)
    frequency = statistics.together.diagonal()
    chosen = [_pick(frequency, random)]
    while len(chosen) < wanted:
        company = np.ones(len(frequency))
        for label in chosen:
            company = company * statistics.together[label] / frequency[label]
        company[chosen] = 0
        if not company.any():
            break
        chosen.append(_pick(company, random))
    return sorted(chosen)


def _pick(weights: NDArray, random: np.random.RandomState) -> int:
    edges = np.cumsum(weights)
    return int(np.searchsorted(edges, random.random_sample() * edges[-1], side="right"))


def draw_features(statistics: Statistics, labels: Sequence[int], random: np.random.RandomState) -> NDArray[np.float32]:
    """Features float32 (1152,) of one video with these labels."""
    x = np.zeros(statistics.means.shape[1])
    for label in labels:
        x += statistics.means[label] / len(labels)
    for direction in statistics.directions:
        x += direction * random.standard_normal()
    x += statistics.spread * random.standard_normal(len(x))
    return (np.round(np.clip(x, LOW, HIGH) * 4096) / 4096).astype(np.float32)


def draw_id(random: np.random.RandomState, taken: set[str]) -> str:
    while (name := "".join(ID_LETTERS[i] for i in random.randint(0, len(ID_LETTERS), 4))) in taken:
        pass
    taken.add(name)
    return name


def records(statistics: Statistics, count: int, seed: int = SEED) -> Iterator[bytes]:
    """`count` serialised tf.Examples; the order of their features varies, as it does in real shards."""
    random, taken = np.random.RandomState(seed), set[str]()
    for _ in range(count):
        labels = draw_labels(statistics, random)
        x = draw_features(statistics, labels, random)
        entries = [
            entry("id", bytes_feature(draw_id(random, taken).encode())),
            entry("labels", int64_feature(statistics.labels[labels].tolist())),
            entry("mean_rgb", float_feature(x[: WIDTHS["mean_rgb"]])),
            entry("mean_audio", float_feature(x[WIDTHS["mean_rgb"] :])),
        ]
        yield example_of(entries[i] for i in random.permutation(len(entries)))


def generate(folder: Path) -> list[Path]:
    """Write the sample shards into `folder`; returns their paths."""
    made = list(records(load(), SHARDS * VIDEOS))
    paths = [folder / f"samples{shard:04d}.tfrecord" for shard in range(SHARDS)]
    for shard, path in enumerate(paths):
        write_shard(path, made[shard * VIDEOS : (shard + 1) * VIDEOS])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m samples.generate", description="Make the sample shards.")
    parser.add_argument("--fit", nargs="+", metavar="SHARDS", help="make statistics.npz from real shards first")
    parser.add_argument("-o", "--output", type=Path, default=HERE, help="folder of the shards (default: samples/)")
    arguments = parser.parse_args()
    if arguments.fit:
        save(fit(arguments.fit))
    for path in generate(arguments.output):
        print(path)


if __name__ == "__main__":
    main()
