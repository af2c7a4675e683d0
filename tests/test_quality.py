"""Nothing found and nothing seen are told apart, and each doubt limits what it should."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from made import at, capture, evidence_of, labels, ups, window

from tbforensics import quality
from tbforensics.assess import judge
from tbforensics.evidence import Evidence
from tbforensics.manifest import Manifest
from tbforensics.model import (
    Capture,
    Coverage,
    Doubt,
    Incident,
    Query,
    Shape,
    SourceConfig,
    Verdict,
)

BASELINE, WINDOW = window(0, 3600), window(3600, 7200)
MAIN = SourceConfig("main", "prometheus", "http://p")
OTHER = (("instance", "b"), ("job", "j"))
FAILS = Query("fails_total", "prometheus", "fails_total", shape=Shape.COUNTER, required=True,
              witnesses=("busy_total",))  # fmt: skip
BUSY = Query("busy_total", "prometheus", "busy_total", shape=Shape.COUNTER)
GAUGE = Query("depth", "prometheus", "depth", required=True)
LOGS = Query("log_lines", "logs", "", shape=Shape.ROWS)


def incident(*sources: SourceConfig) -> Incident:
    sources = sources or (MAIN,)
    return Incident("x", "k", "", WINDOW, BASELINE, 30.0, sources, {}, (), "", "")


def manifest_of(*captures: Capture) -> Manifest:
    return Manifest("", "", {}, (), captures, ())


def asked(*queries: Query, **more: Any) -> Manifest:
    return manifest_of(*(capture(query.name, window=WINDOW, **more) for query in queries))


def covered(
    evidence: Evidence,
    query: Query,
    manifest: Manifest | None = None,
    queries: Sequence[Query] = (),
    sources: Sequence[SourceConfig] = (),
) -> Coverage:
    queries = [query, *queries]
    rows = quality.coverage(incident(*sources), queries, manifest or asked(*queries), evidence)
    return next(row for row in rows if row.query == query.name)


def doubts(evidence: Evidence, *captures: Capture) -> list[Doubt]:
    return quality.doubts(incident(), (FAILS, BUSY, GAUGE), manifest_of(*captures), evidence)


def counting(first: float, last: float, per_scrape: float = 1, every_s: float = 15) -> Any:
    return [(t, n * per_scrape) for n, (t, _) in enumerate(ups(first, last, every_s))]


def still(first: float, last: float, value: float = 7) -> Any:
    return ups(first, last, value=value)


# --- coverage ------------------------------------------------------------------------------


def test_a_gauge_is_covered_where_it_has_samples(tmp_path: Path) -> None:
    row = covered(evidence_of(tmp_path, {"depth": {labels(): still(0, 7190)}}), GAUGE)
    assert (row.state, row.ratio, row.required) == ("covered", 1.0, True)


@pytest.mark.parametrize(
    ("until", "state"), [(7190, "covered"), (6950, "covered"), (6500, "partial"), (3590, "absent")]
)
def test_a_gauge_that_ends_early_is_partial_below_nine_tenths(
    tmp_path: Path, until: float, state: str
) -> None:
    evidence = evidence_of(tmp_path, {"depth": {labels(): still(0, until)}})
    assert covered(evidence, GAUGE).state == state


def test_rare_scrapes_cover_their_window_as_frequent_ones_do(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"depth": {labels(): ups(0, 7190, 300)}})
    assert covered(evidence, GAUGE).state == "covered"


def test_a_window_shorter_than_a_minute_can_be_covered(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"depth": {labels(): still(0, 7190)}})
    short = Incident("x", "k", "", window(3600, 3640), BASELINE, 5.0, (MAIN,), {}, (), "", "")
    (row,) = quality.coverage(short, [GAUGE], asked(GAUGE), evidence)
    assert row.state == "covered"


def test_a_counter_that_registers_late_was_seen_while_its_target_was_scraped(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(
        tmp_path, {"fails_total": {labels(): counting(7000, 7190)}, "up": {labels(): ups(0, 7190)}}
    )
    assert covered(evidence, FAILS).state == "covered"


def test_a_counter_whose_target_was_down_was_not_seen(tmp_path: Path) -> None:
    scrapes = [*ups(0, 5000), *ups(5015, 7190, value=0)]
    evidence = evidence_of(
        tmp_path, {"fails_total": {labels(): counting(0, 5000)}, "up": {labels(): scrapes}}
    )
    assert covered(evidence, FAILS).state == "partial"


def test_another_targets_scrapes_do_not_cover_a_counter(tmp_path: Path) -> None:
    evidence = evidence_of(
        tmp_path, {"fails_total": {labels(): counting(0, 3500)}, "up": {OTHER: ups(0, 7190)}}
    )
    assert covered(evidence, FAILS).state == "absent"


def test_an_absent_family_is_believed_only_while_its_witness_was_counted(tmp_path: Path) -> None:
    seen = {"up": {labels(): ups(0, 7190)}}
    busy = {**seen, "busy_total": {labels(): counting(0, 7190)}}
    believed = covered(evidence_of(tmp_path / "1", busy), FAILS, queries=[BUSY])
    assert (believed.state, believed.ratio) == ("covered", 1.0)
    assert "busy_total was counted: it never happened" in believed.detail
    alone = covered(evidence_of(tmp_path / "2", seen), FAILS, queries=[BUSY])
    assert (alone.state, alone.enough) == ("absent", False)
    assert "wrong name" in alone.detail


def test_a_witness_that_was_seen_for_half_of_the_window_is_none(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"busy_total": {labels(): counting(0, 5400)}})
    assert covered(evidence, BUSY).state == "partial"
    assert covered(evidence, FAILS, queries=[BUSY]).state == "absent"


def test_a_witness_at_another_source_is_none(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"busy_total": {labels(): counting(0, 7190)}})
    second = SourceConfig("second", "prometheus", "http://q")
    manifest = manifest_of(capture("busy_total"), capture("fails_total", "second"))
    rows = quality.coverage(incident(MAIN, second), [FAILS, BUSY], manifest, evidence)
    state = {(row.query, row.source): row.state for row in rows}
    assert state["fails_total", "second"] == "absent"


def test_a_failed_query_is_failed_even_beside_a_witness(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"busy_total": {labels(): counting(0, 7190)}})
    manifest = manifest_of(
        capture("busy_total"), capture("fails_total", sha256=None, error="HTTP 500")
    )
    row = covered(evidence, FAILS, manifest, [BUSY])
    assert (row.state, row.detail) == ("failed", "HTTP 500")


def test_one_failed_slice_of_an_absent_family_is_a_failure_and_no_absence(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"busy_total": {labels(): counting(0, 7190)}})
    manifest = manifest_of(
        capture("busy_total"),
        capture("fails_total", window=window(3600, 5400)),
        capture("fails_total", window=window(5400, 7200), sha256=None, error="HTTP 503"),
    )
    row = covered(evidence, FAILS, manifest, [BUSY])
    assert row.state == "failed" and "1 of 2 requests failed: HTTP 503" in row.detail


def test_nobody_to_ask_is_not_asked(tmp_path: Path) -> None:
    row = covered(evidence_of(tmp_path), LOGS, manifest_of())
    assert (row.state, row.source) == ("not asked", "")


def test_a_source_that_recorded_nothing_about_a_query_failed_it(tmp_path: Path) -> None:
    assert covered(evidence_of(tmp_path), GAUGE, manifest_of()).state == "failed"


def test_a_sparse_query_is_answered_by_nothing_and_failed_by_a_failure(tmp_path: Path) -> None:
    alerts = Query("ALERTS", "prometheus", "ALERTS", sparse=True)
    row = covered(evidence_of(tmp_path), alerts)
    assert (row.state, row.ratio, row.detail) == ("covered", 1.0, "none in the window")
    failed = manifest_of(capture("ALERTS", sha256=None, error="HTTP 500"))
    assert covered(evidence_of(tmp_path / "2"), alerts, failed).state == "failed"
    half = manifest_of(capture("ALERTS"), capture("ALERTS", sha256=None, error="HTTP 500"))
    assert covered(evidence_of(tmp_path / "3"), alerts, half).state == "failed"


def line(seconds: float | None, **more: Any) -> Mapping[str, Any]:
    ts = None if seconds is None else at(seconds)
    return {"source": "main", "file": "f", "line": 1, "message": "m", "ts": ts, **more}


@pytest.mark.parametrize(
    ("lines", "error", "state"),
    [
        ([line(4000)], "", "covered"),
        ([line(100), line(None)], "", "absent"),
        ([], "", "absent"),
        ([line(4000)], "HTTP 500", "partial"),
    ],
)
def test_logs_are_covered_by_a_line_in_the_window(
    tmp_path: Path, lines: list[Mapping[str, Any]], error: str, state: str
) -> None:
    evidence = evidence_of(tmp_path, tables={"log_lines": lines})
    captures = [capture("log_lines")]
    if error:
        captures.append(capture("log_lines", sha256=None, error=error, role="search"))
    source = SourceConfig("main", "logs", "http://n")
    assert covered(evidence, LOGS, manifest_of(*captures), sources=[source]).state == state


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("ok", "covered"),
        ("unsupported", "unsupported"),
        ("error", "failed"),
        ("empty", "absent"),
    ],
)
def test_a_snapshot_is_covered_by_an_answer_and_says_when_it_was_true(
    tmp_path: Path, answer: str, state: str
) -> None:
    query = Query("ring", "jsonrpc", "net.ring", shape=Shape.ROWS)
    row = {"source": "main", "query": "ring", "role": "snapshot", "ts": at(10800), "state": answer,
           "generation": "", "value": "{}"}  # fmt: skip
    evidence = evidence_of(tmp_path, tables={"snapshots": [row]})
    source = SourceConfig("main", "jsonrpc", "http://n")
    found = covered(evidence, query, sources=[source])
    assert found.state == state
    if state == "covered":
        assert found.detail == "true at 2026-03-10T13:00:00Z, 60 min after the window"


def test_a_reply_that_gave_no_snapshot_failed(tmp_path: Path) -> None:
    query = Query("ring", "jsonrpc", "net.ring", shape=Shape.ROWS)
    source = SourceConfig("main", "jsonrpc", "http://n")
    assert covered(evidence_of(tmp_path), query, sources=[source]).state == "failed"


# --- doubts --------------------------------------------------------------------------------


def only(found: list[Doubt], what: str) -> Doubt:
    (doubt,) = [doubt for doubt in found if doubt.what == what]
    return doubt


@pytest.mark.parametrize(
    ("length_s", "limits"), [(60, None), (90, ""), (300, ""), (400, "cleared"), (3000, "cleared")]
)
def test_a_gap_limits_silence_once_it_is_a_tenth_of_the_window(
    tmp_path: Path, length_s: float, limits: str | None
) -> None:
    scrapes = [*ups(0, 3900), *ups(3900 + length_s, 7190)]
    found = doubts(evidence_of(tmp_path, {"up": {labels(): scrapes}}))
    if limits is None:
        assert found == []
    else:
        gap = only(found, "gap")
        assert gap.limits == limits and gap.window == window(3900, 3900 + length_s)


def test_small_gaps_of_one_target_add_up(tmp_path: Path) -> None:
    scrapes = [(t, v) for t, v in ups(0, 7190) if not (t > 3600 and t % 600 < 120)]
    found = doubts(evidence_of(tmp_path, {"up": {labels(): scrapes}}))
    assert {doubt.limits for doubt in found if doubt.window and doubt.window.start >= at(3600)} == {
        "cleared"
    }


def test_a_gap_of_the_baseline_makes_a_comparison_weaker_and_limits_nothing(
    tmp_path: Path,
) -> None:
    scrapes = [*ups(0, 600), *ups(3000, 7190)]
    gap = only(doubts(evidence_of(tmp_path, {"up": {labels(): scrapes}})), "gap")
    assert gap.limits == "" and "of the baseline" in gap.detail


@pytest.mark.parametrize(("start", "end"), [(3600, 4600), (6000, 7200)])
def test_a_gap_at_an_edge_of_the_window_is_seen(tmp_path: Path, start: float, end: float) -> None:
    scrapes = [(t, v) for t, v in ups(0, 7190) if not start <= t < end]
    gap = only(doubts(evidence_of(tmp_path, {"up": {labels(): scrapes}})), "gap")
    assert gap.limits == "cleared"


def test_failed_scrapes_are_no_gap_and_are_named(tmp_path: Path) -> None:
    scrapes = [*ups(0, 4000), *ups(4015, 4600, value=0), *ups(4615, 7190)]
    (doubt,) = doubts(evidence_of(tmp_path, {"up": {labels(): scrapes}}))
    assert (doubt.what, doubt.limits) == ("scrape failure", "cleared")
    assert doubt.detail == "main: j a unseen for 10 min of the window"


def test_one_of_two_targets_that_is_missing_from_the_whole_window_is_missed(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(tmp_path, {"up": {labels(): ups(0, 7190), OTHER: ups(0, 3590)}})
    gap = only(doubts(evidence), "gap")
    assert gap.limits == "cleared" and gap.window == WINDOW and "j b unseen" in gap.detail


def test_two_targets_that_were_seen_all_along_are_no_doubt(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"up": {labels(): ups(0, 7190), OTHER: ups(5, 7190)}})
    assert doubts(evidence) == []


def test_when_nobody_said_which_targets_there_were_silence_is_limited(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"fails_total": {labels(): counting(0, 7190)}})
    lost = capture("up", sha256=None, error="HTTP 503", window=WINDOW)
    found = only(doubts(evidence, lost), "targets unknown")
    assert found.limits == "cleared" and "HTTP 503" in found.detail
    earlier = capture("up", sha256=None, error="HTTP 503", window=window(0, 600))
    assert doubts(evidence, earlier) == []


def test_a_reset_is_told_once_for_all_series_of_its_target_and_limits_nothing(
    tmp_path: Path,
) -> None:
    restarted = [*counting(0, 5000), *counting(5015, 7190)]
    evidence = evidence_of(
        tmp_path, {"fails_total": {labels(): restarted}, "busy_total": {labels(): restarted}}
    )
    (reset,) = doubts(evidence)
    assert (reset.what, reset.limits) == ("counter reset", "")
    assert reset.cites == ("busy_total", "fails_total")


@pytest.mark.parametrize("name", ["depth", "rent_escrow_locked_total"])
def test_a_gauge_may_fall(tmp_path: Path, name: str) -> None:
    falling = [(t, 100_000 - t) for t, _ in ups(0, 7190)]
    assert doubts(evidence_of(tmp_path, {name: {labels(): falling}})) == []


def test_a_value_that_is_no_number_is_no_reset(tmp_path: Path) -> None:
    odd = [(t, float("nan") if t == 4500 else v) for t, v in counting(0, 7190)]
    assert doubts(evidence_of(tmp_path, {"fails_total": {labels(): odd}})) == []


def exporter(*families: Any) -> dict[str, Any]:
    named = {f"family_{n}_total": {labels(): samples} for n, samples in enumerate(families)}
    return {**named, "up": {labels(): ups(0, 7190)}}


def test_an_exporter_that_froze_answers_every_scrape_and_says_nothing_new(tmp_path: Path) -> None:
    froze = [*counting(0, 4500), *still(4515, 7190, 300)]
    evidence = evidence_of(tmp_path, exporter(froze, froze, still(0, 7190)))
    found = only(doubts(evidence), "frozen exporter")
    assert found.limits == "cleared" and "they moved before" in found.detail
    assert found.window == window(4500, 7185)


def test_a_calm_exporter_is_not_frozen(tmp_path: Path) -> None:
    evidence = evidence_of(
        tmp_path, exporter(still(0, 7190), still(0, 7190), counting(0, 7190), still(0, 7190, 0))
    )
    assert doubts(evidence) == []


def test_an_exporter_that_never_moved_cannot_be_told_from_a_frozen_one(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, exporter(*[still(0, 7190)] * 4))
    found = only(doubts(evidence), "frozen exporter")
    assert found.limits == "cleared" and "nor did they before that" in found.detail


def test_an_exporter_that_was_frozen_until_its_restart_is_found(tmp_path: Path) -> None:
    thawed = [*still(0, 6000, 50), *counting(6015, 7190)]
    evidence = evidence_of(tmp_path, exporter(thawed, thawed, still(0, 7190)))
    assert only(doubts(evidence), "frozen exporter").limits == "cleared"


def test_what_moves_seldom_is_not_frozen(tmp_path: Path) -> None:
    seldom = [(t, t // 900) for t, _ in ups(0, 7190)]
    evidence = evidence_of(tmp_path, exporter(seldom, seldom, seldom))
    assert doubts(evidence) == []


def test_a_short_stop_outside_the_window_limits_nothing(tmp_path: Path) -> None:
    paused = [(t, min(t, 1000) if t < 1600 else t) for t, _ in ups(0, 7190)]
    evidence = evidence_of(tmp_path, exporter(paused, paused, paused))
    assert only(doubts(evidence), "frozen exporter").limits == ""


def test_an_exporter_whose_scrapes_failed_is_not_called_frozen(tmp_path: Path) -> None:
    froze = [*counting(0, 4500), *still(6000, 7190, 300)]
    scrapes = [*ups(0, 4500), *ups(4515, 5985, value=0), *ups(6000, 7190)]
    series = {**exporter(froze, froze, froze), "up": {labels(): scrapes}}
    found = doubts(evidence_of(tmp_path, series))
    assert only(found, "scrape failure").limits == "cleared"
    spells = [d.window for d in found if d.what == "frozen exporter"]
    assert all(spell and spell.start >= at(4500) for spell in spells)


def test_samples_that_could_still_change_limit_silence(tmp_path: Path) -> None:
    early = capture("up", notes=("provisional",))
    assert only(doubts(evidence_of(tmp_path), early), "provisional").limits == "cleared"


@pytest.mark.parametrize(("bad", "limits"), [(5, ""), (6, "cleared"), (100, "cleared")])
def test_unreadable_lines_limit_silence_when_they_are_many(
    tmp_path: Path, bad: int, limits: str
) -> None:
    torn = {"source": "main", "query": "log_lines", "file": "f", "reason": "torn", "offset": 0}
    tables = {
        "log_lines": [line(4000, line=n) for n in range(100)],
        "quarantine": [{**torn, "line": n} for n in range(bad)],
    }
    found = only(doubts(evidence_of(tmp_path, tables=tables)), "quarantined")
    assert found.limits == limits and f"{bad} of {100 + bad} lines of f" in found.detail


def test_a_reply_that_could_not_be_read_at_all_limits_silence(tmp_path: Path) -> None:
    torn = {"source": "main", "query": "fails_total", "reason": "not JSON"}
    found = only(doubts(evidence_of(tmp_path, tables={"quarantine": [torn]})), "quarantined")
    assert found.limits == "cleared"


# --- nothing that is missing reads as health ----------------------------------------------

WHOLE = {"fails_total": still, "busy_total": counting, "third_total": counting, "up": ups}
SPOILED = {
    "absent": lambda series: {"up": series["up"]},
    "stale": lambda series: {n: [s for s in x if s[0] < 5400] for n, x in series.items()},
    "frozen": lambda series: {
        n: x if n == "up" else [(t, v if t < 5400 else 9) for t, v in x] for n, x in series.items()
    },
    "down": lambda series: {
        n: [(t, v if t < 5400 else 0) for t, v in x] if n == "up" else [s for s in x if s[0] < 5400]
        for n, x in series.items()
    },
    "holes": lambda series: {n: [s for s in x if s[0] % 1200 > 240] for n, x in series.items()},
    "begins late": lambda series: {n: [s for s in x if s[0] >= 4500] for n, x in series.items()},
}


def verdict_of(folder: Path, series: Mapping[str, Any], *captures: Capture) -> Verdict:
    evidence = evidence_of(folder, {name: {labels(): x} for name, x in series.items()})
    captures = captures or tuple(capture(q.name, window=WINDOW) for q in (FAILS, BUSY))
    manifest = manifest_of(*captures)
    rows = quality.coverage(incident(), [FAILS, BUSY], manifest, evidence)
    found = quality.doubts(incident(), (FAILS, BUSY), manifest, evidence)
    return judge((), rows, found)[0]


def test_a_whole_and_calm_window_is_cleared(tmp_path: Path) -> None:
    series = {name: make(0, 7190) for name, make in WHOLE.items()}
    assert verdict_of(tmp_path, series) is Verdict.CLEARED


@pytest.mark.parametrize(
    "how", [*((one,) for one in SPOILED), *itertools.combinations(SPOILED, 2)], ids="+".join
)
def test_no_window_is_cleared_on_evidence_that_is_absent_stale_frozen_or_partial(
    tmp_path: Path, how: tuple[str, ...]
) -> None:
    series: Any = {name: make(0, 7190) for name, make in WHOLE.items()}
    for one in how:
        series = {name: x for name, x in SPOILED[one](series).items() if x}
    assert verdict_of(tmp_path, series) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize("name", ["fails_total", "busy_total", "up"])
def test_no_window_is_cleared_when_half_of_a_needed_question_failed(
    tmp_path: Path, name: str
) -> None:
    series = {n: make(0, 7190) for n, make in WHOLE.items()}
    series[name] = [sample for sample in series[name] if sample[0] < 5400]
    captures = [capture(query, window=window(3600, 7200)) for query in WHOLE if query != name]
    captures += [
        capture(name, window=window(3600, 5400)),
        capture(name, window=window(5400, 7200), sha256=None, error="HTTP 500"),
    ]
    expected = Verdict.CLEARED if name == "busy_total" else Verdict.INCONCLUSIVE
    assert verdict_of(tmp_path, series, *captures) is expected


@pytest.mark.parametrize(
    ("seconds", "text"), [(90, "90 s"), (720, "12 min"), (12_600, "3.5 h"), (172_800, "2.0 d")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert quality.duration(seconds) == text


def test_a_slice_that_was_refused_and_asked_in_halves_was_answered(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"fails_total": {labels(): counting(0, 7190)}})
    manifest = manifest_of(
        capture("fails_total", window=window(3600, 7200), sha256=None, error="too many samples"),
        capture("fails_total", window=window(3600, 5400)),
        capture("fails_total", window=window(5400, 7200)),
    )
    assert covered(evidence, FAILS, manifest).state == "covered"
