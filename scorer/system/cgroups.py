"""The control groups that this process is in, of version 1 and 2, with all their ancestors: each of them limits."""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def group_folders(controller: str, groups: Path = OWN, root: Path = ROOT) -> list[Path]:
    """Every folder under `root` that may hold a limit of `controller` ("cpu", "memory") on this process."""
    folders = [root, root / controller]
    for line in read_text(groups).splitlines():
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "/")
        if controllers and controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        bases = [root / controllers, root / controller] if controllers else [root, root / "unified"]
        folders += [base.joinpath(*parts[:depth]) for base in bases for depth in range(len(parts) + 1)]
    return folders


def read_text(path: Path) -> str:
    """The file's text, "" where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
