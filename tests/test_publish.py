"""The report is whole or says what it lacks, opens offline, and tells no secret."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pyarrow.parquet as pq
import pytest
import zstandard
from browser import chromium
from collected import World, scenario, world
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_notebook
from standin_node import NodeState, StandInNode

from tbforensics import parameters
from tbforensics.case import open_case, prove
from tbforensics.errors import ReportError
from tbforensics.manifest import custody
from tbforensics.publish import notebook_of, publish

ID = str(scenario.PARAMETERS["incident_id"])
MAIN = "from tbforensics.cli import main; main()"
STAMP = re.compile(r"Printed at \S+Z\.")
OUTPUTS = ("findings.json", "report.ipynb", "report.html")
SECRETS = ("canary-password-93f1", "canary-token-5b7c", "canary-passphrase-d2e8")


@pytest.fixture(scope="module")
def here() -> World:
    return world()


@dataclass
class Published:
    """A case that `tbforensics run` made where secrets lay about, and what it said."""

    home: Path
    said: str
    code: int

    @property
    def folder(self) -> Path:
        return self.home / "incidents" / ID


@pytest.fixture(scope="module")
def published(here: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    home = here.project(tmp_path_factory.mktemp("canary-machine-path") / "home", case=False)
    (home / "http.yaml").write_text(f"basic_auth: {{username: reader, password: {SECRETS[0]}}}\n")
    (home / "passphrase").write_text(f"{SECRETS[2]}\n")
    state = NodeState(**{**scenario.node_state(), "log_passphrase": SECRETS[2]})
    with StandInNode(state) as node:
        sources = {
            "dumps": here.sources["dumps"],
            "node": {"type": "jsonrpc", "url": node.url, "http_config": "http.yaml"},
            "node-logs": {"type": "logs", "url": node.url, "passphrase_file": "passphrase"},
            "prometheus": {**here.sources["prometheus"], "http_config": "http.yaml"},
        }
        path = home / "parameters" / "given.yaml"
        path.write_bytes(parameters.to_yaml(here.incident(sources=sources)))
        environment = {
            **os.environ,
            "LOGNAME": "canary-user",
            "USER": "canary-user",
            "API_TOKEN": SECRETS[1],
            "TBFORENSICS_USER": "the analyst",
        }
        run = subprocess.run(
            [sys.executable, "-c", MAIN, "run", path],
            capture_output=True,
            text=True,
            env=environment,
            cwd="/",
        )
        yield Published(home, run.stdout + run.stderr, run.returncode)


def readable(path: Path) -> str:
    """A file as somebody would read it who looks for secrets: opened, decompressed."""
    if path.suffix == ".zst":
        with path.open("rb") as file:
            return zstandard.ZstdDecompressor().stream_reader(file).read().decode("latin-1")
    if path.suffix == ".parquet":
        return str(pq.read_table(path).to_pylist())
    return path.read_bytes().decode("latin-1")


def test_the_road_from_parameters_to_report_ends_well(published: Published) -> None:
    assert published.code == 0, published.said
    acts = custody(published.folder)
    assert [act["act"] for act in acts] == ["sealed", "assessed", "rendered"]
    assert acts[-1]["failure"] == ""
    assert all(check.holds for check in prove(published.folder, recompute=True))


def test_the_secrets_were_needed_and_used(published: Published) -> None:
    messages = open_case(published.folder).frames["log_lines"]["message"]
    assert messages.str.contains("certificate").any()
    assert not messages.str.contains("<encrypted>|<decrypt-failed>").any()


def test_nothing_that_is_written_holds_a_secret_a_user_or_a_path_of_the_machine(
    published: Published,
) -> None:
    words = [*SECRETS, "canary-user", "canary-machine-path", str(ROOT), sys.prefix]
    words += [str(Path.home())] if len(str(Path.home())) > 1 else []
    files = [path for path in published.folder.rglob("*") if path.is_file()]
    assert len(files) > 80
    for path in files:
        text = readable(path)
        found = [word for word in words if word in text]
        assert not found, f"{path.relative_to(published.folder)} holds {found}"
    assert not [secret for secret in SECRETS if secret in published.said]


def test_what_papermill_notes_of_a_machine_is_not_in_the_case(published: Published) -> None:
    words = ['"input_path":', '"output_path":', '"start_time":', '"end_time":', "/site-packages/"]
    words += [node for node in [platform.node()] if len(node) > 5]  # "vm" is a word of many
    for name in (*OUTPUTS, "manifest.json", "parameters.yaml", "custody.jsonl"):
        text = (published.folder / name).read_text()
        assert [word for word in words if word in text] == [], name


def test_the_same_case_printed_elsewhere_is_the_same_byte_for_byte_but_for_its_stamp(
    published: Published, tmp_path: Path
) -> None:
    home = tmp_path / "another-one"
    folder = home / "incidents" / ID
    shutil.copytree(published.folder, folder)
    for name in OUTPUTS:
        (folder / name).unlink()
    case = open_case(folder)
    case.record_findings()
    assert publish(case, home) == ""
    case.evidence.close()
    for name in OUTPUTS:
        first, second = ((at / name).read_text() for at in (published.folder, folder))
        assert len(STAMP.findall(first)) == (name == "report.html")
        assert STAMP.sub("", first) == STAMP.sub("", second), name


def test_the_custody_log_names_who_acted_as_they_wish_to_be_named(published: Published) -> None:
    assert {act["by"] for act in custody(published.folder)} == {"the analyst"}


def test_the_report_opens_offline_without_a_complaint_and_asks_for_nothing(
    published: Published,
) -> None:
    with chromium() as page:
        page.open(published.folder / "report.html")
        page.look()
        page.wait("document.querySelectorAll('canvas, svg').length > 0")
        heading = page.run("document.querySelector('h1').innerText")
        assert "fail after its certificate rotation" in heading
        assert page.complaints == [] and page.dialogs == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []


def test_the_page_names_the_verdict_and_the_hashes_that_it_stands_for(
    published: Published,
) -> None:
    page = (published.folder / "report.html").read_text()
    case = open_case(published.folder)
    (findings,) = [
        act["files"]["findings.json"] for act in custody(case.folder) if act["act"] == "assessed"
    ]
    assert case.manifest.sha256 in page and findings in page and "confirmed" in page.lower()


# --- papermill by itself -------------------------------------------------------------------


def test_bare_papermill_gives_the_same_findings(here: World, tmp_path: Path) -> None:
    home = here.project(tmp_path / "home")
    written = home / "incidents" / ID / "findings.json"
    expected = written.read_bytes()
    written.unlink()
    (home / "parameters" / "given.yaml").write_bytes(parameters.to_yaml(here.incident()))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "papermill", "notebooks/quic_failure.ipynb", "out.ipynb"),
            *("-f", "parameters/given.yaml", "--no-progress-bar"),
        ],
        cwd=home,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert written.read_bytes() == expected
    assert custody(home / "incidents" / ID)[-1]["act"] == "assessed"


# --- a notebook that fails, or is not there ------------------------------------------------


def project_with(here: World, folder: Path, *cells: str) -> Path:
    """A project whose notebook is these cells after the parameters."""
    home = here.project(folder)
    path = home / "notebooks" / "quic_failure.ipynb"
    (given,) = [
        cell
        for cell in nbformat.read(path, 4).cells
        if "parameters" in cell.metadata.get("tags", ())
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(
        cells=[given, *map(new_code_cell, cells)], metadata={"kernelspec": kernel}
    )
    nbformat.write(notebook, path)
    return home


def test_a_notebook_that_fails_still_gives_a_report_that_says_so(
    here: World, tmp_path: Path
) -> None:
    home = project_with(here, tmp_path / "home", "print('so far')", "1 / 0", "print('never')")
    folder = home / "incidents" / ID
    run = subprocess.run(
        [sys.executable, "-c", MAIN, "report", folder], capture_output=True, text=True
    )
    assert run.returncode == 4, run.stderr
    assert "the notebook failed part way: cell 4 stopped with ZeroDivisionError" in run.stderr
    assert f"{ID}: confirmed" in run.stdout, "the verdict does not depend on a notebook"
    page = (folder / "report.html").read_text()
    assert "This report is incomplete." in page and "so far" in page
    last = custody(folder)[-1]
    assert last["act"] == "rendered" and "ZeroDivisionError" in last["failure"]
    assert all(check.holds for check in prove(folder))


def test_a_notebook_of_the_project_goes_before_the_one_of_the_package(tmp_path: Path) -> None:
    assert notebook_of("quic_failure", tmp_path).name == "quic_failure.ipynb"
    own = tmp_path / "notebooks" / "quic_failure.ipynb"
    own.parent.mkdir()
    own.write_text("{}")
    assert notebook_of("quic_failure", tmp_path) == own


def test_a_kind_without_a_notebook_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no notebook for earthquake") as caught:
        notebook_of("earthquake", tmp_path)
    assert caught.value.next_step == "write notebooks/earthquake.ipynb"


def test_a_case_that_lies_elsewhere_is_refused_before_anything_is_written(
    here: World, tmp_path: Path
) -> None:
    home = here.project(tmp_path / "home")
    before = {path.name for path in (home / "incidents" / ID).iterdir()}
    with pytest.raises(ReportError, match="does not lie in"):
        publish(open_case(home / "incidents" / ID), tmp_path)
    assert {path.name for path in (home / "incidents" / ID).iterdir()} == before


def test_the_executed_notebook_holds_the_parameters_of_the_incident(published: Published) -> None:
    notebook = nbformat.read(published.folder / "report.ipynb", 4)
    (cell,) = [c for c in notebook.cells if "injected-parameters" in c.metadata.get("tags", ())]
    namespace: dict[str, Any] = {}
    exec(cell.source, namespace)
    given = {name: namespace[name] for name in parameters.PARAMETER_NAMES}
    incident = parameters.incident_from(given)
    assert incident == open_case(published.folder).incident
    assert not re.search(r'"start_time"|"end_time"', json.dumps(notebook))
