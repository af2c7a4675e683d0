"""Functions of instant vectors and of numbers, as PromQL has them; those of ranges are elsewhere.

Each takes the evaluation, which gives the value of an argument, and the arguments' trees.
Source: Prometheus, promql/functions.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.promql.buckets import histogram_quantiles
from tbforensics.promql.parse import Match, Node, Select, Text, Unsupported
from tbforensics.promql.ranges import Semantics
from tbforensics.promql.series import Bools, Floats, Ints, labels_of
from tbforensics.promql.vectors import Vector, matches, stacked

Value = Vector | Floats  # a scalar is one number for each moment


class Asking(Protocol):
    """What a function may ask of the evaluation that calls it."""

    moments: Ints
    rules: Semantics

    def vector(self, node: Node) -> Vector: ...
    def scalar(self, node: Node) -> Floats: ...
    def missing(self, node: Node, seen: Bools) -> Vector: ...
    def sample_times(self, node: Select) -> Vector: ...


Function = Callable[[Asking, Sequence[Node]], Value]


def _each(function: Callable[..., Floats]) -> Function:
    """A function of each value, with numbers as further arguments."""

    def call(ask: Asking, args: Sequence[Node]) -> Vector:
        vector = ask.vector(args[0])
        more = [ask.scalar(arg) for arg in args[1:]]
        return Vector(vector.labels, function(vector.values, *more), vector.present).nameless()

    return call


def _clamp(values: Floats, low: Floats, high: Floats) -> Floats:
    # Go's Max and Min answer NaN where either side is.
    return np.asarray(np.maximum(low, np.minimum(high, values)))


def _clamped(ask: Asking, args: Sequence[Node]) -> Vector:
    vector, low, high = ask.vector(args[0]), ask.scalar(args[1]), ask.scalar(args[2])
    values = _clamp(vector.values, low, high)
    sensible = np.broadcast_to(~(high < low), vector.present.shape)
    return Vector(vector.labels, values, vector.present).only(sensible).nameless()


def _round(values: Floats, to: Floats | float = 1.0) -> Floats:
    inverse = 1.0 / np.asarray(to)
    return np.asarray(np.floor(values * inverse + 0.5) / inverse)


def _quantile(ask: Asking, args: Sequence[Node]) -> Vector:
    return histogram_quantiles(ask.vector(args[1]), ask.scalar(args[0]))


def _absent(ask: Asking, args: Sequence[Node]) -> Vector:
    return ask.missing(args[0], ask.vector(args[0]).present)


def _as_vector(ask: Asking, args: Sequence[Node]) -> Vector:
    value = ask.scalar(args[0])
    return stacked([((), value, np.ones(len(value), bool))], len(value))


def _as_scalar(ask: Asking, args: Sequence[Node]) -> Floats:
    vector = ask.vector(args[0])
    alone = vector.present.sum(axis=0) == 1
    value = np.where(vector.present, vector.values, 0.0).sum(axis=0)
    return np.asarray(np.where(alone, value, np.nan))


def _time(ask: Asking, args: Sequence[Node]) -> Floats:
    return np.asarray(ask.moments / 1000.0)


def _timestamp(ask: Asking, args: Sequence[Node]) -> Vector:
    node, now_s = args[0], ask.moments / 1000.0
    if isinstance(node, Select):
        return ask.sample_times(node).nameless()
    vector = ask.vector(node)
    values = np.broadcast_to(now_s, vector.values.shape)
    return Vector(vector.labels, values, vector.present).nameless()


def _unsorted(ask: Asking, args: Sequence[Node]) -> Vector:
    return ask.vector(args[0])  # an order means nothing to a rule


def _calendar(part: Callable[[Any], Any]) -> Function:
    """A function of UTC times in seconds; of the moment itself when it is given none."""

    def call(ask: Asking, args: Sequence[Node]) -> Vector:
        if args:
            vector = ask.vector(args[0])
        else:
            vector = stacked(
                [((), ask.moments / 1000.0, np.ones(len(ask.moments), bool))], len(ask.moments)
            )
        sane = np.isfinite(vector.values) & (np.abs(vector.values) < 1e11)
        seconds = np.where(sane, vector.values, 0).astype("int64").astype("datetime64[s]")
        values = np.where(sane, np.asarray(part(seconds), float), np.nan)
        return Vector(vector.labels, values, vector.present).nameless()

    return call


def _since(moments: Any, whole: str, unit: str) -> Any:
    return (moments.astype(f"datetime64[{unit}]") - moments.astype(f"datetime64[{whole}]")).astype(
        int
    )


def _text(node: Node) -> str:
    if not isinstance(node, Text):
        raise Unsupported("a text is needed")
    return node.value


def _label_replace(ask: Asking, args: Sequence[Node]) -> Vector:
    vector, (target, into, source, pattern) = ask.vector(args[0]), map(_text, args[1:])
    rewrite = _rewrite(into)
    fits = matches(
        Match(source, "=~", pattern),
        tuple(dict(labels).get(source, "") for labels in vector.labels),
        ask.rules.dot_is_any,
    )
    flags = "(?s)" if ask.rules.dot_is_any else ""

    def replaced(value: str) -> str:
        try:
            done = pc.replace_substring_regex(
                pa.array([value]), f"{flags}\\A(?:{pattern})\\z", rewrite, max_replacements=1
            )
        except pa.ArrowInvalid as error:
            raise Unsupported(f"label_replace: {error}"[:200]) from None
        return str(done[0].as_py())

    renamed = []
    for labels, fit in zip(vector.labels, fits, strict=True):
        given = dict(labels)
        if fit:
            given[target] = replaced(given.get(source, ""))
        renamed.append(labels_of(given))
    return Vector(tuple(renamed), vector.values, vector.present).named(
        lambda labels: labels.items()
    )


def _rewrite(into: str) -> str:
    """Go's `$1`, `${1}` and `$$` in RE2's spelling; names of groups are not known to RE2's."""

    def spelled(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        number = found[1] or found[2]
        if not number.isdigit() or int(number) > 9:
            raise Unsupported(f"label_replace with {found[0][:40]}")
        return f"\\{number}"

    return re.sub(r"\$\$|\$(\w+)|\$\{(\w+)\}", spelled, into.replace("\\", "\\\\"))


def _label_join(ask: Asking, args: Sequence[Node]) -> Vector:
    vector, (target, between, *sources) = ask.vector(args[0]), map(_text, args[1:])

    def joined(labels: dict[str, str]) -> Any:
        return {**labels, target: between.join(labels.get(s, "") for s in sources)}.items()

    return vector.named(joined)


FUNCTIONS: dict[str, Function] = {
    "abs": _each(np.abs),
    "ceil": _each(np.ceil),
    "floor": _each(np.floor),
    "round": _each(_round),
    "exp": _each(np.exp),
    "ln": _each(np.log),
    "log2": _each(np.log2),
    "log10": _each(np.log10),
    "sqrt": _each(np.sqrt),
    "sgn": _each(np.sign),
    "clamp": _clamped,
    "clamp_min": _each(np.maximum),
    "clamp_max": _each(np.minimum),
    "histogram_quantile": _quantile,
    "absent": _absent,
    "vector": _as_vector,
    "scalar": _as_scalar,
    "time": _time,
    "timestamp": _timestamp,
    "sort": _unsorted,
    "sort_desc": _unsorted,
    "label_replace": _label_replace,
    "label_join": _label_join,
    "hour": _calendar(lambda t: _since(t, "D", "h")),
    "minute": _calendar(lambda t: _since(t, "h", "m")),
    "day_of_week": _calendar(lambda t: (t.astype("datetime64[D]").astype(int) + 4) % 7),
    "day_of_month": _calendar(lambda t: _since(t, "M", "D") + 1),
    "month": _calendar(lambda t: _since(t, "Y", "M") + 1),
    "year": _calendar(lambda t: t.astype("datetime64[Y]").astype(int) + 1970),
}
