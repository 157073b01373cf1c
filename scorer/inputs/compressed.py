"""Shards compressed with gzip or zlib, known by their content: their bytes from any position of what was compressed.

Positions, and so what is resumed, are those of the uncompressed stream. Going forward decompresses what lies between;
going back starts from the last of a few states that were kept on the way, so that memory stays flat whatever a file
expands to. zlib-ng does it where it is installed (extra `gzip`), in about two thirds of zlib's time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

from scorer.errors import InputError
from scorer.inputs.source import UNKNOWN_SIZE, Reader, Source

inflate: Any
try:
    from zlib_ng import zlib_ng as inflate
except ImportError:
    inflate = zlib

_ERRORS: tuple[type[Exception], ...] = (zlib.error, inflate.error)
_GZIP = b"\x1f\x8b\x08"
_WINDOW_BITS = zlib.MAX_WBITS + 32  # gzip or zlib, whichever it is
_READ, _CHUNK = 1 << 16, 1 << 18  # bytes at a time: compressed, and made of them
_STATES = 16
_SPACING = 1 << 20
"""Bytes between the states that are kept; where they are _STATES, every second one goes and the spacing doubles."""


def is_compressed(head: bytes) -> bool:
    """Whether a file with these first bytes is compressed; it is not a TFRecord file then."""
    if head.startswith(_GZIP):
        return True
    try:
        return bool(zlib.decompressobj().decompress(head, 1))
    except zlib.error:
        return False


@dataclass(frozen=True)
class _State:
    """Of decompressing. made: bytes until here. read: compressed bytes until here, `pending` the last of them."""

    made: int
    read: int
    pending: bytes
    decoder: Any


class DecompressingReader:
    """Reads what `reader`, an open source whose content is compressed, holds: see scorer.inputs.source.Reader.

    size: UNKNOWN_SIZE until the last byte was read. damage: why the stream breaks off there, once it is known; then the
    compressed bytes that nothing can be made of, or at least one, count for `size` too.
    """

    descriptor = None

    def __init__(self, source: Source, reader: Reader) -> None:
        self._address, self._reader = source.address, reader
        self.check_unchanged, self.close = reader.check_unchanged, reader.close
        self.size = UNKNOWN_SIZE
        self._spacing, self._ahead = _SPACING, memoryview(b"")
        self._states = [_State(0, 0, b"", _decoder())]
        self._restore(self._states[0])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        self._seek(offset)
        done = 0
        while done < len(buffer):
            more = self._ahead[: len(buffer) - done]
            if not more:
                break
            buffer[done : done + len(more)] = more
            done += len(more)
            self._skip(len(more))
        return done

    def _seek(self, offset: int) -> None:
        if offset < self._at:
            self._restore(max((state for state in self._states if state.made <= offset), key=lambda state: state.made))
        while self._at < offset:
            if not self._ahead:
                reason = f"has {self._at} bytes decompressed, but byte {offset} was to come next: it has changed"
                raise InputError(f"{self._address}: {reason}")
            self._skip(min(len(self._ahead), offset - self._at))

    def _restore(self, state: _State) -> None:
        self._made, self._read, self._pending = state.made, state.read, state.pending
        self._decoder, self.damage = state.decoder.copy(), ""
        self._decompress_ahead()

    @property
    def consumed(self) -> int:
        """Compressed bytes that what was read so far is made of, about."""
        return self._read - len(self._pending)

    @property
    def _at(self) -> int:
        """The byte that comes next."""
        return self._made - len(self._ahead)

    def _skip(self, count: int) -> None:
        """Step over so many of the bytes that are ready; some are ready again then, unless the stream ends."""
        self._ahead = self._ahead[count:]
        if not self._ahead:
            self._decompress_ahead()

    def _decompress_ahead(self) -> None:
        """Make the bytes that come next ready, none at the end."""
        self._keep()
        self._ahead = memoryview(self._decompressed())
        self._made += len(self._ahead)
        if not self._ahead and self.size == UNKNOWN_SIZE:
            left = self._reader.size - self._read + len(self._pending)
            self.size = self._made + (max(1, left) if self.damage else 0)

    def _keep(self) -> None:
        """Keep the state where enough was made since the last one."""
        if self._made < self._states[-1].made + self._spacing or self._decoder.eof:
            return
        if len(self._states) == _STATES:
            self._states, self._spacing = self._states[::2], 2 * self._spacing
        self._states.append(_State(self._made, self._read, self._pending, self._decoder.copy()))

    def _decompressed(self) -> bytes:
        """The next bytes, at most _CHUNK; none where the stream ends or breaks off."""
        while not self.damage:
            if self._decoder.eof and not self._next_member():
                break
            made = self._decompress()
            if made:
                return made
            if not self.damage and not self._pending and not self._decoder.eof and not self._read_more():
                self.damage = "the compressed data are truncated"
        return b""

    def _decompress(self) -> bytes:
        """What comes of `_pending`, at most _CHUNK; where something in it is damaged, all that comes before."""
        before = self._decoder.copy()
        try:
            made: bytes = self._decoder.decompress(self._pending, _CHUNK)
        except _ERRORS as error:
            self.damage = f"the compressed data are damaged ({_words(error)})"
            return _undamaged(before, self._pending)
        self._pending = self._decoder.unused_data if self._decoder.eof else self._decoder.unconsumed_tail
        return made

    def _next_member(self) -> bool:
        """Begin with what follows a member that has ended, zeros left out; whether anything does."""
        while not self._pending.lstrip(b"\0"):
            if not self._read_more():
                self._pending = b""
                return False
        self._pending = self._pending.lstrip(b"\0")
        self._decoder = _decoder()
        return True

    def _read_more(self) -> bool:
        """Put the next compressed bytes in the place of `_pending`; whether there are any."""
        buffer = bytearray(_READ)
        count = self._reader.read_into(self._read, memoryview(buffer)) if self._read < self._reader.size else 0
        self._read += count
        self._pending = bytes(buffer[:count])
        return count > 0


def _decoder() -> Any:
    return inflate.decompressobj(_WINDOW_BITS)


def _undamaged(decoder: Any, pending: bytes) -> bytes:
    """What can be made of `pending`, fewer than _CHUNK bytes, before something damaged in it."""
    found, least, most = b"", 1, _CHUNK
    while least < most:
        middle = (least + most) // 2
        try:
            found, least = decoder.copy().decompress(pending, middle), middle + 1
        except _ERRORS:
            most = middle
    return found


def _words(error: Exception) -> str:
    """zlib's own words, without its number."""
    return str(error).split(": ", 1)[-1]
