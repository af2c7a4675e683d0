"""The scan beneath spans and movers: in each column, the spell that stands out most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tbforensics.signals import Floats, lag_one


@dataclass(frozen=True)
class Spell:
    column: int
    start: int
    end: int
    gain: float
    ratio: float
    difference: float
    onset: tuple[int, int]
    recovery: tuple[int, int]


def _lengths(shortest: int, longest: int) -> list[int]:
    lengths = [shortest]
    while lengths[-1] * 1.25 < longest:
        lengths.append(max(lengths[-1] + 1, int(lengths[-1] * 1.25)))
    return lengths


def _gain(own: Any, all_: Any, total: Any, whole: Any, counts: bool) -> Any:
    """Twice the log likelihood ratio of "another level inside" against "one level"."""
    if not counts:
        return (own - all_ * total / whole) ** 2 * whole / (all_ * np.maximum(whole - all_, 1e-9))

    def likelihood(x: Any, m: Any) -> Any:
        share = np.clip(x / np.maximum(m, 1e-9), 1e-12, 1 - 1e-12)
        return x * np.log(share) + (m - x) * np.log1p(-share)

    return 2 * (
        likelihood(own, all_) + likelihood(total - own, whole - all_) - likelihood(total, whole)
    )


def scan(own: Floats, all_: Floats, counts: bool, shortest: int, first: int) -> list[Spell]:
    n, k = own.shape
    a_sum = np.vstack([np.zeros((1, k)), np.cumsum(own, axis=0)])
    b_sum = np.vstack([np.zeros((1, k)), np.cumsum(all_, axis=0)])
    best_gain = np.full(k, -1.0)
    best_start = np.zeros(k, dtype=int)
    best_end = np.zeros(k, dtype=int)

    def consider(starts: Any, ends: Any) -> None:
        gain = _gain(
            a_sum[ends] - a_sum[starts], b_sum[ends] - b_sum[starts], a_sum[-1], b_sum[-1], counts
        )
        where = gain.argmax(axis=0)
        top = gain[where, np.arange(k)]
        better = top > best_gain
        best_gain[better] = top[better]
        best_start[better] = starts[where[better]]
        best_end[better] = ends[where[better]]

    starts = np.arange(first, n - shortest + 1)
    consider(starts, np.full(len(starts), n))
    for length in _lengths(shortest, n - first):
        starts = np.arange(first, n - length + 1)
        consider(starts, starts + length)
    return [
        _refined(
            j,
            own[:, j],
            all_[:, j],
            a_sum[:, j],
            b_sum[:, j],
            counts,
            shortest,
            first,
            int(best_start[j]),
            int(best_end[j]),
        )
        for j in range(k)
    ]


def _refined(
    column: int,
    own: Floats,
    all_: Floats,
    a_sum: Floats,
    b_sum: Floats,
    counts: bool,
    shortest: int,
    first: int,
    start: int,
    end: int,
) -> Spell:
    n = len(own)
    for _ in range(3):
        reach = max(8, (end - start) // 4)
        starts = np.arange(max(first, start - reach), min(end - shortest, start + reach) + 1)
        gain_s = _gain(
            a_sum[end] - a_sum[starts], b_sum[end] - b_sum[starts], a_sum[-1], b_sum[-1], counts
        )
        new_start = int(starts[gain_s.argmax()])
        ends = np.arange(max(new_start + shortest, end - reach), min(n, end + reach) + 1)
        gain_e = _gain(
            a_sum[ends] - a_sum[new_start],
            b_sum[ends] - b_sum[new_start],
            a_sum[-1],
            b_sum[-1],
            counts,
        )
        new_end = int(ends[gain_e.argmax()])
        if (new_start, new_end) == (start, end):
            break
        start, end = new_start, new_end
    inside = np.zeros(n, dtype=bool)
    inside[start:end] = True
    level_in = own[inside].sum() / all_[inside].sum()
    level_out = own[~inside].sum() / all_[~inside].sum()
    level = np.where(inside, level_in, level_out)
    if counts:
        sd = np.sqrt(np.maximum(all_ * level * (1 - level), 1e-9))
        residual = (own - all_ * level) / sd
    else:
        residual = own - level
    phi = lag_one(residual)
    variance = float(residual.var()) * (1 + phi) / (1 - phi)
    if counts:
        variance = max(variance, 1.0)
    variance = max(variance, 1e-18)
    plateau = slice(start + (end - start) // 3, end)
    if counts:
        odds_in = (own[plateau].sum() + 0.5) / (all_[plateau].sum() - own[plateau].sum() + 0.5)
        odds_out = (own[~inside].sum() + 0.5) / (all_[~inside].sum() - own[~inside].sum() + 0.5)
        ratio = float(odds_in / odds_out)
        difference = float(own[plateau].mean() - own[~inside].mean())
    else:
        difference = float(own[plateau].mean() - own[~inside].mean())
        ratio = float(np.exp(difference))
    return Spell(
        column,
        start,
        end,
        float(gain_s.max()) / variance,
        ratio,
        difference,
        _credible(starts, gain_s / variance),
        _credible(ends, gain_e / variance),
    )


def _credible(positions: Any, gain: Floats) -> tuple[int, int]:
    """The 95 % interval of a position, each as likely as exp(gain / 2) makes it."""
    mass = np.exp((gain - gain.max()) / 2)
    share = np.cumsum(mass) / mass.sum()
    low, high = np.searchsorted(share, [0.025, 0.975])
    return int(positions[low]), int(positions[min(high, len(positions) - 1)])
