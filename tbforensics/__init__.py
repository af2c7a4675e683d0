"""Incident forensics: telemetry asked once, sealed, and read again years later.

    case = investigate(**parameters)      collected and sealed when new, opened when not
    case = open_case("incidents/INC-1")   a sealed case, offline
    case.assessment, case.frames, case.sql("SELECT ..."), case.prometheus()

Names are loaded when they are first used: `import tbforensics` alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tbforensics.case import Case, investigate, open_case
    from tbforensics.errors import (
        EvidenceError,
        ForensicsError,
        ParametersError,
        ReportError,
        SourceError,
    )
    from tbforensics.model import (
        Assessment,
        Capture,
        Coverage,
        Doubt,
        Finding,
        Frames,
        Incident,
        Kind,
        Query,
        Verdict,
        Window,
    )
    from tbforensics.parameters import read_parameters

__all__ = [
    "Assessment",
    "Capture",
    "Case",
    "Coverage",
    "Doubt",
    "EvidenceError",
    "Finding",
    "ForensicsError",
    "Frames",
    "Incident",
    "Kind",
    "ParametersError",
    "Query",
    "ReportError",
    "SourceError",
    "Verdict",
    "Window",
    "investigate",
    "open_case",
    "read_parameters",
]

_ROOMS = {
    "Case": "case",
    "investigate": "case",
    "open_case": "case",
    "read_parameters": "parameters",
    "ForensicsError": "errors",
    "ParametersError": "errors",
    "SourceError": "errors",
    "EvidenceError": "errors",
    "ReportError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tbforensics' has no attribute {name!r}")
    return getattr(import_module(f"tbforensics.{_ROOMS.get(name, 'model')}"), name)
