"""Remote read where a server has it: the same rows as by its query API, and never by assumption."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import prometheus_server
import pytest
from http_fake import Handler, fake
from prometheus_server import Server, openmetrics, serve
from test_prometheus import (
    BASELINE,
    HISTORY,
    INCIDENT,
    QUERIES,
    RATE,
    WINDOW,
    client_of,
    fetched,
    loaded,
    rows_of,
)
from test_prometheus_faults import HASTY
from test_remoteread import framed, message
from xor_encoder import bits_of, encoded

from tbforensics.archive import Archive
from tbforensics.asking.remote import matchers_of
from tbforensics.model import Capture, Query, Window
from tbforensics.promql import text as promql
from tbforensics.reading import prompb
from tbforensics.sources.prometheus import SOURCE, Options

real = pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")
LABELLED = prometheus_server.CONFIG.replace(
    "global: {", 'global: {external_labels: {cluster: eu-1, odd: "a: b", replica: "0"}, '
)
AS_JSON = Options(avoid=("remote_read",))
STREAMED = "application/x-streamed-protobuf; proto=prometheus.ChunkedReadResponse"
T0 = promql.floor_ms(BASELINE.start)


def way_of(captures: Sequence[Capture], query: str = "") -> set[str]:
    """The last words of the addresses that samples were asked of."""
    asked = [c for c in captures if c.role == "samples" and query in ("", c.query)]
    return {str(c.request.get("url", c.error)).rpartition("/")[2] for c in asked}


def said(captures: Sequence[Capture]) -> str:
    """Why remote read is not used."""
    return next((c.error for c in captures if c.error.startswith("not used")), "")


# --- real servers ----------------------------------------------------------------------------


@real
def test_what_a_server_adds_by_remote_read_only_is_left_out(tmp_path: Path) -> None:
    with serve(tmp_path / "server", openmetrics(HISTORY), config=LABELLED) as server:
        client = client_of(server, tmp_path / "case")
        captures = fetched(client)
        assert way_of(captures) == {"read"}
        assert rows_of(captures, client.archive) == loaded()
        streamed = next(c for c in captures if c.query == "up" and c.role == "samples")
        added = {"cluster": "eu-1", "odd": "a: b", "replica": "0"}
        assert streamed.request["remote_read"]["without"] == added
        assert b"eu-1" in client.body(streamed)


@real
def test_a_series_with_such_a_label_of_its_own_is_never_mistaken(tmp_path: Path) -> None:
    """Remote read cannot tell it from what the server adds."""
    mine = {'job="x",cluster="eu-1"': [(T0 + n * 15_000, 1.0) for n in range(200)]}
    history = openmetrics({**HISTORY, "own": mine})
    with serve(tmp_path / "server", history, config=LABELLED) as server:
        client = client_of(server, tmp_path / "case")
        captures = fetched(client, [Query("own", "prometheus", "own")])
    assert said(captures) == "not used: series have a label cluster of their own"
    assert way_of(captures) == {"query"}
    assert [*rows_of(captures, client.archive)["own"]] == ['cluster="eu-1",job="x"']


@real
def test_a_matcher_of_a_label_that_the_server_adds_is_put_to_its_samples(tmp_path: Path) -> None:
    """By remote read `replica="0"` would match all of them, by the query API none."""
    queries = [
        Query(n, "prometheus", n) for n in ('up{replica="0"}', 'up{replica=""}', "up{job!='x'}")
    ]
    with serve(tmp_path / "server", openmetrics(HISTORY), config=LABELLED) as server:
        client = client_of(server, tmp_path / "case")
        captures = fetched(client, queries)
    assert [way_of(captures, query.text) for query in queries] == [{"query"}, {"query"}, {"read"}]
    rows = rows_of(captures, client.archive)
    assert queries[0].text not in rows
    assert rows[queries[1].text] == rows[queries[2].text] == rows["up"] == loaded()["up"]


@real
def test_expressions_are_never_asked_by_remote_read(tmp_path: Path) -> None:
    with serve(tmp_path / "server", openmetrics(HISTORY)) as server:
        captures = fetched(client_of(server, tmp_path / "case"), [*QUERIES, RATE])
    assert way_of(captures, "rate") == {"query_range"}
    assert way_of(captures, "odd") == {"read"}


@real
def test_a_server_without_up_is_asked_as_json(tmp_path: Path) -> None:
    history = {name: series for name, series in HISTORY.items() if name != "up"}
    with serve(tmp_path / "server", openmetrics(history)) as server:
        client = client_of(server, tmp_path / "case")
        captures = fetched(client)
    assert said(captures) == "not used: there is no up to compare its answers by"
    assert way_of(captures) == {"query"}
    assert rows_of(captures, client.archive) == loaded([n for n in HISTORY if n != "up"])


PASSING = """\
groups:
  - name: passing
    interval: 200ms
    rules:
      - {record: up, expr: vector(1), labels: {job: node}}
      - {record: brief, expr: vector(time()) < %f}
      - {alert: Burns, expr: vector(time()) < %f, labels: {severity: page}}
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Window]]:
    """A server that has rules evaluated: an alert came and went, and a series went away."""
    begun = datetime.now(UTC)
    until_s = begun.timestamp() + 1.5
    rules = PASSING % (until_s, until_s)
    folder = tmp_path_factory.mktemp("live")
    with serve(folder, "# EOF\n", rules=rules, config=LABELLED) as server:
        time.sleep(max(0.0, until_s + 0.8 - time.time()))
        yield server, Window(begun, datetime.now(UTC))


