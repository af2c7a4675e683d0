"""Vectors over many moments at once, and what PromQL does between them: group, match, compare.

Source: Prometheus, promql/engine.go (aggregation, VectorBinop) and promql/quantile.go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.errors import EvidenceError
from tbforensics.promql.parse import Match, Matching, Unsupported
from tbforensics.promql.ranges import quantile_of
from tbforensics.promql.series import Bools, Floats, Ints, Labels, labels_of

NAME = "__name__"


class EvaluationFailed(EvidenceError):
    """What Prometheus answers with an error: two series that would become one, or could match."""


@dataclass(frozen=True)
class Vector:
    """Series by moments.

    labels:  of each series, sorted, with `__name__` where it has a metric's name.
    values:  one row per series, one column per moment; what is not present means nothing.
    present: whether the series has a value at the moment. NaN is a value too.
    """

    labels: tuple[Labels, ...]
    values: Floats
    present: Bools

    @property
    def moments(self) -> int:
        return int(self.values.shape[1])

    def only(self, kept: Bools) -> Vector:
        """The same values where `kept`, series without any left out."""
        present = self.present & kept
        some = _any(present, 1)
        labels = tuple(name for name, here in zip(self.labels, some, strict=True) if here)
        return Vector(labels, self.values[some], present[some])

    def named(self, name: Callable[[dict[str, str]], Iterable[tuple[str, str]]]) -> Vector:
        """With other labels; series that get the same ones are one, if never present together.

        Errors: EvaluationFailed when they are.
        """
        return unique(
            Vector(
                tuple(labels_of(name(dict(labels))) for labels in self.labels),
                self.values,
                self.present,
            )
        )

    def nameless(self) -> Vector:
        return self.named(lambda labels: ((k, v) for k, v in labels.items() if k != NAME))


def stacked(
    rows: Sequence[tuple[Labels, Floats, Bools]], moments: int, *, empty: bool = False
) -> Vector:
    """A vector of rows; those that are never present are left out unless `empty`."""
    kept = [row for row in rows if empty or row[2].any()]
    return Vector(
        tuple(row[0] for row in kept),
        np.array([row[1] for row in kept]).reshape(len(kept), moments),
        np.array([row[2] for row in kept], bool).reshape(len(kept), moments),
    )


def unique(vector: Vector) -> Vector:
    if len(set(vector.labels)) == len(vector.labels):
        return vector
    rows = []
    for labels, members in groups(vector.labels):
        present = vector.present[members]
        if (present.sum(axis=0) > 1).any():
            raise EvaluationFailed(f"two series with the same labels {spelled(labels)}")
        values = np.where(present, vector.values[members], 0.0).sum(axis=0)
        rows.append((labels, values, _any(present)))
    return stacked(rows, vector.moments)


def _any(present: Bools, axis: int = 0) -> Bools:
    return np.asarray(present.any(axis=axis), bool)


def spelled(labels: Labels) -> str:
    name = dict(labels).get(NAME, "")
    rest = ", ".join(f'{key}="{value}"' for key, value in labels if key != NAME)
    return f"{name}{{{rest}}}" if rest or not name else name


def groups(keys: Iterable[Labels]) -> Iterator[tuple[Labels, list[int]]]:
    groups: dict[Labels, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key, []).append(place)
    yield from groups.items()


def patterns(present: Bools) -> Iterator[tuple[Ints, Ints]]:
    """(rows present, moments at which exactly those are), for each such set of rows."""
    kinds, which = np.unique(present, axis=1, return_inverse=True)
    which = which.reshape(-1)
    for number in range(kinds.shape[1]):
        yield np.flatnonzero(kinds[:, number]), np.flatnonzero(which == number)


@lru_cache(maxsize=256)
def matches(matcher: Match, values: tuple[str, ...], dot_is_any: bool = False) -> tuple[bool, ...]:
    """Whether each value fits a matcher. Regexes are RE2's, which takes linear time, anchored.

    Errors: Unsupported for a regex that RE2 refuses, by its syntax or its size.
    """
    if matcher.op in ("=", "!="):
        return tuple((value == matcher.value) == (matcher.op == "=") for value in values)
    flags = "(?s)" if dot_is_any else ""
    pattern = f"{flags}\\A(?:{matcher.value})\\z"
    try:
        fits = pc.match_substring_regex(pa.array(values, pa.string()), pattern)
    except (pa.ArrowInvalid, UnicodeEncodeError) as error:
        raise Unsupported(f"the regex of {matcher.name}: {error}"[:200]) from None
    return tuple(fit == (matcher.op == "=~") for fit in fits.to_pylist())


# --- aggregation ---------------------------------------------------------------------------


def aggregated(vector: Vector, op: str, by: bool, names: tuple[str, ...], q: Floats) -> Vector:
    """`sum by (...)` and its like; `q` is the parameter of `quantile`."""
    keys = [kept_labels(labels, by, names) for labels in vector.labels]
    rows = []
    for labels, members in groups(keys):
        values, present = vector.values[members], vector.present[members]
        rows.append((labels, _folded(op, values, present, q), _any(present)))
    return stacked(rows, vector.moments)


def kept_labels(labels: Labels, by: bool, names: tuple[str, ...]) -> Labels:
    """Those named, or all but those named and the metric's name."""
    if by:
        return tuple((k, v) for k, v in labels if k in names)
    return tuple((k, v) for k, v in labels if k not in names and k != NAME)


