"""Settlement stall: work keeps arriving but no settlement lands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from tbforensics.chain import bookkeeping
from tbforensics.chain.lanes import Silence, silences
from tbforensics.chain.settlement import (
    Flow,
    Stall,
    answers,
    between,
    by_target,
    counts,
    flows,
    mode_changes,
    quiet_burns,
    spell_of,
    stalls,
    step_of,
    total,
)
from tbforensics.model import Finding, Frames, Json, Kind, Query, Shape, Window, utc_text

_WITNESSES = ("settled", "matches", "sla_pending")
_MINUTE_S = 60.0
_MOST_ROWS = 12


@dataclass(frozen=True)
class Thresholds:
    """What makes it an incident. A stall crosses the first three."""

    stall_after_s: float = 120.0  # about one epoch: 120 blocks near one second each
    missing_settlements: float = 12.0  # due and not landed: by chance once in 160,000 due
    settled_share: float = 0.1  # of what was due; a trickle below it is a stall too
    starved_after_s: float = 120.0  # a job that waits longer than an epoch is not merely early
    quiet_violations: float = 5.0  # steps with violations and no burn; one burn may come late
    unbacked_share: float = 0.01  # of all balances; beyond it every holder is diluted
    root_stale_after_s: float = 600.0  # five epochs with one root, while balances changed


def analyse(frames: Frames, thresholds: Thresholds) -> list[Finding]:
    """Did it stall, where and since when; what else happened; does the ledger add up."""
    flow = flows(frames)
    findings = list(_stalled(frames, flow, thresholds))
    stall = next((finding for finding in findings if finding.spell), None)
    during = stall.window if stall else frames.window
    findings += _paused(frames, flow, during, thresholds)
    findings += _lanes(frames, during, thresholds)
    findings += _backlog(frames, during)
    findings += _failed(frames, during)
    findings += _modes(frames, during, stall)
    findings += _unkept(frames, during)
    findings += _violated(frames, during)
    findings += _unburnt(frames, thresholds)
    findings += bookkeeping.findings(
        frames,
        during,
        stalled=_surely(frames, stall),
        unbacked_share=thresholds.unbacked_share,
        root_stale_after_s=thresholds.root_stale_after_s,
    )
    findings += _never_written(frames, during)
    return findings


# --- did it stall --------------------------------------------------------------------------


def _stalled(frames: Frames, flow: Sequence[Flow], thresholds: Thresholds) -> Iterator[Finding]:
    found = [each for one in flow for each in _spells(frames, one, one.due, thresholds)]
    dry = False
    if not found and _rehearses(frames):
        every = [each for one in flow for each in _spells(frames, one, one.due_of_all, thresholds)]
        found = [each for each in every if each.matches == 0]
        dry = bool(found)
    if found:
        yield _stall(frames, found, dry, thresholds)
        return
    for one in flow:
        arrived = float(between(one.matched, frames.window).sum())
        if one.settled.sum() == 0 and arrived >= thresholds.missing_settlements:
            yield Finding(
                claim=f"No settlement ever landed on {one.target}, neither in the window nor in "
                f"the baseline, while {arrived:,.0f} matches arrived",
                id="never-landed",
                value=arrived,
                unit="matches",
                threshold=thresholds.missing_settlements,
                window=frames.window,
                decides=True,
                cites=("settled", "matches"),
                caution="an onset needs a time in which settlements landed; and a family that is "
                "dropped before it is stored looks the same",
            )


def _spells(frames: Frames, flow: Flow, due: pd.Series, thresholds: Thresholds) -> list[Stall]:
    return stalls(
        frames,
        flow,
        due,
        share=thresholds.settled_share,
        missing=thresholds.missing_settlements,
        at_least_s=thresholds.stall_after_s,
    )


def _rehearses(frames: Frames) -> bool:
    """Whether the node was, or is, in the mode in which nothing is settled by design."""
    now = [value.get("mode") for _, value in answers(frames, "status") if isinstance(value, dict)]
    return "dryrun" in now or any(to == "dryrun" for _, _, to in mode_changes(frames))


def _stall(frames: Frames, found: list[Stall], dry: bool, thresholds: Thresholds) -> Finding:
    worst = max(found, key=lambda each: each.plateau.missing)
    index, plateau = worst.flow.settled.index, worst.plateau
    spell = spell_of(frames, index, plateau)
    lasted = None
    if spell.recovery_earliest and spell.recovery_latest:
        lasted = (
            max(0.0, (spell.recovery_earliest - spell.onset_latest).total_seconds()),
            (spell.recovery_latest - spell.onset_earliest).total_seconds(),
        )
    landed = f"Only {plateau.came:,.0f} settlements" if plateau.came else "No settlement"
    arrived = f"{worst.matches:,.0f} matches arrived"
    if dry:
        arrived = f"all {worst.dry_runs:,.0f} matches were dry runs in mode dryrun"
    cautions = []
    rest = worst.flow.settled.iloc[plateau.last + 1 :]
    if len(rest) and rest.isna().all():
        cautions.append(f"nothing was seen of it after {utc_text(rest.index[0])}")
    if spell.onset < frames.window.start:
        cautions.append("it began before the window, so the baseline is not calm throughout")
    return Finding(
        claim=f"{landed} landed on {worst.flow.target} for {worst.window.seconds / _MINUTE_S:.0f} "
        f"min while {arrived}; about {plateau.due:,.0f} settlements were due",
        id="stall",
        value=worst.window.seconds,
        unit="s",
        threshold=thresholds.stall_after_s,
        interval=lasted,
        window=worst.window,
        spell=spell,
        decides=True,
        cites=("settled", "matches", *(("mode_changes", "status") if dry else ())),
        rows=tuple(_stall_row(each) for each in found[:_MOST_ROWS]),
        caution="; ".join(cautions),
    )


def _surely(frames: Frames, stall: Finding | None) -> Window | None:
    """The inside of a stall: a step at either edge may still hold a settlement."""
    if stall is None or stall.spell is None:
        return None
    start = stall.spell.onset_latest
    end = (stall.spell.recovery_earliest or stall.window.end) - step_of(frames)
    return Window(start, end) if start < end else None


def _stall_row(stall: Stall) -> dict[str, Json]:
    return {
        "target": stall.flow.target,
        "from": utc_text(stall.window.start),
        "to": utc_text(stall.window.end) if stall.plateau.after is not None else None,
        "matches": stall.matches,
        "dry_runs": stall.dry_runs,
        "due": stall.due_of_matches,
        "landed": stall.plateau.came,
    }


def _paused(
    frames: Frames, flow: Sequence[Flow], during: Window, thresholds: Thresholds
) -> Iterator[Finding]:
    """Settlements were missing by the clock, yet as good as nothing had arrived to be settled."""
    pauses = [
        each
        for one in flow
        for each in _spells(frames, one, one.due.where(one.due.isna(), one.usual), thresholds)
        if each.due_of_matches < thresholds.missing_settlements
        and one.settled.iloc[: each.plateau.first].sum() > 0
    ]
    if pauses:
        longest = max(pauses, key=lambda each: each.window.seconds)
        many = f"{len(pauses)} pauses" if len(pauses) > 1 else "One pause"
        yield Finding(
            claim=f"{many} without demand, no stall: for "
            f"{longest.window.seconds / _MINUTE_S:.0f} min on {longest.flow.target} about "
            f"{longest.due_of_matches:,.0f} settlements were due for what arrived, where "
            f"{longest.plateau.due:,.0f} are usual",
            id="no-demand",
            value=longest.window.seconds,
            unit="s",
            window=during,
            cites=("settled", "matches"),
            rows=tuple(_stall_row(each) for each in pauses[:_MOST_ROWS]),
        )


def _lanes(frames: Frames, during: Window, thresholds: Thresholds) -> Iterator[Finding]:
    """Only lanes that match are counted, so a lane that stalls falls silent and is never slow.

    No match and no waiting job is no demand; no match while jobs wait is a stalled lane; and
    where no log was seen nobody can tell.
    """
    silent = silences(
        frames,
        share=thresholds.settled_share,
        missing=thresholds.missing_settlements,
        at_least_s=thresholds.stall_after_s,
    )
    if not silent:
        return
    starved = [s for s in silent if (s.longest_wait_s or 0.0) >= thresholds.starved_after_s]
    logged = any(row.query == "log_lines" and row.enough for row in frames.coverage)
    worst = max(starved or silent, key=lambda s: (s.longest_wait_s or 0.0, s.window.seconds))
    claim = (
        f"Lane {worst.lane} matched next to nothing on {worst.target} for "
        f"{worst.window.seconds / _MINUTE_S:.0f} min"
    )
    known = bool(starved) or (logged and not any(s.unnamed for s in silent))
    if starved:
        claim += f" while a job waited in it for {worst.longest_wait_s:,.0f} s"
    elif known:
        claim += ", and no log line tells of a job that waited: nobody used it"
    else:
        claim += ", and nothing seen tells a lane that nobody used from one that stalled"
    yield Finding(
        claim=claim,
        id="silent-lanes",
        value=worst.longest_wait_s if starved and worst.longest_wait_s else worst.window.seconds,
        unit="s",
        threshold=thresholds.starved_after_s if starved else None,
        window=during,
        decides=bool(starved),
        leaves_open=not known,
        cites=("matches", "match_latency_sum", "match_latency_count", "market", "log_lines"),
        rows=tuple(_silence_row(silence) for silence in silent[:_MOST_ROWS]),
        caution="a lane that matches nothing has no latency: it is silent, not slow",
    )


def _silence_row(silence: Silence) -> dict[str, Json]:
    before_ms, within_ms = silence.latencies_ms
    return {
        "lane": silence.lane,
        "target": silence.target,
        "from": utc_text(silence.window.start),
        "to": utc_text(silence.window.end) if silence.ended else None,
        "matches": silence.came,
        "due": silence.due,
        "longest_wait_s": silence.longest_wait_s,
        "told": silence.starved + silence.unnamed,
        "ms_before": before_ms,
        "ms_meanwhile": within_ms,
    }


# --- what else happened --------------------------------------------------------------------


def _backlog(frames: Frames, during: Window) -> Iterator[Finding]:
    pending = total(by_target(frames["sla_pending"]))
    if between(pending, during).notna().sum() == 0:
        return
    calm, peak = between(pending, frames.baseline).max(), between(pending, during).max()
    overdue_s = 0.0
    for deadline in by_target(frames["next_deadline"]).values():
        due = between(deadline, during)
        due = due[due > 0]  # 0 says that nothing is pending
        late_s = [(at + step_of(frames)).timestamp() - when for at, when in due.items()]
        overdue_s = max(overdue_s, *late_s, 0.0)
    late = f"; the next deadline was up to {overdue_s:,.0f} s overdue" if overdue_s else ""
    yield Finding(
        claim=f"Up to {peak:,.0f} jobs had a pending SLA, against {calm:,.0f} at most before{late}",
        id="backlog",
        value=float(peak),
        unit="jobs",
        window=during,
        cites=("sla_pending", "next_deadline"),
        rows=({"most_pending": float(peak), "most_before": float(calm), "overdue_s": overdue_s},),
        caution="a next deadline of 0 says that nothing is pending, not that something is due now",
    )


def _failed(frames: Frames, during: Window) -> Iterator[Finding]:
    rows = counts(frames, "settle_failed", "reason", during)
    if rows:
        failures = sum(row["count"] for row in rows)
        yield Finding(
            claim=f"{failures:,.0f} settlements failed, most by {rows[0]['reason']}",
            id="failed",
            value=failures,
            unit="failures",
            window=during,
            cites=("settle_failed",),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="a refund that fails is never counted, whatever the documents say",
        )


def _modes(frames: Frames, during: Window, stall: Finding | None) -> Iterator[Finding]:
    onset = stall.spell.onset if stall and stall.spell else None
    rows: list[dict[str, Json]] = [
        {
            "time": utc_text(at),
            "target": target,
            "to": to,
            "after_onset_s": (at - onset).total_seconds() if onset else None,
        }
        for at, target, to in mode_changes(frames)
    ]
    now = [value.get("mode") for _, value in answers(frames, "status") if isinstance(value, dict)]
    if rows or now:
        said = f"{len(rows)} change{'' if len(rows) == 1 else 's'} of mode"
        yield Finding(
            claim=f"{said} in baseline and window; when it was asked, the node's mode was "
            f"{now[-1] if now else 'not told'}",
            id="modes",
            value=float(len(rows)),
            unit="changes",
            window=during,
            cites=("mode_changes", "status"),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="a change to `real` is never counted; and near in time is not a cause",
        )


_UNKEPT = r"(receipt insert failed|persist settlement state|append compute anchor audit)"


def _unkept(frames: Frames, during: Window) -> Iterator[Finding]:
    """Receipts, states and anchors that could not be written, by metric and by log line."""
    rows: list[dict[str, Json]] = []
    for target, column in by_target(frames["receipt_fails"]).items():
        if count := float(between(column, during).sum()):
            rows.append({"what": "receipts counted", "where": target, "count": count})
    counted = sum(row["count"] for row in rows)
    lines = frames.during("log_lines", during)
    what = lines["message"].fillna("").str.extract(_UNKEPT, flags=re.IGNORECASE)[0].str.lower()
    for (message, source), group in lines.groupby([what, lines["source"]], sort=True):
        rows.append({"what": f"log: {message}", "where": source, "count": float(len(group))})
    if rows:
        logged = sum(row["count"] for row in rows) - counted
        yield Finding(
            claim=f"{counted:,.0f} receipts could not be kept; {logged:,.0f} log lines say that "
            "something of the settlement could not be written",
            id="not-kept",
            value=counted,
            unit="receipts",
            window=during,
            cites=("receipt_fails", "log_lines"),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="a node writes only 1 in 100 lines above 100 a second, so lines undercount",
        )


def _violated(frames: Frames, during: Window) -> Iterator[Finding]:
    rows = counts(frames, "sla_violations", "provider", during)
    slashed = float(between(total(by_target(frames["automated_slashes"])), during).sum())
    if rows or slashed:
        violations = sum(row["count"] for row in rows)
        yield Finding(
            claim=f"{violations:,.0f} SLA violations were counted"
            + (f", most by {rows[0]['provider']}" if rows else "")
            + f"; {slashed:,.0f} slashes were automatic",
            id="violations",
            value=float(violations),
            unit="violations",
            window=during,
            cites=("sla_violations", "automated_slashes"),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="a violation is counted only when the provider could be debited; refused "
            "debits stand in the audit log alone",
        )


def _unburnt(frames: Frames, thresholds: Thresholds) -> Iterator[Finding]:
    """Burns that stop while violations go on, although each counted one was debited."""
    quiet = quiet_burns(frames, missing=thresholds.quiet_violations)
    if quiet:
        target, window, violations = max(quiet, key=lambda each: each[2])
        yield Finding(
            claim=f"Nothing was burned on {target} for {window.seconds / _MINUTE_S:.0f} min while "
            f"{violations:,.0f} violations were counted",
            id="burns-stopped",
            value=violations,
            unit="violations",
            threshold=thresholds.quiet_violations,
            window=window,
            cites=("sla_violations", "burns", "burns_ct"),
        )


def _never_written(frames: Frames, during: Window) -> Iterator[Finding]:
    """No build writes `settle_audit_mismatch_total`, so only its presence would say anything."""
    seen = total(by_target(frames["audit_mismatch"]))
    count = float(between(seen, during).sum())
    yield Finding(
        claim=f"settle_audit_mismatch_total rose by {count:,.0f}, although no known build writes it"
        if count
        else "That settle_audit_mismatch_total does not rise proves nothing: no build writes it",
        id="never-written",
        value=count,
        unit="mismatches",
        window=during,
        cites=("audit_mismatch",),
        caution="the audit log is checked by its own arithmetic instead",
    )


# --- what is asked -------------------------------------------------------------------------


def _counter(name: str, text: str, unit: str, why: str, **more: Json) -> Query:
    more = {"witnesses": tuple(w for w in _WITNESSES if w != name), **more}
    return Query(name, "prometheus", text, unit, Shape.COUNTER, why=why, **more)


def _state(name: str, method: str, why: str, **params: Json) -> Query:
    return Query(name, "jsonrpc", method, shape=Shape.ROWS, params=params, why=why)


QUERIES: Sequence[Query] = (
    _counter("settled", "settle_applied_total", "settlements",
             "accruals, spends, refunds and penalties; no SLA resolutions", required=True),
    _counter("matches", "matches_total", "matches", "work that arrives", required=True),
    Query("sla_pending", "prometheus", "compute_sla_pending_total", "jobs",
          why="work that waits to be resolved; there from the start, so a witness of the others"),
    Query("next_deadline", "prometheus", "compute_sla_next_deadline_ts", "s",
          why="unix seconds; 0 when nothing is pending"),
    _counter("blocks", "block_mined_total", "blocks",
             "a live node goes on counting these: tells a quiet market from a frozen exporter"),
    _counter("settle_failed", "settle_failed_total", "failures", "by reason: spend, penalize"),
    _counter("mode_changes", "settle_mode_change_total", "changes", "the label is `to`"),
    _counter("receipt_fails", "receipt_persist_fail_total", "receipts", "a usual cause"),
    _counter("match_latency_sum", "match_loop_latency_seconds_sum", "s", "by lane"),
    _counter("match_latency_count", "match_loop_latency_seconds_count", "matches", "by lane"),
    _counter("sla_violations", "compute_sla_violations_total", "violations",
             "by provider; only those that were debited"),
    _counter("automated_slashes", "compute_sla_automated_slash_total", "slashes",
             "penalties without a person"),
    _counter("burns", "slashing_burn_total", "ledger units", "what penalties burned"),
    _counter("burns_ct", "slashing_burn_ct_total", "ledger units", "burns, as older builds say it"),
    _counter("audit_mismatch", "settle_audit_mismatch_total", "mismatches",
             "no build writes it: its absence proves nothing", witnesses=()),
    # One go: the balances are judged only by roots that agree before and after them.
    _state("roots_before", "compute_market.recent_roots", "the root before the balances", n=32),
    _state("balances", "compute_market.provider_balances", "what the root is made of"),
    _state("audit", "compute_market.audit", "the last 256 changes of any balance"),
    _state("roots_after", "compute_market.recent_roots", "the root after the balances", n=32),
    _state("sla_history", "compute_market.sla_history", "newer builds only", limit=256),
    _state("market", "compute_market.stats", "lanes that starve at the moment of asking"),
    _state("status", "settlement_status", "the mode at the moment of asking"),
    Query("log_lines", "logs", "", "lines", Shape.ROWS, why="what the node said"),
)  # fmt: skip

KIND = Kind(
    title="Settlement stall",
    question="Did settlements stop landing while work kept arriving, where, since when and why?",
    queries=tuple(QUERIES),
    thresholds=Thresholds,
    analyse=analyse,
    onset="stall",
)
