"""Rules that cannot fire, whatever happens, and rules that do not mean what they say."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tbforensics.alerts.replay import comparison
from tbforensics.alerts.rules import Rule, alike
from tbforensics.promql.evaluate import chosen
from tbforensics.promql.parse import (
    RANGE_FUNCTIONS,
    Aggregate,
    Binary,
    Call,
    Negate,
    Node,
    Number,
    Select,
    Subquery,
    Unsupported,
    read,
    selectors,
    walk,
)
from tbforensics.promql.ranges import Semantics
from tbforensics.promql.series import Samples

_COUNTER_FUNCTIONS = ("rate", "increase", "irate", "resets")
_SUFFIXES = ("_bucket", "_count", "_sum", "_total")


@dataclass(frozen=True)
class Problem:
    """cannot: "fire" for a rule that no incident can make fire; "mean it" for an unsound one."""

    cannot: str
    why: str


@dataclass(frozen=True)
class Known:
    """What the case knows beside samples.

    asked: metrics of which every series was asked for, so that none is an answer.
    names: metrics that are known to exist, from metadata, samples and the kind's own queries.
    types: "counter", "gauge", ... by metric.
    documented: metrics in the server's metadata; empty where it told none.
    """

    samples: Samples
    rules: Semantics
    asked: Collection[str] = ()
    names: Collection[str] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    documented: Collection[str] = ()


def problems(rule: Rule, known: Known) -> list[Problem]:
    """All that is wrong with a rule as far as the case can tell; nothing for one unread."""
    try:
        tree = read(rule.expr)
        found = [Problem("fire", why) for why in dict.fromkeys(_dead(tree, known))]
        return found + [Problem("mean it", why) for why in dict.fromkeys(_unsound(tree, known))]
    except Unsupported:
        return []


def _dead(node: Node, known: Known) -> list[str]:
    """Why an expression can never have a value; nothing when it may."""
    match node:
        case Select():
            return [*_nothing_selected(node, known)]
        case Call():
            if node.name in ("absent", "absent_over_time", "scalar", "vector", "time"):
                return []
            return [
                *_too_short(node, known),
                *(why for arg in node.args for why in _dead(arg, known)),
            ]
        case Aggregate() | Negate() | Subquery():
            return _dead(node.expr, known)
        case Binary():
            left, right = _dead(node.left, known), _dead(node.right, known)
            if node.op == "or":
                return [*left, *right] if left and right else []
            if node.op == "unless":
                return left
            return [*left, *right, *_out_of_reach(node, known)]
        case _:
            return []


def _nothing_selected(node: Select, known: Known) -> Iterator[str]:
    if not node.name or node.name not in known.asked:
        return
    series = known.samples.get(node.name, ())
    if not series:
        near = sorted(n for n in known.names if n != node.name and alike(n) == alike(node.name))
        if near:
            yield f"there is no metric {node.name}; there is {near[0]}"
        elif known.documented and node.name not in known.names and not _documented(node, known):
            yield (
                f"there is no metric {node.name}, neither in samples nor in the server's metadata; "
                "one that registers at first use would be absent too"
            )
        return
    labels = [dict(one.labels) for one in series]
    for matcher in node.matchers:
        if matcher.op != "=" or not matcher.value or matcher.name == "__name__":
            continue
        values = {one.get(matcher.name, "") for one in labels} - {""}
        if matcher.value in values:
            continue
        said = f'no series of {node.name} has {matcher.name}="{matcher.value}"'
        near = sorted(value for value in values if alike(value) == alike(matcher.value))
        names = sorted({name for one in labels for name in one})
        other = [n for n in names if n != matcher.name and alike(n) == alike(matcher.name)]
        if near:
            yield f'{said}; there is {matcher.name}="{near[0]}"'
        elif not values and other:
            yield f"{said}; the label is spelled {other[0]}"


def _documented(node: Select, known: Known) -> bool:
    """A histogram's parts are documented under the name of the whole."""
    bare = next((node.name.removesuffix(s) for s in _SUFFIXES if node.name.endswith(s)), node.name)
    return node.name in known.documented or bare in known.documented


