"""A kernel that waited is like any other, and never outlives who started it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

# pytest has threads, so what forks runs in a process of its own.
RUN = """
import os, signal, sys, time
from pathlib import Path
from tbforensics import kernel
waiting = kernel.waiting()
if "kill" in sys.argv:
    waiting.kill()
    waiting.wait()
from tbforensics.report import execute
folder = Path(sys.argv[1])
print(repr(execute(folder / "given.ipynb", folder / "out.ipynb", {}, cwd=folder,
                   kernel=None if "cold" in sys.argv else waiting)))
print(waiting.poll() is not None)
"""
CELLS = (
    "import os, sys, pathlib\nsecond = pathlib.Path('second')\nprint(pathlib.Path.cwd().name)",
    "print(os.environ['OF_THE_CALLER'], __name__, sys.stdin.read() if not sys.stdin else '')",
    "import pandas as pd\npd.DataFrame({'a': [1, 2]})",
    "print(os.getppid() == int(os.environ['JPY_PARENT_PID']), os.getsid(0) == os.getpid())",
)


def notebook(folder: Path, *cells: str) -> Path:
    folder.mkdir()
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = new_notebook(
        cells=[new_code_cell(cell, id=f"cell-{i}") for i, cell in enumerate(cells)],
        metadata={"kernelspec": kernelspec},
    )
    nbformat.write(made, folder / "given.ipynb")
    return folder


def ran(folder: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, folder, *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OF_THE_CALLER": "given"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_a_kernel_that_waited_says_what_any_other_says(tmp_path: Path) -> None:
    warm, cold = notebook(tmp_path / "w", *CELLS), notebook(tmp_path / "c", *CELLS)
    assert ran(warm) == ["''", "True"]
    assert ran(cold, "cold") == ["''", "False"]
    said = [(folder / "out.ipynb").read_text() for folder in (warm, cold)]
    assert said[0].replace('"w\\n"', '"c\\n"') == said[1]
    assert "given __main__" in said[0] and '"True True\\n"' in said[0]


def test_a_notebook_that_kills_its_kernel_is_told_in_words(tmp_path: Path) -> None:
    folder = notebook(tmp_path / "w", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert "the kernel died in cell 1" in ran(folder)[0]


def test_another_takes_the_place_of_one_that_was_killed_while_it_waited(tmp_path: Path) -> None:
    folder = notebook(tmp_path / "w", "print('here')")
    assert ran(folder, "kill") == ["''", "True"]
    assert "here" in (folder / "out.ipynb").read_text()


def test_a_kernel_that_waits_ends_with_who_started_it() -> None:
    code = "import os; from tbforensics import kernel; print(kernel.waiting().pid, flush=True)"
    killed = f"{code}; os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", killed], stdout=subprocess.PIPE, text=True)
    gone(int(done.stdout))


def test_a_kernel_at_work_ends_with_who_started_it(tmp_path: Path) -> None:
    folder = notebook(
        tmp_path / "w",
        "import os, pathlib, time\npathlib.Path('pid').write_text(str(os.getpid()) + '\\n')",
        "time.sleep(600)",
    )
    runner = subprocess.Popen([sys.executable, "-c", RUN, folder], stdout=subprocess.DEVNULL)
    told = folder / "pid"
    while not (told.exists() and told.read_text().endswith("\n")):
        time.sleep(0.05)
        assert runner.poll() is None
    runner.kill()
    runner.wait()
    gone(int(told.read_text()))


def gone(pid: int) -> None:
    for _ in range(600):
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{pid} is still there")
