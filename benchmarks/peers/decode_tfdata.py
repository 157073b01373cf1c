"""TensorFlow's tf.data: TFRecordDataset, which checks both CRCs, and a vectorised parse_example."""

import os

from decoding import BATCH, WIDTHS, arguments, measure

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def one_pass(shards):
    import tensorflow as tf

    features = {name: tf.io.FixedLenFeature([width], tf.float32) for name, width in WIDTHS.items()}
    features |= {"id": tf.io.FixedLenFeature([], tf.string), "labels": tf.io.VarLenFeature(tf.int64)}
    parsed = tf.data.TFRecordDataset(shards).batch(BATCH).map(lambda batch: tf.io.parse_example(batch, features))
    return sum(batch["id"].shape[0] for batch in parsed)


if __name__ == "__main__":
    measure(arguments(), one_pass)
