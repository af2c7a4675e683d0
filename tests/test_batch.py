"""Many cases at once: none costs another anything, and what is done is not done again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from conftest import EXAMPLE, ROOT
from http_fake import Handler, fake
from nbformat.v4 import new_code_cell, new_notebook

from tbforensics.batch import Outcome, Planned, done_before, plan, worst
from tbforensics.errors import ParametersError
from tbforensics.manifest import custody, note_act, sha256_of
from tbforensics.parameters import to_yaml

MAIN = "from tbforensics.cli import main; main()"
# The parent of a kernel is the process of its case.
KILL = "import os\nos.kill(os.getppid(), 9)"


def notebook(home: Path, kind: str, *cells: str) -> None:
    """The project's own notebook of a kind: the parameters and these cells."""
    (home / "notebooks").mkdir(exist_ok=True)
    given = nbformat.read(ROOT / "notebooks" / f"{kind}.ipynb", 4)
    (declared,) = [cell for cell in given.cells if "parameters" in cell.metadata.get("tags", ())]
    made = new_notebook(cells=[declared, *map(new_code_cell, cells)], metadata=given.metadata)
    nbformat.write(made, home / "notebooks" / f"{kind}.ipynb")


def parameters(home: Path, incident: str, kind: str, **changed: Any) -> Path:
    """A parameters file that asks a folder of logs."""
    path = home / "parameters" / f"{incident}.yaml"
    path.parent.mkdir(exist_ok=True)
    given = {
        "incident_id": incident,
        "kind": kind,
        "start": "2026-11-20T10:00:00Z",
        "end": "2026-11-20T10:30:00Z",
        "sources": {"dumps": {"type": "logs", "path": "dumps"}},
    }
    path.write_text(yaml.safe_dump(given | changed))
    return path


def project(home: Path) -> Path:
    (home / "incidents").mkdir(parents=True)
    (home / "dumps").mkdir()
    line = {"timestamp": "2026-11-20T10:05:00Z", "level": "WARN", "message": "handshake failed"}
    (home / "dumps" / "node.jsonl").write_text(json.dumps(line) + "\n")
    return home


