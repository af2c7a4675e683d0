"""The command as users run it, started with less patience, another clock or a death in store.

    python -m torture.launch '{"manners": {"read_s": 1}, "die_at": 17}' collect parameters.yaml

The kit has no switch for any, and needs none: a source's manners are data, Python tells an audit
hook about every change to the disk before it happens, and `time_machine` turns the wall clock.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import time_machine

_CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR


def hurry(manners: dict[str, Any]) -> None:
    """Give every source other manners than its own."""
    from tbforensics import plugins

    for name in plugins.source_names():
        source = plugins.load_source(name)
        type(source).manners = replace(source.manners, **manners)


def doom(nth: int, below: str, count_into: str = "") -> None:
    """Die, as by `kill -9`, just before the nth change to the disk below a folder.

    count_into: a file that gets a byte for each change, to know how many there are.
    """
    changes = itertools.count(1)
    tally = os.open(count_into, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if count_into else None

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if not (isinstance(flags, int) and flags & _WRITES):
                return
        elif event in _CHANGES:
            path = given[0]
        else:
            return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not (isinstance(path, str | os.PathLike) and os.fspath(path).startswith(below)):
            return
        if tally is not None:
            os.write(tally, b".")
        if next(changes) == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def turn(offsets_s: Sequence[float]) -> None:
    """Set the wall clock off by one after another, every 30 ms. The steady clocks stay."""
    started, steady = datetime.now(UTC), time.monotonic()

    def off_by(seconds: float) -> datetime:
        return started + timedelta(seconds=time.monotonic() - steady + seconds)

    clock = time_machine.travel(off_by(offsets_s[0])).start()

    def go_on() -> None:
        for seconds in itertools.cycle(offsets_s):
            clock.move_to(off_by(seconds))
            time.sleep(0.03)

    if len(offsets_s) > 1:
        threading.Thread(target=go_on, daemon=True).start()


def main() -> None:
    given = json.loads(sys.argv.pop(1))
    if manners := given.get("manners"):
        hurry(manners)
    if below := given.get("below"):
        doom(given.get("die_at", 0), below, given.get("count_into", ""))
    if clock := given.get("clock_off_by_s"):
        turn(clock)
    from tbforensics.cli import main as command

    sys.argv[0] = "tbforensics"
    command()


if __name__ == "__main__":
    main()
