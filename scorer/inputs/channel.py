"""Python objects over a socket between a process and one that it started."""

from __future__ import annotations

import pickle
import socket
import struct
from multiprocessing.connection import wait
from typing import Any

_LENGTH = struct.Struct("<Q")


class Channel:
    """One end. A socket ends with the process at either side, however that dies.

    `multiprocessing.connection.Connection` does the same, but no public name makes one of a descriptor.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: object) -> None:
        """Raises ConnectionError where the other side has gone."""
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(_LENGTH.pack(len(content)) + content)

    def receive(self) -> Any:
        """Wait for a message. Raises EOFError or ConnectionError where the other side has gone."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        return pickle.loads(self._exactly(length))

    def pending(self) -> bool:
        """Whether there is something to receive, the end included."""
        return bool(wait([self._socket], timeout=0))

    def close(self) -> None:
        self._socket.close()

    def _exactly(self, count: int) -> bytearray:
        content = bytearray(count)
        rest = memoryview(content)
        while rest:
            received = self._socket.recv_into(rest)
            if not received:
                raise EOFError
            rest = rest[received:]
        return content
