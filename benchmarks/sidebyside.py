"""Runners side by side, in interleaved rounds: a machine that others use treats all of them alike.

    measured = rounds({"curl": ["curl", ...], "ours": call("benchmarks.x", "ours", folder)}, 5)
    ratio(measured, "ours", to="curl")  # the median over the rounds

Each runner is a process of its own, so that its peak of memory is its own too.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Measured:
    """One run of one runner."""

    wall_s: float
    cpu_s: float  # with that of its children
    peak_mb: float
    answer: Any = None  # what the function of `call` gave


def call(module: str, function: str, *given: object) -> list[str]:
    """The command that measures `module.function(*given)`, its arguments and its answer as JSON.

    Where it returns a function, that is what is measured: what came before it, such as imports, is
    not. Where that returns one too, it gives the answer, and is not measured either.
    """
    return [sys.executable, "-m", "benchmarks.sidebyside", module, function, json.dumps(given)]


def rounds(runners: Mapping[str, Sequence[str]], count: int) -> dict[str, list[Measured]]:
    """Every runner once a round, in another order each round.

    Errors: CalledProcessError when one fails: a time without an answer would mean nothing.
    """
    names = list(runners)
    measured: dict[str, list[Measured]] = {name: [] for name in names}
    for number in range(count):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            measured[name].append(_measured(runners[name]))
    return measured


def ratio(measured: Mapping[str, Sequence[Measured]], name: str, *, to: str) -> float:
    """The median over the rounds of how much longer one took than another."""
    pairs = zip(measured[name], measured[to], strict=True)
    return statistics.median(one.wall_s / other.wall_s for one, other in pairs)


def median(runs: Sequence[Measured], what: str = "wall_s") -> float:
    return statistics.median(getattr(one, what) for one in runs)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, numbers to three figures."""
    cells = [[_cell(value) for value in row] for row in [head, ["---"] * len(head), *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = (" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _measured(command: Sequence[str]) -> Measured:
    called = list(command[1:3]) == ["-m", "benchmarks.sidebyside"]
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE if called else subprocess.DEVNULL
    )
    said = process.stdout.read() if process.stdout else b""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - begun
    if process.stdout:
        process.stdout.close()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, list(command))
    if called:
        return Measured(**json.loads(said.splitlines()[-1]))
    return Measured(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def _cpu_s() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def _peak_mb() -> float:
    """The most memory since this program began; `ru_maxrss` begins with that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main(module: str, function: str, given: str) -> None:
    work = getattr(importlib.import_module(module), function)
    begun, cpu_s = time.perf_counter(), _cpu_s()
    answer = work(*json.loads(given))
    if callable(answer):
        begun, cpu_s = time.perf_counter(), _cpu_s()
        answer = answer()
    wall_s, used_s, peak_mb = time.perf_counter() - begun, _cpu_s() - cpu_s, _peak_mb()
    if callable(answer):
        answer = answer()
    print("\n" + json.dumps(asdict(Measured(wall_s, used_s, peak_mb, answer))))


if __name__ == "__main__":
    main(*sys.argv[1:])
