"""How many questions a server has in hand at once, and whether it is asked at all."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tbforensics.model import Capture

AT_ONCE = 2  # more gained nothing on two cores, and each costs the server memory
_SILENCES = 3  # in a row, before a server is left alone

_TOO_MUCH = re.compile(
    r"too many|exceed|limit|more than|longer than|within the time|time[- ]?out|timed out|deadline"
)
_BUSY = re.compile(r"tried again after (?:429|503)")


class Pace:
    """One server's patience, as far as its answers tell it. Shared by all who ask it.

    It has a second question in hand only while all is well: not since it refused one or asked for
    patience, and not while the last one got no answer. So a server that falls silent has been
    asked no more than by one who waits for each answer.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once, self._in_hand = at_once, 0
        self._waiting: set[int] = set()
        self._turns = threading.Condition()
        self._silences: list[Capture] = []  # in a row, whatever was asked
        self._parts: dict[str, list[Capture]] = {}  # the same of each query by itself

    def at_most(self, questions: int) -> None:
        with self._turns:
            self._at_once = max(1, min(self._at_once, questions))

    @contextmanager
    def turn(self, place: int) -> Iterator[None]:
        """Wait until a question may be put; what comes first in the plan goes first."""
        with self._turns:
            self._waiting.add(place)
            try:
                self._turns.wait_for(lambda: self._may_ask(place))
            finally:
                self._waiting.remove(place)
                self._turns.notify_all()
            self._in_hand += 1
        try:
            yield
        finally:
            with self._turns:
                self._in_hand -= 1
                self._turns.notify_all()

    def _may_ask(self, place: int) -> bool:
        at_once = 1 if self._silences else self._at_once
        return self._in_hand < at_once and place == min(self._waiting)

    def heard(self, capture: Capture) -> None:
        """What became of a question."""
        with self._turns:
            if silent(capture):
                self._silences.append(capture)
                self._parts.setdefault(capture.query, []).append(capture)
            else:
                self._silences.clear()
                self._parts.pop(capture.query, None)
            if too_much(capture) or capture.status in (429, 503) or _asked_to_wait(capture):
                self._at_once = 1

    def left_alone(self, name: str) -> str:
        """Why this is not asked. One query that is too much for a server does not cost the rest."""
        with self._turns:
            last, parts = self._silences, self._parts.get(name, [])
            if len(last) >= _SILENCES and len({capture.query for capture in last}) > 1:
                what, why = f"the last {_SILENCES} questions", last[-1].error
            elif len(parts) >= _SILENCES:
                what, why = f"{_SILENCES} parts of this query", parts[-1].error
            else:
                return ""
            return f"the server gave no answer to {what}: {why}"


def too_much(capture: Capture) -> bool:
    """The server could not answer so much at once; it may answer half of it."""
    said = capture.error.lower()
    if capture.usable or re.search("^not asked|parse error|no connection", said):
        return False
    return capture.status in (None, 400, 422, 503, 504) and bool(_TOO_MUCH.search(said))


def silent(capture: Capture) -> bool:
    """There is nobody, or nobody who lets us in."""
    if capture.status is None:
        return bool(capture.error) and "is longer than" not in capture.error
    return capture.status in (401, 403, 407, 429, 502, 503, 504) and not too_much(capture)


def _asked_to_wait(capture: Capture) -> bool:
    return any(_BUSY.match(note) for note in capture.notes)
