"""The ceiling: ONNX Runtime's session alone on batches that lie in memory, at the batch size that suits it best."""

import json
import time

import numpy as np
from common import WIDTHS, arguments, session

from scorer.inputs.batching import batches
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Schema

SIZES = (32, 64, 128, 256, 512, 1024, 2048)
VIDEOS = 8192


def held(shards):
    """Features of at most VIDEOS videos."""
    features, videos = {name: [] for name in WIDTHS}, 0
    for batch in batches(find_shards(shards), Schema(WIDTHS), 1024):
        for name in WIDTHS:
            features[name].append(batch.features[name].copy())
        videos += len(batch.ids)
        batch.release()
        if videos >= VIDEOS:
            break
    return {name: np.concatenate(parts)[:VIDEOS] for name, parts in features.items()}


def rate(model, features, size):
    """Videos/s in batches of `size`, the last one filled."""
    videos = len(features["mean_rgb"]) // size * size
    feeds = [{name: values[at : at + size] for name, values in features.items()} for at in range(0, videos, size)]
    model.run(["scores", "labels"], feeds[0])
    started = time.perf_counter()
    for feed in feeds:
        model.run(["scores", "labels"], feed)
    return videos / (time.perf_counter() - started)


if __name__ == "__main__":
    options = arguments()
    model, features = session(options.model, options.threads), held(options.shards)
    sizes = [size for size in SIZES if size <= len(features["mean_rgb"])] if options.batch is None else [options.batch]
    print(json.dumps({size: rate(model, features, size) for size in sizes}))
