"""Functions over a range of samples, for all moments of one series at once. Pure numpy.

Source: Prometheus, promql/functions.go. Samples of a range lie side by side, so that each function
is a few passes over arrays; sums run window by window and never as differences of running totals,
which would lose digits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tbforensics.promql.series import Bools, Floats, Ints, Series

_ALLOWANCE = 1.1  # of the mean distance of samples: nearer to the edge than that is "at the edge"


@dataclass(frozen=True)
class Semantics:
    """What differs between versions of Prometheus.

    left_open:   a range `(start, end]` and not `[start, end]`, and so the lookback: since 3.0.
    late_zero:   the zero point of a counter limits extrapolation only after its distance to the
                 edge did: since 2.52 (pull request 13725).
    lookback_ms: how old a sample may be and still be the value now.
    dot_is_any:  `.` in a regex matches a line break too: since 3.0.
    """

    left_open: bool = False
    late_zero: bool = False
    lookback_ms: int = 300_000
    dot_is_any: bool = False


def semantics(version: str, lookback_ms: int = 300_000) -> Semantics:
    """Those of a server's version, such as `2.42.0+ds`; of 3.x where it cannot be read."""
    digits = version.removeprefix("v").split(".")
    try:
        number = int(digits[0]), int(digits[1])
    except (ValueError, IndexError):
        number = (3, 0)
    newest = number >= (3, 0)
    return Semantics(newest, number >= (2, 52), lookback_ms, newest)


class Windows:
    """The samples of one series that lie in the range before each moment.

    first, last: places of the first sample in the range and after the last one; equal for none.
    start, end:  of the range, in ms.
    """

    def __init__(
        self, series: Series, moments: Ints, range_ms: int, offset_ms: int, rules: Semantics
    ) -> None:
        self.times, self.values = series.times, series.values
        self.end = moments - offset_ms
        self.start = self.end - range_ms
        side: Any = "right" if rules.left_open else "left"
        self.first = np.searchsorted(self.times, self.start, side=side)
        self.last = np.maximum(np.searchsorted(self.times, self.end, side="right"), self.first)
        self.count = self.last - self.first
        self.rules, self.moments = rules, moments

    def reduced(self, ufunc: np.ufunc, values: Floats, skip: int = 0, empty: float = 0.0) -> Floats:
        """`ufunc` over each window of `values`, less its first `skip` samples."""
        first = np.minimum(self.first + skip, self.last)
        result = np.full(len(first), empty)
        some = first < self.last
        if some.any():
            edges = np.column_stack([first[some], self.last[some]]).ravel()
            padded = np.append(values, 0.0)  # so that the end of the last window has a place
            result[some] = ufunc.reduceat(padded, edges)[::2]
        return result

    def places(self) -> tuple[Ints, Ints]:
        """(window, place of sample) of every sample of every window, window by window."""
        window = np.repeat(np.arange(len(self.count)), self.count)
        before = np.cumsum(self.count) - self.count
        return window, np.arange(len(window)) - np.repeat(before - self.first, self.count)

    def at(self, places: Ints) -> Floats:
        if not len(self.values):
            return np.full(len(places), np.nan)
        return np.asarray(self.values[np.clip(places, 0, len(self.values) - 1)])

    def time_at(self, places: Ints) -> Ints:
        """In ms, so that differences are exact."""
        if not len(self.times):
            return np.zeros(len(places), np.int64)
        return np.asarray(self.times[np.clip(places, 0, len(self.times) - 1)])


Answer = tuple[Floats, Bools]  # a value for each moment, and whether there is one


def extrapolated(windows: Windows, *, counter: bool, rate: bool) -> Answer:
    """`rate`, `increase` (counter) and `delta`: the change between the first and the last sample
    of the range, stretched towards the edges of the range.

    It is a guess by design. Ours that counts (`frames.increase`) never extrapolates: it adds what
    was seen to have happened, so that sums over steps are exact.
    """
    enough = windows.count >= 2
    opening = windows.at(windows.first)
    change = windows.at(windows.last - 1) - opening
    if counter:
        values = windows.values
        fell = np.zeros(len(values))
        fell[1:] = np.where(values[1:] < values[:-1], values[:-1], 0.0)
        change = change + windows.reduced(np.add, fell, skip=1)
    first, last = windows.time_at(windows.first), windows.time_at(windows.last - 1)
    span, before = (last - first) / 1000.0, (first - windows.start) / 1000.0
    after = (windows.end - last) / 1000.0
    usual = span / np.maximum(windows.count - 1, 1)
    near = usual * _ALLOWANCE
    if windows.rules.late_zero:
        before = np.where(before >= near, usual / 2, before)
    if counter:
        zero = span * (opening / change)
        before = np.where((change > 0) & (opening >= 0) & (zero < before), zero, before)
    if not windows.rules.late_zero:
        before = np.where(before < near, before, usual / 2)
    after = np.where(after < near, after, usual / 2)
    factor = (span + before + after) / span
    if rate:
        factor = factor / ((windows.end - windows.start) / 1000.0)
    return change * factor, enough


def _instant(windows: Windows, *, rate: bool) -> Answer:
    """`irate`, `idelta`: from the last two samples of the range alone."""
    last, before = windows.at(windows.last - 1), windows.at(windows.last - 2)
    apart = (windows.time_at(windows.last - 1) - windows.time_at(windows.last - 2)) / 1000.0
    there = (windows.count >= 2) & (apart > 0)
    if not rate:
        return last - before, there
    return np.where(last < before, last, last - before) / apart, there


