"""The ledger adds up: no unit of work and no unit of money is lost or made up."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.chain.issuance import (
    Book,
    Due,
    book_effects,
    booked,
    effects,
    escrow,
    priced,
    total,
    whole_units,
)

START = pd.Timestamp("2026-03-10T10:00:00Z")
CELL = ("node-a", "read")


def series(*values: float) -> pd.Series:
    index = pd.date_range(START, periods=len(values), freq="15s", name="ts")
    return pd.Series(values, index=index, dtype=float)


def frame(*values: float, cell: tuple[str, str] = CELL) -> pd.DataFrame:
    columns = pd.MultiIndex.from_tuples([cell])
    return series(*values).to_frame().set_axis(columns, axis=1)


def book(units: list[float], raw: list[float], published: list[float]) -> Due:
    accounts = priced(frame(*units), frame(*raw), frame(*published))
    return booked(accounts, START, START + pd.Timedelta(hours=1))[CELL]


# --- the ledger --------------------------------------------------------------------------


def test_issued_is_work_times_raw_and_allowed_is_work_times_published() -> None:
    due = book([100, 100], [20, 44], [23, 40])
    assert due == Due(200, 100 * 20 + 100 * 44, 100 * 23 + 100 * 40)


def test_a_published_multiplier_below_zero_allows_nothing_and_takes_nothing_back() -> None:
    assert book([100, 100], [5, 5], [-7, 5]).allowed == 500


def test_work_before_any_multiplier_was_seen_is_unpriced_and_in_no_sum() -> None:
    assert book([100, 100], [np.nan, 5], [np.nan, 5]) == Due(200, 500, 500, unpriced=100)


def test_a_multiplier_holds_until_another_is_seen() -> None:
    assert book([100, 100, 100], [20, np.nan, 44], [20, np.nan, 44]).issued == 8400


def test_money_beyond_64_bits_keeps_every_digit() -> None:
    assert book([2.0**53 - 1], [10**6], [1]).issued == (2**53 - 1) * 10**6


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
@settings(max_examples=60)
def test_whole_units_lose_and_make_up_nothing(values: list[float]) -> None:
    whole = whole_units(series(*values))
    assert abs(int(whole.sum()) - sum(values)) <= 1
    assert (whole >= 0).all()


def test_a_rise_spread_over_a_gap_adds_up_to_the_rise() -> None:
    assert whole_units(series(10 / 3, 10 / 3, 10 / 3)).tolist() == [3, 4, 3]


def test_stretches_of_an_account_add_up_to_the_whole() -> None:
    accounts = priced(frame(*range(8)), frame(*[7] * 8), frame(*[6] * 8))
    middle = START + pd.Timedelta(seconds=45)
    end = START + pd.Timedelta(seconds=120)
    parts = [booked(accounts, START, middle)[CELL], booked(accounts, middle, end)[CELL]]
    assert parts[0] + parts[1] == booked(accounts, START, end)[CELL] == Due(28, 196, 168)


# --- volume and multiplier ---------------------------------------------------------------

dues = st.builds(
    lambda units, price: Due(units, units * price, 0),
    st.integers(0, 10**15),
    st.integers(-100, 10**6),
)
shares = st.fractions(min_value=Fraction(1, 1000), max_value=3, max_denominator=1000)


@given(dues, dues, shares)
@settings(max_examples=200)
def test_volume_and_multiplier_add_up_exactly_to_the_change(
    before: Due, after: Due, share: Fraction
) -> None:
    part = effects(before, after, share=share)
    assert part.volume + part.multiplier == part.change
    assert part.change == round(after.issued - share * before.issued)


@given(dues, dues)
@settings(max_examples=100)
def test_neither_side_is_the_base(before: Due, after: Due) -> None:
    there, back = effects(before, after), effects(after, before)
    assert there.volume == -back.volume
    assert there.multiplier == -back.multiplier


def test_more_work_at_the_same_multiplier_is_all_volume() -> None:
    part = effects(Due(100, 2000), Due(300, 6000))
    assert (part.volume, part.multiplier) == (4000, 0)


def test_the_same_work_at_a_dearer_multiplier_is_all_multiplier() -> None:
    part = effects(Due(100, 2000), Due(100, 4400))
    assert (part.volume, part.multiplier) == (0, 2400)


def test_when_both_double_the_cross_term_is_shared_and_none_is_left_over() -> None:
    part = effects(Due(100, 1000), Due(200, 4000))
    assert (part.volume, part.multiplier) == (1500, 1500)  # Laspeyres leaves 1000 to neither


def test_work_that_was_not_done_before_is_priced_by_the_level_that_held() -> None:
    part = effects(Due(), Due(100, 4400), levels=(Fraction(20), Fraction(44)))
    assert part.change == 4400
    assert part.volume == 3200  # at the mean of 20 and 44


def test_an_unknown_level_counts_as_unchanged() -> None:
    assert effects(Due(), Due(100, 4400)).multiplier == 0


def test_effects_of_nodes_are_added_so_that_a_shift_between_nodes_is_volume() -> None:
    before: Book = {("a", "cpu"): Due(100, 1000), ("b", "cpu"): Due(100, 5000)}
    after: Book = {("a", "cpu"): Due(0, 0), ("b", "cpu"): Due(200, 10_000)}
    levels = {("a", "cpu"): (Fraction(10), Fraction(10))}
    parts = book_effects(before, after, Fraction(1), levels)
    assert sum(part.multiplier for part in parts.values()) == 0
    assert sum(part.volume for part in parts.values()) == 4000
    assert total(after, "cpu").issued - total(before, "cpu").issued == 4000


# --- rent escrow -------------------------------------------------------------------------


def rent(
    locked: list[float],
    refunded: list[float],
    burned: list[float],
    restarted: list[bool] | None = None,
) -> object:
    again = pd.Series(restarted or [False] * len(locked), index=series(*locked).index)
    return escrow(series(*locked), series(*refunded), series(*burned), again)


def test_a_release_that_is_refunded_and_burned_loses_nothing() -> None:
    books = rent([1000, 1000, 0], [0, 0, 900], [0, 0, 100])
    assert (books.lost, books.locked_new, books.burned_share) == (0, 0, 0.1)


def test_what_is_locked_anew_is_what_the_balance_cannot_explain_otherwise() -> None:
    books = rent([1000, 1500, 900], [0, 0, 900], [0, 0, 100])
    assert (books.locked_new, books.lost) == (500 + 400, 0)


def test_a_balance_that_falls_without_a_refund_or_a_burn_was_lost() -> None:
    books = rent([5000, 5000, 3000], [0, 0, 0], [0, 0, 0])
    assert (books.lost, books.lost_at) == (2000, START + pd.Timedelta(seconds=30))


def test_a_restart_sets_the_gauge_to_zero_and_releases_nothing() -> None:
    books = rent([5000, 0, 300], [0, 0, 0], [0, 0, 0], [False, True, False])
    assert (books.lost, books.restarts, books.locked_new) == (0, 1, 300)


def test_a_scrape_between_the_halves_of_a_release_is_no_loss() -> None:
    books = rent([1000, 0, 0], [0, 0, 900], [0, 0, 100])
    assert books.lost == 0


def test_a_gap_in_the_scrapes_is_no_loss() -> None:
    books = rent([1000, np.nan, np.nan, 0], [0, 300, 300, 300], [0, 34, 33, 33])
    assert books.lost == 0


def test_a_balance_below_zero_after_a_restart_is_read_as_it_is() -> None:
    books = rent([5000, 0, -1000], [0, 0, 900], [0, 0, 100], [False, True, False])
    assert (books.closed, books.lost) == (-1000, 0)


def test_the_share_of_nothing_released_is_no_number() -> None:
    assert np.isnan(rent([10, 10], [0, 0], [0, 0]).burned_share)


def test_without_a_balance_there_is_nothing_to_check() -> None:
    assert rent([np.nan, np.nan], [0, 0], [0, 0]) is None


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40))
@settings(max_examples=60)
def test_the_nodes_own_rule_never_looks_like_a_loss(amounts: list[int]) -> None:
    locked, refunded, burned = [float(sum(amounts))], [0.0], [0.0]
    for amount in amounts:
        locked.append(locked[-1] - amount)
        refunded.append(amount * 9 // 10)
        burned.append(amount - amount * 9 // 10)
    books = rent(locked, refunded, burned)
    assert books.lost == 0
    assert books.burned_share >= 0.1
    assert books.refunded + books.burned == sum(amounts)


@pytest.mark.parametrize("extra", [1, 7, 10**9])
def test_the_smallest_loss_is_found_to_the_unit(extra: int) -> None:
    books = rent([2e12, 2e12, 1e12 - extra], [0, 0, 9e11], [0, 0, 1e11])
    assert books.lost == extra
