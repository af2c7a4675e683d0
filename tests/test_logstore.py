"""Log stores of both generations: every row, the last word on each key, and nothing harmful."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import sqlite3
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from adbc_driver_manager import Error
from adbc_driver_sqlite.dbapi import connect
from handed import FIXTURES, LOG_PASSPHRASE, Handed
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logcipher import sealed

from tbforensics.evidence import SCHEMAS
from tbforensics.model import Capture, Window
from tbforensics.reading import logsqlite, logstores
from tbforensics.reading.logcipher import Tag, key_of
from tbforensics.reading.logsqlite import Batch, Stored
from tbforensics.reading.logstores import About, Unreadable, packed
from tbforensics.reading.logstream import Element
from tbforensics.reading.logtables import Reading, Tally
from tbforensics.sources.logstore import SOURCE, Options

T = 1_795_217_000
WINDOW = Window(datetime.fromtimestamp(T, UTC), datetime.fromtimestamp(T + 600, UTC))
Collect = Callable[..., Handed]
MESSAGES = [
    (
        *("quic_connect_fail", "QUIC certificate validation failed"),
        *("receipt insert failed: disk full", "match"),
    )[n % 4]
    + f" #{n}"
    + "x" * n
    for n in range(16)
]


@pytest.fixture
def collect(tmp_path: Path) -> Iterator[Collect]:
    count = iter(range(100))

    def collecting(path: Path, window: Window = WINDOW, **options: str) -> Handed:
        home = tmp_path / f"case-{next(count)}"
        return Handed(home, SOURCE, Options(str(path), **options), window=window)

    yield collecting


@pytest.fixture
def phrase(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "phrase").write_text(LOG_PASSPHRASE + "\n")
    return {"passphrase_file": str(tmp_path / "phrase")}


def by_id(given_: Handed) -> list[dict[str, Any]]:
    return sorted(given_.lines, key=lambda line: line["id"])


def store_of(given_: Handed) -> dict[str, Any]:
    (summary,) = [s for s in given_.said("summary") if "store" in s]
    return summary


# --- generation B --------------------------------------------------------------------------


def test_a_plain_store_gives_every_row(collect: Collect) -> None:
    given_ = collect(FIXTURES / "store-plain")
    lines = by_id(given_)
    assert [line["message"] for line in lines] == MESSAGES
    assert [line["id"] for line in lines] == list(range(16))
    first = lines[0]
    assert (first["level"], first["peer"], first["block"]) == ("INFO", "07" * 32, 100)
    assert first["ts"].timestamp() == T
    assert lines[1]["correlation_id"] == "deadbeef00000000"
    assert (given_.errors, given_.bad) == ([], [])
    summary = store_of(given_)
    assert (summary["kept"], summary["store"]["generation"]) == (16, "B")
    assert summary["store"]["next_id"] == 40
    assert list(summary["store"]["offsets"]) == ["/srv/node/input.jsonl"]


def test_its_files_are_archived_byte_for_byte_and_their_hashes_told(collect: Collect) -> None:
    given_ = collect(FIXTURES / "store-plain")
    (kept,) = [c for c in given_.captures if c.role == "store"]
    with tarfile.open(fileobj=io.BytesIO(given_.client.body(kept))) as tar:
        bodies = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    root = FIXTURES / "store-plain" / "inhouse"
    files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    assert bodies == files
    hashes = {name: hashlib.sha256(body).hexdigest() for name, body in files.items()}
    assert store_of(given_)["store"]["files"] == hashes
    assert collect(FIXTURES / "store-plain").captures[1].sha256 == kept.sha256


@pytest.mark.parametrize("path", ["store-plain/inhouse", "store-*/**", "store-plain/inhouse/**"])
def test_a_store_is_found_below_what_is_named(collect: Collect, path: str) -> None:
    lines = collect(FIXTURES / path).lines
    assert [line["message"] for line in lines[:16]] == (
        ["<encrypted>"] * 16 if path == "store-*/**" else MESSAGES
    )


def test_an_encrypted_store_opens_with_its_passphrase(
    collect: Collect, phrase: dict[str, str]
) -> None:
    given_ = collect(FIXTURES / "store-encrypted", **phrase)
    assert [line["message"] for line in by_id(given_)] == MESSAGES
    (opened,) = [c for c in given_.captures if c.role == "opened"]
    assert opened.notes == ("tag: own, 16 messages",)
    assert given_.errors == []
    assert LOG_PASSPHRASE not in given_.everything()


def test_without_it_rows_are_kept_and_counted_as_encrypted(collect: Collect) -> None:
    given_ = collect(FIXTURES / "store-encrypted")
    assert {line["message"] for line in given_.lines} == {"<encrypted>"}
    assert store_of(given_)["encrypted"] == 16


def test_a_wrong_passphrase_is_said_and_stands_nowhere(
    collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHRASE", "canary-4711")
    given_ = collect(FIXTURES / "store-encrypted", passphrase_env="PHRASE")
    assert given_.errors == [
        "16 of 16 messages stay shut: neither tag fits: a wrong passphrase, or it was changed"
    ]
    assert {line["message"] for line in given_.lines} == {"<decrypt-failed>"}
    assert "canary" not in given_.everything()


def test_a_passphrase_that_is_missing_is_said_and_rows_are_kept(collect: Collect) -> None:
    given_ = collect(FIXTURES / "store-encrypted", passphrase_env="NOT_SET_ANYWHERE")
    assert "NOT_SET_ANYWHERE is not set" in given_.errors[0]
    assert len(given_.lines) == 16


def test_rows_outside_the_incident_are_counted_and_left(collect: Collect) -> None:
    late = Window(
        datetime.fromtimestamp(T + 3600 + 300 + 30, UTC),
        datetime.fromtimestamp(T + 3600 + 300 + 900, UTC),
    )
    given_ = collect(FIXTURES / "store-plain", window=late)
    assert [line["id"] for line in by_id(given_)] == list(range(10, 16))
    assert store_of(given_)["outside_window"] == 10


# --- its files, one by one -----------------------------------------------------------------


def wal(*records: tuple[bytes, int, bytes | None]) -> bytes:
    lines = [
        json.dumps(
            {
                "key": list(key),
                "sequence": sequence,
                "kind": "Delete" if value is None else {"Put": {"value": list(value)}},
            }
        )
        for key, sequence, value in records
    ]
    return ("\n".join(lines) + "\n").encode()


def table(*records: tuple[bytes, int, bytes | None]) -> bytes:
    out = struct.pack("<Q", len(records))
    for key, sequence, value in records:
        out += struct.pack("<Q", len(key)) + key + struct.pack("<Q", sequence)
        out += struct.pack("<I", value is None)
        out += b"" if value is None else struct.pack("<Q", len(value)) + value
    return out


def key(number: int) -> bytes:
    return b"entry:%016x" % number


def row(number: int, message: str) -> bytes:
    return json.dumps({"id": number, "timestamp": T, "level": "INFO", "message": message}).encode()


def read(**files: bytes) -> tuple[list[tuple[int, str]], list[str], About]:
    named = [(name.replace("__", "/"), io.BytesIO(body)) for name, body in files.items()]
    return read_body(b"".join(packed(named)))


def read_body(body: bytes) -> tuple[list[tuple[int, str]], list[str], About]:
    about = About()
    found = list(logstores.read(io.BytesIO(body), about))
    rows = [(r.value.get("id"), r.value.get("message")) for r in found if isinstance(r, Stored)]
    return rows, [r.reason for r in found if isinstance(r, Unreadable)], about  # type: ignore[return-value]


FIRST, SECOND = "entries/sst-00000000000000000000.bin", "entries/sst-00000000000000000001.bin"


def test_the_highest_sequence_of_a_key_counts_wherever_it_stands() -> None:
    rows, bad, about = read(
        **{
            FIRST: table((key(0), 1, row(0, "old")), (key(1), 2, row(1, "one"))),
            SECOND: table((key(0), 5, row(0, "newest")), (key(2), 6, row(2, "two"))),
            "entries/wal.log": wal((key(0), 4, row(0, "late")), (key(2), 7, None)),
        }
    )
    assert rows == [(0, "newest"), (1, "one")]
    assert bad == []
    assert (about.overwritten, about.deleted) == (3, 1)


def test_a_store_copied_while_it_flushed_holds_a_record_twice_and_gives_it_once() -> None:
    records = ((key(0), 1, row(0, "a")), (key(1), 2, row(1, "b")))
    rows, _, about = read(**{FIRST: table(*records), "entries/wal.log": wal(*records)})
    assert rows == [(0, "a"), (1, "b")]
    assert about.overwritten == 0


def test_older_spellings_of_a_deletion_are_understood() -> None:
    body = wal((key(0), 1, row(0, "a"))) + b'{"key":%s,"sequence":2,"kind":{"Delete":{}}}\n' % (
        json.dumps(list(key(0))).encode()
    )
    assert read(**{"entries/wal.log": body})[0] == []


def test_a_torn_log_gives_what_is_whole_and_says_so() -> None:
    body = wal((key(0), 1, row(0, "a")), (key(1), 2, row(1, "b")))
    for cut in (1, 2, 30, 100):
        rows, bad, about = read(**{"entries/wal.log": body[:-cut]})
        whole = cut == 1  # only the end of the line is missing
        assert rows == [(0, "a"), (1, "b")][: 2 if whole else 1]
        assert about.torn is not whole
        assert len(bad) == (0 if whole else 1)


def test_damaged_tables_and_manifests_are_said_and_the_rest_is_read() -> None:
    good = table((key(0), 1, row(0, "a")), (key(1), 2, row(1, "b")))
    manifest = {"cfs": {"entries": {"sstables": [{"file": "sst-00000000000000000007.bin"}]}}}
    rows, bad, about = read(
        **{
            "manifest.json": json.dumps(manifest).encode(),
            FIRST: good[:-3],
            SECOND: good + b"more",
            "entries/sst-00000000000000000002.bin": struct.pack("<QQ", 1, 1 << 62),
            "entries/sst-00000000000000000003.bin": b"",
            "meta/wal.log": wal((b"next_id", 1, bytes(8)), (b"offset:x", 2, b"{")),
        }
    )
    assert rows == [(0, "a"), (1, "b")]
    assert len(bad) == 3
    assert about.missing == ["entries/sst-00000000000000000007.bin"]
    assert len(about.unlisted) == 4
    assert about.offsets == {"x": None}
    assert "cannot be read" in read(**{"manifest.json": b"[]", FIRST: good})[1][0]


def test_a_number_in_place_of_bytes_makes_no_gigabytes() -> None:
    lines = (
        b'{"key":9999999999,"sequence":1,"kind":"Delete"}\n'
        b'{"key":[1],"sequence":1,"kind":{"Put":{"value":9999999999}}}\n'
        b'{"key":[300],"sequence":1,"kind":"Delete"}\n'
        b'{"key":[1],"sequence":99999999999999999999,"kind":"Delete"}\n'
        b'{"key":[1],"sequence":true,"kind":"Delete"}\n'
        b'{"key":[1],"sequence":1,"kind":{"Move":{}}}\n'
    )
    rows, bad, _ = read(**{"entries/wal.log": lines})
    assert (rows, len(bad)) == ([], 6)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_bytes_of_a_folder_do_harm(data: st.DataObject) -> None:
    good = table((key(0), 1, row(0, "a")), (key(1), 2, None))
    logged = wal((key(0), 3, row(0, "b")), (b"next_id", 1, bytes(8)))
    files = {FIRST: good, "entries/wal.log": logged, "manifest.json": b'{"cfs":{}}'}
    for name in files:
        body = bytearray(files[name])
        for _ in range(data.draw(st.integers(0, 4))):
            at = data.draw(st.integers(0, max(0, len(body) - 1)))
            body[at : at + 1] = data.draw(st.binary(max_size=3))
        files[name] = bytes(body)
    read(**files)
    whole = bytearray(b"".join(packed([(n, io.BytesIO(b)) for n, b in files.items()])))
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    read_body(bytes(whole))
    read_body(data.draw(st.binary(max_size=600)))


# --- generation A --------------------------------------------------------------------------

TABLES = """
CREATE TABLE logs (id INTEGER PRIMARY KEY AUTOINCREMENT, timestamp INTEGER, level TEXT,
  message TEXT, correlation_id TEXT, peer TEXT, tx TEXT, block INTEGER,
  encrypted INTEGER NOT NULL DEFAULT 0, nonce BLOB);
