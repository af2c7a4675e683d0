"""The journals source: families of files, every digit as it was spelled, whatever is torn."""

from __future__ import annotations

import gzip
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.archive import Archive
from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Incident, Query, Shape, SourceConfig, Window
from tbforensics.reading.journalrows import DEEPEST, Journal, records_of_line, time_ns
from tbforensics.reading.logrows import LineError
from tbforensics.sources.journals import FILES, SOURCE, Options, is_of, stem
from tbforensics.wire import Client

NOW = datetime(2026, 11, 21, tzinfo=UTC)
WINDOW = Window(datetime(2026, 11, 20, 10, tzinfo=UTC), datetime(2026, 11, 20, 11, tzinfo=UTC))
CALM = Window(WINDOW.start - timedelta(hours=1), WINDOW.start)
INCIDENT = Incident("x", "k", "", WINDOW, CALM, 30.0, (), {}, (), "", "")
TEN_NS = 1_795_168_800_000_000_000  # 2026-11-20T10:00:00Z
FIXTURES = Path(__file__).parent / "fixtures" / "njord"


def query(name: str, family: str) -> Query:
    return Query(name, "journals", family, "records", Shape.RECORDS)


QUERIES = (*SOURCE.always, query("portfolio", "portfolio"), query("positions", "positions.*"))


class Collected:
    """Captures of one collection and the rows that they gave."""

    def __init__(self, home: Path, options: Options, queries: tuple[Query, ...] = QUERIES) -> None:
        client = Client(SourceConfig("here", "journals"), Archive(home), clock=lambda: NOW)
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.captures: list[Capture] = []
        for capture in SOURCE.fetch(queries, INCIDENT, options, client):
            self.captures.append(capture)
            if capture.usable:
                with client.archive.open(capture) as body:
                    for name, table in SOURCE.parse(capture, body):
                        self.tables.setdefault(name, []).extend(table.to_pylist())
        client.session.close()

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.tables.get("records", [])

    @property
    def bad(self) -> list[dict[str, Any]]:
        return self.tables.get("quarantine", [])

    def files(self, role: str) -> list[Any]:
        rows = self.tables.get("snapshots", [])
        return [json.loads(row["value"]) for row in rows if row["role"] == role]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "journals").mkdir()
    return tmp_path / "journals"


def collect(folder: Path, *queries: Query, **options: str) -> Collected:
    given = Options(**{"path": str(folder), **options})
    return Collected(folder.parent / "case", given, (*SOURCE.always, *queries) or QUERIES)


def read(data: bytes, window: Window | None = None) -> tuple[Journal, dict[str, list[Any]]]:
    journal = Journal("here", "portfolio", "portfolio.ndjson", window)
    tables: dict[str, list[Any]] = {}
    for name, table in journal.tables(io.BytesIO(data)):
        tables.setdefault(name, []).extend(table.to_pylist())
    return journal, tables


# --- which files -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("portfolio.ndjson", "portfolio"),
        ("old/portfolio.20261119.ndjson.gz", "portfolio"),
        ("ohlcv.1m.ATOMUSDT.20261119.2.ndjson.gz", "ohlcv.1m.ATOMUSDT"),
        ("metrics/aggregated_metrics.ndjson", "aggregated_metrics"),
        ("config_changes.log", "config_changes"),
        ("fills_paper.jsonl", "fills_paper"),
        ("njord.trading.halt", ""),
        ("portfolio.ndjson.swp", ""),
        ("portfolio.parquet", ""),
    ],
)
def test_a_rotated_file_belongs_to_the_family_of_its_stem(name: str, expected: str) -> None:
    assert stem(name) == expected


def test_a_family_is_a_pattern_of_the_stem_and_of_nothing_else() -> None:
    assert is_of("positions.*", "positions.ATOMUSDT.ndjson")
    assert not is_of("positions.*", "positions.ndjson")
    assert not is_of("portfolio", "portfolio_old.ndjson")
    assert not is_of("*", "njord.trading.halt")


