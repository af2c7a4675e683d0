"""Raw samples into signals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tbforensics.analysis.signals import (
    bucket_increases,
    counter_increases,
    typical_latency,
    without_spikes,
)


def gained(values):
    return counter_increases(pd.DataFrame({"a": values}, dtype=float))["a"].tolist()


def test_a_counter_gains_what_was_added():
    assert gained([5, 7, 7, 12]) == [2, 0, 5]


def test_a_restart_counts_from_zero():
    assert gained([5, 9, 3, 4]) == [4, 3, 1]


def test_a_gap_shares_what_it_gained():
    assert gained([0, 2, np.nan, np.nan, 8]) == [2, 2, 2, 2]


def test_a_restart_inside_a_gap_counts_from_zero_over_the_gap():
    assert gained([100, np.nan, 6, 7]) == [3, 3, 1]


def test_a_counter_that_is_not_there_yet_has_gained_nothing_we_know():
    assert np.isnan(gained([np.nan, np.nan, 4, 6])[:2]).all()


def test_buckets_of_one_process_restart_together():
    raw = pd.DataFrame({"a|0.1": [5, 5, 1], "a|+Inf": [9, 11, 4]})
    assert bucket_increases(raw)["a"].to_numpy().tolist() == [[0, 2], [1, 3]]


def test_a_column_without_a_bound_is_refused_by_name():
    with pytest.raises(ValueError, match="peer-1"):
        bucket_increases(pd.DataFrame({"peer-1": [1.0]}))


def test_latency_of_a_row_without_observations_is_unknown():
    raw = pd.DataFrame({"a|0.1": [0, 4, 4], "a|0.4": [0, 4, 4], "a|+Inf": [0, 4, 4]})
    latency = typical_latency(raw)["a"]
    assert 0.0 < latency.iloc[0] <= 0.1 and np.isnan(latency.iloc[1])


def test_a_lone_sample_is_a_spike_and_three_are_not():
    calm = np.tile([0.0, 1.0], 20)
    spike, spell = calm.copy(), calm.copy()
    spike[20] = 50
    spell[20:23] = 50
    assert without_spikes(spike).max() < 50
    assert without_spikes(spell)[20:23].tolist() == [50, 50, 50]
