"""A sealed incident folder, opened read-only: frames, coverage, verdict, SQL."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from tbforensics import (
    assess,
    build,
    collect,
    evidence,
    frames,
    manifest,
    parameters,
    plugins,
    quality,
)
from tbforensics.alerts import watch as alertwatch
from tbforensics.alerts.watch import Watched
from tbforensics.archive import Archive
from tbforensics.asking.sealed import Prometheus, prometheus_client, sealed_session
from tbforensics.errors import EvidenceError, ForensicsError, Unseen
from tbforensics.evidence import Evidence
from tbforensics.model import Assessment, Capture, Frames, Incident, Json, Query, Shape


class Case:
    """Everything that a notebook needs, and nothing that it could change.

    incident, kind, manifest: what was asked, why, and what came.
    frames:   one table per query; see `Frames`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = manifest.read_manifest(folder)
        self.incident = parameters.read_parameters(folder / "parameters.yaml")
        self.kind = plugins.load_kind(self.incident.kind)
        self.queries = collect.catalogue(self.kind, self.incident.sources)
        self.archive = Archive(folder)
        self._refuse_other_parts()
        self.evidence = Evidence(folder)

    def _refuse_other_parts(self) -> None:
        """Evidence that went missing would read as silence; more of it, as something seen."""
        sealed = {str(part["path"]) for part in self.manifest.parts}
        if other := sorted(sealed.symmetric_difference(manifest.part_paths(self.folder))):
            word = "missing" if other[0] in sealed else "not in the manifest"
            raise EvidenceError(
                f"{self.folder.name} cannot be opened: {other[0]} is {word}",
                next_step=f"make the evidence anew: tbforensics rebuild {self.folder}",
            )

    # --- what was seen --------------------------------------------------------------------

    @cached_property
    def frames(self) -> Frames:
        """Every query as a table, over baseline and window at the incident's step."""
        return Frames(
            window=self.incident.window,
            baseline=self.incident.baseline,
            step_s=self.incident.step_s,
            tables={
                **{name: self.evidence.snapshots(name) for name in self.evidence.answered()},
                **{query.name: self._table(query) for query in self.queries},
            },
            coverage=tuple(
                quality.coverage(self.incident, self.queries, self.manifest, self.evidence)
            ),
            doubts=tuple(quality.doubts(self.incident, self.queries, self.manifest, self.evidence)),
        )

    def _table(self, query: Query) -> pd.DataFrame:
        span, step_s = self.incident.span, self.incident.step_s
        if query.source == "logs":
            return self.evidence.logs(span)
        if query.shape is Shape.RECORDS:
            return self.evidence.records_of(query.name, span)
        if query.shape is Shape.ROWS:
            return self.evidence.snapshots(query.name)
        if query.shape is Shape.GAUGE:
            return frames.last(self.evidence, query.name, span, step_s)
        replies = self.captures_of(query.name)
        return frames.increase(self.evidence, query.name, span, step_s, replies)

    @cached_property
    def sight(self) -> pd.DataFrame:
        """When each of the kind's queries was seen: True or False per step of a minute or more."""
        counters = [q.name for q in self.queries if q.shape in (Shape.COUNTER, Shape.HISTOGRAM)]
        step_s = max(60.0, self.incident.step_s)
        replies = self.manifest.captures
        table = frames.sight(self.evidence, self.incident.span, step_s, counters, replies)
        # What is written only when something happens is not unseen in between.
        steady = [q for q in self.queries if not q.sparse]
        steady = [q for q in steady if q.shape is not Shape.RECORDS or q.required]
        return table[[q.name for q in steady if q.name in table.columns]]

    # --- what it means --------------------------------------------------------------------

    @cached_property
    def assessment(self) -> Assessment:
        """The verdict with its findings, computed from the evidence alone."""
        return assess.assess(self.incident, self.kind, self.frames, self.alerts)

    @cached_property
    def alerts(self) -> tuple[Watched, ...]:
        """The alert rules about this kind's metrics, replayed over the evidence."""
        return alertwatch.watch(self.evidence, self.incident, self.queries, self.manifest.captures)

    def findings_json(self) -> bytes:
        """What `findings.json` holds: the same bytes for the same evidence and parameters."""
        cited = {name for f in self.assessment.findings for name in f.cites}
        return manifest.canonical(
            {
                "format": manifest.FORMAT,
                "incident": self.incident.id,
                "kind": self.incident.kind,
                "window": self.incident.window.to_json(),
                "baseline": self.incident.baseline.to_json(),
                "step_s": self.incident.step_s,
                "thresholds": dict(self.incident.thresholds),
                "manifest_sha256": self.manifest.sha256,
                **assess.to_json(self.assessment),
                "evidence": {name: self._rests_on(name) for name in sorted(cited)},
            }
        )

    def _rests_on(self, name: str) -> Json:
        """The question behind a name, and the hashes of its replies."""
        captures = self.captures_of(name)
        types = {source.name: source.type for source in self.incident.sources}
        # What a source tells of itself (its alert rules) is no query of any kind.
        of_source = Query(name, next((types.get(c.source, "") for c in captures), ""), name)
        query = self.catalogue.get(name, of_source)
        return {
            "source": query.source,
            "text": query.text,
            "unit": query.unit,
            "captures": sorted({c.sha256 for c in captures if c.sha256}),
        }

    def record_findings(self) -> str:
        """Write `findings.json` where it is missing or differs; its SHA-256."""
        name = "findings.json"
        manifest.keep_on_record(self.folder, name, self.findings_json(), "assessed")
        return manifest.sha256_of(self.folder / name)

    # --- where it came from ---------------------------------------------------------------

    @cached_property
    def captures(self) -> dict[str, list[Capture]]:
        """Every capture, by the name of its query."""
        names = sorted({capture.query for capture in self.manifest.captures})
        return {name: self.captures_of(name) for name in names}

    @cached_property
    def catalogue(self) -> dict[str, Query]:
        """Every query, by its name."""
        return {query.name: query for query in self.queries}

    def captures_of(self, query: str) -> list[Capture]:
        return self.manifest.captures_of(query)

    # --- for the analyst ------------------------------------------------------------------

    def sql(self, text: str, values: Sequence[Any] | dict[str, Any] = ()) -> pd.DataFrame:
        """A SELECT over series, samples, readings, histograms, log_lines, snapshots, quarantine."""
        return self.evidence.sql(text, values)

    def sql_by_part(
        self, table: str, each: str, whole: str, pool: Executor | None = None, **values: Any
    ) -> pd.DataFrame:
        """As `sql`, part by part, for evidence that no one machine should read at once.

        `each` is a SELECT from `part`, the rows of one part of `table`; `whole` is one from
        `parts`, what all parts answered. With `cluster.workers(...)` as pool, workers answer.
        """
        return self.evidence.sql_by_part(table, each, whole, values, pool)

    def at_lines(
        self, query: str, on: Mapping[str, str], levels: Sequence[str] = ()
    ) -> pd.DataFrame:
        """Log lines, each with what a query said last before it; see `frames.at_lines`."""
        return frames.at_lines(self.evidence, query, self.incident.span, on, levels)

    def body(self, capture: Capture) -> bytes:
        """A reply, byte for byte, as it came."""
        return self.archive.read(capture)

    def prometheus(self, source: str | None = None) -> Prometheus:
        """prometheus-pandas on the sealed replies of a source; it never touches the network.

        Errors: EvidenceError for a question that was never asked; it lists those that were.
        """
        configs = [s for s in self.incident.sources if s.type == "prometheus"]
        chosen = next((s for s in configs if source in (None, s.name)), None)
        if chosen is None:
            raise EvidenceError(
                f"the case has no Prometheus source {source or ''}",
                next_step=f"its sources: {', '.join(s.name for s in self.incident.sources)}",
            )
        captures = [c for c in self.manifest.captures if c.source == chosen.name]
        return prometheus_client(str(chosen.url), sealed_session(captures, self.archive))


