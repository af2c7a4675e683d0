from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import at, evidence_of, labels, steps, ups, window

from tbforensics.evidence import Evidence
from tbforensics.frames import increase, labelled, last, sight, summed

numbers = itertools.count()


def rises(evidence: Evidence, start_s: float, end_s: float, step_s: float = 30) -> list[float]:
    frame = increase(evidence, "c", window(start_s, end_s), step_s)
    return [float(v) for v in frame.iloc[:, 0]]


def test_what_rose_between_two_samples_belongs_to_the_step_of_the_later_one(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(-10, 5), (5, 5), (20, 7), (35, 8)]}})
    assert rises(evidence, 0, 60) == [2.0, 1.0]


def test_a_sample_on_the_edge_of_two_steps_ends_the_earlier_one(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 0), (30, 4), (60, 9)]}})
    assert rises(evidence, 0, 60) == [4.0, 5.0]


def test_a_reset_is_undone(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 100), (15, 110), (30, 3), (45, 5)]}})
    assert sum(rises(evidence, 0, 60)) == 10 + 3 + 2


def test_a_gap_is_spread_and_its_total_kept(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 0), (90, 9)]}})
    assert rises(evidence, 0, 90) == [3.0, 3.0, 3.0]


def test_a_series_born_while_its_target_is_scraped_rose_from_zero(tmp_path: Path) -> None:
    evidence = evidence_of(
        tmp_path, {"c": {labels(): [(50, 3), (65, 4)]}, "up": {labels(): ups(5, 95)}}
    )
    assert rises(evidence, 0, 90) == [0.0, 3.0, 1.0]


def test_a_series_that_is_there_at_the_start_of_what_was_seen_rose_from_nothing_known(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(
        tmp_path, {"c": {labels(): [(5, 1000), (20, 1001)]}, "up": {labels(): ups(5, 50)}}
    )
    assert np.nansum(rises(evidence, 0, 60)) == 1


def test_without_up_a_late_series_is_not_taken_for_a_birth(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(50, 3), (65, 4)]}})
    assert np.nansum(rises(evidence, 0, 90)) == 1


def test_another_targets_scrapes_do_not_make_a_birth(tmp_path: Path) -> None:
    other = (("instance", "b"), ("job", "j"))
    evidence = evidence_of(
        tmp_path, {"c": {labels(): [(50, 3), (65, 4)]}, "up": {other: ups(5, 95)}}
    )
    assert np.nansum(rises(evidence, 0, 90)) == 1


def test_a_counter_stands_still_while_its_target_is_up_and_is_unknown_while_it_is_not(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(
        tmp_path,
        {
            "c": {labels(): [(0, 1), (15, 2)]},
            "up": {labels(): [*ups(0, 45), *ups(60, 90, value=0)]},
        },
    )
    found = rises(evidence, 0, 90)
    assert found[:2] == [1.0, 0.0] and np.isnan(found[2])


def test_no_series_gives_a_frame_without_columns_and_never_zeros(tmp_path: Path) -> None:
    frame = increase(evidence_of(tmp_path), "c", window(0, 90), 30)
    assert frame.shape == (3, 0)


def test_nan_samples_are_left_out(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 1), (15, float("nan")), (25, 4)]}})
    assert rises(evidence, 0, 30) == [3.0]


def test_a_gauge_is_its_last_sample_in_each_step(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 1), (29, 2), (65, 7)]}})
    found = last(evidence, "c", window(0, 90), 30).iloc[:, 0]
    assert found.tolist()[::2] == [2.0, 7.0] and np.isnan(found.iloc[1])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 50), min_size=2, max_size=30),
    gaps=st.lists(st.integers(1, 200), min_size=29, max_size=29),
    step_s=st.sampled_from([7, 15, 30, 60, 300]),
)
def test_sums_over_steps_are_exactly_what_rose(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], gaps: list[int], step_s: int
) -> None:
    folder = tmp_path_factory.mktemp("case") / str(next(numbers))
    times = np.cumsum([0, *gaps])[: len(values)]
    samples = [(float(t), float(v)) for t, v in zip(times, values, strict=True)]
    expected = sum(b if b < a else b - a for a, b in itertools.pairwise(values))
    end_s = (int(times[-1]) // step_s + 1) * step_s
    evidence = evidence_of(folder, {"c": {labels(): samples}})
    assert np.nansum(rises(evidence, 0, end_s, step_s)) == pytest.approx(expected)


def test_a_strip_shows_late_counters_as_seen_while_their_target_was_up(tmp_path: Path) -> None:
    evidence = evidence_of(
        tmp_path, {"c": {labels(): [(100, 1)]}, "g": {labels(): [(100, 1)]},
                   "up": {labels(): ups(0, 170)}}
    )  # fmt: skip
    seen = sight(evidence, window(0, 180), 60, counters=["c"])
    assert seen["c"].tolist() == [True, True, True]
    assert seen["g"].tolist() == [False, True, False]


def test_sums_keep_unknown_apart_from_zero() -> None:
    frame = steps(
        {("a", "x"): [1, np.nan], ("b", "x"): [2, np.nan], ("a", "y"): [0, 5]}, 30, "n", "p"
    )
    by_p = summed(frame, "p")
    assert by_p["x"].tolist()[0] == 3 and np.isnan(by_p["x"].iloc[1])
    assert summed(frame)["total"].tolist() == [3.0, 5.0]
    assert list(summed(frame, "p", "n").columns) == [("x", "a"), ("x", "b"), ("y", "a")]


def test_a_label_that_no_series_has_is_empty() -> None:
    assert list(summed(steps({("a",): [1.0]}, 30, "n"), "missing").columns) == [""]


def test_labels_come_with_their_column() -> None:
    ((found, column),) = labelled(steps({("a",): [1.0]}, 30, "n"))
    assert found == {"source": "main", "n": "a"} and isinstance(column, pd.Series)
    assert column.index[0] == at(0)
