"""Vocabularies and lists of shards."""

from __future__ import annotations

from pathlib import Path
from random import Random

from scorer.inputs.lists import expand_lists
from scorer.model.vocabulary import read_vocabulary
from tests.fuzz.readers.harness import FuzzedReader
from tests.fuzz.readers.mutations import NUMBERS, TEXTS, changed_bytes

_VOCABULARY = (
    b'Index,TrainVideoCount,KnowledgeGraphId,Name\n0,788288,/m/03bt1gh,Game\n1,5,/m/x,"Video, game"\n2,1,/m/y,\n'
)
_LABELS = 3


def make_vocabulary(folder: Path) -> FuzzedReader:
    path = folder / "vocabulary.csv"

    def make(random: Random) -> bytes:
        if random.random() < 0.5:
            return changed_bytes(random, _VOCABULARY)
        lines = _VOCABULARY.splitlines()
        row = random.randrange(len(lines))
        cells: list[bytes] = lines[row].split(b",")
        text = random.choice((*TEXTS, "१", "1_0", " 1 ", "9" * 5000, *map(str, NUMBERS)))
        cells[random.randrange(len(cells))] = text.encode("utf-8", "surrogatepass")
        lines[row] = b",".join(cells)
        return random.choice((b"\n", b"\r\n", b"\r")).join(lines * random.choice((1, 1, 200)))

    def read(data: bytes) -> None:
        path.write_bytes(data)
        names = read_vocabulary(path, _LABELS)
        assert len(names) == _LABELS
        "".join(names).encode()  # what cannot be written

    return FuzzedReader(make, read, 32)


def make_list(folder: Path) -> FuzzedReader:
    path = folder / "list.txt"
    originals = [b"a.tfrecord\nb c.tfrecord\n\n@x\r\n", b"a\0b\nc\0", "é\n".encode(), b"a\n" * 50_000]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        names = list(expand_lists([f"@{path}", "other"]))
        assert names[-1] == "other"
        assert all(names)

    return FuzzedReader(lambda random: changed_bytes(random, random.choice(originals), originals), read, 32)
