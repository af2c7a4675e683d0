"""A few questions in flight: in the order of the plan, and never more than a server bears."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from http_fake import Fake, Handler, fake
from test_prometheus_faults import AS_JSON, EMPTY, HASTY, NOON, is_query, query_of

from tbforensics.archive import Archive
from tbforensics.asking.inflight import in_order
from tbforensics.asking.pace import Pace
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.sources.prometheus import SOURCE, Options
from tbforensics.wire import Client, Stopped

WINDOW = Window(NOON, NOON + timedelta(hours=6))
BASELINE = Window(NOON - timedelta(hours=6), NOON)
INCIDENT = Incident("i", "k", "t", WINDOW, BASELINE, 30.0, (), {}, (), "", "d")
QUERIES = [Query("m", "prometheus", "m_total"), Query("n", "prometheus", "n_total")]


class Busy:
    """Stands in for a Prometheus that needs a while, and counts how many wait at once."""

    def __init__(self, needs_s: float = 0.02) -> None:
        self.needs_s, self.now, self.most = needs_s, 0, 0
        self.counts: list[int] = []  # at once, at each question for samples
        self._lock = threading.Lock()

    def answer(self, to: Handler, before: int) -> None:
        if not is_query(to):
            self.about_itself(to)
            return
        with self._lock:
            self.now += 1
            self.counts.append(self.now)
            number = len(self.counts)
        time.sleep(self.needs_s)
        with self._lock:
            self.now -= 1
        self.samples(to, number)

    def about_itself(self, to: Handler) -> None:
        to.reply('{"status":"success","data":{}}')

    def samples(self, to: Handler, number: int) -> None:
        to.reply(EMPTY)


def client_of(server: Fake, folder: Path) -> Client:
    return Client(SourceConfig("main", "prometheus", server.url), Archive(folder), manners=HASTY)


def fetched(busy: Busy, folder: Path, options: Options = AS_JSON) -> list[Capture]:
    with fake(busy.answer) as server:
        return list(SOURCE.fetch(QUERIES, INCIDENT, options, client_of(server, folder)))


def settle() -> None:
    for thread in threading.enumerate():
        if thread.name == "asking":
            thread.join(5)


# --- the order -----------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_plan_whoever_is_done_first() -> None:
    done: list[int] = []

    def task(number: int) -> int:
        time.sleep(0.03 if number % 2 == 0 else 0)
        done.append(number)
        return number

    tasks = [partial(task, number) for number in range(8)]
    assert list(in_order(tasks, 2, threading.Event())) == list(range(8))
    assert done != list(range(8))


def test_threads_stay_only_a_little_ahead_of_whoever_takes_the_answers() -> None:
    begun: list[int] = []
    answers = in_order([partial(begun.append, n) for n in range(100)], 2, threading.Event())
    for _ in range(3):
        next(answers)
    time.sleep(0.05)
    assert len(begun) <= 3 + 2 * 2 + 1
    answers.close()
    settle()
    assert len(begun) <= 3 + 2 * 2 + 1


def test_the_first_failure_ends_it_though_what_comes_before_it_still_waits() -> None:
    over = threading.Event()

    def full() -> bool:
        raise EvidenceError("no room", next_step="make some")

    began = time.monotonic()
    with pytest.raises(EvidenceError):
        list(in_order([partial(over.wait, 10), full, *[partial(over.wait, 10)] * 5], 2, over))
    assert time.monotonic() - began < 5
    over.set()
    settle()


def test_a_stop_is_seen_though_no_answer_comes() -> None:
    over, stopped = threading.Event(), threading.Event()
    threading.Timer(0.05, stopped.set).start()
    with pytest.raises(Stopped):
        list(in_order([partial(over.wait, 10)] * 5, 2, stopped))
    over.set()
    settle()


def test_captures_come_query_by_query_but_that_the_first_of_each_comes_early(
    tmp_path: Path,
) -> None:
    class Uneven(Busy):
        def samples(self, to: Handler, number: int) -> None:
            time.sleep(0.03 * (number % 3))
            to.reply(EMPTY)

    captures = [c for c in fetched(Uneven(0), tmp_path) if c.role == "samples"]
    names = list(dict.fromkeys(capture.query for capture in captures))
    assert names[:3] == ["m", "n", "up"]
    assert [capture.query for capture in captures[:4]] == ["m", "n", "up", "m"]
    rest = [c for c in captures if c.window and c.window.start >= BASELINE.start]
    assert rest == sorted(rest, key=lambda c: (names.index(c.query), c.window))
    assert {c.query for c in rest} == {*names}


# --- how many at once ----------------------------------------------------------------------


def test_a_server_that_is_well_has_two_questions_in_hand(tmp_path: Path) -> None:
    busy = Busy()
    assert all(capture.usable for capture in fetched(busy, tmp_path))
    assert max(busy.counts) == 2


@pytest.mark.parametrize("limit", ["1", "20", "0", "nonsense"])
def test_never_more_than_its_flags_allow(limit: str, tmp_path: Path) -> None:
    class Limited(Busy):
        def about_itself(self, to: Handler) -> None:
            to.reply(f'{{"status":"success","data":{{"query.max-concurrency":"{limit}"}}}}')

    busy = Limited()
    fetched(busy, tmp_path)
    assert max(busy.counts) == (1 if limit == "1" else 2)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, "slow down"),
        (503, "starting"),
        (422, '{"status":"error","errorType":"execution","error":"too many samples"}'),
    ],
)
def test_one_at_a_time_once_it_refused_or_asked_for_patience(
    status: int, body: str, tmp_path: Path
) -> None:
    class Strained(Busy):
        def samples(self, to: Handler, number: int) -> None:
            to.reply(body, status, Retry_After="0") if number == 5 else to.reply(EMPTY)

    busy = Strained()
    captures = fetched(busy, tmp_path)
    settled = busy.counts[8:]  # one more may have been in hand when it spoke
    assert max(busy.counts[:5]) == 2
    assert {*settled} == {1}
    assert len([capture for capture in captures if not capture.usable]) == (status == 422)


@contextmanager
def silent_from(number: int) -> Iterator[tuple[Fake, Busy]]:
    """A server that answers so many questions for samples, and then none."""

    class Dying(Busy):
        def samples(self, to: Handler, n: int) -> None:
            to.reply(EMPTY) if n <= number else server.over.wait(5)

    dying = Dying()
    with fake(dying.answer) as server:
        yield server, dying


def test_a_server_that_falls_silent_is_asked_no_more_than_by_one_who_waits(tmp_path: Path) -> None:
    with silent_from(4) as (server, dying):
        captures = list(SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client_of(server, tmp_path)))
        # Three parts of one query, as one query may be too much for it, and then of another.
        assert len(dying.counts) <= 4 + 4 * (1 + HASTY.retries)
    lost = [capture for capture in captures if not capture.usable]
    silent = [c.error for c in lost if not c.error.startswith("not asked")]
    assert {*silent} == {"no answer within the time allowed"}
    assert 3 <= len(silent) <= 4
    assert {c.query for c in lost} >= {"m", "n", "up"}


def test_a_query_that_hangs_is_left_alone_though_others_are_answered_in_between() -> None:
    """With two questions in flight, which one ends first is anybody's guess."""
    pace = Pace()

    def heard(query: str, error: str = "") -> None:
        status, sha256 = (None, None) if error else (200, "0" * 64)
        pace.heard(Capture("main", query, "samples", {}, NOON, WINDOW, status, sha256, error=error))

    for _ in range(3):
        assert not pace.left_alone("slow")
        heard("slow", "no answer within the time allowed")
        heard("quick")
    why = "no answer to 3 parts of this query: no answer within the time allowed"
    assert why in pace.left_alone("slow")
    assert not pace.left_alone("quick") and not pace.left_alone("new")
    heard("slow")
    assert not pace.left_alone("slow"), "it has answered since"


