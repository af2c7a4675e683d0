"""The command line: parse, call, print. Heavy imports wait until a command needs them.

Exit codes: 0 done; 1 it could not be done, with what to do next; 2 wrong usage; 3 done, but some
evidence is missing (a source failed or was not covered); 4 a report was written, but its notebook
failed part way.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tbforensics.errors import ForensicsError

if TYPE_CHECKING:
    from tbforensics.case import Case
    from tbforensics.kernel import Kernel
    from tbforensics.model import Capture, Incident

MISSING_EVIDENCE, FAILED_NOTEBOOK = 3, 4
_CASE = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_SCHEDULER = click.option(
    "--scheduler",
    default="",
    metavar="ADDRESS",
    help="let the workers of this Dask scheduler ask and parse: tcp://HOST:PORT",
)
# What no program can help: the disk is full or shut, or may not be read.
_OF_THE_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


class _Errors(click.Group):
    """Our errors are printed in words; anything else is a bug and keeps its traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ForensicsError as error:
            click.echo(_inert(str(error)), err=True)
            context.exit(1)
        except OSError as error:
            if error.errno not in _OF_THE_MACHINE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            click.echo(_inert(f"{where}{error.strerror}"), err=True)
            context.exit(1)


@click.group(cls=_Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tbforensics")
def main() -> None:
    """Incident forensics: ask once, seal, then work offline.

    \b
    A first run:
      tbforensics new quic_failure --id INC-2026-0042 --start ... --end ...
      tbforensics run parameters/INC-2026-0042.yaml
    """


# --- the main road -------------------------------------------------------------------------


@main.command()
@click.argument("parameters", type=click.Path(path_type=Path))
@_SCHEDULER
def run(parameters: Path, scheduler: str) -> None:
    """Collect, seal, execute the notebook, render the report."""
    incident, home = _read(parameters), _home(parameters)
    from tbforensics import kernel

    waiting = kernel.waiting()  # before there is a thread
    _publish(_sealed(incident, home, scheduler), home, waiting)


@main.command()
@click.argument("parameters", type=click.Path(path_type=Path))
@_SCHEDULER
def collect(parameters: Path, scheduler: str) -> None:
    """Ask every source once and seal the answers."""
    case = _sealed(_read(parameters), _home(parameters), scheduler)
    sys.exit(_summary(case))


@main.command()
@click.argument("parameters", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-j", "--jobs", type=click.IntRange(min=1), help="cases at a time; default: cores")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="the table for machines")
@_SCHEDULER
def batch(
    parameters: tuple[Path, ...], jobs: int | None, json_file: Path | None, scheduler: str
) -> None:
    """Do as `run` does for many; what is done already is not done again.

    One that fails does not stop the others, and exits with the worst of their codes. What each
    says is in incidents/<id>.log.
    """
    from tbforensics import batch as work
    from tbforensics.manifest import write_atomically

    if json_file and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder for {json_file}", param_hint="--json")
    cases = work.plan(parameters, scheduler)
    ended = iter(range(1, len(cases) + 1))

    def tell(outcome: work.Outcome) -> None:
        place, words = f"{next(ended)}/{len(cases)}", outcome.error or outcome.verdict
        before = "done before" if outcome.before else f"{outcome.seconds:.1f} s"
        click.echo(_inert(f"{place} {outcome.incident}: {words} ({before})"), err=True)

    outcomes = work.run_all(cases, jobs or _cores(), tell)
    click.echo(work.summary(outcomes))
    if json_file:
        text = json.dumps(work.to_json(outcomes), indent=1, ensure_ascii=False) + "\n"
        write_atomically(json_file, text.encode())
    sys.exit(work.worst(outcomes))


@main.command()
@click.argument("case", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(case: Path) -> None:
    """Execute the notebook and render the report of a sealed case, offline."""
    from tbforensics import kernel
    from tbforensics.case import open_case

    waiting = kernel.waiting()
    opened = open_case(case)
    opened.record_findings()
    _publish(opened, case.resolve().parent.parent, waiting)


@main.command()
@click.argument("case", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--recompute", is_flag=True, help="also make the evidence anew from raw/")
@click.option("--key", "keys", multiple=True, type=_FILE, help="public key that must have signed")
@click.option("--record", is_flag=True, help="note in the custody log that this was checked")
def verify(case: Path, recompute: bool, keys: tuple[Path, ...], record: bool) -> None:
    """Prove offline that a case is what was sealed; name the first thing that is not."""
    from itertools import chain

    from tbforensics import manifest, signing
    from tbforensics.case import prove

    publics = [signing.read_public(path) for path in keys]
    broken = None
    for check in chain(prove(case, recompute=recompute), signing.checks(case, publics)):
        click.echo(
            f"{'ok     ' if check.holds else 'BROKEN '} {check.name}: {_inert(check.detail)}"
        )
        broken = broken or (None if check.holds else check)
    if broken:
        click.echo(f"{case.name} does not hold: {_inert(broken.detail)}", err=True)
        sys.exit(1)
    if record:
        manifest.note_act(case, "verified", keys=[key.keyid for key in publics])
    click.echo(f"{case.name} holds")


@main.command()
@click.argument("case", type=click.Path(exists=True, file_okay=False, path_type=Path))
def rebuild(case: Path) -> None:
    """Make evidence/ and evidence.duckdb anew from raw/."""
    from tbforensics import build as work
    from tbforensics import manifest
    from tbforensics.parameters import read_parameters

    work.rebuild(case, read_parameters(case / "parameters.yaml"))
    manifest.note_act(case, "rebuilt")
    click.echo(f"{case}/evidence is rebuilt; check it with: tbforensics verify {case}")


# --- before the road -----------------------------------------------------------------------


@main.command()
@click.argument("kind")
@click.option("--id", "incident_id", required=True, help="text with a letter: INC-2026-0042")
@click.option("--start", help="first moment of the window: 2026-03-10T10:00:00Z")
@click.option("--end", help="first moment after the window")
@click.option("--title", default="", help="one line for people")
@click.option(
    "--from-alert",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="an Alertmanager webhook body (version 4), for times, title and timeline",
)
@click.option("--output", type=click.Path(path_type=Path), help="default: parameters/<id>.yaml")
def new(
    kind: str,
    incident_id: str,
    start: str | None,
    end: str | None,
    title: str,
    from_alert: Path | None,
    output: Path | None,
) -> None:
    """Write a parameters file to fill in."""
    from tbforensics import scaffold
    from tbforensics.case import find_home

    alert = scaffold.read_alert(from_alert) if from_alert else scaffold.Alert()
    text = scaffold.parameters_text(kind, incident_id, start, end, title, alert)
    path = output or find_home() / "parameters" / f"{incident_id}.yaml"
    scaffold.write(path, text)
    click.echo(f"{path} is written; name its sources, then: tbforensics run {path}")


@main.command()
def kinds() -> None:
    """The kinds of incident, with the question that each answers."""
    from tbforensics import kinds as plugs

    for name, question in plugs.questions().items():
        click.echo(f"{name:18} {question}")


@main.command()
def sources() -> None:
    """The types of source, with their options."""
    import dataclasses

    from tbforensics import plugins

    for name in plugins.source_names():
        source = plugins.load_source(name)
        options = ", ".join(field.name for field in dataclasses.fields(source.options))
        click.echo(
            f"{name:18} {source.about}" + (f"\n{'':18} options: {options}" if options else "")
        )


@main.command()
@click.argument("what", type=click.Choice(["parameters", "findings"]), default="parameters")
def schema(what: str) -> None:
    """The JSON Schema of a parameters file, or of findings.json."""
    from tbforensics import scaffold

    value = scaffold.json_schema() if what == "parameters" else scaffold.findings_schema()
    click.echo(json.dumps(value, indent=2))


# --- handing on ----------------------------------------------------------------------------


@main.command()
@click.argument("case", type=_CASE)
@click.option("--key", required=True, type=_FILE, help="private Ed25519 key, OpenSSH or PEM")
@click.option("--passphrase-file", type=_FILE, help="default: TBFORENSICS_KEY_PASSPHRASE, or ask")
def sign(case: Path, key: Path, passphrase_file: Path | None) -> None:
    """Vouch for a case as it is. A statement that still holds is countersigned."""
    from tbforensics import signing

    def passphrase() -> str:
        words = f"Passphrase of {key.name}"
        return _passphrase(passphrase_file, "TBFORENSICS_KEY_PASSPHRASE", words)

    who, signed = signing.sign(case, signing.read_private(key, passphrase))
    click.echo(f"{case.name} {'is' if signed else 'was already'} signed by {who}")


@main.command()
@click.argument("case", type=_CASE)
@click.argument("parcel", type=click.Path(path_type=Path))
def export(case: Path, parcel: Path) -> None:
    """Pack a case into one file (an RO-Crate in a ZIP) to hand on."""
    from tbforensics import parcel as work

    sha256, noted = work.export(case, parcel)
    click.echo(f"{sha256}  {parcel}")
    if not noted:
        click.echo(f"{case.name} cannot be written, so its log does not say this", err=True)


@main.command("import")
@click.argument("parcel", type=_FILE)
@click.option("--to", "home", type=_CASE, help="project folder; default: the one we are in")
@click.option("--key", "keys", multiple=True, type=_FILE, help="public key that must have signed")
def import_(parcel: Path, home: Path | None, keys: tuple[Path, ...]) -> None:
    """Unpack a parcel, verify its case, and put it into incidents/."""
    from tbforensics import parcel as work
    from tbforensics import signing
    from tbforensics.case import find_home

    publics = [signing.read_public(path) for path in keys]
    folder = work.unpack(parcel, home or find_home(), publics)
    click.echo(f"{folder} is here and holds; also recompute it: tbforensics verify {folder}")


@main.command()
@click.argument("case", type=_CASE)
@click.option("--rules", required=True, type=_FILE, help="YAML: what becomes a pseudonym")
@click.option("--out", type=click.Path(path_type=Path), help="default: the folder beside the case")
@click.option("--id", "new_id", default="", help="of the copy; default: <id>-redacted")
@click.option("--map", "map_", type=click.Path(path_type=Path), help="default: <copy>.map.age")
@click.option("--same-as", type=_FILE, help="map of an earlier redaction: the same pseudonyms")
@click.option("--passphrase-file", type=_FILE, help="default: TBFORENSICS_MAP_PASSPHRASE, or ask")
def redact(
    case: Path,
    rules: Path,
    out: Path | None,
    new_id: str,
    map_: Path | None,
    same_as: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Copy a case with pseudonyms for what RULES name; the map is sealed apart."""
    from tbforensics import redact as work

    work.read_rules(rules)  # before anybody types a passphrase
    variable, words = "TBFORENSICS_MAP_PASSPHRASE", "Passphrase of the map"
    passphrase = _passphrase(passphrase_file, variable, words, confirm=same_as is None)
    key = work.key_of(same_as, passphrase) if same_as else b""
    out = out or case.resolve().parent
    done = work.redact(case, rules, out, passphrase, key=key, new_id=new_id, map_file=map_)
    counts = ", ".join(f"{number} {rule}" for rule, number in sorted(done.counts.items()))
    click.echo(f"{done.folder}: {counts or 'nothing found to replace'}")
    click.echo(f"{done.map} says what stands for what; keep it apart, age -d opens it")
    if done.withheld:
        click.echo(f"{done.withheld} replies are no text and were withheld", err=True)
    if done.differs:
        click.echo(f"the copy does not say the same: {_inert(done.differs)}", err=True)


# --- shared --------------------------------------------------------------------------------


def _passphrase(file: Path | None, variable: str, words: str, *, confirm: bool = False) -> str:
    """From a file, the environment or the keyboard; never from an argument, which all can see."""
    if file:
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    if text := os.environ.get(variable):
        return text
    return str(click.prompt(words, hide_input=True, confirmation_prompt=confirm, err=True))


def _cores() -> int:
    """Those that this process may use; a container has fewer than its machine."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _read(path: Path) -> Incident:
    from tbforensics.parameters import read_parameters

    return read_parameters(path)


def _home(parameters: Path) -> Path:
    from tbforensics.case import find_home

    return find_home(parameters.resolve().parent)


def _sealed(incident: Incident, home: Path, scheduler: str) -> Case:
    from tbforensics import cluster
    from tbforensics.case import case_of

    progress = _Progress(len(incident.sources))
    try:
        with cluster.workers(scheduler, home) as pool:
            return case_of(incident, home, progress, pool)
    finally:
        progress.end()


class _Progress:
    """One line on a terminal that counts captures; nothing where nobody watches."""

    def __init__(self, sources: int) -> None:
        self.sources, self.asked, self.failed = sources, 0, 0

    def __call__(self, capture: Capture) -> None:
        self.asked += 1
        self.failed += not capture.usable
        if sys.stderr.isatty():
            line = f"{self.asked} replies from {self.sources} sources, {self.failed} failed"
            click.echo(f"\r{line}", err=True, nl=False)

    def end(self) -> None:
        if self.asked and sys.stderr.isatty():
            click.echo(err=True)


def _publish(case: Case, home: Path, kernel: Kernel | None) -> None:
    from tbforensics.publish import publish

    failure = publish(case, home, kernel)
    code = _summary(case)
    click.echo(f"report: {case.folder / 'report.html'}")
    if failure:
        click.echo(f"the notebook failed part way: {_inert(failure)}", err=True)
        sys.exit(FAILED_NOTEBOOK)
    sys.exit(code)


def _summary(case: Case) -> int:
    """Say the verdict and what is missing; the exit code that follows."""
    assessment = case.assessment
    click.echo(f"{case.incident.id}: {assessment.verdict.value}")
    for reason in assessment.reasons:
        click.echo(f"  {_inert(reason)}")
    missing = [row for row in assessment.coverage if row.missing]
    for row in missing:
        click.echo(_inert(f"  {row.state}: {row.query} at {row.source}: {row.detail}"), err=True)
    return MISSING_EVIDENCE if missing else 0


def _inert(text: str) -> str:
    """Evidence may hold terminal escape codes; on a terminal they must not act."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
