"""An executed notebook, and the page that is printed from it. Only this room loads papermill
and nbconvert.

    execute       runs a notebook; always leaves one that can be read, and says what failed
    scrub         takes the machine out of it: paths, times, environment
    render        notebook and header in, one HTML page out
    write_report  the same to a file, whole or not at all
"""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from tbforensics.errors import ReportError
from tbforensics.kernel import Kernel, manager_of
from tbforensics.manifest import write_atomically
from tbforensics.model import Json
from tbforensics.report_page.cells import html_in, parts_of
from tbforensics.report_page.page import Header, page_of
from tbforensics.report_page.quick import without_slow_grammar
from tbforensics.report_page.safe import Gate, Heading, anchors_in, plain
from tbforensics.report_page.saved import (
    code_cells,
    error_of,
    failures_in,
    last_begun,
    machine_paths,
    mark_failure,
    scrub,
    without_markers,
)
from tbforensics.report_page.text import text_of, visible

with without_slow_grammar():
    import nbformat
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import CellControlSignal, CellTimeoutError, DeadKernelError
    from nbconvert.exporters import TemplateExporter
    from nbformat import NotebookNode
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillException


# --- running a notebook ------------------------------------------------------------------


def execute(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Json],
    *,
    cwd: Path,
    kernel_name: str = "python3",
    timeout_s: float = 600.0,
    kernel: Kernel | None = None,
) -> str:
    """Run `notebook` with parameters and keep the result as `output`, whatever happens.

    Returns "" when every cell ran, and otherwise which cell failed and how, in words.
    timeout_s: the longest that one cell may take.
    kernel: one that waits already; without it, or when it died meanwhile, `kernel_name` is started.
    Errors: ReportError when the notebook cannot be read, does not declare a parameter, or when
        `output` cannot be written. Nothing has run then.
    """
    source = read_notebook(notebook)
    _refuse_undeclared(source, parameters, notebook)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.resolve().with_name(f".{output.stem}.running.ipynb")
    failure, problem = "", None
    try:
        options = {"cwd": str(cwd.resolve()), "kernel_name": kernel_name}
        _run(notebook.resolve(), partial, parameters, options | _started(kernel), timeout_s)
    except (PapermillException, CellControlSignal, NoSuchKernel, RuntimeError) as failed:
        problem = failed
    except BaseException as stopped:
        problem = stopped
        raise
    finally:
        failure = _keep(partial, source, output, problem, cwd, timeout_s)
    return failure


def _keep(
    partial: Path,
    source: NotebookNode,
    output: Path,
    problem: BaseException | None,
    cwd: Path,
    timeout_s: float,
) -> str:
    """Save what ran, marked where it failed and without this machine. Returns the failure."""
    executed = read_notebook(partial) if partial.exists() else source
    executed.cells = without_markers(executed)
    failure = ""
    if problem is not None:
        code = code_cells(executed.cells)
        at = last_begun(code)
        failure = _words(problem, code, at, timeout_s)
        mark_failure(executed, failure, type(problem).__name__, at)
    scrub(executed, roots=machine_paths(cwd))
    _replace(output, nbformat.writes(executed, version=4) + "\n")
    partial.unlink(missing_ok=True)
    return failure


def _run(
    notebook: Path,
    output: Path,
    parameters: Mapping[str, Json],
    options: Mapping[str, Any],
    timeout_s: float,
) -> None:
    papermill.execute_notebook(
        _literal(notebook),
        _literal(output),
        parameters=dict(parameters),
        engine_name=_Engine.__name__,
        progress_bar=False,
        execution_timeout=max(1, math.ceil(timeout_s)),
        # At its usual level the kernel warns of its own plain local sockets in every run.
        extra_arguments=["--log-level=CRITICAL"],
        **options,
    )


def _started(kernel: Kernel | None) -> dict[str, Any]:
    alive = kernel and kernel.poll() is None
    return {"kernel_manager_class": manager_of(kernel)} if kernel and alive else {}


class _Engine(NBClientEngine):  # type: ignore[misc]
    """papermill's own, but the notebook is written once. It would be twice for every cell, with
    all charts so far, which takes longer than some notebooks."""

    @classmethod
    def execute_notebook(
        cls, nb: NotebookNode, kernel_name: str, output_path: str, **options: Any
    ) -> NotebookNode:
        try:
            super().execute_notebook(nb, kernel_name, None, **options)
        finally:
            papermill.iorw.write_ipynb(nb, output_path)
        return nb


papermill_engines.register(_Engine.__name__, _Engine)


