"""A notebook tells the story: the library decides, the outputs are those of the bundled example."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from conftest import ROOT

from tbforensics import parameters, plugins
from tbforensics.manifest import read_manifest

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = [
    "Summary", "What we could see", "What we found", "Who and why", "In what order",
    "What we could not tell", "Where it came from",
]  # fmt: skip
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path: Path, kind: str) -> list[Any]:
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def given(path: Path) -> ast.Module:
    (cell,) = [c for c in cells(path, "code") if "parameters" in c.metadata.get("tags", ())]
    return ast.parse(cell.source)


def test_every_kind_has_a_notebook_and_every_notebook_a_kind() -> None:
    assert [path.stem for path in NOTEBOOKS] == plugins.kind_names()


@every_notebook
def test_the_headings_are_the_same_in_the_same_order(path: Path) -> None:
    lines = "\n".join(cell.source for cell in cells(path, "markdown")).splitlines()
    kind = plugins.load_kind(path.stem)
    assert [line for line in lines if re.match("# ", line)] == [f"# {kind.title}"]
    found = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert [line for line in found if line in HEADINGS] == HEADINGS
    assert found == HEADINGS


@every_notebook
def test_a_function_has_its_room_in_the_library(path: Path) -> None:
    for cell in cells(path, "code"):
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef), cell.source
        assert "sys.path" not in cell.source and not cell.source.startswith(("%", "!"))


@every_notebook
def test_every_cell_has_words_before_it_or_belongs_to_the_one_before(path: Path) -> None:
    for heading, following in zip(
        (all_cells := nbformat.read(path, 4).cells), all_cells[1:], strict=False
    ):
        if heading.cell_type == "markdown" and heading.source.strip().startswith("## "):
            words = heading.source.partition("\n")[2].strip()
            assert words or following.cell_type == "markdown", heading.source


@every_notebook
def test_the_parameters_cell_holds_exactly_the_keys_of_a_parameters_file(path: Path) -> None:
    names = [node.targets[0].id for node in given(path).body]  # type: ignore[attr-defined]
    assert names == list(parameters.PARAMETER_NAMES)


@every_notebook
def test_the_parameters_are_those_of_the_example(path: Path) -> None:
    found = {n.targets[0].id: ast.literal_eval(n.value) for n in given(path).body}  # type: ignore[attr-defined]
    example = ROOT / "parameters" / f"{path.stem}.example.yaml"
    assert parameters.incident_from(found) == parameters.read_parameters(example)
    raw = yaml.safe_load(example.read_text())
    assert {name: found[name] for name in raw} == raw


@every_notebook
def test_papermill_can_tell_what_each_parameter_is_and_what_it_defaults_to(path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", path],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for name in parameters.PARAMETER_NAMES:
        line = re.search(rf"^  {name}: .*\(default (.+)\)$", run.stdout, re.MULTILINE)
        assert line, f"{name}: papermill cannot read it"
        ast.literal_eval(line[1])
    assert "Can't infer" not in run.stdout + run.stderr


@every_notebook
def test_the_outputs_are_whole_and_were_made_from_the_bundled_example(path: Path) -> None:
    case = ROOT / "incidents" / f"example-{path.stem.replace('_', '-')}"
    text = json.dumps([cell.get("outputs") for cell in cells(path, "code")])
    for cell in cells(path, "code"):
        assert cell.execution_count, "it was never run"
        assert not [o for o in cell.outputs if o.output_type == "error"]
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.source
    bodies = [capture.sha256 for capture in read_manifest(case).captures if capture.usable]
    assert any(str(sha256) in text or str(sha256)[:12] in text for sha256 in bodies)
    assert json.loads((case / "findings.json").read_bytes())["verdict"] in text.lower()


@every_notebook
def test_a_committed_notebook_tells_nothing_of_the_machine_that_made_it(path: Path) -> None:
    text = path.read_text()
    words = [str(ROOT), sys.prefix, f"{Path.home()}/", "/tmp/", "ipykernel_", "site-packages"]
    assert not [word for word in words if word in text]
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.language_info == {"name": "python"}
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, cell.metadata
    assert not re.search(r"0x[0-9a-f]{8,}>", text), "a memory address changes from run to run"


@every_notebook
def test_the_same_evidence_still_gives_the_same_outputs(path: Path, tmp_path: Path) -> None:
    """nbval, on a copy of the project: running a notebook may write findings."""
    name = f"example-{path.stem.replace('_', '-')}"
    shutil.copytree(ROOT / "incidents" / name, tmp_path / "incidents" / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(path, tmp_path / "notebooks")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", tmp_path),
            *("-p", "no:cacheprovider", "-p", "no:xdist", "--nbval", "--nbval-current-env"),
            *("--nbval-cell-timeout", "300", tmp_path / "notebooks" / path.name),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-5000:]
