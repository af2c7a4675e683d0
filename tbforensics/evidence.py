"""Parquet parts and the DuckDB views over them; the only SQL.

Parts are the evidence: ordered rows, fixed encodings, the same bytes for the same input. A DuckDB
file never has the same bytes twice, so `evidence.duckdb` holds views only and can be thrown away.

    series      sid, source, query, metric, labels     one row per labelled line
    samples     sid, ts, value                         labels are stored once, never per sample
    histograms  sid, ts, count, sum, buckets           native histograms, kept apart
    log_lines   source, file, line, offset, ts, level, message, peer, ...
    snapshots   source, query, ts, generation, value   one JSON answer, true at its `ts`
    quarantine  source, file, line, offset, reason, bytes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Window

_MS = pa.timestamp("ms", tz="UTC")
_LABELS = pa.map_(pa.string(), pa.string())

SCHEMAS: Mapping[str, pa.Schema] = {
    "series": pa.schema(
        [
            ("sid", pa.int64()),
            ("source", pa.string()),
            ("query", pa.string()),
            ("metric", pa.string()),
            ("labels", _LABELS),  # sorted by name, without __name__
        ]
    ),
    "samples": pa.schema([("sid", pa.int64()), ("ts", _MS), ("value", pa.float64())]),
    "histograms": pa.schema(
        [
            ("sid", pa.int64()),
            ("ts", _MS),
            ("count", pa.float64()),
            ("sum", pa.float64()),
            ("buckets", pa.string()),  # JSON: [[boundary rule, lower, upper, count], ...]
        ]
    ),
    "log_lines": pa.schema(
        [
            ("source", pa.string()),
            ("file", pa.string()),  # file name, or the path of the request
            ("line", pa.int64()),  # 1 for the first line, or the row's place in its reply
            ("offset", pa.int64()),  # bytes before the line, -1 where that means nothing
            ("id", pa.int64()),
            ("ts", _MS),  # null when the line has no time
            ("level", pa.string()),  # upper case
            ("message", pa.string()),
            ("correlation_id", pa.string()),
            ("peer", pa.string()),  # hex where it is a known spelling of a peer id, else as it came
            ("tx", pa.string()),
            ("block", pa.int64()),
            ("target", pa.string()),
            ("fields", pa.string()),  # JSON object of everything else that the line said
        ]
    ),
    "snapshots": pa.schema(
        [
            ("source", pa.string()),
            ("query", pa.string()),
            ("role", pa.string()),
            ("ts", _MS),  # when it was asked
            ("generation", pa.string()),  # "A", "B", "mixed", "" where it makes no difference
            ("state", pa.string()),  # "ok", "unsupported", "error"
            ("value", pa.string()),  # JSON with field names of one generation; the error otherwise
        ]
    ),
    "quarantine": pa.schema(
        [
            ("source", pa.string()),
            ("query", pa.string()),
            ("file", pa.string()),
            ("line", pa.int64()),
            ("offset", pa.int64()),
            ("reason", pa.string()),
            ("bytes", pa.binary()),  # the first 4 KiB of what could not be read
        ]
    ),
}
QUARANTINED_BYTES = 4096

_ENCODINGS = {
    "samples": {"sid": "RLE_DICTIONARY", "ts": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"}
}


def series_id(source: str, query: str, labels: Mapping[str, str]) -> int:
    """A series' number, the same on every machine: 64 bits of a hash of what names it.

    Labels include `__name__`. Workers need not agree on a counter to agree on this.
    """
    name = json.dumps([source, query, sorted(labels.items())], ensure_ascii=False)
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def series_row(source: str, query: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """One row of the `series` table."""
    return {
        "sid": series_id(source, query, labels),
        "source": source,
        "query": query,
        "metric": labels.get("__name__", ""),
        "labels": sorted((k, v) for k, v in labels.items() if k != "__name__"),
    }


def rows(table: str, records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Records as Arrow in a table's schema; missing keys are null."""
    return pa.Table.from_pylist(list(records), schema=SCHEMAS[table])
