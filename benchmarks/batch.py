"""`tbforensics batch` on many cases beside `tbforensics run` on one after another.

    python -m benchmarks.batch --cases 20 --rounds 3

The cases are the bundled examples under new ids, sealed and not yet assessed or printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.sidebyside import ROOT, call, median, ratio, rounds, table
from tbforensics import manifest
from tbforensics.collect import catalogue
from tbforensics.parameters import flat, incident_from, read_parameters, to_yaml
from tbforensics.plugins import kind_names, load_kind

MAIN = [sys.executable, "-c", "from tbforensics.cli import main; main()"]
LOOP = "one after another"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tbforensics-bench-") as temporary:
        project = Path(temporary) / "project"
        make_cases(project, given.cases)
        runners = {
            LOOP: call("benchmarks.batch", "one_after_another", str(project)),
            "batch -j 1": call("benchmarks.batch", "batch", str(project), 1),
            f"batch -j {given.jobs}": call("benchmarks.batch", "batch", str(project), given.jobs),
        }
        measured = rounds(runners, given.rounds)
    print(f"{given.cases} cases, {given.rounds} rounds; goal on 2 cores: <= 0.55 x {LOOP}\n")
    rows = [
        (name, median(runs), median(runs, "cpu_s"), ratio(measured, name, to=LOOP))
        for name, runs in measured.items()
    ]
    print(table(("runner", "wall s", "CPU s", f"x {LOOP}"), rows))
    return 0


def make_cases(project: Path, count: int) -> None:
    """A project with `count` sealed cases and their parameters files."""
    (project / "parameters").mkdir(parents=True)
    shutil.copytree(ROOT / "notebooks", project / "notebooks")
    kinds = kind_names()
    for number in range(count):
        kind = kinds[number % len(kinds)]
        example = ROOT / "incidents" / f"example-{kind.replace('_', '-')}"
        folder = project / "incidents" / f"case-{number:02d}"
        made_here = shutil.ignore_patterns("custody.jsonl", "findings.json", "report.*")
        shutil.copytree(example, folder, ignore=made_here)
        asked = flat(read_parameters(example / "parameters.yaml")) | {"incident_id": folder.name}
        incident = incident_from(asked)
        for path in (folder / "parameters.yaml", project / "parameters" / f"{folder.name}.yaml"):
            path.write_bytes(to_yaml(incident))
        queries = catalogue(load_kind(kind), incident.sources)
        manifest.seal(folder, incident, queries, manifest.read_manifest(example).captures)
        names = ("manifest.json", "parameters.yaml")
        files = {name: manifest.sha256_of(folder / name) for name in names}
        manifest.note_act(folder, "sealed", files=files)


# --- what is measured, each on a copy of its own -------------------------------------------


def one_after_another(project: str) -> Callable[[], int]:
    files, done = _copy(project)

    def run() -> int:
        for file in files:
            subprocess.run([*MAIN, "run", file], check=True, stdout=subprocess.DEVNULL)
        return done()

    return run


def batch(project: str, jobs: int) -> Callable[[], int]:
    files, done = _copy(project)

    def run() -> int:
        command = [*MAIN, "batch", *files, "-j", str(jobs)]
        quiet = subprocess.DEVNULL
        subprocess.run(command, check=True, stdout=quiet, stderr=quiet)
        return done()

    return run


def _copy(project: str) -> tuple[list[str], Callable[[], int]]:
    """The parameters files of a fresh copy, and how many cases are printed in the end."""
    folder = Path(tempfile.mkdtemp(dir=Path(project).parent))
    shutil.copytree(project, folder, dirs_exist_ok=True)
    files = sorted(str(path) for path in (folder / "parameters").iterdir())

    def done() -> int:
        reports = len(list(folder.glob("incidents/*/report.html")))
        assert reports == len(files), f"{reports} reports of {len(files)} cases"
        shutil.rmtree(folder)
        return reports

    return files, done


if __name__ == "__main__":
    sys.exit(main())
