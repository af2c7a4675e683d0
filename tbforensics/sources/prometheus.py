"""A Prometheus server, or what speaks its API: raw samples, rules, alerts and targets.

A selector is asked for its raw samples (`m[2h]` at one moment), never through `query_range`, which
aligns times to a step and fills gaps of up to five minutes: that is arithmetic, not evidence. A
query with `params={"derived": True}` is an expression and is asked on a grid of steps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from tbforensics.alerts import rules as alertrules
from tbforensics.asking.server import ABOUT_ITSELF, PROBE, ROLE, Server
from tbforensics.asking.slices import Question, spans
from tbforensics.asking.wording import READ
from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Incident, Query
from tbforensics.promql import text as promql
from tbforensics.reading import givenfiles, promjson, promrows, remoteread
from tbforensics.wire import Client, Manners

RULE_FILE = "rule_file"
RULE_SERIES = "rule_series"  # what alert rules about the kind look at, beside the kind's queries
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


@dataclass(frozen=True)
class Options:
    """match: label matchers put into every selector, such as `job="the_block"`; not into ALERTS.
    slice_hours: how much is asked at once; less for a server that is short of memory. By remote
                 read, which needs none, up to twelve times as much of what turns out to be little.
    step_s: the step of derived queries; 0 for the incident's own.
    rule_files: alert rules to replay beside those that the server has loaded: files, folders or
                globs of rule files as Prometheus reads them.
    avoid: `remote_read`, to have samples asked as JSON even where the server offers both and gives
           the same by either; it costs the server far more.
    """

    match: str = ""
    slice_hours: float = 2.0
    step_s: float = 0.0
    rule_files: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = []
        if self.match and not promql.is_matchers(self.match):
            problems.append(f'match is not a list of label matchers like job="x": {self.match}')
        if not 1 / 60 <= self.slice_hours <= 24 * 7:
            problems.append(f"slice_hours is not between a minute and a week: {self.slice_hours}")
        if not (self.step_s == 0 or 0.001 <= self.step_s <= 86_400):
            problems.append(f"step_s is not between 1 ms and a day: {self.step_s}")
        if unknown := {*self.avoid} - {READ}:
            problems.append(f"avoid knows only {READ}: {', '.join(sorted(unknown))}")
        if problems:
            raise ParametersError("a Prometheus source cannot be asked so:", problems=problems)


class PrometheusSource:
    about = "Prometheus, or what speaks its API: raw samples, rules, alerts, targets"
    options = Options
    needs_url = True
    always = ALWAYS
    # Slices are small, so a server that needs a minute for one is in trouble: ask it once more.
    manners = Manners(retries=3, requests_per_s=200.0)

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        yield from asked(queries, incident, options, client)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        if capture.role == PROBE or capture.error == remoteread.HISTOGRAMS:
            return  # another capture holds the same
        if READ in capture.request:
            without = capture.request[READ]["without"]
            yield from remoteread.tables(capture, body, without=without)
            return
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
    status: Sequence[str] = ABOUT_ITSELF,
) -> Iterator[Capture]:
    """Everything that an incident needs of one server.

    status: what to ask the server about itself; a server that only lends its eyes to samples of
            another one knows nothing of that one's rules, alerts and targets.
    """
    server, said = Server(client), []
    for capture in itertools.chain(server.status(status), _rule_files(client, options)):
        said.append(capture)
        yield capture
    asked_for = spans(incident)
    if READ not in options.avoid:
        up = promql.with_matchers("up", options.match) if options.match else "up"
        yield from server.try_remote_read(up, asked_for)
    mine = [query for query in (*queries, *ALWAYS) if query.source == "prometheus"]
    once: dict[str, Query] = {}
    for query in mine:
        once.setdefault(query.name, query)  # a kind may name what is always asked
    more = _rule_series(client, said, once.values(), options)
    step_ms = max(1, round((options.step_s or incident.step_s) * 1000))
    questions = [_question(query, options.match, step_ms) for query in (*once.values(), *more)]
    yield from server.samples(questions, asked_for, round(options.slice_hours * 3_600_000))


def _question(query: Query, match: str, step_ms: int) -> Question:
    text = query.text
    if match and not query.params.get("everywhere"):
        text = promql.with_matchers(text, match)
    return Question(query.name, text, step_ms if query.params.get("derived") else 0)
