"""Which label values a change is made of, and whether their mix hides something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy

from tbforensics.analysis.signals import Floats, Label, as_frame, lag_one

SIGNIFICANT = 0.01  # after Holm's correction
EXPLAINS_SHARE = 0.5  # one label explains a change when more than half of it is its own


@dataclass(frozen=True)
class Contribution:
    """One label value's part of the change.

    baseline, window: counts per row. change: their difference.
    share:   change over the total change; below 0 for a label that went the other way. The
             shares add up to 1; NaN when the total did not change.
    p_value: of "this label changed as all the others did", Holm-corrected over the labels.
    significant: p_value below 0.01.
    """

    label: Label
    baseline: float
    window: float
    change: float
    share: float
    p_value: float
    significant: bool


@dataclass(frozen=True)
class Contributions:
    """All parts, largest change first, with what they say together.

    total:        counts per row that were gained or lost: exactly the sum of the parts' changes.
    changed:      the total moved more than its own noise allows (p below 0.01).
    explained_by: the labels, largest first, that each go beyond the common change and together
                  make up more than half of it; empty when there are none.
    statement:    one sentence for people.
    """

    parts: tuple[Contribution, ...]
    total: float
    total_p_value: float
    changed: bool
    explained_by: tuple[Label, ...]
    statement: str

    def table(self) -> pd.DataFrame:
        """One row per label, for a notebook."""
        return pd.DataFrame([vars(part) for part in self.parts])


def contributions(baseline: pd.DataFrame, window: pd.DataFrame) -> Contributions:
    """What each label value adds to the change between two stretches of increases.

    Shape:  increases (counts per row), one column per label value; the stretches may differ in
            length, the rows in them must not. A column missing on one side counts as zero there;
            missing samples are left out of that column's mean.
    Unit:   counts per row. The parts' changes add up exactly to `total`.
    Errors: ValueError when either side has no rows.
    Source: conditional binomial test: of x_b + x_w counts, given the total, x_w falls into the
            window with the chance of all other labels' counts (Przyborowski and Wilenski,
            "Homogeneity of results in testing samples from Poisson series", Biometrika 31,
            1940). Counts are first divided by their overdispersion, so bursts are not evidence;
            Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    if not len(baseline) or not len(window):
        raise ValueError("contributions need at least one row on both sides")
    before, after = as_frame(baseline), as_frame(window)
    labels = list(dict.fromkeys([*before.columns, *after.columns]))
    if not labels:
        return Contributions((), 0.0, 1.0, False, (), "There are no labels to compare.")
    calm, upset = _columns(before, labels), _columns(after, labels)
    rate_b, rate_w = _means(calm), _means(upset)
    change = rate_w - rate_b
    total = math.fsum(change)
    sums_b = rate_b * len(before)
    sums_w = rate_w * len(after)
    inflation = np.array(
        [max(_dispersion(calm[:, j]), _dispersion(upset[:, j])) for j in range(len(labels))]
    )
    p_values = _holm(
        [
            _apart(
                sums_b[j],
                sums_w[j],
                sums_b.sum() - sums_b[j],
                sums_w.sum() - sums_w[j],
                inflation[j],
                len(before),
                len(after),
            )
            for j in range(len(labels))
        ]
    )
    total_inflation = max(
        _dispersion(np.nansum(calm, axis=1)), _dispersion(np.nansum(upset, axis=1))
    )
    total_p = _binomial(
        sums_w.sum() / total_inflation,
        (sums_b.sum() + sums_w.sum()) / total_inflation,
        len(after) / (len(before) + len(after)),
    )
    changed = bool(total_p < SIGNIFICANT and total != 0.0)
    parts = tuple(
        Contribution(
            labels[j],
            float(rate_b[j]),
            float(rate_w[j]),
            float(change[j]),
            float(change[j] / total) if total else float("nan"),
            float(p_values[j]),
            bool(p_values[j] < SIGNIFICANT),
        )
        for j in sorted(range(len(labels)), key=lambda j: (-abs(change[j]), j))
    )
    explained = _explaining(parts) if changed else ()
    return Contributions(
        parts, total, total_p, changed, explained, _statement(parts, total, changed, explained)
    )


def _columns(frame: pd.DataFrame, labels: Sequence[Label]) -> Floats:
    missing = np.zeros(len(frame))
    return np.column_stack(
        [frame[name].to_numpy(dtype=float) if name in frame.columns else missing for name in labels]
    )


def _means(values: Floats) -> Floats:
    known = np.isfinite(values)
    return np.asarray(np.nansum(values, axis=0) / np.maximum(known.sum(axis=0), 1))


def _dispersion(counts: Floats) -> float:
    """Variance over mean, stretched by the autocorrelation; at least 1, the Poisson value."""
    known = counts[np.isfinite(counts)]
    if len(known) < 4 or known.mean() <= 0:
        return 1.0
    residual = known - known.mean()
    phi = lag_one(residual)
    return max(1.0, float(known.var(ddof=1) / known.mean()) * (1 + phi) / (1 - phi))