CREATE TABLE ingest_state (source TEXT PRIMARY KEY, offset INTEGER, updated_at INTEGER);
INSERT INTO ingest_state VALUES ('/srv/node/input.jsonl', 6056, 1759400000);
"""


def sqlite(path: Path, *statements: str, encrypt: Tag | None = None) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.executescript("\n".join(statements) or TABLES)
        if not statements:
            for n, message in enumerate(MESSAGES):
                nonce = bytes([n]) * 24
                if encrypt:
                    message = sealed(
                        key_of(LOG_PASSPHRASE.encode()), nonce, message.encode(), encrypt
                    )
                database.execute(
                    "INSERT INTO logs (timestamp, level, message, peer, encrypted, nonce) "
                    "VALUES (?, 'WARN', ?, ?, ?, ?)",
                    [T + n, message, "0A" * 32, bool(encrypt), nonce if encrypt else None],
                )
        database.commit()
    return path


def test_an_sqlite_store_gives_every_row_and_stays_as_it_is(
    collect: Collect, tmp_path: Path
) -> None:
    path = sqlite(tmp_path / "logs.db")
    before = path.read_bytes()
    given_ = collect(path)
    lines = by_id(given_)
    assert [line["message"] for line in lines] == MESSAGES
    assert [line["id"] for line in lines] == list(range(1, 17))
    assert (lines[0]["peer"], lines[0]["ts"].timestamp()) == ("0a" * 32, T)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.glob("logs.db*")] == ["logs.db"]
    (kept,) = [c for c in given_.captures if c.role == "store"]
    assert given_.client.body(kept) == before
    store = store_of(given_)["store"]
    assert store["generation"] == "A"
    assert store["offsets"]["/srv/node/input.jsonl"]["offset"] == 6056


@pytest.mark.parametrize("tag", [Tag.STANDARD, Tag.OWN])
def test_an_encrypted_sqlite_store_opens_under_either_tag(
    collect: Collect, tmp_path: Path, phrase: dict[str, str], tag: Tag
) -> None:
    given_ = collect(sqlite(tmp_path / "logs.db", encrypt=tag), **phrase)
    assert [line["message"] for line in by_id(given_)] == MESSAGES
    (opened,) = [c for c in given_.captures if c.role == "opened"]
    assert any(note.startswith(f"tag: {tag}") for note in opened.notes)


def test_rows_that_are_only_in_the_write_ahead_log_are_seen(
    collect: Collect, tmp_path: Path
) -> None:
    live = tmp_path / "live.db"
    with closing(sqlite3.connect(live)) as database:
        database.executescript("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;" + TABLES)
        database.execute(f"INSERT INTO logs (timestamp, message) VALUES ({T}, 'in the log')")
        database.commit()
        (tmp_path / "copied").mkdir()
        for end in ("", "-wal"):
            shutil.copy(f"{live}{end}", tmp_path / "copied" / f"live.db{end}")
    for path in (tmp_path / "copied", tmp_path / "copied" / "live.db"):
        given_ = collect(path)
        assert [line["message"] for line in given_.lines] == ["in the log"]
        assert set(store_of(given_)["store"]["files"]) == {"live.db", "live.db-wal"}


@pytest.mark.parametrize(
    "schema",
    [
        "CREATE TABLE other (x);",
        "CREATE TABLE logs (x);",
        "CREATE VIEW logs AS WITH RECURSIVE n(timestamp) AS (SELECT 1 UNION ALL SELECT "
        "timestamp + 1 FROM n) SELECT timestamp, 'x' AS message FROM n;",
        "CREATE VIRTUAL TABLE logs USING fts4(timestamp, message);",
    ],
)
def test_another_schema_is_said_and_runs_nothing(
    collect: Collect, tmp_path: Path, schema: str
) -> None:
    given_ = collect(sqlite(tmp_path / "logs.db", schema))
    assert given_.lines == []
    assert "not read further" in given_.bad[0]["reason"]


def test_an_older_table_and_odd_values_are_read_as_far_as_they_go(
    collect: Collect, tmp_path: Path
) -> None:
    path = sqlite(
        tmp_path / "logs.db",
        "CREATE TABLE logs (timestamp, message, level);",
        f"INSERT INTO logs VALUES ({T}, x'ff00', 'warn'), ('x', 'no time', 1), (NULL, NULL, NULL),"
        f"({T}, CAST(x'c328' AS TEXT), 'info'), ({T}, 7, 'a\nb');",
    )
    given_ = collect(path)
    assert {line["message"] for line in given_.lines} >= {"\\xff\0", "\ufffd("}
    assert len(given_.lines) + len(given_.bad) == 5


# --- generation A, in batches --------------------------------------------------------------


def parsed(body: bytes, **request: str) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Rows, what was set aside, and the tally, of a store as `parse` reads it."""
    capture = Capture(
        "logs",
        "log_lines",
        "store",
        {"file": "f", **request},
        WINDOW.start,
        WINDOW,
        200,
        "0" * 64,
        1,
    )
    found: dict[str, list[pa.Table]] = {"log_lines": [], "quarantine": [], "snapshots": []}
    for name, table in SOURCE.parse(capture, io.BytesIO(body)):
        found[name].append(table)
    tables = [
        pa.concat_tables([SCHEMAS[name].empty_table(), *found[name]])
        for name in ("log_lines", "quarantine")
    ]
    return tables[0], tables[1], json.loads(found["snapshots"][0]["value"][0].as_py())


