"""What of a query is asked at once: spans, the slices of a span, and the parts of a slice."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from tbforensics.asking.pace import too_much
from tbforensics.model import Capture, Incident
from tbforensics.promql import text as promql

LEAD_S = 300.0  # asked before the window: a counter's increase needs the sample before it
MOST_POINTS = 11_000  # per series, for `query_range`; the server refuses more
_SMALLEST_PART = 64  # of a slice, before its refusal is taken as final
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
    """How much of one question is asked at once. Each refusal halves it, for all later slices.

    as_json: remote read does not answer it, or holds what is not read.
    over:    so many small parts were refused that the rest is not asked.
    """

    def __init__(self, length_ms: int, unit_ms: int = 1) -> None:
        self.length_ms = length_ms
        self.notes: tuple[str, ...] = ()
        self.as_json = False
        self._unit_ms, self._smallest_ms = unit_ms, max(unit_ms, length_ms // _SMALLEST_PART)
        self._refusals = 0
        self._lock = threading.Lock()

    @property
    def over(self) -> bool:
        return self._refusals >= _SMALL_REFUSALS

    def heard(self, capture: Capture, length_ms: int) -> bool:
        """Whether the same is to be asked in smaller parts. length_ms: as it was when asked."""
        with self._lock:
            if not too_much(capture):
                self._refusals = 0
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
    questions: Sequence[Question], spans: Sequence[tuple[int, int]], slice_ms: int
) -> Iterator[tuple[Slice, Portion]]:
    """Every slice to ask, question by question and in the order of time.

    The slices of one question's span share its portion.
    """
    place = 0
    for question in questions:
        for start_ms, end_ms in spans:
            portion, at = portion_of(question, slice_ms), start_ms
            length_ms = portion.length_ms
            while at < end_ms:
                edge_ms = promql.next_edge(at, end_ms, length_ms)
                yield Slice(place, question, at, edge_ms), portion
                place, at = place + 1, edge_ms


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
