"""Quantiles read off buckets, for many moments at once; pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def bucket_quantiles(bounds: Floats, counts: Floats, q: float) -> Floats:
    """The q-quantile of each column of cumulative counts, never beyond what buckets resolve.

    Shape:  a row of counts for each bound, the bounds ascending and the last one +Inf; one value
            per column out.
    Unit:   that of the bounds. NaN where nothing was counted or a count is missing, and where the
            quantile lies below the first bound or above the last finite one, which Prometheus
            answers with a number that looks measured.
    Errors: ValueError for a `q` outside [0, 1], or bounds that do not end with +Inf.
    Source: linear within a bucket, as Prometheus' histogram_quantile.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {q}")
    if not len(bounds) or not np.isposinf(bounds[-1]):
        raise ValueError("the last bucket of a histogram has the bound +Inf")
    counts = np.maximum.accumulate(counts, axis=0)  # scrapes that race may make one fall
    total = counts[-1]
    place = (counts < q * total).sum(axis=0)
    resolved = (total > 0) & (place > 0) & (place < len(bounds) - 1)
    column = np.arange(counts.shape[1])[resolved]
    upper, lower = place[resolved], place[resolved] - 1
    below, within = counts[lower, column], counts[upper, column]
    share = (q * total[resolved] - below) / (within - below)
    found = np.full(counts.shape[1], np.nan)
    found[resolved] = bounds[lower] + (bounds[upper] - bounds[lower]) * share
    return found
