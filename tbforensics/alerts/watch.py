"""The alert rules about a kind, taken from a sealed case and replayed over its samples.

The rules are those that each Prometheus had loaded when it was asked, and those of the rule files
that the parameters name. Only rules about the kind's own metrics are looked at, in whatever
spelling, and those from files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tbforensics.alerts import rules as alertrules
from tbforensics.alerts.checks import Known, Problem, problems
from tbforensics.alerts.replay import Replay, Spell, as_recorded, recorded, replay
from tbforensics.alerts.rules import Rule
from tbforensics.evidence import Evidence
from tbforensics.model import Capture, Incident, Json, Query, Shape, Window
from tbforensics.promql import series as promseries
from tbforensics.promql import text as promql
from tbforensics.promql.parse import Select, Unsupported, reach_ms, read, selectors
from tbforensics.promql.ranges import Semantics, semantics
from tbforensics.promql.series import Samples

RULES, RULE_SERIES, RULE_FILE = "rules", "rule_series", "rule_file"
_MOST_RULES = 200  # replayed; a server may have thousands, and few are about one kind
_MOST_SAMPLES = 30_000_000  # half a gigabyte in memory
_NAMES_ASKED = re.compile(r'__name__=~"([^"]*)"')


@dataclass(frozen=True)
class Watched:
    """One rule and what came of it.

    recorded: (first, last sample in ms) of each stretch that ALERTS says it fired.
    agrees:   whether replay and record agree, in words; "" where nothing was replayed.
    metrics:  what it looks at. cites: the queries that brought them.
    """

    replay: Replay
    problems: tuple[Problem, ...] = ()
    recorded: tuple[tuple[int, int], ...] = ()
    agrees: str = ""
    metrics: tuple[str, ...] = ()
    cites: tuple[str, ...] = ()

    @property
    def rule(self) -> Rule:
        return self.replay.rule

    @property
    def cannot_fire(self) -> str:
        return "; ".join(p.why for p in self.problems if p.cannot == "fire")

    def fired(self, window: Window) -> list[Spell]:
        """Alerts that would have been firing at some moment of a window, the earliest first."""
        start, end = promql.floor_ms(window.start), promql.floor_ms(window.end)
        firing = [
            spell
            for spell in self.replay.spells
            if spell.firing is not None
            and spell.firing < end
            and (spell.ended is None or spell.ended > start)
        ]
        return sorted(firing, key=lambda spell: (spell.firing or 0, spell.labels))


# --- replaying -----------------------------------------------------------------------------


def watch(
    evidence: Evidence, incident: Incident, queries: Sequence[Query], captures: Sequence[Capture]
) -> tuple[Watched, ...]:
    """Every rule about the kind's metrics, replayed over the incident, source by source.

    Pure: the same sealed case gives the same answer.
    """
    watched: list[Watched] = []
    for source in incident.sources:
        if source.type == "prometheus":
            match = str(source.options.get("match", ""))
            server = _Server(evidence, source.name, match, queries, captures)
            watched += [server.watched(rule, incident) for rule in server.rules[:_MOST_RULES]]
    return tuple(watched)


class _Server:
    """What the case holds of one Prometheus."""

    def __init__(
        self,
        evidence: Evidence,
        source: str,
        match: str,
        queries: Sequence[Query],
        captures: Sequence[Capture],
    ) -> None:
        self.source = source
        raw = [q for q in queries if q.source == "prometheus" and not q.params.get("derived")]
        self._captures = [c for c in captures if c.source == source and c.role == "samples"]
        self._whole = _asked_whole(raw, match, self._captures)
        said = _snapshots(evidence, source)
        of_kind = {_metric(query) for query in raw if not query.sparse}
        of_kind -= {"up", *(n for n in of_kind if n.startswith(("scrape_", "process_", "ALERTS")))}
        self.rules = alertrules.about(_rules(said, source), of_kind)
        self.samples: Samples = {}
        self.too_many, sizes = "", dict[str, int]()
        if self.rules:  # a case without rules need not be read again
            names = [query.name for query in raw] + [RULE_SERIES]
            sizes = promseries.sizes(evidence, source, names)
            metrics = {
                "ALERTS",
                *(name for rule in self.rules for name in alertrules.metrics(rule)),
            }
            if sum(sizes.get(name, 0) for name in metrics) > _MOST_SAMPLES:
                self.too_many = f"the rules look at more than {_MOST_SAMPLES:,} samples"
            else:
                self.samples = promseries.load(evidence, source, names, metrics)
        self._semantics = _semantics(said)
        types = _types(said)
        names_known = {*sizes, *types, *of_kind}
        gauges = {_metric(q): "gauge" for q in raw if q.shape is Shape.GAUGE}
        counters = {_metric(q): "counter" for q in raw if q.shape is Shape.COUNTER}
        self._known = Known(
            samples=self.samples,
            rules=self._semantics,
            asked=frozenset() if self.too_many else frozenset(self._whole),
            names=frozenset(names_known),
            types={**gauges, **counters, **types},
            documented=frozenset(types),
        )

    def watched(self, rule: Rule, incident: Incident) -> Watched:
        try:
            tree = read(rule.expr)
        except Unsupported as error:
            return Watched(Replay(rule, "not replayed", "; ".join(error.problems)))
        chosen = selectors(tree)
        names = tuple(sorted({select.name for select in chosen}))
        cites = tuple(sorted({self._whole[name] for name in names if name in self._whole}))
        found = tuple(problems(rule, self._known))
        rule = as_recorded(rule, self.samples)
        told = tuple(recorded(rule, self.samples))
        watched = Watched(Replay(rule, "not replayed"), found, told, "", names, cites)
        start, end, why = self._held(chosen, incident.window)
        if why := self.too_many or why:
            return replace(watched, replay=Replay(rule, "not replayed", why))
        start += reach_ms(tree) + self._semantics.lookback_ms
        done = replay(
            rule, self.samples, start, end, self._semantics, promql.floor_ms(incident.window.start)
        )
        watched = replace(watched, replay=done)
        return replace(watched, agrees=_agreement(watched, incident.window))

    def _held(self, chosen: Sequence[Select], window: Window) -> tuple[int, int, str]:
        """The stretch up to the window's end of which every sample was collected; why not."""
        start, end = 0, promql.floor_ms(window.end)
        for select in chosen:
            if not select.name:
                return 0, 0, "a selector without a metric's name; nobody asked for every metric"
            if select.name not in self._whole:
                return 0, 0, f"{select.name} was not collected"
            stretch = _stretch(self._captures, self._whole[select.name], select.name, end)
            if stretch is None:
                return 0, 0, f"{select.name} was not collected up to the end of the window"
            start = max(start, stretch)
        return start, end, ""


