"""This project's reader; both CRCs checked."""

from decoding import BATCH, WIDTHS, arguments, measure


def one_pass(shards):
    from scorer.inputs.batching import batches
    from scorer.inputs.discover import find_shards
    from scorer.inputs.records import Schema

    count = 0
    for batch in batches(find_shards(shards), Schema(WIDTHS), BATCH):
        count += len(batch)
        batch.release()
    return count


if __name__ == "__main__":
    measure(arguments(), one_pass)
