"""One alert rule, evaluated again at every moment at which its group was: pending, firing, quiet.

Source: Prometheus, rules/alerting.go (AlertingRule.Eval) and rules/group.go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tbforensics.alerts.rules import Rule
from tbforensics.promql.evaluate import evaluate
from tbforensics.promql.parse import Binary, Node, Number, Unsupported, read
from tbforensics.promql.ranges import Semantics
from tbforensics.promql.series import Bools, Floats, Ints, Labels, Samples, labels_of
from tbforensics.promql.vectors import NAME, EvaluationFailed, Vector

_MOST_MOMENTS = 2_000_000
_NEARER = (0.75, 0.5, 0.25)  # of the way that the threshold stands from nothing
_UPWARDS = {">": True, ">=": True, "<": False, "<=": False}
_TURNED = {">": "<", "<": ">", ">=": "<=", "<=": ">="}


@dataclass(frozen=True)
class Spell:
    """One alert from its first true evaluation on; times in ms.

    firing: None when it never became more than pending.
    ended:  the first evaluation that no longer held it; None when it held at the end.
    """

    labels: Labels
    pending: int
    firing: int | None
    ended: int | None


@dataclass(frozen=True)
class Nearer:
    """What another threshold would have done: when it would first have fired within the window,
    and how often before the window, where a good rule is silent."""

    threshold: float
    firing: int | None
    before: int


@dataclass(frozen=True)
class Replay:
    """What became of a rule between two moments (ms, the last one included).

    state:   "replayed", "fails" (Prometheus itself would answer with an error) or "not replayed".
    why:     the reason for the latter two, in words.
    nearer:  other thresholds, for a simple comparison with a number.
    extreme: the most extreme threshold that would have fired within the window; None when there
             is none, or the rule is no simple comparison.
    """

    rule: Rule
    state: str
    why: str = ""
    first: int = 0
    last: int = 0
    spells: tuple[Spell, ...] = ()
    threshold: float | None = None
    nearer: tuple[Nearer, ...] = ()
    extreme: float | None = None


def moments_of(rule: Rule, start: int, end: int) -> Ints:
    """When the rule's group is evaluated in `[start, end)`, in ms.

    Errors: Unsupported for more moments than can be looked at.
    """
    every, phase = max(1, round(rule.interval_s * 1000)), round(rule.phase_s * 1000)
    first = -(-(start - phase) // every) * every + phase
    if (end - first) // every > _MOST_MOMENTS:
        raise Unsupported(f"more than {_MOST_MOMENTS:,} evaluations")
    return np.arange(first, end, every, dtype=np.int64)


def replay(
    rule: Rule, samples: Samples, start: int, end: int, rules: Semantics, opens: int
) -> Replay:
    """The rule over `[start, end)`; `opens` is where the incident's window begins (ms).

    Before `start` nothing is known, so an alert that is there at the first moment may be older.
    """
    try:
        tree = read(rule.expr)
        moments = moments_of(rule, start, end)
        if not len(moments):
            return Replay(rule, "not replayed", "too little was collected before the window ended")
        found = _alerts(rule, evaluate(tree, samples, moments - _ms(rule.offset_s), rules))
    except EvaluationFailed as error:
        return Replay(rule, "fails", f"Prometheus answers with an error: {error.what}")
    except Unsupported as error:
        return Replay(rule, "not replayed", "; ".join(error.problems) or error.what)
    spells = [
        spell
        for labels, present in zip(found.labels, found.present, strict=True)
        for spell in spells_of(
            labels, present, moments, _ms(rule.for_s), _ms(rule.keep_firing_for_s)
        )
    ]
    spells.sort(key=lambda spell: (spell.pending, spell.labels))
    done = Replay(rule, "replayed", "", int(moments[0]), int(moments[-1]), tuple(spells))
    return _with_thresholds(done, tree, samples, moments, rules, opens)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _alerts(rule: Rule, value: Vector | Floats) -> Vector:
    """The alerts: labels of the result without the metric's name, with those of the rule."""
    if not isinstance(value, Vector):
        rows = [((), value, np.ones(len(value), bool))]
        value = Vector((rows[0][0],), value[None, :], rows[0][2][None, :])

    def named(labels: dict[str, str]) -> Iterator[tuple[str, str]]:
        yield from {**labels, **rule.labels, "alertname": rule.alert, NAME: ""}.items()

    return value.named(named)


