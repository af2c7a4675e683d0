"""When The-Block's epochs began, from what changes at their boundaries, and which number each has.

An epoch is 120 blocks. No metric tells the time of its boundary, but every epoch sets the four
subsidy multipliers anew and adds fresh noise to them, so a scrape that finds other values than
the one before lies just after a boundary. What was not seen is reckoned, and said to be.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

EPOCH_BLOCKS = 120
NOMINAL_EPOCH_S = 120.0  # blocks come about one second apart
_SHARP = 2.5  # times the usual distance of samples
_MOST_UNSEEN = 4  # epochs for each boundary that was seen, where little noise moves anything
_SAME_BOUNDARY_S = 45.0  # nodes see one boundary at their own scrapes; far below an epoch

Setting = tuple[int, ...]  # what one epoch set: the four multipliers, as published


@dataclass(frozen=True)
class Epoch:
    """One epoch: the time for which the multipliers of one retune held.

    number: as the chain counts, of the retune that began it; None when nothing tells it.
    start, end: half-open; each is up to one scrape late.
    seen:   both ends are changes that were seen; else one of them is reckoned.
    whole:  it began and ended within what was looked at.
    """

    number: int | None
    start: pd.Timestamp
    end: pd.Timestamp
    seen: bool
    whole: bool

    @property
    def seconds(self) -> float:
        return float((self.end - self.start).total_seconds())


@dataclass(frozen=True)
class Dating:
    """All epochs of a span in time order, and how they were dated.

    numbered: boundaries whose multipliers stand in a record under exactly one number.
    contradictions: numbered boundaries that do not fit the others.
    epoch_s: how long one epoch usually took.
    how:      one sentence for people.
    """

    epochs: tuple[Epoch, ...]
    numbered: int
    contradictions: int
    epoch_s: float
    how: str


def boundaries(levels: pd.DataFrame) -> pd.DatetimeIndex:
    """Steps at which any level differs from the one seen before.

    Shape:  UTC steps by series of multipliers (of one node or of several). Changes of several
            nodes less than 45 s apart are one boundary, at the first. A change across a gap
            dates nothing.
    """
    if levels.empty:
        return pd.DatetimeIndex([], tz="UTC")
    moved = np.zeros(len(levels), dtype=bool)
    for _, column in levels.items():
        seen = column.dropna()
        apart_s = seen.index.to_series().diff().dt.total_seconds()
        sharp = apart_s <= _SHARP * apart_s.median()  # after a gap nobody knows when it was
        changed = seen.index[(seen.diff().fillna(0.0) != 0) & sharp]
        moved |= levels.index.isin(changed)
    found: list[pd.Timestamp] = []
    for moment in levels.index[moved]:
        if not found or (moment - found[-1]).total_seconds() >= _SAME_BOUNDARY_S:
            found.append(moment)
    return pd.DatetimeIndex(found, tz="UTC") if found else pd.DatetimeIndex([], tz="UTC")


def numbers_of(
    starts: Sequence[pd.Timestamp],
    settings: Mapping[pd.Timestamp, Iterable[Setting]],
    records: Mapping[Setting, set[int]],
) -> dict[pd.Timestamp, int]:
    """The chain's number of each boundary whose settings stand in the records exactly once.

    settings: what each node published in the epoch after a boundary; nodes draw their own noise,
              so mostly just one of them is the node that kept the records.
    """
    numbers = {}
    for start in starts:
        told = [
            records[setting] for setting in settings.get(start, ()) if len(records.get(setting, ()))
        ]
        candidates = {next(iter(epochs)) for epochs in told if len(epochs) == 1}
        if len(candidates) == 1:
            numbers[start] = candidates.pop()
    return numbers


def date_epochs(
    start: pd.Timestamp,
    end: pd.Timestamp,
    seen: Sequence[pd.Timestamp],
    numbers: Mapping[pd.Timestamp, int],
) -> Dating:
    """Epochs from the start to the end of a span.

    seen:    boundaries in time order; between two of them that are several epochs apart the
             missing ones are placed evenly.
    numbers: of some of the boundaries, in the chain's count.
    """
    inside = [moment for moment in seen if start <= moment < end]
    epoch_s = _usual_s(inside, numbers)
    if not inside:
        cuts = [(moment, False) for moment in pd.date_range(start, end, freq=f"{epoch_s}s")]
        how = (
            f"no multiplier changed in sight, so epochs are reckoned as {epoch_s:.0f} s each from "
            "the start: their number and length are nominal"
        )
        return Dating(_epochs(cuts, start, end, None), 0, 0, epoch_s, how)
    cuts = [(inside[0], True)]
    places = {inside[0]: 0}
    for before, after in pairwise(inside):
        count = _apart(before, after, numbers, epoch_s)
        step = (after - before) / count
        cuts += [(before + step * n, False) for n in range(1, count)] + [(after, True)]
        places[after] = len(cuts) - 1
    offsets = [number - places[moment] for moment, number in numbers.items() if moment in places]
    offset = statistics.mode(offsets) if offsets else None
    wrong = sum(1 for found in offsets if found != offset)
    reckoned = len(cuts) - len(inside)
    how = (
        f"{len(inside)} boundaries seen as changes of the multipliers, each up to one step late"
        + (f", {reckoned} reckoned between them" if reckoned else "")
        + (
            f"; {len(offsets)} of them numbered by the records"
            + (f", of which {wrong} contradict the others" if wrong else "")
            if offsets
            else "; nothing numbers them, so they are counted from the first"
        )
    )
    return Dating(_epochs(cuts, start, end, offset), len(offsets), wrong, epoch_s, how)


def _usual_s(seen: Sequence[pd.Timestamp], numbers: Mapping[pd.Timestamp, int]) -> float:
    """How long an epoch takes: by the numbers, or by the boundaries when nothing numbers them."""
    apart_s = [(b - a).total_seconds() for a, b in pairwise(seen)]
    if not apart_s:
        return NOMINAL_EPOCH_S
    usual_s = statistics.median(apart_s)
    known = [(moment, numbers[moment]) for moment in seen if moment in numbers]
    paces = []
    for (before, n), (after, m) in pairwise(known):
        seconds = (after - before).total_seconds()
        if 0 < m - n <= _MOST_UNSEEN * max(1, round(seconds / usual_s)):  # else a number is wrong
            paces.append(seconds / (m - n))
    return float(statistics.median(paces or apart_s))


def _apart(
    before: pd.Timestamp, after: pd.Timestamp, numbers: Mapping[pd.Timestamp, int], epoch_s: float
) -> int:
    """How many epochs lie between two boundaries."""
    by_time: int = max(1, round((after - before).total_seconds() / epoch_s))
    if before in numbers and after in numbers:
        by_number = numbers[after] - numbers[before]
        if 0 < by_number <= 2 * by_time:  # else a number is wrong, and the clock is believed
            return by_number
    return by_time


def _epochs(
    cuts: Sequence[tuple[pd.Timestamp, bool]],
    start: pd.Timestamp,
    end: pd.Timestamp,
    offset: int | None,
) -> tuple[Epoch, ...]:
    epochs = []
    if cuts and cuts[0][0] > start:
        number = offset - 1 if offset is not None else None
        epochs.append(Epoch(number, start, cuts[0][0], False, False))
    ends = [*cuts[1:], (end, False)]
    for place, ((begun, saw_start), (ended, saw_end)) in enumerate(zip(cuts, ends, strict=True)):
        if ended <= begun:
            continue
        number = offset + place if offset is not None else None
        epochs.append(Epoch(number, begun, ended, saw_start and saw_end, ended < end))
    return tuple(epochs)
