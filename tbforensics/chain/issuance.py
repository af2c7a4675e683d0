"""The subsidy ledger: what was due for the work done, epoch by epoch, and why that changed.

Work comes in four kinds, each with its multiplier in ledger units: bytes stored, bytes read,
milliseconds of CPU, and bytes that computations put out. Money is whole numbers throughout.

The node keeps two sets of multipliers. `raw` is what its estimator found; `published` is the
same after random noise and after the cuts of the inflation guard and the kill switch
(`retune_multipliers`, node/src/governance/params.rs). Its blocks pay by the raw ones
(`mine_block_with_ts`, node/src/lib.rs), while `inflation.params`, `/subsidy/history` and
`events.log` tell the published ones. So `issued` is raw times work, `allowed` is published
times work, and their difference is exactly noise and cuts. Every unit of work is counted once:
blocks of the builds that were read pay storage and compute by the running total of their epoch,
which pays early work of an epoch again in each later block, and only block data could show that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import pandas as pd

WORK = ("storage", "read", "cpu", "bytes_out")
SYMBOLS = {"storage": "beta", "read": "gamma", "cpu": "kappa", "bytes_out": "lambda"}
PARAMETERS = {
    "storage": "beta_storage_sub",
    "read": "gamma_read_sub",
    "cpu": "kappa_cpu_sub",
    "bytes_out": "lambda_bytes_out_sub",
}
REFUND_NUMERATOR, REFUND_DENOMINATOR = 9, 10  # of a released rent escrow; the rest is burned


@dataclass(frozen=True)
class Due:
    """What one kind of work on one node was due.

    units:   bytes or ms. unpriced: those of them whose multiplier was never seen.
    issued:  ledger units by the raw multiplier. allowed: by the published one; a multiplier
             below zero allows nothing, it takes nothing back.
    """

    units: int = 0
    issued: int = 0
    allowed: int = 0
    unpriced: int = 0

    def __add__(self, other: Due) -> Due:
        return Due(
            self.units + other.units,
            self.issued + other.issued,
            self.allowed + other.allowed,
            self.unpriced + other.unpriced,
        )


Cell = tuple[str, str]  # node and work
Book = Mapping[Cell, Due]


# --- the ledger --------------------------------------------------------------------------


def whole_units(rises: pd.Series) -> pd.Series:
    """Rises per step as integers, in which no unit is lost or made up.

    A rise that was spread over a gap has fractions; each step takes the whole units that the
    running total has passed by its end. Missing steps count 0.
    """
    total = rises.fillna(0.0).cumsum().round().astype("int64")
    return total.diff().fillna(total.iloc[:1]).astype("int64")


@dataclass(frozen=True)
class Account:
    """One kind of work on one node, step by step; sums over any stretch of it are exact.

    units, issued, allowed: one whole number per step of `index`; None where no multiplier had
            been seen yet.
    """

    index: pd.DatetimeIndex
    units: tuple[int, ...]
    issued: tuple[int | None, ...]
    allowed: tuple[int | None, ...]

    def due(self, start: pd.Timestamp, end: pd.Timestamp) -> Due:
        """What is due for the steps that start within [start, end)."""
        first, last = self.index.searchsorted([start, end])
        return _less(self._running[last], self._running[first])

    @cached_property
    def _running(self) -> list[Due]:
        """Sums up to each step: `due` is asked for every epoch of long incidents."""
        running = [Due()]
        for units, issued, allowed in zip(self.units, self.issued, self.allowed, strict=True):
            unpriced = units if issued is None else 0
            running.append(running[-1] + Due(units, issued or 0, allowed or 0, unpriced))
        return running


def _less(later: Due, earlier: Due) -> Due:
    return Due(
        later.units - earlier.units,
        later.issued - earlier.issued,
        later.allowed - earlier.allowed,
        later.unpriced - earlier.unpriced,
    )


def priced(work: pd.DataFrame, raw: pd.DataFrame, published: pd.DataFrame) -> dict[Cell, Account]:
    """An account for each node and kind of work.

    Shape:  three frames over the same steps, columns (node, work). A multiplier holds until
            another is seen; before the first it is unknown.
    Unit:   ledger units.
    """
    accounts = {}
    for cell in work.columns:
        units = [int(value) for value in whole_units(work[cell])]
        amounts = []
        for levels, least in ((raw, None), (published, 0)):
            known = levels[cell].ffill() if cell in levels.columns else None
            multipliers = [None] * len(units) if known is None else _whole(known)
            amounts.append(
                tuple(
                    None if each is None else n * (each if least is None else max(each, least))
                    for n, each in zip(units, multipliers, strict=True)
                )
            )
        accounts[cell] = Account(pd.DatetimeIndex(work.index), tuple(units), *amounts)
    return accounts


def _whole(levels: pd.Series) -> list[int | None]:
    return [None if value != value else round(value) for value in levels.tolist()]


def booked(accounts: Mapping[Cell, Account], start: pd.Timestamp, end: pd.Timestamp) -> Book:
    """The ledger of one stretch of time."""
    return {cell: account.due(start, end) for cell, account in accounts.items()}


def total(book: Book, work: str = "") -> Due:
    """Everything in a ledger, or everything of one kind of work."""
    return sum((due for (_, kind), due in book.items() if work in ("", kind)), Due())


# --- why it changed ----------------------------------------------------------------------


@dataclass(frozen=True)
class Effects:
    """A change of what was issued, in two parts that add up to it exactly.

    change: issued in the later ledger less in the earlier, ledger units.
    volume: due to more or less work. multiplier: due to work being worth more or less.
    """

    change: int
    volume: int
    multiplier: int

    def __add__(self, other: Effects) -> Effects:
        return Effects(
            self.change + other.change,
            self.volume + other.volume,
            self.multiplier + other.multiplier,
        )


NOTHING = Effects(0, 0, 0)


def effects(
    before: Due,
    after: Due,
    *,
    share: Fraction = Fraction(1),
    levels: tuple[Fraction | None, Fraction | None] = (None, None),
) -> Effects:
    """How much of a change of one node's work is volume and how much is the multiplier.

    share:  how much of the earlier ledger to compare with, such as 1/45 of a calm stretch of 45
            epochs for one epoch.
    levels: the multiplier before and after, for a side without any work; a multiplier that is
            not known there counts as unchanged.
    Unit:   whole ledger units; volume + multiplier == change, always.
    Source: the symmetric (midpoint) decomposition of a change of value into quantity and price:
            mean price times change of quantity, mean quantity times change of price. Bennet,
            "The theory of measurement of changes in cost of living", JRSS 83, 1920; Diewert,
            "Index number theory using differences rather than ratios", 2005. Unlike Laspeyres'
            it leaves no cross term and does not depend on which side is called the base.
    """
    q0, q1 = share * (before.units - before.unpriced), Fraction(after.units - after.unpriced)
    v0, v1 = share * before.issued, Fraction(after.issued)
    p0, p1 = _price(v0, q0, levels[0]), _price(v1, q1, levels[1])
    if p0 is None or p1 is None:
        p0 = p1 = p0 if p0 is not None else p1 if p1 is not None else Fraction(0)
    change = round(v1 - v0)
    volume = round((p0 + p1) / 2 * (q1 - q0))
    return Effects(change, volume, change - volume)


def _price(value: Fraction, units: Fraction, level: Fraction | None) -> Fraction | None:
    return value / units if units else level


def book_effects(
    before: Book,
    after: Book,
    share: Fraction,
    levels: Mapping[Cell, tuple[Fraction | None, Fraction | None]],
) -> dict[Cell, Effects]:
    """`effects` of every node and kind of work; their sum is that of the whole ledger, so a shift
    of work between nodes with different multipliers is no hidden third part."""
    return {
        cell: effects(
            before.get(cell, Due()),
            after.get(cell, Due()),
            share=share,
            levels=levels.get(cell, (None, None)),
        )
        for cell in sorted(before.keys() | after.keys())
    }


# --- rent escrow -------------------------------------------------------------------------


@dataclass(frozen=True)
class Escrow:
    """What became of the rent held in escrow on one node, ledger units.

    opened, closed: locked at the start and at the end, of the stretches without a restart.
    refunded, burned: paid back and destroyed by releases.
    locked_new: what must have been locked meanwhile for the rest to add up; at least this much.
    lost:   the largest fall of the balance that no refund or burn accounts for.
    lost_at: the step in which that was.
    restarts: how often the balance began again at zero with its process, which is no release.
    """

    opened: int
    closed: int
    refunded: int
    burned: int
    locked_new: int
    lost: int
    lost_at: pd.Timestamp | None
    restarts: int

    @property
    def burned_share(self) -> float:
        """Of what was released; NaN when nothing was."""
        released = self.refunded + self.burned
        return self.burned / released if released else float("nan")


def escrow(
    locked: pd.Series, refunded: pd.Series, burned: pd.Series, restarted: pd.Series
) -> Escrow | None:
    """The conservation of rent: what leaves the balance was refunded or burned.

    Shape:  steps of one node: the balance (a gauge, whatever its name says), the rises of the two
            counters, and whether the process began again in the step. None without any balance.
    Unit:   ledger units. A balance that falls by F while R is refunded and B burned has locked
            R + B - F anew; below zero, that much left the balance without being booked.
            A scrape may fall between the two halves of one release, so what the next step
            brings back is no loss.
    Source: `RentEscrow::release` of the node: of an amount a, floor(9a/10) is refunded and the
            rest burned, so the burned share is never below one tenth.
    """
    seen = locked.dropna()
    if seen.empty:
        return None
    index = seen.index
    flows = pd.DataFrame(
        {
            "refunded": whole_units(refunded.reindex(locked.index)),
            "burned": whole_units(burned.reindex(locked.index)),
        }
    ).cumsum()
    began = restarted.reindex(locked.index, fill_value=False).cumsum()
    level = [round(value) for value in seen]
    out = [int(flows.at[moment, "refunded"] + flows.at[moment, "burned"]) for moment in index]
    fresh = [
        level[place] - level[place - 1] + out[place] - out[place - 1]
        # A balance that is kept in memory says nothing across a restart.
        if began.at[index[place]] == began.at[index[place - 1]]
        else 0
        for place in range(1, len(index))
    ]
    lost, lost_at = 0, None
    for place, (here, after) in enumerate(zip(fresh, [*fresh[1:], 0], strict=True), start=1):
        if (gone := -(here + max(after, 0))) > lost:
            lost, lost_at = gone, index[place]
    return Escrow(
        opened=level[0],
        closed=level[-1],
        refunded=int(flows["refunded"].iloc[-1]),
        burned=int(flows["burned"].iloc[-1]),
        locked_new=sum(max(amount, 0) for amount in fresh),
        lost=lost,
        lost_at=lost_at,
        restarts=int(began.iloc[-1]),
    )
