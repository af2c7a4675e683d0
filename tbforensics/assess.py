"""Frames, coverage and doubts -> the verdict, with the timeline and the timing audit.

confirmed     a finding decides, and nothing casts doubt on what was seen
cleared       no finding decides or leaves its question open, every required query is covered,
              nothing limits silence
inconclusive  anything else, with each reason
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import pandas as pd

from tbforensics.alerts import claims as alert_rules
from tbforensics.alerts.watch import Watched
from tbforensics.frames import labelled
from tbforensics.model import (
    Assessment,
    Coverage,
    Doubt,
    Finding,
    Frames,
    Incident,
    Json,
    Kind,
    Moment,
    Verdict,
    utc_text,
)
from tbforensics.ordering import moved_first

_DIGITS = 9  # of a float in findings.json: what is left is the noise of summing in another order
_MOST_ALERTS = 40


def assess(
    incident: Incident, kind: Kind, frames: Frames, watched: Sequence[Watched] = ()
) -> Assessment:
    """Pure: the same frames and replayed alert rules give the same assessment."""
    thresholds = kind.thresholds(**incident.thresholds)
    findings = tuple(kind.analyse(frames, thresholds))
    if first := moved_first(frames, kind):
        findings = (*findings, first)
    frames = replace(frames, doubts=(*frames.doubts, *kind.doubts(frames, thresholds)))
    verdict, reasons = judge(findings, frames.coverage, frames.doubts)
    alerts, replayed = list(_alerts(frames)), alert_rules.moments(watched, incident.window)
    timeline = sorted(
        [*_found(findings), *alerts, *replayed, *_snapshots(frames, kind), *_noted(incident)],
        key=lambda moment: (moment.time, moment.origin, moment.text),
    )
    onset = next((f for f in findings if f.id == kind.onset), None)
    would_fire = alert_rules.timing(watched, incident.window)
    findings = (*findings, *alert_rules.findings(watched, incident.window, onset))
    return Assessment(
        verdict=verdict,
        reasons=reasons,
        findings=findings,
        coverage=frames.coverage,
        doubts=frames.doubts,
        timeline=tuple(timeline),
        timing=tuple(_timing(onset, alerts, would_fire, incident)),
        unknowns=(*_unknowns(kind, frames, findings, onset), *alert_rules.unknowns(watched)),
    )


def judge(
    findings: Sequence[Finding], coverage: Sequence[Coverage], doubts: Sequence[Doubt]
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict, and every reason for it in words."""
    deciding = [finding for finding in findings if finding.decides]
    distrust = [doubt for doubt in doubts if doubt.limits == "confirmed"]
    if deciding and not distrust:
        return Verdict.CONFIRMED, tuple(finding.claim for finding in deciding)
    if deciding:
        return Verdict.INCONCLUSIVE, tuple(
            f"what was seen cannot be trusted: {doubt.what}, {doubt.detail}" for doubt in distrust
        )
    missing = [
        f"{row.query} is {row.state}"
        + (f" at {row.source}" if row.source else "")
        + (f": {row.detail}" if row.detail else "")
        for row in _required(coverage)
    ]
    limits = [f"{d.what}: {d.detail}" for d in doubts if d.limits]
    left_open = [finding.claim for finding in findings if finding.leaves_open]
    if missing or limits or left_open:
        return Verdict.INCONCLUSIVE, (*missing, *limits, *left_open)
    return Verdict.CLEARED, ("no threshold was crossed, and every required query was covered",)


def _required(coverage: Sequence[Coverage]) -> Iterator[Coverage]:
    """Required queries that no source covers, and sources that failed to answer one.

    One source that covers is enough beside others that have no such series; of a source that
    failed, nobody knows what it has.
    """
    covered = {row.query for row in coverage if row.enough}
    return (
        row
        for row in coverage
        if row.required and (row.query not in covered or row.state == "failed")
    )


# --- timeline ------------------------------------------------------------------------------


def _found(findings: Sequence[Finding]) -> Iterator[Moment]:
    spells = {finding.window for finding in findings if finding.spell}
    for finding in findings:
        spell = finding.spell
        if spell is None:
            if finding.window not in spells:  # else it only explains a moment that stands already
                yield Moment(finding.window.start, "finding", finding.claim, finding.id)
            continue
        width_s = (spell.onset_latest - spell.onset_earliest).total_seconds()
        yield Moment(spell.onset, "finding", finding.claim, finding.id, width_s / 2)
        if spell.recovery and spell.recovery_earliest and spell.recovery_latest:
            text = f"recovered from: {finding.claim}"
            width_s = (spell.recovery_latest - spell.recovery_earliest).total_seconds()
            yield Moment(spell.recovery, "finding", text, finding.id, width_s / 2)


def _alerts(frames: Frames) -> Iterator[Moment]:
    """When each alert began to be pending or firing within baseline and window."""
    table = frames.tables.get("ALERTS")
    if table is None or table.empty:
        return
    found = []
    for named, column in labelled(table):
        here = column.notna()
        for ts in column.index[here & ~here.shift(1, fill_value=False)]:
            if ts > table.index[0]:
                found.append((ts.to_pydatetime(), named))
    for ts, named in sorted(found, key=lambda pair: pair[0])[:_MOST_ALERTS]:
        hidden = ("source", "alertname", "alertstate", "instance", "job")
        rest = ", ".join(f"{k}={v}" for k, v in named.items() if v and k not in hidden)
        text = f"alert {named.get('alertname', '?')} {named.get('alertstate', '?')}"
        yield Moment(
            ts, "alert", f"{text} ({rest})" if rest else text, named["source"], frames.step_s / 2
        )


