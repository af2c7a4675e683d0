"""The body of a reply on its way in: bounded in length and time, and given up when told to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import requests
from urllib3.exceptions import HTTPError

_CHUNK_BYTES = 1 << 18
_LONG_BYTES = 1 << 18  # a reply that is longer is read in large pieces


class Stopped(BaseException):
    """Whoever asked has gone, so there is nobody to answer. No error of any source."""


class Incoming:
    """One body. What it was, and how fast it came, is known once `pieces` has ended.

    Errors: while its pieces are taken: ValueError for one that is too long or takes too long,
            Stopped, and what urllib3 raises for one that is cut short.

    held_bytes: how much of it to keep in memory for `whole`.
    """

    def __init__(
        self,
        reply: requests.Response,
        *,
        longest_bytes: int,
        longest_s: float,
        held_bytes: int,
        stopped: threading.Event,
    ) -> None:
        self.content_type = str(reply.headers.get("Content-Type", ""))
        self.packed = bool(reply.headers.get("Content-Encoding"))
        self.length, self.waited_s = 0, 0.0
        self._raw, self._stopped = reply.raw, stopped
        self._socket: socket.socket | None = getattr(reply.raw.connection, "sock", None)
        self._longest_bytes, self._longest_s = longest_bytes, longest_s
        self._deadline = time.monotonic() + longest_s
        self._held: list[bytes] = []
        self._held_bytes = held_bytes

    def pieces(self) -> Iterator[bytes]:
        """The body, as it comes.

        `read1` gives what is there, where `read` would wait for a whole piece, however slowly its
        bytes drip in. But servers cut a long reply into pieces of a few KiB, and Python's time for
        each adds up: so that is read with `read`, and its connection is cut at the deadline.
        """
        read, cutter = self._raw.read1, threading.Timer(self._longest_s, self.cut)
        cutter.daemon = True
        try:
            while piece := self._next(read):
                yield piece
                if self.length > _LONG_BYTES and self._socket and read != self._raw.read:
                    read = self._raw.read
                    cutter.start()
        finally:
            cutter.cancel()

    def _next(self, read: Callable[..., bytes]) -> bytes:
        begun = time.perf_counter()
        try:
            piece = read(_CHUNK_BYTES, decode_content=True)
        except (HTTPError, OSError):
            self._refuse()  # it was cut from here, and that is why
            raise
        self.waited_s += time.perf_counter() - begun
        self._refuse()
        self.length += len(piece)
        if self.length > self._longest_bytes:
            raise ValueError(f"the reply is longer than {self._longest_bytes} bytes")
        if self.length <= self._held_bytes:
            self._held.append(piece)
        else:
            self._held.clear()
        return piece

    def _refuse(self) -> None:
        if self._stopped.is_set():
            raise Stopped
        if time.monotonic() > self._deadline:
            raise ValueError(f"the reply took longer than {self._longest_s:g} s")

    def cut(self) -> None:
        """Let whoever waits for the next bytes wait no longer."""
        if self._socket:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is over already

    @property
    def whole(self) -> bytes | None:
        """All of it; None when it was more than is held."""
        return b"".join(self._held) if self.length <= self._held_bytes else None
