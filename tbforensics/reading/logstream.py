"""From the bytes of a log file to blocks of whole lines, in memory that does not grow with it.

Compression is told by the first bytes, never by the name. What expands without measure, ends
early or never ends a line is cut off with the reason; all that came before it is kept.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import zstandard

CHUNK_BYTES = 4 << 20
LONGEST_LINE_BYTES = 1 << 20
KEPT_OF_LONG_LINE = 4096
# Text logs compress 10 to 50 times; what expands further than this is no log.
FREELY_EXPANDED_BYTES = 64 << 20
MOST_EXPANSION = 250
_LARGEST_ZSTD_WINDOW = 128 << 20

_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[\s*[{\]]")
_SPACE = " \t\r\n"


class StreamError(Exception):
    """Why the rest of a file is not read, in words."""


@dataclass(frozen=True)
class Block:
    """Whole lines. `first_line` counts from 1, `offset` in bytes of the uncompressed file.

    too_long: the length of the one line that this block holds the first bytes of; else 0.
    """

    data: bytes
    first_line: int
    offset: int
    too_long: int = 0


@dataclass(frozen=True)
class Element:
    """One element of an array that fills a file; `place` counts from 1."""

    data: bytes
    place: int
    offset: int


def read(body: BinaryIO) -> Iterator[Block | Element]:
    """Blocks of lines; elements where all of the file is one JSON array over several lines, or
    on one line of any length.

    Errors: StreamError, after everything that could be read.
    """
    chunks = _expanded(body)
    head, error = b"", None
    try:
        while len(head) <= LONGEST_LINE_BYTES and (chunk := next(chunks, b"")):
            head += chunk
    except StreamError as reason:
        error = reason
    if head.startswith(b"SQLite format 3\0"):
        raise StreamError("an SQLite file, not log lines")
    rest = _after(head, chunks, error)
    if _is_one_array(head):
        yield from _elements(rest)
    else:
        yield from _blocks(rest)


def _after(head: bytes, chunks: Iterator[bytes], error: StreamError | None) -> Iterator[bytes]:
    if head:
        yield head
    if error:
        raise error
    yield from chunks


def _is_one_array(head: bytes) -> bool:
    """Whether the file is one array. A file of arrays, one a line, is not; nor is one whose
    first line is torn and whose others are whole."""
    if not _ARRAY.match(head):
        return False
    first, _, more = head.lstrip().partition(b"\n")
    if not more.strip() or first.strip() == b"[":
        return True
    return not any(_is_whole(line) for line in (first, *more.split(b"\n", 100)[:100]))


def _is_whole(line: bytes) -> bool:
    if line[:1] not in (b"[", b"{"):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


# --- compression -------------------------------------------------------------------------

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Compressed bytes that are read at once: so few that even a bomb gives no more than 32 MB.
_GZIP_BYTES, _ZSTD_BYTES = 16 << 10, 1 << 10


def _gzip_member() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_ZSTD_WINDOW).decompressobj()


def _expanded(body: BinaryIO) -> Iterator[bytes]:
    head = body.read(4)
    if head[:2] == _GZIP:
        pieces = _pieces(_gzip_member, head, body, _GZIP_BYTES)
    elif head == _ZSTD:
        pieces = _pieces(_zstd_frame, head, body, _ZSTD_BYTES)
    else:
        while chunk := head + body.read(CHUNK_BYTES):
            head = b""
            yield chunk
        return
    gathered: list[bytes] = []
    taken = length = waiting = 0
    stopped = ""
    try:
        for used, piece in pieces:
            taken, length, waiting = used, length + len(piece), waiting + len(piece)
            if length > max(FREELY_EXPANDED_BYTES, MOST_EXPANSION * taken):
                stopped = f"{taken} compressed bytes give {length} and more; not expanded further"
                break
            gathered.append(piece)
            if waiting >= CHUNK_BYTES:
                yield b"".join(gathered)
                gathered, waiting = [], 0
    except (zlib.error, zstandard.ZstdError) as error:
        stopped = f"its compression is broken after {length} bytes: {error}"
    if gathered:
        yield b"".join(gathered)
    if stopped:
        raise StreamError(stopped)


def _pieces(
    fresh: Callable[[], Any], data: bytes, body: BinaryIO, at_once: int
) -> Iterator[tuple[int, bytes]]:
    """Compressed bytes taken so far, and what the last of them gave; never much at once."""
    taken, member = len(data), fresh()
    while data:
        piece = member.decompress(data)
        if piece:
            yield taken, piece
        data = b""
        if member.eof:  # another may follow; what pads a file to its block size does not count
            data, member = member.unused_data.lstrip(b"\0"), None
        if not data:
            data = body.read(at_once)
            taken += len(data)
            data = data if member else data.lstrip(b"\0")
        if data and member is None:
            member = fresh()
    if member:
        raise zlib.error("it ends early")


# --- lines -------------------------------------------------------------------------------


def _blocks(chunks: Iterator[bytes]) -> Iterator[Block]:
    rest, line, offset = b"", 1, 0
    stopped: StreamError | None = None
    long_head, long_length = b"", 0  # of a line too long to hold, while its end is looked for
    while True:
        try:
            chunk = next(chunks, b"")
        except StreamError as error:
            stopped, chunk = error, b""
        if not chunk:
            break
        if long_length:
            newline = chunk.find(b"\n") + 1
            long_length += newline or len(chunk)
            if not newline:
                continue
            yield Block(long_head, line, offset, too_long=long_length)
            line, offset, long_length = line + 1, offset + long_length, 0
            chunk = chunk[newline:]
        if end := chunk.rfind(b"\n") + 1:
            whole = b"".join((rest, memoryview(chunk)[:end]))
            yield Block(whole, line, offset)
            line, offset, rest = line + _newlines(whole), offset + len(whole), b""
        rest += memoryview(chunk)[end:]
        if len(rest) > LONGEST_LINE_BYTES:
            long_head, long_length, rest = rest[:KEPT_OF_LONG_LINE], len(rest), b""
    if long_length:
        yield Block(long_head, line, offset, too_long=long_length)
    elif rest:
        yield Block(rest, line, offset)
    if stopped:
        raise stopped


def _newlines(data: bytes) -> int:
    """As `data.count`, which takes five times as long."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


