"""An executed notebook made fit to keep: the failure named at its top, the machine taken out."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tbforensics.report_page.quick import without_slow_grammar
from tbforensics.report_page.safe import plain
from tbforensics.report_page.text import text_of

with without_slow_grammar():
    import nbformat
    from nbformat import NotebookNode

FAILURE_TAG = "tbforensics-failure"
MARKER_TAGS = {FAILURE_TAG, "papermill-error-cell-tag"}


def scrub(notebook: NotebookNode, *, roots: Mapping[str, str] | None = None) -> NotebookNode:
    """The notebook without this machine: papermill's paths, times and environment are gone, and
    `roots` (absolute path -> what to write instead) are replaced in outputs. Changes it in place.

    Log text may hold paths of other machines; those are evidence and stay. So the user's home is
    replaced only where Python itself speaks: in tracebacks and on stderr.
    """
    roots = machine_paths(Path.cwd()) if roots is None else roots
    facts = notebook.metadata.pop("papermill", {})
    notebook.metadata["papermill"] = {
        key: facts[key] for key in ("version", "exception") if key in facts
    }
    for cell in notebook.cells:
        run = cell.metadata.get("papermill", {})
        cell.metadata["papermill"] = {
            key: run[key] for key in ("status", "exception") if key in run
        }
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"  # papermill draws a random one
        for output in cell.get("outputs", []):
            _scrub_output(output, roots)
    return notebook


def _scrub_output(output: NotebookNode, roots: Mapping[str, str]) -> None:
    python_speaks = output.output_type == "error" or output.get("name") == "stderr"
    chosen = {
        root: word for root, word in roots.items() if python_speaks or word in (".", "<python>")
    }
    for key in ("text", "evalue"):
        if key in output:
            output[key] = _without(text_of(output[key]), chosen)
    if "traceback" in output:
        output["traceback"] = [_without(line, chosen) for line in output["traceback"]]
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            output["data"][kind] = _without(text_of(value), chosen)


# Where the kernel keeps the source of a cell: another name in every run.
_CELL_FILE = re.compile(r"\S*/ipykernel_\d+/\d+\.py")


def _without(text: str, roots: Mapping[str, str]) -> str:
    text = _CELL_FILE.sub("<cell>", text)
    for root in sorted(roots, key=len, reverse=True):
        text = text.replace(root, roots[root])
    return text


def machine_paths(cwd: Path) -> dict[str, str]:
    """Folders of this machine; too short a path would match what is not one."""
    named = [
        (str(cwd.resolve()), "."),
        (sys.prefix, "<python>"),
        (sys.base_prefix, "<python>"),
        (tempfile.gettempdir(), "<tmp>"),
        (str(Path.home()), "~"),
    ]
    return {path: word for path, word in reversed(named) if len(path) > 3}


def mark_failure(notebook: NotebookNode, failure: str, kind: str, at: int | None) -> None:
    """Say at the top of the notebook, and in the code cell `at` (from 0), what failed.

    After a dead kernel or a timeout papermill calls every cell completed; that is put right.
    """
    code = code_cells(notebook.cells)
    for i, cell in enumerate(code):
        if at is None or i > at:
            cell.metadata["papermill"] = {"status": "not run"}
    if at is not None:
        run_facts(code[at]).update(status="failed", exception=True)
        if error_of(code[at]) is None:
            code[at].outputs.append(
                nbformat.v4.new_output("error", ename=kind, evalue=failure, traceback=[failure])
            )
    quoted = failure.replace("\n", "\n    ")
    note = nbformat.v4.new_markdown_cell(f"**This run is incomplete.**\n\n    {quoted}")
    note["id"], note.metadata["tags"] = FAILURE_TAG, [FAILURE_TAG]
    notebook.cells.insert(0, note)


def without_markers(notebook: NotebookNode) -> list[NotebookNode]:
    """Its cells but for the notes on failure that papermill or we put between them."""
    return [c for c in notebook.cells if not MARKER_TAGS & set(c.metadata.get("tags", []))]


def code_cells(cells: Iterable[NotebookNode]) -> list[NotebookNode]:
    return [c for c in cells if c.cell_type == "code" and text_of(c.source).strip()]


def last_begun(code: list[NotebookNode]) -> int | None:
    """The last cell that papermill started: the failed one, when there was a failure."""
    begun = [i for i, cell in enumerate(code) if run_facts(cell).get("start_time")]
    return begun[-1] if begun else None


def run_facts(cell: NotebookNode) -> dict[str, Any]:
    facts: dict[str, Any] = cell.metadata.setdefault("papermill", NotebookNode())
    return facts


def error_of(cell: NotebookNode) -> NotebookNode | None:
    return next((out for out in cell.outputs if out.output_type == "error"), None)


def failures_in(notebook: NotebookNode) -> list[str]:
    """What went wrong in a saved notebook: cells that raised, and cells that never ran."""
    code = code_cells(notebook.cells)
    raised = [
        f"cell {i} stopped with {plain(f'{error.ename}: {error.evalue}', limit=300)}"
        for i, cell in enumerate(code, start=1)
        if (error := error_of(cell))
    ]
    idle = [i for i, cell in enumerate(code, start=1) if cell.get("execution_count") is None]
    return raised + ([f"{len(idle)} of {len(code)} cells did not run"] if idle else [])
