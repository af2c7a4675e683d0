"""Alert rules as data: from a server's `/api/v1/rules`, or from a rule file that somebody names."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tbforensics import plainyaml
from tbforensics.errors import ParametersError
from tbforensics.model import Json
from tbforensics.promql import parse as promread
from tbforensics.promql import text as promql

DEFAULT_INTERVAL_S = 60.0  # Prometheus' own, where neither group nor server says otherwise
_MOST_METRICS = 40  # a server with thousands of rules must not be asked for all it holds
_NEVER = "0001-01-01T00:00:00Z"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True)
class Rule:
    """One alerting rule.

    interval_s: how often its group is evaluated. phase_s: where in the interval that happens, as
            far as the server told; Prometheus spreads its groups by a hash.
    labels: what the rule adds to its alerts; a template stays as it is written.
    origin: "server" for a rule that was loaded, else the name of the rule file.
    """

    alert: str
    expr: str
    for_s: float = 0.0
    keep_firing_for_s: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    interval_s: float = DEFAULT_INTERVAL_S
    phase_s: float = 0.0
    offset_s: float = 0.0
    origin: str = "server"
    source: str = ""

    @property
    def templated(self) -> bool:
        """Whether a label depends on the value, so that an alert may change who it is."""
        return any("{{" in value for value in self.labels.values())


def from_server(value: Json, source: str) -> list[Rule]:
    """The alerting rules in the `data` of `/api/v1/rules`; what is no rule is passed over."""
    rules = []
    for group in _dicts(value, "groups"):
        interval_s = _seconds(group.get("interval")) or DEFAULT_INTERVAL_S
        for rule in _dicts(group, "rules"):
            if rule.get("type") != "alerting" or not isinstance(rule.get("query"), str):
                continue
            rules.append(
                Rule(
                    alert=str(rule.get("name", "")),
                    expr=rule["query"],
                    for_s=_seconds(rule.get("duration")),
                    keep_firing_for_s=_seconds(rule.get("keepFiringFor")),
                    labels=_texts(rule.get("labels")),
                    group=str(group.get("name", "")),
                    interval_s=interval_s,
                    phase_s=_phase_s(rule.get("lastEvaluation"), interval_s),
                    source=source,
                )
            )
    return rules


def from_file(
    value: Json, name: str, source: str, interval_s: float = DEFAULT_INTERVAL_S
) -> list[Rule]:
    """The alerting rules of a rule file, read as YAML; `interval_s` where a group names none."""
    rules = []
    for group in _dicts(value, "groups"):
        every_s = _seconds(group.get("interval")) or interval_s
        for rule in _dicts(group, "rules"):
            if "alert" not in rule or not isinstance(rule.get("expr"), str | int | float):
                continue
            rules.append(
                Rule(
                    alert=str(rule["alert"]),
                    expr=str(rule["expr"]),
                    for_s=_seconds(rule.get("for")),
                    keep_firing_for_s=_seconds(rule.get("keep_firing_for")),
                    labels=_texts(rule.get("labels")),
                    group=str(group.get("name", "")),
                    interval_s=every_s,
                    offset_s=_seconds(group.get("query_offset")),
                    origin=name,
                    source=source,
                )
            )
    return rules


def metrics(rule: Rule) -> set[str]:
    """Names of the metrics that a rule looks at; none when it cannot be read."""
    try:
        return {s.name for s in promread.selectors(promread.read(rule.expr)) if s.name}
    except promread.Unsupported:
        return set()


def alike(name: str) -> str:
    """A name without its case and punctuation: equal for `CamelCase`, `camel_case`, `CAMELCASE`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def about(rules: Iterable[Rule], known: Iterable[str]) -> list[Rule]:
    """Rules that look at one of the known metrics, in whatever spelling, and those from files."""
    of_kind = {alike(name) for name in known}
    return [
        rule
        for rule in rules
        if rule.origin != "server" or {alike(name) for name in metrics(rule)} & of_kind
    ]


def asked_for(rules: Iterable[Rule], held: Iterable[str]) -> list[str]:
    """Metrics that must be collected to replay the rules, beside those held as a whole."""
    named = {name for rule in rules for name in metrics(rule) if _NAME.fullmatch(name)}
    return sorted(named - {*held})[:_MOST_METRICS]


def plain_yaml(text: str, where: str) -> Json:
    """The value of a YAML text. Errors: ParametersError."""
    try:
        return plainyaml.read(text)
    except plainyaml.NotPlain as error:
        raise ParametersError(f"{where} is no YAML that can be used: {error}"[:500]) from None


def _dicts(value: Json, key: str) -> Iterator[dict[str, Json]]:
    entries = value.get(key) if isinstance(value, dict) else None
    yield from (e for e in (entries if isinstance(entries, list) else ()) if isinstance(e, dict))


def _texts(value: Json) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _seconds(value: Json) -> float:
    """Seconds of `300`, `300.0` or `5m`; 0 for anything else."""
    if isinstance(value, str):
        return promql.duration_s(value) or 0.0
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return max(0.0, float(value)) if good else 0.0


def _phase_s(evaluated: Json, interval_s: float) -> float:
    if not isinstance(evaluated, str) or evaluated == _NEVER:
        return 0.0
    try:
        # Go writes nanoseconds; six digits are all that Python reads everywhere.
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", evaluated))
    except ValueError:
        return 0.0
    return round(moment.timestamp() % interval_s, 3) if moment.tzinfo else 0.0
