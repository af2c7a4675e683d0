"""A few questions in flight, their answers in the order of the plan."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from typing import TypeVar

from tbforensics.wire import Stopped

T = TypeVar("T")
GLANCE_S = 0.2  # how soon a stop is seen that no answer tells of


def in_order(
    tasks: Iterable[Callable[[], T]], workers: int, stopped: threading.Event
) -> Iterator[T]:
    """What the tasks give, in their order, while threads do the next ones.

    Threads stay a few tasks ahead of whoever takes the answers, and no more. They are daemons: one
    that waits for a server keeps nobody from leaving.

    Errors: what the first task to fail raises, at once; Stopped when the event is set. Nothing is
            begun after that, and what goes on is not waited for.
    """
    todo: SimpleQueue[tuple[Future[T], Callable[[], T]] | None] = SimpleQueue()
    over = threading.Event()

    def work() -> None:
        while (taken := todo.get()) and not over.is_set():
            future, task = taken
            try:
                future.set_result(task())
            except BaseException as error:
                future.set_exception(error)

    ahead: deque[Future[T]] = deque()
    for _ in range(workers):
        threading.Thread(target=work, name="asking", daemon=True).start()
    try:
        for task in tasks:
            future: Future[T] = Future()
            todo.put((future, task))
            ahead.append(future)
            while len(ahead) > 2 * workers or (ahead and ahead[0].done()):
                yield _first(ahead, stopped)
        while ahead:
            yield _first(ahead, stopped)
    finally:
        over.set()
        for _ in range(workers):
            todo.put(None)


def _first(ahead: deque[Future[T]], stopped: threading.Event) -> T:
    while True:
        if stopped.is_set():
            raise Stopped
        for future in ahead:
            if future.done() and (failure := future.exception()):
                raise failure
        if ahead[0].done():
            return ahead.popleft().result()
        wait([f for f in ahead if not f.done()], GLANCE_S, FIRST_COMPLETED)
