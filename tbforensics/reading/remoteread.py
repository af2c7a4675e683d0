"""Prometheus remote read: its question, and rows of the evidence from its streamed reply.

The reply is a row of frames: length (varint), CRC-32C (big-endian), a `ChunkedReadResponse`. Each
holds chunks of one series as the server keeps them, so it is a seventh of the same reply as JSON
and costs the server next to nothing. The rows are those of the JSON reply for the same time.

Source: prometheus/storage/remote/chunked.go and prometheus/prompb/remote.proto.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import cramjam
import google_crc32c
import numpy as np
import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, rows, series_id, series_row
from tbforensics.model import Capture
from tbforensics.reading import promrows, xorchunks
from tbforensics.reading.promjson import Broken, Floats, Ints

HEADERS: Mapping[str, str] = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Read-Version": "0.1.0",
    "Accept": "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse",
    "Accept-Encoding": "identity",  # chunks are packed already
}
HISTOGRAMS = "holds native histograms, which are not read"  # a note of `explain`
STALE = 0x7FF0_0000_0000_0002  # the NaN that says: from here on this series is gone

_LIKE_HISTOGRAMS = (b"\x18\x02\x22", b"\x18\x03\x22")  # a chunk's type, then its data
_OPERATORS = ("=", "!=", "=~", "!~")  # in the order of LabelMatcher.Type

# A server sends frames of 1 MiB unless told otherwise. Parsed, a hostile one grows 25 times.
_MOST_FRAME_BYTES = 1 << 24
_LENGTH_BYTES, _CRC_BYTES = 4, 4
_READ_BYTES = 1 << 20

# Held at once: frames of so many bytes, or so much of what Python adds to them.
_HELD_BYTES, _SERIES_BYTES, _CHUNK_BYTES = 1 << 26, 1024, 128
_MOST_OF_A_SERIES = 1 << 22  # samples
_BLOCK_CHUNKS, _BLOCK_SAMPLES = 4096, 1 << 20
_MOST_DOUBTS = 200  # of one reply, one by one; the rest is counted
_LONGEST_SAMPLE_BYTES = 19  # a longer chunk has bytes that mean nothing


def question(matchers: Sequence[tuple[str, str, str]], start_ms: int, end_ms: int) -> bytes:
    """The body that asks for a selector's samples from start to end, both included.

    matchers: (label, `=`, `!=`, `=~` or `!~`, value); the metric's name is `__name__`.
    """
    from tbforensics.reading import prompb

    request = prompb.ReadRequest(accepted_response_types=[prompb.STREAMED_XOR_CHUNKS])
    query = request.queries.add(start_timestamp_ms=start_ms, end_timestamp_ms=end_ms)
    for name, operator, value in matchers:
        query.matchers.add(
            type=_OPERATORS.index(operator), name=name.encode(), value=value.encode()
        )
    return bytes(cramjam.snappy.compress_raw(request.SerializeToString()))


def explain(body: bytes) -> tuple[str, tuple[str, ...]]:
    """Why a reply cannot be used, "" when it can; and whether it has chunks that are not read.

    Frames are walked and their sums checked; no sample is read. A reply that was cut between two
    frames looks like a whole one: only the end of the transfer tells.
    """
    notes: tuple[str, ...] = ()
    for number, frame in enumerate(_frames(io.BytesIO(body))):
        if frame.why:
            return f"{frame.why}, after {number} good ones and {frame.offset} bytes", notes
        if not notes and _has_histograms(frame.payload):
            notes = (HISTOGRAMS,)
    return "", notes


def tables(
    capture: Capture, body: BinaryIO, *, without: Mapping[str, str] = {}
) -> Iterator[tuple[str, pa.Table]]:
    """(table, rows) of one reply, a block of series at a time.

    without: labels that the server adds to what it answers here and not to its query API. A label
             that equals one of them is left out.
    Order:   `series`, `samples` and `stale` by (sid, ts), each moment of a series once, as in
             `promrows.tables`. A reply of more than 64 MiB is ordered in parts of that size, each
             as many whole series as fill it; a series of over 4 M samples is a part by itself, or
             several.
    Memory:  a few times such a part, whatever the reply's length.
    """
    reading = _Reading(capture, without)
    for frame in _frames(body):
        if frame.why:
            reading.doubt(frame.offset, f"{frame.why}; what follows is lost", frame.payload)
        else:
            yield from reading.read(frame)
    yield from reading.flush()
    if broken := reading.broken():
        yield promrows.quarantine(capture, broken)


# --- frames --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """One frame; or the first bytes of what is none, and why. That is the last then."""

    offset: int
    payload: bytes
    why: str = ""


def _frames(body: BinaryIO) -> Iterator[_Frame]:
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
            yield _Frame(offset + at, held[at : at + QUARANTINED_BYTES], why)
            return
        yield _Frame(offset + at, payload)
        at = end


def _length(held: bytes, at: int) -> tuple[int, int]:
    """A frame's length and where its checksum is; more than any frame has where it is no length."""
    length = 0
    for n, byte in enumerate(held[at : at + _LENGTH_BYTES]):
        length |= (byte & 127) << (7 * n)
        if byte < 128:
            return length, at + n + 1
    return _MOST_FRAME_BYTES + 1, at


