"""Apache Beam's in-process runner: ReadFromTFRecord, protobuf parsing, RunInference with ONNX Runtime, WriteToText.

Rows come in no particular order, as Beam promises none; the pipeline's own start-up counts, as it is part of each run.
"""

import logging

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.options.pipeline_options import PipelineOptions
from common import WIDTHS, arguments, report, rows, session
from tfrecord import example_pb2


class Handler(ModelHandler):
    """Two inputs, which Beam's own ONNX handler does not take."""

    def __init__(self, path, threads, size):
        super().__init__(min_batch_size=size, max_batch_size=size)
        self.path, self.threads = path, threads

    def load_model(self):
        return session(self.path, self.threads)

    def run_inference(self, batch, model, inference_args=None):
        features = {name: np.stack([video[name] for _, video in batch]) for name in WIDTHS}
        scores, labels = model.run(["scores", "labels"], features)
        return list(rows([name for name, _ in batch], scores, labels))


def parse(record):
    feature = example_pb2.Example.FromString(record).features.feature
    video = {name: np.array(feature[name].float_list.value, np.float32) for name in WIDTHS}
    return feature["id"].bytes_list.value[0], video


def run(options):
    runner = PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"])
    with beam.Pipeline(options=runner) as pipeline:
        lines = (
            pipeline
            | beam.Create(options.shards)
            | beam.io.ReadAllFromTFRecord()
            | beam.Map(parse)
            | RunInference(Handler(options.model, options.threads, options.batch or 512))
            | beam.Map(str.rstrip)
        )
        lines | beam.io.WriteToText(options.output, shard_name_template="", header="VideoId,LabelConfidencePairs")
    with open(options.output) as file:
        return sum(1 for _ in file) - 1


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    options = arguments()
    report(lambda: run(options))
