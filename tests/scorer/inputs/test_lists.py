"""Names of shards out of lists."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scorer.errors import InputError, UsageError
from scorer.inputs import lists
from scorer.inputs.discover import find_shards


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c d", "@e"):
        Path(f"{name}.tfrecord").write_bytes(b"x")


@pytest.fixture
def standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def give(content: bytes) -> None:
        lists._standard_input.cache_clear()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    return give


def found(*names: str) -> list[str]:
    return [source.address for source in find_shards(names)]


@pytest.mark.parametrize(
    "content",
    [
        b"c d.tfrecord\na.tfrecord",
        b"c d.tfrecord\na.tfrecord\n",
        b"\nc d.tfrecord\r\n\r\na.tfrecord\r\n",
        b"c d.tfrecord\0a.tfrecord\0",
        b"c d.tfrecord\0a.tfrecord",
    ],
)
def test_a_list_has_a_name_a_line_or_before_each_nul(content: bytes) -> None:
    Path("list").write_bytes(content)
    assert found("@list") == ["c d.tfrecord", "a.tfrecord"]


def test_lists_mix_with_all_else_in_the_order_given(standard_input: Callable[[bytes], None]) -> None:
    Path("list").write_bytes(b"[cd]*.tfrecord\n@e.tfrecord\n")
    standard_input(b"b.tfrecord\n")
    for _ in range(2):  # a command may look twice, and standard input can be read once
        assert found("@list", "a.tfrecord", "@-") == ["c d.tfrecord", "@e.tfrecord", "a.tfrecord", "b.tfrecord"]


def test_a_file_whose_name_starts_like_a_lists(standard_input: Callable[[bytes], None]) -> None:
    assert found("./@e.tfrecord") == ["./@e.tfrecord"]


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\0"])
def test_a_list_without_names_is_an_error(content: bytes) -> None:
    Path("list").write_bytes(content)
    with pytest.raises(InputError, match="@list: no shard is named in it"):
        found("@list")


def test_a_list_that_cannot_be_read() -> None:
    Path("folder").mkdir()
    for name, says in (("@absent", "no such file"), ("@folder", "Is a directory"), ("@a\0b", "null")):
        with pytest.raises(InputError, match=says):
            found(name)


def test_what_a_list_names_is_checked_as_all_else() -> None:
    Path("list").write_bytes(b"a.tfrecord\nabsent.tfrecord\n")
    with pytest.raises(InputError, match=r"^absent\.tfrecord: no such file"):
        found("@list")
    Path("list").write_bytes(b"a.tfrecord\n./a.tfrecord\n")
    with pytest.raises(UsageError, match="are the same shard"):
        found("@list")
