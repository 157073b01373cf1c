"""What the peer programs share: each is what a competent user writes with that library, run by its own environment.

    PYTHON benchmarks/peers/run_NAME.py --model MODEL.onnx -o preds.csv [--batch N] [--threads N] SHARD...

The model obeys the contract (scores and labels come out of the graph), which spares every peer its own top-k.
Prints one line of JSON: videos, and seconds from the first byte read to the last byte written, so that neither
importing nor loading the model counts.
"""

import argparse
import json
import time

WIDTHS = {"mean_rgb": 1024, "mean_audio": 128}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("shards", nargs="+")
    return parser.parse_args()


def session(model, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def rows(ids, scores, labels):
    """The official form of `n` videos, as the data set's starter code writes it."""
    for name, some_scores, some_labels in zip(ids, scores, labels):
        pairs = " ".join(f"{label} {score:f}" for label, score in zip(some_labels, some_scores))
        yield f"{name.decode()},{pairs}\n"


def score(batches, model, output):
    """Score (ids, features) batches into a CSV file; returns the number of videos."""
    videos = 0
    with open(output, "w") as file:
        file.write("VideoId,LabelConfidencePairs\n")
        for ids, features in batches:
            scores, labels = model.run(["scores", "labels"], features)
            file.writelines(rows(ids, scores, labels))
            videos += len(ids)
    return videos


def report(work):
    """Run `work`, which returns a number of videos, and print what it took."""
    started = time.perf_counter()
    videos = work()
    print(json.dumps({"videos": videos, "seconds": time.perf_counter() - started}), flush=True)
