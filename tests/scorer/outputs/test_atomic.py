"""A file under its name is the old one or the whole new one, whoever else writes it or plants things beside it."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scorer.errors import OutputError
from scorer.outputs.atomic import new_folder, replace_bytes, replacing, writing

_HOLDER = """
import sys
from pathlib import Path
from scorer.outputs.atomic import replacing
with replacing(Path(sys.argv[1])) as part:
    part.write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that is in the midst of replacing `path`."""
    command = [sys.executable, "-c", _HOLDER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (b"old", b"new"):
        replace_bytes(path, data)
        assert path.read_bytes() == data
    assert names(tmp_path) == ["x"]


def test_an_error_in_the_body_leaves_the_old_one_and_is_not_said_to_be_about_writing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(path):
        (tmp_path / "something else").read_bytes()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["x"]


def test_a_body_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="x: cannot be written: No such file"), replacing(tmp_path / "x"):
        pass


def test_a_folder_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written: No such file"), replacing(tmp_path / "absent" / "x"):
        pass
    with pytest.raises(OutputError, match=r"a: cannot be written: it is full"), writing("a"):
        raise OSError("it is full")


def test_too_many_open_files_are_no_full_disk() -> None:
    with (
        pytest.raises(OutputError, match=r"a: .*: Too many open files; allow .*ulimit -n"),
        writing("a"),
    ):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_the_mode_of_the_old_file_stays(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    path.chmod(mode)
    replace_bytes(path, b"new")
    assert path.stat().st_mode & 0o7777 == mode


def test_a_new_file_may_be_read_as_the_umask_says(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        replace_bytes(tmp_path / "x", b"new")
        with new_folder(tmp_path / "folder") as part:
            (part / "file").write_bytes(b"1")
    finally:
        os.umask(umask)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / "x").symlink_to(precious)
    os.link(precious, tmp_path / "y")
    for name in "xy":
        replace_bytes(tmp_path / name, b"new")
        assert not (tmp_path / name).is_symlink()
    assert precious.read_bytes() == b"precious"


def test_nobody_else_may_enter_while_it_is_written(tmp_path: Path) -> None:
    with replacing(tmp_path / "x") as part:
        part.write_bytes(b"1")
        assert part.parent.parent == tmp_path
        assert part.parent.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_writer_left_goes_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with holder(path) as living, holder(path) as dead:
        dead.kill()
        dead.wait()
        replace_bytes(path, b"mine")
        assert len(names(tmp_path)) == 2, "the living one's folder, and x"
        living.communicate("")
        assert living.returncode == 0
    assert path.read_bytes() == b"half", "the last to finish wins"
    assert names(tmp_path) == ["x"]


def test_folders_that_are_not_ours_to_remove_stay(tmp_path: Path) -> None:
    for name in (".x.part", ".x.0123456.part", ".x.backup", ".y.01234567.part"):
        (tmp_path / name).mkdir()
    (tmp_path / ".x.01234567.part").symlink_to(tmp_path / ".x.backup")
    replace_bytes(tmp_path / "x", b"1")
    assert len(names(tmp_path)) == 6


def test_threads_that_write_one_file_leave_a_whole_one(tmp_path: Path) -> None:
    """Each removes what it takes for abandoned, and none of the others is."""
    path, errors = tmp_path / "x", list[BaseException]()

    def write(letter: int) -> None:
        try:
            for _ in range(50):
                replace_bytes(path, bytes([letter]) * 1000)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["x"]


def test_of_two_that_make_a_folder_the_first_stays(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "place"
    with new_folder(place) as one, new_folder(place) as two:
        (one / "file").write_bytes(b"one")
        (two / "file").write_bytes(b"two")
    assert (place / "file").read_bytes() == b"two", "it ended first"
    assert names(place.parent) == ["place"]


def test_only_these_files_put_one_in_the_place_of_another() -> None:
    """Atomic writing is here alone; a job's work files and a part's are in their folder already, and are renamed."""
    root = Path(__file__).parents[3]
    renaming = re.compile(r"\bos\.(replace|rename|renames|link)\(|\.rename\(|shutil\.move\(")
    sources = [path for room in ("scorer", "train", "export") for path in (root / room).rglob("*.py")]
    found = {str(path.relative_to(root)) for path in sources if renaming.search(path.read_text(encoding="utf-8"))}
    assert found == {"scorer/outputs/atomic.py", "scorer/outputs/file.py", "scorer/job/part_file.py"}
