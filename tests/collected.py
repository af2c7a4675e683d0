"""One incident, collected once for real from a Prometheus and a stand-in node, for many tests."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from conftest import ROOT
from prometheus_server import Server, serve
from standin_node import NodeState, StandInNode

sys.path.append(str(ROOT))

from examples import quic_failure as scenario
from tbforensics import parameters
from tbforensics.case import case_of
from tbforensics.model import Incident

PROJECT = ("notebooks", "parameters")


@dataclass
class World:
    """What the parameters of the first example name, running on free ports.

    home: a project folder whose `incidents/` holds the sealed case; not to be changed.
    """

    prometheus: Server
    node: StandInNode
    home: Path
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def case(self) -> Path:
        return self.home / "incidents" / str(scenario.PARAMETERS["incident_id"])

    def parameters(self, **changes: Any) -> dict[str, Any]:
        return {**scenario.PARAMETERS, "sources": dict(self.sources), **changes}

    def incident(self, **changes: Any) -> Incident:
        return parameters.incident_from(self.parameters(**changes))

    def project(self, folder: Path, *, case: bool = True) -> Path:
        """A project of its own for one test, with a copy of the case or without."""
        for name in (*PROJECT, *(["incidents"] if case else [])):
            shutil.copytree((self.home if name == "incidents" else ROOT) / name, folder / name)
        (folder / "incidents").mkdir(exist_ok=True)
        shutil.copytree(self.home / "dumps", folder / "dumps")
        return folder


@cache
def world() -> World:
    """Started at the first call of a test process, stopped at its end."""
    stack = ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tbforensics-")))
    server = stack.enter_context(serve(folder / "tsdb", scenario.history(), rules=scenario.RULES))
    node = stack.enter_context(StandInNode(NodeState(**scenario.node_state())))
    home = folder / "home"
    (home / "incidents").mkdir(parents=True)
    scenario.write_dumps(home / "dumps")
    sources = {
        "dumps": {"type": "logs", "path": "dumps"},
        "node": {"type": "jsonrpc", "url": node.url},
        "node-logs": {"type": "logs", "url": node.url},
        "prometheus": {"type": "prometheus", "url": server.url},
    }
    made = World(server, node, home, sources)
    case_of(made.incident(), home).evidence.close()
    return made