def open_case(folder: Path | str) -> Case:
    """A sealed case, read-only.

    Errors: EvidenceError when it is not sealed, or sealed by a version that we cannot read.
    """
    return Case(Path(folder))


def find_home(start: Path | None = None) -> Path:
    """The project folder: the nearest one upwards that holds `incidents/`, else where we are.

    A parameters file of a new project lies in `parameters/`, which is not where cases belong.
    """
    here = Path.cwd()
    below = (start or here).resolve()
    return next((p for p in (below, *below.parents) if (p / "incidents").is_dir()), here)


def investigate(**flat: Json) -> Case:
    """The case of an incident: collected and sealed when it is new, opened when it is not.

    flat: the keys of a parameters file. With empty `sources` there is nobody to ask, so the case
          must be sealed already.

    Errors: ParametersError; EvidenceError when a case of that id asked something else.
    """
    return case_of(parameters.incident_from(flat), find_home())


def case_of(
    incident: Incident,
    home: Path,
    report: Callable[[Capture], None] = lambda capture: None,
    pool: Executor | None = None,
) -> Case:
    """As `investigate`, for parameters that were read already. pool: as for `collect`."""
    folder = home / "incidents" / incident.id
    if not folder.exists():
        if not incident.sources:
            raise EvidenceError(
                f"incidents/{incident.id} is not there and `sources` is empty",
                next_step="name sources to ask, or the id of a sealed case",
            )
        collect.collect(incident, home, report, pool)
    opened = open_case(folder)
    if incident.sources:
        collect.tidy(folder)
        amend(opened, incident)
        opened = open_case(folder)
    opened.record_findings()
    return opened


