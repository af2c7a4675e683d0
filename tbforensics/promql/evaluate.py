"""PromQL over sealed samples, for many moments at once: what a rule saw, evaluated offline.

    evaluate(read("sum(rate(m[5m])) > 2"), samples, moments, Semantics()) -> Vector

It answers as Prometheus would, in the semantics of the server's version, or not at all: what it
does not know is Unsupported before it begins. Native histograms are not evaluated.

Source: Prometheus, promql/engine.go and promql/functions.go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tbforensics.promql import ranges as promranges
from tbforensics.promql.functions import FUNCTIONS, Value
from tbforensics.promql.parse import (
    COMPARISONS,
    RANGE_FUNCTIONS,
    SET_OPERATORS,
    Aggregate,
    Binary,
    Call,
    Negate,
    Node,
    Number,
    Select,
    Subquery,
    Unsupported,
)
from tbforensics.promql.ranges import Semantics, Windows
from tbforensics.promql.series import Bools, Floats, Ints, Labels, Samples, Series, labels_of
from tbforensics.promql.vectors import (
    NAME,
    Vector,
    aggregated,
    combined,
    matched,
    matches,
    stacked,
)

MOST_CELLS = 50_000_000  # samples looked at for one expression, before it is too much to replay


def evaluate(tree: Node, samples: Samples, moments: Ints, rules: Semantics) -> Value:
    """What an expression says at each moment (ms, ascending).

    Errors: Unsupported for what cannot be replayed, before anything is computed where possible;
            EvaluationFailed where Prometheus itself would answer with an error.
    """
    with np.errstate(all="ignore"):  # IEEE arithmetic as Go has it: x / 0 is Inf, 0 / 0 is NaN
        return _Evaluation(samples, moments, rules, [0]).value(tree)


def chosen(select: Select, samples: Samples, rules: Semantics) -> list[Series]:
    """The series that a selector selects."""
    if select.name:
        found: Sequence[Series] = samples.get(select.name, ())
    else:
        found = [series for name in sorted(samples) for series in samples[name]]
    for matcher in select.matchers:
        values = [dict(series.labels).get(matcher.name, "") for series in found]
        fits = matches(matcher, tuple(values), rules.dot_is_any)
        found = [series for series, fit in zip(found, fits, strict=True) if fit]
    return list(found)


class _Evaluation:
    """One expression at given moments; a subquery makes another one at moments of its own."""

    def __init__(self, samples: Samples, moments: Ints, rules: Semantics, cells: list[int]) -> None:
        self.samples, self.moments, self.rules = samples, moments, rules
        self._cells = cells  # spent so far, shared with subqueries

    def value(self, node: Node) -> Value:
        match node:
            case Number():
                return np.full(len(self.moments), node.value)
            case Negate():
                inner = self.value(node.expr)
                if isinstance(inner, Vector):
                    return Vector(inner.labels, -inner.values, inner.present).nameless()
                return -inner
            case Select():
                return self._instant(node)
            case Aggregate():
                q = self.scalar(node.param) if node.param else np.zeros(len(self.moments))
                return aggregated(self.vector(node.expr), node.op, node.by, node.labels, q)
            case Binary():
                return self._binary(node)
            case Call():
                if node.name in RANGE_FUNCTIONS:
                    return self._over_range(node)
                return FUNCTIONS[node.name](self, node.args)
            case _:
                raise Unsupported("a range or a text where a value is needed")

    def vector(self, node: Node) -> Vector:
        value = self.value(node)
        if not isinstance(value, Vector):
            raise Unsupported("a number where a vector is needed")
        return value

    def scalar(self, node: Node) -> Floats:
        value = self.value(node)
        if isinstance(value, Vector):
            raise Unsupported("a vector where a number is needed")
        return value

    def _spend(self, cells: int) -> None:
        self._cells[0] += cells
        if self._cells[0] > MOST_CELLS:
            raise Unsupported(f"it looks at more than {MOST_CELLS:,} samples")

    # --- selectors ---------------------------------------------------------------------

    def _chosen(self, node: Select) -> list[Series]:
        found = chosen(node, self.samples, self.rules)
        return [series for series in found if len(series.times)]

    def _instant(self, node: Select) -> Vector:
        rows = []
        for series in self._chosen(node):
            place, present = self._newest(series, node.offset_ms)
            rows.append((series.labels, series.values[place], present))
        return stacked(rows, len(self.moments))

    def sample_times(self, node: Select) -> Vector:
        """When each series was last sampled, in seconds."""
        rows = []
        for series in self._chosen(node):
            place, present = self._newest(series, node.offset_ms)
            rows.append((series.labels, series.times[place] / 1000.0, present))
        return stacked(rows, len(self.moments))

    def _newest(self, series: Series, offset_ms: int) -> tuple[Ints, Bools]:
        """Place of the newest sample at each moment, and whether it is still good."""
        self._spend(len(self.moments))
        at = self.moments - offset_ms
        place = np.searchsorted(series.times, at, side="right") - 1
        there, place = place >= 0, np.maximum(place, 0)
        age = at - series.times[place]
        lookback = self.rules.lookback_ms
        there &= (age < lookback) if self.rules.left_open else (age <= lookback)
        if len(series.ends):
            end = np.searchsorted(series.ends, at, side="right") - 1
            ended = (end >= 0) & (series.ends[np.maximum(end, 0)] > series.times[place])
            there &= ~ended
        return place, there

    def _ranges(self, node: Node) -> list[tuple[Labels, Windows]]:
        if isinstance(node, Select) and node.range_ms:
            found = self._chosen(node)
            span, offset = node.range_ms, node.offset_ms
        elif isinstance(node, Subquery):
            found, span, offset = self._subquery(node), node.range_ms, node.offset_ms
        else:
            raise Unsupported("a range is needed")
        ranges = []
        for series in found:
            windows = Windows(series, self.moments, span, offset, self.rules)
            self._spend(int(windows.count.sum()) + len(self.moments))
            ranges.append((series.labels, windows))
        return ranges

    def _subquery(self, node: Subquery) -> list[Series]:
        """The values of the inner expression on the absolute grid of its step, as samples."""
        first = int(self.moments[0]) - node.offset_ms - node.range_ms
        last = int(self.moments[-1]) - node.offset_ms
        number, after = -(-first // node.step_ms), last // node.step_ms + 1
        self._spend(after - number)
        grid = np.arange(number, after, dtype=np.int64) * node.step_ms
        inner = _Evaluation(self.samples, grid, self.rules, self._cells)
        value = inner.value(node.expr)
        if not isinstance(value, Vector):
            return [Series((), grid, value)]
        return [
            Series(labels, grid[present], values[present])
            for labels, values, present in zip(
                value.labels, value.values, value.present, strict=True
            )
        ]

    def _over_range(self, node: Call) -> Vector:
        where = {"quantile_over_time": 1}.get(node.name, 0)
        ranges = self._ranges(node.args[where])
        if node.name == "absent_over_time":
            seen = [windows.count > 0 for _, windows in ranges]
            return self.missing(node.args[0], np.array(seen, bool))
        rows = []
        for labels, windows in ranges:
            if node.name == "quantile_over_time":
                answer = promranges.quantiles(windows, self.scalar(node.args[0]))
            elif node.name == "predict_linear":
                answer = promranges.predicted(windows, self.scalar(node.args[1]))
            else:
                answer = promranges.FUNCTIONS[node.name](windows)
            rows.append((labels, *answer))
        vector = stacked(rows, len(self.moments))
        return vector if node.name == "last_over_time" else vector.nameless()

    def missing(self, node: Node, seen: Bools) -> Vector:
        """1 where nothing is there, labelled with what the selector asks to be equal."""
        nothing = np.ones(len(self.moments), bool)
        if len(seen):
            nothing = np.asarray(~seen.any(axis=0), bool)
        labels: dict[str, str] = {}
        if isinstance(node, Select):
            names = [m.name for m in node.matchers]
            labels = {
                m.name: m.value
                for m in node.matchers
                if m.op == "=" and m.name != NAME and names.count(m.name) == 1
            }
        return stacked(
            [(labels_of(labels), np.ones(len(self.moments)), nothing)], len(self.moments)
        )

    # --- operators ---------------------------------------------------------------------

    def _binary(self, node: Binary) -> Value:
        left, right = self.value(node.left), self.value(node.right)
        compares = node.op in COMPARISONS
        operate = _OPERATORS[node.op] if node.op not in SET_OPERATORS else None

        def result(a: Floats, b: Floats, kept: Floats) -> tuple[Floats, Bools]:
            """Values, and which stay; `kept` is what a comparison lets through."""
            assert operate is not None
            value = operate(a, b)
            if not compares:
                return value, np.ones(value.shape, bool)
            if node.returns_bool:
                return value.astype(float), np.ones(value.shape, bool)
            return np.broadcast_to(kept, value.shape), value.astype(bool)

        drops_name = not compares or node.returns_bool
        if isinstance(left, Vector) and isinstance(right, Vector):
            if operate is None:
                return combined(left, right, node.op, node.matching)
            return matched(
                left,
                right,
                lambda a, b: result(a, b, a),
                node.matching,
                keeps_name=not drops_name,
            )
        if isinstance(left, Vector):
            values, kept = result(left.values, np.asarray(right), left.values)
            vector = Vector(left.labels, values, left.present).only(kept)
        elif isinstance(right, Vector):
            values, kept = result(left, right.values, right.values)
            vector = Vector(right.labels, values, right.present).only(kept)
        else:
            return result(left, right, left)[0].astype(float)
        return vector.nameless() if drops_name else vector


_OPERATORS: dict[str, Callable[[Floats, Floats], Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,  # the sign of the dividend, as in Go
    "^": lambda a, b: np.power(np.asarray(a, float), b),
    "==": np.equal,
    "!=": np.not_equal,
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
}
