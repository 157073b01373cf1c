"""What the decoding programs share: one core, a pass to warm the page cache, then timed passes over all shards.

    PYTHON benchmarks/peers/decode_NAME.py --core N --passes N SHARD...

Prints one line of JSON: records in a pass, and seconds of each timed pass. Import this before anything that counts
cores when it is imported.
"""

import argparse
import json
import os
import time

WIDTHS = {"mean_rgb": 1024, "mean_audio": 128}
BATCH = 1024


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("shards", nargs="+")
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    return options


def measure(options, one_pass):
    """`one_pass(shards)` makes arrays of all records and returns how many there were."""
    records = one_pass(options.shards)
    seconds = []
    for _ in range(options.passes):
        began = time.perf_counter()
        assert one_pass(options.shards) == records
        seconds.append(time.perf_counter() - began)
    print(json.dumps({"records": records, "seconds": seconds}), flush=True)
