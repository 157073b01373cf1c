"""The `tfrecord` package's loader, batches stacked with NumPy, then ONNX Runtime."""

import numpy as np
from common import WIDTHS, arguments, report, score, session
from tfrecord.reader import tfrecord_loader

DESCRIPTION = {"id": "byte", **dict.fromkeys(WIDTHS, "float")}


def batches(shards, size):
    videos = []
    for shard in shards:
        for video in tfrecord_loader(shard, None, DESCRIPTION):
            videos.append(video)
            if len(videos) == size:
                yield stacked(videos)
                videos = []
    if videos:
        yield stacked(videos)


def stacked(videos):
    return [bytes(video["id"]) for video in videos], {
        name: np.stack([video[name] for video in videos]) for name in WIDTHS
    }


if __name__ == "__main__":
    options = arguments()
    model = session(options.model, options.threads)
    report(lambda: score(batches(options.shards, options.batch or 512), model, options.output))
