"""This project's reader; both CRCs checked."""

from functools import cache

from decoding import BATCH, WIDTHS, arguments, measure


def one_pass(shards):
    from scorer.inputs.batching import batches
    from scorer.inputs.records import Schema

    count = 0
    for batch in batches(found(tuple(shards)), Schema(WIDTHS), BATCH):
        count += len(batch)
        batch.release()
    return count


@cache
def found(shards):
    """Once, as a command does."""
    from scorer.inputs.discover import find_shards

    return find_shards(shards)


if __name__ == "__main__":
    measure(arguments(), one_pass)
