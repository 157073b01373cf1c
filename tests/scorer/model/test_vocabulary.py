"""Names of labels from the files that people have."""

from __future__ import annotations

from pathlib import Path

import pytest

from scorer.errors import InputError
from scorer.model.vocabulary import read_vocabulary

HEADER = "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl\n"
OFFICIAL = Path(__file__).parents[4] / "shared" / "data" / "vocabulary.csv"


def test_names_stand_by_index_and_empty_ones_are_the_knowledge_graphs(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text(HEADER + '2,9,/m/2,"Name, 2",\n1,9,/m/1,"Two\nlines",\n0,9,/m/zero,,\n')
    assert read_vocabulary(tmp_path / "v.csv", 3) == ["/m/zero", "Two\nlines", "Name, 2"]


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfIndex,KnowledgeGraphId,Name\r\n0,/m/0,Game\r\n1,/m/1,\r\n",
        b"label_id,label_name\n0,Game\n1,/m/1\n",
        b"Index,Name\n0,Game\n1,/m/1\n",
        b" index , NAME\n1,/m/1\n0,Game\n",
    ],
    ids=["byte-order mark", "label_names.csv of 2017", "plain", "in other letters"],
)
def test_forms_of_vocabularies(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_bytes(content)
    assert read_vocabulary(tmp_path / "v.csv") == ["Game", "/m/1"]


def test_a_label_without_any_name_is_its_number(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("Index,Name\n0,Game\n1,\n")
    assert read_vocabulary(tmp_path / "v.csv") == ["Game", "1"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no columns Index and Name"),
        ("a,b\n1,2\n", "no columns Index and Name"),
        (HEADER, "names no label"),
        (HEADER + "x,1,/m/1,One,\n", "invalid literal"),
        (HEADER + "0\n", "the model has 2"),
        (HEADER + "0,1,/m/1,One,\n5,1,/m/1,One,\n", "no label 1 among 2"),
        (HEADER + "0,1,/m/1,One,\n0,1,/m/1,One,\n", "no label 1 among 2"),
        (HEADER + "0,1,/m/1,One,\n", "1 labels, the model has 2"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text(content)
    with pytest.raises(InputError, match=rf"v\.csv: .*{reason}"):
        read_vocabulary(tmp_path / "v.csv", 2)


def test_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("Index,Name\n0,Game\n", encoding="utf-16")
    with pytest.raises(InputError, match="not a vocabulary"):
        read_vocabulary(tmp_path / "v.csv")


def test_no_such_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_vocabulary(tmp_path / "v.csv", 1)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="../shared/data/vocabulary.csv is not here")
def test_the_official_vocabulary() -> None:
    names = read_vocabulary(OFFICIAL, 3862)
    assert names[:2] == ["Game", "Video game"]
    assert sum(name.startswith(("/m/", "/g/")) for name in names) == 56
