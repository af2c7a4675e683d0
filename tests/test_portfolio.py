"""Equity, peaks, falls and whose money they were: exact decimals, rounded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.trading.portfolio import (
    BOUGHT,
    COSTS,
    HELD,
    PORTFOLIO,
    Snapshot,
    cents,
    contributions,
    curve,
    decimal_of,
    falls,
    marked,
    read,
    shared,
    snapshot_of,
    trades,
)

FIXTURES = Path(__file__).parent / "fixtures" / "njord"
TREND, RSI = "trendline_break_v1", "rsi_tema_bb_v1"
ATOM, SOL = "ATOM/USDT", "SOL/USDT"


def row(cash: float, *positions: tuple[str, str, float, float, float], ts_ns: int = 0) -> Snapshot:
    """A snapshot from (strategy, symbol, qty, price, the strategy's own cash)."""
    value = {
        "cash": cash,
        "positions": [
            {
                "strategy_id": strategy,
                "symbol": symbol,
                "qty": qty,
                "current_price": price,
                "allocated_capital": float(
                    Decimal(repr(own)) + Decimal(repr(qty)) * Decimal(repr(price))
                ),
            }
            for strategy, symbol, qty, price, own in positions
        ],
    }
    found = snapshot_of(ts_ns, value)
    assert found is not None
    return found


def sampled() -> list[Snapshot]:
    """The journal of a real run, ninety rows."""
    lines = (FIXTURES / "portfolio.ndjson").read_text().splitlines()
    found = [snapshot_of(value["ts_ns"], value) for value in map(json.loads, lines)]
    return [one for one in found if one is not None]


def curve_of(rows: Sequence[Snapshot], strategy: str, seed: int | None) -> pd.DataFrame:
    known = [(one.ts_ns, usd) for one in rows if (usd := one.equity(strategy)) is not None]
    times = pd.to_datetime([ts_ns for ts_ns, _ in known], utc=True)
    first = None if seed is None else Decimal(seed)
    return curve(pd.DatetimeIndex(times), [usd for _, usd in known], first)


# --- one row -----------------------------------------------------------------------------


def test_a_strategy_with_two_symbols_has_its_cash_once() -> None:
    one = row(100.0, (TREND, ATOM, 10.0, 5.0, 20.0), (TREND, SOL, 2.0, 15.0, 20.0))
    assert one.cash_of == {TREND: 20}
    assert one.equity(TREND) == 20 + 50 + 30
    assert one.unlike_cash == ()


def test_rows_that_disagree_about_their_cash_are_named() -> None:
    one = row(100.0, (TREND, ATOM, 10.0, 5.0, 20.0), (TREND, SOL, 2.0, 15.0, 20.02))
    assert one.unlike_cash == (TREND,)


def test_a_short_position_is_worth_less_than_nothing() -> None:
    assert row(0.0, (TREND, ATOM, -3.0, 10.0, 100.0)).equity(TREND) == 70


def test_a_strategy_that_holds_nothing_is_not_listed_and_not_worth_nothing() -> None:
    assert row(100.0, (TREND, ATOM, 10.0, 5.0, 20.0)).equity(RSI) is None


@pytest.mark.parametrize(
    "wrong", [None, True, "12.5", "NaN", float("nan"), float("inf"), 1e300, [], {}]
)
def test_what_is_no_amount_spoils_its_row(wrong: Any) -> None:
    position = {"strategy_id": TREND, "symbol": ATOM, "qty": 1.0, "current_price": 2.0}
    good = {"cash": 1.0, "positions": [{**position, "allocated_capital": 5.0}]}
    assert snapshot_of(0, good) is not None
    assert snapshot_of(0, {**good, "cash": wrong}) is None
    assert snapshot_of(0, {**good, "positions": [{**position, "allocated_capital": wrong}]}) is None
    assert snapshot_of(0, {**good, "positions": wrong}) is None or wrong == []


def test_amounts_whose_product_is_no_money_spoil_their_row() -> None:
    huge = {"strategy_id": TREND, "symbol": ATOM, "qty": 1e14, "current_price": 1e14}
    value = {"cash": 1.0, "positions": [{**huge, "allocated_capital": 5.0}]}
    assert snapshot_of(0, value) is None


@given(st.decimals(-(10**12), 10**12, places=6, allow_nan=False))
def test_a_number_is_taken_as_it_was_spelled(number: Decimal) -> None:
    given_back = json.loads(str(number))
    found = decimal_of(given_back)
    assert found is not None
    assert float(found) == float(number)


def test_ten_cents_and_twenty_are_thirty() -> None:
    values = [decimal_of(0.1), decimal_of(0.2)]
    assert sum(value for value in values if value is not None) == Decimal("0.3")


def test_cents_are_rounded_half_to_even_and_once() -> None:
    assert [cents(Decimal(usd)) for usd in ("0.005", "0.015", "-0.005", "1.2349")] == [0, 2, 0, 123]


def test_the_same_row_twice_is_one_row() -> None:
    value = {"cash": 1.0, "positions": []}
    table = pd.DataFrame(
        {
            "ts": pd.to_datetime([1, 1, 2, None], utc=True, unit="ns"),
            "value": [value, dict(value), value, value],
        }
    )
    rows, unreadable = read(table)
    assert [one.ts_ns for one in rows] == [1, 2]
    assert unreadable == 1  # the one without a time


@pytest.mark.parametrize(("spelled", "ns"), [(1_795_218_167_592, True), (0, False), (True, False)])
def test_a_rebalance_time_in_milliseconds_is_told_by_its_size(spelled: Any, ns: bool) -> None:
    found = snapshot_of(0, {"cash": 1.0, "positions": [], "last_rebalance_ts": spelled})
    assert found is not None
    assert found.last_rebalance_ns == (spelled * 1_000_000 if ns else 0)


# --- how far it fell ---------------------------------------------------------------------


def test_the_real_run_falls_by_18_percent_and_the_portfolio_by_less() -> None:
    rows = sampled()
    deepest = {
        name: curve_of(rows, name, seed)["drawdown"].max()
        for name, seed in ((TREND, 60_000), (RSI, 40_000), (PORTFOLIO, 100_000))
    }
    assert deepest == pytest.approx({TREND: 18.07545, RSI: 0.055, PORTFOLIO: 10.86727}, abs=1e-4)


def test_the_real_run_says_itself_what_the_portfolio_is_worth() -> None:
    for one in sampled():
        assert one.total is not None
        assert abs(one.total - (one.equity() or 0)) < Decimal("0.000001")


def test_without_an_opening_row_the_first_peak_is_the_capital() -> None:
    times = pd.date_range("2026-11-20", periods=2, freq="s", tz="UTC")
    equity = [Decimal(54), Decimal(57)]
    assert list(curve(times, equity, Decimal(60))["drawdown"]) == pytest.approx([10.0, 5.0])
    assert list(curve(times, equity, None)["drawdown"]) == [0.0, 0.0]


def test_a_peak_that_is_not_above_zero_has_no_drawdown() -> None:
    times = pd.date_range("2026-11-20", periods=2, freq="s", tz="UTC")
    assert curve(times, [Decimal(-1), Decimal(-2)], None)["drawdown"].isna().all()


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=40))
def test_a_drawdown_is_positive_and_zero_at_every_new_peak(equity: list[int]) -> None:
    times = pd.date_range("2026-11-20", periods=len(equity), freq="s", tz="UTC")
    found = curve(times, [Decimal(e) for e in equity], None)
    assert ((found["drawdown"] >= 0) & (found["drawdown"] < 100)).all()
    assert (found["drawdown"][found["equity"] == found["peak"]] == 0).all()


