"""What of a query is asked at once: spans, the slices of a span, and the parts of a slice."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tbforensics.asking.inflight import GLANCE_S
from tbforensics.asking.pace import too_much
from tbforensics.model import Capture, Incident
from tbforensics.promql import text as promql
from tbforensics.wire import Stopped

LEAD_S = 300.0  # asked before the window: a counter's increase needs the sample before it
MOST_POINTS = 11_000  # per series, for `query_range`; the server refuses more
_LONGEST = 12  # slices in one, where remote read finds little in each
_AFTER_NOTHING = 6  # the same where it found nothing, which does not tell how much will come
_ENOUGH_BYTES = 12 << 20  # of a reply by remote read; more at once gains nothing
_SMALLEST_PART = 64  # of a slice, before its refusal is taken as final
_EARLY = 2  # questions whose first slices come before the rest of another
_SMALL_REFUSALS = 3  # final ones in a row, before the rest of a query is not asked any more


@dataclass(frozen=True)
class Question:
    """One query as it is put to a server.

    text:    with the matchers that the source's options add.
    step_ms: of an expression that is evaluated on a grid; 0 for a selector's raw samples.
    """

    name: str
    text: str
    step_ms: int = 0


@dataclass(frozen=True)
class Slice:
    """A question for the ms `[start_ms, end_ms)`: a task, asked at once or in parts.

    place: in the plan of everything that one server is asked.
    """

    place: int
    question: Question
    start_ms: int
    end_ms: int

    @property
    def steps(self) -> tuple[int, int] | None:
        """The first and the last step that begin in it; None when none does."""
        step_ms = self.question.step_ms
        first, last = -(-self.start_ms // step_ms) * step_ms, (self.end_ms - 1) // step_ms * step_ms
        return (first, last) if first <= last else None


class Portion:
    """How much of one question is asked at once, of its span.

    Each refusal halves it for all later slices. A first answer by remote read, which costs the
    server no memory, lengthens it where it is short; one as JSON never does, for what has few
    series in calm may have very many in an incident.

    as_json: remote read does not answer it, or holds what is not read.
    over:    so many small parts were refused that the rest is not asked.
    """

    def __init__(self, length_ms: int, unit_ms: int = 1) -> None:
        self.length_ms = length_ms
        self.notes: tuple[str, ...] = ()
        self.as_json = False
        self._first_ms, self._unit_ms = length_ms, unit_ms
        self._smallest_ms = max(unit_ms, length_ms // _SMALLEST_PART)
        self._refusals = 0
        self._told_ms = 0
        self._told, self._lock = threading.Event(), threading.Lock()

    @property
    def over(self) -> bool:
        return self._refusals >= _SMALL_REFUSALS

    def tell(self) -> None:
        """The first slice is done."""
        with self._lock:
            self._told_ms = self._told_ms or self.length_ms
        self._told.set()

    def told(self, stopped: threading.Event) -> int:
        """The length that the first slice led to, once that is done. Errors: Stopped."""
        while not self._told.wait(GLANCE_S):
            if stopped.is_set():
                raise Stopped
        return self._told_ms

    def heard(self, capture: Capture, length_ms: int, asked_ms: int, *, streamed: bool) -> bool:
        """Whether the same is to be asked in smaller parts.

        length_ms: the portion when it was asked. asked_ms: what was asked of it, up to an edge.
        """
        with self._lock:
            if not too_much(capture):
                self._refusals = 0
                if not streamed:
                    self.length_ms = min(self.length_ms, self._first_ms)
                elif capture.usable and not self._told.is_set():
                    fits = _AFTER_NOTHING
                    if capture.bytes:
                        fits = _ENOUGH_BYTES * asked_ms // capture.bytes // self._first_ms
                    self.length_ms = self._first_ms * max(1, min(_LONGEST, fits))
                return False
            half_ms = length_ms // 2 // self._unit_ms * self._unit_ms
            if half_ms < self._smallest_ms:
                self._refusals += 1
                return False
            if half_ms < self.length_ms:  # another slice may have been refused meanwhile
                self.length_ms = half_ms
                self.notes = (f"a part of what was refused: {capture.error}"[:200],)
            return True


def portion_of(question: Question, slice_ms: int) -> Portion:
    if not question.step_ms:
        return Portion(slice_ms)
    points = max(1, min(MOST_POINTS, slice_ms // question.step_ms))
    return Portion(points * question.step_ms, question.step_ms)


def plan(
    questions: Sequence[Question],
    spans: Sequence[tuple[int, int]],
    slice_ms: int,
    stopped: threading.Event,
) -> Iterator[tuple[Slice, Portion]]:
    """Every slice to ask: question by question and in the order of time, but that the first slice
    of a question comes a little early, for it tells how the rest of it is to be cut.

    That depends on nothing else, so a collection that was interrupted asks the same again.
    """
    places, begun = itertools.count(), deque[tuple[Slice, Portion, int]]()

    def rest(first: Slice, portion: Portion, end_ms: int) -> Iterator[tuple[Slice, Portion]]:
        length_ms, at = portion.told(stopped), first.end_ms
        while at < end_ms:
            edge_ms = promql.next_edge(at, end_ms, length_ms)
            yield Slice(next(places), first.question, at, edge_ms), portion
            at = edge_ms

    for question, (start_ms, end_ms) in itertools.product(questions, spans):
        portion = portion_of(question, slice_ms)
        edge_ms = promql.next_edge(start_ms, end_ms, portion.length_ms)
        first = Slice(next(places), question, start_ms, edge_ms)
        yield first, portion
        begun.append((first, portion, end_ms))
        if len(begun) > _EARLY:
            yield from rest(*begun.popleft())
    while begun:
        yield from rest(*begun.popleft())


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
