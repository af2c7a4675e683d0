"""Prometheus' XOR chunks to columns: thousands of chunks in lockstep, one lane per chunk.

A chunk is a stream of bits in which each sample's place depends on the one before, so a chunk can
only be read from front to back. But chunks do not depend on each other: all lanes are advanced by
one sample at a time, and what Python does per sample is shared by thousands of them. Lanes are
sorted by how many samples they hold, so those that are finished fall off the end.

    count                    2 bytes, big-endian
    first time, value        zigzag varint of ms; 64 bits
    second time, value       varint of the delta; XOR
    each further time        how much the delta changed: `0` not at all, else `10` and 14 bits,
                             `110` and 17, `1110` and 20, `1111` and 64
    each further value       XOR with the one before: `0` equal, else `10` and as many bits as last
                             time, or `11`, leading zeros (5 bits), how many bits (6), and these

Source: Pelkonen et al., "Gorilla", VLDB 2015; prometheus/tsdb/chunkenc/xor.go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_LANES = 4096  # more make no step cheaper, and leave the cache

# Windows of 64 bits begin at every second byte, so that any bit has 49 good ones from it on.
_STRIDE_BITS, _GOOD_BITS = 16, 49

# By the first four bits of a change of the delta: bits of the prefix, and bits of the change.
_PREFIX_BITS = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 2, np.uint64)
_CHANGE_BITS = np.array([0] * 8 + [14] * 4 + [17] * 2 + [20, 0], np.uint64)
_WHOLE = 15  # `1111`: 64 bits follow, more than a window has

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Decoded:
    """Samples of chunks, in the order in which the chunks were given.

    counts: samples of each chunk; 0 for a chunk that is refused.
    times:  ms since the epoch, of all samples.
    values: their values, bit for bit.
    broken: place of a refused chunk -> why.
    """

    counts: Ints
    times: Ints
    values: Floats
    broken: dict[int, str]


def claimed(chunk: bytes) -> int:
    """How many samples a chunk says that it has. -1 when it has no room for so many.

    The first takes 9 bytes or more, the second 9 bits, each further one 2.
    """
    count = int.from_bytes(chunk[:2], "big")
    least = (0, 72, 81)[count] if count < 3 else 81 + 2 * (count - 2)
    return count if len(chunk) >= 2 and 8 * (len(chunk) - 2) >= least else -1


def decode(chunks: Sequence[bytes]) -> Decoded:
    """Samples of chunks as columns. Never raises for what a chunk holds.

    Memory: 16 bytes for each sample that is `claimed`, and little beside.
    """
    said = np.fromiter((claimed(chunk) for chunk in chunks), np.int64, len(chunks))
    broken = {
        place: f"a chunk of {len(chunks[place])} bytes has no room for what it claims"
        for place in np.flatnonzero(said < 0).tolist()
    }
    counts = np.maximum(said, 0)
    starts = np.cumsum(counts) - counts
    times = np.empty(int(counts.sum()), np.int64)
    values = np.empty(len(times), np.uint64)
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    for first in range(0, len(order), _LANES):
        lanes = order[first : first + _LANES]
        block = _Block([chunks[lane] for lane in lanes.tolist()], counts[lanes])
        block.read(times, values, starts[lanes])
        for lane in lanes[block.broken()]:
            broken[int(lane)] = "the chunk ends before its samples do"
    if broken:
        wrong = np.zeros(len(chunks), bool)
        wrong[list(broken)] = True
        kept = ~np.repeat(wrong, counts)
        times, values = times[kept], values[kept]
        counts[wrong] = 0
    return Decoded(counts, times, values.view(np.float64), broken)


class _Block:
    """Lanes that are read together; the fullest comes first, and none is empty."""

    def __init__(self, chunks: Sequence[bytes], counts: Ints) -> None:
        lengths = np.fromiter(map(len, chunks), np.int64, len(chunks))
        self._bytes = np.frombuffer(b"".join([*chunks, bytes(24)]), np.uint8)
        self._counts = counts
        self._ends = np.cumsum(lengths) * 8
        self._at = self._ends - lengths * 8 + 16  # bits; just after the count
        self._damaged = np.zeros(len(chunks), bool)
        windows = len(self._bytes) // 2 - 3
        whole = np.ndarray(windows, ">u8", self._bytes, strides=(_STRIDE_BITS // 8,))
        self._windows = whole.astype(np.uint64)

    def broken(self) -> npt.NDArray[np.bool_]:
        return self._damaged | (self._at > self._ends)

    def read(self, times: Ints, values: _Bits, to: Ints) -> None:
        """Writes the samples of each lane to where it begins."""
        count = self._counts
        at, to = self._at, to.copy()
        time = _zigzag(self._varint(at))
        value = self._bits64(at)
        at += 64
        times[to], values[to] = time, value
        alive = int(np.searchsorted(-count, -2, side="right"))
        delta = np.zeros(len(count), np.int64)
        delta[:alive] = self._varint(at[:alive]).view(np.int64)
        size = np.full(len(count), 64, np.int64)
        shift = np.zeros(len(count), np.uint64)
        widest = int(count[0])
        # how many lanes hold more than n samples
        alive_at = np.searchsorted(-count, -np.arange(1, widest + 1), side="right")
        for n in range(1, widest):
            m = int(alive_at[n])
            p, d, t, v, s, h = at[:m], delta[:m], time[:m], value[:m], size[:m], shift[:m]
            window = self._window(p)
            if n > 1:
                changed = np.flatnonzero(window.view(np.int64) < 0)
                p += 1
                window <<= np.uint64(1)
                if len(changed):
                    p[changed] -= 1
                    d[changed] += self._change(p, changed)
                    window[changed] = self._window(p[changed])
            t += d
            # the value
            differs = window.view(np.int64) >> 63
            fresh = np.flatnonzero(window >= np.uint64(3 << 62))
            p += 1
            p -= differs
            if len(fresh):
                head = window[fresh]
                leading = (head >> np.uint64(57)).view(np.int64) & 31
                bits = (head >> np.uint64(51)).view(np.int64) & 63
                bits[bits == 0] = 64
                trailing = 64 - leading - bits
                self._damaged[fresh[trailing < 0]] = True
                s[fresh] = bits
                h[fresh] = np.maximum(trailing, 0).view(np.uint64)
                p[fresh] += 11
            bits = s & differs
            if len(fresh) or int(bits.max()) > _GOOD_BITS - 27:
                window = self._bits64(p)
            else:
                window <<= np.uint64(2)
            window >>= (64 - bits).view(np.uint64)
            window <<= h
            v ^= window
            p += bits
            where = to[:m]
            where += 1
            times[where] = t
            values[where] = v

    def _window(self, at: Ints) -> _Bits:
        """Bits from `at` on, of which `_GOOD_BITS` are good. Past the end it is nothing of ours."""
        window = self._windows.take(at >> 4, mode="clip")
        window <<= (at & 15).view(np.uint64)
        return window

    def _bits64(self, at: Ints) -> _Bits:
        upper = self._window(at) & np.uint64(0xFFFF_FFFF_FFFF_0000)
        return upper | (self._window(at + 48) >> np.uint64(48))

    def _varint(self, at: Ints) -> _Bits:
        """The varints at whole bytes; `at` moves past them."""
        result = np.zeros(len(at), np.uint64)
        going = np.ones(len(at), bool)
        for n in range(10):
            byte = self._bytes.take(at >> 3, mode="clip").astype(np.uint64)
            part = (byte & np.uint64(127)) << np.uint64(7 * n)
            result |= np.where(going, part, np.uint64(0))
            at += np.where(going, 8, 0)
            going &= byte >= 128
        self._damaged[: len(at)] |= going
        return result

    def _change(self, at: Ints, changed: Ints) -> Ints:
        """By how much deltas change in some lanes; `at` moves past it in these."""
        p = at[changed]
        window = self._window(p)
        kind = (window >> np.uint64(60)).view(np.int64)
        prefix, size = _PREFIX_BITS[kind], _CHANGE_BITS[kind]
        change = ((window << prefix) >> (np.uint64(64) - size)).view(np.int64)
        half = np.int64(1) << (size.view(np.int64) - 1)
        change -= np.where(change > half, half << 1, 0)  # the half itself is positive
        p += (prefix + size).view(np.int64)
        whole = np.flatnonzero(kind == _WHOLE)
        if len(whole):
            change[whole] = self._bits64(p[whole]).view(np.int64)
            p[whole] += 64
        at[changed] = p
        return change


def _zigzag(number: _Bits) -> Ints:
    return (number >> np.uint64(1)).view(np.int64) ^ -(number & np.uint64(1)).view(np.int64)
