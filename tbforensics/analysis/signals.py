"""Raw samples into signals fit for statistics: rates, noise, season. Pure arithmetic."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]
Time = Any  # a label of the frame's index: a Timestamp, or a number on a plain index
Label = Any  # a column's name: a string, or a tuple of label values
Kind = Literal["gauge", "counter", "increase", "histogram", "bucket_increase"]

PERIODIC = 0.3  # autocorrelation that a period must have, and rise to after a dip
SEASON_STRENGTH = 0.6  # share of the swing that a season must explain to be taken out
MAD_TO_SD = 1.4826  # makes the median absolute deviation a standard deviation for normal noise


def as_frame(data: pd.Series | pd.DataFrame) -> pd.DataFrame:
    """A Series as a frame of one column; a frame as it is. Infinite samples become missing."""
    frame = data.to_frame() if isinstance(data, pd.Series) else data
    return frame.astype(float).replace([np.inf, -np.inf], np.nan)


def rows_between(index: pd.Index, bounds: Any) -> Rows:
    """Row numbers inside the half-open `[start, end)`.

    `bounds` is a pair, or anything with `.start` and `.end`; an end of None is open. Zones are
    reconciled with the index: aware bounds meet a naive index as UTC.
    """
    start, end = (bounds.start, bounds.end) if hasattr(bounds, "start") else bounds
    inside = np.ones(len(index), dtype=bool)
    if start is not None:
        inside &= np.asarray(index >= moment_on(index, start))
    if end is not None:
        inside &= np.asarray(index < moment_on(index, end))
    return np.flatnonzero(inside)


def moment_on(index: pd.Index, moment: Time) -> Time:
    """`moment` in the terms of `index`, so that the two compare."""
    if not isinstance(index, pd.DatetimeIndex):
        return moment
    stamp = pd.Timestamp(moment)
    if index.tz is None and stamp.tz is not None:
        return stamp.tz_convert("UTC").tz_localize(None)
    if index.tz is not None and stamp.tz is None:
        return stamp.tz_localize("UTC")
    return stamp


def counter_increases(raw: pd.DataFrame) -> pd.DataFrame:
    """What each cumulative counter gained since the row before.

    Shape:  n rows in, n - 1 out (the first row has nothing before it), same columns.
    Unit:   counts per row. A fall is a restart from zero, as in Prometheus `increase()`. What a
            gap of lost scrapes gained is spread evenly over it; rows before the first sample and
            after the last are NaN.
    Errors: none; an empty frame gives an empty frame.
    """
    filled = raw.astype(float).interpolate(limit_area="inside")
    known = raw.ffill().to_numpy(dtype=float)
    present = raw.notna().to_numpy()
    before = np.vstack([np.full((1, raw.shape[1]), np.nan), known[:-1]])
    fell = present & (known < before)
    gained = filled.diff().to_numpy(copy=True)
    for column in np.flatnonzero(fell.any(axis=0)):
        samples = np.flatnonzero(present[:, column])
        for row in np.flatnonzero(fell[:, column]):
            last = samples[np.searchsorted(samples, row) - 1]
            gained[last + 1 : row + 1, column] = known[row, column] / (row - last)
    return pd.DataFrame(gained[1:], index=raw.index[1:], columns=raw.columns)


def bucket_names(columns: pd.Index) -> tuple[list[Label], list[float]]:
    """Columns "label|le", bare "le", or a MultiIndex with a level `le`: labels, upper bounds.

    Errors: ValueError when a bound is not a number.
    """
    if isinstance(columns, pd.MultiIndex) and "le" in columns.names:
        level = columns.names.index("le")
        rest = [tuple(v for i, v in enumerate(c) if i != level) for c in columns]
        named = [label[0] if len(label) == 1 else label for label in rest]
        return named, [float(column[level]) for column in columns]
    labels, bounds = [], []
    for column in map(str, columns):
        label, _, bound = column.rpartition("|")
        labels.append(label)
        try:
            bounds.append(float(bound))
        except ValueError:
            raise ValueError(f"{column!r} does not end in a bucket bound such as '|0.5'") from None
    return labels, bounds


def bucket_increases(
    raw: pd.DataFrame, cumulative_in_time: bool = True
) -> dict[Label, pd.DataFrame]:
    """Per label, the observations that fell into each bucket in each row.

    Shape:  cumulative buckets (see `bucket_names`), n rows in; per label a frame whose columns
            are the upper bounds in ascending order, the last one infinite when given. Raw
            counters lose their first row; `cumulative_in_time=False` says that they are
            increases per row already, and keeps all n.
    Unit:   observations per row, each counted in one bucket only.
    Errors: ValueError when a column name holds no bound.

    A process restarts with all its buckets: when one of them falls, all start from zero.
    """
    labels, bounds = bucket_names(raw.columns)
    values = raw.to_numpy(dtype=float)
    members: dict[Label, list[int]] = {}
    for column in np.argsort(bounds, kind="stable"):
        members.setdefault(labels[column], []).append(int(column))
    result = {}
    for label in dict.fromkeys(labels):
        part = values[:, members[label]]
        gained = _gained_together(part) if cumulative_in_time else part
        single = np.maximum(np.diff(gained, axis=1, prepend=0.0), 0.0)
        index = raw.index[1:] if cumulative_in_time else raw.index
        columns = [bounds[column] for column in members[label]]
        result[label] = pd.DataFrame(single, index=index, columns=columns)
    return result


def _gained_together(part: Floats) -> Floats:
    kept = np.flatnonzero(np.isfinite(part).all(axis=1))
    gained = np.full((max(len(part) - 1, 0), part.shape[1]), np.nan)
    if len(kept) < 2:
        return gained
    step = np.diff(part[kept], axis=0)
    fell = (step < 0).any(axis=1)
    step[fell] = part[kept[1:]][fell]
    rows = np.diff(kept)
    gained[kept[0] : kept[-1]] = np.repeat(step / rows[:, None], rows, axis=0)
    return gained


def bucket_middles(bounds: Floats) -> Floats:
    """A typical value for each bucket: the geometric middle; half the first, twice the last."""
    finite = bounds[np.isfinite(bounds)]
    low = np.concatenate([[finite[0] / 2], finite])[: len(bounds)]
    high = np.where(np.isfinite(bounds), bounds, finite[-1] * 4)
    return np.asarray(np.sqrt(low * high))


def typical_latency(raw: pd.DataFrame, cumulative_in_time: bool = True) -> pd.DataFrame:
    """Per label and row, the geometric mean of what was observed, read off the buckets.

    Shape:  as `bucket_increases`; one column per label out.
    Unit:   that of the bounds. Rows without observations are NaN. Coarse: good for when and
            which, while `effect_size` answers how much.
    """
    increases = bucket_increases(raw, cumulative_in_time)
    columns = {}
    for label, counts in increases.items():
        weights = counts.to_numpy()
        total = weights.sum(axis=1)
        logs = np.log(bucket_middles(counts.columns.to_numpy(dtype=float)))
        with np.errstate(invalid="ignore", divide="ignore"):
            columns[label] = np.exp(np.where(total > 0, weights @ logs / total, np.nan))
    index = raw.index[1:] if cumulative_in_time else raw.index
    return pd.DataFrame(columns, index=index)


def signal_of(frame: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """What to look at for each kind: gauges and increases as they are, rates, typical latency.

    Errors: ValueError for a kind that is not known, or a bucket column without a bound.
    """
    if kind == "counter":
        return counter_increases(frame)
    if kind in ("histogram", "bucket_increase"):
        return typical_latency(frame, kind == "histogram")
    if kind not in ("gauge", "increase"):
        raise ValueError(
            f"kind {kind!r} is none of gauge, counter, increase, histogram, bucket_increase"
        )
    return frame


def filled(values: Floats) -> Floats:
    """Missing samples drawn straight between their neighbours, so that row numbers stay true."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) in (0, len(values)):
        return np.zeros_like(values) if len(known) == 0 else values.astype(float)
    return np.interp(np.arange(len(values)), known, values[known])


