"""Logs into evidence, beside what else reads them: `python -m benchmarks.logs [--lines N]`.

Each runner reads one file, most of them JSON lines with nine columns in 270 bytes, into a table on
disk: DuckDB into a table of its own, the others into Parquet (zstd). Ours also counts lines and
bytes, sets aside what cannot be read, and filters by the window. The last line of each table is
the base of its ratios. `dirty` has 900 odd lines in each million: torn ones, bytes that are no
UTF-8, a raw NUL, arrays of numbers, plain text, blank ones, names given twice, 200 levels, and one
line of two million bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
import sqlite3
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from benchmarks import sidebyside
from benchmarks.sidebyside import call, median, ratio, table

START = datetime(2026, 3, 10, 10, tzinfo=UTC)
WORDS = [
    "receipt",
    "insert",
    "failed",
    "disk",
    "full",
    "handshake",
    "timed",
    "out",
    "quic",
    "certificate",
    "validation",
    "ok",
    "block",
    "proposed",
    "gossip",
    "relayed",
    "queue",
    "drained",
]
TARGETS = ("node::net::quic", "node::consensus", "node::ledger", "node::gossip")
ODD = (
    *(b'{"id":7,"timestamp":"2026-03-10T10:00:', b'{"message":"caf\xe9"}', b'{"message":"\0"}'),
    *(b"[1,2]", b"Traceback (most recent call last):", b"", b'{"message":"a","message":"b"}'),
    b'{"message":"deep","a":' + b"[" * 200 + b"]" * 200 + b"}",
)
COLUMNS = {
    "id": "BIGINT", "timestamp": "TIMESTAMP", "level": "VARCHAR", "target": "VARCHAR",
    "message": "VARCHAR", "correlation_id": "VARCHAR", "peer": "VARCHAR", "block": "BIGINT",
    "latency_ms": "DOUBLE",
}  # fmt: skip


# --- what is read ------------------------------------------------------------------------------


def lines(count: int) -> Iterator[bytes]:
    """Rows of one statement, half of them with a peer."""
    chance = random.Random(11)
    peers = [f'"{chance.randbytes(32).hex()}"' for _ in range(200)]
    us = 0
    for number in range(count):
        us += chance.randrange(500, 4000)
        time = (START + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        level = chance.choices(("INFO", "DEBUG", "WARN", "ERROR"), (70, 20, 8, 2))[0]
        message = " ".join(chance.choices(WORDS, k=6))
        peer = chance.choice(peers) if chance.random() < 0.5 else "null"
        yield (
            f'{{"id":{number},"timestamp":"{time}","level":"{level}",'
            f'"target":"{chance.choice(TARGETS)}","message":"{message} #{number}",'
            f'"correlation_id":"{chance.randrange(1 << 40):016x}","peer":{peer},'
            f'"block":{number // 50},"latency_ms":{chance.randrange(90_000) / 1000}}}\n'
        ).encode()


def statements(count: int) -> Iterator[bytes]:
    """Lines of `tracing`: forty statements, each with fields of its own, messages with quotes."""
    chance = random.Random(12)
    fields = [chance.sample(WORDS, chance.randrange(1, 6)) for _ in range(40)]
    often = [1 / (1 + number) for number in range(40)]
    us = 0
    for number in range(count):
        us += chance.randrange(500, 4000)
        which = chance.choices(range(40), often)[0]
        said = {
            "message": f'{WORDS[which % 16]} of "{number}" {" ".join(chance.choices(WORDS, k=3))}'
        }
        for place, name in enumerate(fields[which]):
            said[name] = [number, chance.random(), chance.choice(WORDS)][(which + place) % 3]
        value = {
            "timestamp": (START + timedelta(microseconds=us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": ("INFO", "DEBUG", "WARN")[which % 3],
            "fields": said,
            "target": TARGETS[which % 4],
        }
        yield json.dumps(value, separators=(",", ":")).encode() + b"\n"


def structlog(count: int) -> Iterator[bytes]:
    """Lines of Python's structlog: spaces after commas, times as floats, text beyond ASCII."""
    chance = random.Random(13)
    seconds = START.timestamp()
    for number in range(count):
        seconds += chance.random() / 100
        value = {"event": f"order.{chance.choice(WORDS)}", "level": "info", "logger": "broker"}
        value |= {"symbol": "ATOM/USDT", "qty": chance.random() * 100, "timestamp": seconds}
        if number % 3:
            value["reason"] = chance.choice(["größer", "risk \u2713", "tab\there", 'said "no"'])
        yield json.dumps(value, ensure_ascii=number % 100 == 0).encode() + b"\n"


