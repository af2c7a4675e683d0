"""The other direction, plainly: samples to an XOR chunk, as Prometheus' appender writes it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

STALE = 0x7FF0000000000002
_CLASSES = ((14, "10"), (17, "110"), (20, "1110"))
_ROUND = 1 << 64


def bits_of(value: float) -> int:
    return int(struct.unpack("<Q", struct.pack("<d", value))[0])


def value_of(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<Q", bits))[0])


def encoded(samples: Sequence[tuple[int, int]]) -> bytes:
    """A chunk of (time in ms, bits of the value)."""
    stream: list[str] = []
    time = delta = last = 0
    leading, trailing = -1, 0
    for n, (ms, value) in enumerate(samples):
        if n == 0:
            stream += [_varint(ms << 1 if ms >= 0 else ~(ms << 1)), f"{value:064b}"]
        else:
            before, delta = delta, (ms - time) % _ROUND
            if n == 1:
                stream.append(_varint(delta))
            else:
                stream.append(_change((delta - before + _ROUND // 2) % _ROUND - _ROUND // 2))
            bits, leading, trailing = _xor(last ^ value, leading, trailing)
            stream.append(bits)
        time, last = ms, value
    text = "".join(stream)
    text += "0" * (-len(text) % 8)
    return struct.pack(">H", len(samples)) + int(text or "0", 2).to_bytes(len(text) // 8, "big")


def _varint(number: int) -> str:
    text = ""
    while number >= 128:
        text += f"1{number & 127:07b}"
        number >>= 7
    return f"{text}0{number:07b}"


def _change(change: int) -> str:
    if change == 0:
        return "0"
    for size, prefix in _CLASSES:
        if -(1 << (size - 1)) + 1 <= change <= 1 << (size - 1):
            return f"{prefix}{change % (1 << size):0{size}b}"
    return f"1111{change % _ROUND:064b}"


def _xor(xor: int, leading: int, trailing: int) -> tuple[str, int, int]:
    if xor == 0:
        return "0", leading, trailing
    left = min(31, 64 - xor.bit_length())
    right = (xor & -xor).bit_length() - 1
    if 0 <= leading <= left and trailing <= right:
        return f"10{xor >> trailing:0{64 - leading - trailing}b}", leading, trailing
    size = 64 - left - right
    return f"11{left:05b}{size % 64:06b}{xor >> right:0{size}b}", left, right