def _too_short(node: Call, known: Known) -> Iterator[str]:
    """A range that never holds the two samples that a rate needs."""
    if node.name not in (*_COUNTER_FUNCTIONS[:3], "delta", "idelta", "deriv"):
        return
    for select in node.args:
        if not isinstance(select, Select):
            continue
        gaps = [
            float(np.median(np.diff(series.times)))
            for series in chosen(select, known.samples, known.rules)
            if len(series.times) > 2
        ]
        if gaps and min(gaps) >= select.range_ms:
            yield (
                f"{node.name} needs two samples, and [{select.range_ms / 1000:g}s] holds one: "
                f"{select.name} is scraped every {min(gaps) / 1000:g} s"
            )


# --- thresholds out of reach ---------------------------------------------------------------


def _out_of_reach(node: Binary, known: Known) -> Iterator[str]:
    simple = comparison(node)
    if simple is None or simple[1] not in (">", ">="):
        return
    inner, op, threshold = simple
    ceiling = _ceiling(inner, known)
    if ceiling is None:
        return
    most, why = ceiling
    if most < threshold or (op == ">" and most == threshold):
        yield f"{why}, so it is never {op} {threshold:g}"


def _ceiling(node: Node, known: Known) -> tuple[float, str] | None:
    """The highest value that an expression can take, and why; None when there is no limit."""
    match node:
        case Call(name="histogram_quantile"):
            q, buckets = node.args
            finite = [
                bound
                for select in selectors(buckets)
                for series in known.samples.get(select.name, ())
                if np.isfinite(bound := _number(dict(series.labels).get("le", "")))
            ]
            if not finite or (isinstance(q, Number) and q.value > 1):
                return None
            most = max(finite)
            name = next(select.name for select in selectors(buckets) if select.name)
            return most, (
                f"the highest finite bucket of {name} is {most:g} and a quantile never exceeds it"
            )
        case Call(name="clamp_max", args=(_, Number(value=most))):
            return most, f"it is clamped to {most:g}"
        case Aggregate(op="max" | "min" | "avg" | "quantile") | Subquery():
            return _ceiling(node.expr, known)
        case Call(name="max_over_time" | "min_over_time" | "avg_over_time", args=(inner,)):
            return _ceiling(inner, known) if isinstance(inner, Subquery) else None
        case Binary(op="*" | "/", right=Number(value=factor)) if factor > 0:
            return _scaled(_ceiling(node.left, known), factor if node.op == "*" else 1 / factor)
        case Binary(op="*", left=Number(value=factor)) if factor > 0:
            return _scaled(_ceiling(node.right, known), factor)
        case _:
            return None


def _scaled(ceiling: tuple[float, str] | None, factor: float) -> tuple[float, str] | None:
    if ceiling is None:
        return None
    return ceiling[0] * factor, f"{ceiling[1]} (times {factor:g} that is {ceiling[0] * factor:g})"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


# --- unsound -------------------------------------------------------------------------------


def _unsound(tree: Node, known: Known) -> Iterator[str]:
    for node in walk(tree):
        if isinstance(node, Call) and node.name in RANGE_FUNCTIONS:
            for select in node.args:
                if isinstance(select, Select) and select.range_ms:
                    yield from _wrong_type(node.name, select.name, known.types)


def _wrong_type(function: str, name: str, types: Mapping[str, str]) -> Iterator[str]:
    kind = types.get(name, "")
    if function in _COUNTER_FUNCTIONS and kind == "gauge":
        yield (
            f"{function}({name}): {name} is a gauge, and every fall of it is taken for a restart "
            "from zero"
        )
    elif function in ("delta", "idelta", "deriv") and kind == "counter":
        yield f"{function}({name}): {name} is a counter, and its restarts are taken for falls"
