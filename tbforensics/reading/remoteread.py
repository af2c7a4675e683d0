"""Prometheus remote read: its question, and rows of the evidence from its streamed reply.

The reply is a row of frames, each a `ChunkedReadResponse` with chunks of one series as the server
keeps them. So it is a seventh of the same reply as JSON and costs the server next to nothing. The
rows are those of the JSON reply for the same time.

Source: prometheus/prompb/remote.proto and prometheus/storage/remote/codec.go.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import cramjam
import numpy as np
import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, series_id
from tbforensics.model import Capture
from tbforensics.reading import promrows, xorchunks
from tbforensics.reading.promjson import Broken, Floats, Ints
from tbforensics.reading.remoteframes import Frame, framed, frames

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

# Held at once: frames of so many bytes, counted with what Python adds for a series and a chunk.
_HELD_BYTES, _SERIES_BYTES, _CHUNK_BYTES = 1 << 26, 1024, 128
# Read at once: whole series, about as many as fill a cache; of a very long one so many samples.
_BLOCK_CHUNKS, _BLOCK_SAMPLES, _MOST_OF_A_SERIES = 8192, 1 << 21, 1 << 22
_MOST_DOUBTS = 200  # of one reply, one by one; the rest is counted


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
    for number, frame in enumerate(frames(io.BytesIO(body))):
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
             as many whole series as fill it; a series of over 4 M samples, in parts of so many.
    Memory:  a few times such a part, whatever the reply's length.
    """
    reading = _Reading(capture, without)
    for frame in frames(body):
        if frame.why:
            reading.doubt(frame.offset, f"{frame.why}; what follows is lost", frame.payload)
        else:
            yield from reading.read(frame)
    yield from reading.flush()
    if broken := reading.broken():
        yield promrows.quarantine(capture, broken)


# --- labels --------------------------------------------------------------------------------


def labels_in(body: bytes) -> list[dict[str, str]] | None:
    """The labels of each series of a reply, in its order; None for what is no whole reply."""
    from tbforensics.reading import prompb

    found = []
    try:
        for frame in frames(io.BytesIO(body)):
            if frame.why:
                return None
            message = prompb.ChunkedReadResponse.FromString(frame.payload)
            found += [
                {label.name.decode(): label.value.decode() for label in series.labels}
                for series in message.chunked_series
            ]
    except (prompb.DecodeError, UnicodeDecodeError):
        return None
    return found


def with_labels(body: bytes, labels: Sequence[Mapping[str, str]]) -> bytes:
    """A whole reply with other labels on the same samples, series by series."""
    from tbforensics.reading import prompb

    written, named = [], iter(labels)
    for frame in frames(io.BytesIO(body)):
        message = prompb.ChunkedReadResponse.FromString(frame.payload)
        for series in message.chunked_series:
            del series.labels[:]
            for name, value in sorted(next(named).items()):
                series.labels.add(name=name.encode(), value=value.encode())
        written.append(framed(message.SerializeToString()))
    return b"".join(written)


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
        self._labels: Mapping[str, str] = {}  # of the last series
        self._kinds: set[str] = set()  # of its chunks that are not read
        self._begin()

    def _begin(self) -> None:
        self._series: dict[int, Mapping[str, str]] = {}
        self._sids: list[int] = []  # of each chunk
        self._chunks: list[bytes] = []
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

    def read(self, frame: Frame) -> Iterator[tuple[str, pa.Table]]:
        try:
            message = self._prompb.ChunkedReadResponse.FromString(frame.payload)
        except self._prompb.DecodeError as error:
            self.doubt(frame.offset, f"a frame holds no series: {error}", frame.payload)
            return
        if message.query_index:
            self.doubt(frame.offset, "a frame answers what was not asked", frame.payload)
            return
        for series in message.chunked_series:
            if not series.chunks:
                continue
            if len(series.labels) > promrows.MOST_LABEL_NAMES:
                self.doubt(frame.offset, "a series has labels without end", frame.payload)
                continue
            raw = tuple([(label.name, label.value) for label in series.labels])
            if self._held > (_HELD_BYTES if raw != self._last else 2 * _HELD_BYTES):
                yield from self.flush()
            if raw != self._last:
                self._enter(raw, frame)
            chunks = [chunk.data for chunk in series.chunks if chunk.type == self._prompb.XOR]
            if len(chunks) < len(series.chunks):
                self._not_decoded({chunk.type for chunk in series.chunks} - {self._prompb.XOR})
            if chunks and self._sid is not None:
                self._keep(self._sid, chunks)

    def _enter(self, raw: tuple[tuple[bytes, bytes], ...], frame: Frame) -> None:
        """Another series begins."""
        self._last, self._sid, self._kinds = raw, None, set()
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

    def _keep(self, sid: int, chunks: list[bytes]) -> None:
        if sid not in self._series:
            self._series[sid] = self._labels
            self._held += _SERIES_BYTES + 4 * sum(map(len, self._labels.values()))
        self._sids += [sid] * len(chunks)
        self._chunks += chunks
        self._held += _CHUNK_BYTES * len(chunks) + sum(map(len, chunks))

    def _not_decoded(self, kinds: set[int]) -> None:
        histograms = {self._prompb.HISTOGRAM, self._prompb.FLOAT_HISTOGRAM}
        found = {"histogram" if kind in histograms else "unknown" for kind in kinds} - self._kinds
        self._kinds |= found
        self._with_histograms += "histogram" in found
        self._with_unknown += "unknown" in found

    # --- rows ------------------------------------------------------------------------------

    def flush(self) -> Iterator[tuple[str, pa.Table]]:
        """Rows of all that is held, by (sid, ts)."""
        series, chunks, sids = self._series, self._chunks, np.array(self._sids, np.int64)
        self._begin()
        order = np.argsort(sids, kind="stable")
        chunks, sids = [chunks[place] for place in order.tolist()], sids[order]
        counts = xorchunks.claims(chunks)
        for block in _blocks(sids, np.maximum(counts, 0)):
            found = xorchunks.decode(chunks[block], counts[block])
            for place, why in found.broken.items():
                self.doubt(-1, f"a chunk cannot be read: {why}", chunks[block][place])
            sid = np.repeat(sids[block], found.counts)
            yield from self._rows(series, sid, found.times, found.values)

    def _rows(
        self, series: Mapping[int, Mapping[str, str]], sid: Ints, times: Ints, values: Floats
    ) -> Iterator[tuple[str, pa.Table]]:
        sid, times, values, doubled = promrows.in_order(self._capture.window, sid, times, values)
        self._second_values += doubled
        named = {sid: series[sid] for sid in promrows.distinct(sid)}
        yield "series", promrows.series_table(self._capture, named)
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
    """Ranges of chunks that are read at once."""
    ends = np.r_[np.flatnonzero(sids[1:] != sids[:-1]) + 1, len(sids)]  # of each series
    samples = np.r_[0, np.cumsum(counts)]
    first = 0
    while first < len(sids):

        def within(most: int, first: int = first) -> int:
            """How far so many samples reach."""
            return int(np.searchsorted(samples, samples[first] + most, side="right")) - 1

        fit = ends[ends <= min(first + _BLOCK_CHUNKS, within(_BLOCK_SAMPLES))]
        last = int(fit[-1]) if len(fit) and fit[-1] > first else 0
        if not last:
            whole = int(ends[np.searchsorted(ends, first, side="right")])
            last = max(first + 1, min(whole, within(_MOST_OF_A_SERIES)))
        yield slice(first, last)
        first = last