def _binomial(hits: float, trials: float, chance: float) -> float:
    """Two-sided exact p value; counts that were divided by a dispersion are rounded."""
    n = round(trials)
    if n <= 0 or not 0.0 < chance < 1.0:
        return 1.0
    return float(scipy.stats.binomtest(min(max(round(hits), 0), n), n, chance).pvalue)


def _apart(
    own_b: float,
    own_w: float,
    rest_b: float,
    rest_w: float,
    inflation: float,
    rows_b: int,
    rows_w: int,
) -> float:
    """Whether one label's share of window counts differs from that of all the others."""
    if own_b + own_w <= 0:
        return 1.0
    if rest_b + rest_w <= 0:  # nobody to compare with: did it change at all?
        trials = (own_b + own_w) / inflation
        return _binomial(own_w / inflation, trials, rows_w / (rows_b + rows_w))
    table = np.array([[own_b, own_w], [rest_b, rest_w]]) / inflation
    if table.min() >= 5:
        return float(scipy.stats.chi2_contingency(table, correction=True).pvalue)
    return float(scipy.stats.fisher_exact(np.round(table).astype(int)).pvalue)


def _holm(p_values: Sequence[float]) -> Floats:
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def _explaining(parts: Sequence[Contribution]) -> tuple[Label, ...]:
    """The fewest labels beyond the common change that make up more than half of it."""
    chosen, share = [], 0.0
    for part in sorted(parts, key=lambda part: -part.share):
        if not part.significant or part.share <= 0:
            continue
        chosen.append(part.label)
        share += part.share
        if share > EXPLAINS_SHARE:
            return tuple(chosen)
    return ()


def _statement(
    parts: Sequence[Contribution], total: float, changed: bool, explained: tuple[Label, ...]
) -> str:
    if not changed:
        return "The total did not change by more than its own noise."
    verb = "rise" if total > 0 else "fall"
    if not explained:
        return f"No single label explains the {verb} of {abs(total):.4g} per row."
    share = math.fsum(part.share for part in parts if part.label in explained)
    names = ", ".join(map(str, explained))
    return f"{names} explains {share:.0%} of the {verb} of {abs(total):.4g} per row."


@dataclass(frozen=True)
class Reversal:
    """What happens to a ratio when a second label is looked at.

    dimension: the label that was held fixed.
    overall:   change of the ratio over everything.
    within:    change of the ratio inside each value of the dimension.
    standardised: change of the ratio if the mix had stayed as it was in the baseline.
    reversed:  True when overall and every value (that has data on both sides) point opposite ways.
    statement: one sentence for people.
    """

    dimension: str
    overall: float
    within: tuple[tuple[Label, float], ...]
    standardised: float
    reversed: bool
    statement: str


def simpson_reversals(baseline: pd.DataFrame, window: pd.DataFrame) -> list[Reversal]:
    """Whether a ratio moves one way in total and the other way in every part: Simpson's paradox.

    Shape:  two columns, `part` and `whole` (failures and attempts), indexed by two or more label
            levels; one Reversal per level out, in their order.
    Unit:   fractions: 0.02 is two points in a hundred.
    Errors: ValueError when a column is missing, or a part exceeds its whole.
    Source: Simpson, "The interpretation of interaction in contingency tables", JRSS B 13, 1951.
    """
    for side in (baseline, window):
        if not {"part", "whole"} <= set(side.columns):
            raise ValueError("simpson_reversals needs the columns 'part' and 'whole'")
        if (side["part"] > side["whole"]).any():
            raise ValueError("a part exceeds its whole: are the columns swapped?")
    levels = range(baseline.index.nlevels)
    return [_reversal(baseline, window, level) for level in levels]


def _reversal(baseline: pd.DataFrame, window: pd.DataFrame, level: int) -> Reversal:
    name = str(baseline.index.names[level] or f"label {level}")
    overall = _ratio(window.sum()) - _ratio(baseline.sum())
    before = baseline[["part", "whole"]].groupby(level=level).sum()
    after = window[["part", "whole"]].groupby(level=level).sum()
    shared = [v for v in before.index if v in after.index]
    shared = [v for v in shared if before.loc[v, "whole"] > 0 and after.loc[v, "whole"] > 0]
    within = tuple((v, _ratio(after.loc[v]) - _ratio(before.loc[v])) for v in shared)
    weight = before.loc[shared, "whole"].to_numpy(dtype=float)
    changes = np.array([change for _, change in within])
    standardised = float(weight @ changes / weight.sum()) if len(within) else float("nan")
    turned = len(within) > 1 and overall != 0 and all(c * overall < 0 for _, c in within)
    if turned:
        up, down = ("rose", "fell") if overall > 0 else ("fell", "rose")
        text = f"The ratio {up} overall but {down} within every {name}: the mix of {name} changed."
    else:
        text = f"Looking inside {name} does not reverse the change."
    return Reversal(name, overall, within, standardised, turned, text)


def _ratio(row: pd.Series) -> float:
    return float(row["part"] / row["whole"]) if row["whole"] > 0 else float("nan")
