"""One Prometheus being asked: about itself, and for the slices of a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial

from tbforensics.asking import wording
from tbforensics.asking.inflight import in_order
from tbforensics.asking.pace import AT_ONCE, Pace, silent, too_much
from tbforensics.asking.remote import Differs, Remote, added, matchers_of
from tbforensics.asking.slices import Portion, Question, Slice, plan
from tbforensics.asking.wording import Wording
from tbforensics.model import Capture, Json, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson, remoteread
from tbforensics.wire import Client

ROLE = "samples"
PROBE = "probe"  # tells how a server can be asked, and is no evidence of anything else
PROVISIONAL = "provisional"
_LOOKBACK_S, _LATE_S = 300.0, 60.0  # a sample may still arrive for so long
_FIRST = -1  # before every place of a plan
_PROBED_MS = 240_000  # no slice is as long, so no question is put twice

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
        self._remote: Remote | None = None

    # --- about itself -----------------------------------------------------------------------

    def status(self, roles: Sequence[str]) -> Iterator[Capture]:
        """What the server is and what it was set to do. A part it does not know is no failure."""
        for role, path, params in (asked for asked in _STATUS if asked[0] in roles):
            capture = self._ask(_FIRST, role, role, wording.of_api(path, params))
            if role == "flags" and capture.usable:
                self._heed(_flags(self._client.body(capture)))
            yield capture

    def _heed(self, flags: Mapping[str, str]) -> None:
        """What the server says that it bears."""
        self._lookback_s = promql.duration_s(flags.get("query.lookback-delta", "")) or _LOOKBACK_S
        for name in ("query.max-concurrency", "storage.remote.read-concurrent-limit"):
            limit = flags.get(name, "")
            if limit.isdecimal() and int(limit):  # 0 is none
                self._pace.at_most(int(limit))

    def try_remote_read(self, seen: str, spans: Sequence[tuple[int, int]]) -> Iterator[Capture]:
        """Find out whether it can be used, where the answers to a selector tell.

        What is found out is on record; a server without it is asked as JSON, and that is no
        failure.
        """
        matchers = matchers_of(seen) or ()
        for start_ms, end_ms in _glances(spans):
            part = Slice(_FIRST, Question(wording.READ, seen), start_ms, end_ms)
            read = self._put(part, PROBE, wording.of_read(part, matchers, {}))
            yield read
            if not read.usable:
                return
            if not read.bytes:
                continue
            query = self._put(part, PROBE, wording.of_query(part))
            yield query
            if not query.usable:
                return
            bodies = self._client.body(read), self._client.body(query)
            try:
                without = added(read, bodies[0], query, bodies[1])
            except Differs as why:
                yield self._not_used(str(why))
                return
            if without is not None:
                yield from self._use(Remote(without), spans)
                return
        yield self._not_used(f"there is no {seen} to compare its answers by")

    def _use(self, remote: Remote, spans: Sequence[tuple[int, int]]) -> Iterator[Capture]:
        """Use it, if no series has a label of its own like those that the server adds."""
        times = {"start": spans[0][0], "end": spans[-1][1]}
        params = {name: promql.seconds_text(ms) for name, ms in times.items()}
        for name in remote.without:
            asks = wording.of_api(f"api/v1/label/{name}/values", params)
            capture = self._ask(_FIRST, wording.READ, PROBE, asks)
            yield capture
            values = (
                promjson.read_reply(self._client.body(capture)).data if capture.usable else None
            )
            if values != []:
                why = f"series have a label {name} of their own" if values else capture.error
                yield self._not_used(why or f"nobody says who has a label {name}")
                return
        self._remote = remote

    def _not_used(self, why: str) -> Capture:
        error = f"not used: {why}"
        return self._client.fail(query=wording.READ, role=PROBE, request={}, error=error)

    # --- samples ----------------------------------------------------------------------------

    def samples(
        self, questions: Sequence[Question], spans: Sequence[tuple[int, int]], slice_ms: int
    ) -> Iterator[Capture]:
        """Each question for each span, in slices, a few of them at once."""
        tasks = (
            partial(self.slice, whole, portion)
            for whole, portion in plan(questions, spans, slice_ms, self._client.stopped)
        )
        try:
            for captures in in_order(tasks, AT_ONCE, self._client.stopped):
                yield from captures
        except BaseException:
            self._client.stop()  # whoever still asks has nobody to tell
            raise

    def slice(self, whole: Slice, portion: Portion) -> list[Capture]:
        """A slice at once, or what is too much for the server in halves."""
        try:
            return list(self._parts(whole, portion))
        finally:
            portion.tell()

    def _parts(self, whole: Slice, portion: Portion) -> Iterator[Capture]:
        at = whole.start_ms
        while at < whole.end_ms:
            if portion.over:
                text, since = whole.question.text, promql.seconds_text(at)
                rest = {"query": text, "from": since, "to": promql.seconds_text(whole.end_ms)}
                why = "even small parts are refused"
                yield self._not_asked(whole.question.name, ROLE, rest, why)
                return
            length_ms = portion.length_ms
            edge_ms = promql.next_edge(at, whole.end_ms, length_ms)
            part = replace(whole, start_ms=at, end_ms=edge_ms)
            if part.question.step_ms and part.steps is None:
                at = edge_ms
                continue
            for answer in self._part(part, portion):
                yield answer
            streamed = wording.READ in answer.request
            if not portion.heard(answer, length_ms, edge_ms - at, streamed=streamed):
                at = edge_ms

    def _part(self, part: Slice, portion: Portion) -> Iterator[Capture]:
        """One answer; before it, another way's that was none."""
        remote = None if portion.as_json else self._remote
        if remote and (matchers := remote.matchers(part.question)):
            asks = wording.of_read(part, matchers, remote.without)
            capture = self._put(part, ROLE, asks, portion.notes)
            yield capture
            if capture.error != remoteread.HISTOGRAMS and not _refuses_the_way(capture):
                return
            portion.as_json = True
        yield self._put(part, ROLE, wording.of_query(part), portion.notes)

    def _put(self, part: Slice, role: str, asks: Wording, notes: tuple[str, ...] = ()) -> Capture:
        window = promql.window_of(part.start_ms, part.end_ms)
        settled = timedelta(seconds=self._lookback_s + _LATE_S)
        if window.end > self._client.now() - settled:
            notes = (*notes, PROVISIONAL)
        return self._ask(part.place, part.question.name, role, asks, window, notes)

    def _ask(
        self,
        place: int,
        name: str,
        role: str,
        asks: Wording,
        window: Window | None = None,
        notes: tuple[str, ...] = (),
    ) -> Capture:
        with self._pace.turn(place):
            if why := self._pace.left_alone(name):
                return self._not_asked(name, role, asks.shown, why)
            capture = self._client.ask(
                query=name, role=role, window=window, notes=notes, **asks.asks
            )
            self._pace.heard(capture)
        return capture

    def _not_asked(self, name: str, role: str, request: Mapping[str, Json], why: str) -> Capture:
        error = f"not asked: {why}"
        return self._client.fail(query=name, role=role, request=request, error=error)


def _glances(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """A few minutes at the start of all that is asked, at its end, and in between."""
    start_ms, end_ms = spans[0][0], spans[-1][1]
    length_ms = min(_PROBED_MS, end_ms - start_ms)
    for share in (0.0, 1.0, 0.5, 0.25, 0.75):
        at = start_ms + round(share * (end_ms - start_ms - length_ms))
        yield at, at + length_ms


def _refuses_the_way(capture: Capture) -> bool:
    """It said so before it answered, so nothing of the slice was read."""
    answered = capture.status in (None, 200)
    return not (capture.usable or answered or too_much(capture) or silent(capture))


def _flags(body: bytes) -> dict[str, str]:
    data = promjson.read_reply(body).data
    return {k: v for k, v in data.items() if isinstance(v, str)} if isinstance(data, dict) else {}