@pytest.mark.parametrize(
    ("name", "drawdown", "expected"),
    [
        ("flat", [0, 0, 0], []),
        ("shallow", [0, 5, 0], []),
        ("one fall", [0, 2, 12, 11, 0, 0], [(0, 1, 2, 4)]),
        ("still falling", [0, 2, 12], [(0, 1, 2, None)]),
        ("fallen from the first row", [12, 13, 0], [(None, 0, 1, 2)]),
        ("two falls", [0, 11, 0, 14, 0], [(0, 1, 1, 2), (2, 3, 3, 4)]),
        ("empty", [], []),
    ],
)
def test_falls(name: str, drawdown: list[float], expected: list[tuple[int | None, ...]]) -> None:
    found = falls(pd.Series(drawdown, dtype=float), from_pct=1.0, deep_pct=10.0)
    assert [(f.before, f.first, f.trough, f.back) for f in found] == expected


# --- whose fall it was -------------------------------------------------------------------


def test_the_fall_of_the_real_run_is_one_price_and_65_cents_of_costs() -> None:
    rows = [one for one in sampled() if one.equity(TREND) is not None][4:74]
    made = contributions(rows, TREND)
    assert made == {(TREND, ""): {COSTS: -65}, (TREND, ATOM): {HELD: -1_033_854}}


