"""When an incident began and ended."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tbforensics.analysis.spans import incident_span, incident_spans

INDEX = pd.date_range("2026-03-10T10:00Z", periods=400, freq="15s")


def levels(
    factors: dict[int, float] | None = None, columns: int = 6, seed: int = 1
) -> pd.DataFrame:
    """Noise around 10; column 2 is multiplied by `factor` from each row on."""
    rng = np.random.default_rng(seed)
    values = 10 * np.exp(rng.normal(0, 0.1, (400, columns)))
    for row, factor in (factors or {}).items():
        values[row:, 2] *= factor
    return pd.DataFrame(values, INDEX, [f"peer-{j}" for j in range(columns)])


def counters(rates: pd.DataFrame, seed: int = 2) -> pd.DataFrame:
    return np.random.default_rng(seed).poisson(rates).cumsum(axis=0) * 1.0 + rates * 0


def test_quiet_data_have_no_span():
    assert incident_span(levels()) is None
    assert incident_span(levels()["peer-1"]) is None
    assert incident_span(counters(levels()), "counter") is None


@pytest.mark.parametrize(
    "data",
    [
        pd.Series(dtype=float),
        pd.DataFrame(),
        pd.Series([1.0]),
        pd.Series([2.0] * 100),
        pd.Series([np.nan] * 100),
        pd.DataFrame({"a": [0.0] * 100, "b": [np.inf] * 100}),
    ],
)
def test_nothing_to_see_is_no_span(data):
    assert incident_span(data) is None


def test_a_spell_has_an_onset_a_recovery_a_label_and_a_ratio():
    span = incident_span(levels({200: 3.0, 260: 1 / 3}))
    assert (span.onset, span.recovery, span.label) == (INDEX[200], INDEX[260], "peer-2")
    assert span.ratio == pytest.approx(3, rel=0.1)
    assert span.onset_interval[0] <= INDEX[200] <= span.onset_interval[1]


def test_what_has_not_ended_has_no_recovery():
    span = incident_span(levels({200: 0.4}))
    assert span.recovery is None and span.recovery_interval is None
    assert span.onset == INDEX[200]


def test_a_lone_spike_is_no_incident():
    frame = levels()
    frame.iloc[100, 1] *= 8
    assert incident_span(frame) is None


def test_load_shared_by_all_labels_is_not_their_incident():
    load = np.exp(0.5 * np.sin(np.arange(400) / 60))
    span = incident_span(levels({200: 2.0, 260: 0.5}).mul(load, axis=0))
    assert (span.label, span.onset) == ("peer-2", INDEX[200])
    assert span.ratio == pytest.approx(2, rel=0.1)


def test_counters_with_a_restart_and_lost_scrapes_show_the_same_spell():
    raw = counters(levels({200: 3.0, 260: 1 / 3}))
    raw.iloc[230:, 2] -= raw.iloc[229, 2]
    raw.iloc[[50, 51, 220]] = np.nan
    span = incident_span(raw, "counter")
    assert (span.onset, span.recovery, span.label) == (INDEX[200], INDEX[260], "peer-2")
    assert span.ratio == pytest.approx(3, rel=0.1)


def test_increases_are_counters_already_differenced():
    raw = counters(levels({200: 3.0, 260: 1 / 3}))
    assert incident_span(raw.diff().iloc[1:], "increase") == incident_span(raw, "counter")


def test_buckets_show_when_latency_rose():
    rng = np.random.default_rng(3)
    bounds = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, np.inf]
    parts = {}
    for label in ("get", "put"):
        median = np.where((np.arange(400) >= 150) & (label == "put"), 0.3, 0.06)
        drawn = median[:, None] * np.exp(rng.normal(0, 0.6, (400, 50)))
        for bound in bounds:
            parts[f"{label}|{bound}"] = (drawn <= bound).sum(axis=1).cumsum()
    span = incident_span(pd.DataFrame(parts, INDEX), "histogram")
    assert (span.label, span.onset, span.recovery) == ("put", INDEX[150], None)
    assert span.ratio == pytest.approx(5, rel=0.3)


def test_spans_come_strongest_first():
    frame = levels({100: 1.6, 140: 1 / 1.6, 250: 4.0, 300: 0.25})
    assert [span.onset for span in incident_spans(frame)] == [INDEX[250], INDEX[100]]


def test_a_baseline_keeps_the_onset_out_of_it():
    series = levels({50: 3.0, 90: 1 / 3, 250: 2.0, 300: 0.5})["peer-2"]
    span = incident_span(series, baseline=(INDEX[100], INDEX[200]))
    assert (span.onset, span.recovery) == (INDEX[250], INDEX[300])


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="gague"):
        incident_span(levels(), "gague")


def test_the_same_data_give_the_same_span():
    assert incident_span(levels({200: 2.0})) == incident_span(levels({200: 2.0}))


def test_a_lone_far_off_sample_counts_in_a_long_series():
    series = levels()["peer-1"]
    series.iloc[300] = 40
    (span,) = incident_spans(series)
    assert (span.onset, span.recovery) == (INDEX[300], INDEX[301])


def test_what_happens_often_is_no_incident():
    series = levels()["peer-1"]
    series.iloc[30::40] *= 3
    assert incident_spans(series) == []


def test_a_daily_curve_is_no_incident_and_hides_none():
    hours = pd.date_range("2026-03-01", periods=24 * 21, freq="h", tz="UTC")
    noise = np.random.default_rng(5).normal(0, 1, len(hours))
    series = pd.Series(50 + 20 * np.sin(np.arange(len(hours)) * np.pi / 12) + noise, hours)
    assert incident_spans(series) == []
    series.iloc[300:320] += 10
    assert [span.onset for span in incident_spans(series)] == [hours[300]]


def test_when_all_labels_jump_together_the_span_names_none():
    jump = np.where(np.arange(400) >= 250, 3.0, 1.0)
    span = incident_span(levels().mul(jump, axis=0))
    assert (span.label, span.onset, span.recovery) == (None, INDEX[250], None)
    assert span.ratio == pytest.approx(3, rel=0.1)


def test_one_label_that_counts_among_silent_ones_is_found():
    failures = pd.DataFrame(0.0, INDEX, ["peer-0", "peer-1", "peer-2"])
    failures.iloc[200:260, 1] = np.random.default_rng(4).poisson(3, 60)
    span = incident_span(failures, "increase")
    assert (span.label, span.onset, span.recovery) == ("peer-1", INDEX[200], INDEX[260])
