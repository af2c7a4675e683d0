"""A Prometheus server, or what speaks its API: raw samples, rules, alerts and targets.

A selector is asked for its raw samples (`m[2h]` at one moment), never through `query_range`, which
aligns times to a step and fills gaps of up to five minutes: that is arithmetic, not evidence. A
query with `params={"derived": True}` is an expression and is asked on a grid of steps.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
import requests
from prometheus_pandas.query import Prometheus as PandasClient

from tbforensics.alerts import rules as alertrules
from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Incident, Json, Query, Window
from tbforensics.promql import text as promql
from tbforensics.reading import givenfiles, promjson, promrows
from tbforensics.wire import Client, Manners

ROLE = "samples"
RULE_FILE = "rule_file"
RULE_SERIES = "rule_series"  # what alert rules about the kind look at, beside the kind's queries
LEAD_S = 300.0  # asked before the window: a counter's increase needs the sample before it
PROVISIONAL = "provisional"
_LOOKBACK_S, _LATE_S = 300.0, 60.0  # a sample may still arrive for so long
_MOST_POINTS = 11_000  # per series, for `query_range`; the server refuses more
_LONGEST_URL_TEXT = 1_500
_SMALLEST_PART = 64  # of a slice, before its refusal is taken as final
_SMALL_REFUSALS = 8  # in a row, before the rest of a query is not asked any more
_SILENCES = 3  # in a row, before a server is left alone

_TOO_MUCH = re.compile(
    r"too many|exceed|limit|more than|longer than|within the time|time[- ]?out|timed out|deadline"
)

ALWAYS = (
    Query("up", "prometheus", "up", why="which targets were seen, and when not"),
    # An alert's labels are those of its expression, so no matcher of ours may narrow it.
    Query(
        name="ALERTS",
        source="prometheus",
        text="ALERTS",
        params={"everywhere": True},
        sparse=True,
        why="what fired",
    ),
    Query(
        name="ALERTS_FOR_STATE",
        source="prometheus",
        text="ALERTS_FOR_STATE",
        unit="s",
        params={"everywhere": True},
        sparse=True,
        why="since when each alert was pending",
    ),
    *(
        Query(name, "prometheus", name, unit=unit, why=why)
        for name, unit, why in (
            ("process_start_time_seconds", "s", "tells a restart from a counter that fell"),
            ("scrape_duration_seconds", "s", "a scrape near its timeout is about to fail"),
            ("scrape_samples_scraped", "samples", "a target that says less than before"),
        )
    ),
)

_STATUS: tuple[tuple[str, str, Mapping[str, Json]], ...] = (
    # role, path, parameters
    ("buildinfo", "api/v1/status/buildinfo", {}),
    ("flags", "api/v1/status/flags", {}),
    ("rules", "api/v1/rules", {}),
    ("alerts", "api/v1/alerts", {}),
    ("targets", "api/v1/targets", {"state": "active"}),
    ("metadata", "api/v1/metadata", {}),
)
_ABOUT_ITSELF = tuple(role for role, _, _ in _STATUS)


@dataclass(frozen=True)
class Options:
    """match: label matchers put into every selector, such as `job="the_block"`; not into ALERTS.
    slice_hours: how much is asked at once; less for a server that is short of memory.
    step_s: the step of derived queries; 0 for the incident's own.
    rule_files: alert rules to replay beside those that the server has loaded: files, folders or
                globs of rule files as Prometheus reads them.
    """

    match: str = ""
    slice_hours: float = 2.0
    step_s: float = 0.0
    rule_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.match and not promql.is_matchers(self.match):
            problems.append(f'match is not a list of label matchers like job="x": {self.match}')
        if not 1 / 60 <= self.slice_hours <= 24 * 7:
            problems.append(f"slice_hours is not between a minute and a week: {self.slice_hours}")
        if not (self.step_s == 0 or 0.001 <= self.step_s <= 86_400):
            problems.append(f"step_s is not between 1 ms and a day: {self.step_s}")
        if problems:
            raise ParametersError("a Prometheus source cannot be asked so:", problems=problems)


class PrometheusSource:
    about = "Prometheus, or what speaks its API: raw samples, rules, alerts, targets"
    options = Options
    needs_url = True
    always = ALWAYS
    # Slices are small, so a server that needs a minute for one is in trouble: ask it once more.
    manners = Manners(retries=3, requests_per_s=20.0)

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        yield from asked(queries, incident, options, client)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        if capture.role == RULE_FILE:
            reply = _rules_in(body.read(), str(capture.request.get("file", "")))
        else:
            reply = promjson.read_reply(body.read())
        yield from promrows.tables(capture, reply, samples=ROLE)


SOURCE = PrometheusSource()


# --- alert rules ---------------------------------------------------------------------------


def _rule_files(client: Client, options: Options) -> Iterator[Capture]:
    for named in options.rule_files:
        found = [file for file in givenfiles.find(named) if not file.why_not]
        if not found:
            request = {"file": "none found"}
            error = "no file to read under `rule_files`"
            yield client.fail(query="rules", role=RULE_FILE, request=request, error=error)
        for file in found:
            request, chunks = {"file": file.name}, givenfiles.chunks(file.path)
            yield client.keep_file(chunks, query="rules", role=RULE_FILE, request=request)


def _rules_in(body: bytes, name: str) -> promjson.Reply:
    """What a rule file says, as if it were a reply."""
    try:
        value = alertrules.plain_yaml(body.decode("utf-8"), "the rule file")
        groups = json.loads(json.dumps(value["groups"], default=str))
    except (ParametersError, ValueError, TypeError, KeyError, RecursionError) as error:
        return promjson.Reply(error=f"no rule file: {error}"[:500])
    return promjson.Reply(data={"file": name, "groups": groups})


def _rule_series(
    client: Client, said: Iterable[Capture], asked: Iterable[Query], options: Options
) -> Iterator[Query]:
    """One question for all that the rules about this kind look at and that nothing asks whole."""
    rules = []
    for capture in said:
        if capture.query == "rules" and capture.usable:
            body = client.body(capture)
            if capture.role == RULE_FILE:
                name = str(capture.request["file"])
                rules += alertrules.from_file(_rules_in(body, name).data, name, capture.source)
            else:
                rules += alertrules.from_server(promjson.read_reply(body).data, capture.source)
    asked = [query for query in asked if not query.params.get("derived")]
    known = {query.text.partition("{")[0] for query in asked if query not in ALWAYS}
    whole = {q.text for q in asked if q.params.get("everywhere") or not options.match}
    wanted = alertrules.asked_for(alertrules.about(rules, known), whole)
    if wanted:
        text = f'{{__name__=~"{"|".join(wanted)}"}}'
        yield Query(RULE_SERIES, "prometheus", text, params={"everywhere": True})


# --- asking --------------------------------------------------------------------------------


def asked(
    queries: Sequence[Query],
    incident: Incident,
    options: Options,
    client: Client,
    status: Sequence[str] = _ABOUT_ITSELF,
) -> Iterator[Capture]:
    """Everything that an incident needs of one server.

    status: what to ask the server about itself; a server that only lends its eyes to samples of
            another one knows nothing of that one's rules, alerts and targets.
    """
    ask = _Asking(client, options, options.step_s or incident.step_s)
    said = []
    for capture in itertools.chain(ask.status(status), _rule_files(client, options)):
        said.append(capture)
        yield capture
    mine = [query for query in (*queries, *ALWAYS) if query.source == "prometheus"]
    once: dict[str, Query] = {}
    for query in mine:
        once.setdefault(query.name, query)  # a kind may name what is always asked
    for query in (*once.values(), *_rule_series(client, said, once.values(), options)):
        for span in spans(incident):
            yield from ask.samples(query, *span)


class _Asking:
    """One server being asked. It is left alone once it has stopped answering."""

    def __init__(self, client: Client, options: Options, step_s: float) -> None:
        self._client, self._match = client, options.match
        self._step_ms = max(1, round(step_s * 1000))
        self._slice_ms = round(options.slice_hours * 3_600_000)
        self._lookback_s = _LOOKBACK_S
        self._silences: list[str] = []  # names of the queries that had no answer, in a row
        self._silence = ""

    def status(self, roles: Sequence[str]) -> Iterator[Capture]:
        """What the server is and what it was set to do. A part it does not know is no failure."""
        for role, path, params in (asked for asked in _STATUS if asked[0] in roles):
            capture = self._ask(role, role, path, params)
            if role == "flags" and capture.usable:
                self._lookback_s = _lookback_s(self._client.body(capture))
            yield capture

    def samples(self, query: Query, start_ms: int, end_ms: int) -> Iterator[Capture]:
        """The span in slices; a slice that is too much for the server is asked in halves."""
        text = query.text
        if self._match and not query.params.get("everywhere"):
            text = promql.with_matchers(text, self._match)
        derived = bool(query.params.get("derived"))
        length_ms = self._slice_ms
        if derived:
            points = max(1, min(_MOST_POINTS, length_ms // self._step_ms))
            length_ms = points * self._step_ms
        unit_ms = self._step_ms if derived else 1
        smallest_ms = max(unit_ms, length_ms // _SMALLEST_PART)
        at, notes, refusals = start_ms, tuple[str, ...](), 0
        while at < end_ms:
            edge_ms = promql.next_edge(at, end_ms, length_ms)
            capture = self._slice(query, text, at, edge_ms, derived, notes)
            if capture is None:
                at = edge_ms
                continue
            yield capture
            half_ms = length_ms // 2 // unit_ms * unit_ms
            refusals = refusals + 1 if _too_much(capture) else 0
            if refusals and half_ms >= smallest_ms:
                length_ms = half_ms
                notes = (f"a part of what was refused: {capture.error}"[:200],)
            elif refusals > _SMALL_REFUSALS:
                rest = {"query": text, "from": promql.seconds_text(at)}
                yield self._not_asked(query.name, ROLE, rest, "even small parts are refused")
                return
            else:
                at = edge_ms

    def _slice(
        self,
        query: Query,
        text: str,
        start_ms: int,
        end_ms: int,
        derived: bool,
        notes: tuple[str, ...],
    ) -> Capture | None:
        if derived:
            first = -(-start_ms // self._step_ms) * self._step_ms
            last = (end_ms - 1) // self._step_ms * self._step_ms
            if last < first:
                return None  # no step begins in it
            path, params = (
                "api/v1/query_range",
                {
                    "query": text,
                    "start": promql.seconds_text(first),
                    "end": promql.seconds_text(last),
                    "step": promql.seconds_text(self._step_ms),
                },
            )
        else:
            # A range holds both its ends in Prometheus 2 and only the later one in Prometheus 3.
            # This one holds [start, end) in either, plus a millisecond that `parse` drops.
            path, params = (
                "api/v1/query",
                {
                    "query": f"{text}[{promql.duration_text(end_ms - start_ms)}]",
                    "time": promql.seconds_text(end_ms - 1),
                },
            )
        return self._ask(query.name, ROLE, path, params, promql.window_of(start_ms, end_ms), notes)

    def _ask(
        self,
        name: str,
        role: str,
        path: str,
        params: Mapping[str, Json],
        window: Window | None = None,
        notes: tuple[str, ...] = (),
    ) -> Capture:
        if why := self._left_alone(name):
            return self._not_asked(name, role, {"path": path, "params": dict(params)}, why)
        settled = timedelta(seconds=self._lookback_s + _LATE_S)
        if window and window.end > self._client.now() - settled:
            notes = (*notes, PROVISIONAL)
        long = len(str(params.get("query", ""))) > _LONGEST_URL_TEXT
        capture = self._client.ask(
            query=name,
            role=role,
            path=path,
            method="POST" if long else "GET",
            params=None if long else params,
            form=params if long else None,
            window=window,
            notes=notes,
            explain=promjson.explain,
        )
        self._silences = [*self._silences, name] if _silent(capture) else []
        self._silence = capture.error
        return capture

    def _left_alone(self, name: str) -> str:
        """Why this is not asked. One query that is too much for a server does not cost the rest."""
        if len(self._silences) < _SILENCES:
            return ""
        if len(set(self._silences)) > 1:
            return f"the server gave no answer to the last {_SILENCES} questions: {self._silence}"
        if name in self._silences:
            return f"the server gave no answer to {_SILENCES} parts of this query: {self._silence}"
        return ""

    def _not_asked(self, name: str, role: str, request: Mapping[str, Json], why: str) -> Capture:
        error = f"not asked: {why}"
        return self._client.fail(query=name, role=role, request=request, error=error)


def spans(incident: Incident) -> tuple[tuple[int, int], ...]:
    """What to ask, in ms: from before the window to its end, and so for the baseline.

    One span holds both, and what lies between, unless that is longer than either of them.
    """
    lead = timedelta(seconds=LEAD_S)
    first, second = sorted((incident.window, incident.baseline))
    both = (first.start - lead, max(first.end, second.end))
    hole_s = (second.start - first.end).total_seconds()
    if hole_s > max(first.seconds, second.seconds, LEAD_S):
        pairs = [(first.start - lead, first.end), (second.start - lead, second.end)]
    else:
        pairs = [both]
    return tuple((promql.floor_ms(start), promql.ceil_ms(end)) for start, end in pairs)


def _too_much(capture: Capture) -> bool:
    """The server could not answer so much at once; it may answer half of it."""
    said = capture.error.lower()
    if capture.usable or re.search("^not asked|parse error|no connection", said):
        return False
    return capture.status in (None, 400, 422, 503, 504) and bool(_TOO_MUCH.search(said))


def _silent(capture: Capture) -> bool:
    """There is nobody, or nobody who lets us in."""
    if capture.status is None:
        return bool(capture.error) and "is longer than" not in capture.error
    return capture.status in (401, 403, 407, 429, 502, 503, 504) and not _too_much(capture)


def _lookback_s(body: bytes) -> float:
    data = promjson.read_reply(body).data
    text = data.get("query.lookback-delta") if isinstance(data, dict) else None
    return (promql.duration_s(text) if isinstance(text, str) else None) or _LOOKBACK_S


# --- for the analyst -----------------------------------------------------------------------


def prometheus_client(url: str, session: requests.Session) -> PandasClient:
    """prometheus-pandas on a session of ours: live (`open_session`) or sealed (`replay_session`).

    On a sealed one, `questions` lists what can be asked.
    """
    return PandasClient(url, http=session)


def questions(captures: Iterable[Capture]) -> pd.DataFrame:
    """What a sealed case can answer: one row for each call of prometheus-pandas.

    Shape:  query, call ("query" or "query_range"), then that call's arguments as columns.
    """
    columns = ("query", "call", "expression", "time", "start", "end", "step")
    records = []
    for capture in captures:
        asked = {**capture.request.get("params", {}), **capture.request.get("form", {})}
        if capture.role == ROLE and capture.usable and "query" in asked:
            call = str(capture.request["url"]).rpartition("/")[2]
            times = {name: float(asked[name]) for name in columns[3:] if name in asked}
            records.append(
                {"query": capture.query, "call": call, "expression": asked["query"], **times}
            )
    return pd.DataFrame.from_records(records, columns=list(columns))