def one_by_one(body: bytes, *, opened_apart: bool) -> tuple[pa.Table, pa.Table, Tally]:
    """The same, where each row goes through JSON by itself."""
    reading = Reading("logs", "log_lines", "f", WINDOW, together=False)
    found = {name: [SCHEMAS[name].empty_table()] for name in ("log_lines", "quarantine")}
    elements = []
    for row in logstores.read(io.BytesIO(body), About()):
        assert isinstance(row, Stored)
        if row.encrypted and opened_apart:
            continue
        value = {**row.value, "message": "<encrypted>"} if row.encrypted else row.value
        elements.append(Element(logstores.json_line(value), row.place, -1))
    for name, table in reading.of_elements(elements):
        found[name].append(table)
    rows, bad = (pa.concat_tables(tables) for tables in found.values())
    return rows, bad, reading.tally


def batches(body: bytes) -> list[Batch]:
    return [
        row
        for row in logstores.read(io.BytesIO(body), About(), in_batches=True)
        if isinstance(row, Batch)
    ]


EVEN: dict[str, st.SearchStrategy[Any]] = {
    "id": st.integers(-(2**63), 2**63 - 1),
    "timestamp": st.none() | st.sampled_from([0, T, T * 1000 + 5, T * 10**9]),
    "level": st.none() | st.sampled_from(["", "warning", " Info"]),
    "message": st.none() | st.text(max_size=5),
    "correlation_id": st.none() | st.text(max_size=3),
    "peer": st.none() | st.sampled_from(["", "0A" * 32, "x"]),
    "tx": st.none() | st.text(max_size=3),
    "block": st.none() | st.integers(0, 99),
    "encrypted": st.sampled_from([None, 0, 0, 1, 7]),
}
ODD = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=3), st.binary(max_size=3)
)


