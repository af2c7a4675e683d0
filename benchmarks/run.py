"""How long `tbforensics run` takes on a bundled example, beside what papermill takes for nothing.

    python -m benchmarks.run --rounds 5

The floor is papermill on a notebook that only imports pandas, duckdb and altair. The example is
sealed, so `run` opens it, computes its findings, executes the notebook and prints the report; bare
papermill on the same notebook prints none.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.sidebyside import ROOT, median, ratio, rounds, table

MAIN = "from tbforensics.cli import main; main()"
FLOOR = "papermill, imports only"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", default="quic_failure")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="tbforensics-bench-") as temporary:
        measured = rounds(_runners(Path(temporary), given.kind), given.rounds)
    print(f"tbforensics run, {given.kind}, {given.rounds} rounds; goal: <= 2 x the floor\n")
    rows = [
        (name, median(runs), median(runs, "cpu_s"), ratio(measured, name, to=FLOOR))
        for name, runs in measured.items()
    ]
    print(table(("runner", "wall s", "CPU s", "x floor"), rows))
    return 0


def _runners(folder: Path, kind: str) -> dict[str, list[str]]:
    project = folder / "project"
    for name in ("incidents", "notebooks", "parameters"):
        shutil.copytree(ROOT / name, project / name)
    parameters = str(project / "parameters" / f"{kind}.example.yaml")
    floor = _notebook(folder, "import pandas, duckdb, altair")
    silent = ["sh", "-c", 'exec "$@" 2>/dev/null', "sh"]  # papermill tells of every file
    papermill = [*silent, sys.executable, "-m", "papermill", "--no-progress-bar"]
    bare = [str(project / "notebooks" / f"{kind}.ipynb"), str(folder / "out.ipynb")]
    ours = [sys.executable, "-c", MAIN]
    return {
        FLOOR: [*papermill, str(floor), str(folder / "out.ipynb")],
        "bare papermill": [*papermill, *bare, "-f", parameters, "--cwd", str(project)],
        "tbforensics run": [*ours, "run", parameters],
        "tbforensics --help": [*ours, "--help"],
    }


def _notebook(folder: Path, code: str) -> Path:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = folder / "floor.ipynb"
    notebook = new_notebook(cells=[new_code_cell(code)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, path)
    return path


if __name__ == "__main__":
    sys.exit(main())
