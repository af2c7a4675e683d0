from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import Writer, at, capture, evidence_of, labels, window

from tbforensics.errors import EvidenceError
from tbforensics.evidence import (
    SCHEMAS,
    Evidence,
    Part,
    rows,
    same_rows,
    series_id,
    write_shared,
    write_views,
)


def test_every_table_can_be_asked_when_nothing_was_captured(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path)
    for table in (*SCHEMAS, "readings"):
        assert evidence.sql(f"SELECT * FROM {table}").empty


def test_labels_stand_once_per_series_and_samples_join_them(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"up": {labels(): [(0, 1.0), (15, 0.0)]}})
    found = evidence.records("SELECT labels, ts, value FROM readings ORDER BY ts")
    assert [(row["ts"], row["value"]) for row in found] == [(at(0), 1.0), (at(15), 0.0)]
    assert found[0]["labels"] == {"instance": "a", "job": "j"}


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        evidence_of(tmp_path / name, {"up": {labels(): [(s, float(s)) for s in range(999)]}})
    parts = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.parquet"))
    assert parts
    for part in parts:
        assert (tmp_path / "one" / part).read_bytes() == (tmp_path / "two" / part).read_bytes()


def test_values_that_are_no_numbers_survive_to_the_bit(tmp_path: Path) -> None:
    odd = [float("nan"), float("inf"), float("-inf"), 5e-324, -0.0]
    evidence_of(tmp_path, {"x": {labels(): list(enumerate(odd))}})
    (part,) = (tmp_path / "evidence" / "samples").glob("*.parquet")
    assert repr(pq.read_table(part)["value"].to_pylist()) == repr(odd)


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4))
def test_a_series_number_depends_on_its_labels_and_not_on_their_order(
    named: dict[str, str],
) -> None:
    assert series_id("s", "q", named) == series_id("s", "q", dict(reversed(named.items())))
    assert series_id("s", "q", {**named, "extra": "1"}) != series_id("s", "q", named)


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "ATTACH '/tmp/other.duckdb'",
    ],
)
def test_sql_cannot_reach_outside_the_evidence(tmp_path: Path, text: str) -> None:
    with pytest.raises(EvidenceError):
        evidence_of(tmp_path).sql(text)


def test_a_mistake_in_sql_names_the_tables_there_are(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError) as caught:
        evidence_of(tmp_path).sql("SELECT * FROM sample")
    assert "log_lines" in caught.value.next_step


def test_values_go_into_sql_as_parameters(tmp_path: Path) -> None:
    hostile = "x'; DROP VIEW series; --"
    evidence = evidence_of(tmp_path, {"up": {labels(peer=hostile): [(0, 1.0)]}})
    found = evidence.sql("SELECT * FROM series WHERE labels['peer'] = ?", [hostile])
    assert len(found) == 1 and len(evidence.sql("SELECT * FROM series")) == 1


