"""Where a series changes: an optimal cut into stretches that are each a level or a trend."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.ndimage import median_filter

from tbforensics.signals import Floats, Time, filled

PENALTY = 2.0  # per cut, in units of log n; the series is scaled to variance one
TREND_PRICE = 0.5  # what a stretch pays for a slope, same units
SHORTEST = 3  # samples; a stretch of fewer is an outlier
MOST_CELLS = 1_000  # above this many samples the search starts on block means
SEASON_STRENGTH = 0.6  # share of the detrended variance that a season must explain to be removed


@dataclass(frozen=True)
class ChangePoint:
    """The first sample of a new stretch.

    position: 0-based row. time: its label in the index.
    before, after: what the two stretches next to it come to at the cut, season taken out.
    """

    position: int
    time: Time
    before: float
    after: float


def change_points(series: pd.Series, *, penalty: float = PENALTY) -> list[ChangePoint]:
    """Where a series changes its level or its trend, in time order.

    Shape:  n samples in time order, any index; missing and infinite samples are bridged.
    Unit:   none: the answer is the same for a x series + b. `penalty` is in units of log n per
            cut; the default serves every series.
    Errors: none. Fewer than five samples, or a constant, have no change.
    Source: optimal partitioning of Jackson et al., "An algorithm for optimal partitioning of
            data on an interval", IEEE SPL 12, 2005, with a cost that lets each stretch be the
            cheaper of a level and a trend.
    """
    values = series.to_numpy(dtype=float, na_value=np.nan)
    values = filled(np.where(np.isfinite(values), values, np.nan))
    if len(values) < 5 or np.ptp(values) == 0:
        return []
    starts = held_runs(values)
    short = values[starts]
    cuts, fit = _partition(without_season(short), penalty)
    return [
        ChangePoint(int(starts[c]), series.index[int(starts[c])], float(fit[c - 1]), float(fit[c]))
        for c in cuts
    ]


def held_runs(values: Floats) -> np.ndarray:
    """Rows at which a new reading begins, when each reading is repeated a fixed number of times.

    A rule evaluated three times per scrape shows every value three times. That makes noise look
    smooth, so repeats are dropped first. All rows, when runs of equal values have no common beat.
    """
    n = len(values)
    begins = np.flatnonzero(np.r_[True, np.diff(values) != 0])
    for beat in range(8, 1, -1):
        on_beat = (begins - begins[-1]) % beat == 0
        if on_beat.mean() > 0.98 and len(begins) > 0.5 * n / beat:
            return np.unique(np.r_[0, np.arange(begins[-1] % beat, n, beat)])
    return np.arange(n)


def without_season(values: Floats) -> Floats:
    """The series less its season, when there is a strong one; else the series.

    The period is the lag at which the detrended series agrees best with itself; the season is
    the median of each phase. It stays when it explains less than 60 % of what the trend leaves.
    """
    n = len(values)
    if n < 24:
        return values
    rest = values - np.polyval(np.polyfit(np.arange(n), values, 1), np.arange(n))
    power = float(rest @ rest)
    if power <= 0:
        return values
    spectrum = np.fft.rfft(rest, 2 * n)
    agree = np.fft.irfft(spectrum * spectrum.conj())[: n // 3] / power
    peaks = [
        lag
        for lag in range(4, len(agree) - 1)
        if agree[lag] >= agree[lag - 1] and agree[lag] > agree[lag + 1] and agree[lag] > 0.3
    ]
    if not peaks:
        return values
    period = max(peaks, key=lambda lag: agree[lag])
    level = median_filter(values, size=2 * (period // 2) + 1, mode="nearest")
    swing = values - level
    phase = np.arange(n) % period
    season = np.array([np.median(swing[phase == p]) for p in range(period)])
    season = (season - season.mean())[phase]
    left = swing - season
    return values - season if left.var() < (1 - SEASON_STRENGTH) * swing.var() else values


def _partition(values: Floats, penalty: float) -> tuple[list[int], Floats]:
    """Cuts and fitted line of the cheapest partition."""
    n = len(values)
    scaled = (values - values.mean()) / values.std()
    width = -(-n // MOST_CELLS)
    edges = np.unique(np.r_[np.arange(0, n, width), n])
    sums = _Sums(scaled)
    price = penalty * np.log(n)
    slope = TREND_PRICE * np.log(n)
    m = len(edges) - 1
    best = np.full(m + 1, np.inf)
    best[0] = -price
    last = np.zeros(m + 1, dtype=int)
    least = max(1, -(-SHORTEST // width))
    for j in range(least, m + 1):
        i = np.arange(0, j - least + 1)
        cost = best[i] + price + sums.cost(edges[i], edges[j], slope)
        last[j] = int(cost.argmin())
        best[j] = cost[last[j]]
    cuts: list[int] = []
    j = int(last[m])
    while j > 0:
        cuts.append(int(edges[j]))
        j = int(last[j])
    cuts.reverse()
    if width > 1:
        cuts = _sharpened(cuts, sums, slope, width, n)
    bounds = [0, *cuts, n]
    fit = np.concatenate([sums.fit(a, b, slope) for a, b in itertools.pairwise(bounds)])
    return cuts, fit * values.std() + values.mean()


def _sharpened(cuts: list[int], sums: _Sums, slope: float, width: int, n: int) -> list[int]:
    """Each cut moved to the best single sample near it."""
    bounds = [0, *cuts, n]
    for at in range(1, len(bounds) - 1):
        low = max(bounds[at - 1] + SHORTEST, bounds[at] - width)
        high = min(bounds[at + 1] - SHORTEST, bounds[at] + width)
        places = np.arange(low, high + 1)
        cost = sums.cost(np.full(len(places), bounds[at - 1]), places, slope)
        cost = cost + sums.cost(places, bounds[at + 1], slope)
        bounds[at] = int(places[cost.argmin()])
    return bounds[1:-1]


class _Sums:
    """Running sums that give the squared error of a level or a line over any stretch at once."""

    def __init__(self, y: Floats) -> None:
        t = np.arange(len(y), dtype=float)
        self.y = y
        self.sy, self.syy, self.sty = (
            np.concatenate([[0.0], np.cumsum(part)]) for part in (y, y * y, t * y)
        )

    def _moments(self, i: np.ndarray, j: np.ndarray | int) -> tuple[Floats, Floats, Floats]:
        n = np.asarray(j - i, dtype=float)
        sum_y = self.sy[j] - self.sy[i]
        flat = np.maximum(self.syy[j] - self.syy[i] - sum_y**2 / n, 0.0)
        middle = (i + j - 1) / 2
        along = self.sty[j] - self.sty[i] - middle * sum_y
        lean = np.maximum(n * (n * n - 1) / 12, 1e-9)
        return flat, along, lean

    def cost(self, i: np.ndarray, j: np.ndarray | int, slope: float) -> Floats:
        """Squared error, plus the price of a slope where a line is the cheaper choice."""
        flat, along, lean = self._moments(i, j)
        tilted = np.maximum(flat - along**2 / lean, 0.0) + slope
        return np.asarray(np.minimum(flat, tilted))

    def fit(self, i: int, j: int, slope: float) -> Floats:
        """The chosen level or line over one stretch."""
        _, along, lean = self._moments(np.array([i]), j)
        mean = self.y[i:j].mean()
        if along[0] ** 2 / lean[0] <= slope:
            return np.full(j - i, mean)
        return np.asarray(mean + along[0] / lean[0] * (np.arange(i, j) - (i + j - 1) / 2))
