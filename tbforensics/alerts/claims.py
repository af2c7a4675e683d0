"""Alert rules against the evidence: what they would have told, when, and which never can.

A replay never decides a verdict; it explains what people were told, and what they were not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tbforensics.alerts.replay import Replay, Spell, identity
from tbforensics.alerts.watch import RULES, Watched
from tbforensics.model import Finding, Json, Moment, Window, utc_text
from tbforensics.promql import text as promql
from tbforensics.quality import duration

_MOST_TIMING_ROWS = 3
_MOST_ROWS = 40


def findings(
    watched: Sequence[Watched], window: Window, onset: Finding | None
) -> Iterator[Finding]:
    """What the rules would have told; which cannot fire; which do not mean what they say."""
    if not watched:
        return
    when = onset.window if onset else window
    cites = (RULES, *sorted({name for one in watched for name in one.cites}))
    replayed = [one for one in watched if one.replay.state == "replayed"]
    fired = [one for one in replayed if one.fired(window)]
    yield _told(watched, fired, replayed, window, when, onset, cites)
    for cannot, id, words in (
        ("fire", "rules-cannot-fire", "can never fire"),
        ("mean it", "rules-unsound", "do not mean what they say"),
    ):
        bad = [one for one in watched if any(p.cannot == cannot for p in one.problems)]
        if bad:
            names = ", ".join(dict.fromkeys(one.rule.alert for one in bad))
            yield Finding(
                claim=f"{_count(len(bad), 'alert rule')} about these metrics {words}: {names}",
                id=id,
                value=float(len(bad)),
                unit="rules",
                window=when,
                cites=cites,
                rows=tuple(
                    {"alert": one.rule.alert, "why": problem.why, "expression": one.rule.expr}
                    for one in bad
                    for problem in one.problems
                    if problem.cannot == cannot
                )[:_MOST_ROWS],
            )


def _told(
    watched: Sequence[Watched],
    fired: Sequence[Watched],
    replayed: Sequence[Watched],
    window: Window,
    when: Window,
    onset: Finding | None,
    cites: tuple[str, ...],
) -> Finding:
    of = f"{len(replayed)} replayed alert rules" if len(replayed) != 1 else "the one alert rule"
    claim = f"None of {of} about these metrics would have fired"
    if len(replayed) == 1 and not fired:
        claim = "The one alert rule about these metrics that could be replayed would not have fired"
    if not replayed:
        claim = f"{_count(len(watched), 'alert rule')} about these metrics, none could be replayed"
    value, unit = float(len(fired)), "rules"
    if fired:
        first = min(fired, key=lambda one: one.fired(window)[0].firing or 0)
        moment = promql.moment_of(first.fired(window)[0].firing or 0)
        claim = f"By replay {first.rule.alert} would have fired at {utc_text(moment)}"
        if onset and onset.spell:
            value, unit = (moment - onset.spell.onset).total_seconds(), "s after onset"
            side = "after" if value >= 0 else "before"
            claim += f", {abs(value):.0f} s {side} the onset"
        if len(replayed) > 1:
            claim += f"; {len(fired)} of {len(replayed)} replayed rules would have fired"
    return Finding(
        claim=claim,
        id="rules-replayed",
        value=value,
        unit=unit,
        window=when,
        cites=cites,
        rows=rows(watched, window, onset)[:_MOST_ROWS],
        caution="a replay of the rules as they were when the server was asked, on the samples that "
        "the case holds; the server may have seen less",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def rows(
    watched: Sequence[Watched], window: Window, onset: Finding | None = None
) -> tuple[dict[str, Json], ...]:
    """One row per rule: what it would have done in a window."""
    return tuple(_row(one, window, onset) for one in watched)


def _row(one: Watched, window: Window, onset: Finding | None) -> dict[str, Json]:
    fired = one.fired(window)
    return {
        "alert": one.rule.alert,
        "firing": _text(fired[0].firing) if fired else None,
        "until": (_text(fired[-1].ended) or "still firing at the end") if fired else None,
        "what the replay says": "; ".join(_said(one, fired, window, onset)),
    }


def _said(
    one: Watched, fired: Sequence[Spell], window: Window, onset: Finding | None
) -> Iterator[str]:
    """A row's words, the most important first."""
    done, rule, start = one.replay, one.rule, promql.floor_ms(window.start)
    pending = [s for s in done.spells if s.ended is None or s.ended > start]
    if done.state != "replayed":
        yield f"fails: {done.why}" if done.state == "fails" else f"not replayed: {done.why}"
    elif fired:
        yield f"would have fired, pending since {_clock(fired[0].pending)}"
        if onset and onset.spell and fired[0].firing is not None:
            after_s = (promql.moment_of(fired[0].firing) - onset.spell.onset).total_seconds()
            yield f"{duration(abs(after_s))} {'after' if after_s >= 0 else 'before'} the onset"
        if len(fired) > 1:
            yield f"{len(fired)} alerts" + (f", the first {w}" if (w := identity(fired)) else "")
    elif pending:
        yield f"only pending, from {_clock(pending[0].pending)}, for less than {rule.for_s:g} s"
    else:
        yield "silent"
    if one.agrees:
        yield {"agrees": "ALERTS agrees", "both silent": "so says ALERTS"}.get(
            one.agrees, f"in ALERTS: {one.agrees}"
        )
    if one.cannot_fire:
        yield f"it can never fire: {one.cannot_fire}"
    yield from (problem.why for problem in one.problems if problem.cannot != "fire")
    if pending and pending[0].pending == done.first:
        yield "it held at the first replayed moment, perhaps since earlier"
    if fired or pending:
        yield from _nearer(done)
    if rule.origin != "server":
        yield f"from the rule file {rule.origin}, not from the server"


def _nearer(done: Replay) -> Iterator[str]:
    for other in done.nearer:
        when = f"at {_clock(other.firing)}" if other.firing is not None else "never"
        before = f" and {_count(other.before, 'time')} before the window" if other.before else ""
        yield f"with {other.threshold:g} in place of {done.threshold:g} {when}{before}"


def _text(ms: int | None) -> str | None:
    return None if ms is None else utc_text(promql.moment_of(ms))


def _clock(ms: int) -> str:
    """The time of day; the date stands in the columns beside it."""
    return utc_text(promql.moment_of(ms))[11:]


def moments(watched: Sequence[Watched], window: Window) -> Iterator[Moment]:
    """For the timeline: when each rule would first have fired."""
    for one in watched:
        for spell in one.fired(window)[:1]:
            if spell.firing is not None and promql.moment_of(spell.firing) in window:
                text = f"replay: alert {one.rule.alert} would have fired"
                moment = promql.moment_of(spell.firing)
                yield Moment(moment, "alert", text, one.rule.source, one.rule.interval_s / 2)


def timing(watched: Sequence[Watched], window: Window) -> list[Moment]:
    """The first few of them, for the timing audit."""
    found = sorted(moments(watched, window), key=lambda moment: (moment.time, moment.text))
    return found[:_MOST_TIMING_ROWS]


def unknowns(watched: Sequence[Watched]) -> Iterator[str]:
    """What no replay can tell."""
    for one in watched:
        if one.replay.state == "not replayed":
            yield f"whether the alert {one.rule.alert} would have fired: {one.replay.why}"
        elif one.replay.state == "fails":
            yield f"what the alert {one.rule.alert} was worth: {one.replay.why}"
        elif one.agrees.startswith("recorded"):
            yield f"why ALERTS and the replay of {one.rule.alert} differ: {one.agrees}"
        elif one.rule.templated:
            yield f"which alerts {one.rule.alert} makes: a label of it is a template"