def amend(sealed: Case, incident: Incident) -> None:
    """Bring what people may add later (timeline, thresholds, notes, ...) into a sealed case.

    Errors: EvidenceError when the parameters ask for other evidence than the case holds.
    """
    if incident.digest != sealed.manifest.asked_sha256:
        ours, theirs = parameters.flat(incident), parameters.flat(sealed.incident)
        keys = ("kind", "start", "end", "baseline_start", "baseline_end", "sources")
        raise EvidenceError(
            f"incidents/{incident.id} was sealed for another question",
            problems=[
                f"{k}: sealed {theirs[k]}, now {ours[k]}" for k in keys if ours[k] != theirs[k]
            ],
            next_step="give the new question another incident_id; sealed evidence stays as it is",
        )
    content = parameters.to_yaml(incident)
    manifest.keep_on_record(sealed.folder, "parameters.yaml", content, "amended")


def prove(folder: Path, *, recompute: bool = False) -> Iterator[manifest.Check]:
    """Every check of `verify`: hashes first, then the findings computed again from the evidence.

    recompute: also make the evidence anew from `raw/` and compare it part by part: their bytes,
               or their rows where another version of a library writes other bytes for them.
    """
    sound = True
    for check in manifest.checks(folder):
        sound = sound and check.holds
        yield check
    if not sound:
        return  # what does not hash right would be computed from something else
    try:
        opened = open_case(folder)
    except Unseen:
        raise  # what was not seen is not broken
    except ForensicsError as error:
        yield manifest.Check("opened", False, error.what)
        return
    yield _same_question(opened)
    if recompute:
        yield _rebuilt(opened)
    path = folder / "findings.json"
    if not path.exists():
        yield manifest.Check("findings recomputed", True, "none are recorded yet")
        return
    if opened.findings_json() == path.read_bytes():
        yield manifest.Check("findings recomputed", True, "byte for byte as recorded")
        return
    detail = "the evidence gives other findings than findings.json"
    yield manifest.Check("findings recomputed", False, detail + _other_version(opened))


def _same_question(opened: Case) -> manifest.Check:
    """`parameters.yaml` may be amended, but never into another question."""
    if opened.incident.digest == opened.manifest.asked_sha256:
        return manifest.Check("question", True, "the parameters ask what was sealed")
    detail = "parameters.yaml asks something else than what was sealed"
    return manifest.Check("question", False, detail + _other_version(opened))


def _other_version(opened: Case) -> str:
    made, here = opened.manifest.tool.get("version"), manifest.tool_version()
    return "" if made == here else f"; it was sealed by version {made}, this is {here}"


def _rebuilt(opened: Case) -> manifest.Check:
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        build.build(fresh, opened.incident, opened.manifest.captures, replies_of=opened.folder)
        sealed = {part["path"]: part["sha256"] for part in opened.manifest.parts}
        found = {part["path"]: part["sha256"] for part in manifest.parts_of(fresh)}
        unlike = {p for p in sealed.keys() | found.keys() if sealed.get(p) != found.get(p)}
        groups = sorted({evidence.part_of(path)[0] for path in unlike})
        for group in groups:
            one, other = (
                [root / path for path in paths if evidence.part_of(path)[0] == group]
                for root, paths in ((opened.archive.place, sealed), (fresh, found))
            )
            if not (one and other and evidence.same_rows(one, other)):
                detail = f"{group} comes out differently{_other_version(opened)}"
                return manifest.Check("evidence rebuilt", False, detail)
    if groups:
        detail = f"the same rows from raw/ in {len(groups)} parts that are written differently"
        return manifest.Check("evidence rebuilt", True, f"{detail}, the others byte for byte")
    return manifest.Check("evidence rebuilt", True, f"{len(found)} parts from raw/, as sealed")
