"""A row is one thing that is tried; a table is rows with what came of each."""

from __future__ import annotations

import textwrap
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torture.bench import Bench

OK, NOT, UNTRIED = "ok", "NOT", "n/a"
_SHOWN = 1500  # characters of what a row got in place of what it should
_AT_ONCE = 3  # rows mostly wait: for a server that hangs, for a deadline


class NotTried(Exception):
    """What is missing here, or why there is nothing to try."""


@dataclass
class Counts:
    """What a row adds to the last lines of the tables."""

    kills: int = 0
    inputs: int = 0  # bad inputs given to a parser or a command
    replies: int = 0  # whole replies that a server sent
    lost: int = 0  # bytes of them that no case holds

    def add(self, other: Counts) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class Row:
    """One case.

    act: tries it and says in a few words what it got. It raises AssertionError with what it got
         instead, and `NotTried` when it cannot be tried here.
    quick: belongs to the subset that the test suite runs.
    """

    name: str
    how: str
    expected: str
    act: Callable[[Bench, Counts], str]
    quick: bool = False


@dataclass(frozen=True)
class Outcome:
    row: Row
    state: str
    got: str
    seconds: float
    counts: Counts = field(default_factory=Counts)


def tried(row: Row, bench: Bench) -> Outcome:
    """A row's outcome, whatever happens in it."""
    began, counts = time.monotonic(), Counts()
    try:
        state, got = OK, row.act(bench, counts)
        if counts.lost:
            state, got = NOT, f"{counts.lost} bytes of whole replies are in no case; {got}"
    except NotTried as why:
        state, got = UNTRIED, str(why)
    except AssertionError as wrong:
        state, got = NOT, str(wrong) or traceback.format_exc(limit=-2)
    except Exception:  # a table with one broken row is still a table
        state, got = NOT, traceback.format_exc(limit=-3)
    return Outcome(row, state, got, time.monotonic() - began, counts)


def outcomes(rows: Iterable[Row], bench: Bench) -> Iterator[Outcome]:
    """Every row's outcome in the order of the table, some tried at once."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        yield from pool.map(lambda row: tried(row, bench), rows)


def lines(outcome: Outcome) -> str:
    """One outcome as it is printed."""
    row = outcome.row
    head = f"{outcome.state:4}{row.name}  ({row.how}; {outcome.seconds:.0f} s)"
    got = " ".join(outcome.got.split()) if outcome.state == OK else outcome.got.strip()[-_SHOWN:]
    return "\n".join([head, _indented("expected", row.expected), _indented("got", got)])


def _indented(word: str, text: str) -> str:
    start = f"      {word:9}"
    shown = [
        textwrap.wrap(line, 90, subsequent_indent="  ") or [""]
        for line in text.splitlines() or [""]
    ]
    return start + f"\n{'':15}".join(part for line in shown for part in line)