def made(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> bytes:
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database:
        # No types, so that every value stays what it is.
        database.execute(f"CREATE TABLE logs ({', '.join(columns)})")
        marks = ", ".join("?" * len(columns))
        values = [[row[name] for name in columns] for row in rows]
        database.executemany(f"INSERT INTO logs VALUES ({marks})", values)
        database.commit()
    return path.read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_in_batches_are_the_rows_that_come_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    columns = ["timestamp", "message", *data.draw(st.sets(st.sampled_from(sorted(EVEN))))]
    columns = list(dict.fromkeys(columns))
    even = st.fixed_dictionaries(EVEN)
    rows = data.draw(st.lists(even, min_size=1, max_size=8))
    if data.draw(st.booleans()):
        row, name = data.draw(st.sampled_from(rows)), data.draw(st.sampled_from(columns))
        row[name] = data.draw(ODD)
    body = made(tmp_path_factory.getbasetemp() / "made.db", rows, columns)
    for request in ({}, {"messages": "opened apart"}):
        found, bad, summary = parsed(body, **request)
        expected, expected_bad, tally = one_by_one(body, opened_apart=bool(request))
        found.validate(full=True)
        assert found.to_pylist() == expected.to_pylist()
        assert bad.to_pylist() == expected_bad.to_pylist()
        assert tally.to_json().items() <= summary.items()


def test_an_even_table_comes_in_batches_and_an_odd_one_does_not(tmp_path: Path) -> None:
    plain = {**dict.fromkeys(EVEN), "timestamp": T, "message": "m", "peer": "x", "block": 1}
    odd_values = [("message", b"m"), ("message", 7), ("level", 2.5), ("block", "1"), ("id", 1.0)]
    for at in (0, 30):
        rows = [dict(plain) for _ in range(40)]
        (batch,) = batches(made(tmp_path / "s.db", rows, list(EVEN)))
        assert (batch.place, len(batch.values)) == (1, 40)
        for name, odd in odd_values:
            rows[at] = {**plain, name: odd}
            body = made(tmp_path / "s.db", rows, list(EVEN))
            assert sum(len(batch.values) for batch in batches(body)) <= at
            assert len(parsed(body)[0]) == 40


def test_texts_that_are_no_utf8_are_read_as_ever(tmp_path: Path) -> None:
    body = bytearray(
        made(tmp_path / "s.db", [{"timestamp": T, "message": "caf!"}], ["timestamp", "message"])
    )
    body[body.rindex(b"caf!") + 3] = 0xE9
    assert len(batches(bytes(body))) == 1
    assert parsed(bytes(body))[0]["message"].to_pylist() == ["caf\ufffd"]


def test_a_long_row_is_read_by_itself(tmp_path: Path) -> None:
    rows = [{"timestamp": T, "message": "x" * length} for length in (10, 200_000, 2_000_000)]
    body = made(tmp_path / "s.db", rows, ["timestamp", "message"])
    assert batches(body) == []
    found, bad, _ = parsed(body)
    assert (len(found), [row["line"] for row in bad.to_pylist()]) == (2, [3])


@pytest.mark.parametrize("in_batches", [True, False])
def test_reading_leaves_nothing_beside_a_database(tmp_path: Path, in_batches: bool) -> None:
    path = tmp_path / "odd ?name.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE logs (timestamp, message)")
        database.execute(f"INSERT INTO logs VALUES ({T}, 'm')")
        database.commit()
    before = path.read_bytes()
    found = list(logsqlite.read(path, immutable=True, inputs={}, in_batches=in_batches))
    assert [type(row) for row in found] == [Batch if in_batches else Stored]
    assert [file.name for file in tmp_path.iterdir()] == ["odd ?name.db"]
    assert path.read_bytes() == before


