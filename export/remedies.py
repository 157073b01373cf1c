"""What to do about an error, in the words of `export`: see scorer/cli/remedies.py."""

from __future__ import annotations

from scorer.cli.remedies import READING
from scorer.errors import Hint

EXPORT = {
    **READING,
    Hint.SKIP: "or leave the shard out",
    Hint.SMALLER_BATCH: "or give fewer shards to --check and --calibrate",
}
