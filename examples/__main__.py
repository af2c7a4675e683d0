"""Make the bundled examples anew: `python -m examples quic_failure` (or `make example`).

Each scenario is loaded into a real Prometheus and a stand-in node, on the ports that its
parameters name, and collected over HTTP by the command that everybody uses. What is written:
`parameters/<kind>.example.yaml`, the notebook's `parameters` cell and outputs, and
`incidents/example-<kind>/`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from prometheus_server import serve
from standin_explorer import StandInExplorer
from standin_node import NodeState, StandInNode

from tbforensics import parameters, report
from tbforensics.case import case_of


def make(kind: str) -> None:
    """Serve the scenario, collect and seal it, and renew the notebook from it."""
    scenario = import_module(f"examples.{kind}")
    incident_id = scenario.PARAMETERS["incident_id"]
    shutil.rmtree(ROOT / "incidents" / incident_id, ignore_errors=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {
            source["type"]: urlsplit(source["url"]).port
            for source in scenario.PARAMETERS["sources"].values()
            if "url" in source
        }
        history = scenario.history()
        stack.enter_context(serve(folder, history, rules=scenario.RULES, port=ports["prometheus"]))
        if "jsonrpc" in ports:
            state = NodeState(**scenario.node_state())
            stack.enter_context(StandInNode(state, port=ports["jsonrpc"]))
        if "explorer" in ports:
            replies = scenario.explorer_replies()
            stack.enter_context(StandInExplorer(replies, port=ports["explorer"]))
        given = scenario.PARAMETERS["sources"].values()
        dumps = ROOT / next(source["path"] for source in given if "path" in source)
        scenario.write_dumps(dumps)
        path = ROOT / "parameters" / f"{kind}.example.yaml"
        path.write_text(_yaml(scenario))
        case = case_of(parameters.read_parameters(path), ROOT)
    shutil.rmtree(dumps)
    renew_notebook(kind, scenario.PARAMETERS)
    print(f"{incident_id}: {case.assessment.verdict}")


def renew_notebook(kind: str, values: dict[str, object]) -> None:
    """Give the notebook's `parameters` cell the example's values, and its outputs."""
    path = ROOT / "notebooks" / f"{kind}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    (cell,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    hints = dict(line.split("  # ", 1) for line in cell.source.splitlines() if "  # " in line)
    hints = {line.partition(" = ")[0]: hint for line, hint in hints.items()}
    given = {
        "baseline_start": "",
        "baseline_end": "",
        **dict.fromkeys(parameters.PARAMETER_NAMES, ""),
        **values,
    }
    cell.source = "\n".join(
        f"{name} = {given[name]!r}" + (f"  # {hints[name]}" if name in hints else "")
        for name in parameters.PARAMETER_NAMES
    )
    nbformat.write(notebook, path)
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder) / path.name
        if failure := report.execute(path, executed, {}, cwd=path.parent):
            raise SystemExit(failure)
        result = nbformat.read(executed, as_version=4)
    for index, done in enumerate(result.cells):
        done.id = f"cell-{index}"
        done.metadata = {"tags": t} if (t := done.metadata.get("tags")) else {}
    result.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    nbformat.write(result, path)


def _yaml(scenario: object) -> str:
    text = yaml.safe_dump(scenario.PARAMETERS, sort_keys=False, allow_unicode=True, width=100)
    return f"# yaml-language-server: $schema=parameters.schema.json\n{text}"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        make(name)
