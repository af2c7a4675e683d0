"""What moved, in what order, and what looks like the cause."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tbforensics.analysis.attribution import rank_culprits, rank_movers

INDEX = pd.date_range("2026-03-10T10:00Z", periods=300, freq="15s")


def host(steps: dict[str, tuple[int, float]], seed: int = 1) -> pd.DataFrame:
    """Metrics a to f around 100; each step multiplies one from a row on."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(100 * np.exp(rng.normal(0, 0.05, (300, 6))), INDEX, list("abcdef"))
    for name, (row, factor) in steps.items():
        frame.loc[INDEX[row] :, name] *= factor
    return frame


def labels(found):
    return [one.label for one in found]


def test_movers_come_in_order_of_onset():
    movers = rank_movers(host({"e": (150, 2), "b": (160, 0.5), "c": (140, 1.5)}))
    assert labels(movers) == ["c", "e", "b"]
    assert movers[1].onset == INDEX[150]
    assert movers[1].ratio == pytest.approx(2, rel=0.1)
    assert movers[1].onset_interval[0] <= INDEX[150] <= movers[1].onset_interval[1]


def test_a_lone_spike_is_not_a_move():
    frame = host({})
    frame.iloc[100, 3] *= 10
    assert rank_movers(frame) == []


@pytest.mark.parametrize(
    "data", [pd.DataFrame(), pd.DataFrame({"a": [1.0]}), pd.DataFrame({"a": [5.0] * 90})]
)
def test_empty_single_and_flat_frames_have_no_movers(data):
    assert rank_movers(data) == []


def test_a_metric_that_was_never_positive_moves_without_a_ratio():
    frame = host({"a": (150, 2)}) - 500
    (mover,) = rank_movers(frame)
    assert mover.label == "a" and np.isnan(mover.ratio) and mover.difference > 50


def test_the_largest_rise_is_the_first_suspect():
    frame = host({"d": (200, 1.8), "f": (200, 0.1), "a": (200, 1.4)})
    assert labels(rank_culprits(frame, INDEX[200]))[:3] == ["d", "a", "f"]


def test_an_onset_a_minute_late_names_the_same_suspect():
    frame = host({"d": (200, 1.8), "a": (202, 1.4)})
    assert labels(rank_culprits(frame, INDEX[204]))[:2] == ["d", "a"]


def test_units_do_not_change_the_ranking():
    frame = host({"d": (200, 1.8), "a": (202, 1.4)})
    scale = pd.Series([1e9, 1e-6, 1, 8, 1024**2, 1], list("abcdef"))
    assert labels(rank_culprits(frame * scale, INDEX[200])) == labels(
        rank_culprits(frame, INDEX[200])
    )


def test_a_frozen_metric_that_twitches_is_not_infinitely_surprising():
    frame = host({"d": (200, 3)})
    frame["a"] = np.where(np.arange(300) < 200, 100.0, 100.05)
    assert labels(rank_culprits(frame, INDEX[200]))[0] == "d"


def test_with_a_target_the_metric_that_moves_with_it_comes_first():
    frame = host({"a": (200, 3), "b": (200, 3), "c": (230, 8)})
    assert labels(rank_culprits(frame, INDEX[200], target="a"))[0] == "b"
    assert labels(rank_culprits(frame, INDEX[200], target="a"))[-1] == "a"


def test_with_a_call_graph_the_deepest_moved_callee_comes_first():
    frame = host({"a": (200, 3), "b": (200, 4), "c": (200, 2), "d": (200, 9)})
    calls = {"a": ["b"], "b": ["e"], "e": ["c"]}
    assert labels(rank_culprits(frame, INDEX[200], calls=calls))[:2] == ["d", "c"]


def test_a_cycle_in_the_call_graph_ends():
    frame = host({"a": (200, 3)})
    assert labels(rank_culprits(frame, INDEX[200], calls={"a": ["b"], "b": ["a"]}))[0] == "a"


def test_a_hundred_metrics_without_a_calm_part_are_ranked_anyway():
    assert len(rank_culprits(host({}), INDEX[0])) == 6


def test_raw_counters_are_ranked_by_their_rates():
    raw = host({"d": (200, 1.8)}).cumsum()
    assert labels(rank_culprits(raw, INDEX[200], "counter"))[0] == "d"


def test_a_metric_that_appears_from_nothing_does_not_drown_the_others():
    frame = host({"d": (200, 3)})
    frame["a"] = np.where(np.arange(300) < 200, 0.0, 1e-6)
    assert labels(rank_culprits(frame, INDEX[200]))[:2] == ["d", "a"]


def test_columns_without_samples_come_last():
    frame = host({"d": (200, 3)})
    frame["a"] = np.nan
    frame["b"] = np.where(np.arange(300) < 200, np.nan, 5.0)
    assert set(labels(rank_culprits(frame, INDEX[200]))[-2:]) == {"a", "b"}
