"""Who failed, why and since when; and what looks like it and is not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from collected import scenario, world
from made import at, frames_of, steps, window

from tbforensics import parameters
from tbforensics.assess import assess, to_json
from tbforensics.case import case_of, open_case
from tbforensics.kinds.quic_failure import KIND, QUERIES, Thresholds, analyse
from tbforensics.manifest import canonical
from tbforensics.model import Finding, Frames, Incident
from tbforensics.theblock import peer_base58

CALM, STEP_S, N = 120, 30.0, 240  # an hour of baseline, an hour of window
PEERS = ["".join(f"{(31 * n + k) % 256:02x}" for k in range(32)) for n in (1, 2, 3, 4)]
A, B, C, D = PEERS
BEGAN, ENDED = 160, 200  # steps
Failures = Mapping[tuple[str, str], Sequence[float]]


def rate(calm: float, bad: float | None = None, *, since: int = BEGAN, until: int = ENDED,
         seed: int = 1) -> list[float]:  # fmt: skip
    """Counts per step by chance: a calm rate, and another one in a spell."""
    rng = np.random.default_rng(seed)
    means = np.full(N, float(calm))
    if bad is not None:
        means[since:until] = bad
    return [float(n) for n in rng.poisson(means)]


def failed(counts: Failures) -> pd.DataFrame:
    return steps(counts, STEP_S, "peer", "reason")


def seen(**tables: pd.DataFrame) -> Frames:
    first = tables.pop("handshake_fail", None)
    tables = {"handshake_fail": failed({}) if first is None else first, **tables}
    index = pd.date_range(at(0), periods=N, freq=pd.Timedelta(seconds=STEP_S), name="ts")
    tables = {name: t.reindex(index) if "ts" not in t and "state" not in t else t
              for name, t in tables.items()}  # fmt: skip
    return frames_of(
        QUERIES, {"bytes_sent": steps({(): rate(500)}, STEP_S), **tables}, STEP_S, CALM
    )


def found(frames: Frames, **thresholds: float) -> dict[str, Finding]:
    findings = analyse(frames, Thresholds(**thresholds))
    assert len({f.id for f in findings}) == len(findings)
    incident = Incident("x", "quic_failure", "", frames.window, frames.baseline, STEP_S, (), {}, (),
                        "", "")  # fmt: skip
    canonical(to_json(assess(incident, KIND, frames)))  # whatever is found can be written down
    return {finding.id: finding for finding in findings}


def clear(**more: pd.DataFrame) -> Frames:
    """One peer fails by its certificate, another is noisy all along."""
    counts = {(A, "certificate"): rate(0.05, 12), (B, "timeout"): rate(0.5, seed=2)}
    return seen(handshake_fail=failed(counts), **more)


# --- did it fail ---------------------------------------------------------------------------


def test_a_clear_case_says_how_much_since_when_and_until_when() -> None:
    failing = found(clear())["handshake-failures"]
    assert failing.decides and failing.cites == ("handshake_fail",)
    assert failing.unit == "failures/min" and 20 < failing.value < 30
    assert failing.threshold and failing.value > failing.threshold >= 2.0
    spell = failing.spell
    assert spell and spell.recovery
    for moment, step in ((spell.onset, BEGAN), (spell.recovery, ENDED)):
        assert abs(moment - at(step * STEP_S)) <= timedelta(seconds=60)
    assert spell.onset_earliest <= at(BEGAN * STEP_S) <= spell.onset_latest
    assert failing.interval and failing.interval[0] < failing.value < failing.interval[1]


def test_what_goes_on_at_the_end_of_the_window_has_no_recovery() -> None:
    counts = {(A, "certificate"): rate(0.05, 12, until=N)}
    spell = found(seen(handshake_fail=failed(counts)))["handshake-failures"].spell
    assert spell and spell.recovery is None and spell.recovery_latest is None


def test_a_calm_window_gives_no_finding() -> None:
    assert found(seen(handshake_fail=failed({(B, "timeout"): rate(0.5)}))) == {}


def test_only_the_noisy_peer_is_no_incident() -> None:
    counts = {(B, "timeout"): rate(0.5), (C, "tls"): rate(0.1, seed=3)}
    assert "handshake-failures" not in found(seen(handshake_fail=failed(counts)))


def test_a_rise_that_stays_below_what_flapping_peers_reach_is_a_near_miss() -> None:
    counts = {(A, "certificate"): rate(0.02, 0.8)}  # 1.6 a minute
    near = seen(handshake_fail=failed(counts))
    assert "handshake-failures" not in found(near)
    assert "handshake-failures" in found(near, handshake_fail_per_min=1.0)


def test_a_rise_below_three_times_the_baseline_is_a_near_miss() -> None:
    counts = {(A, "certificate"): rate(3, 6)}  # from 6 to 12 a minute
    near = seen(handshake_fail=failed(counts))
    assert not [f for f in found(near).values() if f.decides and f.spell]
    assert "handshake-failures" in found(near, times_baseline=1.5)


def test_what_failed_all_along_is_reported_with_an_uncalm_baseline() -> None:
    counts = {(A, "certificate"): rate(10)}
    findings = found(seen(handshake_fail=failed(counts)))
    along = findings["handshake-failures-all-along"]
    assert along.decides and along.spell is None and along.window == window(3600, 7200)
    assert "the baseline was not calm" in along.claim and along.caution
    assert set(findings) == {"handshake-failures-all-along"}


def test_no_samples_at_all_give_no_finding_and_no_zero() -> None:
    assert found(seen()) == {}


def test_a_baseline_that_nobody_saw_gives_no_number_that_is_none() -> None:
    counts = np.array(rate(0.05, 12))
    counts[:CALM] = np.nan
    for finding in found(seen(handshake_fail=failed({(A, "certificate"): list(counts)}))).values():
        assert "nan" not in finding.claim.lower() and np.isfinite(finding.value)


def test_a_gap_in_the_spell_is_no_recovery() -> None:
    counts = np.array(rate(0.05, 12, until=N))
    counts[180:186] = np.nan
    failing = found(seen(handshake_fail=failed({(A, "certificate"): list(counts)})))
    spell = failing["handshake-failures"].spell
    assert spell and spell.recovery is None


def test_a_gap_before_the_spell_widens_the_onset() -> None:
    counts = np.array(rate(0.05, 12))
    counts[150:170] = np.nan
    failing = found(seen(handshake_fail=failed({(A, "certificate"): list(counts)})))
    spell = failing["handshake-failures"].spell
    assert spell
    assert spell.onset_earliest <= at(BEGAN * STEP_S) <= spell.onset_latest
    assert spell.onset_latest - spell.onset_earliest >= timedelta(seconds=10 * STEP_S)


def test_lost_packets_alone_decide_and_do_not_speak_of_handshakes() -> None:
    lost = steps({("a",): rate(20, 150), ("b",): rate(20, seed=5)}, STEP_S, "instance")
    findings = found(seen(retransmits=lost))
    assert findings["retransmits"].decides and findings["retransmits"].unit == "packets/min"
    assert not {"by-peer", "by-reason", "log-lines"} & set(findings)


# --- who and why ---------------------------------------------------------------------------


def test_the_peer_and_the_reason_that_explain_the_rise_are_named_and_the_noisy_one_is_not() -> None:
    findings = found(clear())
    by_peer, by_reason = findings["by-peer"], findings["by-reason"]
    assert by_peer.claim.startswith(f"Peer {A[:8]}…") and by_peer.value > 0.9
    assert by_reason.claim.startswith("Reason certificate explains")
    rows = {row["peer"]: row for row in by_peer.rows}
    assert rows[A]["explains"] and not rows[B]["explains"]
    assert rows[A]["base58"] == peer_base58(A)
    assert sum(row["share"] for row in by_peer.rows) == pytest.approx(1.0)


def test_a_rise_that_all_peers_share_has_no_single_culprit() -> None:
    counts = {(f"{n:02x}" * 32, "timeout"): rate(0.05, 2, seed=n) for n in range(1, 13)}
    by_peer = found(seen(handshake_fail=failed(counts)))["by-peer"]
    assert by_peer.claim == "No single peer explains the rise" or "together" in by_peer.claim
    assert not any(row["share"] > 0.5 for row in by_peer.rows)


def test_a_peer_spelled_in_hex_and_in_base58_is_one_peer() -> None:
    counts = {
        (A, "certificate"): rate(0.05, 6),
        (peer_base58(A), "certificate"): rate(0.05, 6, seed=9),
        (B, "timeout"): rate(0.5, seed=2),
    }
    by_peer = found(seen(handshake_fail=failed(counts)))["by-peer"]
    assert [row["peer"] for row in by_peer.rows] == [A, B]


def test_seeds_that_only_make_a_family_appear_are_no_peers() -> None:
    counts = {**{(A, "certificate"): rate(0.05, 12)}, ("__", "__"): rate(0.0)}
    findings = found(seen(handshake_fail=failed(counts)))
    for finding in findings.values():
        assert not any("__" in row.values() for row in finding.rows)


def test_a_seed_alone_is_no_failure() -> None:
    seeds = {("__", "__"): rate(12)}
    assert found(seen(handshake_fail=failed(seeds))) == {}


HOSTILE = ["<img src=x onerror=alert(1)>", "\x1b[2J\x1b]8;;http://evil\x1b\\", "\u202etxt.exe",
           "", "a" * 5000, "' OR 1=1; --", "{{7*7}}", "NaN"]  # fmt: skip


@pytest.mark.parametrize("reason", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_reason_stays_a_label(reason: str) -> None:
    by_reason = found(seen(handshake_fail=failed({(A, reason): rate(0.05, 12)})))["by-reason"]
    assert by_reason.rows[0]["reason"] == (reason or "(none)")


def test_more_peers_than_are_shown_are_told() -> None:
    counts = {(f"{n:02x}" * 32, "timeout"): rate(0.05, 2, seed=n) for n in range(1, 31)}
    by_peer = found(seen(handshake_fail=failed(counts)))["by-peer"]
    assert len(by_peer.rows) == 12 and "the largest 12 of 30" in by_peer.caution


# --- the share of attempts -----------------------------------------------------------------


def test_the_share_of_attempts_is_given_where_successes_are_counted() -> None:
    successes = steps({(A,): rate(10, 2)}, STEP_S, "peer")
    share = found(clear(handshake_success=successes))["failed-share"]
    assert 0.7 < share.value < 0.95 and share.cites == ("handshake_fail", "handshake_success")


def test_no_share_is_made_up_where_successes_are_not_counted() -> None:
    assert "failed-share" not in found(clear())


# --- what else -----------------------------------------------------------------------------


def test_families_that_count_one_failure_twice_are_listed_and_never_added_up() -> None:
    same = rate(0.05, 12)
    others = {
        "handshake_fail_all": steps({("certificate",): same}, STEP_S, "reason"),
        "peer_handshake_fail": steps({(peer_base58(A),): same}, STEP_S, "peer_id"),
        "peer_drops": steps({(peer_base58(B),): rate(0.4)}, STEP_S, "peer_id"),
    }
    alone, beside = found(clear()), found(clear(**others))
    assert alone["handshake-failures"].value == beside["handshake-failures"].value
    rows = {row["family"]: row for row in beside["other-families"].rows}
    assert set(rows) == set(others)
    assert rows["peer_handshake_fail"]["leading_peer"] == A
    assert rows["handshake_fail_all"]["rose"] and not rows["peer_drops"]["rose"]
    assert rows["handshake_fail_all"]["count"] == rows["peer_handshake_fail"]["count"]
    assert beside["other-families"].value == 2.0 and "never added up" in (
        beside["other-families"].caution
    )


def rotated(step: int) -> pd.DataFrame:
    counts = [0.0] * N
    counts[step] = 1.0
    return steps({(A,): counts}, STEP_S, "peer")


@pytest.mark.parametrize(
    ("step", "side"), [(BEGAN - 4, "before"), (BEGAN + 4, "after"), (BEGAN - 30, "")]
)
def test_a_rotation_near_the_onset_is_named_with_its_side_and_is_not_called_a_cause(
    step: int, side: str
) -> None:
    findings = found(clear(cert_rotations=rotated(step)))
    if not side:
        assert "rotation" not in findings
        return
    rotation = findings["rotation"]
    assert f" s {side} the onset" in rotation.claim
    assert (rotation.value > 0) is (side == "after") and abs(rotation.value) <= 180
    assert rotation.caution == "near in time is not a cause"
    assert rotation.rows[0]["peer"] == A and not rotation.decides


# --- logs ----------------------------------------------------------------------------------


def lines(*rows: tuple[float, str, str | None]) -> pd.DataFrame:
    """(seconds, message, peer)"""
    return pd.DataFrame(
        {
            "ts": pd.to_datetime([at(s) for s, _, _ in rows], utc=True),
            "message": pd.Series([m for _, m, _ in rows], dtype=object),
            "peer": pd.Series([p for _, _, p in rows], dtype=object),
            "correlation_id": [f"id{n}" for n, _ in enumerate(rows)],
            "file": "node.jsonl",
            "line": range(1, len(rows) + 1),
            "source": "logs",
            "level": "WARN",
        }
    )


def spell_of(
    count: int, peer: str | None, message: str = "quic handshake failed 0123456789ab"
) -> Any:
    every_s = (ENDED - BEGAN) * STEP_S / count
    return [(BEGAN * STEP_S + n * every_s + 1, f"{message} #{n}", peer) for n in range(count)]


def test_log_lines_are_matched_to_failures_by_peer_and_time_with_the_share() -> None:
    logged = found(clear(log_lines=lines(*spell_of(80, A))))["log-lines"]
    assert logged.value > 0.9 and logged.unit == "share of failures"
    (row,) = logged.rows
    assert row["message"] == "quic handshake failed <*> #<*>"
    assert (row["lines"], row["peers"]) == (80, 1) and row["example"].startswith("node.jsonl:")


@pytest.mark.parametrize("peer", [B, None, "someone else"])
def test_lines_of_another_peer_explain_next_to_nothing(peer: str | None) -> None:
    logged = found(clear(log_lines=lines(*spell_of(80, peer))))["log-lines"]
    assert logged.value < 0.1


def test_one_line_early_in_the_spell_explains_only_what_is_near_it() -> None:
    logged = found(clear(log_lines=lines(*spell_of(80, A)[:1])))["log-lines"]
    assert 0 < logged.value < 0.2


def test_lines_outside_the_spell_or_about_something_else_are_left_out() -> None:
    other = lines((100.0, "quic handshake failed", A), (BEGAN * STEP_S + 60, "block mined", A))
    assert "log-lines" not in found(clear(log_lines=other))


def test_messages_are_grouped_by_what_they_have_in_common() -> None:
    rows = [*spell_of(10, A), *spell_of(5, A, "certificate expired")]
    logged = found(clear(log_lines=lines(*rows)))["log-lines"]
    assert [row["lines"] for row in logged.rows] == [10, 5]


def test_hostile_lines_are_only_text() -> None:
    rows = [(BEGAN * STEP_S + n, f"quic {text}", A) for n, text in enumerate(HOSTILE)]
    empty = [(BEGAN * STEP_S + 99.0, None, A)]
    logged = found(clear(log_lines=lines(*rows, *empty)))["log-lines"]
    assert all(len(row["message"]) <= 210 for row in logged.rows)


# --- what the node remembers ---------------------------------------------------------------


def remembered(value: Any, state: str = "ok") -> pd.DataFrame:
    return pd.DataFrame(
        [{"ts": pd.Timestamp(at(8000)), "source": "node", "query": "handshake_ring",
          "role": "snapshot", "generation": "B", "state": state, "value": value}]
    )  # fmt: skip


def ring(*entries: tuple[float, str]) -> dict[str, Any]:
    failures = [{"ts": int(at(s).timestamp()), "peer": p, "reason": "certificate"}
                for s, p in entries]  # fmt: skip
    return {"failures": failures}


def test_the_ring_is_counted_within_the_spell() -> None:
    begin_s, end_s = BEGAN * STEP_S, ENDED * STEP_S
    value = ring((100, B), (begin_s + 300, A), (begin_s + 400, A), (begin_s + 500, B),
                 (end_s + 600, B))  # fmt: skip
    node = found(clear(handshake_ring=remembered(value)))["handshake-ring"]
    assert node.value == 3.0 and A[:8] in node.claim and node.caution == ""
    assert node.rows == ({"peer": A, "failures": 2}, {"peer": B, "failures": 1})


def test_a_ring_younger_than_the_onset_says_that_earlier_failures_are_lost() -> None:
    value = ring(*((ENDED * STEP_S - n, A) for n in range(1, 100)))
    assert "are lost" in found(clear(handshake_ring=remembered(value)))["handshake-ring"].caution


@pytest.mark.parametrize(
    "value",
    [
        {"failures": []},
        {},
        {"failures": None},
        [],
        None,
        {"failures": [None, 3, "x", {"ts": "soon", "peer": A}, {"ts": 1}]},
        {"failures": [{"ts": int(at(BEGAN * STEP_S + 60).timestamp())}]},
        {"failures": [{"ts": int(at(BEGAN * STEP_S + 60).timestamp()), "peer": ["x"]}]},
        {"failures": {"a": 1}},
    ],
    ids=repr,
)
def test_a_ring_of_an_unknown_form_takes_nothing_else_along(value: Any) -> None:
    findings = found(clear(handshake_ring=remembered(value)))
    assert {"handshake-failures", "by-peer", "by-reason"} <= set(findings)


def test_a_ring_that_the_node_refused_is_no_ring() -> None:
    assert "handshake-ring" not in found(clear(handshake_ring=remembered({}, "unsupported")))


# --- the example, from both generations of the node ----------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """findings.json of the example, collected from a node of generation A and one of B."""
    here, made = world(), {}
    made["B"] = json.loads((here.case / "findings.json").read_bytes())
    home = here.project(tmp_path_factory.mktemp("a") / "home", case=False)
    here.node.generation = "A"
    try:
        case = case_of(here.incident(), home)
    finally:
        here.node.generation = "B"
    made["A"] = json.loads((case.folder / "findings.json").read_bytes())
    other = open_case(here.case).captures
    assert case.captures["log_lines"][-1].sha256 != other["log_lines"][-1].sha256, "one spelling"
    return made


def test_both_generations_of_the_node_give_the_same_findings(both: dict[str, Any]) -> None:
    assert both["A"]["verdict"] == both["B"]["verdict"] == "confirmed"
    assert both["A"]["findings"] == both["B"]["findings"]
    assert both["A"]["reasons"] == both["B"]["reasons"]


def test_the_example_names_what_happened(both: dict[str, Any]) -> None:
    findings = {finding["id"]: finding for finding in both["B"]["findings"]}
    spell = findings["handshake-failures"]["spell"]
    assert spell["onset_earliest"] <= "2026-11-20T10:21:10Z" <= spell["onset_latest"]
    assert spell["recovery_earliest"] <= "2026-11-20T11:03:00Z" <= spell["recovery_latest"]
    culprit = next(row for row in findings["by-peer"]["rows"] if row["explains"])
    assert culprit["peer"] == scenario.CULPRIT and culprit["share"] > 0.9
    noisy = next(r for r in findings["by-peer"]["rows"] if r["peer"] == scenario.NOISY)
    assert not noisy["explains"]
    assert findings["by-reason"]["claim"].startswith("Reason certificate explains")
    assert findings["rotation"]["rows"][0]["peer"] == scenario.CULPRIT
    assert -180 <= findings["rotation"]["value"] <= 0
    assert findings["log-lines"]["value"] > 0.5
    what = [doubt["what"] for doubt in both["B"]["doubts"]]
    assert {"counter reset", "scrape failure", "quarantined"} <= set(what)


def test_the_example_keeps_its_numbers_when_a_reset_and_a_gap_fall_into_the_spell(
    both: dict[str, Any],
) -> None:
    """26.4 + 10.4 certificate failures a minute for 42 min, and what else failed."""
    failing = next(f for f in both["B"]["findings"] if f["id"] == "handshake-failures")
    assert failing["value"] == pytest.approx(26 * 1.4 + 1.1 * 1.4 + 0.2 + 0.6, rel=0.08)


def test_thresholds_can_be_moved_so_that_nothing_is_found(tmp_path: Path) -> None:
    here = world()
    home = here.project(tmp_path / "home")
    high = {"handshake_fail_per_min": 1e6, "retransmit_per_min": 1e6}
    case = case_of(here.incident(thresholds=high), home)
    assert not [finding for finding in case.assessment.findings if finding.decides]
    incident = parameters.read_parameters(case.folder / "parameters.yaml")
    assert replace(incident, thresholds={}) == replace(here.incident(), thresholds={})
