"""Rows of the evidence from what a Prometheus reply says. Pure: same reply, same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows, series_id
from tbforensics.model import Capture, Json, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson
from tbforensics.reading.promjson import Broken, Floats, Ints, Item

MOST_LABEL_NAMES = 1_000  # in one reply; each becomes a level of a frame's columns
_MOST_NAME_CHARACTERS = 1 << 20  # in all of them


def tables(
    capture: Capture, reply: promjson.Reply, *, samples: str
) -> Iterator[tuple[str, pa.Table]]:
    """(table, rows) of one reply; `samples` is the role of the captures that hold samples.

    Order:      samples and histograms by (sid, ts), each moment of a series once.
    Duplicates: of two samples of one series and moment the first stays; a differing second one
                is noted in `quarantine`.
    Window:     samples outside the capture's window are dropped; they were asked for only
                because servers disagree on which end of a range belongs to it.
    """
    if capture.role != samples or reply.kind == "string":
        yield from _snapshot(capture, reply)
    elif not reply.error:
        yield from _samples(capture, reply)
    elif capture.status == 200:
        yield quarantine(capture, reply.broken or [Broken(0, reply.error, b"")])


def _samples(capture: Capture, reply: promjson.Reply) -> Iterator[tuple[str, pa.Table]]:
    few = FewNames()
    known = [item for item in reply.items if few.admits(item.labels)]
    identified = sorted(
        ((series_id(capture.source, capture.query, item.labels), item) for item in known),
        key=lambda pair: pair[0],
    )
    items = [item for _, item in identified]
    sids = np.array([sid for sid, _ in identified], np.int64)
    places, times, values, broken = promjson.numbers(items)
    sid, times, values, doubled = in_order(capture.window, sids[places], times, values)
    broken += second_values(doubled)
    histograms = list(_histograms(capture, identified, broken))
    seen = {*distinct(sid), *(row["sid"] for row in histograms)}
    named = {s: item.labels for s, item in identified if s in seen}
    yield "series", series_table(capture, named)
    yield "samples", samples_table(sid, times, values)
    if histograms:
        yield "histograms", rows("histograms", histograms)
    broken += few.broken()
    if reply.broken or broken:
        yield quarantine(capture, [*reply.broken, *broken])


class FewNames:
    """Lets series in whose label names, all together, are as few as real ones."""

    def __init__(self) -> None:
        self._names: set[str] = set()
        self._characters = self._too_many = self._too_long = 0

    def admits(self, labels: Mapping[str, str]) -> bool:
        fresh = labels.keys() - self._names
        if not fresh:
            return True
        characters = self._characters + sum(map(len, fresh))
        if len(self._names) + len(fresh) > MOST_LABEL_NAMES:
            self._too_many += 1
            return False
        if characters > _MOST_NAME_CHARACTERS:
            self._too_long += 1
            return False
        self._names |= fresh
        self._characters = characters
        return True

    def broken(self) -> list[Broken]:
        said = (
            (self._too_many, f"more than {MOST_LABEL_NAMES} label names"),
            (self._too_long, "label names of megabytes"),
        )
        return [Broken(-1, f"{count} series have {what}", b"") for count, what in said if count]


def in_order(
    window: Window | None, sid: Ints, times: Ints, values: Floats
) -> tuple[Ints, Ints, Floats, int]:
    """Samples within a window by (sid, ts), each moment once.

    Shape: sid, times and values of what stays; how many gave a second value for a moment.
    """
    if window is not None:
        inside = times >= promql.ceil_ms(window.start)
        inside &= times < promql.ceil_ms(window.end)
        if not inside.all():
            sid, times, values = sid[inside], times[inside], values[inside]
    same = sid[1:] == sid[:-1]
    if not (same & (times[1:] <= times[:-1])).any() and (sid[1:] >= sid[:-1]).all():
        return sid, times, values, 0
    order = np.lexsort((times, sid))  # stable, so the first of a moment stays first
    sid, times, values = sid[order], times[order], values[order]
    again = np.r_[False, (sid[1:] == sid[:-1]) & (times[1:] == times[:-1])]
    bits = values.view(np.int64)
    differ = again & np.r_[False, bits[1:] != bits[:-1]]
    return sid[~again], times[~again], values[~again], int(differ.sum())


def second_values(count: int) -> list[Broken]:
    """What is said of moments with two values."""
    if not count:
        return []
    reason = f"{count} samples give a second value for a moment; the first stays"
    return [Broken(-1, reason, b"")]


def distinct(sid: Ints) -> list[int]:
    """Each of numbers that are in order, once."""
    first = np.ones(len(sid), bool)
    np.not_equal(sid[1:], sid[:-1], out=first[1:])
    return [int(n) for n in sid[first]]


def series_table(capture: Capture, named: Mapping[int, Mapping[str, str]]) -> pa.Table:
    """Rows of `series` for labels by sid, column by column: half of a row's cost is its sid."""
    schema, count = SCHEMAS["series"], len(named)
    labels = [
        sorted((name, value) for name, value in pairs.items() if name != "__name__")
        for pairs in named.values()
    ]
    columns = [
        [*named],
        [capture.source] * count,
        [capture.query] * count,
        [pairs.get("__name__", "") for pairs in named.values()],
        labels,
    ]
    arrays = [pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def samples_table(sid: Ints, times: Ints, values: Floats) -> pa.Table:
    columns = [pa.array(sid), pa.array(times).cast(SCHEMAS["samples"].field("ts").type)]
    return pa.Table.from_arrays([*columns, pa.array(values)], schema=SCHEMAS["samples"])


def _histograms(
    capture: Capture, identified: Sequence[tuple[int, Item]], broken: list[Broken]
) -> Iterator[dict[str, Json]]:
    """Native histograms, ordered as samples are."""
    found: dict[tuple[int, int], dict[str, Json]] = {}
    for sid, item in identified:
        for entry in item.histograms:
            try:
                seconds, histogram = entry
                ts = round(float(seconds) * 1000)
                moment = promql.moment_of(ts)
                row = {
                    "sid": sid,
                    "ts": moment,
                    "count": float(histogram["count"]),
                    "sum": float(histogram["sum"]),
                    "buckets": (promjson.compact(histogram.get("buckets", [])) or b"null").decode(),
                }
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                piece = (promjson.compact(entry) or b"")[:QUARANTINED_BYTES]
                broken.append(Broken(-1, "not a native histogram", piece))
                continue
            if capture.window is None or moment in capture.window:
                found.setdefault((sid, ts), row)
    for key in sorted(found):
        yield found[key]


def _snapshot(capture: Capture, reply: promjson.Reply) -> Iterator[tuple[str, pa.Table]]:
    error = capture.error or reply.error
    lacking = capture.status in (404, 405, 501) or "unsupported path" in error
    state = "ok" if not error else "unsupported" if lacking else "error"
    value = promjson.compact({"message": error} if error else reply.data)
    if value is None:
        yield quarantine(capture, [Broken(0, "nested too deeply", b"")])
    elif reply.broken and not capture.error:
        yield quarantine(capture, reply.broken)
    if value is not None:
        row = {
            "source": capture.source,
            "query": capture.query,
            "role": capture.role,
            "ts": capture.asked_at,
            "generation": "",
            "state": state,
            "value": value.decode(),
        }
        yield "snapshots", rows("snapshots", [row])


def quarantine(capture: Capture, broken: Iterable[Broken]) -> tuple[str, pa.Table]:
    """What of a reply could not be read, as rows."""
    records = [
        {
            "source": capture.source,
            "query": capture.query,
            "file": f"raw/{capture.sha256}.zst" if capture.sha256 else "",
            "offset": piece.offset,
            "reason": piece.reason,
            "bytes": piece.piece[:QUARANTINED_BYTES],
        }
        for piece in broken
    ]
    return "quarantine", rows("quarantine", records)
