"""This project's reader; both CRCs checked."""

from decoding import BATCH, WIDTHS, arguments, measure


def one_pass(shards):
    from scorer.batches import batches
    from scorer.examples import Schema

    count = 0
    for batch in batches(shards, Schema(WIDTHS), BATCH):
        count += len(batch)
        batch.release()
    return count


if __name__ == "__main__":
    measure(arguments(), one_pass)
