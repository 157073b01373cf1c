"""A second kind of source, as one file: byte strings in memory behind addresses such as toy://folder/x.tfrecord."""

from __future__ import annotations

from dataclasses import dataclass

from scorer.errors import InputError
from scorer.inputs.discover import register_scheme
from scorer.inputs.folders import check_folder, is_shard
from scorer.inputs.source import FileStat, check_position, check_same

CONTENT: dict[str, tuple[int, bytes]] = {}
"""Version and bytes by name."""


@dataclass(frozen=True)
class ToySource:
    address: str
    stat: FileStat

    @property
    def identity(self) -> str:
        return self.address

    @property
    def canonical(self) -> str:
        return self.address

    def open(self) -> ToyReader:
        return ToyReader(self)


class ToyReader:
    descriptor, damage = None, ""

    def __init__(self, source: ToySource) -> None:
        self._source, self.size = source, source.stat.size
        if _stat(source.address) is None:
            raise InputError(f"{source.address}: cannot be opened: it is gone")
        self._check("since it was found")

    def read_into(self, offset: int, buffer: memoryview) -> int:
        check_position(self._source, offset)
        self.check_unchanged()
        found = CONTENT[_name(self._source.address)][1][offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def check_unchanged(self) -> None:
        self._check("while it was read")

    def close(self) -> None:
        pass

    def _check(self, when: str) -> None:
        if (now := _stat(self._source.address)) is None:
            raise InputError(f"{self._source.address}: is gone")
        check_same(self._source, now, when)


def find(address: str) -> list[ToySource]:
    """The source at `address`, or those in the folder of that name."""
    stat = _stat(address)
    if stat:
        return [ToySource(address, stat)]
    inside = [f"toy://{name}" for name in sorted(CONTENT) if name.startswith(_name(address).rstrip("/") + "/")]
    if not inside:
        raise InputError(f"{address}: no such file")
    found = [ToySource(name, stat) for name in inside if is_shard(name) and (stat := _stat(name))]
    check_folder(address, [source.address for source in found])
    return found


def _name(address: str) -> str:
    return address.removeprefix("toy://")


def _stat(address: str) -> FileStat | None:
    if _name(address) not in CONTENT:
        return None
    version, content = CONTENT[_name(address)]
    return FileStat(len(content), f"v{version}")


register_scheme("toy", find)