def _counted(windows: Windows, happened: Bools) -> Answer:
    marks = np.append(False, happened).astype(float)[: len(windows.values)]
    return windows.reduced(np.add, marks, skip=1), windows.count >= 1


def _changes(windows: Windows) -> Answer:
    now, then = windows.values[1:], windows.values[:-1]
    return _counted(windows, (now != then) & ~(np.isnan(now) & np.isnan(then)))


def _resets(windows: Windows) -> Answer:
    return _counted(windows, windows.values[1:] < windows.values[:-1])


def _sum(windows: Windows) -> Answer:
    return windows.reduced(np.add, windows.values), windows.count >= 1


def _avg(windows: Windows) -> Answer:
    return windows.reduced(np.add, windows.values) / windows.count, windows.count >= 1


def _min(windows: Windows) -> Answer:
    return windows.reduced(np.fmin, windows.values), windows.count >= 1


def _max(windows: Windows) -> Answer:
    return windows.reduced(np.fmax, windows.values), windows.count >= 1


def _count(windows: Windows) -> Answer:
    return windows.count.astype(float), windows.count >= 1


def _present(windows: Windows) -> Answer:
    return np.ones(len(windows.count)), windows.count >= 1


def _last(windows: Windows) -> Answer:
    return windows.at(windows.last - 1), windows.count >= 1


def _variance(windows: Windows) -> Answer:
    mean, there = _avg(windows)
    window, place = windows.places()
    apart = (windows.values[place] - mean[window]) ** 2
    return np.bincount(window, apart, len(mean)) / windows.count, there


def _deviation(windows: Windows) -> Answer:
    variance, there = _variance(windows)
    return np.sqrt(variance), there


def _line(windows: Windows, origin: Ints) -> tuple[Floats, Floats]:
    """Slope and value at `origin` (ms) of the least-squares line through each window."""
    window, place = windows.places()
    n = len(windows.count)
    x = (windows.times[place] - origin[window]) / 1000.0
    opening = windows.at(windows.first)
    y = windows.values[place] - opening[window]  # a shift that keeps digits of large counters
    count = np.maximum(windows.count, 1)
    sum_x, sum_y = np.bincount(window, x, n), np.bincount(window, y, n)
    cov = np.bincount(window, x * y, n) - sum_x * sum_y / count
    var = np.bincount(window, x * x, n) - sum_x * sum_x / count
    slope = cov / var
    level = ~np.asarray(np.bincount(window, y != 0, n) > 0) & np.isfinite(opening)
    slope = np.where(level, 0.0, slope)
    return slope, np.where(level, opening, sum_y / count - slope * sum_x / count + opening)


def _slope(windows: Windows) -> Answer:
    return _line(windows, windows.time_at(windows.first))[0], windows.count >= 2


def predicted(windows: Windows, ahead_s: Floats) -> Answer:
    """`predict_linear`: the line through the range, so many seconds after the moment."""
    slope, level = _line(windows, windows.moments)
    return slope * ahead_s + level, windows.count >= 2


def quantiles(windows: Windows, q: Floats) -> Answer:
    """`quantile_over_time`: interpolated between the two nearest samples."""
    window, place = windows.places()
    values = windows.values[place]
    order = np.lexsort((values, ~np.isnan(values), window))  # NaN is the smallest of all
    before = np.cumsum(windows.count) - windows.count
    return quantile_of(values[order], before, windows.count, q), windows.count >= 1


def quantile_of(ordered: Floats, first: Ints, count: Ints, q: Floats) -> Floats:
    """The q-quantile of each run of `count` ascending values that begins at `first`."""
    rank = np.clip(q, 0, 1) * (np.maximum(count, 1) - 1)
    low = np.floor(rank)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    padded = np.append(ordered, np.nan)
    at = np.where(count > 0, first, len(ordered))
    rank, low, high = np.nan_to_num(rank), np.nan_to_num(low), np.nan_to_num(high)
    lower = padded[np.minimum(at + low.astype(int), len(ordered))]
    upper = padded[np.minimum(at + high.astype(int), len(ordered))]
    weight = rank - low
    # A weight of nothing takes nothing, even of infinity.
    value = np.where(weight == 0, lower, lower * (1 - weight) + upper * weight)
    value = np.where(q < 0, -np.inf, np.where(q > 1, np.inf, value))
    return np.asarray(np.where(np.isnan(q) | (count == 0), np.nan, value))


FUNCTIONS: dict[str, Callable[[Windows], Answer]] = {
    "rate": lambda w: extrapolated(w, counter=True, rate=True),
    "increase": lambda w: extrapolated(w, counter=True, rate=False),
    "delta": lambda w: extrapolated(w, counter=False, rate=False),
    "irate": lambda w: _instant(w, rate=True),
    "idelta": lambda w: _instant(w, rate=False),
    "changes": _changes,
    "resets": _resets,
    "deriv": _slope,
    "avg_over_time": _avg,
    "min_over_time": _min,
    "max_over_time": _max,
    "sum_over_time": _sum,
    "count_over_time": _count,
    "last_over_time": _last,
    "present_over_time": _present,
    "stddev_over_time": _deviation,
    "stdvar_over_time": _variance,
}