def test_the_real_files_are_read_whole(tmp_path: Path) -> None:
    families = ("portfolio", "positions.*", "broker.acks", "broker.balances", "app", "bus*")
    queries = tuple(query(f"q{n}", family) for n, family in enumerate(families))
    found = collect(_copied(tmp_path), *queries)
    told = {file["file"]: file["records"] for file in found.files("summary")}
    assert told == {
        "portfolio.ndjson": 90,
        "positions.ATOMUSDT.ndjson": 31,
        "broker.acks.ndjson": 3,
        "broker.balances.ndjson": 2,
        "app.ndjson": 26,
        "bus.ndjson": 102,
    }
    assert found.bad == []


def _copied(tmp_path: Path) -> Path:
    folder = tmp_path / "journals"
    folder.mkdir(exist_ok=True)
    for path in FIXTURES.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_family_without_a_file_was_asked_and_is_absent(folder: Path) -> None:
    (folder / "portfolio.ndjson").write_text('{"ts_ns": 1}\n')
    found = collect(folder, query("fills", "fills*"))
    (asked,) = (capture for capture in found.captures if capture.query == "fills")
    assert asked.usable


@pytest.mark.parametrize("name", ["nowhere", "nowhere/*.ndjson"])
def test_a_folder_that_is_not_there_fails_every_query(tmp_path: Path, name: str) -> None:
    found = Collected(tmp_path / "case", Options(path=str(tmp_path / name)))
    failed = {capture.query for capture in found.captures if not capture.usable}
    assert failed == {"portfolio", "positions"}


def test_a_file_that_may_not_be_read_is_a_failure_and_stops_no_other(folder: Path) -> None:
    (folder / "positions.A.ndjson").symlink_to("/etc/passwd")
    (folder / "positions.B.ndjson").write_text(f'{{"ts_ns": {TEN_NS}}}\n')
    found = collect(folder, *QUERIES[1:])
    (failed,) = (capture for capture in found.captures if not capture.usable)
    assert "symbolic link" in failed.error
    assert [row["file"] for row in found.records] == ["positions.B.ndjson"]


def test_no_path_of_this_machine_enters_a_capture(folder: Path) -> None:
    (folder / "portfolio.ndjson").write_text(f'{{"ts_ns": {TEN_NS}}}\n')
    halt = folder.parent / "njord.trading.halt"
    halt.touch()
    found = collect(folder, *QUERIES[1:], halt_file=str(halt))
    assert str(folder.parent) not in json.dumps([c.to_json() for c in found.captures])
    assert str(folder.parent) not in str(found.tables)


def test_the_halt_file_is_noted_by_when_it_was_made(folder: Path) -> None:
    (folder / "portfolio.ndjson").write_text("")
    halt = folder.parent / "njord.trading.halt"
    halt.touch()
    os.utime(halt, (1_795_171_664, 1_795_171_664))
    (listing,) = collect(folder, halt_file=str(halt)).files("listing")
    assert listing["halt_file"]["there"]
    assert listing["halt_file"]["modified"] == "2026-11-20T10:47:44Z"


def test_a_halt_file_that_was_cleared_is_noted_as_gone(folder: Path) -> None:
    (folder / "portfolio.ndjson").write_text("")
    (listing,) = collect(folder, halt_file=str(folder / "gone")).files("listing")
    assert not listing["halt_file"]["there"]


def test_journals_need_a_path() -> None:
    with pytest.raises((TypeError, ParametersError)):
        Options()  # type: ignore[call-arg]


