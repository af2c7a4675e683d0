"""The lines of a block of a log: where each begins and ends, and where its quotes are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tbforensics.reading.logcolumns import Ints
from tbforensics.reading.logstream import LONGEST_LINE_BYTES

AHEAD_BYTES = 8_192  # how far from a quote, and how long, something to be compared may be
# What is freed goes back to the kernel, and the next block waits for it again, until something
# larger than any of it was freed once (glibc: mallopt(3), "dynamic mmap threshold").
bytearray(24 << 20)

_NEWLINE, _RETURN, _QUOTE, _BACKSLASH, _SPACE = b'\n\r"\\ '


class Lines:
    """starts, ends: of each line, without its newline.
    quotes: where in the block quotes are that are not escaped.
    first_quote, quotes_in: the number of the first of them from each line on, and how many it has.
    sure: lines that are UTF-8, without control characters, and with no escapes but those that
          orjson would write in the same way.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data + bytes(2 * AHEAD_BYTES)
        self.bytes = np.frombuffer(self._data, np.uint8)[: len(data)]
        control = np.flatnonzero(self.bytes < _SPACE)
        is_newline = self.bytes[control] == _NEWLINE
        self.ends = control[is_newline]
        if not data.endswith(b"\n"):
            self.ends = np.append(self.ends, len(data))
        self.starts = np.concatenate(([0], self.ends[:-1] + 1))
        self.sure = self.ends - self.starts <= LONGEST_LINE_BYTES
        self.has_escapes = b"\\" in data
        self.quotes: Ints = np.flatnonzero(self._without_escaped() == _QUOTE)
        self.first_quote = np.searchsorted(self.quotes, self.starts)
        self.quotes_in = np.diff(self.first_quote, append=len(self.quotes))
        self._doubt_control_characters(control[~is_newline])
        self._doubt_what_is_no_utf8(data)

    def data(self, line: int) -> bytes:
        return self._data[self.starts[line] : self.ends[line]]

    def bytes_at(self, begin: Ints, length: int) -> npt.NDArray[np.bytes_]:
        """So many bytes from each of these places on."""
        every = np.ndarray(len(self._data) - length, f"S{length}", self._data, strides=(1,))
        return every[begin]

    def texts(self, begin: Ints, end: Ints) -> pa.Array:
        """What stands at these places, of which each pair comes after the one before."""
        if length := _the_same(end - begin):
            # Of one length they are gathered twice as fast.
            places = np.arange(len(begin) + 1, dtype=np.int32) * np.int32(length)
            data = self.bytes_at(begin, length).tobytes()
            buffers = [None, pa.py_buffer(places), pa.py_buffer(data)]
            return pa.Array.from_buffers(pa.string(), len(begin), buffers)
        places = np.empty(2 * len(begin), np.int32)
        places[0::2], places[1::2] = begin, end
        buffers = [None, pa.py_buffer(places), pa.py_buffer(self._data)]
        # Arrow takes texts to follow each other, so what lies between two is a text as well.
        with_gaps = pa.Array.from_buffers(pa.string(), max(0, len(places) - 1), buffers)
        return with_gaps.take(pa.array(np.arange(0, len(places), 2)))

    def _doubt(self, places: Ints) -> None:
        self.sure[np.searchsorted(self.ends, places)] = False

    def _without_escaped(self) -> npt.NDArray[np.uint8]:
        """The bytes, without quotes and backslashes that are escaped."""
        if not self.has_escapes:
            return self.bytes
        bare = self._data.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        found = np.frombuffer(bare, np.uint8)
        escapes = np.flatnonzero(found == _BACKSLASH)
        plain = np.isin(found[escapes + 1], np.frombuffer(b"bfnrt", np.uint8))
        self._doubt(escapes[~plain])
        return found

    def _doubt_control_characters(self, places: Ints) -> None:
        before_newline = np.frombuffer(self._data, np.uint8)[places + 1] == _NEWLINE
        self._doubt(places[(self.bytes[places] != _RETURN) | ~before_newline])

    def _doubt_what_is_no_utf8(self, data: bytes) -> None:
        rest, at = memoryview(data), 0
        while not data.isascii():
            try:
                str(rest[at:], "utf-8")
                return
            except UnicodeDecodeError as error:
                line = int(np.searchsorted(self.ends, at + error.start))
                self.sure[line] = False
                at = min(int(self.ends[line]) + 1, len(data))


def _the_same(lengths: Ints) -> int:
    """What all are; 0 where they are not the same."""
    return int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else 0