def test_what_was_bought_during_the_fall_counts_apart() -> None:
    rows = [
        row(100.0, (TREND, ATOM, 10.0, 10.0, 100.0)),
        row(55.0, (TREND, ATOM, 15.0, 9.0, 54.5)),  # five at 9, with half a dollar of fee
        row(55.0, (TREND, ATOM, 15.0, 8.0, 54.5)),
    ]
    assert contributions(rows, TREND) == {
        (TREND, ""): {COSTS: -50},
        (TREND, ATOM): {HELD: -2000, BOUGHT: -500},
    }


def test_what_was_sold_no_longer_loses() -> None:
    rows = [
        row(0.0, (TREND, ATOM, 10.0, 10.0, 0.0)),
        row(90.0, (TREND, ATOM, 1.0, 10.0, 90.0)),
        row(90.0, (TREND, ATOM, 1.0, 5.0, 90.0)),
    ]
    assert contributions(rows, TREND) == {(TREND, ATOM): {HELD: -500}}


def test_a_position_that_vanished_is_among_the_costs() -> None:
    rows = [
        row(0.0, (TREND, ATOM, 10.0, 10.0, 0.0), (TREND, SOL, 1.0, 1.0, 0.0)),
        row(80.0, (TREND, SOL, 1.0, 1.0, 80.0)),
    ]
    assert contributions(rows, TREND) == {(TREND, ""): {COSTS: -2000}}


def test_contributions_need_an_equity_at_both_ends() -> None:
    rows = [row(0.0, (TREND, ATOM, 1.0, 1.0, 0.0)), row(1.0)]
    with pytest.raises(ValueError, match="no equity of"):
        contributions(rows, TREND)


AMOUNTS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))


@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS, AMOUNTS), min_size=2, max_size=8))
def test_the_parts_add_up_to_the_fall_to_the_cent(steps: list[tuple[float, ...]]) -> None:
    rows = [
        row(cash, (TREND, ATOM, qty, price, cash), (TREND, SOL, other, price, cash))
        for qty, price, other, cash, _ in steps
    ]
    for name in (TREND, PORTFOLIO):
        ends = [rows[0].equity(name), rows[-1].equity(name)]
        made = contributions(rows, name)
        total = sum(amount for by in made.values() for amount in by.values())
        assert ends[0] is not None
        assert ends[1] is not None
        assert total == cents(ends[1]) - cents(ends[0])


@given(st.lists(st.decimals(-1000, 1000, places=4), min_size=1, max_size=12), st.integers(-2, 2))
def test_shares_add_up_whatever_they_are(amounts: list[Decimal], off: int) -> None:
    total = cents(sum(amounts, Decimal())) + off
    found = shared(amounts, total)
    assert sum(found) == total
    assert all(abs(cents(a) - b) <= 1 + abs(off) for a, b in zip(amounts, found, strict=True))


def test_trades_are_changes_of_positions_at_the_later_price() -> None:
    rows = [
        row(0.0, (TREND, ATOM, 10.0, 10.0, 0.0), ts_ns=1),
        row(0.0, (TREND, ATOM, 12.0, 9.0, 0.0), (RSI, SOL, 1.0, 7.0, 0.0), ts_ns=2),
        row(0.0, (RSI, SOL, 1.0, 7.0, 0.0), ts_ns=3),
    ]
    found = [(t.ts_ns, t.strategy, float(t.qty), float(t.usd)) for t in trades(rows)]
    assert found == [(2, RSI, 1.0, 7.0), (2, TREND, 2.0, 18.0), (3, TREND, -12.0, -108.0)]


# --- marked to the market ----------------------------------------------------------------


def test_between_fills_the_market_goes_on() -> None:
    rows = [
        row(0.0, (TREND, ATOM, 10.0, 10.0, 0.0), ts_ns=100),
        row(0.0, (TREND, ATOM, 10.0, 9.0, 0.0), ts_ns=200),
    ]
    prices = [
        (50, ATOM, Decimal(1)),
        (150, SOL, Decimal(1)),
        (160, ATOM, Decimal(4)),
        (250, ATOM, Decimal(8)),
    ]
    assert marked(rows, prices, TREND) == [(100, 100), (160, 40), (200, 90), (250, 80)]