def dirtied(clean: Iterator[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(clean):
        if number % 1111 == 500:
            yield ODD[number // 1111 % len(ODD)] + b"\n"
        if number == 1000:
            yield b'{"message":"' + b"x" * 2_000_000 + b'"}\n'
        yield line


def make_store(path: Path, count: int) -> None:
    """A log store of generation A, with the same rows."""
    import orjson

    names = ("timestamp", "level", "message", "correlation_id", "peer", "block")
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "CREATE TABLE logs (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER, "
            "level TEXT, message TEXT, correlation_id TEXT, peer TEXT, tx TEXT, block INTEGER, "
            "encrypted INTEGER NOT NULL DEFAULT 0, nonce BLOB)"
        )
        values = (orjson.loads(line) | {"timestamp": 1_773_136_800} for line in lines(count))
        database.executemany(
            f"INSERT INTO logs ({', '.join(names)}) VALUES (?, ?, ?, ?, ?, ?)",
            ([value[name] for name in names] for value in values),
        )
        database.commit()


def make(folder: Path, count: int) -> None:
    import zstandard

    make_store(folder / "store.db", count)
    for name, content in {
        "clean": lines(count), "dirty": dirtied(lines(count)),
        "statements": statements(count // 4), "structlog": structlog(count // 4),
    }.items():  # fmt: skip
        with (folder / f"{name}.jsonl").open("wb") as file:
            file.writelines(content)
    data = (folder / "dirty.jsonl").read_bytes()
    (folder / "dirty.jsonl.gz").write_bytes(gzip.compress(data, 6))
    (folder / "dirty.jsonl.zst").write_bytes(zstandard.compress(data, 3))


# --- who reads it ------------------------------------------------------------------------------
#
# Each gives a function that does the work, so that no import is measured: rows, lines set aside.

Work = Callable[[], tuple[int, int]]


def _body(path: str, times: int) -> BinaryIO:
    if times == 1:
        return Path(path).open("rb")
    over_and_over = subprocess.Popen(["cat", *[path] * times], stdout=subprocess.PIPE)
    assert over_and_over.stdout
    return cast(BinaryIO, over_and_over.stdout)


def ours(path: str, archived: bool = False, times: int = 1) -> Work:
    import zstandard

    from tbforensics.evidence import Part
    from tbforensics.reading.logtables import Reading

    def work() -> tuple[int, int]:
        reading = Reading("logs", "log_lines", "f")
        with tempfile.TemporaryDirectory() as folder, _body(path, times) as file:
            expand = zstandard.ZstdDecompressor().stream_reader
            body = io.BufferedReader(expand(file)) if archived else file
            with Part(Path(folder), "logs", "log_lines") as part:
                for name, rows in reading.tables(body):
                    part.add(name, rows)
        return reading.tally.kept, reading.tally.unreadable

    return work


def duckdb_columns(path: str, options: str = "") -> Work:
    columns = ", ".join(f"{name}: '{kind}'" for name, kind in COLUMNS.items())
    return _duckdb(path, f", columns = {{{columns}}}{options}")


def duckdb_auto(path: str) -> Work:
    return _duckdb(path, "")


def _duckdb(path: str, options: str) -> Work:
    import duckdb

    def work() -> tuple[int, int]:
        with tempfile.TemporaryDirectory() as folder:
            database = duckdb.connect(f"{folder}/x.duckdb")
            asked = f"read_json('{path}', format = 'newline_delimited'{options})"
            database.execute(f"CREATE TABLE lines AS SELECT * FROM {asked}")
            found = database.execute("SELECT count(*) FROM lines").fetchone()
            database.close()
        assert found
        return found[0], 0

    return work


def polars(path: str) -> Work:
    import polars

    def work() -> tuple[int, int]:
        frame = polars.scan_ndjson(path).collect()
        with tempfile.TemporaryDirectory() as folder:
            frame.write_parquet(f"{folder}/x.parquet", compression="zstd", compression_level=3)
        return len(frame), 0

    return work


def pyarrow_json(path: str) -> Work:
    from pyarrow import json as reader

    return lambda: _written(reader.read_json(path))


def pandas(path: str) -> Work:
    import pandas
    import pyarrow as pa

    def work() -> tuple[int, int]:
        chunks = pandas.read_json(path, lines=True, chunksize=100_000)
        return _written(pa.concat_tables([pa.Table.from_pandas(chunk) for chunk in chunks]))

    return work


def orjson_loop(path: str) -> Work:
    import orjson
    import pyarrow as pa

    def work() -> tuple[int, int]:
        bad, parts = 0, []
        with Path(path).open("rb") as file:
            while some := list(islice(file, 100_000)):
                rows = []
                for line in some:
                    try:
                        value = orjson.loads(line)
                        rows.append(tuple(value.get(name) for name in COLUMNS))
                    except (ValueError, AttributeError):
                        bad += 1
                parts.append(pa.table(list(zip(*rows, strict=True)), names=list(COLUMNS)))
        return _written(pa.concat_tables(parts, promote_options="permissive"))[0], bad

    return work


def msgspec(path: str) -> Work:
    import msgspec
    import pyarrow as pa

    kinds = {"BIGINT": int, "DOUBLE": float}
    fields = [(name, kinds.get(kind, str) | None, None) for name, kind in COLUMNS.items()]
    decoder = msgspec.json.Decoder(msgspec.defstruct("Line", fields))

    def work() -> tuple[int, int]:
        found = decoder.decode_lines(Path(path).read_bytes())
        columns = [pa.array([getattr(line, name) for line in found]) for name in COLUMNS]
        return _written(pa.table(columns, names=list(COLUMNS)))

    return work


def our_store(path: str) -> Work:
    from tbforensics.evidence import Part
    from tbforensics.model import Capture, Window
    from tbforensics.sources.logstore import SOURCE

    span = Window(START, START + timedelta(hours=1))
    capture = Capture("logs", "log_lines", "store", {"file": "f"}, START, span, 200, "0" * 64, 1)

    def work() -> tuple[int, int]:
        found: Counter[str] = Counter()
        with (
            tempfile.TemporaryDirectory() as folder,
            Path(path).open("rb") as file,
            Part(Path(folder), "logs", "log_lines") as part,
        ):
            for name, rows in SOURCE.parse(capture, file):
                part.add(name, rows)
                found[name] += len(rows)
        return found["log_lines"], found["quarantine"]

    return work


STORED = "SELECT id, timestamp, level, message, correlation_id, peer, tx, block FROM logs"


def fetchmany(path: str) -> Work:
    import pyarrow as pa

    def work() -> tuple[int, int]:
        parts = []
        with closing(sqlite3.connect(path)) as database:
            cursor = database.execute(STORED)
            names = [column[0] for column in cursor.description]
            while rows := cursor.fetchmany(10_000):
                parts.append(pa.table([pa.array(c) for c in zip(*rows, strict=True)], names=names))
        return _written(pa.concat_tables(parts, promote_options="permissive"))

    return work


def adbc(path: str) -> Work:
    import adbc_driver_sqlite.dbapi

    def work() -> tuple[int, int]:
        with adbc_driver_sqlite.dbapi.connect(path) as connection, connection.cursor() as cursor:
            cursor.execute(STORED)
            return _written(cursor.fetch_arrow_table())

    return work


def pandas_sql(path: str) -> Work:
    import pandas
    import pyarrow as pa

    def work() -> tuple[int, int]:
        with closing(sqlite3.connect(path)) as database:
            chunks = pandas.read_sql_query(STORED, database, chunksize=100_000)
            parts = [pa.Table.from_pandas(chunk) for chunk in chunks]
        return _written(pa.concat_tables(parts, promote_options="permissive"))

    return work


def _written(rows: Any) -> tuple[int, int]:
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(rows, f"{folder}/x.parquet", compression="zstd", compression_level=3)
    return rows.num_rows, 0


# --- tables ------------------------------------------------------------------------------------

RUNNERS: Mapping[str, tuple[Any, ...]] = {
    "ours": (ours,),
    "DuckDB, columns given": (duckdb_columns,),
    "DuckDB, ignore_errors": (duckdb_columns, ", ignore_errors = true"),
    "DuckDB, columns guessed": (duckdb_auto,),
    "polars": (polars,),
    "pyarrow.json": (pyarrow_json,),
    "msgspec": (msgspec,),
    "orjson, line by line": (orjson_loop,),
    "pandas, by chunks": (pandas,),
}
FEW = {name: RUNNERS[name] for name in ("ours", "DuckDB, ignore_errors")}
TABLES: Mapping[str, tuple[str, tuple[Any, ...], Mapping[str, tuple[Any, ...]]]] = {
    # the file that the base reads and how, and who reads the file itself
    "clean.jsonl": (
        "clean.jsonl", (duckdb_columns,), {**RUNNERS, "ours, ten times over": (ours, False, 10)}
    ),
    "dirty.jsonl": ("clean.jsonl", (duckdb_columns,), RUNNERS),
    "dirty.jsonl.gz": ("clean.jsonl", (duckdb_columns,), FEW),
    "dirty.jsonl.zst": (
        "clean.jsonl", (duckdb_columns,), {**FEW, "ours, from the archive": (ours, True)}
    ),
    "statements.jsonl": ("statements.jsonl", (duckdb_auto,), FEW),
    "structlog.jsonl": ("structlog.jsonl", (duckdb_auto,), FEW),
    "store.db": (
        "store.db", (fetchmany,), {"ours": (our_store,), "ADBC": (adbc,), "pandas": (pandas_sql,)}
    ),
}  # fmt: skip


def attempt(runner: str, path: str, *given: Any) -> Callable[[], list[Any]]:
    work = globals()[runner](path, *given)

    def measured() -> list[Any]:
        try:
            return list(work())
        except Exception as error:
            return [f"aborts ({type(error).__name__})", ""]

    return measured


def beside(folder: Path, file: str, rounds: int) -> str:
    of_base, base, runners = TABLES[file]
    commands = {
        name: call("benchmarks.logs", "attempt", runner.__name__, str(folder / file), *given)
        for name, (runner, *given) in runners.items()
    }
    function, *given = base
    first = f"{function.__name__} on {of_base}"
    commands[first] = call(
        "benchmarks.logs", "attempt", function.__name__, str(folder / of_base), *given
    )
    rows = []
    measured = sidebyside.rounds(commands, rounds)
    for name, runs in measured.items():
        figures: list[object] = [ratio(measured, name, to=first)]
        figures += [median(runs, what) for what in ("wall_s", "cpu_s", "peak_mb")]
        said = runs[0].answer
        rows.append([name, *(figures if said[1] != "" else ["-"] * 4), *said])
    return table([file, "x base", "wall s", "CPU s", "peak MB", "rows", "set aside"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[*TABLES], action="append")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), asked.lines)
        for file in asked.only or TABLES:
            print(beside(Path(folder), file, asked.rounds), "\n", flush=True)


if __name__ == "__main__":
    main()
