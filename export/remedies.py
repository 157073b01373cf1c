"""What to do about an error, in the words of `export`: see scorer/cli/remedies.py."""

from __future__ import annotations

from scorer.errors import Hint

EXPORT = {
    Hint.ALLOW_EMPTY: "or use --allow-empty",
    Hint.SKIP: "or leave the shard out",
    Hint.COLUMNS: "or say which it is with --columns",
    Hint.SMALLER_BATCH: "or give fewer shards to --check and --calibrate",
}
