"""Each strategy and the portfolio, as the journal tells them: how deep, since when, by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pandas as pd

from tbforensics.model import Frames, Json, Spell, Window
from tbforensics.trading import portfolio
from tbforensics.trading.njord import moment, second
from tbforensics.trading.portfolio import PORTFOLIO, Fall, Snapshot, cents

_MINUTE_NS = 60_000_000_000


@dataclass(frozen=True)
class Account:
    """One strategy, or the portfolio (`name` is "").

    rows, curve: of the same length; see `portfolio.curve`.
    usual_pct: the level above which a fall counts.
    deepest:  number of the window's deepest row. fall: the one that holds it, if deep enough.
    """

    name: str
    rows: tuple[Snapshot, ...]
    curve: pd.DataFrame
    usual_pct: float
    deepest: int
    fall: Fall | None

    @property
    def title(self) -> str:
        return self.name or "the portfolio"

    @property
    def depth_pct(self) -> float:
        return float(self.curve["drawdown"].iloc[self.deepest])

    @property
    def peak_cents(self) -> int:
        return int(self.curve["peak"].iloc[self.deepest])

    @property
    def lowest_cents(self) -> int:
        return int(self.curve["equity"].iloc[self.deepest])

    @property
    def start(self) -> int:
        """Number of the row that the fall is counted from: the last calm one, if there is one."""
        assert self.fall is not None
        return self.fall.first if self.fall.before is None else self.fall.before

    @property
    def falling(self) -> tuple[Snapshot, ...]:
        """The rows from the start of the fall to its deepest one."""
        return self.rows[self.start : self.deepest + 1]

    @property
    def spell(self) -> Spell:
        """Between two rows nothing is known, so an onset lies between a calm row and the next."""
        assert self.fall is not None
        back = self.fall.back
        recovery = None if back is None else moment(self.rows[back].ts_ns)
        return Spell(
            onset=moment(self.rows[self.start].ts_ns),
            onset_earliest=moment(self.rows[self.start].ts_ns),
            onset_latest=moment(self.rows[self.fall.first].ts_ns),
            recovery=recovery,
            recovery_earliest=None if back is None else moment(self.rows[back - 1].ts_ns),
            recovery_latest=recovery,
        )

    def during(self, window: Window) -> Window:
        """From the onset to the recovery, or to the end of the window."""
        spell = self.spell
        end = spell.recovery or max(window.end, spell.onset_latest)
        return Window(spell.onset, max(end, spell.onset + timedelta(milliseconds=1)))

    def crossed(self, over_pct: float) -> datetime | None:
        """When the fall first went beyond a percentage."""
        assert self.fall is not None
        drawdown = self.curve["drawdown"].iloc[self.fall.first : self.deepest + 1]
        above = drawdown.index[drawdown > over_pct]
        return moment(int(above[0].as_unit("ns").value)) if len(above) else None

    def speed(self) -> str:
        """How fast it fell and came back, in words."""
        assert self.fall is not None
        drawdown = self.curve["drawdown"]
        minutes = _minutes(self.rows[self.start], self.rows[self.deepest])
        points = self.depth_pct - float(drawdown.iloc[self.start])
        text = f"{minutes:.1f} min to its lowest, {points / minutes:.2f} percent points a minute"
        if self.fall.before is None:
            text = "it had fallen before the journal begins"
        back = self.fall.back
        if back is None:
            return f"{text}; not recovered in what was seen"
        return (
            f"{text}; recovered {_minutes(self.rows[self.deepest], self.rows[back]):.1f} min later"
        )

    def row(self) -> dict[str, Json]:
        spell = self.spell if self.fall else None
        return {
            "who": self.title,
            "drawdown_pct": round(self.depth_pct, 4),
            "peak_usd": self.peak_cents / 100,
            "lowest_usd": self.lowest_cents / 100,
            "onset": second(spell.onset) if spell else None,
            "lowest_at": second(self.rows[self.deepest].ts_ns),
            "recovered": second(spell.recovery) if spell and spell.recovery else None,
            "usual_pct": round(self.usual_pct, 4),
        }


def _minutes(earlier: Snapshot, later: Snapshot) -> float:
    return max(later.ts_ns - earlier.ts_ns, 1) / _MINUTE_NS


def accounts(
    frames: Frames,
    rows: Sequence[Snapshot],
    *,
    capital_usd: float,
    weights: Mapping[str, float],
    onset_pct: float,
    deep_pct: float,
) -> list[Account]:
    """Every strategy that the journal names and then the portfolio, if the window has a row.

    The first peak of a strategy is capital times weight, whatever the journal begins with; of one
    without a weight it is its first equity. The usual drawdown is the baseline's median.
    """
    found = []
    for name in [*sorted({name for row in rows for name in row.cash_of}), PORTFOLIO]:
        known = [(row, equity) for row in rows if (equity := row.equity(name)) is not None]
        times = pd.DatetimeIndex(pd.to_datetime([row.ts_ns for row, _ in known], utc=True))
        curve = portfolio.curve(
            times, [equity for _, equity in known], first_peak(name, capital_usd, weights)
        )
        drawdown = curve["drawdown"]
        inside = (times >= frames.window.start) & (times < frames.window.end)
        if not drawdown[inside].notna().any():
            continue
        calm = drawdown[(times >= frames.baseline.start) & (times < frames.baseline.end)].median()
        usual_pct = (0.0 if pd.isna(calm) else max(0.0, float(calm))) + onset_pct
        deepest = int(drawdown.where(inside).argmax())
        fall = None
        if float(drawdown.iloc[deepest]) >= deep_pct:
            falls = portfolio.falls(drawdown, from_pct=usual_pct, deep_pct=deep_pct)
            fall = next((f for f in falls if f.first <= deepest < (f.back or len(times))), None)
        rows_known = tuple(row for row, _ in known)
        found.append(Account(name, rows_known, curve, usual_pct, deepest, fall))
    return found


def first_peak(name: str, capital_usd: float, weights: Mapping[str, float]) -> Decimal | None:
    capital = Decimal(repr(capital_usd))
    if name == PORTFOLIO:
        return capital
    return capital * Decimal(repr(weights[name])) if name in weights else None


# --- what made it --------------------------------------------------------------------------


def parts(account: Account) -> list[dict[str, Json]]:
    """Contributions to the fall, the largest loss first; the cents add up to the change.

    None when the journal begins at the lowest row: then it tells nothing of what came before.
    """
    if len(account.falling) < 2:
        return []
    made = portfolio.contributions(account.falling, account.name)
    change = sum(amount for what in made.values() for amount in what.values())
    rows = [
        {
            "strategy": strategy or "all",
            "symbol": symbol or "(none)",
            "what": what,
            "usd": amount / 100,
            "cents": amount,
            "share": amount / change if change else 0.0,
        }
        for (strategy, symbol), by in made.items()
        for what, amount in by.items()
    ]
    return sorted(rows, key=lambda row: (row["cents"], row["strategy"], row["symbol"]))


def steps(account: Account, most: int) -> list[dict[str, Json]]:
    """The rows of the journal at which the equity fell most, with the price that did it."""
    found = []
    for earlier, later in pairwise(account.falling):
        before, after = earlier.equity(account.name), later.equity(account.name)
        if before is None or after is None or after >= before:
            continue
        position, moved = min(
            (
                (position, qty * (later.held[position][1] - price))
                for position, (qty, price) in earlier.held.items()
                if position in later.held and account.name in (PORTFOLIO, position[0])
            ),
            key=lambda pair: (pair[1], pair[0]),
            default=(None, Decimal()),
        )
        found.append(
            {
                "time": second(later.ts_ns),
                "after_s": round((later.ts_ns - earlier.ts_ns) / 1e9, 3),
                "usd": cents(after - before) / 100,
                "mostly": position[1] if position else "cash",
                "price_from": float(earlier.held[position][1]) if position else None,
                "price_to": float(later.held[position][1]) if position else None,
                "held": float(earlier.held[position][0]) if position else None,
                "its_usd": cents(moved) / 100,
            }
        )
    return sorted(found, key=lambda row: (row["usd"], row["time"]))[:most]


def marked(
    account: Account,
    prices: Sequence[tuple[int, str, Decimal]],
    window: Window,
    seed: Decimal | None,
) -> pd.DataFrame:
    """The account's curve at every price of the market; within the window only.

    The journal's own rows are among them, so the deepest row here is never the shallower one.
    """
    points = portfolio.marked(account.rows, prices, account.name)
    times = pd.DatetimeIndex(pd.to_datetime([ts_ns for ts_ns, _ in points], utc=True))
    curve = portfolio.curve(times, [equity for _, equity in points], seed)
    return curve[(times >= window.start) & (times < window.end)]


def at_steps(account: Account, column: str, index: pd.DatetimeIndex, step_s: float) -> pd.Series:
    """A column of the curve as it stood at the end of each step; NaN before the first row."""
    known = account.curve[column]
    known = known[~known.index.duplicated(keep="last")]
    ends = (index + pd.Timedelta(seconds=step_s)).as_unit("ns")
    return pd.Series(known.reindex(ends, method="ffill").to_numpy(), index=index)


def side_by_side(accounts: Sequence[Account], column: str, frames: Frames) -> pd.DataFrame:
    """One column per account at every step of baseline and window; cents become USD."""
    span = (frames.baseline, frames.window)
    start, end = min(w.start for w in span), max(w.end for w in span)
    step = pd.Timedelta(seconds=frames.step_s)
    index = pd.date_range(start, end, freq=step, inclusive="left").as_unit("ms")
    unit = 1.0 if column == "drawdown" else 100.0
    columns = {a.title: at_steps(a, column, index, frames.step_s) / unit for a in accounts}
    return pd.DataFrame(columns, index=index)


def spans_between(times: Sequence[datetime], window: Window) -> Iterator[Window]:
    """The stretches of a window that hold no moment of a list."""
    inside = sorted(t for t in times if t in window)
    for earlier, later in pairwise([window.start, *inside, window.end]):
        if later > earlier:
            yield Window(earlier, later)