def robust_sd(values: Floats) -> float:
    """Standard deviation by the median absolute deviation; by the mean one when that is zero."""
    if len(values) == 0:
        return 0.0
    distance = np.abs(values - np.median(values))
    return float(MAD_TO_SD * np.median(distance) or 1.2533 * distance.mean())


def without_spikes(values: Floats, width: int = 5, limit: float = 5.0) -> Floats:
    """Lone samples far from the median of their neighbourhood, replaced by that median.

    Shape:  n values in, n out. A stretch longer than `width // 2` samples is no spike and stays.
    """
    if len(values) < width:
        return values
    middle = scipy.ndimage.median_filter(values, size=width, mode="mirror")
    away = values - middle
    sd = robust_sd(away)
    return np.where(np.abs(away) > limit * sd, middle, values) if sd > 0 else values


def lag_one(residual: Floats) -> float:
    """First-order autocorrelation, kept within [0, 0.97] and corrected for its small-sample bias.

    Source: Kendall, "Note on bias in the estimation of autocorrelation", Biometrika 41, 1954.
    """
    n = len(residual)
    power = float(residual @ residual)
    if n < 8 or power <= 0.0:
        return 0.0
    phi = float(residual[1:] @ residual[:-1]) / power
    return float(np.clip(phi + (1 + 3 * phi) / n, 0.0, 0.97))