def _metric(query: Query) -> str:
    return query.text.partition("{")[0]


def _snapshots(evidence: Evidence, source: str) -> dict[str, list[Mapping[str, Json]]]:
    """What the server said of itself, by query."""
    said: dict[str, list[Mapping[str, Json]]] = {}
    for name in (RULES, "buildinfo", "flags", "metadata"):
        for row in evidence.snapshots(name).to_dict("records"):
            if row["source"] == source and row["state"] == "ok":
                said.setdefault(name, []).append(row)
    return said


def _rules(said: Mapping[str, Sequence[Mapping[str, Json]]], source: str) -> list[Rule]:
    rules: list[Rule] = []
    for row in said.get(RULES, ()):
        value = row["value"]
        if row["role"] == RULE_FILE:
            name = str(value.get("file", "rule file")) if isinstance(value, dict) else "rule file"
            rules += alertrules.from_file(value, name, source)
        else:
            rules += alertrules.from_server(value, source)
    return rules


def _semantics(said: Mapping[str, Sequence[Mapping[str, Json]]]) -> Semantics:
    def of(name: str, key: str) -> str:
        value = next((row["value"] for row in said.get(name, ())), None)
        return str(value.get(key, "")) if isinstance(value, dict) else ""

    lookback_s = promql.duration_s(of("flags", "query.lookback-delta")) or 300.0
    return semantics(of("buildinfo", "version"), round(lookback_s * 1000))


def _types(said: Mapping[str, Sequence[Mapping[str, Json]]]) -> dict[str, str]:
    """The type of each metric, as the server's targets tell it; none where they disagree."""
    types: dict[str, str] = {}
    for row in said.get("metadata", ()):
        value = row["value"] if isinstance(row["value"], dict) else {}
        for name, entries in value.items():
            told = {str(e.get("type", "")) for e in entries if isinstance(e, dict)}
            if len(told) == 1:
                types[str(name)] = told.pop()
    return types


def _asked_whole(raw: Sequence[Query], match: str, captures: Sequence[Capture]) -> dict[str, str]:
    """Metrics of which every series was asked for, each with the query that asked."""
    whole = {q.text: q.name for q in raw if q.params.get("everywhere") or not match}
    for capture in captures:
        if capture.query == RULE_SERIES:
            for name in _names_asked(capture):
                whole.setdefault(name, RULE_SERIES)
    return whole


def _names_asked(capture: Capture) -> list[str]:
    ways = ("params", "form", "remote_read")
    asked = {k: v for way in ways for k, v in capture.request.get(way, {}).items()}
    found = _NAMES_ASKED.search(str(asked.get("query", "")))
    return found[1].split("|") if found else []


def _stretch(captures: Sequence[Capture], query: str, name: str, end: int) -> int | None:
    """From when on every slice up to `end` was answered; None when the last one was not."""
    edges = sorted(
        (promql.floor_ms(c.window.start), promql.ceil_ms(c.window.end))
        for c in captures
        if c.query == query
        and c.usable
        and c.window
        and promql.floor_ms(c.window.start) < end
        and (query != RULE_SERIES or name in _names_asked(c))
    )
    reached: int | None = None
    for first, last in reversed(edges):
        if last >= (end if reached is None else reached):
            reached = first
    return reached


def _agreement(watched: Watched, window: Window) -> str:
    """What the replay and the recorded ALERTS say of the first firing in a window."""
    if watched.replay.state != "replayed":
        return ""
    start, end = promql.floor_ms(window.start), promql.floor_ms(window.end)
    fired = watched.fired(window)
    told = [pair for pair in watched.recorded if pair[0] < end and pair[1] >= start]
    if not fired and not told:
        return "both silent"
    if not told:
        return "not recorded"
    if not fired:
        return "recorded, but not in the replay"
    apart_s = abs(told[0][0] - (fired[0].firing or 0)) / 1000
    # Both read the clock of a group that is evaluated once in an interval, at a phase of its own.
    if apart_s <= 2 * watched.rule.interval_s + 1:
        return "agrees"
    return (
        f"recorded {apart_s:.0f} s {'later' if told[0][0] > (fired[0].firing or 0) else 'earlier'}"
    )