def _snapshots(frames: Frames, kind: Kind) -> Iterator[Moment]:
    named = {query.name for query in kind.queries if query.source == "jsonrpc"}
    for name in sorted(named & frames.tables.keys()):
        for row in frames[name].to_dict("records"):
            text = f"{name}: {row['state']}"
            yield Moment(row["ts"].to_pydatetime(), "rpc", text, row["source"])


def _noted(incident: Incident) -> Iterator[Moment]:
    for entry in incident.timeline:
        text = f"{entry.event}: {entry.text}" if entry.text else entry.event
        yield Moment(entry.time, "human", text, entry.author)


# --- timing --------------------------------------------------------------------------------


def _timing(
    onset: Finding | None,
    alerts: Sequence[Moment],
    would_fire: Sequence[Moment],
    incident: Incident,
) -> Iterator[Mapping[str, Json]]:
    """Seconds from the onset by telemetry to what people and alerts did, with the uncertainty."""
    spell = onset.spell if onset else None
    if spell is None:
        return

    def row(what: str, moment: datetime, by: str) -> Mapping[str, Json]:
        return {
            "what": what,
            "time": utc_text(moment),
            "by": by,
            "after_onset_s": (moment - spell.onset).total_seconds(),
            "at_least_s": (moment - spell.onset_latest).total_seconds(),
            "at_most_s": (moment - spell.onset_earliest).total_seconds(),
        }

    yield row("onset", spell.onset, "telemetry")
    firing = [a for a in alerts if " firing" in a.text and a.time >= spell.onset_earliest]
    if firing:
        yield row("first alert firing", firing[0].time, firing[0].text)
    for moment in would_fire:
        yield row("would have fired, by replay", moment.time, moment.text)
    for event in ("detected", "acknowledged", "mitigated", "resolved"):
        entry = next((e for e in incident.timeline if e.event == event), None)
        if entry:
            yield row(event, entry.time, entry.author or "a person")
    if spell.recovery:
        yield row("recovery", spell.recovery, "telemetry")


# --- what we could not tell ----------------------------------------------------------------


def _unknowns(
    kind: Kind, frames: Frames, findings: Sequence[Finding], onset: Finding | None
) -> Iterator[str]:
    of_kind = {query.name for query in kind.queries}
    for row in frames.coverage:
        if row.state == "failed" or (row.query in of_kind and not row.enough):
            where = f" at {row.source}" if row.source else ""
            yield f"{row.query} was {row.state}{where}" + (f" ({row.detail})" if row.detail else "")
    for doubt in frames.doubts:
        if doubt.limits:
            yield f"{doubt.what}: {doubt.detail}"
    yield from (finding.claim for finding in findings if finding.leaves_open)
    if onset and onset.spell and not onset.spell.recovery:
        yield "when it recovered: it still went on at the end of the window"
    rules = frames.tables.get("rules")
    if rules is not None and not rules.empty:
        asked = [q.text.partition("{")[0] for q in kind.queries if q.source == "prometheus"]
        metrics = {name for name in asked if name}  # a selector may name its metric by a matcher
        text = str(list(rules["value"]))
        if not any(metric in text for metric in metrics):
            yield (
                "whether anyone would have been told: no alert rule that the server had loaded "
                "looks at any of this kind's metrics"
            )


# --- as JSON -------------------------------------------------------------------------------


def to_json(assessment: Assessment) -> dict[str, Json]:
    """Plain JSON values; floats to nine digits, and none that JSON cannot hold."""
    return {
        "verdict": assessment.verdict.value,
        "reasons": list(assessment.reasons),
        "findings": [_plain(finding.to_json()) for finding in assessment.findings],
        "coverage": [
            {
                "query": row.query,
                "source": row.source,
                "ratio": _plain(row.ratio),
                "state": row.state,
                "required": row.required,
                "detail": row.detail,
            }
            for row in assessment.coverage
        ],
        "doubts": [
            {
                "what": doubt.what,
                "detail": doubt.detail,
                "window": doubt.window.to_json() if doubt.window else None,
                "limits": doubt.limits,
                "cites": list(doubt.cites),
            }
            for doubt in assessment.doubts
        ],
        "timeline": [
            {
                "time": utc_text(moment.time),
                "origin": moment.origin,
                "text": moment.text,
                "source": moment.source,
                "uncertainty_s": _plain(moment.uncertainty_s),
            }
            for moment in assessment.timeline
        ],
        "timing": [_plain(dict(row)) for row in assessment.timing],
        "unknowns": list(assessment.unknowns),
    }


def _plain(value: Any) -> Json:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, datetime | pd.Timestamp):
        return utc_text(value)
    number = float(value)
    if not math.isfinite(number):
        return None
    return float(f"{number:.{_DIGITS}g}")