def batch(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAIN, "batch", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@dataclass
class Ran:
    code: int
    said: str
    cases: dict[str, dict[str, Any]]

    @property
    def codes(self) -> dict[str, int]:
        return {name: case["code"] for name, case in self.cases.items()}


def ended(process: subprocess.Popen[str], table: Path) -> Ran:
    said, complained = process.communicate(timeout=300)
    assert "Traceback" not in complained, complained
    written = json.loads(table.read_text())
    assert written["exit"] == process.returncode
    return Ran(process.returncode, said, {case["incident"]: case for case in written["cases"]})


# --- two runs over the same cases ----------------------------------------------------------


@dataclass
class World:
    home: Path
    first: Ran
    second: Ran
    sealed_at: dict[str, str]


SEALED = EXAMPLE.name


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Five cases: one sealed already, one without much evidence, and three that come to grief."""
    home = project(tmp_path_factory.mktemp("batch") / "home")
    shutil.copytree(EXAMPLE, home / "incidents" / SEALED)
    known = yaml.safe_load((EXAMPLE / "parameters.yaml").read_text())
    files = [
        parameters(home, SEALED, **{**known, "kind": "quic_failure", "sources": {}}),
        parameters(home, "poor", "quic_failure"),
        parameters(home, "killed", "settlement_stall"),
        parameters(home, "torn", "drawdown"),
        parameters(home, "nobody", "quic_failure", sources={}),
    ]
    notebook(home, "quic_failure", "print('so far')")
    notebook(home, "settlement_stall", KILL)
    notebook(home, "drawdown", "print('so far')", "1 / 0")
    first = ended(batch(*files, "-j", 2, "--json", home / "first.json"), home / "first.json")
    sealed = {name: _sealed_at(home, name) for name in ("poor", "killed", "torn")}
    notebook(home, "settlement_stall", "print('so far')")
    notebook(home, "drawdown", "print('so far')")
    second = ended(batch(*files, "--json", home / "second.json"), home / "second.json")
    return World(home, first, second, sealed)


def _sealed_at(home: Path, name: str) -> str:
    return str(json.loads((home / "incidents" / name / "manifest.json").read_text())["sealed_at"])


def test_one_that_fails_or_is_killed_costs_the_others_nothing(here: World) -> None:
    assert here.first.codes == {SEALED: 0, "poor": 3, "killed": 1, "torn": 4, "nobody": 1}
    assert here.first.code == 1, "the worst of them"
    done = here.first.cases[SEALED]
    assert (done["verdict"], done["missing"], done["before"]) == ("confirmed", [], False)
    assert Path(done["report"]).read_text().count("so far")


def test_each_says_what_became_of_it(here: World) -> None:
    cases = here.first.cases
    assert "handshake_fail not asked" in cases["poor"]["missing"]
    assert "its process was killed" in cases["killed"]["error"]
    assert "cell 4 stopped with ZeroDivisionError" in cases["torn"]["error"]
    assert "`sources` is empty" in cases["nobody"]["error"]


def test_the_table_has_a_line_for_each(here: World) -> None:
    head, *lines = here.first.said.splitlines()
    assert head.split() == ["incident", "kind", "verdict", "evidence", "exit", "seconds", "report"]
    assert [line.split()[0] for line in lines] == [SEALED, "poor", "killed", "torn", "nobody"]
    assert re.search(r"inconclusive +1 of \d+ covered, \S+ not asked.* 3 +\d+\.\d ", lines[1])


def test_what_a_case_says_is_in_its_log_beside_the_case(here: World) -> None:
    log = (here.home / "incidents" / "nobody.log").read_text()
    assert "nobody.yaml" in log and "Next: name sources to ask" in log
    assert not (here.home / "incidents" / "poor" / "poor.log").exists()


def test_the_second_run_does_only_what_was_not_done(here: World) -> None:
    assert here.second.codes == {SEALED: 0, "poor": 3, "killed": 3, "torn": 3, "nobody": 1}
    before = {name: case["before"] for name, case in here.second.cases.items()}
    assert before == {SEALED: True, "poor": True, "killed": False, "torn": False, "nobody": False}
    same = {name: _sealed_at(here.home, name) for name in here.sealed_at}
    assert same == here.sealed_at, "what was sealed is not asked again"
    for name in ("verdict", "asked", "covered", "missing", "report"):
        assert here.second.cases["poor"][name] == here.first.cases["poor"][name], name
    acts = [act["act"] for act in custody(here.home / "incidents" / "poor")]
    assert acts == ["sealed", "assessed", "rendered"]


GOOD = {
    "verdict": "cleared",
    "coverage": [
        {"query": "q", "source": "s", "ratio": 1.0, "state": "covered", "required": True},
        {"query": "r", "source": "s", "ratio": 0.5, "state": "partial", "required": False},
    ],
}


def on_record(home: Path, findings: object = GOOD, *acts: tuple[str, tuple[str, ...]]) -> Planned:
    """A case with these acts in its log, each with the hashes of the files that it names."""
    (planned,) = plan([parameters(project(home), "x", "quic_failure")])
    planned.folder.mkdir()
    (planned.folder / "parameters.yaml").write_bytes(to_yaml(planned.incident))
    (planned.folder / "findings.json").write_text(json.dumps(findings))
    for name in ("report.ipynb", "report.html"):
        (planned.folder / name).write_text("so far")
    for act, names in acts or (SEAL, ASSESS, RENDER):
        files = {name: sha256_of(planned.folder / name) for name in names}
        note_act(planned.folder, act, files=files, failure="")
    return planned


SEAL, ASSESS = ("sealed", ("parameters.yaml",)), ("assessed", ("findings.json",))
RENDER = ("rendered", ("report.ipynb", "report.html"))


def test_a_case_is_done_when_its_whole_report_is_on_record(tmp_path: Path) -> None:
    outcome = done_before(on_record(tmp_path / "home"))
    assert outcome and outcome.before
    assert (outcome.code, outcome.verdict, outcome.covered, outcome.asked) == (3, "cleared", 1, 2)
    assert outcome.missing == ("r partial",)


@pytest.mark.parametrize(
    "acts",
    [
        (SEAL, ASSESS),
        (SEAL, RENDER, ASSESS),
        (SEAL, ASSESS, RENDER, ("amended", ("parameters.yaml",))),
        (SEAL, ASSESS, ("copied", RENDER[1])),
        (SEAL, ASSESS, RENDER),
    ],
    ids=["no report", "an older report", "amended since", "not rendered", "a failed notebook"],
)
def test_a_case_is_not_done_without_a_report_of_what_it_is_now(
    tmp_path: Path, acts: tuple[tuple[str, tuple[str, ...]], ...], request: pytest.FixtureRequest
) -> None:
    planned = on_record(tmp_path / "home", GOOD, *acts)
    if "failed" in request.node.name:
        note_act(planned.folder, "rendered", failure="cell 3 stopped")
    assert done_before(planned) is None


@pytest.mark.parametrize("name", ["parameters.yaml", "findings.json", "report.html"])
def test_a_case_that_was_changed_is_not_done(tmp_path: Path, name: str) -> None:
    planned = on_record(tmp_path / "home")
    with (planned.folder / name).open("a") as file:
        file.write("\n")
    assert done_before(planned) is None


@pytest.mark.parametrize(
    "findings", [[], "x", {}, {"verdict": 1, "coverage": [{"a": 1}]}, {"coverage": [1]}], ids=str
)
def test_findings_that_are_none_do_not_stop_a_batch(tmp_path: Path, findings: object) -> None:
    assert done_before(on_record(tmp_path / "home", findings)) is None


# --- interrupted ---------------------------------------------------------------------------


def test_ctrl_c_stops_what_runs_and_the_next_run_takes_it_up(tmp_path: Path) -> None:
    home, hang = project(tmp_path / "home"), threading.Event()
    notebook(home, "quic_failure", "print('so far')")

    def answer(request: Handler, before: int) -> None:
        if hang.is_set():
            request.reply("[]", Content_Type="application/json")
        else:
            hang.wait(60)

    with fake(answer) as server:
        sources = {
            "dumps": {"type": "logs", "path": "dumps"},
            "node": {"type": "logs", "url": server.url},
        }
        files = [parameters(home, name, "quic_failure", sources=sources) for name in ("a1", "b2")]
        table = home / "table.json"
        running = batch(*files, "-j", 1, "--json", table)
        journal = home / "incidents" / ".a1.collecting" / "captures.jsonl"
        for _ in range(600):
            if server.seen and journal.exists():
                break
            time.sleep(0.1)
        assert running.poll() is None and server.seen, running.stderr
        children = _children(running.pid)
        running.send_signal(signal.SIGINT)
        stopped = ended(running, table)
        assert stopped.codes == {"a1": 1, "b2": 1} and stopped.code == 1
        assert stopped.cases["a1"]["error"] == "it was stopped; what it captured is kept"
        assert stopped.cases["b2"]["error"] == "it did not begin"
        assert journal.read_text().count("\n") >= 1 and children
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]

        hang.set()
        again = ended(batch(*files, "--json", table), table)
    assert again.codes == {"a1": 3, "b2": 3}
    assert not journal.parent.exists()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# --- before anything starts ----------------------------------------------------------------


def test_every_problem_of_every_file_is_named_at_once(tmp_path: Path) -> None:
    home = project(tmp_path / "home")
    good = parameters(home, "same", "quic_failure")
    twin = home / "parameters" / "twin.yaml"
    shutil.copy(good, twin)
    bad = parameters(home, "bad", "earthquake", end="2026-11-20T10:00:00Z", stepp="1s")
    with pytest.raises(ParametersError) as caught:
        plan([good, bad, twin, home / "none.yaml"])
    said = "\n".join(caught.value.problems)
    for words in (
        f"{twin}: {good} has the incident_id same too",
        f"{bad}: stepp: unknown key",
        "kind",
        f"{home / 'none.yaml'} cannot be read",
    ):
        assert words in said, words
    assert not list((home / "incidents").iterdir())


@pytest.mark.parametrize(
    "codes, expected", [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 4, 0], 4), ([3, 4, 1], 1)]
)
def test_the_worst_code_is_that_of_all(codes: list[int], expected: int) -> None:
    assert worst(Outcome(str(code), "k", code) for code in codes) == expected
