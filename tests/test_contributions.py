"""What a change is made of."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.analysis.contributions import contributions, simpson_reversals


def counted(rates: dict[str, float], rows: int = 60, seed: int = 1) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({name: rng.poisson(rate, rows) for name, rate in rates.items()})


CALM = counted({"a": 20, "b": 10, "c": 5})


def test_one_label_that_rose_explains_the_rise():
    found = contributions(CALM, counted({"a": 20, "b": 40, "c": 5}, seed=2))
    assert found.explained_by == ("b",)
    assert found.parts[0].label == "b"
    assert found.parts[0].share == pytest.approx(1, abs=0.1)
    assert "b explains" in found.statement


def test_a_rise_of_all_labels_alike_is_explained_by_none():
    found = contributions(CALM, counted({"a": 60, "b": 30, "c": 15}, seed=2))
    assert found.changed and found.explained_by == ()
    assert "No single label explains" in found.statement


def test_noise_is_no_change():
    found = contributions(CALM, counted({"a": 20, "b": 10, "c": 5}, seed=2))
    assert not found.changed and not any(part.significant for part in found.parts)


def test_a_fall_is_explained_too():
    found = contributions(CALM, counted({"a": 2, "b": 10, "c": 5}, seed=2))
    assert found.explained_by == ("a",) and found.total < 0


def test_a_label_that_is_new_counts_from_zero():
    found = contributions(CALM, counted({"a": 20, "b": 10, "c": 5, "new": 30}, seed=2))
    assert found.explained_by == ("new",) and found.parts[0].baseline == 0.0


def test_stretches_of_different_length_are_compared_per_row():
    found = contributions(CALM, counted({"a": 20, "b": 10, "c": 5}, rows=7, seed=3))
    assert not found.changed


def test_bursts_are_not_evidence():
    bursty = CALM * 1
    bursty["a"] = np.where(np.arange(60) % 20 < 2, 200, 0)
    later = bursty.copy()
    later.iloc[5:7, 0] = 200
    assert not contributions(bursty, later).changed


def test_nothing_counted_is_no_change():
    zero = CALM * 0
    found = contributions(zero, zero)
    assert found.total == 0 and not found.changed
    assert contributions(zero[[]], zero[[]]).parts == ()


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="row"):
        contributions(CALM, CALM.iloc[:0])


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1, max_size=9))
def test_changes_add_up_exactly_to_the_total(pairs):
    names = [f"peer-{i}" for i in range(len(pairs))]
    baseline = pd.DataFrame([[b for b, _ in pairs]], columns=names)
    window = pd.DataFrame([[w for _, w in pairs]], columns=names)
    found = contributions(baseline, window)
    assert math.fsum(part.change for part in found.parts) == found.total
    assert found.total == sum(w for _, w in pairs) - sum(b for b, _ in pairs)


def ratios(rows: list[tuple[str, str, int, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["peer", "method", "part", "whole"])
    return frame.set_index(["peer", "method"])


def test_a_ratio_that_rises_overall_and_falls_within_every_method_is_a_reversal():
    before = ratios([("p", "easy", 10, 1000), ("p", "hard", 30, 100)])
    after = ratios([("p", "easy", 1, 200), ("p", "hard", 200, 1000)])
    peer, method = simpson_reversals(before, after)
    assert method.dimension == "method" and method.reversed
    assert method.overall > 0 > method.standardised
    assert not peer.reversed


def test_a_ratio_that_rises_everywhere_is_no_reversal():
    before = ratios([("p", "easy", 10, 1000), ("p", "hard", 30, 100)])
    after = ratios([("p", "easy", 20, 1000), ("p", "hard", 60, 100)])
    assert not any(found.reversed for found in simpson_reversals(before, after))


def test_part_and_whole_swapped_are_refused():
    wrong = ratios([("p", "easy", 10, 1)])
    with pytest.raises(ValueError, match="swapped"):
        simpson_reversals(wrong, wrong)