@real
def test_alerts_and_what_went_away_are_the_same_by_either_way(
    live: tuple[Server, Window], tmp_path: Path
) -> None:
    server, window = live
    before = Window(window.start - timedelta(minutes=1), window.start)
    incident = replace(INCIDENT, window=window, baseline=before)
    queries = [Query("brief", "prometheus", "brief")]
    client = client_of(server, tmp_path / "read")
    streamed = fetched(client, queries, incident)
    again = client_of(server, tmp_path / "query")
    as_json = fetched(again, queries, incident, AS_JSON)
    assert said(streamed) == ""
    assert (way_of(streamed), way_of(as_json)) == ({"read"}, {"query"})
    rows = rows_of(streamed, client.archive)
    assert rows == rows_of(as_json, again.archive)
    assert rows.keys() == {"ALERTS", "ALERTS_FOR_STATE", "brief", "up"}
    gone = {c.query: stale_in(c, client.archive) for c in streamed if c.role == "samples"}
    assert gone["ALERTS"] and gone["ALERTS_FOR_STATE"] and gone["brief"] and not gone["up"]
    assert not any(stale_in(c, again.archive) for c in as_json if c.role == "samples")


def stale_in(capture: Capture, archive: Archive) -> int:
    with archive.open(capture) as body:
        return sum(rows.num_rows for name, rows in SOURCE.parse(capture, body) if name == "stale")


# --- servers that are not quite a Prometheus -------------------------------------------------


class Both:
    """Stands in for a server: `up` is up all the time; remote read answers as a test says."""

    def __init__(self, read: Callable[[Handler, int], None] | None = None, up: str = "a") -> None:
        self.read, self.up, self.reads = read, up, 0

    def __call__(self, to: Handler, before: int) -> None:
        url = urlsplit(to.path)
        if url.path.endswith("/read"):
            self.reads += 1
            if self.read and self.reads > 1:
                self.read(to, self.reads)
            else:
                to.reply(frames(), Content_Type=STREAMED)
        elif url.path.endswith("/query"):
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            last = round(float(asked["time"]) * 1000)
            length = round((promql.duration_s(asked["query"].partition("[")[2][:-1]) or 0) * 1000)
            inside = [[ms / 1000, "1"] for ms in MOMENTS if last - length < ms <= last]
            name = asked["query"].partition("[")[0]
            metric = {"__name__": "up", "instance": self.up} if name == "up" else {"__name__": name}
            result = [{"metric": metric, "values": inside}] if inside else []
            to.reply(succeeded({"resultType": "matrix", "result": result}))
        else:
            to.reply(succeeded({}))


def succeeded(data: Any) -> str:
    return json.dumps({"status": "success", "data": data})


MOMENTS = [T0 + n * 60_000 for n in range(-10, 70)]


def frames(*, kind: int = prompb.XOR, name: str = "up", **labels: str) -> bytes:
    series = {"__name__": name, "instance": "a", **labels}
    chunk = encoded([(ms, bits_of(1.0)) for ms in MOMENTS])
    return framed(message((series, [chunk]), kind=kind))


def asked_of(server: Callable[[Handler, int], None], folder: Path) -> list[Capture]:
    with fake(server) as running:
        client = client_of(running.url, folder)
        client.manners = HASTY
        return list(SOURCE.fetch([Query("m", "prometheus", "m")], INCIDENT, Options(), client))


def test_a_server_that_answers_both_ways_alike_is_asked_by_remote_read(tmp_path: Path) -> None:
    captures = asked_of(Both(), tmp_path)
    assert way_of(captures) == {"read"}
    assert all(capture.usable for capture in captures)


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "404 page not found", "HTTP 404 Not Found: 404 page not found"),
        (405, "", "HTTP 405 Method Not Allowed"),
        (501, '{"status":"error","errorType":"x","error":"no"}', "HTTP 501 Not Implemented: x: no"),
        (400, "unsupported path", "HTTP 400 Bad Request: unsupported path"),
        (200, "<html>log in</html>", "answers with no type and not application/x-streamed"),
        (200, "", "answers with no type and not application/x-streamed"),
        (200, '{"status":"success","data":{}}', "answers with no type and not application/x-st"),
    ],
)
def test_a_server_without_remote_read_is_asked_as_json(
    status: int, body: str, words: str, tmp_path: Path
) -> None:
    class Without(Both):
        def __call__(self, to: Handler, before: int) -> None:
            is_read = to.path.endswith("/read")
            to.reply(body, status) if is_read else super().__call__(to, before)

    captures = asked_of(Without(), tmp_path)
    (probe,) = [capture for capture in captures if capture.role == "probe"]
    assert probe.error.startswith(words)
    assert way_of(captures) == {"query"}
    assert all(capture.usable for capture in captures if capture is not probe)


