"""Quantiles of histograms made of buckets: as Prometheus guesses them, and as they can be known.

Source: Prometheus, promql/quantile.go (bucketQuantile).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tbforensics.promql.series import Floats
from tbforensics.promql.vectors import Vector, groups, kept_labels, patterns, stacked, unique


@dataclass(frozen=True)
class Quantile:
    """A quantile, or why the buckets cannot resolve it.

    value:      NaN where it is unresolved.
    lower, upper: the bounds of the bucket that it lies in; -inf and inf where there is none.
    unresolved: "" when it lies between two finite bounds.
    """

    value: float
    lower: float
    upper: float
    unresolved: str = ""


def quantile(bounds: Floats, counts: Floats, q: float) -> Quantile:
    """The q-quantile of cumulative counts by ascending bound, never beyond what buckets resolve.

    Prometheus answers the first bound times a share below it, and the last finite bound above it:
    a number that looks measured and is not. Here such a quantile has no value.

    Shape:  as many bounds as counts, the last bound +Inf.
    Errors: ValueError for a `q` outside [0, 1], or bounds that do not end with +Inf.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    if not len(bounds) or not math.isinf(bounds[-1]):
        raise ValueError("the last bucket of a histogram has the bound +Inf")
    counts = np.maximum.accumulate(np.asarray(counts, float))
    if not counts[-1] > 0:
        return Quantile(math.nan, -math.inf, math.inf, "unresolved: nothing was counted")
    place = int(np.searchsorted(counts, q * counts[-1]))
    upper = float(bounds[place])
    if place == 0:
        return Quantile(math.nan, -math.inf, upper, f"unresolved: below the first bound {upper:g}")
    lower = float(bounds[place - 1])
    if math.isinf(upper):
        return Quantile(math.nan, lower, math.inf, f"unresolved: above the last bound {lower:g}")
    share = (q * counts[-1] - counts[place - 1]) / (counts[place] - counts[place - 1])
    return Quantile(lower + (upper - lower) * float(share), lower, upper)


def histogram_quantiles(vector: Vector, q: Floats) -> Vector:
    """`histogram_quantile` over series with a label `le`.

    Interpolated linearly within a bucket; the highest finite bound where the quantile lies above
    it, which is why no threshold at or above that bound can ever be crossed.
    """
    bounds = [_bound(dict(labels).get("le")) for labels in vector.labels]
    inside = [place for place, bound in enumerate(bounds) if bound is not None]
    keys = [kept_labels(vector.labels[place], False, ("le",)) for place in inside]
    rows = []
    for labels, members in groups(keys):
        own = sorted((inside[member] for member in members), key=lambda p: bounds[p] or 0.0)
        uppers = np.array([bounds[place] for place in own], float)
        values, present = vector.values[own], vector.present[own]
        answer = np.full(vector.moments, np.nan)
        for chosen, moments in patterns(present):
            if len(chosen):
                counts = values[np.ix_(chosen, moments)]
                answer[moments] = bucket_quantiles(uppers[chosen], counts, q[moments])
        rows.append((labels, answer, np.asarray(present.any(axis=0), bool)))
    return unique(stacked(rows, vector.moments))


def _bound(le: str | None) -> float | None:
    try:
        return None if le is None else float(le)
    except ValueError:
        return None


def bucket_quantiles(uppers: Floats, counts: Floats, q: Floats) -> Floats:
    """As Prometheus' bucketQuantile, for columns of cumulative counts by ascending bound."""
    bounds, place = np.unique(uppers, return_inverse=True)
    if len(bounds) < 2 or not np.isposinf(bounds[-1]):
        return np.full(counts.shape[1], np.nan)
    merged = np.zeros((len(bounds), counts.shape[1]))
    np.add.at(merged, place, counts)
    merged = np.fmax.accumulate(merged, axis=0)  # rates of racing scrapes may fall
    total = merged[-1]
    rank = np.clip(q, 0, 1) * total
    bucket = np.minimum((merged[:-1] < rank).sum(axis=0), len(bounds) - 1)
    columns = np.arange(counts.shape[1])
    upper = bounds[bucket]
    lower = np.where(bucket > 0, bounds[np.maximum(bucket - 1, 0)], 0.0)
    below = np.where(bucket > 0, merged[np.maximum(bucket - 1, 0), columns], 0.0)
    within = (rank - below) / (merged[bucket, columns] - below)
    last = bucket == len(bounds) - 1
    value = lower + (np.where(last, 0.0, upper) - lower) * within
    value = np.where(last, bounds[-2], value)
    value = np.where((bucket == 0) & (bounds[0] <= 0), bounds[0], value)
    value = np.where((total == 0) | np.isnan(total), np.nan, value)
    value = np.where(q < 0, -np.inf, np.where(q > 1, np.inf, value))
    return np.asarray(np.where(np.isnan(q), np.nan, value))
