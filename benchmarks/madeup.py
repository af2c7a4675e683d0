"""Evidence of any size, made up: the same rows and the same bytes each time.

A fleet of targets scraped every 15 s, with times that jitter as those of a scraper do, and log
lines that speak of the same time. Parts are written as a collection writes them: one after another
two hours, each ordered by series and time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from tbforensics.evidence import SCHEMAS, Part, rows, series_row, write_shared
from tbforensics.model import Window

START = datetime(2026, 3, 10, tzinfo=UTC)
START_MS = round(START.timestamp() * 1000)
SCRAPE_MS = 15_000
SLICE_MS = 2 * 3600 * 1000
LES = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60")
PEERS = tuple(f"{n:02x}" * 32 for n in range(16))
QUERIES = ("up", "height", "packets_total", "latency", "queue_depth", "busy_seconds_total")
REASONS = ("congestion", "loss", "timeout", "checksum")


@dataclass(frozen=True)
class Size:
    """100 series for each target."""

    targets: int
    hours: int
    lines: int

    @property
    def span(self) -> Window:
        return Window(START, START + timedelta(hours=self.hours))


SIZES = {
    "S": Size(targets=5, hours=6, lines=200_000),
    "M": Size(targets=10, hours=24, lines=1_000_000),
    "B": Size(targets=50, hours=24, lines=5_000_000),
}


def write(folder: Path, size: Size) -> None:
    """`evidence/` of a case: a few families, of whole numbers most of them as usual."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(11)
    offsets = random.integers(10, SCRAPE_MS - 10, size.targets)  # a scraper spreads its targets
    shared = []
    for query, family in _families(size).items():
        standing = np.zeros(len(family))
        for number, times in enumerate(_scrapes(size, offsets), start=1):
            values, standing = _values(query, standing, times.shape[1])
            with Part(folder, "main", query, number) as part:
                part.add("series", rows("series", [labels for _, labels in family]))
                part.add("samples", _samples(family, times, values))
            shared.append(part.shared)
    with Part(folder, "node", "logs") as part:
        for batch in _lines(size):
            part.add("log_lines", batch)
    write_shared(folder, shared)


def _families(size: Size) -> Mapping[str, list[tuple[int, dict[str, object]]]]:
    """Each query's series: the number of the target, and the row of the table `series`."""
    kinds: dict[str, list[dict[str, str]]] = {
        "up": [{}],
        "height": [{}],
        "packets_total": [{"peer": peer, "reason": why} for peer in PEERS for why in REASONS],
        "latency": [{"le": le, "__name__": "latency_bucket"} for le in (*LES, "+Inf")],
        "queue_depth": [{"queue": f"q{n:02}"} for n in range(10)],
        "busy_seconds_total": [{"worker": f"w{n}"} for n in range(10)],
    }
    return {
        query: [
            (target, series_row("main", query, {"__name__": query, **_named(target), **labels}))
            for target in range(size.targets)
            for labels in family
        ]
        for query, family in kinds.items()
    }


def _named(target: int) -> dict[str, str]:
    return {"job": "node", "instance": f"node-{target:03}:9100"}


def _scrapes(size: Size, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """The times of each slice, one row for each target: a few milliseconds early or late."""
    random = np.random.default_rng(12)
    for begin in range(0, size.hours * 3600 * 1000, SLICE_MS):
        even = START_MS + np.arange(begin, begin + SLICE_MS, SCRAPE_MS)
        jitter = random.integers(-6, 7, (len(offsets), len(even)))
        yield even + offsets[:, None] + jitter


def _values(query: str, standing: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of one slice, one row for each series, and where each series stands at its end."""
    random = np.random.default_rng([*query.encode(), count, round(float(standing.sum()))])
    shape = (len(standing), count)
    if query == "up":
        return np.ones(shape), standing
    if query == "queue_depth":
        return random.integers(0, 200, shape).astype(float), standing
    if query == "busy_seconds_total":
        values = standing[:, None] + random.exponential(4.0, shape).cumsum(axis=1)
        return values, values[:, -1].copy()
    rises = random.poisson(0.8 if query == "height" else 3.0, shape).astype(float)
    if query == "latency":  # a bucket counts what the buckets below it count
        rises = rises.reshape(-1, len(LES) + 1, count).cumsum(axis=1).reshape(shape)
    values = standing[:, None] + rises.cumsum(axis=1)
    if query == "packets_total":  # one series of a hundred begins again at zero
        begun = random.integers(0, count, shape[0] // 100)
        for row, at in zip(range(0, shape[0], 100), begun, strict=False):
            values[row, at:] -= values[row, at]
    return values, values[:, -1].copy()


def _samples(
    family: list[tuple[int, dict[str, object]]], times: np.ndarray, values: np.ndarray
) -> pa.Table:
    sids = np.array([row["sid"] for _, row in family])
    order = np.argsort(sids)
    targets = np.array([target for target, _ in family])[order]
    schema = SCHEMAS["samples"]
    columns = {
        "sid": pa.array(np.repeat(sids[order], times.shape[1])),
        "ts": pa.array(times[targets].ravel()).cast(schema.field("ts").type),
        "value": pa.array(values[order].ravel()),
    }
    return pa.table(columns, schema=schema)


def _lines(size: Size, together: int = 500_000) -> Iterator[pa.Table]:
    schema = SCHEMAS["log_lines"]
    random = np.random.default_rng(13)
    spread = size.hours * 3600 * 1000
    for first in range(0, size.lines, together):
        count = min(together, size.lines - first)
        ids = np.arange(first, first + count)
        levels = random.choice(4, count, p=[0.28, 0.7, 0.015, 0.005])
        reasons, peers = random.integers(0, 4, count), random.integers(0, 16, count)
        ms = START_MS + (ids * spread) // size.lines
        targets = random.integers(0, size.targets, count)
        said = np.char.add("handshake with peer gave ", np.array(REASONS)[reasons])
        columns = {
            "source": pa.array(["node"]).take(pa.array(np.zeros(count, int))),
            "file": pa.array(["node.jsonl"]).take(pa.array(np.zeros(count, int))),
            "line": pa.array(ids + 1),
            "offset": pa.array(ids * 240),
            "id": pa.array(ids),
            "ts": pa.array(ms).cast(schema.field("ts").type),
            "level": pa.array(["DEBUG", "INFO", "WARN", "ERROR"]).take(pa.array(levels)),
            "message": pa.array(said),
            "correlation_id": pa.array([f"c-{n:x}" for n in ids // 7]),
            "peer": pa.array(PEERS).take(pa.array(peers)),
            "tx": pa.nulls(count, pa.string()),
            "block": pa.array(ids // 1000),
            "target": pa.array([_named(n)["instance"] for n in range(size.targets)]).take(
                pa.array(targets)
            ),
            "fields": pa.array(["{}"]).take(pa.array(np.zeros(count, int))),
        }
        yield pa.table(columns, schema=schema)
