"""Parquet parts and the DuckDB views over them; the only SQL.

Parts are the evidence: ordered rows, fixed encodings, the same bytes for the same input. A DuckDB
file never has the same bytes twice, so `evidence.duckdb` holds views only and can be thrown away.

    series      sid, source, query, metric, labels     one row per labelled line
    samples     sid, ts, value                         labels are stored once, never per sample
    stale       sid, ts                                when a series, or its target, went away
    histograms  sid, ts, count, sum, buckets           native histograms, kept apart
    log_lines   source, file, line, offset, ts, level, message, peer, ...
    records     source, query, file, line, ts, value   one JSON record of a journal
    snapshots   source, query, ts, generation, value   one JSON answer, true at its `ts`
    quarantine  source, file, line, offset, reason, bytes

They lie below the case's folder or in an object store (`store`), which DuckDB reads piece by piece.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, cast

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tbforensics import store
from tbforensics.errors import EvidenceError
from tbforensics.model import Window

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
    "stale": pa.schema([("sid", pa.int64()), ("ts", _MS)]),
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
    "records": pa.schema(
        [
            ("source", pa.string()),
            ("query", pa.string()),
            ("file", pa.string()),
            ("line", pa.int64()),  # 1 for the first line
            ("offset", pa.int64()),  # bytes before the line
            ("place", pa.int64()),  # 0, or the place in an array that one line holds
            ("ts", pa.timestamp("ns", tz="UTC")),  # null where the record has no time
            ("value", pa.string()),  # JSON object, numbers as they were spelled
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
MAKING = ".making"  # below the case's folder: parts that are not whole yet

# Times, lines and offsets climb by near-equal steps, and values of one series resemble each other
# byte by byte. What is hardly ever said twice gains nothing from a dictionary; all else has one.
_STEPS, _SPLIT, _AS_IT_IS = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "PLAIN"
_ENCODINGS: Mapping[str, dict[str, str]] = {
    "samples": {"ts": _STEPS, "value": _SPLIT},
    "log_lines": dict.fromkeys(("line", "offset", "id", "ts", "block"), _STEPS)
    | dict.fromkeys(("message", "correlation_id", "fields"), _AS_IT_IS),
    "records": dict.fromkeys(("line", "offset", "place", "ts"), _STEPS) | {"value": _AS_IT_IS},
}
_LEVELS = {"samples": 3}  # of zstd; texts are hardly smaller by a higher one than 1, and later


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


# --- writing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shared:
    """What one part adds to the tables that all parts share: `series` and `quarantine`."""

    series: pa.Table
    quarantine: pa.Table


class Part:
    """Rows of one query of one source, in the order in which they are handed in.

    Files appear under their names when they are whole. So whoever dies while he makes a part, or
    makes one that another has made meanwhile, leaves the same bytes as if he had not been there.

    number: a query with very many replies has several parts, so that they can be made at once.
    """

    def __init__(self, folder: Path, source: str, query: str, number: int = 1) -> None:
        self._place, self._name = store.place_of(folder), _part_name(source, query, number)
        self._open: dict[str, tuple[Path, pq.ParquetWriter]] = {}
        self._shared: dict[str, list[pa.Table]] = {"series": [], "quarantine": []}

    def add(self, table: str, batch: pa.Table) -> None:
        if batch.num_rows == 0:
            return
        if table in self._shared:
            self._shared[table].append(batch)
            return
        if table not in self._open:
            self._open[table] = _begun(self._place, table)
        self._open[table][1].write_table(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        while self._open:
            table, (path, writer) = self._open.popitem()
            writer.close()
            if failure:
                path.unlink(missing_ok=True)
            else:
                _put(path, self._place, table, self._name)

    @property
    def shared(self) -> Shared:
        return Shared(
            _distinct(_joined("series", self._shared["series"])),
            _joined("quarantine", self._shared["quarantine"]),
        )


def _part_name(source: str, query: str, number: int) -> str:
    ending = "" if number == 1 else f".{number:04}"
    return f"{source}.{query}{ending}.parquet"


def drop(folder: Path, source: str, query: str, number: int) -> None:
    """Take the parts of that name away again."""
    parts, name = store.place_of(folder) / "evidence", _part_name(source, query, number)
    for table in SCHEMAS:
        (parts / table / name).unlink(missing_ok=True)


def write_shared(folder: Path, shared: Sequence[Shared]) -> None:
    """One part each for `series`, by sid, and for `quarantine`, in the order of the parts."""
    series = _distinct(_joined("series", [part.series for part in shared]))
    quarantine = _joined("quarantine", [part.quarantine for part in shared])
    place = store.place_of(folder)
    for table, batch in (("series", series), ("quarantine", quarantine)):
        path, writer = _begun(place, table)
        writer.write_table(batch)
        writer.close()
        _put(path, place, table, "all.parquet")
    store.remove(place / MAKING)


def _joined(table: str, batches: Sequence[pa.Table]) -> pa.Table:
    return pa.concat_tables([SCHEMAS[table].empty_table(), *batches])


def _distinct(series: pa.Table) -> pa.Table:
    """Each series once, as it first came, by sid."""
    _, first = np.unique(series.column("sid").to_numpy(), return_index=True)
    return series.take(first)


def _begun(place: Path, table: str) -> tuple[Path, pq.ParquetWriter]:
    # No parents: a worker that was thought dead may come to a folder that is sealed by now.
    handle, path = store.temporary(place / MAKING, "part-")
    os.close(handle)
    path.chmod(0o644)
    return path, _parquet(path, table)


def _put(path: Path, place: Path, table: str, name: str) -> None:
    if not store.is_remote(place):
        for folder in (place / "evidence", place / "evidence" / table):
            folder.mkdir(exist_ok=True)
    store.put(path, place / "evidence" / table / name)


def _parquet(path: Path, table: str) -> pq.ParquetWriter:
    schema = SCHEMAS[table]
    encodings = _ENCODINGS.get(table)
    return pq.ParquetWriter(
        path,
        schema,
        compression="zstd",
        compression_level=_LEVELS.get(table, 1),
        version="2.6",
        data_page_version="2.0",
        use_dictionary=[n for n in schema.names if n not in encodings] if encodings else True,
        column_encoding=encodings,
        write_statistics=[field.name for field in schema if _may_be_pruned(table, field)],
    )


def _may_be_pruned(table: str, field: pa.Field) -> bool:
    """Whether what is least and most of a column is written.

    Parquet's statistics leave NaN out, and DuckDB then concludes that there is none: with them,
    `isnan(value)` is false for every row. And nobody asks for a range of messages.
    """
    encoding = _ENCODINGS.get(table, {}).get(field.name)
    return encoding != _AS_IT_IS and not pa.types.is_floating(field.type)


# --- comparing -----------------------------------------------------------------------------


def part_of(path: Path | str) -> tuple[str, int]:
    """`evidence/samples/main.up.0002.parquet` -> (`evidence/samples/main.up`, 2)."""
    text = str(path).removesuffix(".parquet")
    name, _, number = text.rpartition(".")
    return (name, int(number)) if re.fullmatch(r"\d{4,}", number) else (text, 1)


def same_rows(one: Sequence[Path], other: Sequence[Path]) -> bool:
    """Whether parts hold the same rows in the same order, bit for bit, however they are written.

    Another version of the Parquet library, or parts cut elsewhere, give other bytes for them.
    """
    mine, theirs = _rows_in(one), _rows_in(other)
    return bool(mine.schema.equals(theirs.schema) and mine.equals(theirs))


def _rows_in(parts: Sequence[Path]) -> pa.Table:
    tables = []
    for part in sorted(parts, key=part_of):
        with part.open("rb") as file:
            tables.append(pq.read_table(file))
    table = pa.concat_tables(tables)
    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):  # else no NaN is like another
            bits = [chunk.view(pa.int64()) for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(bits, pa.int64()))
    return table


# --- reading -------------------------------------------------------------------------------

_DUCKDB_TYPES = {
    pa.int64(): "BIGINT",
    pa.float64(): "DOUBLE",
    pa.string(): "VARCHAR",
    pa.binary(): "BLOB",
    _MS: "TIMESTAMPTZ",
    pa.timestamp("ns", tz="UTC"): "TIMESTAMPTZ_NS",
    _LABELS: "MAP(VARCHAR, VARCHAR)",
}


def parts_in(place: Path, table: str) -> list[Path]:
    """The parts of one table in their order; none when there is no such table."""
    return sorted((place / "evidence" / table).glob("*.parquet"), key=part_of)


def _views(place: Path, root: str) -> Iterator[str]:
    """One CREATE VIEW per table; `root` is put before the parts' relative paths."""
    for table, schema in SCHEMAS.items():
        parts = parts_in(place, table)
        if parts:
            names = ", ".join(_quoted(f"{root}evidence/{table}/{part.name}") for part in parts)
            yield f"CREATE VIEW {table} AS SELECT * FROM read_parquet([{names}])"
        else:
            columns = ", ".join(f"NULL::{_DUCKDB_TYPES[f.type]} AS {f.name}" for f in schema)
            yield f"CREATE VIEW {table} AS SELECT {columns} WHERE false"
    yield (
        "CREATE VIEW readings AS SELECT source, query, metric, labels, ts, value "
        "FROM samples JOIN series USING (sid)"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def write_views(folder: Path) -> None:
    """`evidence.duckdb`: views with relative paths, for any DuckDB started in the case folder."""
    path, place = folder / "evidence.duckdb", store.place_of(folder)
    path.unlink(missing_ok=True)
    with (
        _in_words(place, f"{path.name} cannot be written", "make room and run again"),
        duckdb.connect(str(path)) as connection,
    ):
        root = _reaching(connection, place)
        if not root:
            connection.execute("SET file_search_path = " + _quoted(str(folder.resolve())))
        for view in _views(place, root):
            connection.execute(view)


def _reaching(connection: duckdb.DuckDBPyConnection, place: Path) -> str:
    """Have DuckDB read a store; what stands before the paths of parts, "" for a folder."""
    if store.is_remote(place):
        connection.register_filesystem(cast(Any, place).fs)
        return f"{place}/"
    return ""


class Evidence:
    """Read-only SQL over the parts of one case. Nothing outside `evidence/` can be reached."""

    def __init__(self, folder: Path) -> None:
        place = store.place_of(folder)
        if not store.is_remote(place):
            place = place.resolve()
        self._place = place
        self._connection = duckdb.connect()
        root = _reaching(self._connection, place) or f"{place}/"
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(f"SET allowed_directories = [{_quoted(f'{root}evidence')}]")
        with self._answering():  # a part that is no Parquet is told in words
            for view in _views(place, root):
                self._connection.execute(view)
        for lock in ("enable_external_access = false", "lock_configuration = true"):
            self._connection.execute(f"SET {lock}")

    def sql(self, text: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pd.DataFrame:
        """The rows of a SELECT. Values go in as parameters: `?` or `$name`, never into the text.

        Errors: EvidenceError with DuckDB's own words.
        """
        with warnings.catch_warnings(), self._answering():
            warnings.simplefilter("ignore")  # pandas' own notice about DuckDB's frames
            return self._connection.execute(text, parameters or None).df()

    def records(
        self, text: str, parameters: Sequence[Any] | Mapping[str, Any] = ()
    ) -> list[dict[str, Any]]:
        """As `sql`, for few rows: plain dicts of Python values, times aware and in UTC."""
        with self._answering():
            answer = self._connection.execute(text, parameters or None)
            names = [column[0] for column in answer.description or ()]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def sql_by_part(
        self,
        table: str,
        each: str,
        whole: str,
        parameters: Mapping[str, Any] = MappingProxyType({}),
        pool: Executor | None = None,
    ) -> pd.DataFrame:
        """As `sql`, for tables of any size: `each` part is asked by itself, `whole` joins them.

        each:  a SELECT from `part`, which holds the rows of one part of `table`; other tables are
               there whole.
        whole: a SELECT from `parts`, which holds the answers of all parts.
        pool:  who asks the parts; without one they are asked here, one after another.

        Errors: as `sql`; also when there is no part of that table.
        """
        parts = parts_in(self._place, table) if table in SCHEMAS else []
        if not parts:
            raise EvidenceError(
                f"the evidence has no part of {table!r}",
                next_step=f"tables: {', '.join(SCHEMAS)}",
            )
        asked = [(self._place, part, each, dict(parameters)) for part in parts]
        if pool is None:
            answers = [_answer_of_part(*question) for question in asked]
        else:
            answers = [f.result() for f in [pool.submit(_answer_of_part, *q) for q in asked]]
        self._connection.register("parts", pa.concat_tables(answers))
        try:
            return self.sql(whole, {k: v for k, v in parameters.items() if f"${k}" in whole})
        finally:
            self._connection.unregister("parts")

    def _answering(self) -> AbstractContextManager[None]:
        """Around all of a question: rows are read from the parts until the last is fetched."""
        tables = ", ".join([*SCHEMAS, "readings"])
        return _in_words(self._place, "the evidence cannot answer that", f"tables: {tables}")

    def close(self) -> None:
        self._connection.close()

    def logs(self, span: Window) -> pd.DataFrame:
        """Log lines of a span, and those without a time, in time order."""
        return self.sql(
            "SELECT * FROM log_lines WHERE ts IS NULL OR (ts >= $start AND ts < $end) "
            "ORDER BY ts NULLS LAST, source, file, line",
            {"start": span.start, "end": span.end},
        )

    def records_of(self, query: str, span: Window) -> pd.DataFrame:
        """Records of one query in a span, and those without a time, in time order.

        `ts` to the nanosecond, `value` as plain JSON objects.
        """
        table = self.sql(
            "SELECT * FROM records WHERE query = $query AND (ts IS NULL OR "
            "(ts >= $start::TIMESTAMPTZ_NS AND ts < $end::TIMESTAMPTZ_NS)) "
            "ORDER BY ts NULLS LAST, source, file, line, place",
            {"query": query, "start": span.start, "end": span.end},
        )
        # DuckDB gives nanoseconds to pandas without the zone that it keeps them in.
        table["ts"] = pd.DatetimeIndex(table["ts"]).tz_localize("UTC").as_unit("ns")
        table["value"] = [json.loads(value) for value in table["value"]]
        return table

    def answered(self) -> list[str]:
        """Names of the queries that have snapshots."""
        return [
            row["query"] for row in self.records("SELECT DISTINCT query FROM snapshots ORDER BY 1")
        ]

    def snapshots(self, query: str) -> pd.DataFrame:
        """Snapshots of one query in the order asked; `value` as plain JSON objects."""
        table = self.sql(
            "SELECT * FROM snapshots WHERE query = ? ORDER BY ts, source, role", [query]
        )
        table["value"] = [json.loads(value) for value in table["value"]]
        return table


@contextmanager
def _in_words(place: Path, what: str, next_step: str) -> Iterator[None]:
    """What DuckDB raises as ours; where it is the store that failed, as that."""
    try:
        yield
    except duckdb.Error as error:
        if unseen := store.unseen(place, str(error)):
            raise unseen from None
        raise EvidenceError(f"{what}: {error}", next_step=next_step) from None


def _answer_of_part(place: Path, part: Path, each: str, parameters: Mapping[str, Any]) -> pa.Table:
    """What one part answers; a task by itself, for a worker anywhere."""
    evidence = Evidence(place)
    view = f"CREATE VIEW part AS SELECT * FROM read_parquet({_quoted(str(part))})"
    used = {k: v for k, v in parameters.items() if f"${k}" in each}
    try:
        with evidence._answering():
            evidence._connection.execute(view)
            return evidence._connection.sql(each, params=used or None).to_arrow_table()
    finally:
        evidence.close()
