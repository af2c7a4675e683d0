"""Which column: what moved, in what order, and which of them looks like the cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tbforensics.analysis.scan import scan
from tbforensics.analysis.signals import (
    MAD_TO_SD,
    Floats,
    Kind,
    Label,
    Rows,
    Time,
    as_frame,
    filled,
    rows_between,
    signal_of,
    without_spikes,
)

MOVE_THRESHOLD = 30.0  # of the gain of a shift, as in `spans`
IQR_FLOOR = 0.001  # of the level: a metric frozen in calm times is not infinitely surprising
NOVELTY_FLOOR = 0.1  # of its new level: for a metric that was zero in calm times
TARGET_MADS = 5.0  # with a target, only metrics further out than this are suspects


@dataclass(frozen=True)
class Mover:
    """A column that really moved.

    onset, onset_interval: first row of the shift, and where it lies with 95 % probability.
    ratio: level after over level before; NaN when the column is not positive.
    difference: level after less level before, in the column's unit.
    strength: standard deviations of the column's own variation.
    """

    label: Label
    onset: Time
    onset_interval: tuple[Time, Time]
    ratio: float
    difference: float
    strength: float


@dataclass(frozen=True)
class Culprit:
    """A column with what speaks for it.

    score: shift in inter-quartile ranges; with a target, |correlation| with it, 0 to 1.
    shift: median after the onset less median before, in the column's unit.
    correlation: with the target; NaN without one.
    why:   one line for people.
    """

    label: Label
    score: float
    shift: float
    correlation: float
    why: str


def rank_movers(
    data: pd.Series | pd.DataFrame, *, shortest: int = 8, threshold: float = MOVE_THRESHOLD
) -> list[Mover]:
    """The columns that left their level for good or for a while, first mover first.

    Shape:  n rows in time order, one column per metric, units free to differ; at most one Mover
            per column out. Each column is judged on its own: nothing is shared between them.
            shortest: rows; a shorter excursion is a spike and no move.
    """
    frame = as_frame(data)
    frame = frame.loc[:, frame.notna().sum() >= 2 * shortest]
    if not frame.shape[1]:
        return []
    levels, logs = [], []
    for j in range(frame.shape[1]):
        values = filled(frame.iloc[:, j].to_numpy(dtype=float))
        logs.append(bool(values.min() > 0))
        levels.append(without_spikes(np.log(values) if logs[-1] else values))
    own = np.column_stack(levels)
    movers = []
    for spell in scan(own, np.ones_like(own), False, shortest, shortest):
        if spell.gain <= threshold:
            continue
        column = spell.column
        inside = frame.iloc[spell.start : spell.end, column].median()
        outside = frame.iloc[:, column].drop(frame.index[spell.start : spell.end]).median()
        movers.append(
            (
                spell.start,
                -spell.gain,
                Mover(
                    frame.columns[column],
                    frame.index[spell.start],
                    (frame.index[spell.onset[0]], frame.index[spell.onset[1]]),
                    float(inside / outside) if logs[column] else float("nan"),
                    float(inside - outside),
                    float(np.sqrt(spell.gain)),
                ),
            )
        )
    return [mover for _, _, mover in sorted(movers, key=lambda found: found[:2])]


def rank_culprits(
    data: pd.DataFrame,
    onset: Time,
    kind: Kind = "gauge",
    *,
    target: Label | None = None,
    calls: Mapping[str, Sequence[str]] | None = None,
    end: Time | None = None,
) -> list[Culprit]:
    """Every column of the frame, the likeliest cause first.

    Shape:  n rows in time order, one column per metric; `onset` splits calm from incident (a
            minute late does no harm); rows at or after `end` are left out. `kind` as in
            `spans`: raw counters and buckets become rates and latencies first.
            target: the column that people complained about. Suspects must then spend a tenth of
            the incident more than 5 MAD from their calm median, and are ranked by |correlation|
            with the target.
            calls: caller -> callees. A suspect is passed over for a moved callee beneath it. A
            column belongs to the service that names it, or that its name begins with.
    Unit:   free to differ per column; changing one changes nothing.
    Errors: KeyError when the target is not a column.
    Source: Pham et al., "BARO: Robust root cause analysis for microservices", FSE 2024, with the
            median in place of the maximum and a floor under the inter-quartile range; Hardt et
            al., "The PetShop dataset", CLeaR 2024, for the target.

    A rise beyond three inter-quartile ranges outranks any fall: faults add load, latency and
    errors, and falls are mostly victims waiting.
    """
    frame = signal_of(as_frame(data), kind)
    after = rows_between(frame.index, (onset, end))
    before = rows_between(frame.index, (None, onset))
    values = frame.to_numpy(dtype=float)
    shift, iqr, mads = _shifts(values, before, after)
    scores = shift / np.where(iqr > 0, iqr, np.inf)
    if target is None:
        correlation = np.full(len(scores), np.nan)
        order = sorted(range(len(scores)), key=lambda j: (scores[j] <= 3.0, -abs(scores[j]), j))
        found = [
            Culprit(
                frame.columns[j],
                abs(float(scores[j])),
                float(shift[j]),
                float("nan"),
                f"{'rose' if shift[j] > 0 else 'fell'} by {abs(scores[j]):.3g} quartile ranges",
            )
            for j in order
        ]
    else:
        if target not in frame.columns:
            raise KeyError(f"the target {target!r} is not a column")
        here = list(frame.columns).index(target)
        correlation = np.abs(_correlations(values, here))
        suspect = mads > TARGET_MADS
        order = sorted(
            range(len(scores)),
            key=lambda j: (j == here, not suspect[j], -correlation[j], -abs(scores[j]), j),
        )
        found = [
            Culprit(
                frame.columns[j],
                float(correlation[j]),
                float(shift[j]),
                float(correlation[j]),
                f"{mads[j]:.3g} MAD from calm, correlation {correlation[j]:.2f} with {target}",
            )
            for j in order
        ]
    if calls:
        strong = {frame.columns[j] for j in range(len(scores)) if mads[j] > TARGET_MADS}
        found = _deepest_first(found, strong, calls)
    return found


def _shifts(values: Floats, before: Rows, after: Rows) -> tuple[Floats, Floats, Floats]:
    """Per column: the shift of the median, the floored IQR, how many MADs a tenth strays."""
    silent = ~(np.isfinite(values[before]).any(axis=0) & np.isfinite(values[after]).any(axis=0))
    values = np.where(silent, 0.0, values)  # a column unseen on one side cannot be said to move
    calm, upset = values[before], values[after]
    if not len(calm) or not len(upset):
        zero = np.zeros(values.shape[1])
        return zero, zero, zero
    low, middle, high = np.nanpercentile(calm, [25, 50, 75], axis=0)
    shift = np.nanmedian(upset, axis=0) - middle
    floor = IQR_FLOOR * np.abs(middle)
    # From nothing there is no level: what appears counts as ten ranges, whatever its unit.
    floor = np.where(floor > 0, floor, NOVELTY_FLOOR * np.abs(shift))
    iqr = np.maximum(high - low, floor)
    mad = np.maximum(MAD_TO_SD * np.nanmedian(np.abs(calm - middle), axis=0), floor)
    strays = np.nanquantile(np.abs(upset - middle), 0.9, axis=0)
    mads = np.where(strays > 0, strays / np.maximum(mad, 1e-300), 0.0)
    return shift, iqr, mads


def _correlations(values: Floats, target: int) -> Floats:
    known = np.column_stack([filled(values[:, j]) for j in range(values.shape[1])])
    centred = known - known.mean(axis=0)
    power = np.sqrt((centred**2).sum(axis=0))
    scale = power * power[target]
    product = centred.T @ centred[:, target]
    divided: Floats = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
    return divided


def _deepest_first(
    found: list[Culprit], moved: set[Label], calls: Mapping[str, Sequence[str]]
) -> list[Culprit]:
    """Moves the suspects that have a moved callee (at any depth) behind those that have none."""
    services = set(calls) | {callee for callees in calls.values() for callee in callees}
    longest_first = sorted(services, key=len, reverse=True)

    def service(label: Label) -> str | None:
        name = str(label[0] if isinstance(label, tuple) else label)
        return next((s for s in longest_first if name == s or name.startswith(s)), None)

    sick = {service(label) for label in moved}

    def excused(name: str | None) -> bool:
        seen, todo = set(), [name] if name else []
        while todo:
            here = todo.pop()
            for callee in calls.get(here, ()):
                if callee in sick and callee != name:
                    return True
                if callee not in seen:
                    seen.add(callee)
                    todo.append(callee)
        return False

    return sorted(found, key=lambda c: (c.label not in moved, excused(service(c.label))))