def test_a_column_that_would_compute_something_is_not_read(tmp_path: Path) -> None:
    bomb = "printf('%.*c', 9000000, 'x')"
    with closing(sqlite3.connect(tmp_path / "s.db")) as database:
        database.execute(f"CREATE TABLE logs (timestamp, message, level AS ({bomb}))")
        database.execute(f"INSERT INTO logs (timestamp, message) VALUES ({T}, 'm')")
        database.commit()
    body = (tmp_path / "s.db").read_bytes()
    assert len(batches(body)) == 1
    assert [(r["message"], r["level"]) for r in parsed(body)[0].to_pylist()] == [("m", None)]


def test_the_driver_loads_no_extensions_and_writes_nowhere(tmp_path: Path) -> None:
    made(tmp_path / "s.db", [{"timestamp": T, "message": "m"}], ["timestamp", "message"])
    uri = logsqlite.uri_of(tmp_path / "s.db", immutable=True)
    for statement in ("SELECT load_extension('x')", "CREATE TABLE t (x)", "DELETE FROM logs"):
        with connect(uri) as connection, connection.cursor() as cursor, pytest.raises(Error):
            cursor.execute(statement)
            cursor.fetchall()


@pytest.mark.parametrize("odd", ["text", 2.5, b"blob"])
def test_an_odd_value_far_down_changes_no_row(tmp_path: Path, odd: Any) -> None:
    rows = [{"timestamp": T, "message": "x" * 90_000}]  # so that a batch has few rows
    rows += [{"timestamp": T, "message": f"m{n}"} for n in range(2000)]
    rows[1500]["timestamp"] = odd
    body = made(tmp_path / "s.db", rows, ["timestamp", "message"])
    assert 0 < sum(len(batch.values) for batch in batches(body)) <= 1500
    found, bad, _ = parsed(body)
    expected, expected_bad, _ = one_by_one(body, opened_apart=False)
    assert (found.to_pylist(), bad.to_pylist()) == (expected.to_pylist(), expected_bad.to_pylist())
    assert found["line"].to_pylist() == [n for n in range(1, 2002) if n != 1501]