# --- one array ---------------------------------------------------------------------------

_DECODER = json.JSONDecoder(strict=False)


def _elements(chunks: Iterator[bytes]) -> Iterator[Element]:
    """The elements of one array, delimited one by one and read by whoever asks."""
    text = _Text(chunks)
    while text.next_char() == "[":
        text.skip(1)
        place = 0
        if text.next_char() == "]":
            text.skip(1)
            continue
        while True:
            place += 1
            text.next_char()
            offset = text.offset
            yield Element(text.value(place).encode("utf-8", "surrogateescape"), place, offset)
            mark = text.next_char()
            text.skip(1)
            if mark == "]":
                break
            if mark != ",":
                raise StreamError(f"the array breaks off after its element {place}")
    if text.next_char():
        raise StreamError("something other than an array follows; it is not read")


class _Text:
    """The text of a stream, read from the front; holds little more than one element."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chain(chunks, [b""])
        # A byte that is no UTF-8 spoils the element that holds it and no other.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._ended = "", 0, False
        self.offset = 0

    def next_char(self) -> str:
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
                self.offset += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self, chars: int) -> None:
        self._at += chars
        self.offset += chars  # only ever punctuation

    def value(self, place: int) -> str:
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    break
                reason = "it does not end"
            except (ValueError, RecursionError) as error:
                reason = str(error) or type(error).__name__
            if len(self._text) - self._at > LONGEST_LINE_BYTES or not self._more():
                raise StreamError(f"the array is not JSON at its element {place}: {reason}"[:200])
        found = self._text[self._at : end]
        self._at = end
        self.offset += len(found.encode("utf-8", "surrogateescape"))
        return found

    def _more(self) -> bool:
        if self._ended:
            return False
        chunk = next(self._chunks)
        self._ended = not chunk
        if self.offset == 0 and not self._text and chunk.startswith(codecs.BOM_UTF8):
            chunk, self.offset = chunk[3:], 3
        fresh = self._decode.decode(chunk, final=self._ended)
        self._text, self._at = self._text[self._at :] + fresh, 0
        return not self._ended
