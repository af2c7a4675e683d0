"""Equity, peaks and drawdowns from a portfolio's journal, and whose money the fall was.

A journal's numbers are decimal text. Sums and products here are exact decimals of that text;
what leaves is rounded once, half to even, to the cent, and parts are rounded so that they add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal, localcontext
from itertools import pairwise

import pandas as pd

from tbforensics.model import Json

PORTFOLIO = ""  # stands where a strategy's name would: all strategies and all cash
EXACT = Context(prec=120)  # digits; a product of two of a journal's numbers has up to 34
_LARGEST = Decimal(10) ** 15  # an amount or a price beyond it is a fault, not money
_CENT = Decimal("0.01")

Position = tuple[str, str]  # strategy, symbol


def decimal_of(value: Json) -> Decimal | None:
    """The number as it was spelled; None for what is no amount: text, booleans, infinities."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = Decimal(repr(value))  # the shortest spelling, which is what the writer wrote
    return number if number.is_finite() and abs(number) <= _LARGEST else None


def cents(usd: Decimal) -> int:
    """US cents, rounded half to even."""
    return int(usd.quantize(_CENT, ROUND_HALF_EVEN, EXACT).scaleb(2))


@dataclass(frozen=True)
class Snapshot:
    """One row of the journal.

    held:     quantity and price of each position. cash_of: each listed strategy's own cash.
    unlike_cash: strategies whose rows disagree about their cash by more than a cent.
    worth:    equity by strategy, and of the portfolio: cash and positions at their last prices.
    total:    what the row itself says the portfolio was worth; None when it does not.
    """

    ts_ns: int
    held: Mapping[Position, tuple[Decimal, Decimal]]
    cash_of: Mapping[str, Decimal]
    cash: Decimal
    worth: Mapping[str, Decimal]
    total: Decimal | None = None
    last_rebalance_ns: int = 0
    unlike_cash: tuple[str, ...] = ()

    def equity(self, strategy: str = PORTFOLIO) -> Decimal | None:
        """Cash and positions at their last prices; None for a strategy that the row lacks.

        A strategy that holds nothing is not listed, so what it is worth is not known then.
        """
        return self.worth.get(strategy)


def snapshot_of(ts_ns: int, value: Mapping[str, Json]) -> Snapshot | None:
    """A row of `portfolio.ndjson`; None when any of its numbers cannot be read.

    A strategy's cash stands in none of its fields: `allocated_capital` repeats it in the row of
    every symbol, with that symbol's worth added. So cash = allocated - qty * price, once.
    """
    cash, rows = decimal_of(value.get("cash")), value.get("positions")
    if cash is None or not isinstance(rows, list):
        return None
    held: dict[Position, tuple[Decimal, Decimal]] = {}
    said: dict[str, list[Decimal]] = {}
    placed: dict[str, Decimal] = {}
    with localcontext(EXACT):
        for row in rows:
            position = _position(row)
            if position is None:
                return None
            strategy, symbol, qty, price, allocated = position
            held[strategy, symbol] = qty, price
            said.setdefault(strategy, []).append(allocated - qty * price)
            placed[strategy] = placed.get(strategy, Decimal()) + qty * price
        worth = {strategy: said[strategy][0] + usd for strategy, usd in placed.items()}
        worth[PORTFOLIO] = cash + sum(placed.values(), Decimal())
    if not all(abs(equity) <= _LARGEST for equity in worth.values()):
        return None
    return Snapshot(
        ts_ns=ts_ns,
        held=held,
        cash_of={strategy: cashes[0] for strategy, cashes in said.items()},
        cash=cash,
        worth=worth,
        total=decimal_of(value.get("total_equity")),
        last_rebalance_ns=_ns(value.get("last_rebalance_ts")),
        unlike_cash=tuple(s for s, cashes in said.items() if max(cashes) - min(cashes) > _CENT),
    )


def _position(row: Json) -> tuple[str, str, Decimal, Decimal, Decimal] | None:
    if not isinstance(row, Mapping):
        return None
    strategy, symbol = row.get("strategy_id"), row.get("symbol")
    qty = decimal_of(row.get("qty"))
    price, allocated = (
        decimal_of(row.get("current_price")),
        decimal_of(row.get("allocated_capital")),
    )
    if not (isinstance(strategy, str) and strategy and isinstance(symbol, str)):
        return None
    if qty is None or price is None or allocated is None:
        return None
    return strategy, symbol, qty, price, allocated


