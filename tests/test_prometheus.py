"""Against a real Prometheus: what was loaded is what we hold, however it is asked for."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import prometheus_server
import pytest
from prometheus_server import Server, openmetrics, serve
from test_promjson import bits

from tbforensics import manifest
from tbforensics.archive import Archive
from tbforensics.asking.sealed import prometheus_client, questions, sealed_session
from tbforensics.asking.slices import spans
from tbforensics.credentials import Credentials
from tbforensics.errors import EvidenceError, ParametersError
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.sources.prometheus import ALWAYS, SOURCE, Options
from tbforensics.wire import Client, Manners, open_session

pytestmark = pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")

TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)
T0 = round(TEN.timestamp() * 1000)
MINUTE = 60_000
HASTY = Manners(connect_s=1, read_s=5, retries=1, backoff_s=0.01, requests_per_s=1000)
ODD = [math.nan, math.inf, -math.inf, 5e-324, -0.0, 1.7976931348623157e308, 0.1 + 0.2, 1 / 3, -1e-7]


def scraped(value_at, *, minutes=range(0, 150), every_s=15, jitter_ms=123):
    """Samples of a scrape that never hits whole seconds."""
    steps = [m * MINUTE + s * 1000 for m in minutes for s in range(0, 60, every_s)]
    return [(T0 + ms + jitter_ms, float(value_at(ms // 1000))) for ms in steps]


HISTORY = {
    "up": {
        'job="node",instance="a"': scraped(lambda s: 1),
        'job="node",instance="b"': scraped(lambda s: s % 900 > 60, jitter_ms=7),
        'job="other",instance="c"': scraped(lambda s: 1, jitter_ms=999),
    },
    "blocks_total": {
        # It restarts at 11:10, and the other one is not seen from 10:50 to 11:05.
        'job="node",instance="a"': scraped(lambda s: s % 4200 * 1.1),
        'job="node",instance="b"': scraped(
            lambda s: s * 0.7, minutes=[*range(50), *range(65, 150)]
        ),
    },
    "settled_total": {'job="node",instance="a"': scraped(lambda s: 3, minutes=range(100, 150))},
    "odd": {
        'job="node"': [(T0 + n * 10_001, value) for n, value in enumerate(ODD * 60)],
        'job="other",text="a\\"} ]]{\\\\"': [(T0 + 30 * MINUTE - 1, 1.0), (T0 + 30 * MINUTE, 2.0)],
    },
    # Exactly at the edges of the window below, and a millisecond beside them.
    "edges": {"": [(T0 + m * MINUTE + d, m + d) for m in (25, 60, 90) for d in (-1, 0, 1)]},
}
WINDOW = Window(TEN + timedelta(minutes=60), TEN + timedelta(minutes=90))
BASELINE = Window(TEN + timedelta(minutes=30), TEN + timedelta(minutes=60))
ASKED = (T0 + 25 * MINUTE, T0 + 90 * MINUTE)  # with the lead
INCIDENT = Incident("i", "k", "t", WINDOW, BASELINE, 30.0, (), {}, (), "", "d")
QUERIES = [Query(name, "prometheus", name) for name in HISTORY]
AS_JSON = Options(avoid=("remote_read",))
BOTH_WAYS = pytest.mark.parametrize("avoid", [(), ("remote_read",)])
RATE = Query("rate", "prometheus", "rate(blocks_total[1m])", params={"derived": True})


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("prometheus"), openmetrics(HISTORY)) as server:
        yield server


def client_of(server: Server | str, folder: Path, **more) -> Client:
    folder.mkdir(exist_ok=True)
    url = server if isinstance(server, str) else server.url
    return Client(SourceConfig("main", "prometheus", url), Archive(folder), manners=HASTY, **more)


def fetched(client, queries=QUERIES, incident=INCIDENT, options=Options()) -> list[Capture]:
    return list(SOURCE.fetch(queries, incident, options, client))


def rows_of(captures: Iterable[Capture], archive: Archive) -> dict[str, dict]:
    """{query: {labels: [(ms, bits)]}} of everything that can be used."""
    names, found = {}, {}
    for capture in captures:
        if capture.usable:
            with archive.open(capture) as body:
                tables = dict(SOURCE.parse(capture, body))
            assert "quarantine" not in tables
            for row in tables["series"].to_pylist() if "series" in tables else []:
                labels = ",".join(f"{k}={json.dumps(v)}" for k, v in row["labels"])
                names[row["sid"]] = (row["query"], labels)
            for row in tables["samples"].to_pylist() if "samples" in tables else []:
                query, labels = names[row["sid"]]
                ms = (row["ts"] - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
                found.setdefault(query, {}).setdefault(labels, []).append((ms, bits(row["value"])))
    return found


def loaded(names: Iterable[str] = HISTORY) -> dict[str, dict]:
    """The same of what was loaded, within what is asked."""
    found: dict[str, dict] = {}
    for name in names:
        for labels, samples in HISTORY[name].items():
            inside = [(ms, bits(value)) for ms, value in samples if ASKED[0] <= ms < ASKED[1]]
            if inside:
                ordered = ",".join(sorted(labels.split(","))) if labels else ""
                found.setdefault(name, {})[ordered] = inside
    return found


# --- what is held ------------------------------------------------------------------------


@BOTH_WAYS
def test_raw_samples_are_what_was_loaded_to_the_millisecond_and_bit(avoid, history, tmp_path):
    client = client_of(history, tmp_path)
    captures = fetched(client, options=Options(avoid=avoid))
    assert all(capture.error == "" for capture in captures)
    assert rows_of(captures, client.archive) == loaded()
    ways = {*(c.request["url"].rpartition("/")[2] for c in captures if c.role == "samples")}
    assert ways == ({"query"} if avoid else {"read"})


@BOTH_WAYS
@pytest.mark.parametrize("slice_hours", [24, 33 / 60, 10 / 60, 3 / 60])
def test_however_a_window_is_sliced_it_holds_the_same_rows(slice_hours, avoid, history, tmp_path):
    client = client_of(history, tmp_path)
    options = Options(slice_hours=slice_hours, avoid=avoid)
    captures = fetched(client, options=options)
    assert rows_of(captures, client.archive) == loaded()
    windows = [c.window for c in captures if c.query == "blocks_total"]
    assert [w.end for w in windows[:-1]] == [w.start for w in windows[1:]]
    slices = {24: 1, 33 / 60: 3, 10 / 60: 7, 3 / 60: 22}[slice_hours]
    longer = {24: 1, 33 / 60: 2, 10 / 60: 2, 3 / 60: 4}[slice_hours]  # up to twelve in one
    assert len(windows) == (slices if avoid else longer)


def test_the_lead_before_the_window_is_asked_too(history, tmp_path):
    client = client_of(history, tmp_path)
    (found,) = rows_of(fetched(client, QUERIES[-1:]), client.archive)["edges"].values()
    assert [ms - T0 for ms, _ in found] == [
        *(25 * MINUTE + d for d in (0, 1)),
        *(60 * MINUTE + d for d in (-1, 0, 1)),
        90 * MINUTE - 1,
    ]


def test_a_far_baseline_is_asked_without_the_hole_between():
    far = Window(TEN - timedelta(days=7), TEN - timedelta(days=7) + timedelta(hours=1))
    lead = timedelta(minutes=5)
    assert [(s / 1000, e / 1000) for s, e in spans(replace(INCIDENT, baseline=far))] == [
        ((far.start - lead).timestamp(), far.end.timestamp()),
        ((WINDOW.start - lead).timestamp(), WINDOW.end.timestamp()),
    ]
    assert spans(INCIDENT) == (ASKED,)
    near = Window(TEN + timedelta(minutes=10), TEN + timedelta(minutes=35))
    assert len(spans(replace(INCIDENT, baseline=near))) == 1  # 25 minutes are no longer than it


def test_every_incident_asks_what_doubts_need_and_only_once(history, tmp_path):
    captures = fetched(client_of(history, tmp_path), [*QUERIES, *ALWAYS])
    asked = [capture.query for capture in captures if capture.role == "samples"]
    assert sorted(asked) == sorted({*HISTORY, *(query.name for query in ALWAYS)})


def test_what_the_server_is_becomes_snapshots(history, tmp_path):
    client = client_of(history, tmp_path)
    snapshots = {}
    for capture in fetched(client, []):
        if capture.role not in ("samples", "probe"):
            with client.archive.open(capture) as body:
                ((table, rows),) = SOURCE.parse(capture, body)
            (row,) = rows.to_pylist()
            assert (table, row["state"], row["generation"]) == ("snapshots", "ok", "")
            snapshots[row["query"]] = json.loads(row["value"])
    assert snapshots["buildinfo"]["version"].startswith("2.")
    assert snapshots["flags"]["query.lookback-delta"] == "5m"
    (group,) = snapshots["rules"]["groups"]
    assert group["rules"][0]["name"] == "NoBlocks"
    assert "activeTargets" in snapshots["targets"]
    assert {*snapshots} == {"buildinfo", "flags", "rules", "alerts", "targets", "metadata"}


def test_matchers_of_the_options_reach_every_selector_but_alerts(history, tmp_path):
    client = client_of(history, tmp_path)
    captures = fetched(client, [*QUERIES, RATE], options=Options(match='instance="a"'))
    found = rows_of(captures, client.archive)
    labels = 'instance="a",job="node"'
    assert found["blocks_total"] == {labels: loaded()["blocks_total"][labels]}
    assert {*found["rate"]} == {*found["up"]} == {labels}
    assert "odd" not in found
    alerts = next(capture for capture in captures if capture.query == "ALERTS")
    assert alerts.request["remote_read"]["query"] == "ALERTS"


def test_a_long_question_goes_by_post_and_can_be_asked_of_the_sealed_case(history, tmp_path):
    text = 'blocks_total{instance=~"' + "|".join(["a", *("x" * 50,) * 40]) + '"}'
    client = client_of(history, tmp_path)
    captures = fetched(client, [Query("long", "prometheus", text)], options=AS_JSON)
    capture = next(capture for capture in captures if capture.query == "long")
    assert (capture.request["method"], capture.usable) == ("POST", True)
    sealed = prometheus_client(history.url, sealed_session(captures, client.archive))
    row = questions([capture]).iloc[0]
    assert len(sealed.query(row.expression, time=row.time)) == 260


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ParametersError) as refusal:
        Options(match="job=x", slice_hours=0, step_s=-1, avoid=("gzip",))
    assert len(refusal.value.problems) == 4


# --- derived queries ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step_s", "slice_hours", "slices"), [(30, 2, 1), (30, 0.25, 5), (0.25, 24, 2), (7, 0.5, 3)]
)
def test_expressions_are_asked_on_a_grid_of_steps(step_s, slice_hours, slices, history, tmp_path):
    client = client_of(history, tmp_path)
    options = Options(step_s=step_s, slice_hours=slice_hours)
    captures = [c for c in fetched(client, [RATE], options=options) if c.query == "rate"]
    assert all(capture.usable for capture in captures)
    assert len(captures) == slices
    for params in (capture.request["params"] for capture in captures):
        assert (float(params["end"]) - float(params["start"])) / step_s < 11_000
    step_ms = round(step_s * 1000)
    first = -(-ASKED[0] // step_ms) * step_ms
    found = rows_of(captures, client.archive)["rate"]['instance="a",job="node"']
    assert [ms for ms, _ in found] == list(range(first, ASKED[1], step_ms))


# --- servers with limits, and servers that go --------------------------------------------


def test_a_slice_that_is_too_much_is_halved_until_it_is_not(tmp_path):
    flags = ("--query.max-samples=250",)
    with serve(tmp_path / "server", openmetrics(HISTORY), *flags) as server:
        client = client_of(server, tmp_path / "case")
        captures = fetched(client, options=AS_JSON)
        assert rows_of(captures, client.archive) == loaded()
    refused = [capture for capture in captures if not capture.usable]
    assert {capture.status for capture in refused} == {422}
    assert all("too many samples" in capture.error for capture in refused)
    parts = [c for c in captures if c.query == "up" and c.usable]
    assert len(parts) >= 4
    assert all("a part of what was refused" in capture.notes[0] for capture in parts)
    assert [c.window.end for c in parts[:-1]] == [c.window.start for c in parts[1:]]
    by_window = manifest.ordered(captures)
    assert manifest.ordered(client.archive.recorded()) == by_window


def test_a_server_that_refuses_every_size_is_not_asked_for_ever(tmp_path):
    with serve(tmp_path / "server", openmetrics(HISTORY), "--query.max-samples=1") as server:
        captures = fetched(client_of(server, tmp_path / "case"), QUERIES[:1], options=AS_JSON)
    asked = [capture for capture in captures if capture.query == "up"]
    assert not any(capture.usable for capture in asked)
    assert len(asked) < 20
    assert asked[-1].error == "not asked: even small parts are refused"


def test_a_server_killed_midway_leaves_what_it_answered_and_a_reason_for_the_rest(tmp_path):
    with serve(tmp_path / "server", openmetrics(HISTORY)) as server:
        client = client_of(server, tmp_path / "case")
        captures = []
        for capture in SOURCE.fetch(QUERIES, INCIDENT, Options(), client):
            captures.append(capture)
            if len(captures) == 10:
                server.kill()
    answered = {capture.query for capture in captures if capture.usable}
    lost = [capture.error for capture in captures if not capture.usable]
    assert all(capture.usable for capture in captures[:10])
    silent = [error for error in lost if not error.startswith("not asked")]
    assert 3 <= len(silent) <= 4  # one may have been in flight when it was killed
    assert sum("refused" in error for error in silent) >= 1
    assert len([e for e in lost if "the server gave no answer" in e]) == len(lost) - len(silent) > 0
    assert {c.query for c in captures} >= {*HISTORY, *(q.name for q in ALWAYS)}
    assert {"up", "blocks_total"} <= answered
    assert rows_of(captures, client.archive) == loaded(
        [name for name in HISTORY if name in answered]
    )


def test_a_collection_is_taken_up_where_it_was_interrupted(history, tmp_path):
    half = SOURCE.fetch(QUERIES, INCIDENT, Options(), client_of(history, tmp_path))
    first = [next(half) for _ in range(8)]
    half.close()
    for thread in threading.enumerate():
        if thread.name == "asking":
            thread.join()  # what was in flight is answered and on record
    client = client_of(history, tmp_path)
    captures = fetched(client)
    assert captures[:8] == first
    assert len(client.archive.recorded()) == len(captures)
    assert rows_of(captures, client.archive) == loaded()


@pytest.mark.parametrize(("minutes", "provisional"), [(-10, True), (5, True), (6.1, False)])
def test_a_window_that_may_still_change_is_provisional(minutes, provisional, history, tmp_path):
    now = WINDOW.end + timedelta(minutes=minutes)
    captures = fetched(client_of(history, tmp_path, clock=lambda: now), QUERIES[:1])
    (capture,) = [capture for capture in captures if capture.query == "up"]
    assert ("provisional" in capture.notes) is provisional


# --- prometheus-pandas -------------------------------------------------------------------


@BOTH_WAYS
def test_prometheus_pandas_answers_the_same_live_and_sealed(avoid, tmp_path):
    with serve(tmp_path / "server", openmetrics(HISTORY)) as server:
        client = client_of(server, tmp_path / "case")
        options = Options(slice_hours=1, avoid=avoid)
        # A live answer may hold the millisecond before a slice; a sealed one ends where it ends.
        captures = fetched(client, [*QUERIES[:-1], RATE], options=options)
        live = prometheus_client(server.url, open_session(Credentials(), HASTY))
        asked = questions(captures)
        seen = [answer(live, row) for row in asked.itertuples()]
    sealed = prometheus_client(server.url, sealed_session(captures, client.archive))
    for row, frame in zip(asked.itertuples(), seen, strict=True):
        pd.testing.assert_frame_equal(answer(sealed, row), frame)
    with pytest.raises(EvidenceError) as refusal:
        sealed.query("blocks_total[2h]", time=asked.time[0])
    assert "/api/v1/query query=blocks_total[35m]" in str(refusal.value)
    assert {*asked["call"]} == {"query", "query_range"}


def answer(client, row) -> pd.DataFrame:
    if row.call == "query":
        return client.query(row.expression, time=row.time)
    return client.query_range(row.expression, row.start, row.end, row.step)
