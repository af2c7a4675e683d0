"""When an incident began and ended: the strongest spells in which a signal left its level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tbforensics.analysis.scan import Spell, brief_spell, scan, sharpened
from tbforensics.analysis.signals import (
    Floats,
    Kind,
    Label,
    Rows,
    Time,
    as_frame,
    filled,
    period,
    robust_sd,
    rows_between,
    signal_of,
    without_season,
    without_spikes,
)

THRESHOLD = 20.0  # of the gain of a scanned spell; chi-square-like, about four and a half sigma
EDGE_THRESHOLD = 34.0  # of its gain once its edges are fitted against the memory of the noise
LOAD_COST = 1.3  # the load is taken out of a column unless that makes it this much noisier
MOST_PEELED = 6  # columns that may move before nobody is left to tell the load
ENOUGH_COUNTS = 2.0  # per row, below which others say too little about the load
EDGE_ROWS = 12  # length of the neighbouring stretches that tell a jump from a drift
SHARP = 6.0  # times the usual difference between neighbouring stretches
STANDS_OUT = 1.4  # times the strength of the next best spell: what happens often is no incident
BASELINE_ROWS = 8  # an onset needs this much calm before it to be called one


@dataclass(frozen=True)
class Span:
    """One spell away from the normal level.

    onset:    first row of the spell.
    recovery: first row back at the level; None when the data end before that.
    onset_interval, recovery_interval: where each lies with 95 % probability, both ends included.
    label:    the column that left furthest; None for a Series, and when all columns left alike.
    ratio:    level (rate, latency) in the spell over that outside it, shared load taken out;
              NaN for a signal that is not positive, where only `difference` has a meaning.
    difference: the same as a difference, in the signal's unit (counts: per row).
    strength: how far the spell stands out, in standard deviations of its own variation.
    """

    onset: Time
    recovery: Time | None
    onset_interval: tuple[Time, Time]
    recovery_interval: tuple[Time, Time] | None
    label: Label | None
    ratio: float
    difference: float
    strength: float


def incident_span(
    data: pd.Series | pd.DataFrame,
    kind: Kind = "gauge",
    *,
    baseline: Any = None,
    shortest: int = 4,
) -> Span | None:
    """The strongest spell away from the normal level, or None: nothing happened.

    Shape:  see `incident_spans`; one span out, or None.
    Errors: as `incident_spans`.
    """
    spans = incident_spans(data, kind, baseline=baseline, shortest=shortest, at_most=1)
    return spans[0] if spans else None


def incident_spans(
    data: pd.Series | pd.DataFrame,
    kind: Kind = "gauge",
    *,
    baseline: Any = None,
    shortest: int = 1,
    at_most: int = 4,
) -> list[Span]:
    """Spells away from the normal level, strongest first.

    When there are more than `at_most`, only those that stand out against the next best are
    named: what happens often is no incident.

    Shape:  n rows in time order; a Series, or a frame with one column per label value. `kind`:
            gauge, counter (raw, cumulative), increase (counts per row), histogram (raw buckets,
            columns "label|le" or a level `le`), bucket_increase (the same per row).
            baseline: a half-open pair of times known to be calm; spells start after it.
            shortest: rows; anything shorter is a spike and left out. One by default: in a long
            series a single far-off sample counts. `incident_span` asks for four.
    Errors: ValueError for a kind that is not known, or a bucket column without a bound.
    """
    signal = signal_of(as_frame(data), kind)
    signal = signal.loc[:, signal.notna().sum() >= 2 * BASELINE_ROWS]
    rows, first = np.arange(len(signal)), BASELINE_ROWS
    if baseline is not None:
        calm = rows_between(signal.index, baseline)
        if len(calm):
            rows, first = rows[calm[0] :], max(len(calm), BASELINE_ROWS)
    panel = _panel(signal, kind, shortest)
    single = isinstance(data, pd.Series)
    spans: list[Span] = []
    while len(spans) <= at_most and len(rows) >= first + shortest and signal.shape[1]:
        found = _strongest(panel.at(rows), shortest, first)
        if found is None and panel.shared:
            found = _of_all(panel.at(rows), shortest, first)
        if found is None:
            break
        spans.append(_span(found, rows, signal, panel, single))
        rows = np.delete(rows, slice(found.start, found.end))
    if len(spans) > at_most > 1:
        ordinary = spans.pop().strength
        spans = [span for span in spans if span.strength > STANDS_OUT * ordinary]
    return spans[:at_most]


@dataclass(frozen=True)
class _Panel:
    """Columns ready to scan: gaps bridged, logs where they fit, spikes and seasons out.

    counts: values are counts. logs: per column, whether values are logarithms.
    shared: the columns have a load in common, which is no column's own doing.
    """

    values: Floats
    logs: NDArray[np.bool_]
    counts: bool
    shared: bool

    def at(self, rows: Rows) -> _Panel:
        return replace(self, values=self.values[rows])


def _panel(signal: pd.DataFrame, kind: Kind, shortest: int) -> _Panel:
    raw = signal.to_numpy(dtype=float)
    n, k = raw.shape
    counts = kind in ("counter", "increase")
    shared = k >= 3 and (counts or kind == "gauge")
    logs = np.zeros(k, dtype=bool)
    columns = []
    for j in range(k):
        values = filled(raw[:, j])
        if not counts:
            logs[j] = values.min() > 0 and (k > 1 or _leans_less_in_logs(values))
            values = np.log(values) if logs[j] else values
            values = values if shared else without_season(values, period(values))
            values = without_spikes(values) if shortest > 2 else values
        columns.append(values)
    return _Panel(np.column_stack(columns) if k else np.zeros((n, 0)), logs, counts, shared)


def _leans_less_in_logs(values: Floats) -> bool:
    """Whether logarithms make the distribution more even on both sides of its median."""

    def lean(part: Floats) -> float:
        low, middle, high = np.quantile(part, [0.1, 0.5, 0.9])
        return abs(float(high + low - 2 * middle)) / max(float(high - low), 1e-300)

    return lean(np.log(values)) < lean(values)


def _span(spell: Spell, rows: Rows, signal: pd.DataFrame, panel: _Panel, single: bool) -> Span:
    index = signal.index
    ended = spell.end < len(rows)
    together = spell.column < 0
    seen = signal.iloc[rows]
    whole = seen.sum(axis=1) if panel.counts else seen.median(axis=1)
    values = (whole if together else seen.iloc[:, spell.column]).to_numpy(dtype=float)
    inside = values[spell.start : spell.end]
    outside = np.delete(values, slice(spell.start, spell.end))
    typical = np.nanmean if panel.counts else np.nanmedian
    level, normal = float(typical(inside)), float(typical(outside))
    ratio = float("nan")
    if panel.counts or panel.logs[spell.column] or together:
        ratio = float(np.exp(spell.shift))
    elif np.nanmin(values) >= 0 and normal > 0:
        ratio = level / normal

    def at(row: int) -> Time:
        return index[rows[min(row, len(rows) - 1)]]

    return Span(
        onset=at(spell.start),
        recovery=at(spell.end) if ended else None,
        onset_interval=(at(spell.onset[0]), at(spell.onset[1])),
        recovery_interval=(at(spell.recovery[0]), at(spell.recovery[1])) if ended else None,
        label=None if single or together else signal.columns[spell.column],
        ratio=ratio,
        difference=level - normal,
        strength=float(np.sqrt(spell.gain)),
    )


def _strongest(panel: _Panel, shortest: int, first: int) -> Spell | None:
    """Peel off column after column that left its level; the shared load is made of the others."""
    moved: list[int] = []
    best: list[Spell] = []
    for _ in range(MOST_PEELED):
        own, against = _against_load(panel, moved)
        spells = scan(own, against, panel.counts, shortest, first)
        if not panel.shared and not panel.counts:
            spells += [brief_spell(j, own[:, j], shortest, first) for j in range(own.shape[1])]
        fresh = [
            spell
            for spell in spells
            if spell.gain > THRESHOLD and spell.column not in moved and _jumps(panel, spell)
        ]
        best = [spell for spell in spells if spell.column in moved]
        if not fresh:
            break
        if not panel.shared:
            best = fresh
            break
        top = max(fresh, key=lambda spell: spell.gain)
        moved.append(top.column)
        best.append(top)
        if len(moved) > own.shape[1] - 2:
            break
    best = [
        sharpened(own[:, s.column], against[:, s.column], panel.counts, s, shortest, first)
        for s in best
    ]
    best.sort(key=lambda spell: spell.gain)
    strong = {spell.column: spell for spell in best if spell.gain > EDGE_THRESHOLD}
    if not strong:
        return None
    lead = max(strong.values(), key=lambda spell: spell.gain)
    together = [s for s in strong.values() if s.start < lead.end and lead.start < s.end]
    return max(together, key=lambda s: abs(s.shift) * (1 - 1 / np.sqrt(s.gain)))


def _of_all(panel: _Panel, shortest: int, first: int) -> Spell | None:
    """The spell of the shared load itself, when no column stands out from it. Its column is -1."""
    if panel.counts:
        total = panel.values.sum(axis=1)
        many = float(total.mean()) >= ENOUGH_COUNTS
        common = np.log(total + 0.5) if many else total
    else:
        many = True
        common = np.median(panel.values - np.median(panel.values, axis=0), axis=1)
    common = without_season(common, period(common)) if many else common
    alone = _Panel(common[:, None], np.array([many]), not many, False)
    found = _strongest(alone, shortest, first)
    # Load drifts by nature, so only a jump unlike its usual ups and downs is an incident.
    if found is None or _sharpness(common, found.start, found.end) < SHARP:
        return None
    return replace(found, column=-1)


def _sharpness(values: Floats, start: int, end: int) -> float:
    """The jump at the onset over the usual difference between neighbouring stretches."""
    width = min(EDGE_ROWS, end - start, start)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(width, len(values) - width + 1)
    jumps = (sums[at + width] - 2 * sums[at] + sums[at - width]) / width
    near = np.abs(jumps[np.abs(at - start) <= width // 2])
    usual = robust_sd(jumps)
    return float(near.max() / usual) if usual > 0 and len(near) else 0.0


def _against_load(panel: _Panel, moved: list[int]) -> tuple[Floats, Floats]:
    """What each column shows, and what it is measured against. Counts: own, own plus others."""
    values = panel.values
    k = values.shape[1]
    if panel.counts:
        alone = values + 1e4 * max(float(values.mean()), 1e-9)
        if not panel.shared:
            return values, alone
        still = np.array([j not in moved for j in range(k)])
        pool = values[:, still].sum(axis=1, keepdims=True)
        pooled = values + np.maximum(pool - np.where(still, values, 0.0), 1e-9)
        helps = _unrest(values, pooled) < LOAD_COST * _unrest(values, alone)
        helps &= (pooled - values).mean(axis=0) > ENOUGH_COUNTS
        return values, np.where(helps, pooled, alone)
    result = values.copy()
    centred = values - np.median(values, axis=0)
    calm = [j for j in range(k) if j not in moved and panel.logs[j]]
    for j in np.flatnonzero(panel.logs) if panel.shared else ():
        others = [i for i in calm if i != j]
        if len(others) < 2:
            continue
        rest = centred[:, j] - np.median(centred[:, others], axis=1)
        if robust_sd(rest) < LOAD_COST * robust_sd(centred[:, j]):
            result[:, j] = rest + np.median(values[:, j])
    return result, np.ones_like(values)


def _unrest(own: Floats, against: Floats) -> Floats:
    """Per column, how far blocks of counts stray from their share, in Poisson deviations."""
    width = max(1, len(own) // 24)
    edges = np.arange(0, len(own) - width + 1, width)
    hits, trials = (np.add.reduceat(part, edges, axis=0) for part in (own, against))
    expected = trials * (hits.sum(axis=0) / np.maximum(trials.sum(axis=0), 1e-9))
    stray = (hits - expected) / np.sqrt(np.maximum(expected, 1e-9))
    return np.array([robust_sd(stray[:, j]) for j in range(own.shape[1])])


def _jumps(panel: _Panel, spell: Spell) -> bool:
    """The column itself moves at the onset, and not only the others around it."""
    column = panel.values[:, spell.column]
    width = min(20, spell.end - spell.start)
    before = column[max(0, spell.start - width) : spell.start].mean()
    after = column[spell.start : spell.start + width].mean()
    if panel.counts:
        after, before = np.log(after + 0.1), np.log(before + 0.1)
    return bool((after - before) * np.sign(spell.shift) > 0.4 * abs(spell.shift))