def _ns(value: Json) -> int:
    """Unix ns; below 1e15 it is milliseconds, and 0 is never."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return 0
    return value * 1_000_000 if value < 10**15 else value


# --- how far it fell -----------------------------------------------------------------------


def curve(
    times: pd.DatetimeIndex, equity_usd: Sequence[Decimal], first_peak_usd: Decimal | None
) -> pd.DataFrame:
    """Equity, its running peak and the drawdown.

    first_peak_usd: what the peak is at least, for a journal that begins after it: capital times
               target weight. None: the peak is the first equity.
    Shape:   index: the times given; columns `equity` and `peak` in cents (integers), `drawdown`.
    Unit:    drawdown in percent of the running peak, positive: 18.0 is eighteen percent below.
             NaN where the peak is not above zero: a share of it means nothing.
    Source:  (peak - equity) / peak * 100, as `max_drawdown_pct` of Njord Quant defines it.
    """
    equity = pd.Series([cents(usd) for usd in equity_usd], index=times, dtype="int64")
    peak = equity.cummax()
    if first_peak_usd is not None:
        peak = peak.clip(lower=cents(first_peak_usd))
    drawdown = 100.0 * (peak - equity) / peak.where(peak > 0)
    return pd.DataFrame({"equity": equity, "peak": peak, "drawdown": drawdown})


def read(table: pd.DataFrame) -> tuple[list[Snapshot], int]:
    """Every snapshot of a journal once, in time order, and how many rows cannot be read.

    Shape: columns `ts` and `value` of records. An archive and the file that it was made of may
           both be there, so the same row may come twice.
    """
    found: list[Snapshot] = []
    unreadable = 0
    for ts, value in zip(table["ts"], table["value"], strict=True):
        row = None if pd.isna(ts) else snapshot_of(int(ts.as_unit("ns").value), value)
        if row is None:
            unreadable += 1
        elif row not in found[-2:]:
            found.append(row)
    return found, unreadable


@dataclass(frozen=True)
class Trade:
    """A change of a position from one row to the next, at the later row's price."""

    ts_ns: int
    strategy: str
    symbol: str
    qty: Decimal
    price: Decimal

    @property
    def usd(self) -> Decimal:
        return self.qty * self.price


def trades(rows: Sequence[Snapshot]) -> list[Trade]:
    """What was bought (positive) and sold (negative), as far as positions show it.

    Several fills between two rows are one trade. A position that vanished was sold at a price
    that the journal does not tell: its last one is taken.
    """
    found = []
    for earlier, later in pairwise(rows):
        for strategy, symbol in sorted(earlier.held.keys() | later.held.keys()):
            none = (Decimal(), earlier.held.get((strategy, symbol), (Decimal(), Decimal()))[1])
            qty, price = later.held.get((strategy, symbol), none)
            was = earlier.held.get((strategy, symbol), none)[0]
            if qty != was:
                found.append(Trade(later.ts_ns, strategy, symbol, qty - was, price))
    return found


@dataclass(frozen=True)
class Fall:
    """One stretch below the level from which we count it as a fall. Numbers are row numbers.

    before:  the last row at or above that level; None when the journal begins below it.
    first:   the first row below it. trough: the deepest row.
    back:    the first row at or above the level again; None when there is none.
    """

    before: int | None
    first: int
    trough: int
    back: int | None


def falls(drawdown: pd.Series, *, from_pct: float, deep_pct: float) -> list[Fall]:
    """Stretches with a drawdown above `from_pct` that reach `deep_pct`, in time order."""
    values = drawdown.to_numpy(dtype=float)
    found: list[Fall] = []
    for start, end in runs(values > from_pct):
        part = values[start:end]
        if part.max() >= deep_pct:
            found.append(
                Fall(
                    before=start - 1 if start else None,
                    first=start,
                    trough=start + int(part.argmax()),
                    back=end if end < len(values) else None,
                )
            )
    return found


