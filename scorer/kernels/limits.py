"""What both sets of loops count on. native.c repeats these, and is not used where it was compiled with others."""

from __future__ import annotations

MAX_INPUTS = 64
"""Features of a record that the compiled loop decodes; a model with more inputs is served by NumPy."""
MAX_FILES = 64
"""That are decoded in one call."""
MAX_ID_BYTES = 1024
"""Of a record's id, as scorer.inputs.example has it."""
MAX_LABEL_BYTES = 1 << 16
"""Of a record's packed labels; one with more is left to protobuf."""
KEYED_ID_BYTES = 64
"""The bytes of an id that its key is made of; whoever calls makes the keys of longer ones."""
MAP_DEPTH = 10
"""How many of a video's predictions MAP looks at."""
MOST_APART = 1
"""Frames that the lists of one record may differ by in number: real ones do."""
BIN_SHIFT = 13
"""Of a score's 23 bits of fraction the metrics' bins keep ten."""
HALF_BINS = 0x3F000000 >> BIN_SHIFT
"""The bin of 0.5, which is 0x3F000000 as a float32."""
BINS = 2 * HALF_BINS + 2
"""Bins of scores in [0, 1]: below 0.5 by the leading bits of p, from there on by those of 1 - p."""
