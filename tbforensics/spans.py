"""When an incident began and ended: the strongest spells in which a signal left its level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tbforensics.scan import Spell, scan, sharpened
from tbforensics.signals import (
    Floats,
    Kind,
    Label,
    Rows,
    Time,
    as_frame,
    counter_increases,
    filled,
    robust_sd,
    rows_between,
    typical_latency,
    without_spikes,
)

THRESHOLD = 20.0  # of the gain of a scanned spell; chi-square-like, about four and a half sigma
EDGE_THRESHOLD = 34.0  # of its gain once its edges are fitted against the memory of the noise
LOAD_COST = 1.3  # the load is taken out of a column unless that makes it this much noisier
BASELINE_ROWS = 8  # an onset needs this much calm before it to be called one


@dataclass(frozen=True)
class Span:
    """One spell away from the normal level.

    onset:    first row of the spell.
    recovery: first row back at the level; None when the data end before that.
    onset_interval, recovery_interval: where each lies with 95 % probability, both ends included.
    label:    the column that left furthest; None for a Series.
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
    shortest: int = 4,
    at_most: int = 5,
) -> list[Span]:
    """Spells away from the normal level, strongest first.

    Shape:  n rows in time order; a Series, or a frame with one column per label value. `kind`:
            gauge, counter (raw, cumulative), increase (counts per row), histogram (raw buckets,
            columns "label|le" or a level `le`), bucket_increase (the same per row).
            baseline: a half-open pair of times known to be calm; spells start after it.
            shortest: rows; anything shorter is a spike and not an incident.
    Errors: ValueError for a kind that is not known, or a bucket column without a bound.
    """
    signal = _signal(as_frame(data), kind)
    single = isinstance(data, pd.Series)
    rows = np.arange(len(signal))
    first = BASELINE_ROWS
    if baseline is not None:
        calm = rows_between(signal.index, baseline)
        if len(calm):
            rows, first = rows[calm[0] :], max(len(calm), BASELINE_ROWS)
    signal = signal.loc[:, signal.notna().sum() >= 2 * BASELINE_ROWS]
    counts = kind in ("counter", "increase")
    spans: list[Span] = []
    while len(spans) < at_most and len(rows) >= first + shortest and signal.shape[1]:
        found = _strongest(signal.to_numpy()[rows], counts, kind, shortest, first)
        if found is None:
            break
        spans.append(_span(found, rows, signal, counts, single))
        rows = np.delete(rows, slice(found.start, found.end))
    return spans


