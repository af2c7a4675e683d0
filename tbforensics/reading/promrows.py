"""Rows of the evidence from what a Prometheus reply says. Pure: same reply, same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows, series_id, series_row
from tbforensics.model import Capture, Json, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson
from tbforensics.reading.promjson import Broken, Item

MOST_LABEL_NAMES = 1_000  # in one reply; each becomes a level of a frame's columns


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
        yield _quarantine(capture, reply.broken or [Broken(0, reply.error, b"")])


def _samples(capture: Capture, reply: promjson.Reply) -> Iterator[tuple[str, pa.Table]]:
    known, over = _with_few_names(reply.items)
    identified = sorted(
        ((series_id(capture.source, capture.query, item.labels), item) for item in known),
        key=lambda pair: pair[0],
    )
    items = [item for _, item in identified]
    sids = np.array([sid for sid, _ in identified], np.int64)
    places, times, values, broken = promjson.numbers(items)
    inside = _inside(capture.window, times)
    if not inside.all():
        places, times, values = places[inside], times[inside], values[inside]
    sid = sids[places]
    same = sid[1:] == sid[:-1]
    if (same & (times[1:] <= times[:-1])).any():
        order = np.lexsort((times, sid))  # stable, so the first of a moment stays first
        sid, times, values = sid[order], times[order], values[order]
        again = np.r_[False, (sid[1:] == sid[:-1]) & (times[1:] == times[:-1])]
        bits = values.view(np.int64)
        differ = again & np.r_[False, bits[1:] != bits[:-1]]
        if differ.any():
            reason = f"{differ.sum()} samples give a second value for a moment; the first stays"
            broken.append(Broken(-1, reason, b""))
        sid, times, values = sid[~again], times[~again], values[~again]
    histograms = list(_histograms(capture, identified, broken))
    seen = {*np.unique(sid).tolist(), *(row["sid"] for row in histograms)}
    named = {s: item for s, item in identified if s in seen}
    records = [series_row(capture.source, capture.query, i.labels) for i in named.values()]
    yield "series", rows("series", records)
    columns = [pa.array(sid), pa.array(times).cast(SCHEMAS["samples"].field("ts").type)]
    table = pa.Table.from_arrays([*columns, pa.array(values)], schema=SCHEMAS["samples"])
    yield "samples", table
    if histograms:
        yield "histograms", rows("histograms", histograms)
    if reply.broken or broken or over:
        yield _quarantine(capture, [*reply.broken, *broken, *over])


def _with_few_names(items: Sequence[Item]) -> tuple[list[Item], list[Broken]]:
    """The series whose label names, all together, are as few as real ones; the rest set aside."""
    names: set[str] = set()
    known: list[Item] = []
    for item in items:
        fresh = item.labels.keys() - names
        if len(names) + len(fresh) <= MOST_LABEL_NAMES:
            names |= fresh
            known.append(item)
    if len(known) == len(items):
        return known, []
    reason = f"{len(items) - len(known)} series have more than {MOST_LABEL_NAMES} label names"
    return known, [Broken(-1, reason, b"")]


def _inside(window: Window | None, times: promjson.Ints) -> npt.NDArray[np.bool_]:
    if window is None:
        return np.ones(len(times), bool)
    return (times >= promql.ceil_ms(window.start)) & (times < promql.ceil_ms(window.end))


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
    state = "ok" if not error else "unsupported" if capture.status in (404, 405, 501) else "error"
    value = promjson.compact({"message": error} if error else reply.data)
    if value is None:
        yield _quarantine(capture, [Broken(0, "nested too deeply", b"")])
    elif reply.broken and not capture.error:
        yield _quarantine(capture, reply.broken)
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


def _quarantine(capture: Capture, broken: Iterable[Broken]) -> tuple[str, pa.Table]:
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
