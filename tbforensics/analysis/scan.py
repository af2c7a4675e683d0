"""The scan beneath spans and movers: in each column, the spell that stands out most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tbforensics.analysis.signals import Floats, lag_one

REACH = 12  # rows around a scanned edge in which the sharper fit looks for the true one
NEAR = 1_000  # rows on both sides that the sharper fit looks at, or the spell's own length
BRIEF = 64  # rows up to which a spell may be told by its edges alone
RAMPS = (0, 4, 8, 12, 16)  # rows that an onset may take to reach its full height
RECOVERY_PRICE = 2.0  # units of log n that a second edge must earn


@dataclass(frozen=True)
class Spell:
    """Rows `[start, end)` of one column at another level than the rest.

    shift: of the level inside against outside; a log odds ratio for counts.
    gain:  twice the log likelihood ratio against "no spell", memory of the noise allowed for.
    onset, recovery: first and last row of the 95 % interval of each edge.
    """

    column: int
    start: int
    end: int
    shift: float
    gain: float
    onset: tuple[int, int]
    recovery: tuple[int, int]


def scan(own: Floats, against: Floats, counts: bool, shortest: int, first: int) -> list[Spell]:
    """The best spell of every column, each found on its own.

    Shape:  n x k values and what they are measured against: ones for levels; for counts the
            counts of which they are a part. Spells start at row `first` or later, last at least
            `shortest` rows, and leave as many behind them or reach the end.
    Source: the epidemic alternative of Levin and Kline, "The cusum test of homogeneity",
            Statistics in Medicine 4, 1985, with Gaussian or binomial likelihood. Every start is
            tried with lengths that grow by a quarter, then both edges are refined in turn. The
            gain is divided by the long-run variance of an AR(1) fitted to what the spell leaves.
    """
    sums = np.vstack([np.zeros((1, own.shape[1])), np.cumsum(own, axis=0)])
    wholes = np.vstack([np.zeros((1, own.shape[1])), np.cumsum(against, axis=0)])
    n = len(own)
    starts = np.arange(first, n - shortest + 1)
    steps = _best(sums, wholes, counts, starts, np.full(len(starts), n))
    spells = tuple(np.full_like(part, -1) for part in steps)
    length = shortest
    while length <= n - first - shortest:
        starts = np.arange(first, n - length - shortest + 1)
        better = _best(sums, wholes, counts, starts, starts + length)
        wins = better[0] > spells[0]
        spells = tuple(np.where(wins, b, s) for b, s in zip(better, spells, strict=True))
        length = max(length + 1, int(length * 1.25))
    result = []
    for j in range(own.shape[1]):
        column = _Column(
            own[:, j], against[:, j], sums[:, j], wholes[:, j], counts, shortest, first
        )
        step = column.spell(j, int(steps[1][j]), n)
        if spells[0][j] > steps[0][j]:
            both = column.spell(j, int(spells[1][j]), int(spells[2][j]))
            if both.gain - step.gain > RECOVERY_PRICE * np.log(n):
                step = both
        result.append(step)
    return result


def brief_spell(j: int, own: Floats, shortest: int, first: int) -> Spell:
    """The best short spell of levels by its two sharp edges, which slow noise does not have.

    Samples less phi times their predecessor are white; a spell of height one leaves one at its
    start, 1 - phi inside it and -phi behind it.
    """
    n = len(own)
    centred = own - own.mean()
    phi = lag_one(centred)
    white = centred[1:] - phi * centred[:-1]  # white[t - 1] belongs to row t
    noise = max(float(white.var()), 1e-18)
    sums = np.concatenate([[0.0, 0.0], np.cumsum(white)])  # sums[t]: rows 1 to t - 1
    best = (-1.0, first, first + shortest, 0.0)
    length = shortest
    while length <= min(BRIEF, n - first - shortest):
        starts = np.arange(first, n - length - shortest + 1)
        ends = starts + length
        inner = sums[ends] - sums[starts + 1]
        seen = white[starts - 1] + (1 - phi) * inner - phi * white[ends - 1]
        power = 1 + (1 - phi) ** 2 * (length - 1) + phi**2
        at = int(np.abs(seen).argmax())
        gain = float(seen[at]) ** 2 / power / noise
        if gain > best[0]:
            best = (gain, int(starts[at]), int(ends[at]), float(seen[at]) / power)
        length = max(length + 1, int(length * 1.25))
    gain, start, end, shift = best
    return Spell(j, start, end, shift, gain, (start, start), (end, end))


def _gain(own: Any, against: Any, total: Any, whole: Any, counts: bool) -> Any:
    """Twice the log likelihood ratio of "another level inside" against "one level"."""
    if not counts:
        out = np.maximum(whole - against, 1e-9)
        return (own - against * total / whole) ** 2 * whole / (against * out)
    return 2 * (
        _likelihood(own, against)
        + _likelihood(total - own, whole - against)
        - _likelihood(total, whole)
    )


def _likelihood(own: Any, against: Any) -> Any:
    share = np.clip(own / np.maximum(against, 1e-9), 1e-12, 1 - 1e-12)
    return own * np.log(share) + (against - own) * np.log1p(-share)


def _best(sums: Floats, wholes: Floats, counts: bool, starts: Any, ends: Any) -> tuple[Any, ...]:
    """Per column the highest gain among candidates, with its start and end."""
    gain = _gain(
        sums[ends] - sums[starts], wholes[ends] - wholes[starts], sums[-1], wholes[-1], counts
    )
    where = gain.argmax(axis=0)
    return gain[where, np.arange(gain.shape[1])], starts[where], ends[where]


@dataclass(frozen=True)
class _Column:
    own: Floats
    against: Floats
    sums: Floats
    wholes: Floats
    counts: bool
    shortest: int
    first: int

    def gain(self, starts: Any, ends: Any) -> Any:
        return _gain(
            self.sums[ends] - self.sums[starts],
            self.wholes[ends] - self.wholes[starts],
            self.sums[-1],
            self.wholes[-1],
            self.counts,
        )

    def starts(self, start: int, end: int, reach: int) -> Any:
        return np.arange(
            max(self.first, start - reach), min(end - self.shortest, start + reach) + 1
        )

    def ends(self, start: int, end: int, reach: int) -> Any:
        n = len(self.own)
        if end == n:
            return np.array([n])
        low = max(start + self.shortest, end - reach)
        return np.arange(low, max(low, min(n - self.shortest, end + reach)) + 1)

    def spell(self, j: int, start: int, end: int) -> Spell:
        """The spell near these edges, refined, its gain divided by the noise it leaves."""
        for _ in range(3):
            reach = max(8, (end - start) // 4)
            starts = self.starts(start, end, reach)
            at_start = self.gain(starts, np.full(len(starts), end))
            moved = int(starts[at_start.argmax()])
            ends = self.ends(moved, end, reach)
            at_end = self.gain(np.full(len(ends), moved), ends)
            if (start, end) == (start := moved, end := int(ends[at_end.argmax()])):
                break
        inside = np.zeros(len(self.own), dtype=bool)
        inside[start:end] = True
        variance = self.variance(inside)
        shift = self.level(inside) - self.level(~inside)
        return Spell(
            j,
            start,
            end,
            shift,
            float(at_start.max()) / variance,
            credible(starts, at_start / variance),
            credible(ends, at_end / variance),
        )

    def level(self, rows: Any) -> float:
        if not self.counts:
            return float(self.own[rows].mean())
        hits = self.own[rows].sum() + 0.5
        return float(np.log(hits / (self.against[rows].sum() + 1 - hits)))

    def variance(self, inside: Any) -> float:
        """Long-run variance of what is left; for counts over the binomial one, at least 1."""
        own, against = self.own, self.against
        level = np.where(
            inside,
            own[inside].sum() / against[inside].sum(),
            own[~inside].sum() / against[~inside].sum(),
        )
        rest = own - against * level
        if self.counts:
            rest = rest / np.sqrt(np.maximum(against * level * (1 - level), 1e-9))
        phi = lag_one(rest)
        variance = float(rest.var()) * (1 + phi) / (1 - phi)
        return max(variance, 1.0 if self.counts else 1e-18)


def sharpened(
    own: Floats, against: Floats, counts: bool, spell: Spell, shortest: int, first: int
) -> Spell:
    """The spell fitted again near its edges, with an onset that may be a ramp.

    Shape:  one column of what `scan` saw, and the spell found in it.
    Source: generalised least squares: samples less phi times their predecessor, so that a sharp
            edge in slow noise counts for what it is (Cochrane and Orcutt, JASA 44, 1949).
    """
    fit = _counted if counts else _levelled
    around = max(NEAR, spell.end - spell.start)
    skipped = max(0, spell.start - around)
    own, against = own[skipped : spell.end + around], against[skipped : spell.end + around]
    start, end, ramp = spell.start - skipped, spell.end - skipped, 0
    first = max(first - skipped, 1)
    n = len(own)
    for _ in range(2):
        length = end - start
        starts = np.arange(max(first, start - REACH), min(end - shortest, start + REACH) + 1)
        ramps = [r for r in RAMPS if r < max(length, 1)]
        shapes = [(int(a), r) for r in ramps for a in starts if r < end - a]
        gain, shift = fit(own, against, [(a, end, r) for a, r in shapes], (start, end, ramp))
        # A ramp is one more thing to choose, so it must earn its place.
        gain = gain - np.array([np.log(n) if r else 0.0 for _, r in shapes])
        start, ramp = shapes[int(gain.argmax())]
        by_start = np.full(len(starts), -np.inf)
        for (a, _), g in zip(shapes, gain, strict=True):
            by_start[a - starts[0]] = max(by_start[a - starts[0]], g)
        if end < n:
            low = max(start + max(shortest, ramp + 1), end - REACH)
            ends = np.arange(low, max(low, min(n - shortest, end + REACH)) + 1)
        else:
            ends = np.array([n])
        gain, shift = fit(own, against, [(start, int(e), ramp) for e in ends], (start, end, ramp))
        end = int(ends[gain.argmax()])
    return Spell(
        spell.column,
        start + skipped,
        end + skipped,
        float(shift[gain.argmax()]),
        float(gain.max()),
        credible(starts + skipped, by_start),
        credible(ends + skipped, gain),
    )


Shape = tuple[int, int, int]  # start, end, rows of ramp


def _profiles(n: int, shapes: list[Shape]) -> Floats:
    profile = np.zeros((len(shapes), n))
    for row, (start, end, ramp) in zip(profile, shapes, strict=True):
        row[start:end] = 1.0
        if ramp:
            row[start : start + ramp] = np.arange(1, ramp + 1) / ramp
    return profile


def _levelled(
    own: Floats, against: Floats, shapes: list[Shape], now: Shape
) -> tuple[Floats, Floats]:
    n = len(own)
    (profile,) = _profiles(n, [now])
    design = np.column_stack([np.ones(n), profile])
    phi = lag_one(own - design @ np.linalg.lstsq(design, own, rcond=None)[0])

    def whiten(part: Floats) -> Floats:
        white = part.copy()
        white[..., 1:] -= phi * part[..., :-1]
        white[..., 0] *= np.sqrt(1 - phi * phi)
        return white

    one = whiten(np.ones(n))
    one /= np.sqrt(one @ one)
    y = whiten(own)
    y -= one * (one @ y)
    h = whiten(_profiles(n, shapes))
    h -= np.outer(h @ one, one)
    power = np.maximum((h * h).sum(axis=1), 1e-12)
    shift = h @ y / power
    explained = shift * shift * power
    noise = max(float(y @ y - explained.max()) / (n - 3), 1e-18)
    return explained / noise, shift


def _counted(
    own: Floats, against: Floats, shapes: list[Shape], now: Shape
) -> tuple[Floats, Floats]:
    (profile,) = _profiles(len(own), [now])
    column = _Column(own, against, own, against, True, 1, 1)
    calm = profile == 0
    normal = column.level(calm)
    h = _profiles(len(own), shapes)
    hits = (own * (h == 1)).sum(axis=1) + 0.5
    shift = np.log(hits / ((against * (h == 1)).sum(axis=1) + 1 - hits)) - normal
    odds = normal + shift[:, None] * h
    # log share and log of its complement, without overflow
    fit = -(own * np.logaddexp(0, -odds) + (against - own) * np.logaddexp(0, odds)).sum(axis=1)
    total = own.sum(), against.sum()
    gain = 2 * (fit - float(_likelihood(*total)))
    return gain / column.variance(~calm), shift


def credible(positions: Any, gain: Floats) -> tuple[int, int]:
    """The 95 % interval of a position, each as likely as exp(gain / 2) makes it."""
    mass = np.exp((gain - gain.max()) / 2)
    share = np.cumsum(mass) / mass.sum()
    low, high = np.searchsorted(share, [0.025, 0.975])
    return int(positions[low]), int(positions[min(high, len(positions) - 1)])
