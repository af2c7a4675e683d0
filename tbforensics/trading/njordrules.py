"""Njord Quant's contradicting rules about drawdown, held against the recomputed curve.

Three are shipped: 10 % in the process with a hold of a minute, 15 % in the catalogue for
Prometheus, and -10 in Grafana on a metric that nothing emits. Which of them runs, a site decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from tbforensics.frames import labelled
from tbforensics.model import Frames, Json
from tbforensics.trading.njord import by_strategy, moment, second, text, timed
from tbforensics.trading.portfolio import runs

DRAWDOWN = "njord_strategy_drawdown_pct"


@dataclass(frozen=True)
class Rule:
    """One of the rules about drawdown that a site may run.

    every_s: how often it is evaluated; 0: whenever a sample arrives, and only then.
    repeat_s: for so long after firing it stays silent, whatever strategy crosses next.
    """

    name: str
    where: str
    metric: str
    over_pct: float
    hold_s: float
    every_s: float = 0.0
    repeat_s: float = 0.0


@dataclass(frozen=True)
class Firing:
    """When a rule would have fired for a strategy, had it seen the recomputed drawdown.

    crossed: first above the threshold. fires: None when it never held long enough.
    suppressed: another strategy had fired it so shortly before that this one is never told.
    """

    strategy: str
    crossed_ns: int
    fires_ns: int | None
    suppressed: bool = False


def replay(rule: Rule, drawdowns: Mapping[str, pd.Series]) -> list[Firing]:
    """What a rule would have done, strategy by strategy, in time order.

    drawdowns: by strategy, positive percent at unix ns (the index is a DatetimeIndex).
    """
    found = []
    for strategy, drawdown in sorted(drawdowns.items()):
        times = drawdown.index.as_unit("ns").asi8
        above = list(runs(drawdown.to_numpy(dtype=float) > rule.over_pct))
        if not above:
            continue
        fires = next((t for run in above if (t := _fires_ns(rule, times, *run)) is not None), None)
        found.append(Firing(strategy, int(times[above[0][0]]), fires))
    found.sort(key=lambda one: (one.fires_ns is None, one.fires_ns or 0, one.strategy))
    told: list[Firing] = []
    for one in found:
        last = next((t.fires_ns for t in reversed(told) if t.fires_ns and not t.suppressed), None)
        near = one.fires_ns and last and one.fires_ns - last < rule.repeat_s * 1e9
        told.append(Firing(one.strategy, one.crossed_ns, one.fires_ns, suppressed=bool(near)))
    return told


def _fires_ns(rule: Rule, times: Sequence[int], start: int, end: int) -> int | None:
    held_ns = int(times[start]) + round(rule.hold_s * 1e9)
    if rule.every_s == 0:  # a hold is looked at when a sample arrives, so a stalled metric is mute
        return next((int(t) for t in times[start:end] if t >= held_ns), None)
    over_ns = int(times[end]) if end < len(times) else None
    return held_ns if over_ns is None or held_ns <= over_ns else None


# --- as a table ----------------------------------------------------------------------------


def rows(
    frames: Frames,
    rules: Sequence[Rule],
    drawdowns: Mapping[str, pd.Series],
    onset: datetime,
) -> list[dict[str, Json]]:
    """One row per rule and strategy: when it would have fired, when it did, and why not."""
    exported = by_strategy(frames["drawdown_gauge"])
    return [
        {
            "rule": f"{rule.name} ({rule.where})",
            "condition": f"> {rule.over_pct:g} for {rule.hold_s:.0f} s",
            "would_fire": second(told) if told else None,
            "fired": fired(frames, rule.name, firing.strategy),
            "why_not": why_not(rule, firing, exported),
            "strategy": firing.strategy,
            "crossed": second(firing.crossed_ns),
            "after_onset_s": (told - onset).total_seconds() if told else None,
        }
        for rule in rules
        for firing in replay(rule, drawdowns)
        for told in [moment(firing.fires_ns) if firing.fires_ns and not firing.suppressed else None]
    ]


def fired(frames: Frames, name: str, strategy: str) -> str | None:
    """When Prometheus or the bus first told of a rule that fired for a strategy."""
    found = []
    for labels, column in labelled(frames["ALERTS"]) if frames.seen("ALERTS") else ():
        named = labels.get("alertname") == name and labels.get("alertstate") == "firing"
        if named and labels.get("strategy_id", "") in ("", strategy) and column.notna().any():
            found.append(second(column.first_valid_index()))
    for ts_ns, value, _ in timed(frames["bus"]):
        told = value.get("payload")
        alert = told.get("labels") if isinstance(told, Mapping) else None
        if text(told, "name") == name and text(alert, "strategy_id") == strategy:
            found.append(second(ts_ns))
    return min(found, default=None)


def why_not(rule: Rule, firing: Firing, exported: pd.DataFrame) -> str:
    """What kept a rule that would have fired from being heard, as far as evidence tells."""
    if firing.suppressed:
        return f"suppressed: another strategy fired it within {rule.repeat_s:.0f} s, without labels"
    if firing.fires_ns is None:
        return f"it never held for {rule.hold_s:.0f} s"
    if firing.strategy not in exported.columns:
        return f"{rule.metric} was not exported"
    values = exported[firing.strategy]
    if not (values > rule.over_pct).any():
        return "the exported value is negative" if (values < 0).any() else "the gauge stayed below"
    return ""
