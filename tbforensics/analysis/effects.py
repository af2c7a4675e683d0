"""How big: a window against its baseline, as a ratio and a difference with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy

from tbforensics.analysis.signals import (
    Floats,
    Kind,
    as_frame,
    bucket_increases,
    counter_increases,
    lag_one,
    rows_between,
)

CONFIDENCE = 0.95
RESAMPLES = 999
SEED = 20_240_607  # fixed: the same evidence gives the same interval
MOST_PAIRS = 2_000  # samples a side beyond which pairwise comparisons take an even thinning
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class EffectSize:
    """A window measured against its baseline.

    ratio, ratio_interval: window over baseline, with 95 % limits; NaN where it has no meaning.
    difference, difference_interval: window less baseline, in the signal's unit (counts: per row).
    baseline, window: the two levels compared: rate per row, median, or quantile.
    hodges_lehmann: median of all pairwise differences; gauges only.
    cliffs_delta: chance that a window sample is the larger, less that it is the smaller; gauges.
    p_value: of "no effect".
    quantiles: histograms: (q, baseline, window) for each quantile; NaN where unresolved.
    rows: samples in baseline and window that the answer rests on.
    unresolved: what the data could not resolve, in words; "" when nothing.
    """

    ratio: float
    ratio_interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]
    baseline: float
    window: float
    p_value: float
    rows: tuple[int, int]
    hodges_lehmann: float = math.nan
    cliffs_delta: float = math.nan
    quantiles: tuple[tuple[float, float, float], ...] = ()
    unresolved: str = ""


def effect_size(
    data: pd.Series | pd.DataFrame,
    window: Any,
    baseline: Any,
    kind: Kind = "gauge",
    *,
    reference: pd.Series | None = None,
) -> EffectSize:
    """How much a signal differs between a window and its baseline.

    Shape:  a Series; for histograms a frame of buckets of one label (columns "label|le", a level
            `le`, or bare bounds). `window` and `baseline` are half-open pairs of times, or
            anything with `.start` and `.end`.
            reference: a positive series on the same index (shared load) to divide by first.
    Unit:   counters: counts per row; gauges and histograms: their own.
    Errors: ValueError for an unknown kind, or buckets of several labels. Too few samples are no
            error: the numbers are NaN and `unresolved` says why.
    Source: counters: rate ratio, each count divided by its overdispersion, interval of
            Clopper and Pearson (1934) on the conditional binomial. Gauges: medians with a
            stationary block bootstrap (Politis and Romano, JASA 89, 1994); Hodges and Lehmann
            (1963); Cliff, "Dominance statistics" (1993); Mann-Whitney on samples thinned by
            their autocorrelation. Histograms: quantiles interpolated within a bucket on a log
            scale; chi-square on bucket counts.
    """
    frame = as_frame(data)
    if kind in ("histogram", "bucket_increase"):
        return _histogram_effect(frame, window, baseline, kind)
    if kind not in ("gauge", "counter", "increase"):
        raise ValueError(
            f"kind {kind!r} is none of gauge, counter, increase, histogram, bucket_increase"
        )
    if frame.shape[1] != 1:
        raise ValueError(f"one series at a time; got {frame.shape[1]} columns")
    signal = counter_increases(frame) if kind == "counter" else frame
    if reference is not None:
        load = reference.reindex(signal.index).astype(float)
        signal = signal.div(load / load.mean(), axis=0)
    values = signal.iloc[:, 0].to_numpy(dtype=float)
    calm = values[rows_between(signal.index, baseline)]
    upset = values[rows_between(signal.index, window)]
    calm, upset = calm[np.isfinite(calm)], upset[np.isfinite(upset)]
    if not len(calm) or not len(upset):
        return _nothing(len(calm), len(upset))
    if kind == "gauge":
        return _gauge_effect(calm, upset)
    return _count_effect(calm, upset)


def _nothing(calm: int, upset: int) -> EffectSize:
    side = "baseline and window" if not calm and not upset else "baseline" if not calm else "window"
    none = (math.nan, math.nan)
    return EffectSize(
        math.nan,
        none,
        math.nan,
        none,
        math.nan,
        math.nan,
        1.0,
        (calm, upset),
        unresolved=f"no samples in the {side}",
    )


def _count_effect(calm: Floats, upset: Floats) -> EffectSize:
    rows_b, rows_w = len(calm), len(upset)
    inflation = max(_dispersion(calm), _dispersion(upset))
    x_b, x_w = float(calm.sum()), float(upset.sum())
    rate_b, rate_w = x_b / rows_b, x_w / rows_w
    hits, trials = x_w / inflation, (x_w + x_b) / inflation
    tail = (1 - CONFIDENCE) / 2
    # Clopper and Pearson's limits as beta quantiles, which accept the divided counts.
    low = float(scipy.stats.beta.ppf(tail, hits, trials - hits + 1)) if hits > 0 else 0.0
    high = float(scipy.stats.beta.ppf(1 - tail, hits + 1, trials - hits)) if x_b > 0 else 1.0
    limits = (_odds(low) * rows_b / rows_w, _odds(high) * rows_b / rows_w)
    spread = scipy.stats.norm.ppf(1 - tail) * math.sqrt(
        inflation * (max(x_b, 1.0) / rows_b**2 + max(x_w, 1.0) / rows_w**2)
    )
    n = round(trials)
    chance = rows_w / (rows_b + rows_w)
    p_value = float(scipy.stats.binomtest(min(round(hits), n), n, chance).pvalue) if n else 1.0
    note = "" if x_b > 0 else "the baseline counted nothing: there is no ratio to give"
    difference = rate_w - rate_b
    return EffectSize(
        ratio=rate_w / rate_b if x_b > 0 else (math.inf if x_w > 0 else math.nan),
        ratio_interval=limits if x_b + x_w > 0 else (math.nan, math.nan),
        difference=difference,
        difference_interval=(difference - spread, difference + spread),
        baseline=rate_b,
        window=rate_w,
        p_value=p_value,
        rows=(rows_b, rows_w),
        unresolved=note,
    )


def _odds(chance: float) -> float:
    return chance / (1 - chance) if chance < 1 else math.inf


def _dispersion(counts: Floats) -> float:
    """Variance over mean, stretched by the autocorrelation; at least 1, the Poisson value."""
    if len(counts) < 4 or counts.mean() <= 0:
        return 1.0
    phi = lag_one(counts - counts.mean())
    return max(1.0, float(counts.var(ddof=1) / counts.mean()) * (1 + phi) / (1 - phi))


def _gauge_effect(calm: Floats, upset: Floats) -> EffectSize:
    rng = np.random.default_rng(SEED)
    median_b, median_w = float(np.median(calm)), float(np.median(upset))
    boot_b, boot_w = _block_medians(calm, rng), _block_medians(upset, rng)
    tails = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
    difference_limits = np.quantile(boot_w - boot_b, tails)
    few, many = _evenly(calm), _evenly(upset)
    pairwise = many[:, None] - few[None, :]
    positive = min(calm.min(), upset.min()) >= 0 and median_b > 0
    ratio, ratio_limits = math.nan, np.array([math.nan, math.nan])
    if positive:
        ratio = median_w / median_b
        ratio_limits = np.quantile(boot_w / np.where(boot_b > 0, boot_b, np.nan), tails)
    thin = _independent(calm), _independent(upset)
    distinct = np.ptp(np.concatenate(thin)) > 0
    p_value = float(scipy.stats.mannwhitneyu(*thin).pvalue) if distinct else 1.0
    return EffectSize(
        ratio=ratio,
        ratio_interval=(float(ratio_limits[0]), float(ratio_limits[1])),
        difference=median_w - median_b,
        difference_interval=(float(difference_limits[0]), float(difference_limits[1])),
        baseline=median_b,
        window=median_w,
        p_value=p_value,
        rows=(len(calm), len(upset)),
        hodges_lehmann=float(np.median(pairwise)),
        cliffs_delta=float(np.sign(pairwise).mean()),
        unresolved="" if positive else "a ratio needs positive levels; read the difference",
    )


def _evenly(values: Floats) -> Floats:
    return values[:: max(1, math.ceil(len(values) / MOST_PAIRS))]


def _independent(values: Floats) -> Floats:
    """Every m-th sample, m being the time that the series takes to forget itself."""
    phi = lag_one(values - values.mean())
    return values[:: max(1, min(round((1 + phi) / (1 - phi)), max(1, len(values) // 4)))]


def _block_medians(values: Floats, rng: np.random.Generator) -> Floats:
    """Medians of resampled series, in blocks of random length, about three memory times long."""
    values = _evenly(values)
    n = len(values)
    if n == 1:
        return np.full(RESAMPLES, values[0])
    phi = lag_one(values - values.mean())
    block = min(max(1.0, 3 * (1 + phi) / (1 - phi)), max(n / 4, 1.0))
    fresh = rng.random((RESAMPLES, n)) < 1 / block
    fresh[:, 0] = True
    starts = rng.integers(0, n, (RESAMPLES, n))
    rows = np.arange(n)
    origin = np.maximum.accumulate(np.where(fresh, rows, 0), axis=1)
    picked = (np.take_along_axis(starts, origin, axis=1) + rows - origin) % n
    return np.asarray(np.median(values[picked], axis=1))


def _histogram_effect(frame: pd.DataFrame, window: Any, baseline: Any, kind: Kind) -> EffectSize:
    by_label = bucket_increases(frame, kind == "histogram")
    if len(by_label) != 1:
        raise ValueError(f"one label's buckets at a time; got {len(by_label)}")
    (counts,) = by_label.values()
    bounds = counts.columns.to_numpy(dtype=float)
    values = counts.to_numpy()
    sides = []
    for part in (baseline, window):
        rows = values[rows_between(counts.index, part)]
        sides.append(rows[np.isfinite(rows).all(axis=1)])
    calm, upset = sides
    if not calm.sum() or not upset.sum():
        return _nothing(len(calm) if calm.sum() else 0, len(upset) if upset.sum() else 0)
    quantiles = tuple(
        (q, _quantile(calm.sum(axis=0), bounds, q), _quantile(upset.sum(axis=0), bounds, q))
        for q in QUANTILES
    )
    resolved = [(q, b, w) for q, b, w in quantiles if math.isfinite(b) and math.isfinite(w)]
    table = np.vstack([calm.sum(axis=0), upset.sum(axis=0)])
    table = table[:, table.sum(axis=0) > 0]
    p_value = float(scipy.stats.chi2_contingency(table).pvalue) if table.shape[1] > 1 else 1.0
    missing = [q for q, b, w in quantiles if not (math.isfinite(b) and math.isfinite(w))]
    note = ""
    if missing:
        names = ", ".join(f"{q:g}" for q in missing)
        note = (
            f"quantiles {names} lie below the first bound {bounds[0]:g} or above the last"
            f" {bounds[np.isfinite(bounds)][-1]:g} on one side; they are not interpolated"
        )
    if not resolved:
        none = (math.nan, math.nan)
        return EffectSize(
            math.nan,
            none,
            math.nan,
            none,
            math.nan,
            math.nan,
            p_value,
            (len(calm), len(upset)),
            quantiles=quantiles,
            unresolved=note,
        )
    q, low, high = resolved[0]
    rng = np.random.default_rng(SEED)
    boot_b, boot_w = (_bootstrap_quantile(side, bounds, q, rng) for side in (calm, upset))
    tails = [(1 - CONFIDENCE) / 2, 1 - (1 - CONFIDENCE) / 2]
    ratio_limits = np.nanquantile(boot_w / boot_b, tails)
    difference_limits = np.nanquantile(boot_w - boot_b, tails)
    return EffectSize(
        ratio=high / low,
        ratio_interval=(float(ratio_limits[0]), float(ratio_limits[1])),
        difference=high - low,
        difference_interval=(float(difference_limits[0]), float(difference_limits[1])),
        baseline=low,
        window=high,
        p_value=p_value,
        rows=(len(calm), len(upset)),
        quantiles=quantiles,
        unresolved=note,
    )


def _quantile(counts: Floats, bounds: Floats, q: float) -> float:
    """The q-quantile within its bucket, on a log scale; NaN in the first or an infinite bucket."""
    cumulative = np.cumsum(counts)
    if cumulative[-1] <= 0:
        return math.nan
    rank = q * cumulative[-1]
    bucket = int(np.searchsorted(cumulative, rank))
    if bucket == 0 or bucket >= len(bounds) or not math.isfinite(bounds[bucket]):
        return math.nan
    low, high = bounds[bucket - 1], bounds[bucket]
    part = (rank - cumulative[bucket - 1]) / max(counts[bucket], 1e-300)
    return float(low * (high / low) ** part) if low > 0 else float(low + (high - low) * part)


def _bootstrap_quantile(rows: Floats, bounds: Floats, q: float, rng: np.random.Generator) -> Floats:
    picks = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=299)
    return np.array([_quantile(counts, bounds, q) for counts in picks @ rows])