def _has_histograms(payload: bytes) -> bool:
    """Read as a message only where the bytes allow for one: that takes as long as all the rest."""
    if not any(like in payload for like in _LIKE_HISTOGRAMS):
        return False
    from tbforensics.reading import prompb

    kinds = (prompb.HISTOGRAM, prompb.FLOAT_HISTOGRAM)
    try:
        message = prompb.ChunkedReadResponse.FromString(payload)
    except prompb.DecodeError:
        return False
    return any(chunk.type in kinds for series in message.chunked_series for chunk in series.chunks)


# --- series --------------------------------------------------------------------------------


class _Reading:
    """Chunks of one reply, held until there are enough to put their series in order."""

    def __init__(self, capture: Capture, without: Mapping[str, str]) -> None:
        from tbforensics.reading import prompb

        self._prompb = prompb
        self._capture, self._without = capture, without
        self._names = promrows.FewNames()
        self._doubts: list[Broken] = []
        self._more_doubts = self._second_values = 0
        self._all = self._with_histograms = self._with_unknown = 0
        self._last: Any = None  # labels of the last series, as they came
        self._sid: int | None = None  # of the last series; None where that is refused
        self._samples = 0  # of the last series
        self._kinds: set[str] = set()  # of its chunks that are not read
        self._begin()

    def _begin(self) -> None:
        self._series: dict[int, Mapping[str, str]] = {}
        self._sids: list[int] = []  # of each chunk
        self._chunks: list[bytes] = []
        self._counts: list[int] = []  # what each chunk claims
        self._held = 0

    def doubt(self, offset: int, reason: str, piece: bytes = b"") -> None:
        if len(self._doubts) < _MOST_DOUBTS:
            self._doubts.append(Broken(offset, reason, piece[:QUARANTINED_BYTES]))
        else:
            self._more_doubts += 1

    def broken(self) -> list[Broken]:
        """All that could not be read. To be asked at the end."""
        said = []
        if self._more_doubts:
            said.append(f"{self._more_doubts} more pieces cannot be read")
        kept = "are kept in raw/ and not decoded"
        if self._with_histograms:
            said.append(
                f"native histogram chunks {kept}: {self._with_histograms} of {self._all} series"
            )
        if self._with_unknown:
            said.append(
                f"chunks of an unknown encoding {kept}: {self._with_unknown} of {self._all} series"
            )
        return [
            *self._doubts,
            *promrows.second_values(self._second_values),
            *self._names.broken(),
            *(Broken(-1, reason, b"") for reason in said),
        ]

    def read(self, frame: _Frame) -> Iterator[tuple[str, pa.Table]]:
        try:
            message = self._prompb.ChunkedReadResponse.FromString(frame.payload)
        except self._prompb.DecodeError as error:
            self.doubt(frame.offset, f"a frame holds no series: {error}", frame.payload)
            return
        if message.query_index:
            self.doubt(frame.offset, "a frame answers what was not asked", frame.payload)
            return
        for series in message.chunked_series:
            raw = tuple((label.name, label.value) for label in series.labels)
            if raw != self._last:
                if self._held > _HELD_BYTES:
                    yield from self.flush()
                self._enter(raw, frame)
            for chunk in series.chunks:
                self._keep(chunk, frame)
            if self._samples > _MOST_OF_A_SERIES:
                yield from self.flush()

    def _enter(self, raw: tuple[tuple[bytes, bytes], ...], frame: _Frame) -> None:
        """Another series begins."""
        self._last, self._sid, self._samples, self._kinds = raw, None, 0, set()
        self._all += 1
        try:
            labels = {name.decode(): value.decode() for name, value in raw}
        except UnicodeDecodeError:
            self.doubt(frame.offset, "not a series with labels", frame.payload)
            return
        labels = {n: v for n, v in labels.items() if self._without.get(n) != v}
        if self._names.admits(labels):
            self._sid = series_id(self._capture.source, self._capture.query, labels)
            self._labels = labels

    def _keep(self, chunk: Any, frame: _Frame) -> None:
        if chunk.type != self._prompb.XOR:
            self._not_decoded(chunk.type)
            return
        if self._sid is None:
            return
        data = chunk.data
        count = xorchunks.claimed(data)
        if count < 0:
            self.doubt(frame.offset, "a chunk has no room for the samples that it claims", data)
        if count <= 0:
            return
        if self._sid not in self._series:
            self._series[self._sid] = self._labels
            self._held += _SERIES_BYTES + 4 * sum(map(len, self._labels.values()))
        data = data[: 32 + _LONGEST_SAMPLE_BYTES * count]
        self._sids.append(self._sid)
        self._chunks.append(data)
        self._counts.append(count)
        self._held += _CHUNK_BYTES + len(data)
        self._samples += count

    def _not_decoded(self, kind: int) -> None:
        histogram = kind in (self._prompb.HISTOGRAM, self._prompb.FLOAT_HISTOGRAM)
        word = "histogram" if histogram else "unknown"
        if word not in self._kinds:
            self._kinds.add(word)
            self._with_histograms += histogram
            self._with_unknown += not histogram

    # --- rows ------------------------------------------------------------------------------

    def flush(self) -> Iterator[tuple[str, pa.Table]]:
        """Rows of all that is held, by (sid, ts)."""
        series, chunks = self._series, self._chunks
        sids, counts = np.array(self._sids, np.int64), np.array(self._counts, np.int64)
        self._begin()
        self._samples = 0
        order = np.argsort(sids, kind="stable")
        for block in _blocks(sids[order], counts[order]):
            lanes = order[block]
            found = xorchunks.decode([chunks[lane] for lane in lanes.tolist()])
            for place, why in found.broken.items():
                self.doubt(-1, why, chunks[lanes[place]])
            sid = np.repeat(sids[lanes], found.counts)
            yield from self._rows(series, sid, found.times, found.values)

    def _rows(
        self, series: Mapping[int, Mapping[str, str]], sid: Ints, times: Ints, values: Floats
    ) -> Iterator[tuple[str, pa.Table]]:
        sid, times, values, doubled = promrows.in_order(self._capture.window, sid, times, values)
        self._second_values += doubled
        said, asked = (self._capture.source, self._capture.query), np.unique(sid).tolist()
        yield "series", rows("series", [series_row(*said, series[s]) for s in asked])
        nan = np.isnan(values)
        if nan.any():
            stale = values.view(np.uint64) == STALE
            values[nan] = np.nan  # JSON has one NaN only
            if stale.any():
                gone = promrows.samples_table(sid[stale], times[stale], values[stale])
                sid, times, values = sid[~stale], times[~stale], values[~stale]
                yield "samples", promrows.samples_table(sid, times, values)
                yield "stale", gone.select(["sid", "ts"])
                return
        yield "samples", promrows.samples_table(sid, times, values)


def _blocks(sids: Ints, counts: Ints) -> Iterator[slice]:
    """Ranges of chunks that are decoded together: whole series, about as many as fill a cache."""
    ends = np.flatnonzero(np.r_[sids[1:] != sids[:-1], True]) + 1 if len(sids) else sids
    total = np.r_[0, np.cumsum(counts)]
    first = 0
    while first < len(sids):
        most = min(
            first + _BLOCK_CHUNKS,
            int(np.searchsorted(total, total[first] + _BLOCK_SAMPLES, side="right")) - 1,
        )
        fit = int(np.searchsorted(ends, most, side="right")) - 1
        last = int(ends[fit]) if fit >= 0 else 0
        if last <= first:  # a series that does not fit is a block of its own
            last = int(ends[np.searchsorted(ends, first, side="right")])
        yield slice(first, last)
        first = last
