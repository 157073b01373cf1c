"""The `tfrecord` package's loader, without its check of CRCs, which it has not; records stacked to batches."""

import numpy as np
from decoding import BATCH, WIDTHS, arguments, measure

KINDS = {"id": "byte", "labels": "int", **dict.fromkeys(WIDTHS, "float")}


def one_pass(shards):
    from tfrecord.reader import tfrecord_loader

    count, videos = 0, []
    for shard in shards:
        for video in tfrecord_loader(shard, None, KINDS):
            videos.append(video)
            if len(videos) == BATCH:
                count += stack(videos)
                videos = []
    return count + stack(videos) if videos else count


def stack(videos):
    arrays = [np.stack([video[name] for video in videos]) for name in WIDTHS]
    return len(arrays[0])


if __name__ == "__main__":
    measure(arguments(), one_pass)
