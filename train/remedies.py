"""What to do about an error, in the words of `train`: which of its options helps where an error hints at one."""

from __future__ import annotations

from scorer.cli.remedies import READING
from scorer.errors import Hint

TRAIN = {
    **READING,
    Hint.SKIP: "or leave the shard out",
    Hint.FEATURES: "or name the features and widths that it has with --inputs",
    Hint.RESUME: "resume it with --resume and the same settings",
    Hint.RESTART: "or start again with --restart",
    Hint.SMALLER_BATCH: "or use a smaller batch, e.g. --set batch=1024, or a smaller model",
    Hint.ON_DISK: "keep them on a disk with --cache DIR",
    Hint.LOWER_RATE: "train with a lower rate, e.g. --set lr=0.0003",
    Hint.MORE_LABELS: "with --set labels=N",
    Hint.OTHER_DEVICE: "use --device auto",
    Hint.SAME_VIDEOS: "give the same --data and --valid",
    Hint.VALIDATION: "name shards with --valid",
    Hint.OWN_LABELS: "train without soft labels, --set soft=false",
}
"""In the order of an error's hints they follow its remedy: see `Yt8mError.line`."""