def test_a_server_that_answers_otherwise_by_remote_read_is_asked_as_json(tmp_path: Path) -> None:
    captures = asked_of(Both(up="b"), tmp_path)
    assert said(captures) == "not used: remote read and the query API answer differently"
    assert way_of(captures) == {"query"}


def test_a_slice_that_is_too_much_is_read_in_halves(tmp_path: Path) -> None:
    def read(to: Handler, number: int) -> None:
        if number == 2:
            to.reply("exceeded sample limit (50000000)", 400)
        else:
            to.reply(frames(), Content_Type=STREAMED)

    captures = asked_of(Both(read), tmp_path)
    (refused,) = [capture for capture in captures if not capture.usable]
    assert refused.error == "HTTP 400 Bad Request: exceeded sample limit (50000000)"
    assert way_of(captures) == {"read"}
    parts = [c for c in captures if c.query == refused.query and c.usable and c.window]
    assert len(parts) == 2
    assert all("a part of what was refused" in capture.notes[0] for capture in parts)
    assert [c.window.end for c in parts[:-1]] == [c.window.start for c in parts[1:]]


def test_what_remote_read_does_not_answer_is_asked_as_json(tmp_path: Path) -> None:
    def read(to: Handler, number: int) -> None:
        to.reply("gone", 410) if number > 3 else to.reply(frames(), Content_Type=STREAMED)

    captures = asked_of(Both(read), tmp_path)
    refused = [capture for capture in captures if not capture.usable]
    assert {capture.status for capture in refused} == {410}
    for query in {capture.query for capture in captures if capture.role == "samples"}:
        assert len([c for c in refused if c.query == query]) <= 1
        parts = [c for c in captures if c.query == query and c.usable]
        assert parts[-1].window and parts[-1].window.end == WINDOW.end
    assert way_of(captures, "m") == {"read"}
    assert way_of(captures, "process_start_time_seconds") == {"read", "query"}


@pytest.mark.parametrize("kind", [prompb.HISTOGRAM, prompb.FLOAT_HISTOGRAM])
def test_native_histograms_are_asked_as_json(kind: int, tmp_path: Path) -> None:
    def read(to: Handler, number: int) -> None:
        to.reply(frames(name="m", kind=kind), Content_Type=STREAMED)

    captures = asked_of(Both(read), tmp_path)
    asked = [capture for capture in captures if capture.query == "m"]
    assert asked[0].error == "holds native histograms, which are not read"
    assert all(capture.usable for capture in asked[1:])
    archive = Archive(tmp_path)
    with archive.open(asked[0]) as body:
        assert list(SOURCE.parse(asked[0], body)) == []
    assert sum(map(len, rows_of(captures, archive)["m"].values())) == len(
        [ms for ms in MOMENTS if ms >= T0 - 300_000 and ms < promql.floor_ms(WINDOW.end)]
    )


def test_what_could_be_read_of_a_torn_reply_is_kept_and_the_rest_set_aside(tmp_path: Path) -> None:
    def read(to: Handler, number: int) -> None:
        to.reply(frames() + frames()[:-5], Content_Type=STREAMED)

    for capture in asked_of(Both(read), tmp_path):
        if capture.query == "m":
            assert capture.error.startswith("the reply ends within a frame, after 1 good ones")
            with Archive(tmp_path).open(capture) as body:
                tables = dict(SOURCE.parse(capture, body))
            assert tables["quarantine"].num_rows == 1
            assert tables["samples"].num_rows > 10


# --- what is asked ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "matchers"),
    [
        ("up", [("__name__", "=", "up")]),
        (
            'm{a="x\\"y\\n",b!~"c.*"}',
            [("__name__", "=", "m"), ("a", "=", 'x"y\n'), ("b", "!~", "c.*")],
        ),
        ('{__name__=~"a|b"}', [("__name__", "=~", "a|b")]),
        ('{__name__="m",a!=""}', [("__name__", "=", "m"), ("a", "!=", "")]),
        ("m offset 5m", None),
        ("m @ 0", None),
        ("m[5m]", None),
        ("rate(m[5m])", None),
        ('m{a="x" or b="y"}', None),
        ("", None),
        ("m{", None),
    ],
)
def test_only_a_plain_selector_can_be_read(selector: str, matchers: Any) -> None:
    assert matchers_of(selector) == matchers


def test_the_question_is_on_record_in_words(tmp_path: Path) -> None:
    captures = asked_of(Both(), tmp_path)
    asked = next(capture for capture in captures if capture.query == "m")
    assert asked.request["method"] == "POST"
    assert asked.request["remote_read"] == {
        "query": "m",
        "matchers": [["__name__", "=", "m"]],
        "start": promql.seconds_text(T0 - 300_000),
        "end": promql.seconds_text(promql.floor_ms(WINDOW.end) - 1),
        "without": {},
    }
    assert json.loads(json.dumps(asked.to_json())) == asked.to_json()
