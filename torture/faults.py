"""The fault table: what breaks around a collection, and what the kit must make of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torture import proxy as net
from torture.bench import Bench, Home, Ran
from torture.proxy import Plan
from torture.table import Counts, Row

WHOLE = "quic_handshake_fail_total"  # the selector that a fault hits, where it does not hit all


def no_traceback(ran: Ran) -> None:
    assert "Traceback" not in ran.said, ran.said


# --- a server that misbehaves ------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A fault of the server: the run ends sealed, tells it, and the next run asks nothing.

    code: exit code of both runs. says: what the output must match. error: what some capture of
    the source must match. most: how many questions may be asked at most, 0 for any number.
    """

    name: str
    how: str
    plan: Plan
    error: str
    code: int = 3
    says: str = ""
    most: int = 0
    quick: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def row(self) -> Row:
        expected = f"exit {self.code}, sealed, on record as /{self.error}/, again: asks nothing"
        return Row(self.name, self.how, expected, self.act, self.quick)

    def act(self, bench: Bench, counts: Counts) -> str:
        with bench.home(self.plan, **self.changes) as home:
            began = time.monotonic()
            ran = bench.collect(home)
            took_s, asked = time.monotonic() - began, len(home.prometheus.asked)
            no_traceback(ran)
            assert ran.code == self.code, f"exit {ran.code}: {ran.said}"
            told = [*home.errors(), *_notes(home)]
            assert any(re.search(self.error, text) for text in told), f"on record: {set(told)}"
            assert re.search(self.says or self.error if ran.code else "", ran.said), ran.said
            assert not self.most or asked <= self.most, f"{asked} questions"
            counts.inputs += asked
            bench.holds(home, counts)
            again = _again(bench, home, self.code)
        return f"exit {ran.code} after {took_s:.1f} s and {asked} questions, holds; {again}"


def _notes(home: Home) -> list[str]:
    return [note for capture in home.manifest()["captures"] for note in capture["notes"]]


def _again(bench: Bench, home: Home, code: int) -> str:
    """A second run opens what is sealed."""
    before = home.asked()
    again = bench.collect(home)
    assert again.code == code, f"again: exit {again.code}: {again.said}"
    assert home.asked() == before, f"again: {home.asked() - before} questions"
    bench.holds(home)
    return f"again: exit {again.code}, 0 questions"


SERVED = (
    Served(
        "hangs", "takes every question, answers none", net.always(net.hang(30)),
        "no answer within the time allowed", most=8,
    ),
    Served(
        "hangs once", "one question of many", net.on(WHOLE, net.hang(30)),
        "no answer within the time allowed",
    ),
    Served(
        "drips", "one byte a second, one question", net.on(WHOLE, net.drip(1)),
        "took longer than 4 s",
    ),
    Served(
        "resets midway", "RST after half of each body, one question", net.on(WHOLE, net.reset),
        "cut short or damaged",
    ),
    Served(
        "resets once", "RST midway the first time only", net.on(WHOLE, net.reset, times=1),
        "tried again: the reply was cut short", code=0,
    ),
    Served(
        "200 with HTML", "a login page for every question",
        net.always(net.says("<html>log in</html>", Content_Type="text/html")),
        "HTML in place of JSON", quick=True,
    ),
    Served(
        "truncated JSON", "the length fits what is sent", net.on(WHOLE, net.shortened),
        "not JSON, or cut short", quick=True,
    ),
    Served(
        "gzip damaged", "Content-Encoding: gzip, one byte wrong", net.on(WHOLE, net.gzip_damaged),
        "cut short or damaged",
    ),
    Served(
        "429, Retry-After: 1", "the first time each question is asked",
        lambda asked: net.says("slow down", 429, Retry_After="1") if asked.times == 1
        and WHOLE in asked.selector else None,
        "tried again after 429", code=0,
    ),
    Served(
        "429, no Retry-After", "always", net.always(net.says("slow down", 429)),
        "HTTP 429", most=8, quick=True,
    ),
    Served(
        "429, Retry-After: a year", "always: waits no longer than its own limit",
        net.always(net.says("slow down", 429, Retry_After="31536000")), "HTTP 429", most=8,
    ),
    Served(
        "429, Retry-After: nonsense", "always",
        net.always(net.says("slow down", 429, Retry_After="-1; x")), "429|Retry-After", most=8,
    ),
    Served(
        "503, Retry-After: 0", "a restart: the first time each question is asked",
        lambda asked: net.says("starting", 503, Retry_After="0") if asked.times == 1 else None,
        "tried again after 503", code=0,
    ),
    Served(
        "503, no Retry-After", "always", net.always(net.says("no", 503)), "HTTP 503", most=8,
    ),
    Served(
        "422", "execution error for one query",
        net.on(WHOLE, net.says(
            '{"status":"error","errorType":"execution","error":"found duplicate series"}', 422)),
        "HTTP 422 .*found duplicate series",
    ),
)  # fmt: skip


def rows() -> Iterable[Row]:
    yield from (served.row() for served in SERVED)
