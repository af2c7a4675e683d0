"""The verdict never claims more than the evidence carries; its JSON is plain and stable."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import at, nothing, steps, window

from tbforensics.assess import assess, judge, to_json
from tbforensics.manifest import canonical
from tbforensics.model import (
    Coverage,
    Doubt,
    Finding,
    Frames,
    Incident,
    Kind,
    Query,
    Shape,
    Spell,
    TimelineEntry,
    Verdict,
)

BASELINE, WINDOW = window(0, 3600), window(3600, 7200)
STATES = ["covered", "partial", "absent", "failed", "unsupported", "not asked"]


def finding(**more: Any) -> Finding:
    given = {"id": "f", "claim": "it happened", "value": 1.0, "unit": "1", "window": WINDOW,
             "cites": ("q",)}  # fmt: skip
    return Finding(**{**given, **more})


def row(state: str = "covered", query: str = "q", source: str = "main", **more: Any) -> Coverage:
    given = {"ratio": float(state == "covered"), "required": True, **more}
    return Coverage(query=query, source=source, state=state, **given)


def doubt(limits: Any = "", what: str = "gap") -> Doubt:
    return Doubt(what, "of an hour", WINDOW, limits)


DECIDES, EXPLAINS, OPEN = finding(decides=True), finding(), finding(leaves_open=True)
GOOD, BAD = row(), row("absent")
DULL, SILENT, FALSE = doubt(), doubt("cleared"), doubt("confirmed")


@pytest.mark.parametrize(
    ("findings", "coverage", "doubts", "verdict"),
    [
        ([DECIDES], [GOOD], [], "confirmed"),
        ([DECIDES], [BAD], [], "confirmed"),  # what was seen was seen
        ([DECIDES], [GOOD], [SILENT], "confirmed"),
        ([DECIDES], [GOOD], [DULL], "confirmed"),
        ([DECIDES, OPEN], [GOOD], [], "confirmed"),
        ([DECIDES], [GOOD], [FALSE], "inconclusive"),
        ([DECIDES], [BAD], [FALSE], "inconclusive"),
        ([], [GOOD], [], "cleared"),
        ([EXPLAINS], [GOOD], [DULL], "cleared"),
        ([], [GOOD, row("absent", required=False)], [], "cleared"),
        ([], [GOOD, row("failed", required=False)], [], "cleared"),
        ([], [GOOD, row("absent", source="second")], [], "cleared"),
        ([], [GOOD, row("failed", source="second")], [], "inconclusive"),
        ([], [BAD], [], "inconclusive"),
        ([], [GOOD, row("partial", query="r")], [], "inconclusive"),
        ([], [GOOD], [SILENT], "inconclusive"),
        ([], [GOOD], [FALSE], "inconclusive"),
        ([OPEN], [GOOD], [], "inconclusive"),
    ],
)
def test_the_verdict_follows_from_findings_coverage_and_doubts(
    findings: Sequence[Finding],
    coverage: Sequence[Coverage],
    doubts: Sequence[Doubt],
    verdict: str,
) -> None:
    found, reasons = judge(findings, coverage, doubts)
    assert found == verdict
    assert reasons and all(reasons)


def test_every_reason_of_an_inconclusive_verdict_is_given() -> None:
    missing = row("failed", query="fails", source="prom", detail="HTTP 500")
    _, reasons = judge([OPEN], [missing, row("not asked", query="logs", source="")], [SILENT])
    assert reasons == (
        "fails is failed at prom: HTTP 500",
        "logs is not asked",
        "gap: of an hour",
        "it happened",
    )


coverages = st.lists(
    st.builds(
        row,
        state=st.sampled_from(STATES),
        query=st.sampled_from("qrs"),
        source=st.sampled_from(["main", "second"]),
        required=st.booleans(),
    ),
    max_size=6,
)
doubtings = st.lists(st.builds(doubt, st.sampled_from(["", "cleared", "confirmed"])), max_size=3)
findings_made = st.lists(
    st.builds(finding, decides=st.booleans(), leaves_open=st.booleans()), max_size=3
)


@settings(deadline=None)
@given(coverages, doubtings, findings_made)
def test_nothing_is_cleared_on_missing_evidence_and_nothing_confirmed_on_what_is_not_trusted(
    coverage: list[Coverage], doubts: list[Doubt], findings: list[Finding]
) -> None:
    verdict, reasons = judge(findings, coverage, doubts)
    assert reasons
    if verdict is Verdict.CLEARED:
        for name in {r.query for r in coverage if r.required}:
            rows = [r for r in coverage if r.query == name and r.required]
            assert any(r.state == "covered" for r in coverage if r.query == name)
            assert not any(r.state == "failed" for r in rows)
        assert not any(d.limits for d in doubts)
        assert not any(f.decides or f.leaves_open for f in findings)
    if verdict is Verdict.CONFIRMED:
        assert any(f.decides for f in findings)
        assert not any(d.limits == "confirmed" for d in doubts)


@settings(deadline=None)
@given(coverages, doubtings, findings_made, st.randoms(use_true_random=False))
def test_the_verdict_does_not_depend_on_any_order(
    coverage: list[Coverage], doubts: list[Doubt], findings: list[Finding], dice: Any
) -> None:
    expected = judge(findings, coverage, doubts)[0]
    for some in (coverage, doubts, findings):
        dice.shuffle(some)
    assert judge(findings, coverage, doubts)[0] is expected


@settings(deadline=None)
@given(coverages, doubtings, findings_made, coverages, doubtings)
def test_more_doubt_never_makes_a_verdict_of_cleared(
    coverage: list[Coverage],
    doubts: list[Doubt],
    findings: list[Finding],
    more: list[Coverage],
    worse: list[Doubt],
) -> None:
    if judge(findings, coverage, doubts)[0] is not Verdict.CLEARED:
        weaker = [r for r in more if r.state != "covered"]
        after = judge(findings, [*coverage, *weaker], [*doubts, *worse])[0]
        assert after is not Verdict.CLEARED


# --- the whole assessment ------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    least: float = 1.0


QUERY = Query("q", "prometheus", "q_total", shape=Shape.COUNTER, required=True, why="w")
ONSET = at(4000)
SPELL = Spell(ONSET, at(3970), at(4030), at(5000), at(4970), at(5030))
ONGOING = Spell(ONSET, at(3970), at(4030))


def kind_of(*findings: Finding, **more: Any) -> Kind:
    return Kind("t", "?", (QUERY,), Thresholds, lambda frames, thresholds: findings, **more)


def incident(*timeline: TimelineEntry) -> Incident:
    return Incident("x", "k", "", WINDOW, BASELINE, 30.0, (), {}, timeline, "", "")


def frames(**tables: pd.DataFrame) -> Frames:
    index = pd.date_range(at(0), at(7200), freq="30s", inclusive="left", name="ts")
    return Frames(WINDOW, BASELINE, 30.0, {**nothing([QUERY], index), **tables}, (row(),))


def timing(spell: Spell, *timeline: TimelineEntry, **tables: pd.DataFrame) -> dict[str, Any]:
    kind = kind_of(finding(spell=spell, decides=True), onset="f")
    found = assess(incident(*timeline), kind, frames(**tables)).timing
    return {str(r["what"]): r for r in found}


def test_each_reaction_is_timed_from_the_onset_with_both_bounds() -> None:
    rows = timing(
        SPELL,
        TimelineEntry(at(4600), "detected", "on-call"),
        TimelineEntry(at(4900), "mitigated"),
    )
    assert rows["detected"]["after_onset_s"] == 600.0
    assert (rows["detected"]["at_least_s"], rows["detected"]["at_most_s"]) == (570.0, 630.0)
    assert (rows["detected"]["by"], rows["mitigated"]["by"]) == ("on-call", "a person")
    assert rows["recovery"]["after_onset_s"] == 1000.0
    assert rows["onset"]["after_onset_s"] == 0.0
    assert "acknowledged" not in rows and "first alert firing" not in rows


def test_a_reaction_before_the_onset_counts_backwards() -> None:
    assert timing(SPELL, TimelineEntry(at(3900), "detected"))["detected"]["after_onset_s"] == -100


def test_of_two_reactions_of_one_sort_the_first_counts() -> None:
    rows = timing(SPELL, TimelineEntry(at(4100), "detected"), TimelineEntry(at(4200), "detected"))
    assert rows["detected"]["after_onset_s"] == 100.0


def test_while_it_goes_on_there_is_no_recovery_and_that_is_an_unknown() -> None:
    kind = kind_of(finding(spell=ONGOING, decides=True), onset="f")
    found = assess(incident(), kind, frames())
    assert [r["what"] for r in found.timing] == ["onset"]
    assert "when it recovered: it still went on at the end of the window" in found.unknowns


def test_without_an_onset_nothing_is_timed() -> None:
    kind = kind_of(finding(decides=True), onset="f")
    assert assess(incident(TimelineEntry(at(4100), "detected")), kind, frames()).timing == ()


@settings(deadline=None)
@given(
    before_s=st.integers(0, 600),
    after_s=st.integers(0, 600),
    told_s=st.integers(-3000, 3000),
)
def test_a_span_lies_between_its_bounds(before_s: int, after_s: int, told_s: int) -> None:
    spell = Spell(ONSET, ONSET - timedelta(seconds=before_s), ONSET + timedelta(seconds=after_s))
    told = timing(spell, TimelineEntry(ONSET + timedelta(seconds=told_s), "detected"))["detected"]
    assert told["at_least_s"] <= told["after_onset_s"] == told_s <= told["at_most_s"]
    assert told["at_most_s"] - told["at_least_s"] == before_s + after_s


def alerts(*values: float | None, state: str = "firing") -> pd.DataFrame:
    names = ("alertname", "alertstate", "instance")
    full = [*([None] * (240 - len(values))), *values]
    return steps({("Slow", state, "a"): [np.nan if v is None else v for v in full]}, 30, *names)


def test_the_first_alert_that_fires_after_the_onset_is_timed() -> None:
    rows = timing(SPELL, ALERTS=alerts(*[1.0] * 20))
    assert rows["first alert firing"]["time"] == "2026-03-10T11:50:00Z"


def test_an_alert_that_was_only_pending_did_not_fire() -> None:
    assert "first alert firing" not in timing(SPELL, ALERTS=alerts(1, 1, state="pending"))


def test_the_timeline_is_in_order_and_holds_what_each_origin_saw() -> None:
    kind = kind_of(finding(spell=SPELL, decides=True), onset="f")
    noted = TimelineEntry(at(4100), "note", "me", "looked at it")
    found = assess(incident(noted), kind, frames(ALERTS=alerts(1, 1))).timeline
    assert [moment.time for moment in found] == sorted(moment.time for moment in found)
    said = {(moment.origin, moment.text) for moment in found}
    assert ("human", "note: looked at it") in said
    assert ("finding", "it happened") in said
    assert ("finding", "recovered from: it happened") in said
    assert any(origin == "alert" and "Slow firing" in text for origin, text in said)
    (onset,) = [m for m in found if m.text == "it happened"]
    assert onset.uncertainty_s == 30.0


def test_an_alert_that_fired_already_when_we_began_to_look_is_no_moment() -> None:
    kind = kind_of()
    held = alerts(*[1.0] * 240)
    assert assess(incident(), kind, frames(ALERTS=held)).timeline == ()


def test_what_was_not_seen_is_an_unknown_with_its_place() -> None:
    missing = (row("absent", detail="no such series"), row("failed", "other", "node"))
    seen = replace(frames(), coverage=missing, doubts=(SILENT, DULL))
    unknowns = assess(incident(), kind_of(), seen).unknowns
    assert unknowns[:3] == (
        "q was absent at main (no such series)",
        "other was failed at node",
        "gap: of an hour",
    )


def test_a_kind_may_doubt_its_own_evidence() -> None:
    distrust = Doubt("clock", "ran backwards", WINDOW, "confirmed")
    kind = kind_of(finding(decides=True), doubts=lambda frames, thresholds: [distrust])
    found = assess(incident(), kind, frames())
    assert (found.verdict, found.doubts) == (Verdict.INCONCLUSIVE, (distrust,))


def test_thresholds_of_the_incident_reach_the_kind() -> None:
    seen: list[Any] = []
    kind = replace(kind_of(), analyse=lambda frames, thresholds: seen.append(thresholds) or [])
    assess(replace(incident(), thresholds={"least": 7.0}), kind, frames())
    assert seen == [Thresholds(7.0)]


# --- as JSON -------------------------------------------------------------------------------

ODD: list[Callable[[], Any]] = [
    lambda: math.nan, lambda: math.inf, lambda: -math.inf, lambda: np.float64("nan"),
    lambda: np.int64(3), lambda: np.bool_(True), lambda: np.float32(0.1), lambda: None,
    lambda: datetime(2026, 3, 10, tzinfo=UTC), lambda: pd.Timestamp("2026-03-10", tz="UTC"),
    lambda: [math.nan, {"a": math.inf}], lambda: (1, 2), lambda: {3: math.nan},
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd()))
def test_json_never_holds_what_json_cannot_hold(odd: Callable[[], Any]) -> None:
    made = finding(value=math.nan, interval=(math.nan, math.inf), rows=({"odd": odd()},))
    found = assess(incident(), kind_of(made), frames())
    text = canonical(to_json(replace(found, coverage=(row(ratio=math.nan),))))
    assert json.loads(text)["findings"][0]["value"] is None
    for word in (b"NaN", b"Infinity"):
        assert word not in text


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_noise_of_summing_in_another_order_is_not_written(value: float) -> None:
    def text(number: float) -> bytes:
        found = assess(incident(), kind_of(finding(value=number)), frames())
        return canonical(to_json(found))

    written = json.loads(text(value))["findings"][0]["value"]
    assert written == pytest.approx(value, rel=1e-8)
    assert text(written) == text(value)


def test_the_same_frames_give_the_same_json() -> None:
    kind = kind_of(finding(spell=SPELL, decides=True), onset="f")
    both = [canonical(to_json(assess(incident(), kind, frames()))) for _ in range(2)]
    assert both[0] == both[1]
