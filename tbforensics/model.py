"""The nouns. Frozen, with no behaviour that reads a clock, a file or a network.

Incident   what happened, when, and whom to ask          (parameters/<id>.yaml)
Query      one named question with its unit              (kinds/<kind>.py)
Capture    one reply, byte for byte, hashed              (raw/, manifest.json)
Frames     what the queries saw, step by step            (evidence/, read through SQL)
Finding    a claim with its number and what it rests on  (findings.json)
Assessment the verdict, and all that led to it           (findings.json)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import pandas as pd

Json = Any  # what json.loads gives: None, bool, int, float, str, list, dict


@dataclass(frozen=True, order=True)
class Window:
    """Half-open `[start, end)` in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            moment = getattr(self, name)
            if moment.tzinfo is None:
                raise ValueError(f"{name} has no time zone: {moment.isoformat()}")
            object.__setattr__(self, name, moment.astimezone(UTC))
        if self.end <= self.start:
            raise ValueError(f"a window ends after it starts: {self}")

    @property
    def seconds(self) -> float:
        return (self.end - self.start).total_seconds()

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end

    def __str__(self) -> str:
        return f"{utc_text(self.start)} to {utc_text(self.end)}"

    def widened(self, *, before_s: float = 0.0, after_s: float = 0.0) -> Window:
        return Window(
            self.start - timedelta(seconds=before_s), self.end + timedelta(seconds=after_s)
        )

    def overlap_s(self, other: Window) -> float:
        """Seconds that both windows hold."""
        shared = min(self.end, other.end) - max(self.start, other.start)
        return max(0.0, shared.total_seconds())

    def to_json(self) -> dict[str, str]:
        return {"start": utc_text(self.start), "end": utc_text(self.end)}

    @staticmethod
    def from_json(value: Mapping[str, str]) -> Window:
        return Window(utc_time(value["start"]), utc_time(value["end"]))


def utc_text(moment: datetime) -> str:
    """RFC 3339 in UTC with `Z`; milliseconds only where there are any."""
    moment = moment.astimezone(UTC)
    spec = "milliseconds" if moment.microsecond else "seconds"
    return moment.isoformat(timespec=spec).replace("+00:00", "Z")


