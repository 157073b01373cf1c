"""One word for each thing, and present-day English: retired words do not come back.

PROSE is looked for in every text of the tree, across the ends of lines, and in the names that code defines: variables,
arguments, functions, classes, modules; of C every identifier. NAMES and WHOLE_NAMES are looked for in these names,
NAMES part by part (`_SetAside` is `set_aside`).

Some retired names are plain English too, or the right name of something else, and are not looked for:

- begun: a key of the journal, which stays as it is on disk. say, turn, window, together, odd: English.
- kept: what a sink keeps beside the rows. spread: of figures over seeds (benchmarks/runs.py).
- taught: the videos that a teacher learns from. joined: bytes that are; a group of processes (train/distributed.py).
- growing, mark, stamp, places, filled, answer: English, but no names of classes.
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
    r"crews?|lanes?": "threads, execution slots",
    r"gist": "first line",
    r"leftovers?": "resume policy, partial shard",
    r"packers?": "batcher",
    r"quicken(s|ed|ing)?": "optimize_for_cpu, speed up",
    r"soften(s|ed|ing)?": "compute soft labels",
    r"unfit": "invalid",
    r"(an hour|two hours|hours) before|earlier code|before that, on": "nothing: history is the changelog's",
    r"Akopyan|Khashba|1706\.04488": "the models' source is in NOTICE",
}

# retired names -> the term; lower-case ones are looked for in every part of a name
NAMES = {
    "aside": "quarantined",
    "company": "label_correlation",
    "filler": "native_decoder",
    "halve": "to_fp16",
    "mend": "fix, fall_back",
    "relevance": "average_gradient_outer_product",
}
# whole names, as they were
WHOLE_NAMES = {
    "Answer": "Chunk",
    "Answers": "Predictor, PredictionStream",
    "Filled": "NativeDecoder",
    "Growing": "AppendFile",
    "Joined": "PackedStrings",
    "Mark": "Extent",
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
    ("tests/scorer/job/store_crash.py", "Tally"): "counts what became of the kills",
}

NOT_TEXT = (".png", ".onnx", ".npz", ".tfrecord")
NOT_OURS = ("LICENSE", "tests/test_words.py", "tests/fuzz/corpus/")

# what may stand for a space within a phrase: the end of a line, and what begins the next in a comment, list or table
GAP = r"(?:[ \t]|[ \t]*\n[ \t#*/>|-]*)"


def files() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no git checkout, so what belongs to it is not known")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    found = [name for name in names if name and not name.startswith(NOT_OURS)]
    return [name for name in found if not name.endswith(NOT_TEXT) and (ROOT / name).is_file()]


def texts() -> Iterator[tuple[str, str]]:
    for name in files():
        yield name, (ROOT / name).read_text(encoding="utf-8")


def phrases(word: str, text: str) -> Iterator[tuple[int, str]]:
    """Where `word` of PROSE stands in `text`: the line that it begins in, and how it reads."""
    for found in re.finditer(rf"\b({word.replace(' ', GAP)})\b", text, re.IGNORECASE):
        yield text.count("\n", 0, found.start()) + 1, found[0]


def c_names(source: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(source.splitlines(), 1):
        yield from ((number, name) for name in re.findall(r"[A-Za-z_]\w*", line))


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


def test_phrases_are_found_across_lines_and_in_c() -> None:
    word = next(word for word in PROSE if "aside" in word)
    assert [*phrases(word, "a\n# is set\n    # it aside")] == [(2, "set\n    # it aside")]
    assert [*phrases(word, "- sets\n  aside")] == [(1, "sets\n  aside")]
    assert [*phrases(word, "set. It is aside")] == []
    assert [(line, retired(name)) for line, name in c_names("int a;\nint most_lanes;") if retired(name)] == [
        (2, {"crews?|lanes?"})
    ]


def test_retired_words_do_not_come_back() -> None:
    wrong = [
        f"{name}:{number}: {found!r}; write {instead}"
        for name, text in texts()
        for word, instead in PROSE.items()
        for number, found in phrases(word, text)
        if (name, word) not in ALLOWED
    ]
    assert not wrong, "\n".join(["retired words:", *wrong])


def test_retired_names_do_not_come_back() -> None:
    instead, wrong = PROSE | NAMES | WHOLE_NAMES, []
    for name, text in texts():
        if name.endswith(".py"):
            names = [(0, Path(name).stem), *names_in(text)]
        else:
            names = [*c_names(text)] if name.endswith((".c", ".h")) else []
        for line, identifier in names:
            for word in retired(identifier):
                if (name, word) not in ALLOWED:
                    wrong.append(f"{name}:{line}: {identifier}; write {instead[word]}")
    assert not wrong, "\n".join(["retired names:", *wrong])


def test_no_two_classes_share_a_name() -> None:
    """A reader who looks a class up finds one, in tests and benchmarks too."""
    found: dict[str, list[str]] = {}
    for name, text in texts():
        for node in ast.parse(text).body if name.endswith(".py") else []:
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(f"{name}:{node.lineno}")
    assert len(found) > 200
    assert not {name: places for name, places in found.items() if len(places) > 1}


def test_every_exception_is_needed() -> None:
    """An exception of which nothing is left goes."""
    found = dict(texts())
    needless = [
        (name, word) for name, word in ALLOWED if not re.search(rf"({word})", found.get(name, ""), re.IGNORECASE)
    ]
    assert not needless