def _literal(path: Path) -> str:
    """papermill fills braces in a path with parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _refuse_undeclared(notebook: NotebookNode, parameters: Mapping[str, Json], path: Path) -> None:
    """A parameter's name becomes code, so only names that the notebook declares may pass."""
    declared = _declared(notebook)
    problems = [
        f"the notebook does not declare {visible(name, limit=60)!r}"
        for name in parameters
        if name not in declared
    ]
    try:
        json.dumps(dict(parameters), allow_nan=False)
    except (TypeError, ValueError) as wrong:
        problems.append(f"a value is not plain JSON: {wrong}")
    if problems:
        names = ", ".join(sorted(declared)) or "none; it has no cell tagged `parameters`"
        raise ReportError(
            f"{path.name} cannot be given these parameters",
            problems=problems,
            next_step=f"declared parameters: {names}",
        )


def _declared(notebook: NotebookNode) -> set[str]:
    """Names that cells tagged `parameters` assign."""
    names: set[str] = set()
    for cell in notebook.cells:
        if cell.cell_type != "code" or "parameters" not in cell.metadata.get("tags", []):
            continue
        try:
            tree = ast.parse(text_of(cell.source))
        except SyntaxError as wrong:
            raise ReportError(
                f"the cell of parameters is not Python: {wrong}", next_step="correct that cell"
            ) from wrong
        assigned = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
        names |= {node.id for node in assigned if isinstance(node.ctx, ast.Store)}
    return names


def _words(
    problem: BaseException, code: list[NotebookNode], at: int | None, timeout_s: float
) -> str:
    """What failed, for a person."""
    place = f"cell {at + 1}" if at is not None else "the start of the kernel"
    if isinstance(problem, CellTimeoutError):
        return f"{place} did not finish within {timeout_s:g} s"
    if at is not None and (error := error_of(code[at])):
        return f"{place} stopped with {plain(f'{error.ename}: {error.evalue}', limit=300)}"
    if isinstance(problem, DeadKernelError):
        return f"the kernel died in {place}: it was killed, or ran out of memory"
    if isinstance(problem, NoSuchKernel):
        return f"there is no kernel named {visible(problem.name, limit=60)!r} here"
    if isinstance(problem, KeyboardInterrupt):
        return f"the run was interrupted in {place}"
    return f"{place} failed: {plain(f'{type(problem).__name__}: {problem}', limit=300)}"


# --- printing the page -------------------------------------------------------------------


class ReportExporter(TemplateExporter):
    """nbconvert with our template, autoescaping, and nothing of the stock pages.

    HTMLExporter would parse the finished page again, which hostile log text can make very slow.
    """

    file_extension = ".html"
    output_mimetype = "text/html"
    template_file = "page.html.j2"

    def __init__(self) -> None:
        TemplateExporter.__init__(self, template_paths=[])

    def _create_environment(self) -> Environment:
        return Environment(
            loader=PackageLoader("tbforensics", "report_page"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )


def render(notebook: NotebookNode, header: Header) -> str:
    """One HTML page that opens without a network, runs no code but ours, and is the same bytes
    for the same notebook and header. The notebook stays as it is.

    A cell that raised or never ran is said at the top, even when the header knows of no failure.
    """
    cells, headings = without_markers(notebook), list[Heading]()
    gate = Gate(targets=anchors_in(html_in(cells)))
    parts = list(parts_of(cells, gate, headings))
    failure = header.failure or "; ".join(failures_in(notebook))
    page = page_of(header, headings, failure, charts=any(part.chart for part in parts))
    # The exporter copies the notebook, twice and deeply; it is given one without the outputs.
    light = nbformat.v4.new_notebook()
    light.cells = [
        nbformat.v4.new_raw_cell(id=f"part-{i}", metadata=NotebookNode(part=part))
        for i, part in enumerate(parts)
    ]
    html, _ = ReportExporter().from_notebook_node(light, resources={"page": page})
    return str(html)


def write_report(notebook: Path, page: Path, header: Header) -> None:
    """Print a saved notebook to an HTML file. Errors: ReportError."""
    _replace(page, render(read_notebook(notebook), header))


# --- reading and writing -----------------------------------------------------------------


def read_notebook(path: Path) -> NotebookNode:
    """A notebook in format 4. Errors: ReportError when there is none or it is not one."""
    try:
        notebook: NotebookNode = nbformat.read(str(path), as_version=4)
        return notebook
    except FileNotFoundError as missing:
        raise ReportError(
            f"there is no notebook {path.name}", next_step="name a notebook that exists"
        ) from missing
    except (OSError, ValueError, nbformat.ValidationError) as wrong:
        raise ReportError(
            f"{path.name} cannot be read as a notebook: {visible(wrong, limit=200)}",
            next_step="open it in JupyterLab and save it again",
        ) from wrong


def _replace(path: Path, text: str) -> None:
    """A file appears whole or not at all."""
    try:
        write_atomically(path, text.encode("utf-8"))
    except OSError as refused:
        raise ReportError(
            f"{path.name} cannot be written: {refused.strerror}",
            next_step="free the disk or allow writing in the case folder, and run it again",
        ) from refused


__all__ = [
    "Header", "execute", "failures_in", "read_notebook", "render", "scrub", "write_report",
]  # fmt: skip
