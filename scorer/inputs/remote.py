"""Shards in stores: read ahead, several ranges in flight, retried from the byte reached, checked for change."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar
from urllib.parse import urlsplit

from scorer.errors import InputError
from scorer.inputs.addresses import redacted, scheme_of
from scorer.inputs.folders import check_folder
from scorer.inputs.source import AGAIN, FileStat, check_position, check_same
from scorer.inputs.stores import MAGIC, Store, TransientError
from scorer.system.packages import install_command

OBJECT_SCHEMES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "adl", "az", "azure"}
RANGE_BYTES = 4 << 20
IN_FLIGHT = 6
"""Ranges that are asked for ahead of the one in use: 24 MB a shard."""
ATTEMPTS = 7
_FIRST_SECONDS = 0.1
"""Before the second attempt; twice as long before each that follows: 6 s in all."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class RemoteSource:
    """An object in a store. address: for messages and records, without secrets. url: with them."""

    address: str
    stat: FileStat
    url: str = field(repr=False)

    @property
    def identity(self) -> str:
        return self.url

    @property
    def canonical(self) -> str:
        return self.address

    def open(self) -> RemoteReader:
        return self.begin().reader()

    def begin(self) -> RemoteReader:
        return RemoteReader(self)


def find(url: str, output: str | None = None) -> list[RemoteSource]:
    """The shards that `url` stands for, by name; of a folder's, `output` is none. Raises InputError."""
    address, store = redacted(url), store_of(url)
    try:
        found = _Attempts().run(lambda: [*store.find(url)])
    except ImportError as error:
        raise InputError(f"{address}: {_shown(error, url)}", remedy="install what reads it") from None
    except FileNotFoundError as error:
        raise InputError(f"{address}: {error}", remedy="check the address") from None
    except OSError as error:
        credentials = isinstance(error, PermissionError)
        remedy = "check the credentials" if credentials else "check the address and the connection"
        raise InputError(f"{address}: {_shown(error, url)}", remedy=remedy) from None
    if not found and MAGIC.search(url):
        raise InputError(f"{address}: no file matches", remedy="check the address")
    if [each for each, _ in found] != [url] and not MAGIC.search(url):
        found = [(each, stat) for each, stat in found if each != output]
        check_folder(address, [redacted(each) for each, _ in found])
    return [RemoteSource(redacted(each), stat, each) for each, stat in found]