# --- times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"ts_ns": 1_760_000_000_123_456_789}, 1_760_000_000_123_456_789),
        ({"ts_ns": 1_760_000_000_123}, 1_760_000_000_123_000_000),  # as an exchange fills it
        ({"timestamp": 1_760_000_000_123}, 1_760_000_000_123_000_000),
        ({"timestamp": "2026-11-20T10:00:00.123456Z"}, TEN_NS + 123_456_000),
        ({"ts_open": 5, "ts_close": TEN_NS}, TEN_NS),  # a bar is known when it closes
        ({"timestamp": "2026-11-20T10:00:00Z", "ts_ns": 7}, TEN_NS),  # when it was logged
        ({"ts_ns": 1_760_000_000.25}, 1_760_000_000_250_000_000),
        ({"ts_ns": None, "timestamp_ns": TEN_NS}, TEN_NS),
        ({"event": "alert_manager.alert_fired"}, None),
        ({"timestamp": "2026-11-20 10:00:00"}, None),  # nobody knows its zone
    ],
)
def test_times_of_every_unit(value: dict[str, Any], expected: int | None) -> None:
    assert time_ns(value) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        -1,
        True,
        "yesterday",
        float("inf"),
        float("nan"),
        1 << 63,
        10**30,
        999_999_999_999_999,  # milliseconds of the year 33658
        "1760000000",
        [],
        {},
        "9999-12-31T00:00:00Z",
    ],
)
def test_a_time_that_cannot_be_read_sets_its_record_aside(wrong: Any) -> None:
    with pytest.raises(LineError):
        time_ns({"ts_ns": wrong})


@given(st.integers(10**17, (1 << 63) - 1))
def test_nanoseconds_never_pass_through_a_float(ns: int) -> None:
    (record,) = records_of_line(b'{"ts_ns":%d}' % ns)
    assert record.ts_ns == ns
    assert str(ns) in record.value


def test_only_records_of_the_span_are_kept_and_the_others_counted() -> None:
    lines = [b'{"ts_ns":%d}' % (TEN_NS + s * 10**9) for s in (-7200, 0, 3599, 3600)]
    journal, tables = read(b"\n".join([*lines[:1], b'{"event":"no time"}', *lines[1:]]), WINDOW)
    assert [row["line"] for row in tables["records"]] == [3, 4]
    assert (journal.tally.records, journal.tally.outside_window) == (5, 3)
    assert journal.tally.first_ns == TEN_NS - 7200 * 10**9


# --- lines -------------------------------------------------------------------------------


def test_a_number_keeps_every_digit_of_its_spelling() -> None:
    line = b'{"ts_ns":1760000000000000001,"price":13.10,"qty":1e-8,"big":123456789012345678901234}'
    (record,) = records_of_line(line)
    assert record.value == line.decode()


def test_every_element_of_an_array_is_a_record_with_its_place() -> None:
    line = b'[{"asset":"USDT","free":950.00,"ts_ns":1760000000123}, {"asset":"ATOM"}]\n'
    journal, tables = read(line + b'[]\n{"asset":"X"}\n')
    found = [(row["line"], row["place"], row["value"]) for row in tables["records"]]
    assert found == [
        (1, 0, '{"asset":"USDT","free":950.00,"ts_ns":1760000000123}'),
        (1, 1, '{"asset":"ATOM"}'),
        (3, 0, '{"asset":"X"}'),
    ]
    assert journal.tally.records == 3


def test_a_file_of_one_array_is_read_the_same_way() -> None:
    _, tables = read((FIXTURES / "broker.balances.ndjson").read_bytes())
    assert [(row["line"], row["place"]) for row in tables["records"]] == [(1, 0), (1, 1)]


def test_a_torn_last_line_is_set_aside_and_said_to_be_torn() -> None:
    journal, tables = read(b'{"ts_ns":1760000000000000001}\n{"ts_ns":17600000')
    assert len(tables["records"]) == 1
    (bad,) = tables["quarantine"]
    assert (bad["line"], bad["bytes"]) == (2, b'{"ts_ns":17600000')
    assert "ends in the middle" in bad["reason"]
    assert journal.tally.torn


def test_a_last_line_without_its_newline_is_whole() -> None:
    journal, tables = read(b'{"a":1}\n{"a":2}')
    assert len(tables["records"]) == 2
    assert not journal.tally.torn


