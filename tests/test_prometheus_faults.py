"""Servers that are not quite a Prometheus, or not quite well."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from http_fake import Answer, Handler, fake

from tbforensics.archive import Archive
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.sources.prometheus import SOURCE, Options
from tbforensics.wire import Client, Manners

HASTY = Manners(
    connect_s=1,
    read_s=0.2,
    whole_reply_s=1,
    retries=1,
    backoff_s=0.01,
    ban_s=0.05,
    requests_per_s=1000,
)
NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
WINDOW = Window(NOON, NOON + timedelta(hours=1))
BASELINE = Window(NOON - timedelta(hours=1), NOON)
INCIDENT = Incident("i", "k", "t", WINDOW, BASELINE, 30.0, (), {}, (), "", "d")
AS_JSON = Options(avoid=("remote_read",))
QUERIES = [Query("m", "prometheus", "m_total")]
EMPTY = '{"status":"success","data":{"resultType":"matrix","result":[]}}'
ONE = (
    '{"status":"success","data":{"resultType":"matrix","result":'
    '[{"metric":{"__name__":"m_total"},"values":[[1773144000.5,"1"]]}]}}'
)


def is_query(to: Handler) -> bool:
    return to.path.startswith("/api/v1/query")


def query_of(to: Handler) -> str:
    return parse_qs(urlsplit(to.path).query).get("query", [""])[0]


def fetched(answer: Answer, folder: Path) -> tuple[list[Capture], int]:
    with fake(answer) as server:
        client = Client(
            SourceConfig("main", "prometheus", server.url), Archive(folder), manners=HASTY
        )
        captures = list(SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client))
        return captures, len(server.seen)


def one(captures: list[Capture], query: str = "m") -> list[Capture]:
    return [capture for capture in captures if capture.query == query]


def test_parts_of_the_api_that_a_server_lacks_do_not_stop_the_run(tmp_path):
    def answer(to: Handler, before: int) -> None:
        to.reply(ONE) if is_query(to) else to.reply("404 page not found", 404)

    captures, _ = fetched(answer, tmp_path)
    lacking = [capture for capture in captures if capture.role != "samples"]
    assert all(capture.error.startswith("HTTP 404 Not Found") for capture in lacking)
    assert len(lacking) == 6
    assert all(capture.usable for capture in captures if capture.role == "samples")
    for capture in lacking:
        with Archive(tmp_path).open(capture) as body:
            ((table, rows),) = SOURCE.parse(capture, body)
        assert (table, rows.to_pylist()[0]["state"]) == ("snapshots", "unsupported")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ("<html>log in</html>", 200, "HTML in place of JSON"),
        (ONE[:-9], 200, "not JSON, or cut short after"),
        ("", 200, "the reply is empty"),
        ('{"status":"error","errorType":"internal","error":"oops"}', 200, "internal: oops"),
        (
            '{"status":"error","errorType":"bad_data","error":"1:1: parse error: limit"}',
            400,
            "HTTP 400 Bad Request: bad_data: 1:1: parse error: limit",
        ),
        ("<html>", 500, "HTTP 500 Internal Server Error: HTML in place of JSON"),
    ],
)
def test_a_reply_that_is_no_answer_says_why_and_is_asked_once(body, status, words, tmp_path):
    captures, _ = fetched(
        lambda to, n: to.reply(body, status) if "m_total" in query_of(to) else to.reply(EMPTY),
        tmp_path,
    )
    asked = one(captures)
    assert len(asked) == 2  # two-hour slices of the span
    assert all(capture.error.startswith(words) for capture in asked)
    assert all(capture.sha256 for capture in asked)
    assert all(capture.usable for capture in captures if capture not in asked)


def test_what_could_be_read_of_a_damaged_reply_is_kept_and_the_rest_set_aside(tmp_path):
    captures, _ = fetched(lambda to, n: to.reply(ONE[:-2] if is_query(to) else ONE), tmp_path)
    for capture in one(captures):
        with Archive(tmp_path).open(capture) as body:
            tables = dict(SOURCE.parse(capture, body))
        assert tables["quarantine"].num_rows == 1
        assert tables["samples"].num_rows == (capture.window.start <= NOON < capture.window.end)


def test_warnings_are_noted_beside_the_answer(tmp_path):
    said = EMPTY[:-1] + ',"warnings":["a store is slow"],"infos":["not a counter"]}'
    captures, _ = fetched(lambda to, n: to.reply(said), tmp_path)
    for capture in one(captures):
        assert capture.usable
        assert capture.notes == ("warning: a store is slow", "info: not a counter")


def test_a_restart_is_waited_for(tmp_path):
    seen = set()

    def answer(to: Handler, before: int) -> None:
        first = to.path not in seen
        seen.add(to.path)
        to.reply("Service Unavailable", 503, Retry_After="0") if first else to.reply(EMPTY)

    captures, _ = fetched(answer, tmp_path)
    assert all(capture.usable for capture in captures)
    assert all("tried again after 503" in capture.notes for capture in captures)


@pytest.mark.parametrize("status", [401, 403, 429, 502])
def test_a_server_that_lets_nobody_in_is_left_alone(status, tmp_path):
    captures, asked = fetched(lambda to, n: to.reply("no", status), tmp_path)
    assert asked <= 3 * (1 + HASTY.retries)
    assert [capture.status for capture in captures[:3]] == [status] * 3
    assert {capture.error for capture in captures[3:]} == {
        f"not asked: the server gave no answer to the last 3 questions: {captures[2].error}"
    }
    assert {capture.query for capture in captures} > {"m", "up", "rules"}


def test_a_server_that_hangs_is_left_alone(tmp_path):
    with fake(lambda to, n: server.over.wait(5)) as server:
        client = Client(
            SourceConfig("main", "prometheus", server.url), Archive(tmp_path), manners=HASTY
        )
        captures = list(SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client))
        assert len(server.seen) == 6
    assert {c.error for c in captures[:3]} == {"no answer within the time allowed"}
    assert all(c.error.startswith("not asked") for c in captures[3:])
    assert all(c.error.endswith("no answer within the time allowed") for c in captures[3:])


def test_one_query_that_hangs_does_not_cost_the_others(tmp_path):
    def answer(to: Handler, before: int) -> None:
        server.over.wait(5) if "m_total" in query_of(to) else to.reply(EMPTY)

    with fake(answer) as server:
        client = Client(
            SourceConfig("main", "prometheus", server.url), Archive(tmp_path), manners=HASTY
        )
        captures = list(SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client))
    assert all(capture.usable == (capture.query != "m") for capture in captures)
    assert one(captures)[-1].error.startswith("not asked: the server gave no answer to 3 parts")


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (504, "<html>Gateway Time-out</html>"),
        (
            503,
            '{"status":"error","errorType":"timeout","error":"query timed out in expression"}',
        ),
        (422, '{"status":"error","errorType":"execution","error":"expanding series: deadline"}'),
    ],
)
def test_what_takes_a_server_too_long_is_asked_in_smaller_parts(status, body, tmp_path):
    def answer(to: Handler, before: int) -> None:
        asked = query_of(to)
        if "m_total" in asked and not asked.endswith(("[15m]", "[5m]")):
            to.reply(body, status)
        else:
            to.reply(ONE)

    captures, _ = fetched(answer, tmp_path)
    parts = [capture for capture in one(captures) if capture.usable]
    assert [c.window.end for c in parts[:-1]] == [c.window.start for c in parts[1:]]
    assert parts[0].window.start == BASELINE.start - timedelta(minutes=5)
    assert parts[-1].window.end == WINDOW.end
    refused = [capture for capture in one(captures) if not capture.usable]
    assert {capture.status for capture in refused} == {status}
    assert all(capture.sha256 for capture in refused)


def test_a_question_keeps_what_is_needed_to_ask_it_again(tmp_path):
    captures, _ = fetched(lambda to, n: to.reply(EMPTY), tmp_path)
    first = one(captures)[0]
    assert json.loads(json.dumps(first.to_json())) == first.to_json()
    assert first.request["params"] == {"query": "m_total[65m]", "time": "1773143999.999"}
