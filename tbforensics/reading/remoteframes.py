"""The frames of a streamed remote read reply: length (varint), CRC-32C (big-endian), payload.

Source: prometheus/storage/remote/chunked.go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c

from tbforensics.evidence import QUARANTINED_BYTES

# A server sends frames of 1 MiB unless told otherwise. Parsed, a hostile one grows 25 times.
_MOST_FRAME_BYTES = 1 << 24
_LENGTH_BYTES, _CRC_BYTES = 4, 4
_READ_BYTES = 1 << 20


class Frame(NamedTuple):
    """One frame; or the first bytes of what is none, and why. That is the last then."""

    offset: int
    payload: bytes
    why: str = ""


def frames(body: BinaryIO) -> Iterator[Frame]:
    """The frames of a reply. A stream that ends between two of them looks whole."""
    held, at, offset = b"", 0, 0  # `held` begins `offset` bytes into the body
    while True:
        if len(held) - at < _LENGTH_BYTES + _CRC_BYTES:
            held, at, offset = held[at:] + body.read(_READ_BYTES), 0, offset + at
            if not held:
                return
        length, start = _length(held, at)
        end = start + _CRC_BYTES + length
        if end > len(held) and length <= _MOST_FRAME_BYTES:
            more = body.read(max(_READ_BYTES, end - len(held)))
            held, start, end, at, offset = held[at:] + more, start - at, end - at, 0, offset + at
        payload = held[start + _CRC_BYTES : end]
        why = ""
        if length > _MOST_FRAME_BYTES:
            why = "not a frame of remote read"
        elif end > len(held):
            why = "the reply ends within a frame"
        elif google_crc32c.value(payload) != int.from_bytes(held[start : start + _CRC_BYTES]):
            why = "a frame is not what its checksum says"
        if why:
            yield Frame(offset + at, held[at : at + QUARANTINED_BYTES], why)
            return
        yield Frame(offset + at, payload)
        at = end


def _length(held: bytes, at: int) -> tuple[int, int]:
    """A frame's length and where its checksum is; more than any frame has where it is no length."""
    length = shift = 0
    for place in range(at, min(at + _LENGTH_BYTES, len(held))):
        length |= (held[place] & 127) << shift
        if held[place] < 128:
            return length, place + 1
        shift += 7
    if len(held) - at < _LENGTH_BYTES:
        return 0, len(held)  # cut short
    return _MOST_FRAME_BYTES + 1, at


def framed(payload: bytes) -> bytes:
    checksum: int = google_crc32c.value(payload)
    return varint(len(payload)) + checksum.to_bytes(_CRC_BYTES) + payload


def varint(number: int) -> bytes:
    head = bytearray()
    while number > 127:
        head.append(number & 127 | 128)
        number >>= 7
    return bytes([*head, number])
