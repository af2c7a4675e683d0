"""Small evidence made by hand, for tests of what reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from tbforensics.evidence import Evidence, Part, rows, series_id, series_row, write_shared
from tbforensics.model import Capture, Frames, Query, Window

START = datetime(2026, 3, 10, 10, tzinfo=UTC)
TARGET = {"job": "j", "instance": "a"}
Samples = Sequence[tuple[float, float]]  # (seconds after START, value)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def window(start_s: float, end_s: float) -> Window:
    return Window(at(start_s), at(end_s))


def capture(query: str, source: str = "main", **more: Any) -> Capture:
    given = {"role": "samples", "request": {}, "asked_at": at(7200), "sha256": "0" * 64, **more}
    return Capture(source=source, query=query, **given)


class Writer:
    """Parts of one case, by the captures that rows are handed in with."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._parts = folder, dict[tuple[str, str], Part]()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, capture: Capture, table: str, batch: pa.Table) -> None:
        key = (capture.source, capture.query)
        if key not in self._parts:
            self._parts[key] = Part(self._folder, *key)
        self._parts[key].add(table, batch)

    def close(self) -> None:
        for part in self._parts.values():
            part.__exit__(None)
        write_shared(self._folder, [part.shared for part in self._parts.values()])


def evidence_of(
    folder: Path,
    series: Mapping[str, Mapping[tuple[tuple[str, str], ...], Samples]] | None = None,
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Evidence:
    """series: {query: {((label, value), ...): samples}}; tables: rows of the other tables."""
    writer = Writer(folder)
    for query, lines in sorted((series or {}).items()):
        for labels, samples in lines.items():
            named = {"__name__": query, **dict(labels)}
            writer.add(capture(query), "series", rows("series", [series_row("main", query, named)]))
            sid = series_id("main", query, named)
            batch = [{"sid": sid, "ts": at(s), "value": v} for s, v in samples]
            writer.add(capture(query), "samples", rows("samples", batch))
    for table, records in sorted((tables or {}).items()):
        for record in records:
            named = record.get("query", table)
            writer.add(capture(named, record["source"]), table, rows(table, [record]))
    writer.close()
    return Evidence(folder)


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({**TARGET, **given}.items()))


def ups(first_s: float, last_s: float, every_s: float = 15, value: float = 1) -> Samples:
    count = int((last_s - first_s) / every_s) + 1
    return [(first_s + n * every_s, value) for n in range(count)]


def steps(values: Mapping[Any, Sequence[float]], step_s: float, *names: str) -> pd.DataFrame:
    """A frame as a kind sees it: one column per tuple of labels, steps from START on."""
    length = len(next(iter(values.values()), ()))
    index = pd.date_range(START, periods=length, freq=pd.Timedelta(seconds=step_s), name="ts")
    columns = pd.MultiIndex.from_tuples(
        [("main", *key) for key in values], names=["source", *names]
    )
    return pd.DataFrame(dict(enumerate(values.values())), index=index).set_axis(columns, axis=1)


def nothing(queries: Sequence[Query], index: pd.DatetimeIndex) -> dict[str, pd.DataFrame]:
    """A frame without columns, or without rows, for every query of a catalogue."""
    empty = pd.DataFrame(index=index, columns=pd.MultiIndex.from_tuples([], names=["source"]))
    logs = pd.DataFrame(
        {
            "ts": pd.to_datetime([], utc=True),
            **{
                name: pd.Series([], dtype=object)
                for name in ("message", "peer", "correlation_id", "file", "line", "source", "level")
            },
        }
    )
    answers = pd.DataFrame(columns=["ts", "source", "query", "state", "value"])
    return {
        query.name: logs if query.source == "logs" else answers if query.shape == "rows" else empty
        for query in queries
    }


def frames_of(
    queries: Sequence[Query], seen: Mapping[str, pd.DataFrame], step_s: float, calm_steps: int
) -> Frames:
    """Frames whose first `calm_steps` are the baseline and the rest the window."""
    index = next(iter(seen.values())).index
    middle, end = calm_steps * step_s, len(index) * step_s
    return Frames(
        window=window(middle, end),
        baseline=window(0, middle),
        step_s=step_s,
        tables={**nothing(queries, index), **seen},
    )