def test_a_page_that_stands_again_and_again_in_its_table_is_read_as_ever(tmp_path: Path) -> None:
    rows = [{"timestamp": T, "message": f"m{n}" * 50} for n in range(300)]
    body = bytearray(made(tmp_path / "s.db", rows, ["timestamp", "message"]))
    size = int.from_bytes(body[16:18], "big")
    (root,) = [at for at in range(size, len(body), size) if body[at] == 5]  # an inner page
    cells = int.from_bytes(body[root + 3 : root + 5], "big")
    for n in range(cells):  # its children: all of them the first one
        at = root + int.from_bytes(body[root + 12 + 2 * n : root + 14 + 2 * n], "big")
        if n == 0:
            child = bytes(body[at : at + 4])
        body[at : at + 4] = child
    found = parsed(bytes(body))[0]
    assert found.to_pylist() == one_by_one(bytes(body), opened_apart=False)[0].to_pylist()
    assert len(set(found["message"].to_pylist())) < len(found)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_bytes_of_a_database_do_harm(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    body = bytearray(sqlite(tmp_path_factory.mktemp("db") / "logs.db").read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        body[data.draw(st.integers(16, len(body) - 1))] = data.draw(st.integers(0, 255))
    read_body(bytes(body[: data.draw(st.integers(16, len(body)))]))


def test_nothing_there_is_said(collect: Collect, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.log").write_text("{}")
    for path in (tmp_path / "missing", tmp_path / "empty"):
        assert "no log store" in collect(path).errors[0]


def test_a_nonce_that_is_missing_keeps_a_message_shut(
    collect: Collect, tmp_path: Path, phrase: dict[str, str]
) -> None:
    path = sqlite(tmp_path / "logs.db")
    with closing(sqlite3.connect(path)) as database:
        database.execute(
            "UPDATE logs SET encrypted = 1, message = ?", [base64.b64encode(b"x").decode()]
        )
        database.commit()
    given_ = collect(path, **phrase)
    assert "16 of 16 messages stay shut" in given_.errors[0]