def utc_time(text: str) -> datetime:
    """The moment that `utc_text` wrote. A time without a zone is a ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"no time zone in {text!r}")
    return moment.astimezone(UTC)


# --- what is asked -----------------------------------------------------------------------


class Shape(StrEnum):
    """How the samples beneath a query become the frame that a kind sees."""

    COUNTER = "counter"  # increase per step, resets undone
    GAUGE = "gauge"  # last value in each step
    HISTOGRAM = "histogram"  # increase per step of each bucket; one column level is `le`
    ROWS = "rows"  # log lines or snapshots, as they are
    RECORDS = "records"  # lines of a journal, as they are


@dataclass(frozen=True)
class Query:
    """One named question. `name` is its name everywhere: frames, coverage, cites, report.

    source: the type of source that can answer: `prometheus`, `logs`, `jsonrpc`, ...
    text:   the source's own language: a PromQL selector, a JSON-RPC method.
    unit:   of one value: "failures", "bytes", "s", "1" for a plain number.
    required: a `cleared` verdict needs it covered. At least one query of a kind is required.
    witnesses: names of queries about families of the same exporter. A family that registers at
            first use may be absent because it never happened; that is believed only while a
            witness was being counted.
    sparse:  it comes and goes by design (`ALERTS`): no sample is an answer, not a lack of one.
    params: what else the source needs to know, for instance JSON-RPC parameters.
    """

    name: str
    source: str
    text: str
    unit: str = "1"
    shape: Shape = Shape.GAUGE
    required: bool = False
    witnesses: tuple[str, ...] = ()
    sparse: bool = False
    params: Mapping[str, Json] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class SourceConfig:
    """One entry under `sources` of a parameters file. Holds no secret."""

    name: str
    type: str
    url: str | None = None
    http_config: str | None = None
    options: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class TimelineEntry:
    """What a person wrote down: `detected`, `acknowledged`, `mitigated`, `resolved`, `note`."""

    time: datetime
    event: str
    author: str = ""
    text: str = ""


@dataclass(frozen=True)
class Incident:
    """A parameters file that passed every check.

    `digest` is the SHA-256 of the parameters in canonical form: two files that ask for the same
    thing have the same digest, whatever their comments or order.
    """

    id: str
    kind: str
    title: str
    window: Window
    baseline: Window
    step_s: float
    sources: tuple[SourceConfig, ...]
    thresholds: Mapping[str, Json]
    timeline: tuple[TimelineEntry, ...]
    notes: str
    digest: str

    @property
    def span(self) -> Window:
        """From the first moment of window or baseline to the last of either."""
        return Window(
            min(self.window.start, self.baseline.start), max(self.window.end, self.baseline.end)
        )


# --- what came back ----------------------------------------------------------------------


@dataclass(frozen=True)
class Capture:
    """One reply, kept byte for byte under its hash, or the record that none came.

    source, query: names from the parameters file and from the kind's catalogue.
    role:    what the parser of the source must do with the body: "samples", "rules", "lines", ...
    request: how to ask again: method, url, params. Secrets are stripped.
    window:  what time the answer speaks of; None when it speaks of the moment `asked_at`.
    status:  HTTP status; None for a file, or when no reply came.
    sha256:  of the body, uncompressed; None when no body came.
    bytes:   length of that body.
    error:   why it cannot be used, in words; "" when it can.
    notes:   what the source said beside its answer: warnings, retries, a halved slice.
    """

    source: str
    query: str
    role: str
    request: Mapping[str, Json]
    asked_at: datetime
    window: Window | None = None
    status: int | None = None
    sha256: str | None = None
    bytes: int = 0
    error: str = ""
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.sha256 is not None and not self.error

    def to_json(self) -> dict[str, Json]:
        return {
            "source": self.source,
            "query": self.query,
            "role": self.role,
            "request": dict(self.request),
            "asked_at": utc_text(self.asked_at),
            "window": self.window.to_json() if self.window else None,
            "status": self.status,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "error": self.error,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(value: Mapping[str, Json]) -> Capture:
        return Capture(
            **{
                **value,
                "asked_at": utc_time(value["asked_at"]),
                "window": Window.from_json(value["window"]) if value["window"] else None,
                "notes": tuple(value["notes"]),
            }
        )


# --- what was seen -----------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """How much of a query's window was seen.

    ratio:  share of expected steps that hold a sample; for logs and snapshots 1.0 or 0.0.
    state:  "covered", "partial", "absent" (asked, nothing there), "failed" (no usable reply),
            "unsupported" (the source does not know the question), "not asked".
    """

    query: str
    source: str
    ratio: float
    state: str
    required: bool = False
    detail: str = ""

    @property
    def enough(self) -> bool:
        """A verdict of `cleared` may rest on it."""
        return self.state == "covered"

    @property
    def missing(self) -> bool:
        """An answer went wrong, or one is not there that the kind cannot do without."""
        return self.state in ("failed", "partial") or (self.required and not self.enough)


@dataclass(frozen=True)
class Doubt:
    """One thing about the evidence that limits what may be said.

    what:   "gap", "scrape failure", "counter reset", "frozen", "provisional", "quarantined", ...
    limits: "cleared" when silence can no longer be read as health, "confirmed" when even what was
            seen cannot be trusted, "" when it is worth knowing and limits nothing.
    """

    what: str
    detail: str
    window: Window | None = None
    limits: Literal["", "cleared", "confirmed"] = ""
    cites: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frames(Mapping[str, pd.DataFrame]):
    """What each query saw, over baseline and window together, at the incident's step.

    counter, gauge, histogram: index is the UTC start of each step, one column per series, the
        columns a MultiIndex whose level names are the label names (`source` and the labels that
        differ). NaN where nothing was seen. No columns at all: no such series.
    rows of logs: ts, level, message, peer, correlation_id, tx, block, source, file, line, fields.
    rows of snapshots: ts, source, query, role, generation, state, value (plain JSON objects).
    records: ts, source, file, line, place, value (plain JSON objects).
    """

    window: Window
    baseline: Window
    step_s: float
    tables: Mapping[str, pd.DataFrame]
    coverage: tuple[Coverage, ...] = ()
    doubts: tuple[Doubt, ...] = ()

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self.tables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tables)

    def __len__(self) -> int:
        return len(self.tables)

    def seen(self, name: str) -> bool:
        """Whether the query has any row or column to look at."""
        table = self.tables.get(name)
        return table is not None and table.size > 0

    def during(self, name: str, window: Window) -> pd.DataFrame:
        """The steps (or rows) of a query that start within a window."""
        table = self.tables[name]
        moments = table["ts"] if "ts" in table.columns else table.index
        return table[(moments >= window.start) & (moments < window.end)]


# --- what it means -----------------------------------------------------------------------


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    CLEARED = "cleared"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Spell:
    """When something began and ended, each with the earliest and latest moment it may have.

    recovery: None when it still went on at the end of what was seen.
    """

    onset: datetime
    onset_earliest: datetime
    onset_latest: datetime
    recovery: datetime | None = None
    recovery_earliest: datetime | None = None
    recovery_latest: datetime | None = None

    def to_json(self) -> dict[str, str | None]:
        moments = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: utc_text(moment) if moment else None for name, moment in moments.items()}


@dataclass(frozen=True)
class Finding:
    """A claim with its number and the evidence that it rests on.

    id:       short, stable, unique within a kind: "handshake-failures".
    value, unit, threshold: the number, in the unit, and the number that it crossed.
    window:   when.
    spell:    onset and recovery with their uncertainty, where they were looked for.
    interval: lower and upper bound of `value` in the same unit, when one can be given.
    decides:  a finding that decides makes the verdict `confirmed`; others explain.
    leaves_open: it names something that the evidence cannot tell, so that a verdict of `cleared`
              cannot stand beside it.
    rows:     the small table behind the number, plain JSON values only.
    cites:    names of the queries that it rests on. A finding that cites nothing cannot be built.
    """

    claim: str
    value: float
    unit: str
    window: Window
    cites: tuple[str, ...]
    id: str = ""
    threshold: float | None = None
    interval: tuple[float, float] | None = None
    spell: Spell | None = None
    decides: bool = False
    leaves_open: bool = False
    rows: tuple[Mapping[str, Json], ...] = ()
    caution: str = ""

    def __post_init__(self) -> None:
        if not self.cites:
            raise ValueError(f"a finding cites the queries that it rests on: {self.claim}")

    def to_json(self) -> dict[str, Json]:
        return {
            "id": self.id,
            "claim": self.claim,
            "value": self.value,
            "unit": self.unit,
            "threshold": self.threshold,
            "interval": list(self.interval) if self.interval else None,
            "window": self.window.to_json(),
            "spell": self.spell.to_json() if self.spell else None,
            "decides": self.decides,
            **({"leaves_open": True} if self.leaves_open else {}),
            "caution": self.caution,
            "cites": list(self.cites),
            "rows": [dict(row) for row in self.rows],
        }


@dataclass(frozen=True)
class Moment:
    """One line of the timeline: `origin` is finding, log, alert, rpc or human."""

    time: datetime
    origin: str
    text: str
    source: str = ""
    uncertainty_s: float = 0.0


@dataclass(frozen=True)
class Assessment:
    """The verdict with all that led to it; what `findings.json` holds.

    timing: seconds from the telemetry onset to each of detected, acknowledged, mitigated, ...
    unknowns: what we could not tell, one sentence each.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    findings: tuple[Finding, ...]
    coverage: tuple[Coverage, ...]
    doubts: tuple[Doubt, ...]
    timeline: tuple[Moment, ...] = ()
    timing: tuple[Mapping[str, Json], ...] = ()
    unknowns: tuple[str, ...] = ()


Analyse = Callable[[Frames, Any], Sequence[Finding]]
Distrust = Callable[[Frames, Any], Sequence[Doubt]]


def _no_doubts(frames: Frames, thresholds: Any) -> Sequence[Doubt]:
    return ()


@dataclass(frozen=True)
class Kind:
    """One family of incidents: its questions, its thresholds, its arithmetic.

    thresholds: a frozen dataclass of numbers with units in their names; a parameters file may
                override any of them by name.
    analyse:    frames and thresholds in, findings out; pure.
    onset:      id of the finding whose window starts at the telemetry onset, for the timing audit.
    doubts:     what only this kind knows to doubt about its evidence; pure, as `analyse`.
    """

    title: str
    question: str
    queries: tuple[Query, ...]
    thresholds: type
    analyse: Analyse
    onset: str = ""
    doubts: Distrust = _no_doubts
