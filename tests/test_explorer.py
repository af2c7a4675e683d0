"""The explorer source against a stand-in that fails as explorers do."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standin_explorer import StandInExplorer

from tbforensics.archive import Archive
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.sources.explorer import SOURCE, Options
from tbforensics.wire import Client

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = Window(datetime(2026, 3, 10, 10, tzinfo=UTC), datetime(2026, 3, 10, 11, tzinfo=UTC))
CALM = Window(datetime(2026, 3, 10, 9, tzinfo=UTC), HOUR.start)
INCIDENT = Incident("x", "k", "", HOUR, CALM, 30.0, (), {}, (), "", "")
HASTY = replace(SOURCE.manners, requests_per_s=1000.0, ban_s=0.01, backoff_s=0.01, retries=0)
HISTORY = [{"epoch": 100, "beta": 50, "gamma": -20, "kappa": 10, "lambda": 6}]


@pytest.fixture
def explorer() -> Iterator[StandInExplorer]:
    with StandInExplorer({"/subsidy/history": HISTORY}) as standin:
        yield standin


def ask(
    folder: Path, url: str, paths: Sequence[str], options: Options = Options(), **params: Any
) -> list[tuple[Capture, dict[str, Any]]]:
    """Each capture with its snapshot; {} where it has none."""
    client = Client(SourceConfig("e", "explorer", url), Archive(folder), manners=HASTY,
                    clock=lambda: NOW)  # fmt: skip
    queries = [Query(path, "explorer", path, params=params) for path in paths]
    found = []
    for capture in SOURCE.fetch(queries, INCIDENT, options, client):
        found.append((capture, parse(capture, client.body(capture)) if capture.usable else {}))
    client.session.close()
    return found


def parse(capture: Capture, body: bytes) -> dict[str, Any]:
    tables = dict(SOURCE.parse(capture, io.BytesIO(body)))
    (row,) = tables["snapshots"].to_pylist()
    return {**row, "value": json.loads(row["value"]), "quarantined": "quarantine" in tables}


def test_a_path_is_asked_once_and_its_answer_kept(tmp_path: Path, explorer: Any) -> None:
    ((capture, snapshot),) = ask(tmp_path, explorer.url, ["/subsidy/history"])
    assert (snapshot["state"], snapshot["value"]) == ("ok", HISTORY)
    assert capture.request["url"].endswith("/subsidy/history")
    assert explorer.asked == [("/subsidy/history", {})]


def test_an_empty_answer_is_weak_evidence_because_errors_look_the_same(
    tmp_path: Path, explorer: Any
) -> None:
    explorer.broken = ("/subsidy/history",)
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/subsidy/history"])
    assert snapshot["state"] == "empty"
    assert "errors" in snapshot["value"]["message"]


def test_a_page_of_size_zero_is_the_error_answer_inside_http_200(
    tmp_path: Path, explorer: Any
) -> None:
    explorer.broken = ("/releases",)
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/releases"])
    assert snapshot["state"] == "error"
    assert "page_size 0" in snapshot["value"]["message"]


def test_no_release_at_all_is_empty_and_no_error(tmp_path: Path, explorer: Any) -> None:
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/releases"])
    assert snapshot["state"] == "empty"


def test_pages_are_followed_from_the_first_to_the_last(tmp_path: Path, explorer: Any) -> None:
    explorer.replies["/releases"] = [{"build_hash": str(n)} for n in range(45)]
    found = ask(tmp_path, explorer.url, ["/releases"])
    hashes = [e["build_hash"] for _, s in found for e in s["value"]["entries"]]
    assert hashes == [str(n) for n in range(45)]
    assert [params["page"] for _, params in explorer.asked] == ["0", "1", "2"]


def test_a_total_that_lies_does_not_ask_for_ever(tmp_path: Path, explorer: Any) -> None:
    page = {"total": 10**9, "page": 0, "page_size": 1, "entries": [{"build_hash": "ab"}]}
    explorer.bodies["/releases"] = json.dumps(page).encode()
    found = ask(tmp_path, explorer.url, ["/releases"])
    assert len(explorer.asked) == 200
    assert "the rest is missing" in found[-1][0].error


def test_a_socket_closed_without_a_reply_is_a_failure_with_a_reason(
    tmp_path: Path, explorer: Any
) -> None:
    options = Options(params={"/releases": [{"page": "first"}]})
    ((capture, _),) = ask(tmp_path, explorer.url, ["/releases"], options)
    assert not capture.usable
    assert capture.error


def test_a_place_in_a_path_is_filled_and_cannot_leave_it(tmp_path: Path, explorer: Any) -> None:
    options = Options(params={"/metrics/:name": [{"name": "../admin?x"}, {"name": "a_total"}]})
    ask(tmp_path, explorer.url, ["/metrics/:name"], options)
    assert [path for path, _ in explorer.asked] == ["/metrics/..%2Fadmin%3Fx", "/metrics/a_total"]


def test_a_path_whose_place_nobody_fills_is_not_asked(tmp_path: Path, explorer: Any) -> None:
    ((capture, _),) = ask(tmp_path, explorer.url, ["/metrics/:name"])
    assert "needs name" in capture.error
    assert explorer.asked == []


def test_money_of_more_than_64_bits_keeps_every_digit(tmp_path: Path, explorer: Any) -> None:
    explorer.bodies["/subsidy/history"] = b'[{"epoch": 1, "beta": 36893488147419103231}]'
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/subsidy/history"])
    assert snapshot["value"][0]["beta"] == 36893488147419103231


@pytest.mark.parametrize("body", [b"<html>", b'[{"epoch": NaN}]', b"", b"[" * 100_000])
def test_what_is_no_json_is_set_aside(tmp_path: Path, explorer: Any, body: bytes) -> None:
    explorer.bodies["/subsidy/history"] = body
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/subsidy/history"])
    assert (snapshot["state"], snapshot["quarantined"]) == ("error", True)


@pytest.mark.parametrize("suffix", ["", "_ct"])
def test_sla_history_comes_in_the_names_of_either_generation(
    tmp_path: Path, explorer: Any, suffix: str
) -> None:
    row = {"job_id": "j", f"burned{suffix}": 25, f"refunded{suffix}": 7, "outcome": "Violated"}
    explorer.replies["/compute/sla/history"] = [row]
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/compute/sla/history"])
    (told,) = snapshot["value"]
    assert (told["burned"], told["refunded"], told["outcome"]) == (25, 7, "violated")


def test_a_bare_number_is_an_answer(tmp_path: Path, explorer: Any) -> None:
    explorer.bodies["/cluster"] = b"0"
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/cluster"])
    assert (snapshot["state"], snapshot["value"]) == ("ok", 0)


def test_hostile_text_comes_through_as_text(tmp_path: Path, explorer: Any) -> None:
    hostile = "<img src=x onerror=alert(1)>\u202e\ud800"
    explorer.bodies["/peers/handshakes"] = json.dumps([{"peer_id": hostile}]).encode()
    ((_, snapshot),) = ask(tmp_path, explorer.url, ["/peers/handshakes"])
    assert snapshot["value"][0]["peer_id"] == hostile.replace("\ud800", "?")


def test_nobody_there_is_a_failure_and_not_a_crash(tmp_path: Path) -> None:
    ((capture, _),) = ask(tmp_path, "http://127.0.0.1:9", ["/subsidy/history"])
    assert not capture.usable
