"""A Prometheus server, or what speaks its API: raw samples, rules, alerts and targets.

A selector is asked for its raw samples (`m[2h]` at one moment), never through `query_range`, which
aligns times to a step and fills gaps of up to five minutes: that is arithmetic, not evidence. A
query with `params={"derived": True}` is an expression and is asked on a grid of steps.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
import requests
from prometheus_pandas.query import Prometheus as PandasClient

from tbforensics import promjson
from tbforensics.errors import ParametersError
from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows, series_id, series_row
from tbforensics.model import Capture, Incident, Json, Query, Window
from tbforensics.promjson import Broken, Item
from tbforensics.wire import Client, Manners

ROLE = "samples"
LEAD_S = 300.0  # asked before the window: a counter's increase needs the sample before it
PROVISIONAL = "provisional"
_LOOKBACK_S, _LATE_S = 300.0, 60.0  # a sample may still arrive for so long
_MOST_POINTS = 11_000  # per series, for `query_range`; the server refuses more
_LONGEST_URL_TEXT = 1_500
_SMALLEST_PART = 64  # of a slice, before its refusal is taken as final
_SILENCES = 3

# What tells that the server cannot answer so much at once, but might answer half of it.
_TOO_MUCH = re.compile(r"too many|exceed|limit|more than|longer than|time ?out|timed out|deadline")
_TOO_MUCH_STATUS = (None, 200, 400, 413, 422, 503, 504)
_TIME_ALLOWED = "within the time allowed"

_NOT_RESTRICTED = {"everywhere": True}  # an alert's labels are those of its expression
ALWAYS = (
    Query("up", "prometheus", "up", why="which targets were seen, and when not"),
    Query("ALERTS", "prometheus", "ALERTS", params=_NOT_RESTRICTED, why="which alerts fired"),
    Query(
        "ALERTS_FOR_STATE",
        "prometheus",
        "ALERTS_FOR_STATE",
        unit="s",
        params=_NOT_RESTRICTED,
        why="since when each alert was pending",
    ),
    Query(
        "process_start_time_seconds",
        "prometheus",
        "process_start_time_seconds",
        unit="s",
        why="tells a restart from a counter that fell",
    ),
    Query(
        "scrape_duration_seconds",
        "prometheus",
        "scrape_duration_seconds",
        unit="s",
        why="scrapes near their timeout are about to fail",
    ),
    Query(
        "scrape_samples_scraped",
        "prometheus",
        "scrape_samples_scraped",
        unit="samples",
        why="a target that answers with less than before",
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

_STRING = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`'
_MATCHER = rf"\s*[a-zA-Z_]\w*\s*(?:=~|!~|!=|=)\s*(?:{_STRING})\s*"
_MATCHERS = re.compile(rf"{_MATCHER}(?:,{_MATCHER})*,?\s*")


@dataclass(frozen=True)
class Options:
    """match: label matchers put into every selector, such as `job="the_block"`; not into ALERTS.
    slice_hours: how much is asked at once; less for a server that is short of memory.
    step_s: the step of derived queries; 0 for the incident's own.
    """

    match: str = ""
    slice_hours: float = 2.0
    step_s: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if self.match and not _MATCHERS.fullmatch(self.match):
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
        ask = _Asking(client, options, options.step_s or incident.step_s)
        yield from ask.status()
        mine = [query for query in queries if query.source == "prometheus"]
        named = {query.name for query in mine}
        for query in (*mine, *(query for query in ALWAYS if query.name not in named)):
            for span in spans(incident):
                yield from ask.samples(query, *span)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        """As every source's. Of two samples of one series and moment the first one stays."""
        reply = promjson.read_reply(body.read())
        if capture.role != ROLE or reply.kind == "string":
            yield from _snapshot(capture, reply)
        elif reply.error:
            if capture.status == 200:
                yield _quarantine(capture, [Broken(0, reply.error, b"")])
        else:
            yield from _rows(capture, reply)


SOURCE = PrometheusSource()


# --- asking --------------------------------------------------------------------------------