def test_the_turn_goes_to_what_comes_first_in_the_plan() -> None:
    pace, order, ready = Pace(at_once=1), list[int](), threading.Event()

    def ask(place: int) -> None:
        with pace.turn(place):
            order.append(place)

    with pace.turn(0):
        threads = [threading.Thread(target=ask, args=(place,)) for place in (3, 1, 2)]
        for thread in threads:
            thread.start()
            ready.wait(0.02)
    for thread in threads:
        thread.join()
    assert order == [1, 2, 3]


# --- the end -------------------------------------------------------------------------------


def test_whoever_stops_listening_stops_the_asking(tmp_path: Path) -> None:
    busy = Busy()
    with fake(busy.answer) as server:
        fetching = SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client_of(server, tmp_path))
        for _ in range(8):
            next(fetching)
        fetching.close()
        settle()
        asked = len(busy.counts)
        time.sleep(0.1)
        assert len(busy.counts) == asked <= 8 + 4


def test_a_client_that_is_stopped_gives_up_what_is_coming_in(tmp_path: Path) -> None:
    def endless(to: Handler, before: int) -> None:
        to.send_response(200)
        to.send_header("Content-Length", "1000000")
        to.end_headers()
        while not server.over.wait(0.01):
            to.wfile.write(b"x")

    with fake(endless) as server:
        client = client_of(server, tmp_path)
        threading.Timer(0.1, client.stop).start()
        with pytest.raises(Stopped):
            client.ask(query="q", role="r")
        with pytest.raises(Stopped):
            client.ask(query="q", role="r")
        assert len(server.seen) == 1
    assert client.archive.recorded() == []
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_full_disk_ends_the_asking_though_another_question_hangs(tmp_path: Path) -> None:
    class Full(Archive):
        def keep(self, chunks):  # type: ignore[no-untyped-def]
            kept = super().keep(chunks)
            if (self.folder / "full").exists():
                raise EvidenceError("a reply cannot be kept", next_step="make room")
            return kept

    class Hanging(Busy):
        def samples(self, to: Handler, number: int) -> None:
            if number == 3:
                server.over.wait(5)
            if number == 4:
                (tmp_path / "full").touch()
            to.reply(EMPTY)

    busy = Hanging()
    with fake(busy.answer) as server:
        config = SourceConfig("main", "prometheus", server.url)
        manners = type(HASTY)(read_s=10, requests_per_s=1000)
        client = Client(config, Full(tmp_path), manners=manners)
        began = time.monotonic()
        with pytest.raises(EvidenceError):
            list(SOURCE.fetch(QUERIES, INCIDENT, AS_JSON, client))
        assert time.monotonic() - began < 3
        assert len(busy.counts) <= 5
    settle()


def test_both_questions_that_were_refused_together_are_halved_once(tmp_path: Path) -> None:
    class Small(Busy):
        def samples(self, to: Handler, number: int) -> None:
            if query_of(to).endswith("[2h]"):
                words = '{"status":"error","errorType":"execution","error":"too many samples"}'
                to.reply(words, 422)
            else:
                to.reply(EMPTY)

    captures = fetched(Small(), tmp_path)
    lengths = {c.window.seconds for c in captures if c.query == "m" and c.usable and c.window}
    assert lengths == {3600.0, 300.0}  # and the lead
    at = BASELINE.start - timedelta(minutes=5)
    for capture in (c for c in captures if c.query == "m" and c.usable):
        assert capture.window and capture.window.start == at
        at = capture.window.end
    assert at == WINDOW.end == datetime(2026, 3, 10, 18, tzinfo=UTC)
