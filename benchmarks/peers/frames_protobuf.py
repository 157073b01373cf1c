"""protobuf's own parser of SequenceExamples, NumPy's sums; both CRCs checked."""

import numpy as np
from decode_protobuf import records
from decoding import arguments, measure


def one_pass(shards):
    from scorer.inputs.protobuf import message_type

    count = 0
    for shard in shards:
        for payload in records(shard):
            example = message_type("SequenceExample").FromString(payload)
            features = example.context.feature
            features["id"].bytes_list.value[0], list(features["labels"].int64_list.value)
            for name in ("rgb", "audio"):
                frames = example.feature_lists.feature_list[name].feature
                joined = b"".join(frame.bytes_list.value[0] for frame in frames)
                sums = np.frombuffer(joined, np.uint8).reshape(len(frames), -1).sum(axis=0, dtype=np.uint32)
                (sums * (4 / 255) / len(frames) + 4 / 512 - 2).astype(np.float32)
            count += 1
    return count


if __name__ == "__main__":
    measure(arguments(), one_pass)
