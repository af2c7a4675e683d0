"""When what was due stopped coming: spells in which counted events fall far short of their due."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tbforensics.analysis.signals import Floats

_DROP = 10.0  # nats that a finished spell may lose before the next one is looked for
_SURE = 3.0  # this many due and none came: by chance in 5 % of cases


@dataclass(frozen=True)
class Plateau:
    """One spell, in rows. Rows that were not seen neither count nor end it.

    first, last: its first and last row; the edges are rows in which something was due.
    before:   the row after which it may have begun: the last one in which something came.
    sure:     the row by whose end it had begun, with 95 % probability.
    after:    the first row in which something came again; None when none did.
    due, came: sums over the spell.
    """

    first: int
    last: int
    before: int
    sure: int
    after: int | None
    due: float
    came: float

    @property
    def missing(self) -> float:
        return self.due - self.came


def plateaus(
    came: Floats, due: Floats, *, share: float = 0.1, missing: float = 10.0
) -> list[Plateau]:
    """Spells in which no more than `share` of what was due came, in time order.

    Shape:   two arrays of equal length, counts per row; NaN where nothing was seen.
    missing: how much must be due and not come before it is a spell. By chance, ten in a row do
             not come once for every 22,000 that are due, and twelve once for every 160,000.
    Errors:  ValueError when the lengths differ or `share` is not between 0 and 1.
    Source:  Page, "Continuous inspection schemes", Biometrika 41 (1954): the sum of each row's
             log-likelihood ratio of two Poisson rates, `share` times the due against the due
             itself, begins again whenever it falls to zero. A spell reaches from there to the
             sum's peak.
    """
    if came.shape != due.shape or not 0 < share < 1:
        raise ValueError("two arrays of equal length, and a share between 0 and 1")
    scores = np.nan_to_num(came * math.log(share) + due * (1 - share))
    found: list[Plateau] = []
    row = 0
    while row < len(scores):
        spell = _next(scores, row)
        if spell is None:
            break
        first, last = spell
        seen = np.isfinite(came[first : last + 1]) & np.isfinite(due[first : last + 1])
        total_due = float(due[first : last + 1][seen].sum())
        total_came = float(came[first : last + 1][seen].sum())
        if total_due - total_came >= missing and total_came <= share * total_due:
            found.append(_plateau(came, due, first, last, total_due, total_came))
        row = last + 1
    return found


def _next(scores: Floats, row: int) -> tuple[int, int] | None:
    """From where the sum last stood at zero to its peak, before it drops for good."""
    total = peak = 0.0
    first = last = -1
    for i in range(row, len(scores)):
        if total + scores[i] <= 0 or peak - (total + scores[i]) > _DROP:
            if first >= 0:
                return first, last
            total = 0.0
            continue
        if first < 0 and scores[i] > 0:
            first = i
        total += scores[i]
        if total > peak:
            peak, last = total, i
    return (first, last) if first >= 0 else None


def _plateau(
    came: Floats, due: Floats, first: int, last: int, total_due: float, total_came: float
) -> Plateau:
    landed = np.flatnonzero(np.nan_to_num(came) > 0)
    earlier, later = landed[landed < first], landed[landed > last]
    awaited = np.cumsum(np.nan_to_num(due[first : last + 1]))
    return Plateau(
        first=first,
        last=last,
        before=int(earlier[-1]) if len(earlier) else 0,
        sure=first + int(np.searchsorted(awaited, min(_SURE, awaited[-1]))),
        after=int(later[0]) if len(later) else None,
        due=total_due,
        came=total_came,
    )
