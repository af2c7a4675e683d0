"""Where a series changes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tbforensics.analysis.changes import change_points

NILE = [
    1120,
    1160,
    963,
    1210,
    1160,
    1160,
    813,
    1230,
    1370,
    1140,
    995,
    935,
    1110,
    994,
    1020,
    960,
    1180,
    799,
    958,
    1140,
    1100,
    1210,
    1150,
    1250,
    1260,
    1220,
    1030,
    1100,
    774,
    840,
    874,
    694,
    940,
    833,
    701,
    916,
    692,
    1020,
    1050,
    969,
    831,
    726,
    456,
    824,
    702,
    1120,
    1100,
    832,
    764,
    821,
    768,
    845,
    864,
    862,
    698,
    845,
    744,
    796,
    1040,
    759,
    781,
    865,
    845,
    944,
    984,
    897,
    822,
    1010,
    771,
    676,
    649,
    846,
    812,
    742,
    801,
    1040,
    860,
    874,
    848,
    890,
    744,
    749,
    838,
    1050,
    918,
    986,
    797,
    923,
    975,
    815,
    1020,
    906,
    901,
    1170,
    912,
    746,
    919,
    718,
    714,
    740,
]  # annual flow at Aswan, 1871 to 1970; the first dam was begun in 1898


def noisy(levels: list[float], each: int = 60, seed: int = 1) -> pd.Series:
    rng = np.random.default_rng(seed)
    return pd.Series(np.repeat(levels, each) + rng.normal(0, 1, each * len(levels)))


def positions(series: pd.Series) -> list[int]:
    return [point.position for point in change_points(series)]


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 9.0, 1.0, 9.0], [3.0] * 50, [np.nan] * 50])
def test_empty_short_and_constant_series_have_no_change(values):
    assert change_points(pd.Series(values, dtype=float)) == []


def test_one_step_is_one_change_at_its_first_sample():
    (point,) = change_points(noisy([0, 10]))
    assert point.position == 60
    assert point.after - point.before == pytest.approx(10, abs=1)


def test_a_ramp_is_a_trend_and_no_change():
    assert positions(noisy([0]) + np.arange(60) * 0.5) == []


def test_noise_alone_has_no_change():
    assert positions(noisy([0], 400)) == []


def test_a_step_up_and_down_gives_both_edges():
    assert positions(noisy([0, 8, 0])) == [60, 120]


def test_the_nile_changed_in_1898():
    series = pd.Series(NILE, index=pd.date_range("1871", periods=100, freq="YS", tz="UTC"))
    (point,) = change_points(series)
    assert abs(point.time.year - 1898) <= 1


def test_a_season_is_no_change():
    day = np.sin(np.arange(600) * 2 * np.pi / 24) * 5
    assert positions(noisy([0], 600) + day) == []


def test_a_step_under_a_season_is_found():
    day = np.sin(np.arange(600) * 2 * np.pi / 24) * 5
    (at,) = positions(noisy([0, 8], 300) + day)
    assert abs(at - 300) <= 2


def test_values_repeated_three_times_give_the_same_changes_three_times_as_late():
    series = noisy([0, 8, 0])
    assert positions(pd.Series(np.repeat(series, 3).to_numpy())) == [
        3 * at for at in positions(series)
    ]


def test_missing_and_infinite_samples_are_bridged():
    series = noisy([0, 10])
    series.iloc[[0, 5, 6, 80]] = np.nan
    series.iloc[30] = np.inf
    assert positions(series) == [60]


def test_units_do_not_matter():
    series = noisy([0, 6, 2])
    assert positions(series * 1e9 + 5e9) == positions(series)


def test_twenty_thousand_samples_are_cut_at_the_right_one():
    (at,) = positions(noisy([0, 5], 11_000))
    assert abs(at - 11_000) <= 1
