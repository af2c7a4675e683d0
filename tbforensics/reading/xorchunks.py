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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Words = npt.NDArray[np.uint64]

# Fewer lanes share a step's costs less well, more leave the cache. Cells bound the memory of lanes
# that are not of one length.
_LANES, _CELLS = 16384, 1 << 22

# Servers keep 120 to 240 samples in a chunk. One with very many, which may be of 2 bits each, has
# no lanes beside it: 16 KB could take a second, and megabytes of such chunks hours.
MOST_OF_A_CHUNK = 1 << 14
_TOO_MUCH = "it claims more samples than it has room for, or than a server keeps in one"

_ONE, _TWO = np.uint64(1), np.uint64(2)
_BEGINS_1, _BEGINS_11 = np.uint64(1 << 63), np.uint64(3 << 62)  # this, or more
_LOST = 1 << 32  # bits, and past the end of any chunk

# By the first four bits of a change of the delta: bits of the prefix, and bits of the change.
_PREFIX = np.array([1] * 8 + [2] * 4 + [3] * 2 + [4] * 2)
_WIDTH = np.array([0] * 8 + [14] * 4 + [17] * 2 + [20, 64])

# By the 11 bits after `11`: how many bits of the XOR follow, and how many zeros follow these.
_SIZE = np.array([n % 64 or 64 for n in range(1 << 11)])
_TRAILING = 64 - np.arange(1 << 11) // 64 - _SIZE
_SIZE[_TRAILING < 0] = _LOST  # more bits than a value has


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


def claims(chunks: Sequence[bytes]) -> Ints:
    """How many samples each chunk says that it has; -1 when it cannot be so many.

    The first takes 9 bytes or more, the second 9 bits, each further one 2.
    """
    heads = b"".join([chunk[:2].rjust(2, b"\xff") for chunk in chunks])
    counts = np.frombuffer(heads, ">u2").astype(np.int64)
    bits = 8 * np.fromiter(map(len, chunks), np.int64, len(chunks)) - 16
    least = np.where(counts < 2, 72 * counts, 77 + 2 * counts)
    return np.where((bits < least) | (counts > MOST_OF_A_CHUNK), -1, counts)


def decode(chunks: Sequence[bytes], claimed: Ints | None = None) -> Decoded:
    """Samples of chunks as columns. Never raises for what a chunk holds.

    claimed: what `claims` says of them, where that is known.
    Memory:  16 bytes for each sample that is claimed, and 200 MB at most beside.
    """
    counts = claims(chunks) if claimed is None else claimed
    wrong = np.zeros(len(chunks), bool)
    broken = dict.fromkeys(np.flatnonzero(counts < 0).tolist(), _TOO_MUCH)
    counts = np.maximum(counts, 0)
    starts = np.cumsum(counts) - counts
    times = np.empty(int(counts.sum()), np.int64)
    values = np.empty(len(times), np.uint64)
    for places in _together(counts):
        lanes = _Lanes([chunks[place] for place in places.tolist()], counts[places])
        if lanes.even and places[-1] - places[0] == len(places) - 1:
            part = slice(starts[places[0]], starts[places[0]] + len(places) * lanes.width)
            shape = (len(places), lanes.width)
            lanes.read(times[part].reshape(shape), values[part].reshape(shape))
        else:
            times_of = np.empty((len(places), lanes.width), np.int64)
            values_of = np.empty_like(times_of, np.uint64)
            lanes.read(times_of, values_of)
            ranks = np.argsort(places)
            first = np.arange(len(places)) * lanes.width
            cells = _runs(first[ranks], counts[places[ranks]])
            if len(cells) == len(times):
                times_of.take(cells, out=times, mode="clip")
                values_of.take(cells, out=values, mode="clip")
            else:
                at = _runs(starts[places[ranks]], counts[places[ranks]])
                times[at], values[at] = times_of.take(cells), values_of.take(cells)
        wrong[places] = lanes.damaged()
    if wrong.any():
        kept = ~np.repeat(wrong, counts)
        times, values, counts = times[kept], values[kept], np.where(wrong, 0, counts)
        broken |= dict.fromkeys(np.flatnonzero(wrong).tolist(), "it ends before its samples do")
    return Decoded(counts, times, values.view(np.float64), broken)


def _together(counts: Ints) -> Iterator[Ints]:
    """Places of the chunks that are read together, the fullest chunk first; empty ones nowhere.

    Chunks of a length go together: a lane costs by how many others go as far.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    first = 0
    while first < len(order):
        last = first + min(_LANES, max(1, _CELLS // int(counts[order[first]])))
        yield order[first:last]
        first = last


def _runs(starts: Ints, lengths: Ints) -> Ints:
    """The numbers from each start on, so many."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)


