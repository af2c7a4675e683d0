from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import TARGET, at, capture, evidence_of, labels, steps, ups, window

from tbforensics import frames
from tbforensics.errors import EvidenceError
from tbforensics.evidence import Evidence, Part, rows, series_id, series_row, write_shared
from tbforensics.frames import (
    How,
    at_lines,
    increase,
    labelled,
    last,
    quantile,
    sight,
    summed,
    values,
)
from tbforensics.model import Capture

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


def answered(*spans: tuple[float, float], query: str = "c") -> list[Capture]:
    return [capture(query, window=window(start, end)) for start, end in spans]


SILENT = {"c": {labels(): [(0, 1), (15, 2)]}, "up": {labels(): ups(0, 180)}}


def test_a_counter_does_not_stand_still_where_its_question_was_not_answered(
    tmp_path: Path,
) -> None:
    evidence = evidence_of(tmp_path, SILENT)
    failed = capture("c", window=window(60, 120), error="503", sha256=None)
    replies = [*answered((-300, 60), (120, 180)), failed]
    found = increase(evidence, "c", window(0, 180), 30, replies).iloc[:, 0].tolist()
    assert found[:2] == [1.0, 0.0] and np.isnan(found[2:4]).all() and found[4:] == [0.0, 0.0]


def test_a_step_of_which_a_reply_speaks_in_part_only_is_not_known(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, SILENT)
    found = increase(evidence, "c", window(0, 90), 30, answered((0, 75))).iloc[:, 0].tolist()
    assert found[:2] == [1.0, 0.0] and np.isnan(found[2])


def test_replies_that_overlap_or_speak_of_all_time_answer_every_step(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, SILENT)
    for replies in (answered((-300, 50), (20, 91)), [capture("c")], None):
        found = increase(evidence, "c", window(0, 90), 30, replies).iloc[:, 0]
        assert found.tolist() == [1.0, 0.0, 0.0]


def test_what_was_seen_beside_a_failed_question_is_still_counted(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 1), (15, 2), (75, 8)]}})
    found = increase(evidence, "c", window(0, 90), 30, answered((0, 30))).iloc[:, 0]
    assert found.tolist() == [2.5, 3.0, 1.5]


def test_the_answer_of_another_source_is_no_answer(tmp_path: Path) -> None:
    evidence = evidence_of(tmp_path, SILENT)
    other = capture("c", source="other", window=window(0, 90))
    assert np.isnan(increase(evidence, "c", window(0, 90), 30, [other]).iloc[1:, 0]).all()


def test_a_strip_does_not_show_a_counter_as_seen_while_its_question_failed(
    tmp_path: Path,
) -> None:
    seen = sight(evidence_of(tmp_path, SILENT), window(0, 180), 60, ["c"], answered((-300, 120)))
    assert seen["c"].tolist() == [True, True, False] and seen["up"].all()


