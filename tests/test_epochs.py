"""Epochs are dated by what changes at their boundaries, and numbered by the records."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tbforensics.chain.epochs import boundaries, date_epochs, numbers_of

START = pd.Timestamp("2026-03-10T10:00:00Z")


def at(seconds: float) -> pd.Timestamp:
    return START + pd.Timedelta(seconds=seconds)


def levels(step_s: float = 15.0, **columns: list[float]) -> pd.DataFrame:
    length = len(next(iter(columns.values())))
    return pd.DataFrame(
        columns, index=pd.date_range(START, periods=length, freq=f"{step_s}s", name="ts")
    )


def test_a_multiplier_that_changes_marks_a_boundary() -> None:
    table = levels(a=[50.0] * 8 + [53.0] * 8 + [47.0] * 8)
    assert list(boundaries(table)) == [at(120), at(240)]


def test_two_nodes_that_see_one_boundary_at_their_own_scrapes_are_one_boundary() -> None:
    table = levels(a=[50.0] * 8 + [53.0] * 8, b=[61.0] * 9 + [60.0] * 7)
    assert list(boundaries(table)) == [at(120)]


def test_a_change_across_a_gap_dates_nothing() -> None:
    table = levels(a=[50.0] * 8 + [np.nan] * 12 + [53.0] * 8)
    assert list(boundaries(table)) == []


def test_scrapes_rarer_than_steps_still_date() -> None:
    values = [x if n % 4 == 0 else np.nan for n, x in enumerate([50.0] * 12 + [53.0] * 12)]
    assert list(boundaries(levels(a=values))) == [at(180)]


def test_no_series_has_no_boundaries() -> None:
    assert list(boundaries(pd.DataFrame(index=levels(a=[1.0]).index))) == []


def test_boundaries_that_were_not_seen_are_reckoned_and_said_to_be() -> None:
    dating = date_epochs(at(0), at(900), [at(60), at(180), at(300), at(660), at(780)], {})
    assert [e.start for e in dating.epochs][4:6] == [at(420), at(540)]
    assert [e.seen for e in dating.epochs] == [False, True, True, *[False] * 3, True, False]
    assert "2 reckoned" in dating.how
    assert "nothing numbers them" in dating.how


def test_the_first_and_the_last_epoch_are_not_whole() -> None:
    dating = date_epochs(at(0), at(500), [at(60), at(180), at(300), at(420)], {})
    assert [e.whole for e in dating.epochs] == [False, True, True, True, False]


def test_the_records_number_every_epoch_from_a_few() -> None:
    seen = [at(60), at(180), at(300), at(420)]
    dating = date_epochs(at(0), at(500), seen, {at(180): 77, at(420): 79})
    assert [e.number for e in dating.epochs] == [75, 76, 77, 78, 79]
    assert (dating.numbered, dating.contradictions) == (2, 0)


def test_numbers_tell_how_many_epochs_a_gap_holds() -> None:
    seen = [at(0), at(110), at(220), at(580), at(690)]
    numbers = {at(0): 10, at(110): 11, at(220): 12, at(580): 15, at(690): 16}
    dating = date_epochs(at(0), at(800), seen, numbers)
    assert [e.number for e in dating.epochs] == [10, 11, 12, 13, 14, 15, 16]


def test_a_number_that_contradicts_the_others_is_counted_and_not_believed() -> None:
    seen = [at(60), at(180), at(300), at(420)]
    numbers = {at(60): 76, at(180): 77, at(300): 12, at(420): 79}
    dating = date_epochs(at(0), at(500), seen, numbers)
    assert [e.number for e in dating.epochs] == [75, 76, 77, 78, 79]
    assert dating.contradictions == 1
    assert "1 contradict" in dating.how


def test_where_nothing_changes_epochs_are_nominal_and_nameless() -> None:
    dating = date_epochs(at(0), at(600), [], {})
    assert [e.seconds for e in dating.epochs] == [120.0] * 5
    assert {e.number for e in dating.epochs} == {None}
    assert "nominal" in dating.how


def test_a_setting_that_stands_under_two_numbers_numbers_nothing() -> None:
    starts = [at(0), at(120)]
    settings = {at(0): [(50, 20, 10, 5)], at(120): [(51, 20, 10, 5)]}
    records = {(50, 20, 10, 5): {7, 9}, (51, 20, 10, 5): {8}}
    assert numbers_of(starts, settings, records) == {at(120): 8}


def test_one_of_the_nodes_is_enough_to_number_an_epoch() -> None:
    settings = {at(0): [(1, 2, 3, 4), (50, 20, 10, 5)]}
    assert numbers_of([at(0)], settings, {(50, 20, 10, 5): {7}}) == {at(0): 7}