def test_the_database_file_follows_a_case_that_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evidence_of(tmp_path / "here", {"up": {labels(): [(0, 1.0)]}})
    write_views(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    with duckdb.connect("evidence.duckdb", read_only=True) as connection:
        assert connection.execute("SELECT count(*) FROM samples").fetchall() == [(1,)]


def test_a_case_in_a_folder_with_an_odd_name_opens(tmp_path: Path) -> None:
    folder = tmp_path / "it's [odd] *"
    evidence_of(folder, {"up": {labels(): [(0, 1.0)]}})
    assert len(Evidence(folder).sql("SELECT * FROM samples")) == 1


def test_a_part_appears_whole_or_not_at_all_and_making_it_again_changes_nothing(
    tmp_path: Path,
) -> None:
    batch = rows("samples", [{"sid": 1, "ts": at(0), "value": 1.0}])
    whole = tmp_path / "evidence/samples/main.a.parquet"
    with pytest.raises(ZeroDivisionError), Part(tmp_path, "main", "a") as part:
        part.add("samples", batch)
        raise ZeroDivisionError
    assert not whole.exists() and not list((tmp_path / ".making").iterdir())
    contents = []
    for _ in range(2):
        with Part(tmp_path, "main", "a") as part:
            part.add("samples", batch)
            assert len(list((tmp_path / ".making").iterdir())) == 1
        contents.append(whole.read_bytes())
    assert contents[0] == contents[1]
    write_shared(tmp_path, [part.shared])
    assert not (tmp_path / ".making").exists()
    with pytest.raises(FileNotFoundError), Part(tmp_path / "sealed", "main", "a") as part:
        part.add("samples", batch)
    assert not (tmp_path / "sealed").exists()


def test_rows_are_the_same_however_they_are_cut_into_parts_and_groups(tmp_path: Path) -> None:
    values = [1.0, math.nan, -0.0, math.inf]
    records = [{"sid": 1, "ts": at(s), "value": v} for s, v in enumerate(values)]
    wholes, pieces, others = ([tmp_path / f"{name}.{n}" for n in range(2)] for name in "abc")
    schema = SCHEMAS["samples"]
    pq.write_table(rows("samples", records), wholes[0])
    pq.write_table(rows("samples", records[:1]), pieces[0])
    pq.write_table(rows("samples", records[1:]), pieces[1], row_group_size=1, compression="none")
    pq.write_table(rows("samples", [*records[:2], {**records[2], "value": 0.0}]), others[0])
    assert pq.read_schema(wholes[0]).equals(schema)
    assert same_rows(wholes[:1], pieces)
    assert not same_rows(wholes[:1], others[:1])
    assert not same_rows(wholes[:1], [*pieces, *others[:1]])


def test_the_tenth_part_comes_after_the_second(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        with Part(tmp_path, "main", "a", number) as part:
            part.add("samples", rows("samples", [{"sid": number, "ts": at(0), "value": 1.0}]))
    assert Evidence(tmp_path).sql("SELECT sid FROM samples")["sid"].tolist() == [1, 2, 10]


def test_log_lines_without_a_time_come_last_and_are_not_lost(tmp_path: Path) -> None:
    line = {"source": "main", "file": "f", "line": 1, "message": "m"}
    evidence = evidence_of(
        tmp_path,
        tables={"log_lines": [{**line, "ts": None}, {**line, "ts": at(5), "line": 2},
                              {**line, "ts": at(500), "line": 3}]},
    )  # fmt: skip
    assert evidence.logs(window(0, 60))["line"].tolist() == [2, 1]


def test_a_snapshot_value_comes_back_as_plain_json(tmp_path: Path) -> None:
    answer = {"source": "main", "query": "q", "role": "snapshot", "ts": at(0), "state": "ok",
              "generation": "B", "value": '{"a": [1, null]}'}  # fmt: skip
    evidence = evidence_of(tmp_path, tables={"snapshots": [answer]})
    assert evidence.snapshots("q")["value"].tolist() == [{"a": [1, None]}]
    assert evidence.answered() == ["q"]


def test_journal_times_keep_their_nanoseconds(tmp_path: Path) -> None:
    ns = 1_760_000_000_123_456_789
    record = {"source": "main", "query": "portfolio", "file": "f", "line": 1, "place": 0,
              "offset": 0, "ts": ns, "value": f'{{"ts_ns": {ns}}}'}  # fmt: skip
    batch = pa.Table.from_pylist([record], schema=SCHEMAS["records"])
    writer = Writer(tmp_path)
    writer.add(capture("portfolio"), "records", batch)
    writer.close()
    found = Evidence(tmp_path).sql("SELECT epoch_ns(ts) AS ns, value FROM records")
    assert found["ns"].tolist() == [ns] and str(ns) in found["value"][0]


def test_what_parts_answer_by_themselves_is_what_the_whole_answers(tmp_path: Path) -> None:
    shared = []
    for number in (1, 2, 3):
        with Part(tmp_path, "main", "a", number) as part:
            records = [{"sid": s % 2, "ts": at(number * 9 + s), "value": s * number}
                       for s in range(9)]  # fmt: skip
            part.add("samples", rows("samples", records))
        shared.append(part.shared)
    write_shared(tmp_path, shared)
    evidence = Evidence(tmp_path)
    whole = evidence.sql(
        "SELECT sid, sum(value) AS total FROM samples WHERE value >= $least GROUP BY sid "
        "ORDER BY sid", {"least": 3}
    )  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        for workers in (None, pool):
            found = evidence.sql_by_part(
                "samples",
                "SELECT sid, sum(value) AS total FROM part WHERE value >= $least GROUP BY sid",
                "SELECT sid, sum(total) AS total FROM parts GROUP BY sid ORDER BY sid",
                {"least": 3},
                workers,
            )
            assert found.equals(whole)
    with pytest.raises(EvidenceError, match="no part of 'log_lines'"):
        evidence.sql_by_part("log_lines", "SELECT 1", "SELECT 1")
    with pytest.raises(EvidenceError):
        evidence.sql_by_part("samples", "SELECT * FROM '/etc/passwd'", "SELECT 1")
