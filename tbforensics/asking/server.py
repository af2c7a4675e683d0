"""One Prometheus being asked: about itself, and for the slices of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from tbforensics.asking.inflight import in_order
from tbforensics.asking.pace import AT_ONCE, Pace
from tbforensics.asking.slices import Portion, Question, Slice, plan
from tbforensics.model import Capture, Json, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson
from tbforensics.wire import Client

ROLE = "samples"
PROVISIONAL = "provisional"
_LOOKBACK_S, _LATE_S = 300.0, 60.0  # a sample may still arrive for so long
_LONGEST_URL_TEXT = 1_500
_FIRST = -1  # before every place of a plan

_STATUS: tuple[tuple[str, str, Mapping[str, Json]], ...] = (
    # role, path, parameters
    ("buildinfo", "api/v1/status/buildinfo", {}),
    ("flags", "api/v1/status/flags", {}),
    ("rules", "api/v1/rules", {}),
    ("alerts", "api/v1/alerts", {}),
    ("targets", "api/v1/targets", {"state": "active"}),
    ("metadata", "api/v1/metadata", {}),
)
ABOUT_ITSELF = tuple(role for role, _, _ in _STATUS)


class Server:
    """Asks what it is told to, at the pace that the server can bear."""

    def __init__(self, client: Client) -> None:
        self._client, self._pace = client, Pace()
        self._lookback_s = _LOOKBACK_S

    def status(self, roles: Sequence[str]) -> Iterator[Capture]:
        """What the server is and what it was set to do. A part it does not know is no failure."""
        for role, path, params in (asked for asked in _STATUS if asked[0] in roles):
            capture = self._ask(_FIRST, role, role, path, params)
            if role == "flags" and capture.usable:
                self._heed(_flags(self._client.body(capture)))
            yield capture

    def _heed(self, flags: Mapping[str, str]) -> None:
        """What the server says that it bears."""
        self._lookback_s = promql.duration_s(flags.get("query.lookback-delta", "")) or _LOOKBACK_S
        limit = flags.get("query.max-concurrency", "")
        if limit.isdecimal() and int(limit):  # 0 is none
            self._pace.at_most(int(limit))

    def samples(
        self, questions: Sequence[Question], spans: Sequence[tuple[int, int]], slice_ms: int
    ) -> Iterator[Capture]:
        """Each question for each span, in slices, a few of them at once."""
        tasks = (
            partial(self._parts, whole, portion)
            for whole, portion in plan(questions, spans, slice_ms)
        )
        try:
            for captures in in_order(tasks, AT_ONCE, self._client.stopped):
                yield from captures
        except BaseException:
            self._client.stop()  # whoever still asks has nobody to tell
            raise

    def _parts(self, whole: Slice, portion: Portion) -> list[Capture]:
        """A slice at once, or what is too much for the server in halves."""
        captures, at = [], whole.start_ms
        while at < whole.end_ms:
            if portion.over:
                text, since = whole.question.text, promql.seconds_text(at)
                rest = {"query": text, "from": since, "to": promql.seconds_text(whole.end_ms)}
                why = "even small parts are refused"
                captures.append(self._not_asked(whole.question.name, ROLE, rest, why))
                break
            length_ms = portion.length_ms
            edge_ms = promql.next_edge(at, whole.end_ms, length_ms)
            part = replace(whole, start_ms=at, end_ms=edge_ms)
            if part.question.step_ms and part.steps is None:
                at = edge_ms
                continue
            capture = self._part(part, portion.notes)
            captures.append(capture)
            if not portion.heard(capture, length_ms):
                at = edge_ms
        return captures

    def _part(self, part: Slice, notes: tuple[str, ...]) -> Capture:
        question = part.question
        if question.step_ms and part.steps:
            first, last = part.steps
            path, params = (
                "api/v1/query_range",
                {
                    "query": question.text,
                    "start": promql.seconds_text(first),
                    "end": promql.seconds_text(last),
                    "step": promql.seconds_text(question.step_ms),
                },
            )
        else:
            # A range holds both its ends in Prometheus 2 and only the later one in Prometheus 3.
            # This one holds [start, end) in either, plus a millisecond that `parse` drops.
            length = promql.duration_text(part.end_ms - part.start_ms)
            path, params = (
                "api/v1/query",
                {
                    "query": f"{question.text}[{length}]",
                    "time": promql.seconds_text(part.end_ms - 1),
                },
            )
        window = promql.window_of(part.start_ms, part.end_ms)
        return self._ask(part.place, question.name, ROLE, path, params, window, notes)

    def _ask(
        self,
        place: int,
        name: str,
        role: str,
        path: str,
        params: Mapping[str, Json],
        window: Window | None = None,
        notes: tuple[str, ...] = (),
    ) -> Capture:
        settled = timedelta(seconds=self._lookback_s + _LATE_S)
        if window and window.end > self._client.now() - settled:
            notes = (*notes, PROVISIONAL)
        long = len(str(params.get("query", ""))) > _LONGEST_URL_TEXT
        with self._pace.turn(place):
            if why := self._pace.left_alone(name):
                return self._not_asked(name, role, {"path": path, "params": dict(params)}, why)
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
            self._pace.heard(capture)
        return capture

    def _not_asked(self, name: str, role: str, request: Mapping[str, Json], why: str) -> Capture:
        error = f"not asked: {why}"
        return self._client.fail(query=name, role=role, request=request, error=error)


def _flags(body: bytes) -> dict[str, str]:
    data = promjson.read_reply(body).data
    return {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}
