"""What rose in each step, from the samples of counters; pure.

Samples come in pieces of time, so that no more than a piece of them is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True)
class Steps:
    """Steps of equal width from `start_ms` on; the last one holds the moment before `end_ms`."""

    start_ms: int
    end_ms: int
    step_ms: int

    @property
    def count(self) -> int:
        return -((self.start_ms - self.end_ms) // self.step_ms)

    @property
    def begins(self) -> Ints:
        return self.start_ms + self.step_ms * np.arange(self.count)

    def holding(self, ts: Ints) -> Ints:
        """The number of the step that holds each moment; of those before the first, below 0."""
        return (ts - self.start_ms) // self.step_ms


@dataclass(frozen=True)
class Piece:
    """Samples: all of one series together, and in the order of their time, in milliseconds."""

    places: Ints  # which series
    ts: Ints
    values: Floats


def piece_of(names: Ints, sids: Ints, ts: Ints, values: Floats) -> Piece:
    """Samples in any order as a piece; the place of a series is that of its name in `names`.

    names: ascending. Of samples there is at least one; long ordered runs of them cost little.
    """
    starts = _starts(sids)
    counts = np.diff(np.append(starts, len(sids)))
    places = np.repeat(np.searchsorted(names, sids[starts]), counts)
    first, width = int(ts.min()), int(np.ptp(ts)) + 1
    if width > _LARGEST // max(len(names), 1):
        order = np.lexsort((ts, places))
    else:
        keys = places * width + (ts - first)
        if (keys[1:] >= keys[:-1]).all():
            return Piece(places, ts, values)
        order = np.argsort(keys, kind="stable")
    return Piece(places[order], ts[order], values[order])


class Rises:
    """How much each counter rose in each step, resets undone.

    ups: for each series the moments at which its target was seen up, ascending. A series that
         appears after one of them rose from zero there.
    """

    def __init__(self, steps: Steps, ups: Sequence[Ints]) -> None:
        self._steps, self._ups = steps, ups
        self._since = np.zeros(len(ups), np.int64)  # the sample before, of each series
        self._before = np.full(len(ups), np.nan)
        self._sums = np.zeros((len(ups), steps.count))
        self._known = np.zeros((len(ups), steps.count), bool)

    def add(self, piece: Piece) -> None:
        """Pieces are handed in by time."""
        places, ts, values = piece.places, piece.ts, piece.values
        first = _starts(places)
        for row in first[np.isnan(self._before[places[first]])]:
            self._begin(int(places[row]), int(ts[row]))
        since, before = np.roll(ts, 1), np.roll(values, 1)
        since[first], before[first] = self._since[places[first]], self._before[places[first]]
        last = np.append(first[1:], len(places)) - 1
        self._since[places[last]], self._before[places[last]] = ts[last], values[last]

        with np.errstate(invalid="ignore"):  # infinity less infinity is not known
            rises = np.where(values < before, values, values - before)
        told = ~np.isnan(before) & (ts > self._steps.start_ms) & (since < self._steps.end_ms)
        far = ts - since > self._steps.step_ms
        ends = self._steps.holding(ts - 1)  # a sample on the edge of two steps ends the earlier one
        near = told & ~far & (ends < self._steps.count)
        self._put(places[near], ends[near], rises[near])
        if (spread := told & far).any():
            self._spread(places[spread], since[spread], ts[spread], rises[spread])

    def _begin(self, place: int, at: int) -> None:
        ups = self._ups[place]
        if scrapes := np.searchsorted(ups, at):
            self._since[place], self._before[place] = ups[scrapes - 1], 0.0

    def _spread(self, places: Ints, since: Ints, ts: Ints, rises: Floats) -> None:
        """What rose between samples that lie far apart, evenly over the steps between them."""
        first = np.maximum(self._steps.holding(since), 0)
        last = np.minimum(self._steps.holding(ts - 1), self._steps.count - 1)
        counts = last - first + 1
        row = np.repeat(np.arange(len(ts)), counts)
        steps = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
        begins = self._steps.begins[steps]
        shared = np.minimum(ts[row], begins + self._steps.step_ms) - np.maximum(since[row], begins)
        self._put(places[row], steps, rises[row] * shared / (ts - since)[row])

    def _put(self, places: Ints, steps: Ints, amounts: Floats) -> None:
        cells = places * self._steps.count + steps
        if len(starts := _starts(cells)):
            with np.errstate(invalid="ignore"):
                self._sums.ravel()[cells[starts]] += np.add.reduceat(amounts, starts)
            self._known.ravel()[cells[starts]] = True

    def table(self, still: Bools) -> Floats:
        """Shape: series times steps, as `still`: where nothing rose but it is known that nothing
        could have gone unseen."""
        return np.where(self._known | still, self._sums, np.nan)


def _starts(keys: Ints) -> npt.NDArray[np.intp]:
    """Where each run of equal keys begins."""
    return np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else _NONE


_NONE = np.zeros(0, np.intp)
