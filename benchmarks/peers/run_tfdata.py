"""TensorFlow's tf.data: TFRecordDataset, a vectorised parse_example, prefetching; then ONNX Runtime."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from common import WIDTHS, arguments, report, score, session

FEATURES = {
    "id": tf.io.FixedLenFeature([], tf.string),
    **{name: tf.io.FixedLenFeature([width], tf.float32) for name, width in WIDTHS.items()},
}


def batches(shards, size):
    parsed = tf.data.TFRecordDataset(shards).batch(size).map(lambda batch: tf.io.parse_example(batch, FEATURES))
    for batch in parsed.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        yield batch["id"], {name: batch[name] for name in WIDTHS}


if __name__ == "__main__":
    options = arguments()
    model = session(options.model, options.threads)
    report(lambda: score(batches(options.shards, options.batch or 512), model, options.output))