def test_a_line_that_a_crash_tore_in_the_middle_costs_no_other() -> None:
    journal, tables = read(b'{"a":1}\n{"a":2{"a":3}\n{"a":4}\n')
    assert [row["line"] for row in tables["records"]] == [1, 3]
    assert "not JSON" in tables["quarantine"][0]["reason"]
    assert not journal.tally.torn


@pytest.mark.parametrize(
    "line",
    [
        b"3",
        b'"text"',
        b"null",
        b"[1]",
        b"[[]]",
        b"\0\0\0",
        b"\xff\xfe",
        b"{",
        b"a\tb\tc\td",
        b"{}{}",
    ],
)
def test_what_is_no_record_is_set_aside(line: bytes) -> None:
    _, tables = read(b'{"a":1}\n' + line + b'\n{"a":2}\n')
    assert [row["line"] for row in tables["records"]] == [1, 3]
    assert [row["bytes"] for row in tables["quarantine"]] == [line]


def test_what_nests_too_deep_for_later_readers_is_set_aside() -> None:
    for opened, closed in ((b'{"a":', b"}"), (b"[", b"]")):
        deep = opened * 900 + b"1" + closed * 900
        line = b'{"x":' + deep + b"}"
        with pytest.raises(LineError):
            records_of_line(line)
    flat = b'{"x":[' + b",".join([b"[]"] * 2 * DEEPEST) + b"]}"
    assert len(records_of_line(flat)) == 1


def test_a_line_longer_than_any_record_is_set_aside_by_its_length() -> None:
    _, tables = read(b'{"a":"' + b"x" * (2 << 20) + b'"}\n{"a":2}\n')
    (bad,) = tables["quarantine"]
    assert "longer than" in bad["reason"]
    assert len(bad["bytes"]) == 4096
    assert [row["line"] for row in tables["records"]] == [2]


def test_what_is_less_than_strict_json_is_written_anew() -> None:
    (record,) = records_of_line(b'{"x":NaN,"y":"\\ud800"}')
    assert json.loads(record.value) == {"x": "NaN", "y": "?"}


def test_a_change_log_is_read_as_records() -> None:
    (record,) = records_of_line(b"%d\tinitial\tabc\tconfig_changed" % TEN_NS)
    assert record.ts_ns == TEN_NS
    assert json.loads(record.value)["old"] == "initial"


# --- compression -------------------------------------------------------------------------


def test_an_archive_is_told_by_its_bytes_and_read_as_its_file_was(folder: Path) -> None:
    packed = gzip.compress(f'{{"ts_ns": {TEN_NS}}}\n'.encode())
    (folder / "portfolio.20261119.ndjson.gz").write_bytes(packed)
    (folder / "portfolio.ndjson").write_text(f'{{"ts_ns": {TEN_NS + 1}}}\n')
    found = collect(folder, *QUERIES[1:])
    assert {row["file"] for row in found.records} == {
        "portfolio.20261119.ndjson.gz",
        "portfolio.ndjson",
    }
    assert {file["stem"] for file in found.files("summary")} == {"portfolio"}


def test_an_archive_that_ends_early_gives_what_it_held() -> None:
    lines = b"".join(b'{"ts_ns":%d}\n' % (TEN_NS + n) for n in range(5000))
    journal, tables = read(gzip.compress(lines)[:-400])
    assert len(tables["records"]) > 1000
    assert "compression is broken" in journal.tally.stopped


def test_an_archive_that_expands_without_measure_is_cut_off() -> None:
    journal, tables = read(gzip.compress(b" " * (80 << 20)))
    assert "not expanded further" in journal.tally.stopped
    assert tables.get("records", []) == []


@given(st.binary(max_size=400))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    journal, tables = read(data)
    assert len(tables.get("records", [])) == journal.tally.kept
    for row in tables.get("records", []):
        json.loads(row["value"])


def test_the_same_bytes_give_the_same_rows() -> None:
    data = (FIXTURES / "portfolio.ndjson").read_bytes()
    assert read(data)[1] == read(data)[1]


def test_the_listing_is_a_question_of_its_own() -> None:
    assert [one.name for one in SOURCE.always] == [FILES]
