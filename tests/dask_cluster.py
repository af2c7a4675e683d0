"""A real Dask scheduler and its workers, each a process, and what they made of a case."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT

from tbforensics import manifest, store
from tbforensics.model import Capture


def command(module: str, *words: str | Path, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{module}", *map(str, words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


class Cluster:
    """address: of the scheduler. workers: their processes, of one thread each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._told = folder / "scheduler.json"
        self.scheduler = command(
            "dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
            "--scheduler-file", self._told,
        )  # fmt: skip
        while not self._told.exists():
            time.sleep(0.05)
            assert self.scheduler.poll() is None
        self.address = cluster_address(self._told)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, count: int, **environment: str) -> None:
        self.workers += [
            command(
                "dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
                "--local-directory", self._folder, **environment,
            )
            for _ in range(count)
        ]  # fmt: skip

    def losing_one(self, seen: list[Capture]) -> Callable[[Capture], None]:
        """For `collect` to report to: fills `seen`, and kills the first worker at the 20th."""

        def report(capture: Capture) -> None:
            seen.append(capture)
            if len(seen) == 20:
                self.workers[0].kill()

        return report

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def cluster_address(told: Path) -> str:
    while True:
        try:
            return str(json.loads(told.read_text())["address"])
        except ValueError:
            time.sleep(0.05)


def rows_of(case: Path) -> dict[str, str]:
    """What was asked of servers at other times is the same but for snapshots."""
    return {
        path: manifest.sha256_of(store.place_of(case) / path)
        for path in manifest.part_paths(case)
        if "/snapshots/" not in path
    }
