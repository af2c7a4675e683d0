"""Work that arrives and does not settle, told apart from no work and from nothing seen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import at, frames_of, steps
from standin_replies import ANSWERS, NodeState, root_of

from tbforensics import theblock
from tbforensics.assess import judge
from tbforensics.chain.books import roots_dated
from tbforensics.kinds.settlement_stall import KIND, Thresholds, analyse
from tbforensics.model import Coverage, Finding, Frames, Verdict

STEP_S, CALM, LENGTH = 30.0, 120, 240  # an hour of each
STALL = slice(160, 200)
Values = Sequence[float] | np.ndarray


def flat(rate: float, *silent: slice, value: float = 0.0) -> np.ndarray:
    counts = np.full(LENGTH, float(rate))
    for part in silent:
        counts[part] = value
    return counts


def seen(metric: Mapping[Any, Values], *names: str) -> pd.DataFrame:
    return steps({key: list(values) for key, values in metric.items()}, STEP_S, *names)


def settled(values: Values, target: str = "a") -> pd.DataFrame:
    return seen({(target,): values}, "instance")


def matched(values: Values, dry: Values | None = None, lane: str = "consumer") -> pd.DataFrame:
    series = {("a", lane, "false"): values}
    if dry is not None:
        series["a", lane, "true"] = dry
    return seen(series, "instance", "lane", "dry_run")


def logs(*lines: tuple[int, str, dict[str, Any]]) -> pd.DataFrame:
    """(step, message, fields) of each line."""
    return pd.DataFrame(
        [
            {"ts": pd.Timestamp(at(step * STEP_S)), "message": message, "source": "n",
             "file": "x.jsonl", "fields": json.dumps(fields), "line": 1, "peer": None,
             "correlation_id": None, "level": "WARN"}
            for step, message, fields in lines
        ]
    )  # fmt: skip


def answer(name: str, value: Any, source: str = "node", state: str = "ok") -> pd.DataFrame:
    ts = pd.Timestamp(at(8000))
    row = {"ts": ts, "source": source, "query": name, "state": state, "value": value}
    return pd.DataFrame([row])


def frames(**tables: pd.DataFrame) -> Frames:
    tables = {"settled": settled(flat(1)), "matches": matched(flat(1)), **tables}
    return frames_of(KIND.queries, tables, STEP_S, CALM)


def found(*, coverage: Sequence[Coverage] = (), **tables: pd.DataFrame) -> dict[str, Finding]:
    made = frames(**tables)
    given = Frames(made.window, made.baseline, made.step_s, made.tables, tuple(coverage))
    return {finding.id: finding for finding in analyse(given, Thresholds())}


def deciding(findings: Mapping[str, Finding]) -> set[str]:
    return {finding.id for finding in findings.values() if finding.decides}


LOGGED = Coverage("log_lines", "dumps", 1.0, "covered")


# --- did it stall --------------------------------------------------------------------------


def test_work_that_arrives_and_does_not_settle_is_a_stall() -> None:
    stall = found(settled=settled(flat(1, STALL)))["stall"]
    assert stall.decides and stall.cites == ("settled", "matches")
    assert (stall.value, stall.unit, stall.threshold) == (1200.0, "s", 120.0)
    assert (stall.window.start, stall.window.end) == (at(4800), at(6000))
    assert stall.rows[0]["due"] == 40 and stall.rows[0]["landed"] == 0


def test_onset_lies_after_the_last_settlement_and_recovery_before_the_next() -> None:
    spell = found(settled=settled(flat(1, STALL)))["stall"].spell
    assert spell is not None and spell.recovery == at(6000)
    assert (spell.onset_earliest, spell.onset_latest) == (at(159 * 30), at(163 * 30))
    assert (spell.recovery_earliest, spell.recovery_latest) == (at(6000), at(6030))


def test_no_demand_is_no_stall() -> None:
    findings = found(
        settled=settled(flat(1, STALL)), matches=matched(flat(1, STALL)), coverage=[LOGGED]
    )
    assert deciding(findings) == set()
    assert findings["no-demand"].value == 1200.0
    assert not any(finding.leaves_open for finding in findings.values())


def test_an_exporter_that_is_gone_is_neither() -> None:
    gone = flat(1, slice(160, LENGTH), value=float("nan"))
    findings = found(settled=settled(gone), matches=matched(gone))
    assert {"stall", "no-demand", "silent-lanes"} & findings.keys() == set()


def test_a_family_that_never_registered_stands_at_zero() -> None:
    """No settlement at all leaves no series; its absence beside matches is no health."""
    findings = found(settled=settled(flat(1)).iloc[:, :0])
    assert findings["never-landed"].decides
    assert findings["never-landed"].value == 120


def test_a_baseline_that_stalled_itself_does_not_hide_the_rest_of_the_stall() -> None:
    """Its ratio is zero: judged by that alone, nothing would ever be due."""
    stall = found(settled=settled(flat(1, slice(0, 180))))["stall"]
    assert stall.decides and "not calm throughout" in stall.caution


def test_a_node_that_began_within_the_window_is_measured_by_what_it_did_there() -> None:
    quiet = slice(0, 140)
    stall = found(
        settled=settled(flat(1, quiet, slice(180, 220))), matches=matched(flat(1, quiet))
    )["stall"]
    assert stall.window.start == at(180 * STEP_S)


def test_a_handful_of_arrivals_is_no_measure() -> None:
    few = flat(0, slice(0, 5), value=1)
    assert "stall" not in found(settled=settled(few * 9), matches=matched(few))


def test_dry_runs_are_no_demand() -> None:
    findings = found(settled=settled(flat(0)), matches=matched(flat(0), dry=flat(3)))
    assert deciding(findings) == set()


def test_turning_to_dryrun_stops_settlement_by_design_and_is_still_told() -> None:
    dry = flat(0)
    dry[160:] = 1
    findings = found(
        settled=settled(flat(1, slice(160, LENGTH))),
        matches=matched(flat(1, slice(160, LENGTH)), dry=dry),
        mode_changes=seen({("a", "DryRun"): (dry.cumsum() == 1) * 1.0}, "instance", "to"),
    )
    assert "dry runs in mode dryrun" in findings["stall"].claim
    assert findings["stall"].cites == ("settled", "matches", "mode_changes", "status")


def test_one_node_that_stalls_is_found_beside_one_that_settles_more() -> None:
    findings = found(
        settled=seen({("a",): flat(1, STALL), ("b",): flat(9)}, "instance"),
        matches=seen({("a",): flat(1), ("b",): flat(9)}, "instance"),
    )
    assert findings["stall"].rows[0]["target"] == "a"


def test_a_near_miss_is_no_stall() -> None:
    assert "stall" not in found(settled=settled(flat(1, slice(160, 171))))
    assert "stall" in found(settled=settled(flat(1, slice(160, 172))))


def test_a_short_stall_of_much_work_is_no_stall_before_an_epoch_is_over() -> None:
    assert "stall" not in found(
        settled=settled(flat(50, slice(160, 163))), matches=matched(flat(50))
    )


def test_a_trickle_is_a_stall_too() -> None:
    trickle = flat(1, STALL)
    trickle[180] = 2
    stall = found(settled=settled(trickle))["stall"]
    assert stall.claim.startswith("Only 2 settlements landed")


def test_a_stall_that_still_goes_on_has_no_recovery() -> None:
    stall = found(settled=settled(flat(1, slice(200, LENGTH))))["stall"]
    assert stall.spell is not None and stall.spell.recovery is None
    assert stall.interval is None and stall.caution == ""


def test_a_stall_that_goes_out_of_sight_says_since_when() -> None:
    values, work = flat(1, slice(180, 210)), flat(1)
    values[210:] = work[210:] = np.nan
    stall = found(settled=settled(values), matches=matched(work))["stall"]
    assert "nothing was seen of it after 2026-03-10T11:45:00Z" in stall.caution


def test_a_stall_older_than_the_window_says_that_the_baseline_is_not_calm() -> None:
    stall = found(settled=settled(flat(1, slice(100, 180))))["stall"]
    assert "not calm throughout" in stall.caution


def test_pending_jobs_are_demand_where_matches_are_not_counted() -> None:
    findings = found(
        settled=settled(flat(1, STALL)),
        matches=matched(flat(1)).iloc[:, :0],
        sla_pending=seen({("a",): flat(4)}, "instance"),
    )
    assert findings["stall"].decides


def test_thresholds_may_be_moved_by_the_parameters() -> None:
    made = frames(settled=settled(flat(1, STALL)))
    assert not any(f.decides for f in analyse(made, Thresholds(stall_after_s=1201.0)))


# --- lanes ---------------------------------------------------------------------------------


def lanes(industrial: Values) -> pd.DataFrame:
    series = {("a", "consumer", "false"): flat(1), ("a", "Industrial", "false"): industrial}
    return seen(series, "instance", "lane", "dry_run")


def test_a_stalled_lane_is_silent_and_not_slow() -> None:
    findings = found(
        matches=lanes(flat(1, STALL)),
        settled=settled(flat(2, STALL, value=1)),
        log_lines=logs((170, "lane starvation", {"lane": "industrial", "waited": 600})),
        match_latency_count=seen({("a", "Industrial"): flat(1, STALL)}, "instance", "lane"),
        match_latency_sum=seen({("a", "Industrial"): flat(0.04, STALL)}, "instance", "lane"),
        coverage=[LOGGED],
    )
    lane = findings["silent-lanes"]
    assert lane.decides and (lane.value, lane.threshold) == (600.0, 120.0)
    (row,) = lane.rows
    assert (row["lane"], row["ms_before"], row["ms_meanwhile"]) == ("industrial", 40.0, None)


def test_a_lane_that_nobody_used_is_told_by_logs_that_say_nothing_of_waiting() -> None:
    findings = found(
        matches=lanes(flat(1, STALL)), settled=settled(flat(2, STALL, value=1)), coverage=[LOGGED]
    )
    lane = findings["silent-lanes"]
    assert not lane.decides and not lane.leaves_open


def test_a_silent_lane_without_logs_leaves_the_question_open() -> None:
    lane = found(matches=lanes(flat(1, STALL)), settled=settled(flat(2, STALL, value=1)))[
        "silent-lanes"
    ]
    assert lane.leaves_open and not lane.decides
    verdict, reasons = judge([lane], [], [])
    assert verdict is Verdict.INCONCLUSIVE and reasons == (lane.claim,)


def test_a_starving_lane_that_is_not_named_leaves_the_question_open() -> None:
    """The log store keeps the message and drops the fields."""
    lane = found(
        matches=lanes(flat(1, STALL)),
        settled=settled(flat(2, STALL, value=1)),
        log_lines=logs((170, "lane starvation", {})),
        coverage=[LOGGED],
    )["silent-lanes"]
    assert lane.leaves_open and not lane.decides


def test_a_lane_that_nobody_had_used_yet_has_not_fallen_silent() -> None:
    findings = found(
        matches=lanes(flat(1, slice(0, 180))), settled=settled(flat(2, slice(0, 180), value=1))
    )
    assert "silent-lanes" not in findings


def test_jobs_that_wait_on_another_node_say_nothing_of_this_one() -> None:
    other = {("b-host:1", "industrial", "false"): flat(1)}
    series = {("a-host:1", "industrial", "false"): flat(1, STALL), **other}
    lines = logs((170, "lane starvation", {"lane": "industrial", "waited": 600}))
    lane = found(
        matches=seen(series, "instance", "lane", "dry_run"),
        settled=settled(flat(2, STALL, value=1), "a-host:1"),
        log_lines=lines.assign(source="b-host-logs"),
        coverage=[LOGGED],
    )["silent-lanes"]
    assert not lane.decides and lane.rows[0]["longest_wait_s"] is None


def test_a_job_that_the_market_lists_as_starving_counts_like_a_line() -> None:
    starving = {"lane": "industrial", "job_id": "j", "waited_for_secs": 900,
                "updated_at": int(at(5000).timestamp())}  # fmt: skip
    findings = found(
        matches=lanes(flat(1, STALL)),
        settled=settled(flat(2, STALL, value=1)),
        market=answer("market", {"lane_starvation": [starving, None, {"updated_at": 1 << 80}]}),
    )
    assert findings["silent-lanes"].value == 900


# --- what else happened --------------------------------------------------------------------


def test_a_deadline_of_zero_is_nothing_pending_and_not_overdue() -> None:
    deadline = flat(0)
    findings = found(
        sla_pending=seen({("a",): flat(0)}, "instance"),
        next_deadline=seen({("a",): deadline}, "instance"),
    )
    assert findings["backlog"].rows[0]["overdue_s"] == 0
    deadline[150:160] = at(4000).timestamp()
    findings = found(
        sla_pending=seen({("a",): flat(2)}, "instance"),
        next_deadline=seen({("a",): deadline}, "instance"),
    )
    assert findings["backlog"].rows[0]["overdue_s"] == 160 * 30 - 4000


def test_seeds_are_no_providers() -> None:
    findings = found(
        sla_violations=seen(
            {("a", "__"): flat(0), ("a", ""): flat(1), ("a", "p"): flat(1)},
            "instance",
            "provider",
        )
    )
    assert [row["provider"] for row in findings["violations"].rows] == ["p"]


def test_failures_are_told_by_reason() -> None:
    fails = {("a", "spend"): flat(0, STALL, value=2), ("a", "penalize"): flat(0, STALL, value=1)}
    findings = found(settle_failed=seen(fails, "instance", "reason"))
    assert [(row["reason"], row["count"]) for row in findings["failed"].rows] == [
        ("spend", 80),
        ("penalize", 40),
    ]
    assert "refund" in findings["failed"].caution


def test_a_change_of_mode_is_labelled_to_and_real_is_never_counted() -> None:
    change = flat(0)
    change[165] = 1
    findings = found(
        settled=settled(flat(1, STALL)),
        mode_changes=seen({("a", "armed"): change, ("a", "__"): flat(1)}, "instance", "to"),
        status=answer("status", {"mode": "real"}),
    )
    modes = findings["modes"]
    assert [(row["to"], row["after_onset_s"]) for row in modes.rows] == [("armed", 150.0)]
    assert "mode was real" in modes.claim and "`real` is never counted" in modes.caution


def test_what_could_not_be_kept_is_told_by_metric_and_by_line() -> None:
    findings = found(
        receipt_fails=seen({("a",): flat(0, STALL, value=1)}, "instance"),
        log_lines=logs(
            (170, "receipt insert failed: <b>disk</b>", {}),
            (171, "persist settlement state", {}),
            (172, "match", {}),
            (20, "persist settlement state", {}),  # long before
        ),
    )
    rows = [(row["what"], row["count"]) for row in findings["not-kept"].rows]
    assert rows == [
        ("receipts counted", 40),
        ("log: persist settlement state", 1),
        ("log: receipt insert failed", 1),
    ]


@pytest.mark.parametrize("name", ["burns", "burns_ct"])
def test_burns_that_stop_while_violations_go_on_are_told_under_either_name(name: str) -> None:
    violations = seen({("a", "p"): flat(1)}, "instance", "provider")
    findings = found(
        sla_violations=violations,
        **{name: seen({("a",): flat(25, slice(180, LENGTH))}, "instance")},
    )
    assert findings["burns-stopped"].value == 60
    calm = found(sla_violations=violations, **{name: seen({("a",): flat(25)}, "instance")})
    assert "burns-stopped" not in calm


def test_a_build_that_renames_its_burns_in_between_has_not_stopped_burning() -> None:
    findings = found(
        sla_violations=seen({("a", "p"): flat(1)}, "instance", "provider"),
        burns_ct=seen({("a",): flat(25, slice(180, LENGTH))}, "instance"),
        burns=seen({("a",): flat(25, slice(0, 180))}, "instance"),
    )
    assert "burns-stopped" not in findings


def test_that_the_mismatch_metric_is_silent_proves_nothing_and_is_said() -> None:
    finding = found()["never-written"]
    assert "proves nothing" in finding.claim and not finding.decides
    rose = found(audit_mismatch=seen({("a",): flat(1)}, "instance"))["never-written"]
    assert rose.claim.startswith("settle_audit_mismatch_total rose by 120")


# --- the ledger ----------------------------------------------------------------------------


def asked(state: NodeState, generation: str = "B", **changed: Any) -> dict[str, pd.DataFrame]:
    """The answers of a node as the kind sees them; `changed` replaces values."""
    methods = {
        "roots_before": ("recent_roots", {"n": 32}),
        "balances": ("provider_balances", {}),
        "audit": ("audit", {}),
        "roots_after": ("recent_roots", {"n": 32}),
        "sla_history": ("sla_history", {"limit": 256}),
    }
    tables = {}
    for name, (method, params) in methods.items():
        method = f"compute_market.{method}"
        value, _ = theblock.normalise(method, ANSWERS[method](params, state, generation))
        tables[name] = answer(name, changed.get(name, value))
    if generation == "A":
        tables["sla_history"] = answer("sla_history", {"code": -32601}, state="unsupported")
    return tables


def row(sequence: int, entity: str, memo: str, delta: int, balance: int) -> dict[str, Any]:
    ts = int(at(4900 + sequence).timestamp())
    return {"sequence": sequence, "timestamp": ts, "entity": entity, "memo": memo,
            "delta": delta, "balance": balance}  # fmt: skip


AUDIT = [
    row(0, "p", "accrue", 900, 900),
    row(1, "q", "sla_violation_deadline_missed_failed", 0, 0),
    row(2, "b", "sla_consumer_refund", 5, 5),
    row(3, "p", "sla_completed", 0, 900),
]


def test_sla_resolutions_grow_the_audit_log_and_not_the_metric() -> None:
    state = NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)
    grew = found(settled=settled(flat(1, STALL)), **asked(state))["audit-grew"]
    memos = {memo["memo"]: memo["raises_the_metric"] for memo in grew.rows}
    assert memos == {
        "accrue": True,
        "sla_completed": False,
        "sla_consumer_refund": False,
        "sla_violation_deadline_missed_failed": False,
    }


def test_a_settlement_in_the_audit_log_within_a_stall_is_pointed_out() -> None:
    grew = found(
        settled=settled(flat(1, STALL)),
        **asked(NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)),
    )["audit-grew"]
    assert "where it certainly stood still: 1" in grew.claim


def test_a_sound_ledger_decides_nothing() -> None:
    findings = found(**asked(NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)))
    assert deciding(findings) == set()
    assert findings["audit-adds-up"].value == 0
    assert findings["root"].claim.startswith("The root computed from 2 balances is the newest")


def test_refunds_after_a_refused_debit_are_named_with_their_amount() -> None:
    finding = found(**asked(NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)))[
        "unbacked-refunds"
    ]
    assert (finding.value, finding.unit, finding.decides) == (5, "ledger units", False)
    assert finding.rows[0]["buyer"] == "b" and finding.rows[0]["created"] == 5


def test_money_from_nothing_beyond_a_share_of_all_money_decides() -> None:
    findings = found(**asked(NodeState(balances={"p": 90, "b": 5}, audit=AUDIT)))
    assert findings["unbacked-refunds"].decides


def test_an_audit_log_that_does_not_add_up_decides() -> None:
    wrong = [*AUDIT, row(4, "p", "accrue", 1, 950)]
    findings = found(**asked(NodeState(balances={"p": 950, "b": 5}, audit=wrong)))
    assert findings["audit-broken"].decides
    assert findings["audit-broken"].rows[0]["expected"] == 901


def test_lost_entries_are_said_and_not_called_wrong() -> None:
    lost = [*AUDIT, row(9, "p", "accrue", 1, 950)]
    findings = found(**asked(NodeState(balances={"p": 950, "b": 5}, audit=lost)))
    assert "5 entries are missing from the sequence" in findings["audit-adds-up"].claim
    assert findings["audit-adds-up"].rows[0]["what"] == "5 entries missing"


def test_a_last_balance_that_is_not_the_ledgers_decides() -> None:
    state = NodeState(balances={"p": 901, "b": 5}, audit=AUDIT)
    findings = found(**asked(state))
    assert findings["audit-broken"].rows[0]["what"] == "last balance is not the ledger's"


def test_balances_without_their_root_decide_only_when_the_root_stood_still() -> None:
    state = NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)
    one, two = ({"roots": [root_of({"x": n})]} for n in (1, 2))
    broken = found(**asked(state, roots_before=one, roots_after=one))
    assert broken["root-broken"].decides
    moved = found(**asked(state, roots_before=one, roots_after=two))
    assert not moved["root"].decides and "could not be judged" in moved["root"].claim


def test_a_stale_root_needs_two_captures_far_apart() -> None:
    state = NodeState(balances={"p": 900, "b": 5}, audit=[*AUDIT])
    tables = asked(state)
    assert "two captures 600 s apart" in found(**tables)["root"].caution
    tables["roots_before"]["ts"] = pd.Timestamp(at(4000))
    stale = found(**tables)["root-stale"]
    assert stale.decides and stale.value == 4000
    quiet = asked(NodeState(balances={"p": 900}, audit=[]))
    quiet["roots_before"]["ts"] = pd.Timestamp(at(4000))
    assert "root-stale" not in found(**quiet)


def test_what_a_later_capture_lost_to_the_ring_is_taken_from_an_earlier_one() -> None:
    state = NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)
    tables = asked(state)
    early, late = answer("audit", AUDIT[:2]), answer("audit", AUDIT[3:])
    early["ts"] = pd.Timestamp(at(7000))
    tables["audit"] = pd.concat([early, late], ignore_index=True)
    assert "1 entry is missing" in found(**tables)["audit-adds-up"].claim


def test_roots_are_dated_step_by_step_and_those_made_later_are_left_out() -> None:
    late = {**row(4, "p", "accrue", 1, 901), "timestamp": int(at(9000).timestamp())}
    rings = [{"p": 900}, {"p": 900, "b": 5}, {"p": 901, "b": 5}]
    state = NodeState(balances={"p": 901, "b": 5}, audit=[*AUDIT, late])
    state.roots = [root_of(held) for held in reversed(rings)]
    dated = roots_dated(frames(**asked(state)))
    assert dated.sum() == 2 and dated.loc[at(4890)] == 2
    assert dated.isna().sum() == 163


def test_two_nodes_are_two_ledgers_each_with_its_name() -> None:
    one = asked(NodeState(balances={"p": 900, "b": 5}, audit=AUDIT))
    two = asked(NodeState(balances={"p": 901, "b": 5}, audit=AUDIT))
    both = {
        name: pd.concat([table, two[name].assign(source="other")], ignore_index=True)
        for name, table in one.items()
    }
    findings = found(**both)
    assert not findings["audit-adds-up-node"].decides
    assert findings["audit-broken-other"].claim.startswith("other: ")


@pytest.mark.parametrize("value", [None, 3, [], {}, {"roots": 3}, {"providers": 7}, [[]], "x"])
def test_answers_of_any_form_break_nothing(value: Any) -> None:
    names = ("roots_before", "balances", "audit", "roots_after", "sla_history", "market", "status")
    findings = found(**{name: answer(name, value) for name in names})
    assert deciding(findings) == set()


def test_both_generations_of_a_ledger_give_the_same_findings() -> None:
    state = NodeState(balances={"p": 900, "b": 5}, audit=AUDIT)
    told = []
    for generation in ("A", "B"):
        findings = found(**asked(state, generation))
        assert "sla-history" not in findings
        findings["root"] = findings["root"].__class__(
            **{**vars(findings["root"]), "rows": ()}  # a root of two balances is another hash
        )
        told.append([finding.to_json() for finding in findings.values()])
    assert told[0] == told[1]


def test_nothing_at_all_decides_nothing() -> None:
    made = frames_of(KIND.queries, {"settled": settled(flat(1)).iloc[:, :0]}, STEP_S, CALM)
    assert [finding.id for finding in analyse(made, Thresholds())] == ["never-written"]


def test_hostile_labels_are_data() -> None:
    hostile = "<script>alert(1)</script>\x1b[2J\u202e"
    findings = found(
        settled=settled(flat(1, STALL), hostile),
        matches=seen({(hostile, hostile, "false"): flat(1)}, "instance", "lane", "dry_run"),
        settle_failed=seen({(hostile, hostile): flat(1)}, "instance", "reason"),
        sla_violations=seen({(hostile, hostile): flat(1)}, "instance", "provider"),
    )
    assert findings["stall"].rows[0]["target"] == hostile
