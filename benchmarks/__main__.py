"""Every table of this folder, one after another, and the machine that they were measured on.

    python -m benchmarks            # sizes that two cores measure in about a quarter of an hour
    python -m benchmarks --full     # those of the goals; hours
    python -m benchmarks run logs   # only these

A table is a file here with a `main`. One that fails, because what it compares with is not
installed or gave another answer, does not stop the others.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.sidebyside import ROOT

# Arguments for a quick look and for the sizes of the goals; without a line here, none.
SIZES: dict[str, tuple[str, str]] = {
    "analysis": ("--size S", "--size B --rounds 5"),
    "batch": ("--cases 8 --rounds 1", "--cases 20 --rounds 3"),
    "changepoints": ("--made-up 1", "--made-up 5"),
    "logs": ("--lines 200000 --rounds 3", "--lines 5000000 --rounds 3"),
    "prometheus": ("--size S --rounds 3", "--size M --rounds 5"),
    "run": ("--rounds 3", "--rounds 7"),
    "xorchunks": ("--rounds 3", "--series 5000 --hours 24 --rounds 5"),
}
LIBRARIES = ("tbforensics", "duckdb", "pyarrow", "pandas", "numpy", "altair", "vl-convert-python",
             "papermill", "distributed", "polars", "msgspec", "pysimdjson", "prometheus-pandas",
             "prometheus-api-client", "ruptures")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=", ".join(tables()))
    parser.add_argument("--full", action="store_true", help="the sizes of the goals")
    given = parser.parse_args(arguments)
    if unknown := {*given.tables} - {*tables()}:
        parser.error(f"no such table: {', '.join(sorted(unknown))}")
    print(machine(), flush=True)
    failed = []
    for name in given.tables or tables():
        size = SIZES.get(name, ("", ""))[given.full]
        print(f"\n## {' '.join(['python -m benchmarks.' + name, size])}\n", flush=True)
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *size.split()], cwd=ROOT, check=False
        )
        failed += [name] if done.returncode else []
        print(f"\n({time.monotonic() - begun:,.0f} s)", flush=True)
    if failed:
        print(f"\nno table from: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def tables() -> list[str]:
    files = sorted(Path(__file__).parent.glob("*.py"))
    named = [file for file in files if "\ndef main(" in file.read_text()]
    return [file.stem for file in named if file.stem not in ("__main__", "sidebyside")]


def machine() -> str:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    lines = [
        f"{_processor()}, {os.cpu_count()} cores, {memory_gb:.0f} GB, "
        f"load {os.getloadavg()[0]:.1f} before it begins",
        f"{platform.platform()}, Python {platform.python_version()}, {_prometheus()}",
        ", ".join(f"{name} {_version(name)}" for name in LIBRARIES),
    ]
    return "\n".join(lines)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _prometheus() -> str:
    found = shutil.which("prometheus")
    if not found:
        return "no Prometheus"
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    return "Prometheus " + " ".join((said.stdout or said.stderr).split()[2:3])


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "(none)"


if __name__ == "__main__":
    sys.exit(main())