class _Lanes:
    """Chunks that are read together, the fullest first; so lanes end from the last to the first."""

    def __init__(self, chunks: Sequence[bytes], counts: Ints) -> None:
        lengths = np.fromiter(map(len, chunks), np.int64, len(chunks))
        body = b"".join(chunks)
        body += bytes(-len(body) % 8 + 16)
        self._words = np.frombuffer(body, ">u8").astype(np.uint64)
        self._next = self._words[1:]
        self._counts, self._ends = counts, 8 * np.cumsum(lengths)
        self._at = self._ends - 8 * lengths + 16  # bits; after the count
        self.width = int(counts[0])
        self.even = bool(counts[-1] == self.width)

    def damaged(self) -> npt.NDArray[np.bool_]:
        """Which lanes have read past their ends."""
        return self._at > self._ends

    def read(self, times: Ints, values: _Words) -> None:
        """Fills a table of one row for each lane, as far as it has samples."""
        alive = np.searchsorted(-self._counts, -np.arange(self.width)).tolist()
        for n, m in enumerate(alive):
            if n == 0:
                at = self._at[:m]
                time, value = _signed(self._varint(at)), self._window(at)
                at += 64
                times[:m, 0], values[:m, 0] = time, value
                widest, delta = 0, np.zeros(m, np.int64)
                # There is no width of last time until one was given.
                size, trailing = np.full(m, _LOST), np.zeros(m, np.uint64)
                continue
            if m < alive[n - 1] or n == 1:
                at, time, delta = at[:m], time[:m], delta[:m]
                value, size, trailing = value[:m], size[:m], trailing[:m]
            # `good` is how many bits of the window are left when the value's own bits begin.
            if n == 1:
                delta += self._varint(at).view(np.int64)
                window, good = self._window(at), 62
            else:
                window, good = self._window(at), 61
                most = window.max()
                if most < _BEGINS_1:
                    at += 1
                    window <<= _ONE
                else:
                    good = 46
                    delta += self._changes(at, window, far=bool(most >= _BEGINS_11))
            time += delta
            times[:m, n] = time

            differs = window.view(np.int64) >> 63  # all bits, or none
            fresh = (window >= _BEGINS_11).nonzero()[0]
            at += 1
            at -= differs
            window <<= _TWO
            if len(fresh):
                rest = window[fresh]
                head = (rest >> np.uint64(53)).view(np.int64)
                size[fresh] = sizes = _SIZE[head]
                trailing[fresh] = _TRAILING[head]
                window[fresh] = rest << np.uint64(11)
                at[fresh] += 11
                widest, good = max(widest, int(sizes.max())), good - 11
            if widest > good:
                window = self._window(at)
            bits = differs & size
            at += bits
            window >>= (64 - bits).view(np.uint64)  # by 64 gives 0
            window <<= trailing
            value ^= window
            values[:m, n] = value

    def _window(self, at: Ints) -> _Words:
        """64 bits from each place on. Past the end of a chunk they are nothing of its own."""
        word, bit = at >> 6, at & 63
        window = self._words.take(word, mode="clip")
        following = self._next.take(word, mode="clip")
        window <<= bit.view(np.uint64)
        following >>= (64 - bit).view(np.uint64)
        window |= following
        return window

    def _varint(self, at: Ints) -> _Words:
        """The varints at each place; `at` moves past them."""
        number = np.zeros(len(at), np.uint64)
        going = np.ones(len(at), bool)
        for n in range(10):
            byte = self._window(at) >> np.uint64(56)
            number |= np.where(going, (byte & np.uint64(127)) << np.uint64(7 * n), np.uint64(0))
            at += np.where(going, 8, 0)
            going &= byte >= 128
            if not going.any():
                return number
        at += np.where(going, _LOST, 0)
        return number

    def _changes(self, at: Ints, window: _Words, *, far: bool) -> Ints:
        """Changes of the deltas; `at` and `window` move past them.

        Most that are not 0 have 14 bits, so all lanes are read as one or the other; then those
        that have more, if there are any.
        """
        if far:
            lanes = (window >= _BEGINS_11).nonzero()[0]
            place = at[lanes]
            changes = self._far_changes(place, window[lanes])
        changed = window.view(np.int64) >> 63
        # 1 << 13 is positive here, other than in two's complement: hence one less, and one more.
        words = window << _TWO
        words -= np.uint64(1 << 50)
        change = words.view(np.int64) >> 50
        change += 1
        change &= changed
        changed &= 15
        changed += 1
        at += changed
        window <<= changed.view(np.uint64)
        if far:
            change[lanes], at[lanes], window[lanes] = changes, place, self._window(place)
        return change

    def _far_changes(self, at: Ints, window: _Words) -> Ints:
        kind = (window >> np.uint64(60)).view(np.int64)
        at += _PREFIX[kind]
        width = _WIDTH[kind]
        change = (self._window(at) >> (64 - width).view(np.uint64)).view(np.int64)
        at += width
        half = np.int64(1) << (width - 1)
        change -= np.where(change > half, half << 1, 0)  # of 64 bits, that takes 0 away
        return change


def _signed(number: _Words) -> Ints:
    """What a zigzag varint stands for."""
    return (number >> _ONE).view(np.int64) ^ -(number & _ONE).view(np.int64)