def test_pieces_of_any_size_give_the_same_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(3)
    series = {
        labels(peer=str(n)): [
            (float(t), float(v))
            for t, v in zip(
                np.cumsum(random.integers(1, 900, 60)), random.integers(0, 50, 60), strict=True
            )
        ]
        for n in range(5)
    }
    evidence = evidence_of(tmp_path, {"c": series, "up": {labels(): ups(-100, 30_000, 60)}})
    span = window(-3600, 40_000)
    asked = [
        lambda: increase(evidence, "c", span, 60),
        *(lambda how=how: values(evidence, "c", span, 60, how) for how in HOWS),
    ]
    whole = [ask() for ask in asked]
    monkeypatch.setattr(frames, "_PIECE", 7)
    for one, other in zip(whole, [ask() for ask in asked], strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_samples_of_one_query_from_several_parts_are_put_in_order(tmp_path: Path) -> None:
    sid = series_id("main", "c", {"__name__": "c", **TARGET})
    shared = []
    for number, times in ((1, (60, 75)), (2, (0, 15, 30, 45))):
        with Part(tmp_path, "main", "c", number) as part:
            row = series_row("main", "c", {"__name__": "c", **TARGET})
            part.add("series", rows("series", [row]))
            batch = [{"sid": sid, "ts": at(t), "value": float(t)} for t in times]
            part.add("samples", rows("samples", batch))
        shared.append(part.shared)
    write_shared(tmp_path, shared)
    assert rises(Evidence(tmp_path), 0, 90) == [30.0, 30.0, 15.0]


def test_a_counter_of_decades_ago_costs_no_more_than_the_steps_that_are_asked_about(
    tmp_path: Path,
) -> None:
    long_ago = -60 * 365 * 86400.0
    evidence = evidence_of(tmp_path, {"c": {labels(): [(long_ago, 0), (90, -long_ago + 90)]}})
    assert rises(evidence, 0, 90) == pytest.approx([30.0, 30.0, 30.0])


def test_infinity_less_infinity_is_not_known(tmp_path: Path) -> None:
    inf = float("inf")
    evidence = evidence_of(tmp_path, {"c": {labels(): [(0, 1), (15, inf), (45, inf), (75, 2)]}})
    found = rises(evidence, 0, 90)
    assert (found[0], found[2]) == (inf, 2.0) and np.isnan(found[1])


HOWS = ("last", "min", "max", "mean")


@pytest.mark.parametrize(
    ("how", "expected"), [("last", 3.0), ("min", 1.0), ("max", 9.0), ("mean", 5.0)]
)
def test_samples_are_thinned_to_one_for_each_step(
    tmp_path: Path, how: How, expected: float
) -> None:
    gauge = [(0, 7), (10, 1), (15, 9), (29, 3), (65, 4), (90, 5)]
    found = values(evidence_of(tmp_path, {"c": {labels(): gauge}}), "c", window(0, 90), 30, how)
    assert found.iloc[:, 0].tolist()[::2] == [expected, 4.0] and np.isnan(found.iloc[1, 0])


BUCKETS = steps(
    {
        ("a", "1"): [0.0, 4.0, 4.0, 0.0, np.nan],
        ("a", "2"): [5.0, 4.0, 4.0, 0.0, np.nan],
        ("a", "+Inf"): [10.0, 4.0, 9.0, 0.0, np.nan],
    },
    30, "n", "le",
)  # fmt: skip


def test_a_quantile_is_read_off_the_buckets_and_never_beyond_them() -> None:
    found = quantile(BUCKETS, 0.4, "n")["a"]
    assert found.iloc[0] == 1.8  # four of ten: four fifths through the bucket from 1 to 2
    assert np.isnan(found.iloc[1])  # below the first bound
    assert np.isnan(quantile(BUCKETS, 0.9, "n")["a"].iloc[2])  # above the last
    assert found.iloc[3:].isna().all()  # nothing counted; nothing known


def test_a_quantile_over_targets_counts_all_of_them() -> None:
    other = BUCKETS.rename(columns={"a": "b"}, level="n") * 3
    both = pd.concat([BUCKETS, other], axis=1)
    assert list(quantile(both, 0.4, "n").columns) == ["a", "b"]
    assert quantile(both, 0.4)["total"].iloc[0] == pytest.approx(1.8)


@pytest.mark.parametrize(("bounds", "q"), [(("1", "2"), 0.5), (("1", "+Inf"), 1.5)])
def test_a_quantile_without_a_last_bucket_or_above_one_is_refused(
    bounds: tuple[str, ...], q: float
) -> None:
    table = steps({("a", le): [1.0] for le in bounds}, 30, "n", "le")
    with pytest.raises(ValueError, match=r"\+Inf|between 0 and 1"):
        quantile(table, q, "n")


def lines_of(*lines: tuple[float, str, str]) -> list[dict[str, object]]:
    return [
        {"source": "node", "file": "f", "line": n, "ts": at(s), "level": level, "peer": peer}
        for n, (s, level, peer) in enumerate(lines, 1)
    ]


def test_a_line_stands_beside_the_last_sample_before_it(tmp_path: Path) -> None:
    said = {
        labels(peer_id="x"): [(0, 1), (15, 2), (30, 3)],
        labels(peer_id="y"): [(0, 10), (29, 20)],
    }
    lines = lines_of((29, "WARN", "x"), (30, "ERROR", "y"), (30, "INFO", "x"), (31, "WARN", "z"))
    evidence = evidence_of(tmp_path, {"h": said}, {"log_lines": lines})
    found = at_lines(evidence, "h", window(0, 60), {"peer": "peer_id"}, ["WARN", "ERROR"])
    assert found["line"].tolist() == [1, 2, 4]
    assert found["value"].tolist()[:2] == [2.0, 20.0] and np.isnan(found["value"].iloc[2])
    assert found["sampled_at"].tolist()[:2] == [at(15), at(29)]
    assert found["labels"].iloc[0]["peer_id"] == "x" and found["labels"].iloc[2] is None


def test_a_line_stands_beside_every_series_where_none_is_chosen(tmp_path: Path) -> None:
    said = {labels(p="1"): [(0, 1)], labels(p="2"): [(0, 2)]}
    lines = {"log_lines": lines_of((5, "WARN", "x"))}
    found = at_lines(evidence_of(tmp_path, {"h": said}, lines), "h", window(0, 60), {})
    assert sorted(found["value"]) == [1.0, 2.0]


def test_what_was_said_too_long_ago_or_went_stale_no_longer_holds(tmp_path: Path) -> None:
    said = {labels(p="1"): [(0, 1)], labels(p="2"): [(0, 2)]}
    gone = series_id("main", "h", {"__name__": "h", **dict(labels(p="2"))})
    tables = {
        "log_lines": lines_of((100, "WARN", "x"), (400, "WARN", "x")),
        "stale": [{"source": "main", "sid": gone, "ts": at(90)}],
    }
    found = at_lines(evidence_of(tmp_path, {"h": said}, tables), "h", window(60, 600), {})
    assert found["value"].dropna().tolist() == [1.0] and len(found) == 4
    assert found["sampled_at"].notna().sum() == 1


def test_a_column_that_no_line_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="colour"):
        at_lines(evidence_of(tmp_path), "h", window(0, 60), {'colour"': "x"})


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