def spells_of(
    labels: Labels, present: Bools, moments: Ints, for_ms: int, keep_ms: int
) -> Iterator[Spell]:
    """The state machine of one alert: pending until it held for `for_ms`, then firing until it
    was gone, and for `keep_ms` longer."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    kept: Spell | None = None  # fires on although its expression is quiet
    for first, after in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        # It ends only at an evaluation that does not find it, even when its time is over.
        if kept and kept.ended is not None and moments[first] > kept.ended:
            yield kept
            kept = None
        begun = kept or Spell(labels, int(moments[first]), None, None)
        if begun.firing is None:
            place = int(np.searchsorted(moments, begun.pending + for_ms))
            if place < after:
                begun = replace(begun, firing=int(moments[place]))
        ended = after
        if begun.firing is not None and after < len(moments):
            ended = int(np.searchsorted(moments, moments[after] + keep_ms))
        gone = int(moments[ended]) if ended < len(moments) else None
        begun = replace(begun, ended=gone)
        if begun.firing is None:
            yield begun
            kept = None
        else:
            kept = begun
    if kept:
        yield kept


# --- other thresholds ----------------------------------------------------------------------


def comparison(tree: Node) -> tuple[Node, str, float] | None:
    """(expression, operator, number) of a simple comparison, the number on the right."""
    if not isinstance(tree, Binary) or tree.op not in _UPWARDS or tree.returns_bool:
        return None
    if isinstance(tree.right, Number) and not isinstance(tree.left, Number):
        return tree.left, tree.op, tree.right.value
    if isinstance(tree.left, Number) and not isinstance(tree.right, Number):
        return tree.right, _TURNED[tree.op], tree.left.value
    return None


def _with_thresholds(
    done: Replay, tree: Node, samples: Samples, moments: Ints, rules: Semantics, opens: int
) -> Replay:
    simple = comparison(tree)
    if simple is None:
        return done
    rule, (inner, op, threshold) = done.rule, simple
    value = evaluate(inner, samples, moments - _ms(rule.offset_s), rules)
    if not isinstance(value, Vector) or not len(value.labels):
        return replace(done, threshold=threshold)
    up = _UPWARDS[op]
    held = _held(value, moments, _ms(rule.for_s), up)
    inside = held[:, moments >= opens]
    best = float(np.nanmax(inside) if up else np.nanmin(inside)) if _any_number(inside) else None
    nearer = []
    for share in _NEARER if threshold else ():
        other = threshold * share if up == (threshold > 0) else threshold * (2 - share)
        crossed = (held > other) if up else (held < other)
        if op in (">=", "<="):
            crossed |= held == other
        times = moments[crossed.any(axis=0) & (moments >= opens)]
        rises = np.diff(crossed[:, moments < opens].astype(np.int8), axis=1, prepend=0) > 0
        nearer.append(Nearer(other, int(times[0]) if len(times) else None, int(rises.sum())))
    return replace(done, threshold=threshold, nearer=tuple(nearer), extreme=best)


def _any_number(values: Floats) -> bool:
    return bool(values.size) and bool(np.isfinite(values).any())


def _held(value: Vector, moments: Ints, for_ms: int, up: bool) -> Floats:
    """The level that each series kept to for `for_ms` until each moment; NaN where it was away.

    A threshold fires at a moment exactly when this level is beyond it.
    """
    levels = np.where(value.present, value.values, np.nan)
    every = int(moments[1] - moments[0]) if len(moments) > 1 else 1
    steps = -(-for_ms // every)
    held = np.full(levels.shape, np.nan)
    if steps >= levels.shape[1]:
        return held
    views = np.lib.stride_tricks.sliding_window_view(levels, steps + 1, axis=1)
    held[:, steps:] = views.min(axis=2) if up else views.max(axis=2)  # NaN where any is
    return held


# --- what was recorded ---------------------------------------------------------------------


def recorded(rule: Rule, samples: Samples, state: str = "firing") -> list[tuple[int, int]]:
    """(first, last sample) of each stretch in which ALERTS says that the rule's alert was so."""
    told = _told(rule, samples, alertstate=state)
    times = np.unique(np.concatenate([np.empty(0, np.int64), *told]))
    if not len(times):
        return []
    usual = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    breaks = np.flatnonzero(np.diff(times) > 2.5 * max(usual, rule.interval_s * 1000))
    firsts, lasts = times[np.append(0, breaks + 1)], times[np.append(breaks, len(times) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def as_recorded(rule: Rule, samples: Samples) -> Rule:
    """The rule at the pace and phase at which its group ran, where ALERTS tells.

    The server tells how its groups are evaluated now; it writes ALERTS each time that they were.
    """
    times = np.unique(np.concatenate([np.empty(0, np.int64), *_told(rule, samples)]))
    if len(times) < 3:
        return rule
    interval_s = float(np.median(np.diff(times))) / 1000
    # Stretches of several alerts lie beside each other, so only a shorter pace is believed.
    interval_s = min(interval_s, rule.interval_s)
    phase_s = float(times[-1] % round(interval_s * 1000)) / 1000
    return replace(rule, interval_s=interval_s, phase_s=phase_s)


def _told(rule: Rule, samples: Samples, **more: str) -> list[Ints]:
    """When ALERTS says that an alert of the rule was there."""
    labels = {k: v for k, v in rule.labels.items() if "{{" not in v}
    wanted = {"alertname": rule.alert, **labels, **more}.items()
    return [
        np.asarray(series.times[series.values == 1])
        for series in samples.get("ALERTS", ())
        if wanted <= dict(series.labels).items()
    ]


def identity(spells: Sequence[Spell]) -> str:
    """The labels that tell the alerts of one rule apart, in words; "" when there is but one."""
    every = [dict(spell.labels) for spell in spells]
    names = sorted({name for labels in every for name in labels})
    differing = [n for n in names if len({labels.get(n, "") for labels in every}) > 1]
    first = every[0] if every else {}
    return ", ".join(f"{k}={v}" for k, v in labels_of(first) if k in differing)