def _folded(op: str, values: Floats, present: Bools, q: Floats) -> Floats:
    count: Floats = present.sum(axis=0).astype(float)
    if op == "count":
        return count
    if op == "group":
        return np.ones_like(count)
    if op in ("min", "max"):
        fold = np.fmin if op == "min" else np.fmax  # NaN counts only where there is nothing else
        return np.asarray(fold.reduce(np.where(present, values, np.nan), axis=0))
    if op == "quantile":
        holed = np.where(present, values, np.inf)
        rank = np.where(present, np.where(np.isnan(values), 0, 1), 2)  # NaN first, absent last
        order = np.lexsort((holed, rank), axis=0)
        ordered = np.take_along_axis(values, order, axis=0).T.ravel()
        first = np.arange(values.shape[1]) * values.shape[0]
        return quantile_of(ordered, first, present.sum(axis=0), q)
    total = np.where(present, values, 0.0).sum(axis=0)
    if op == "sum":
        return np.asarray(total)
    mean = total / count
    if op == "avg":
        return np.asarray(mean)
    variance = np.where(present, (values - mean) ** 2, 0.0).sum(axis=0) / count
    return np.asarray(np.sqrt(variance) if op == "stddev" else variance)


# --- between two vectors -------------------------------------------------------------------


def _signature(labels: Labels, matching: Matching) -> Labels:
    return kept_labels(labels, matching.on, matching.labels)


def combined(left: Vector, right: Vector, op: str, matching: Matching) -> Vector:
    """`and`, `or`, `unless`."""
    theirs = _any_of(right, matching)
    nowhere = np.zeros(left.moments, bool)
    met = [theirs.get(_signature(labels, matching), nowhere) for labels in left.labels]
    meeting = np.array(met, bool).reshape(left.present.shape)
    if op == "and":
        return left.only(meeting)
    if op == "unless":
        return left.only(~meeting)
    ours = _any_of(left, matching)
    taken = [ours.get(_signature(labels, matching), nowhere) for labels in right.labels]
    rest = right.only(~np.array(taken, bool).reshape(right.present.shape))
    return unique(
        Vector(
            (*left.labels, *rest.labels),
            np.vstack([left.values, rest.values]),
            np.vstack([left.present, rest.present]),
        )
    )


def _any_of(vector: Vector, matching: Matching) -> dict[Labels, Bools]:
    members_of = groups(_signature(labels, matching) for labels in vector.labels)
    return {key: _any(vector.present[members]) for key, members in members_of}


Operate = Callable[[Floats, Floats], tuple[Floats, Bools]]  # values, and which of them are kept


def matched(
    left: Vector, right: Vector, operate: Operate, matching: Matching, *, keeps_name: bool
) -> Vector:
    """An operator between the series of two vectors that agree in the labels that matter.

    Errors: EvaluationFailed where Prometheus refuses: two series on a side that must have one.
    """
    swapped = matching.many == "right"
    many, one = (right, left) if swapped else (left, right)
    ones = dict(groups(_signature(labels, matching) for labels in one.labels))
    # Prometheus looks no further when either side is empty.
    both = left.present.any(axis=0) & right.present.any(axis=0)
    for key, members in ones.items():
        if ((one.present[members].sum(axis=0) > 1) & both).any():
            side = "left" if swapped else "right"
            raise EvaluationFailed(f"two series on the {side} match the group {spelled(key)}")
    rows = []
    taken: dict[Labels, Bools] = {}
    for place, labels in enumerate(many.labels):
        key = _signature(labels, matching)
        for other in ones.get(key, ()):
            pair = (many.values[place], one.values[other])
            values, kept = operate(*(reversed(pair) if swapped else pair))
            present = many.present[place] & one.present[other] & kept
            if not present.any():
                continue
            result = _result_labels(labels, one.labels[other], matching, keeps_name)
            limit = result if matching.many else key
            if (taken.get(limit, np.zeros(1, bool)) & present).any():
                raise EvaluationFailed(f"several series match {spelled(limit)}")
            taken[limit] = taken.get(limit, np.zeros(1, bool)) | present
            rows.append((result, values, present))
    return unique(stacked(rows, left.moments))


def _result_labels(many: Labels, one: Labels, matching: Matching, keeps_name: bool) -> Labels:
    kept = {k: v for k, v in many if keeps_name or k != NAME}
    if not matching.many:
        if matching.on:
            kept = {k: v for k, v in kept.items() if k in matching.labels}
        else:
            kept = {k: v for k, v in kept.items() if k not in matching.labels}
    theirs = dict(one)
    for name in matching.include:
        kept[name] = theirs.get(name, "")
    return labels_of(kept)