class _Asking:
    """One server being asked. It is left alone once it has stopped answering."""

    def __init__(self, client: Client, options: Options, step_s: float) -> None:
        self._client, self._match = client, options.match
        self._step_ms = max(1, round(step_s * 1000))
        self._slice_ms = round(options.slice_hours * 3_600_000)
        self._lookback_s = _LOOKBACK_S
        self._silences = 0

    def status(self) -> Iterator[Capture]:
        """What the server is and what it was set to do. A part it does not know is no failure."""
        for role, path, params in _STATUS:
            capture = self._ask(role, role, path, params)
            if role == "flags" and capture.usable:
                self._lookback_s = _lookback_s(self._client.body(capture))
            yield capture

    def samples(self, query: Query, start_ms: int, end_ms: int) -> Iterator[Capture]:
        """The span in slices; a slice that is too much for the server is asked in halves."""
        text = query.text
        if self._match and not query.params.get("everywhere"):
            text = with_matchers(text, self._match)
        derived = bool(query.params.get("derived"))
        length_ms = self._slice_ms
        if derived:
            points = max(1, min(_MOST_POINTS, length_ms // self._step_ms))
            length_ms = points * self._step_ms
        unit_ms = self._step_ms if derived else 1
        smallest_ms = max(unit_ms, length_ms // _SMALLEST_PART)
        at, notes = start_ms, tuple[str, ...]()
        while at < end_ms:
            edge_ms = next_edge(at, end_ms, length_ms)
            capture = self._slice(query, text, at, edge_ms, derived, notes)
            if capture is None:
                at = edge_ms
                continue
            yield capture
            half_ms = length_ms // 2 // unit_ms * unit_ms
            if _too_much(capture) and half_ms >= smallest_ms:
                length_ms = half_ms
                notes = (f"a part of what was refused: {capture.error}"[:200],)
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
                    "start": _seconds(first),
                    "end": _seconds(last),
                    "step": _seconds(self._step_ms),
                },
            )
        else:
            # A range holds both its ends in Prometheus 2 and only the later one in Prometheus 3.
            # This one holds [start, end) in either, plus a millisecond that `parse` drops.
            path, params = (
                "api/v1/query",
                {
                    "query": f"{text}[{_duration(end_ms - start_ms)}]",
                    "time": _seconds(end_ms - 1),
                },
            )
        return self._ask(query.name, ROLE, path, params, _window(start_ms, end_ms), notes)

    def _ask(
        self,
        name: str,
        role: str,
        path: str,
        params: Mapping[str, Json],
        window: Window | None = None,
        notes: tuple[str, ...] = (),
    ) -> Capture:
        if self._silences >= _SILENCES:
            request = {"path": path, "params": dict(params)}
            error = f"not asked: the server gave no answer to the last {_SILENCES} questions"
            return self._client.fail(query=name, role=role, request=request, error=error)
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
        mute = capture.status in (None, 401, 403, 407, 429, 502, 503, 504)
        if mute and not (capture.status and _too_much(capture)):
            self._silences += 1
        else:
            self._silences = 0
        return capture


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
    return tuple((_ms(start), -_ms(end, -1)) for start, end in pairs)


def next_edge(at_ms: int, end_ms: int, length_ms: int) -> int:
    """Where the slice that starts at `at_ms` ends: on the absolute grid, or at the end."""
    edge_ms = min((at_ms // length_ms + 1) * length_ms, end_ms)
    assert at_ms < edge_ms <= end_ms  # so slices leave no gap, and none is seen twice
    return edge_ms


def _too_much(capture: Capture) -> bool:
    if capture.status == 200 and capture.sha256:
        return False
    said = capture.error.lower()
    hung = _TIME_ALLOWED in said and "connection" not in said
    return capture.status in _TOO_MUCH_STATUS and bool(hung or _TOO_MUCH.search(said))


def _lookback_s(body: bytes) -> float:
    data = promjson.read_reply(body).data
    text = data.get("query.lookback-delta") if isinstance(data, dict) else None
    parts = re.findall(r"(\d+)(ms|[smhdwy])", text) if isinstance(text, str) else []
    unit_s = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "y": 31536000}
    return sum(float(number) * unit_s[unit] for number, unit in parts) or _LOOKBACK_S


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _ms(moment: datetime, sign: int = 1) -> int:
    """Whole ms since the epoch, rounded down; of a negated moment with `sign` -1."""
    return sign * ((moment - _EPOCH) // timedelta(microseconds=1)) // 1000


def _window(start_ms: int, end_ms: int) -> Window:
    return Window(
        _EPOCH + timedelta(milliseconds=start_ms), _EPOCH + timedelta(milliseconds=end_ms)
    )


def _seconds(ms: int) -> str:
    """Exact decimal seconds; a float would not be."""
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def _duration(ms: int) -> str:
    for unit, length_ms in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms % length_ms == 0:
            return f"{ms // length_ms}{unit}"
    return f"{ms}ms"


# --- PromQL --------------------------------------------------------------------------------

_TOKEN = re.compile(
    rf"""(?P<skip>{_STRING}|\#[^\n]*|\[[^\]]*\]
        |(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[a-z0-9]*
        |\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)
        |\b(?:and|or|unless|bool|offset|atan2|by|without|group_left|group_right|inf|nan)\b
         (?!\s*\{{)
        |[a-zA-Z_:][\w:]*(?=\s*\(|\s+(?:by|without)\b))
      |(?P<name>[a-zA-Z_:][\w:]*)?\s*(?P<open>\{{)(?P<inside>(?:{_STRING}|[^"'`}}])*)\}}
      |(?P<bare>[a-zA-Z_:][\w:]*)""",
    re.VERBOSE | re.IGNORECASE,
)


def with_matchers(text: str, match: str) -> str:
    """An expression with label matchers put into every one of its selectors."""

    def restricted(token: re.Match[str]) -> str:
        if token["skip"]:
            return token[0]
        if token["bare"]:
            return f"{token['bare']}{{{match}}}"
        inside = token["inside"].strip().removesuffix(",").rstrip()
        return f"{token['name'] or ''}{{{inside}{',' if inside else ''}{match}}}"

    return _TOKEN.sub(restricted, text)


# --- reading -------------------------------------------------------------------------------


def _rows(capture: Capture, reply: promjson.Reply) -> Iterator[tuple[str, pa.Table]]:
    identified = sorted(
        ((series_id(capture.source, capture.query, item.labels), item) for item in reply.items),
        key=lambda pair: pair[0],
    )
    items = [item for _, item in identified]
    sids = np.array([sid for sid, _ in identified], np.int64)
    places, times, values, broken = promjson.numbers(items)
    inside = _inside(capture.window, times)
    if not inside.all():
        places, times, values = places[inside], times[inside], values[inside]
    sid = sids[places]
    same = sid[1:] == sid[:-1]
    if (same & (times[1:] <= times[:-1])).any():
        order = np.lexsort((times, sid))  # stable, so the first of a moment stays first
        sid, times, values = sid[order], times[order], values[order]
        again = np.r_[False, (sid[1:] == sid[:-1]) & (times[1:] == times[:-1])]
        bits = values.view(np.int64)
        differ = again & np.r_[False, bits[1:] != bits[:-1]]
        if differ.any():
            reason = f"{differ.sum()} samples give a second value for a moment; the first stays"
            broken.append(Broken(-1, reason, b""))
        sid, times, values = sid[~again], times[~again], values[~again]
    histograms = list(_histograms(capture, identified, broken))
    seen = {*np.unique(sid).tolist(), *(row["sid"] for row in histograms)}
    named = {s: item for s, item in identified if s in seen}
    yield (
        "series",
        rows(
            "series", [series_row(capture.source, capture.query, i.labels) for i in named.values()]
        ),
    )
    columns = [pa.array(sid), pa.array(times).cast(SCHEMAS["samples"].field("ts").type)]
    table = pa.Table.from_arrays([*columns, pa.array(values)], schema=SCHEMAS["samples"])
    yield "samples", table
    if histograms:
        yield "histograms", rows("histograms", histograms)
    if reply.broken or broken:
        yield _quarantine(capture, [*reply.broken, *broken])


def _inside(window: Window | None, times: promjson.Ints) -> np.ndarray[Any, np.dtype[np.bool_]]:
    if window is None:
        return np.ones(len(times), bool)
    return (times >= _ms(window.start)) & (times < -_ms(window.end, -1))


def _histograms(
    capture: Capture, identified: Sequence[tuple[int, Item]], broken: list[Broken]
) -> Iterator[dict[str, Json]]:
    """Native histograms, ordered as samples are."""
    found: dict[tuple[int, int], dict[str, Json]] = {}
    for sid, item in identified:
        for entry in item.histograms:
            try:
                seconds, histogram = entry
                ts = round(float(seconds) * 1000)
                moment = _EPOCH + timedelta(milliseconds=ts)
                row = {
                    "sid": sid,
                    "ts": moment,
                    "count": float(histogram["count"]),
                    "sum": float(histogram["sum"]),
                    "buckets": orjson.dumps(histogram.get("buckets", [])).decode(),
                }
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                piece = (promjson.compact(entry) or b"")[:QUARANTINED_BYTES]
                broken.append(Broken(-1, "not a native histogram", piece))
                continue
            if capture.window is None or moment in capture.window:
                found.setdefault((sid, ts), row)
    for key in sorted(found):
        yield found[key]


def _snapshot(capture: Capture, reply: promjson.Reply) -> Iterator[tuple[str, pa.Table]]:
    error = capture.error or reply.error
    state = "ok" if not error else "unsupported" if capture.status in (404, 405, 501) else "error"
    value = promjson.compact({"message": error} if error else reply.data)
    if value is None or reply.broken:
        yield _quarantine(capture, list(reply.broken) or [Broken(0, "nested too deeply", b"")])
    if value is not None:
        row = {
            "source": capture.source,
            "query": capture.query,
            "role": capture.role,
            "ts": capture.asked_at,
            "generation": "",
            "state": state,
            "value": value.decode(),
        }
        yield "snapshots", rows("snapshots", [row])


def _quarantine(capture: Capture, broken: Iterable[Broken]) -> tuple[str, pa.Table]:
    records = [
        {
            "source": capture.source,
            "query": capture.query,
            "file": f"raw/{capture.sha256}.zst" if capture.sha256 else "",
            "offset": piece.offset,
            "reason": piece.reason,
            "bytes": piece.piece[:QUARANTINED_BYTES],
        }
        for piece in broken
    ]
    return "quarantine", rows("quarantine", records)


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