def runs(true: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """First row and row after the last of each stretch of true ones."""
    start: int | None = None
    for row, here in enumerate([*true, False]):
        if here and start is None:
            start = row
        elif not here and start is not None:
            yield start, row
            start = None


# --- whose fall it was ---------------------------------------------------------------------

HELD, BOUGHT = "price, held from the onset", "price, bought during the fall"
COSTS = "fees, slippage and what was closed"


def contributions(
    rows: Sequence[Snapshot], strategy: str = PORTFOLIO
) -> dict[Position, dict[str, int]]:
    """What changed the equity between the first row and the last, in cents that add up exactly.

    Formula: between two rows a position that held qty moves the equity by qty * (later price -
             earlier price). Of that qty as much as was held at the first row counts as held, the
             rest as bought since. What is left of the change is the cash that trading cost beyond
             what it brought at the later price: fees and slippage, and positions that vanished
             when they were closed, whose last price the journal does not tell.
    Shape:   by (strategy, symbol), then by HELD, BOUGHT or COSTS; costs under the symbol "".
    Unit:    cents; the sum over all parts is the rounded change of the equity.
    Errors:  ValueError when the strategy is missing from the first or the last row.
    """
    known = [row for row in rows if row.equity(strategy) is not None]
    if len(known) < 2 or known[0] is not rows[0] or known[-1] is not rows[-1]:
        raise ValueError(f"no equity of {strategy or 'the portfolio'} at either end")
    parts: dict[tuple[Position, str], Decimal] = {}
    with localcontext(EXACT):
        change = _equity(known[-1], strategy) - _equity(known[0], strategy)
        at_first = {position: qty for position, (qty, _) in known[0].held.items()}
        for earlier, later in pairwise(known):
            for position in earlier.held.keys() & later.held.keys():
                if strategy not in (PORTFOLIO, position[0]):
                    continue
                qty, price = earlier.held[position]
                rise = later.held[position][1] - price
                old = _of_these(qty, at_first.get(position, Decimal()))
                for what, moved in ((HELD, old * rise), (BOUGHT, (qty - old) * rise)):
                    parts[position, what] = parts.get((position, what), Decimal()) + moved
        left = change - sum(parts.values(), Decimal())
    parts[(strategy, ""), COSTS] = left
    keys = sorted(parts)
    fell = cents(_equity(known[-1], strategy)) - cents(_equity(known[0], strategy))
    result: dict[Position, dict[str, int]] = {}
    for key, amount in zip(keys, shared([parts[key] for key in keys], fell), strict=True):
        if parts[key]:
            result.setdefault(key[0], {})[key[1]] = amount
    return result


def _equity(row: Snapshot, strategy: str) -> Decimal:
    equity = row.equity(strategy)
    assert equity is not None
    return equity


def _of_these(qty: Decimal, at_first: Decimal) -> Decimal:
    """How much of a quantity was held at first; none of it when it changed sides."""
    if qty * at_first <= 0:
        return Decimal()
    return min(qty, at_first, key=abs)


def shared(amounts: Sequence[Decimal], total: int) -> list[int]:
    """Amounts in cents that add up to `total`: rounded down, then the largest rests rounded up."""
    exact = [amount.scaleb(2, EXACT) for amount in amounts]
    whole = [int(amount.to_integral_value(ROUND_FLOOR)) for amount in exact]
    order = sorted(range(len(exact)), key=lambda i: (whole[i] - exact[i], i))
    left = total - sum(whole)
    for place in range(abs(left)):
        whole[order[place % len(order)]] += 1 if left > 0 else -1
    return whole


# --- marked to the market ------------------------------------------------------------------


def marked(
    rows: Sequence[Snapshot], prices: Iterable[tuple[int, str, Decimal]], strategy: str
) -> list[tuple[int, Decimal]]:
    """The equity at every price of the market, with what the journal's last row held.

    prices: (unix ns, symbol, price) in time order. Journal prices move only when it is written.
    Shape:  (unix ns, USD) for each journal row and each price of a symbol that is held then.
    """
    found: list[tuple[int, Decimal]] = []
    waiting = iter(prices)
    price = next(waiting, None)
    with localcontext(EXACT):
        for place, row in enumerate(rows):
            equity = row.equity(strategy)
            if equity is None:
                continue
            while price is not None and price[0] < row.ts_ns:
                price = next(waiting, None)
            found.append((row.ts_ns, equity))
            until = rows[place + 1].ts_ns if place + 1 < len(rows) else None
            at = {p: held for p, (_, held) in row.held.items() if strategy in (PORTFOLIO, p[0])}
            while price is not None and (until is None or price[0] < until):
                ts_ns, symbol, now = price
                moved = [position for position in at if position[1] == symbol]
                for position in moved:
                    equity += row.held[position][0] * (now - at[position])
                    at[position] = now
                if moved:
                    found.append((ts_ns, equity))
                price = next(waiting, None)
    return found
