"""Case -> executed notebook -> report.html, on record in the custody log."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from tbforensics import manifest, parameters, report, signing
from tbforensics.case import Case
from tbforensics.errors import ReportError
from tbforensics.kernel import Kernel


def publish(case: Case, home: Path, kernel: Kernel | None = None) -> str:
    """Write `report.ipynb` and `report.html` of a sealed case; "" or what failed, in words.

    A notebook that fails part way still gives a report, marked as incomplete.
    kernel: one that waits already.

    Errors: ReportError when there is no notebook for the kind, or nothing can be written.
    """
    _refuse_elsewhere(case, home)
    executed = case.folder / "report.ipynb"
    notebook, given = notebook_of(case.incident.kind, home), parameters.flat(case.incident)
    failure = report.execute(notebook, executed, given, cwd=home, kernel=kernel)
    header = report.Header(
        title=case.incident.title,
        incident_id=case.incident.id,
        kind=case.kind.title,
        window=case.incident.window,
        baseline=case.incident.baseline,
        verdict=case.assessment.verdict,
        reasons=case.assessment.reasons,
        manifest_sha256=case.manifest.sha256,
        findings_sha256=manifest.sha256_of(case.folder / "findings.json"),
        tool_version=manifest.tool_version(),
        rendered_at=datetime.now(UTC),
        failure=failure,
        signature=signing.words(case.folder),
    )
    report.write_report(executed, case.folder / "report.html", header)
    names = ("report.ipynb", "report.html")
    files = {name: manifest.sha256_of(case.folder / name) for name in names}
    manifest.note_act(case.folder, "rendered", files=files, failure=failure)
    return failure


def _refuse_elsewhere(case: Case, home: Path) -> None:
    """The notebook opens `incidents/<id>` of the project; were it not there, it would ask anew."""
    place = home / "incidents" / case.incident.id
    if not (place.exists() and place.samefile(case.folder)):
        raise ReportError(
            f"{case.folder.name} does not lie in incidents/{case.incident.id} of a project",
            next_step=f"put it there; to look at it here, use tbforensics verify {case.folder}",
        )


def notebook_of(kind: str, home: Path) -> Path:
    """The project's own notebook of a kind, or the one that comes with the package."""
    name = f"{kind}.ipynb"
    packaged = Path(str(resources.files("tbforensics"))) / "notebooks" / name
    checkout = Path(str(resources.files("tbforensics"))).parent / "notebooks" / name
    for path in (home / "notebooks" / name, packaged, checkout):
        if path.is_file():
            return path
    raise ReportError(f"there is no notebook for {kind}", next_step=f"write notebooks/{name}")
