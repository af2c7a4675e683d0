"""How big a difference is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tbforensics.analysis.effects import effect_size

INDEX = pd.date_range("2026-03-10T10:00Z", periods=200, freq="15s")
CALM, UPSET = (INDEX[0], INDEX[100]), (INDEX[100], INDEX[199])
RNG = np.random.default_rng(1)
GAUGE = pd.Series(10 + RNG.normal(0, 1, 200), INDEX)
STEP = GAUGE + np.where(np.arange(200) >= 100, 5, 0)
COUNTS = pd.Series(RNG.poisson(np.where(np.arange(200) >= 100, 30, 10)), INDEX)


def inside(value, interval):
    return interval[0] <= value <= interval[1]


def test_a_gauge_that_rose_has_a_ratio_a_difference_and_a_delta():
    effect = effect_size(STEP, UPSET, CALM)
    assert effect.difference == pytest.approx(5, abs=0.5)
    assert effect.hodges_lehmann == pytest.approx(5, abs=0.5)
    assert inside(5, effect.difference_interval) and inside(1.5, effect.ratio_interval)
    assert effect.cliffs_delta > 0.95 and effect.p_value < 1e-6


def test_a_gauge_at_rest_has_intervals_around_nothing():
    effect = effect_size(GAUGE, UPSET, CALM)
    assert inside(0, effect.difference_interval) and inside(1, effect.ratio_interval)


def test_a_flat_gauge_has_no_effect():
    effect = effect_size(GAUGE * 0 + 4, UPSET, CALM)
    assert (effect.ratio, effect.difference, effect.p_value) == (1, 0, 1)


def test_slow_noise_widens_the_interval():
    quick = GAUGE - GAUGE.mean()
    slow = quick.ewm(span=20).mean()
    slow = slow * quick.std() / slow.std()
    wide, narrow = (effect_size(s, UPSET, CALM).difference_interval for s in (slow, quick))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])


def test_a_level_below_zero_has_a_difference_and_no_ratio():
    effect = effect_size(STEP - 100, UPSET, CALM)
    assert math.isnan(effect.ratio) and "difference" in effect.unresolved
    assert effect.difference == pytest.approx(5, abs=0.5)


def test_a_counter_gives_a_rate_ratio_across_its_restart():
    raw = COUNTS.cumsum().astype(float)
    raw.iloc[150:] -= raw.iloc[149]
    raw.iloc[[20, 21]] = np.nan
    effect = effect_size(raw, UPSET, CALM, "counter")
    assert effect.ratio == pytest.approx(3, rel=0.1) and inside(3, effect.ratio_interval)
    assert effect.difference == pytest.approx(20, abs=2) and inside(20, effect.difference_interval)


def test_increases_need_no_differencing():
    effect = effect_size(COUNTS, UPSET, CALM, "increase")
    assert effect.window == pytest.approx(COUNTS[100:199].mean())


def test_bursts_widen_the_interval_of_a_rate_ratio():
    bursty = COUNTS.where(np.arange(200) % 10 == 0, 0) * 10
    wide, narrow = (
        effect_size(s, UPSET, CALM, "increase").ratio_interval for s in (bursty, COUNTS)
    )
    assert wide[1] / wide[0] > 2 * narrow[1] / narrow[0]


def test_a_baseline_that_counted_nothing_has_no_finite_ratio():
    effect = effect_size(COUNTS.where(np.arange(200) >= 100, 0), UPSET, CALM, "increase")
    assert effect.ratio == math.inf and "nothing" in effect.unresolved
    assert effect.ratio_interval[0] > 1 and effect.ratio_interval[1] == math.inf


def test_shared_load_can_be_divided_out():
    load = pd.Series(np.where(np.arange(200) >= 100, 2.0, 1.0), INDEX)
    assert effect_size(COUNTS * load, UPSET, CALM, "increase", reference=load).ratio == (
        pytest.approx(3, rel=0.1)
    )


@pytest.mark.parametrize("kind", ["gauge", "counter", "increase"])
def test_no_samples_are_said_and_not_guessed(kind):
    effect = effect_size(GAUGE[:100].abs(), UPSET, CALM, kind)
    assert math.isnan(effect.ratio) and effect.unresolved == "no samples in the window"


def buckets(calm: float, upset: float) -> pd.DataFrame:
    median = np.where(np.arange(200) >= 100, upset, calm)
    drawn = median[:, None] * np.exp(RNG.normal(0, 0.5, (200, 200)))
    bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, np.inf]
    return pd.DataFrame({f"get|{b}": (drawn <= b).sum(axis=1).cumsum() for b in bounds}, INDEX)


def test_a_histogram_gives_a_quantile_ratio():
    effect = effect_size(buckets(0.05, 0.2), UPSET, CALM, "histogram")
    assert effect.ratio == pytest.approx(4, rel=0.15) and inside(
        effect.ratio, effect.ratio_interval
    )
    assert effect.p_value < 1e-6 and effect.unresolved == ""
    assert [q for q, _, _ in effect.quantiles] == [0.5, 0.75, 0.9, 0.95, 0.99]


def test_a_quantile_beyond_the_bounds_is_said_and_not_interpolated():
    effect = effect_size(buckets(0.05, 5.0), UPSET, CALM, "histogram")
    assert math.isnan(effect.ratio) and "above the last 1" in effect.unresolved


def test_a_bare_bound_and_a_level_le_are_understood():
    frame = buckets(0.05, 0.2)
    bare = frame.rename(columns=lambda name: name.split("|")[1])
    level = frame.copy()
    level.columns = pd.MultiIndex.from_tuples(
        [tuple(name.split("|")) for name in frame], names=["method", "le"]
    )
    wanted = effect_size(frame, UPSET, CALM, "histogram").ratio
    assert effect_size(bare, UPSET, CALM, "histogram").ratio == wanted
    assert effect_size(level, UPSET, CALM, "histogram").ratio == wanted


def test_windows_with_start_and_end_are_understood():
    class Window:
        start, end = UPSET

    assert effect_size(STEP, Window, CALM) == effect_size(STEP, UPSET, CALM)
