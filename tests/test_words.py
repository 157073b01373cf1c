"""One word for each thing, and present-day English: retired words do not come back.

PROSE is looked for in every text of the tree, and in the names that Python code defines: variables, arguments,
functions, classes, modules. NAMES and WHOLE_NAMES are looked for in these names alone, NAMES part by part (`_SetAside`
is `set_aside`).

Some retired names are plain English too, or the right name of something else, and are not looked for:

- begun: a key of the journal, which stays as it is on disk. leftovers, say, turn, window, together, odd: English.
- kept: what a sink keeps beside the rows. spread: of figures over seeds (benchmarks/runs.py).
- fingerprint: of videos (train/data.py); a model file is hashed.
- hits: predictions that are true, and the name on disk of the file of metric records.
- notes: of a predictor alone, what a user should know about a run. tally: counts of a test (tests/fuzz, crash.py).
- fill: of a batch, in `Batcher`, and of a part file, in train/files.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# retired words in prose, messages and comments -> what to write
PROSE = {
    r"set(s|ting)? (\w+ ){0,2}aside": "quarantined, quarantines",
    r"(go|goes|going|went|gone) on( with)?": "resume, continue, proceed",
    r"mend(s|ed|ing)?": "fix",
    r"but for": "except, apart from",
    r"in company|labels' company": "in a batch with others; label correlation",
    r"anew": "again, from the start",
    r"(an hour|two hours|hours) before|earlier code|before that, on": "nothing: history is the changelog's",
    r"Akopyan|Khashba|1706\.04488": "the models' source is in NOTICE",
}

# retired names -> the term; lower-case ones are looked for in every part of a name
NAMES = {
    "aside": "quarantined",
    "company": "label_correlation",
    "crew": "threads",
    "filler": "native_decoder",
    "gist": "first_line",
    "halve": "to_fp16",
    "lane": "slot",
    "lanes": "slots",
    "leftovers": "resume_policy",
    "mend": "fix, fall_back",
    "packer": "batcher",
    "quicken": "optimize_for_cpu",
    "relevance": "average_gradient_outer_product",
    "soften": "compute_soft_labels",
    "unfit": "invalid",
}
# whole names, as they were
WHOLE_NAMES = {
    "Answer": "Chunk",
    "Answers": "Predictor, PredictionStream",
    "Filled": "NativeDecoder",
    "Growing": "AppendFile",
    "Joined": "PackedStrings",
    "Mark": "Checkpoint",
    "Places": "OutputPaths, FieldOffsets",
    "Stamp": "FileStat",
    "Tally": "duplicate counting",
    "_TAUGHT": "distillation recipe",
    "_tell": "print_stderr",
    "tell": "print_stderr",
}

# (file, word): why it may stand there
ALLOWED = {
    ("samples/generate.py", "company"): "labels that stand together, in a script that makes the samples",
    ("scorer/outputs/parquet.py", "tell"): "the name that a file's method has",
    ("tests/scorer/job/crash.py", "Tally"): "counts what became of the kills",
    ("tests/scorer/job/cluster_crash.py", "Tally"): "counts what became of the kills",
    ("tests/scorer/job/store_crash.py", "Tally"): "counts what became of the kills",
}

NOT_TEXT = (".png", ".onnx", ".npz", ".tfrecord")
NOT_OURS = ("LICENSE", "tests/test_words.py", "CHANGELOG.md", "tests/fuzz/corpus/")


def files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no git checkout, so what belongs to it is not known")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    found = [name for name in names if name and not name.startswith(NOT_OURS)]
    return [name for name in found if not name.endswith(NOT_TEXT) and (ROOT / name).is_file()]


def names_in(source: str) -> Iterator[tuple[int, str]]:
    """Every name that Python code gives to something, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.ImportFrom | ast.Import):
            yield from ((node.lineno, alias.asname or alias.name) for alias in node.names)


def parts(name: str) -> list[str]:
    """`_SetAside`, `set_aside` -> set, aside."""
    return re.findall(r"[a-z]+|[A-Z]+(?![a-z])", re.sub(r"([A-Z])(?=[a-z])", lambda m: " " + m[1].lower(), name))


def retired(name: str) -> set[str]:
    """The retired words in `name`."""
    words = [part.lower() for part in parts(name)]
    prose = {word for word in PROSE if re.search(rf"\b({word})\b", " ".join(words))}
    return prose | NAMES.keys() & {*words} | WHOLE_NAMES.keys() & {name}


def test_names_are_compared_part_by_part() -> None:
    assert parts("_SetAside") == parts("set_aside") == ["set", "aside"]
    assert parts("_MOST_LANES") == ["MOST", "LANES"]
    assert retired("test_it_goes_on_and_begins_anew") == {r"(go|goes|going|went|gone) on( with)?", "anew"}


def test_retired_words_do_not_come_back() -> None:
    wrong = []
    for name in files():
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            for word, instead in PROSE.items():
                found = re.search(rf"\b({word})\b", line, re.IGNORECASE)
                if found and (name, word) not in ALLOWED:
                    wrong.append(f"{name}:{number}: {found[0]!r}; write {instead}")
    assert not wrong, "\n".join(["retired words:", *wrong])


def test_retired_names_do_not_come_back() -> None:
    instead, wrong = PROSE | NAMES | WHOLE_NAMES, []
    for name in filter(lambda name: name.endswith(".py"), files()):
        for line, identifier in [(0, Path(name).stem), *names_in((ROOT / name).read_text(encoding="utf-8"))]:
            for word in retired(identifier):
                if (name, word) not in ALLOWED:
                    wrong.append(f"{name}:{line}: {identifier}; write {instead[word]}")
    assert not wrong, "\n".join(["retired names:", *wrong])


def test_every_exception_is_needed() -> None:
    """An exception of which nothing is left goes."""
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in files()}
    needless = [
        (name, word) for name, word in ALLOWED if not re.search(rf"({word})", texts.get(name, ""), re.IGNORECASE)
    ]
    assert not needless