def period(values: Floats) -> int:
    """The lag at which the detrended series agrees best with itself; 0 when none does well."""
    n = len(values)
    if n < 24:
        return 0
    rows = np.arange(n)
    rest = values - np.polyval(np.polyfit(rows, values, 1), rows)
    power = float(rest @ rest)
    if power <= 0:
        return 0
    spectrum = np.fft.rfft(rest, 2 * n)
    agree = np.fft.irfft(np.abs(spectrum) ** 2)[: n // 3] / power
    # A slow series agrees with itself at any short lag; a period comes after a dip.
    rise = agree - np.minimum.accumulate(agree)
    good = np.flatnonzero((rise > PERIODIC) & (agree > PERIODIC))
    if not len(good):
        return 0
    lag = int(good[agree[good].argmax()])
    # Off by one, the phases drift apart; twice as far away the same error counts half.
    far, times, reach = lag, 1, max(1, lag // 8)
    while 2 * far + reach < len(agree):
        low = 2 * far - reach
        far, times = low + int(agree[low : 2 * far + reach + 1].argmax()), 2 * times
    return round(far / times)


def without_season(values: Floats, lag: int) -> Floats:
    """The series less its season, when there is one worth taking out.

    The season is the median of each phase, its height free to grow and shrink over the periods.
    """
    if not lag:
        return values
    n = len(values)
    phase = np.arange(n) % lag
    swing = values - scipy.ndimage.median_filter(values, size=2 * (lag // 2) + 1, mode="nearest")
    whole = (np.arange(n) >= lag // 2) & (np.arange(n) < n - lag // 2)  # a level needs its period
    typical = np.array([np.median(swing[whole & (phase == p)]) for p in range(lag)])
    season = (typical - typical.mean())[phase]
    power = scipy.ndimage.uniform_filter1d(season * season * whole, 4 * lag + 1, mode="constant")
    height = scipy.ndimage.uniform_filter1d(swing * season * whole, 4 * lag + 1, mode="constant")
    season = season * np.maximum(height / np.maximum(power, 1e-300), 0.0)
    if (swing - season)[whole].var() >= (1 - SEASON_STRENGTH) * swing[whole].var():
        return values
    calm: Floats = values - season
    return calm
