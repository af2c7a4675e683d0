"""What a node answered of its ledger, read once: audit log, balances, and the roots around them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from tbforensics.chain import ledger
from tbforensics.chain.settlement import moment, step_of
from tbforensics.model import Frames, Json


@dataclass(frozen=True)
class Books:
    """What one node answered in one go. `asked`: each root that was its newest, with the time."""

    log: list[ledger.Entry]
    unread: int
    accounts: list[dict[str, Json]]
    balances: Json
    after: Json
    check: ledger.RootCheck
    asked: list[tuple[pd.Timestamp, str]]

    @property
    def apart_s(self) -> float:
        """Seconds between the first and the last capture of a root."""
        return float((self.asked[-1][0] - self.asked[0][0]).total_seconds()) if self.asked else 0.0


def books_of(frames: Frames, source: str) -> Books:
    """The books of one node."""

    def given(name: str) -> list[tuple[pd.Timestamp, Json]]:
        table = frames[name]
        rows = table[(table["source"] == source) & (table["state"] == "ok")]
        return list(zip(rows["ts"], rows["value"], strict=True))

    before, balances, audit, after = (
        given(name) for name in ("roots_before", "balances", "audit", "roots_after")
    )
    log: list[ledger.Entry] = []
    unread = 0
    for _, value in audit:  # what a later capture has lost to the ring, an earlier one may hold
        later, bad = ledger.entries(value)
        log = [e for e in log if not later or e.sequence < later[0].sequence] + later
        unread += bad
    first, held, last = (rows[-1][1] if rows else None for rows in (before, balances, after))
    newest = [(ts, ledger.roots(value)) for ts, value in (*before, *after)]
    return Books(
        log=log,
        unread=unread,
        accounts=ledger.accounts(held) or [],
        balances=held,
        after=last,
        check=ledger.root_check(first, held, last),
        asked=sorted((ts, roots[0]) for ts, roots in newest if roots),
    )


def roots_dated(frames: Frames) -> pd.Series:
    """How many roots of the nodes' rings came to be in each step, as far as they can be dated.

    Shape: the frames' index; NaN before the first of them, where the rings reach no further back.
    """
    index = frames["settled"].index
    moments = [
        at
        for source in sorted(set(frames["roots_after"]["source"]))
        for books in [books_of(frames, source)]
        for change in ledger.root_changes(books.balances, books.log, books.after)
        if (at := moment(change.entry.timestamp)) and index[0] <= at < index[-1] + step_of(frames)
    ]
    places = index.searchsorted(pd.DatetimeIndex(moments, tz="UTC"), side="right") - 1
    counts = pd.Series(0.0, index=index)
    for place in places[places >= 0]:
        counts.iloc[place] += 1
    return counts.where(index >= index[places.min()]) if len(places) else counts.where(False)
