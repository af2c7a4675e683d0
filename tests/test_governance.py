"""The governance source against files as a node writes them, and as they are damaged."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_explorer import INCIDENT, NOW

from tbforensics.archive import Archive
from tbforensics.model import Capture, Query, Shape, SourceConfig
from tbforensics.sources.governance import CHANGES, EVENTS, PARAMETERS, SOURCE, Options
from tbforensics.wire import Client

QUERIES = (
    Query("gov_events", "governance", EVENTS, shape=Shape.RECORDS),
    Query("gov_changes", "governance", CHANGES, shape=Shape.ROWS),
    Query("gov_params", "governance", PARAMETERS, shape=Shape.ROWS),
)
LOG = """\
48260 retune 50 20 15000 400
48261 inflation_guard 0.021300
48261 kill_switch 50
48261 retune -7 19 7125 190
"""


def read(folder: Path, path: Path | str) -> dict[str, list[tuple[Capture, dict[str, Any]]]]:
    """By query: each capture with its rows by table."""
    (folder / "case").mkdir(exist_ok=True)
    client = Client(SourceConfig("g", "governance"), Archive(folder / "case"), clock=lambda: NOW)
    found: dict[str, list[tuple[Capture, dict[str, Any]]]] = {}
    for capture in SOURCE.fetch(QUERIES, INCIDENT, Options(str(path)), client):
        tables: dict[str, Any] = {}
        if capture.usable:
            body = io.BytesIO(client.body(capture))
            tables = {name: part.to_pylist() for name, part in SOURCE.parse(capture, body)}
        found.setdefault(capture.query, []).append((capture, tables))
    client.session.close()
    return found


@pytest.fixture
def history(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "governance" / "history"
    folder.mkdir(parents=True)
    (folder / "events.log").write_text(LOG)
    return folder


def events(tables: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(row["value"]) for row in tables["records"]]


def test_guard_and_kill_switch_come_before_the_retune_of_their_epoch(
    tmp_path: Path, history: Path
) -> None:
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    assert [e["event"] for e in events(tables)] == [
        "retune",
        "inflation_guard",
        "kill_switch",
        "retune",
    ]
    assert events(tables)[1]["rolling_inflation"] == 0.0213
    assert events(tables)[2]["reduction_percent"] == 50


def test_multipliers_below_zero_are_read_as_they_stand(tmp_path: Path, history: Path) -> None:
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    last = events(tables)[-1]
    assert (last["epoch"], last["beta"], last["lambda"]) == (48261, -7, 190)


def test_events_have_an_epoch_and_no_time(tmp_path: Path, history: Path) -> None:
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    assert [row["ts"] for row in tables["records"]] == [None] * 4
    assert [row["line"] for row in tables["records"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "line",
    ["48262 ret", "48262", "x retune 1 2 3 4", "48262 retune 1 2 3", "48262 kill_switch many",
     "48262 retune 1 2 3 99999999999999999999", "1 coup 7", "\x00\x00"],
)  # fmt: skip
def test_a_damaged_line_is_set_aside_with_its_place(
    tmp_path: Path, history: Path, line: str
) -> None:
    (history / "events.log").write_text(f"{line}\n{LOG}")
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    assert len(tables["records"]) == 4
    (bad,) = tables["quarantine"]
    assert (bad["line"], bad["offset"], bad["bytes"]) == (1, 0, line.encode())


def test_bytes_that_are_no_text_are_set_aside(tmp_path: Path, history: Path) -> None:
    (history / "events.log").write_bytes(LOG.encode() + b"48262 retune \xff 1 2 3\n")
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    assert len(tables["quarantine"]) == 1


def test_a_last_line_that_is_still_being_written_is_no_damage(
    tmp_path: Path, history: Path
) -> None:
    (history / "events.log").write_text(LOG + "48262 retune 5")
    ((_, tables),) = read(tmp_path, history)["gov_events"]
    assert "quarantine" not in tables
    assert len(tables["records"]) == 4


@pytest.mark.parametrize("key", ["GammaReadSub", "GammaReadSubCt", "gamma_read_sub_ct"])
def test_a_parameter_has_one_name_in_every_spelling(
    tmp_path: Path, history: Path, key: str
) -> None:
    change = {"key": key, "proposal_id": 12, "epoch": 7, "old_value": 20, "new_value": 44}
    (history / CHANGES).write_text(json.dumps([change]))
    ((_, tables),) = read(tmp_path, history)["gov_changes"]
    (snapshot,) = tables["snapshots"]
    (told,) = json.loads(snapshot["value"])["changes"]
    assert (told["key"], told["new_value"]) == ("gamma_read_sub", 44)


@pytest.mark.parametrize("text", ["{", "null", '{"a": 1}', "[1]", '[{"id": 1}]', "[[]]"])
def test_changes_in_another_form_are_set_aside(tmp_path: Path, history: Path, text: str) -> None:
    (history / CHANGES).write_text(text)
    ((_, tables),) = read(tmp_path, history)["gov_changes"]
    assert tables["snapshots"][0]["state"] == "error"
    assert len(tables["quarantine"]) == 1


def test_each_epochs_parameters_are_one_snapshot_in_the_order_of_epochs(
    tmp_path: Path, history: Path
) -> None:
    for epoch in (9, 10, 100):
        params = {"beta_storage_sub_ct": epoch, "rent_rate_ct_per_byte": 1}
        (history / f"inflation_{epoch}.json").write_text(json.dumps(params))
    found = [
        json.loads(t["snapshots"][0]["value"]) for _, t in read(tmp_path, history)["gov_params"]
    ]
    assert [value["epoch"] for value in found] == [9, 10, 100]
    assert found[0]["params"] == {"beta_storage_sub": 9, "rent_rate_per_byte": 1}


def test_the_data_folder_above_is_enough(tmp_path: Path, history: Path) -> None:
    ((capture, _),) = read(tmp_path, history.parent.parent)["gov_events"]
    assert capture.request["file"] == "governance/history/events.log"


def test_a_file_that_is_missing_is_on_record(tmp_path: Path, history: Path) -> None:
    ((capture, _),) = read(tmp_path, history)["gov_changes"]
    assert (capture.usable, capture.error) == (False, "no param_changes.json under `path`")


def test_a_link_is_named_and_not_followed(tmp_path: Path, history: Path) -> None:
    (tmp_path / "elsewhere.json").write_text("[]")
    (history / CHANGES).symlink_to(tmp_path / "elsewhere.json")
    ((capture, _),) = read(tmp_path, history)["gov_changes"]
    assert "symbolic link" in capture.error


def test_without_a_path_every_question_fails_with_a_reason(tmp_path: Path) -> None:
    found = read(tmp_path, "")
    assert {capture.usable for rows in found.values() for capture, _ in rows} == {False}
