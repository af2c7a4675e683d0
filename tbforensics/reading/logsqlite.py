"""The log indexer's store of generation A: one SQLite file, damaged or made to do harm maybe.

Rows are read one by one, or in batches of columns where every value is of its column's type. Both
give the same rows; which way it goes hangs on the bytes alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote

import adbc_driver_manager
import adbc_driver_sqlite.dbapi
import pyarrow as pa

from tbforensics.model import Json

LONGEST_VALUE_BYTES = 4 << 20
PUBLIC = ("id", "timestamp", "level", "message", "correlation_id", "peer", "tx", "block")
_INTEGERS = ("id", "timestamp", "block", "encrypted")
_STEPS_AT_ONCE = 100_000  # of SQLite's machine, between two looks at how many there were
_FEWEST_STEPS = 200_000_000
_STEPS_PER_BYTE = 20
_LONGEST_ROW_BYTES = 100_000  # of a batch; a longer one may be too long for a line
_BATCH_BYTES = 64 << 20
_MOST_ROWS = 100_000  # of a batch


@dataclass(frozen=True)
class Stored:
    """One row. `value` has the fields that `/logs/search` gives; a shut `message` is base64.

    nonce: of a shut message; None where the row has none, and such a message cannot be opened.
    """

    place: int
    value: dict[str, Json]
    encrypted: bool = False
    nonce: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """Rows that follow each other, as columns: integers and texts, or null.

    place: of the first row.
    values: columns of `PUBLIC`, and `encrypted`, where the table has them.
    """

    place: int
    values: pa.RecordBatch

    def rows(self) -> Iterator[Stored]:
        columns = [
            [_text(item) for item in column.cast(pa.binary()).to_pylist()]
            if pa.types.is_string(column.type)
            else column.to_pylist()
            for column in self.values.columns
        ]
        names = self.values.schema.names
        for place, row in enumerate(zip(*columns, strict=True), start=self.place):
            yield _stored(place, dict(zip(names, row, strict=True)))


def _text(item: bytes | None) -> str | None:
    return None if item is None else item.decode("utf-8", "replace")


class Unread(Exception):
    """Why the rest is not read, in words. `place` is of the row that would come next."""

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(reason)
        self.place = place


def read(
    path: Path, *, immutable: bool, inputs: dict[str, Json], in_batches: bool
) -> Iterator[Stored | Batch]:
    """Rows in the order of the table; fills `inputs` with how far each input was read.

    Errors: Unread, after all that could be read.
    """
    done = 0
    try:
        with _opened(path, immutable) as database:
            columns = _columns(database)
            inputs.update(_inputs(database))
        count = _count(path, immutable) if in_batches else 0
        if 0 < count * (len(columns) + 4) < _most_steps(path):  # else it would be cut short
            # Whatever goes wrong, rows are read one by one from there on.
            with suppress(adbc_driver_manager.Error, pa.ArrowException, OSError):
                for batch in _ahead(_batches(path, immutable, columns)):
                    yield Batch(done + 1, batch)
                    done += len(batch)
            if done == count:
                return
        with _opened(path, immutable) as database:
            select = f"SELECT {', '.join(columns)} FROM logs NOT INDEXED"  # noqa: S608
            for row in islice(database.execute(select), done, None):
                done += 1
                yield _stored(done, dict(zip(columns, row, strict=True)))
    except (sqlite3.Error, ValueError, OverflowError) as error:
        raise Unread(f"{error}"[:200], done + 1) from None


def _stored(place: int, found: dict[str, Json]) -> Stored:
    nonce = found.get("nonce")
    for name in PUBLIC:
        if isinstance(found.get(name), bytes):
            found[name] = found[name].decode("utf-8", "backslashreplace")
    held = nonce if isinstance(nonce, bytes) else None
    value = {name: found[name] for name in PUBLIC if found.get(name) is not None}
    return Stored(place, value, bool(found.get("encrypted")), held)


# --- one by one --------------------------------------------------------------------------------

_SAFELY = ("trusted_schema = OFF", "cell_size_check = ON", "query_only = ON")


def uri_of(path: Path, *, immutable: bool) -> str:
    return f"file:{quote(str(path))}?mode=ro{'&immutable=1' if immutable else ''}"


@contextmanager
def _opened(path: Path, immutable: bool) -> Iterator[sqlite3.Connection]:
    uri = uri_of(path, immutable=immutable)
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database:
        database.text_factory = lambda text: text.decode("utf-8", "replace")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST_VALUE_BYTES)
        for pragma in _SAFELY:
            database.execute(f"PRAGMA {pragma}")
        left = [_most_steps(path)]

        def spent() -> bool:
            left[0] -= _STEPS_AT_ONCE
            return left[0] < 0

        database.set_progress_handler(spent, _STEPS_AT_ONCE)
        yield database


def _most_steps(path: Path) -> int:
    """Steps and not seconds: the same bytes give the same rows on any machine."""
    return max(_FEWEST_STEPS, _STEPS_PER_BYTE * path.stat().st_size)


def _columns(database: sqlite3.Connection) -> tuple[str, ...]:
    """Those of ours that the table has. Errors: ValueError when it is no plain table of logs."""
    kind = database.execute("SELECT type, sql FROM sqlite_master WHERE name = 'logs'").fetchone()
    if not kind or kind[0] != "table" or "VIRTUAL" in str(kind[1]).upper().split("(")[0]:
        raise ValueError("it has no plain table `logs`")
    there = {row[1] for row in database.execute("PRAGMA table_info(logs)")}
    if not {"timestamp", "message"} <= there:
        raise ValueError("its table `logs` has no `timestamp` and `message`")
    return tuple(name for name in (*PUBLIC, "encrypted", "nonce") if name in there)


def _inputs(database: sqlite3.Connection) -> dict[str, Json]:
    names = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'ingest_%'"
    for (table,) in database.execute(names).fetchall():
        if table in ("ingest_state", "ingest_offsets"):
            try:
                found = database.execute(
                    f"SELECT source, offset, updated_at FROM {table} LIMIT 1000"  # noqa: S608
                ).fetchall()
            except sqlite3.Error:
                continue
            return {str(row[0]): {"offset": row[1], "updated_at": row[2]} for row in found}
    return {}


# --- in batches --------------------------------------------------------------------------------
#
# ADBC takes a column's type from its first rows: so a row of our own comes first. Another type in
# a column of integers it refuses; whatever is in a column of texts it makes a text of, and that is
# asked before. It has no limit on time either: so the rows are counted first, within ours.


def _count(path: Path, immutable: bool) -> int:
    with _opened(path, immutable) as database:
        # Not count(*), which no limit can stop.
        (count,) = database.execute("SELECT total(1) FROM logs NOT INDEXED").fetchone()
    return int(count)


def _batches(path: Path, immutable: bool, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    """Columns of integers and texts; none at all where there is anything else, or a row too long.

    Errors: adbc_driver_manager.Error; what Arrow raises for a type that comes late.
    """
    asked = [name for name in columns if name != "nonce"]
    texts = [name for name in asked if name not in _INTEGERS]
    first = ", ".join(f"0 AS {c}" if c in _INTEGERS else f"'' AS {c}" for c in asked)
    length = " + ".join(f"ifnull(octet_length({c}), 0)" for c in texts)
    # Numbers come before all texts, and blobs after them.
    other = " OR ".join(f"NOT ({c} >= '' AND {c} < x'')" for c in texts)
    uri = uri_of(path, immutable=immutable)
    with adbc_driver_sqlite.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        for pragma in _SAFELY:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.execute(f"SELECT max({length}), total({other}) FROM logs NOT INDEXED")  # noqa: S608
        longest, others = cursor.fetchone() or (0, 0)
        if longest > _LONGEST_ROW_BYTES or others:
            return
        rows = min(_MOST_ROWS, _BATCH_BYTES // max(1, longest))
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(rows)})
        cursor.execute(
            f"SELECT {first} UNION ALL SELECT {', '.join(asked)} FROM logs NOT INDEXED"  # noqa: S608
        )
        own = 1
        for batch in cursor.fetch_record_batch():
            if not all(_is_even(field) for field in batch.schema):
                return
            if len(batch) > own:
                yield batch.slice(own)
            own = 0


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Each of them, while the next one is being read."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = pool.submit(next, batches, None)
            yield batch


def _is_even(field: pa.Field) -> bool:
    """It is double where a real number came among the first integers."""
    return bool(field.type == (pa.int64() if field.name in _INTEGERS else pa.string()))
