"""What to do about an error, in the words of `score`: which of its options helps where an error hints at one."""

from __future__ import annotations

from scorer.errors import Hint

READING = {Hint.ALLOW_EMPTY: "or use --allow-empty", Hint.COLUMNS: "or say which it is with --columns"}
"""Of all commands that read shards."""

SCORE = {
    **READING,
    Hint.SKIP: "or use --on-error skip",
    Hint.MORE_ERRORS: "or raise --max-errors",
    Hint.RESUME: "resume it with --resume",
    Hint.RESUME_LATER: "then resume with --resume",
    Hint.RESTART: "or start again with --restart",
    Hint.NO_RESUME: "leave --resume out",
    Hint.ON_CPU: "or use --device cpu",
    Hint.OTHER_MODEL: "or choose a model with --model",
    Hint.EMBEDDINGS: "as `yt8m export --embeddings` does",
    Hint.SMALLER_BATCH: "or use a smaller --batch-size or fewer --threads",
}
"""In the order of an error's hints they follow its remedy: see `Yt8mError.line`."""

INSPECT = {Hint.OTHER_MODEL: "or name a model"}

MERGE = {
    **{hint: SCORE[hint] for hint in (Hint.MORE_ERRORS, Hint.RESUME, Hint.RESUME_LATER, Hint.RESTART, Hint.NO_RESUME)},
    Hint.EMBEDDINGS: "with --embeddings",
}