def _signal(frame: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    if kind == "counter":
        return counter_increases(frame)
    if kind in ("histogram", "bucket_increase"):
        return typical_latency(frame, kind == "histogram")
    if kind not in ("gauge", "increase"):
        raise ValueError(
            f"kind {kind!r} is none of gauge, counter, increase, histogram, bucket_increase"
        )
    return frame


def _span(spell: Spell, rows: Rows, signal: pd.DataFrame, counts: bool, single: bool) -> Span:
    index = signal.index
    ended = spell.end < len(rows)
    values = signal.iloc[rows, spell.column].to_numpy(dtype=float)
    inside = values[spell.start : spell.end]
    outside = np.delete(values, slice(spell.start, spell.end))
    typical = np.nanmean if counts else np.nanmedian

    def at(row: int) -> Time:
        return index[rows[min(row, len(rows) - 1)]]

    return Span(
        onset=at(spell.start),
        recovery=at(spell.end) if ended else None,
        onset_interval=(at(spell.onset[0]), at(spell.onset[1])),
        recovery_interval=(at(spell.recovery[0]), at(spell.recovery[1])) if ended else None,
        label=None if single else signal.columns[spell.column],
        ratio=float(np.exp(spell.shift)) if counts or np.nanmin(values) > 0 else float("nan"),
        difference=float(typical(inside) - typical(outside)),
        strength=float(np.sqrt(spell.gain)),
    )


def _strongest(values: Floats, counts: bool, kind: Kind, shortest: int, first: int) -> Spell | None:
    """Peel off column after column that left its level; the shared load is made of the others."""
    k = values.shape[1]
    full = np.column_stack([filled(values[:, j]) for j in range(k)])
    positive = np.array([np.nanmin(values[:, j]) > 0 for j in range(k)])
    if not counts:
        full = np.where(positive, np.log(np.where(positive, full, 1.0)), full)
        if shortest > 2:
            full = np.column_stack([without_spikes(full[:, j]) for j in range(k)])
    shared = k >= 3 and (counts or kind == "gauge")
    moved: list[int] = []
    best: list[Spell] = []
    for _ in range(max(1, min(k - 2, 6))):
        own, against = _against_load(full, positive, moved, counts, shared)
        spells = scan(own, against, counts, shortest, first)
        fresh = [
            s
            for s in spells
            if s.gain > THRESHOLD and s.column not in moved and _jumps(full, s, counts)
        ]
        best = [s for s in spells if s.column in moved]
        if not fresh:
            break
        if not shared:
            best = fresh
            break
        top = max(fresh, key=lambda s: s.gain)
        moved.append(top.column)
        best.append(top)
    best = [
        sharpened(own[:, s.column], against[:, s.column], counts, s, shortest, first) for s in best
    ]
    strong = [s for s in best if s.gain > EDGE_THRESHOLD]
    if not strong:
        return None
    lead = max(strong, key=lambda s: s.gain)
    together = [s for s in strong if s.start < lead.end and lead.start < s.end]
    return max(together, key=lambda s: abs(s.shift) * (1 - 1 / np.sqrt(s.gain)))


def _against_load(
    full: Floats, positive: Any, moved: list[int], counts: bool, shared: bool
) -> tuple[Floats, Floats]:
    """What each column shows, and what it is measured against. Counts: own, own plus others."""
    k = full.shape[1]
    if counts:
        alone = full + 1e4 * max(float(full.mean()), 1e-9)
        if not shared:
            return full, alone
        still = np.array([j not in moved for j in range(k)])
        pool = full[:, still].sum(axis=1, keepdims=True)
        others = np.maximum(pool - np.where(still, full, 0.0), 1e-9)
        pooled = full + others
        return full, np.where(
            _unrest(full, pooled) < LOAD_COST * _unrest(full, alone), pooled, alone
        )
    weight = np.ones_like(full)
    if not shared:
        return full, weight
    centred = full - np.median(full, axis=0)
    result = full.copy()
    calm = [j for j in range(k) if j not in moved and positive[j]]
    for j in range(k):
        others = [i for i in calm if i != j]
        if not positive[j] or len(others) < 2:
            continue
        rest = centred[:, j] - np.median(centred[:, others], axis=1)
        if robust_sd(rest) < LOAD_COST * robust_sd(centred[:, j]):
            result[:, j] = rest + np.median(full[:, j])
    return result, weight


def _unrest(own: Floats, against: Floats) -> Floats:
    """Per column, how far blocks of counts stray from their share, in Poisson deviations."""
    width = max(1, len(own) // 24)
    edges = np.arange(0, len(own) - width + 1, width)
    hits, trials = (np.add.reduceat(part, edges, axis=0) for part in (own, against))
    expected = trials * (hits.sum(axis=0) / np.maximum(trials.sum(axis=0), 1e-9))
    stray = (hits - expected) / np.sqrt(np.maximum(expected, 1e-9))
    return np.array([robust_sd(stray[:, j]) for j in range(own.shape[1])])


def _jumps(full: Floats, spell: Spell, counts: bool) -> bool:
    """The column itself moves at the onset, and not only the others around it."""
    column = full[:, spell.column]
    width = min(20, spell.end - spell.start)
    before = column[max(0, spell.start - width) : spell.start].mean()
    after = column[spell.start : spell.start + width].mean()
    if counts:
        after, before = np.log(after + 0.1), np.log(before + 0.1)
    return bool((after - before) * np.sign(spell.shift) > 0.4 * abs(spell.shift))