class RemoteReader:
    """A RemoteSource that is being opened, and read once `reader` has returned: see scorer.inputs.source.

    For one thread at a time.
    """

    descriptor = None
    damage = ""

    def __init__(self, source: RemoteSource) -> None:
        self._source, self._store = source, store_of(source.url)
        self.size = source.stat.size
        self._attempts = _Attempts()
        self._pool = ThreadPoolExecutor(IN_FLIGHT + 1, "remote")
        self._ranges: dict[int, Future[bytearray]] = {}
        self._free: list[bytearray] = []
        self._current = -1
        self._found = self._pool.submit(self._stat)
        self._ask(0)  # while the first answer is on its way

    def reader(self) -> RemoteReader:
        source = self._source
        try:
            check_same(source, self._found.result(), "since it was found")
        except FileNotFoundError:
            self.close()
            raise InputError(f"{source.address}: cannot be opened: it is gone", remedy=AGAIN) from None
        except OSError as error:
            self.close()
            raise self._failed("cannot be opened", error) from None
        except BaseException:
            self.close()
            raise
        return self

    def read_into(self, offset: int, buffer: memoryview) -> int:
        check_position(self._source, offset)
        count, done = min(len(buffer), self._source.stat.size - offset), 0
        while done < count:
            index, start = divmod(offset + done, RANGE_BYTES)
            data = self._range(index)
            more = min(count - done, len(data) - start)
            buffer[done : done + more] = memoryview(data)[start : start + more]
            done += more
        return done

    def check_unchanged(self) -> None:
        try:
            status = self._stat()
        except FileNotFoundError:
            raise InputError(f"{self._source.address}: is gone", remedy=AGAIN) from None
        except OSError as error:
            raise self._failed("cannot be looked at", error) from None
        check_same(self._source, status, "while it was read")

    def close(self) -> None:
        self._attempts.end()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _range(self, index: int) -> bytearray:
        """The bytes of one range; those that follow are asked for where reading goes forward."""
        if index != self._current:
            forward = index == self._current + 1
            self._current = index
            for old in [old for old in self._ranges if not index - 1 <= old <= index + IN_FLIGHT]:
                self._forget(old)
            for ahead in range(index, index + (IN_FLIGHT if forward else 0) + 1):
                self._ask(ahead)
        try:
            return self._ranges[index].result()
        except OSError as error:
            self.check_unchanged()  # that explains most, and better
            raise self._failed(f"cannot be read at byte {index * RANGE_BYTES}", error) from None

    def _ask(self, index: int) -> None:
        if index not in self._ranges and index * RANGE_BYTES < self._source.stat.size:
            self._ranges[index] = self._pool.submit(self._fetch, index * RANGE_BYTES)

    def _forget(self, index: int) -> None:
        future = self._ranges.pop(index)
        if future.done() and not future.cancelled() and not future.exception():
            self._free.append(future.result())
        else:
            future.cancel()

    def _fetch(self, start: int) -> bytearray:
        """RANGE_BYTES from `start` on, fewer at the end. In a thread of the pool."""
        stop = min(start + RANGE_BYTES, self._source.stat.size)
        data = self._buffer(stop - start)
        done = 0

        def rest() -> None:
            nonlocal done
            with self._store.read(self._source.url, start + done, stop) as (status, pieces):
                check_same(self._source, status, "while it was read")
                for piece in pieces:
                    if done + len(piece) > len(data):
                        raise TransientError("more bytes came than were asked for")
                    data[done : done + len(piece)] = piece
                    done += len(piece)
                    self._attempts.check()
            if done < len(data):
                raise TransientError(f"the connection ended at byte {start + done}")

        self._attempts.run(rest, lambda: done)
        return data

    def _buffer(self, size: int) -> bytearray:
        try:
            data = self._free.pop()
        except IndexError:
            return bytearray(size)
        return data if len(data) == size else bytearray(size)

    def _stat(self) -> FileStat:
        return self._attempts.run(lambda: self._store.stat(self._source.url))

    def _failed(self, what: str, error: OSError) -> InputError:
        reason = _shown(error, self._source.url)
        remedy = "check the credentials" if isinstance(error, PermissionError) else "check the connection"
        return InputError(f"{self._source.address}: {what}: {reason}", remedy=remedy)


class _Attempts:
    """Tries again what failed for a moment, until it is told to end."""

    def __init__(self) -> None:
        self._ended = threading.Event()

    def run(self, action: Callable[[], _Result], progress: Callable[[], int] = lambda: 0) -> _Result:
        """What `action` gives; ATTEMPTS times in a row without progress are the most."""
        attempt, reached = 1, progress()
        while True:
            try:
                return action()
            except TransientError:
                if progress() > reached:
                    attempt, reached = 0, progress()
                if attempt >= ATTEMPTS or self._ended.wait(_pause(attempt)):
                    raise
                attempt += 1

    def check(self) -> None:
        """Raise OSError once it was told to end."""
        if self._ended.is_set():
            raise OSError("closed")

    def end(self) -> None:
        self._ended.set()


def _pause(attempt: int) -> float:
    return _FIRST_SECONDS * (1 << max(attempt - 1, 0)) * random.uniform(0.75, 1.25)


def _shown(error: Exception, url: str) -> str:
    """What an error says, without the secrets of `url`."""
    return str(error).replace(url, redacted(url))


def store_of(url: str) -> Store:
    """The store that keeps `url`. Raises InputError where a package for it is not installed, or settings lack."""
    scheme = scheme_of(url)
    try:
        if scheme in OBJECT_SCHEMES and "::" not in url:
            return _object_store(f"{scheme}://{urlsplit(url).netloc}")
        if scheme in ("http", "https") and "::" not in url:
            return _http_store()
        return _fsspec_store()
    except ImportError as error:
        reason = f"{error.name} is not installed" if error.name else str(error)
        raise InputError(f"{redacted(url)}: {reason}", remedy=install_command("remote")) from None
    except OSError as error:
        raise InputError(f"{redacted(url)}: {error}", remedy="set the environment's variables for it") from None


@cache
def _object_store(root: str) -> Store:
    from scorer.inputs.object_store import ObjectStore

    return ObjectStore(root)


@cache
def _http_store() -> Store:
    from scorer.inputs.http_store import HttpStore

    return HttpStore()


@cache
def _fsspec_store() -> Store:
    from scorer.inputs.fsspec_store import FsspecStore

    return FsspecStore()
