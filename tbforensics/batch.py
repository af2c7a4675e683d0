"""Many incidents, several at a time, each in a process of its own.

    plan       parameters files -> what to do, or every problem of all of them at once
    run_all    all of it; a case that fails or is killed costs the others nothing
    run_case   one of them, from collecting to the report; what became of it

What is done already is not done again, so the same command takes up what was interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tbforensics import cluster, kernel, manifest
from tbforensics.case import case_of, find_home
from tbforensics.errors import EvidenceError, ForensicsError, ParametersError
from tbforensics.kernel import Kernel
from tbforensics.model import Capture, Coverage, Incident, Json, utc_text
from tbforensics.parameters import read_parameters, to_yaml
from tbforensics.publish import publish
from tbforensics.report_page.text import show_hidden, table_of, visible

DONE, FAILED, MISSING_EVIDENCE, FAILED_NOTEBOOK = 0, 1, 3, 4  # as `run` exits
_WORST_FIRST = (FAILED, FAILED_NOTEBOOK, MISSING_EVIDENCE, DONE)
_GRACE_S = 5.0  # for a case that is told to stop, to close what it holds
_LOOK_S = 0.2  # how often to look whether a process died without a word
_PRINTED = ("parameters.yaml", "findings.json", "report.ipynb", "report.html")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """A parameters file that can be used, and the project that its case belongs to.

    scheduler: whose workers do the work, see `cluster`; nobody's by default.
    """

    parameters: Path
    incident: Incident
    home: Path
    scheduler: str = ""

    @property
    def folder(self) -> Path:
        return self.home / "incidents" / self.incident.id

    @property
    def log(self) -> Path:
        """Beside the case and not in it, for it is no evidence."""
        return self.folder.with_name(f"{self.incident.id}.log")


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    code:    what `tbforensics run` would have exited with.
    covered: how many of the questions that were `asked` were answered in full.
    missing: those whose answers went wrong, or that the kind cannot do without.
    error:   the first line of what went wrong; the log has all of it.
    before:  it was done already, and nothing was done now.
    """

    incident: str
    kind: str
    code: int
    verdict: str = ""
    asked: int = 0
    covered: int = 0
    missing: tuple[str, ...] = ()
    seconds: float = 0.0
    report: str = ""
    log: str = ""
    error: str = ""
    before: bool = False


def worst(outcomes: Iterable[Outcome]) -> int:
    """The exit code of all together."""
    return min((o.code for o in outcomes), key=_WORST_FIRST.index, default=DONE)


# --- before anything starts ----------------------------------------------------------------


def plan(files: Iterable[Path], scheduler: str = "") -> list[Planned]:
    """Errors: ParametersError with every problem of all files; nothing was asked then."""
    planned: dict[str, Planned] = {}
    problems: list[str] = []
    for file in files:
        try:
            incident = read_parameters(file)
        except ParametersError as error:
            problems += [f"{file}: {line}" for line in error.problems or [error.what]]
            continue
        if twin := planned.get(incident.id):
            problems.append(f"{file}: {twin.parameters} has the incident_id {incident.id} too")
        home = find_home(file.resolve().parent)
        planned[incident.id] = Planned(file, incident, home, scheduler)
    if problems:
        raise ParametersError(
            "these parameters files cannot be used together:",
            problems=problems,
            next_step="correct them and run again; nothing was asked",
        )
    return list(planned.values())


def done_before(planned: Planned) -> Outcome | None:
    """The outcome of a case that is sealed, assessed and printed as its parameters ask."""
    folder, incident = planned.folder, planned.incident
    try:
        acts = manifest.custody(folder)
        known = {name: manifest.last_known(acts, name) for name in _PRINTED}
        if known != {name: manifest.sha256_of(folder / name) for name in _PRINTED}:
            return None
        if incident.sources and (folder / "parameters.yaml").read_bytes() != to_yaml(incident):
            return None
        findings = json.loads((folder / "findings.json").read_bytes())
        coverage = [Coverage(**row) for row in findings["coverage"]]
        outcome = _outcome(planned, findings["verdict"], coverage)
    except (EvidenceError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # the run will say what is wrong with it
    changed = [n for n, act in enumerate(acts) if {*_PRINTED[:2]} & {*act.get("files", ())}]
    printed = [n for n, act in enumerate(acts) if act.get("act") == "rendered"]
    if not printed or printed[-1] < changed[-1] or acts[printed[-1]].get("failure"):
        return None
    return dataclasses.replace(outcome, before=True)


# --- one case ------------------------------------------------------------------------------


def run_case(planned: Planned, say: Say, waiting: Kernel | None = None) -> Outcome:
    """Collect or take up, seal, assess, execute and print one incident; never raises.

    say:     gets what a person would want to read about it.
    waiting: a kernel for the notebook that waits already.
    """
    begun = time.monotonic()
    try:
        with cluster.workers(planned.scheduler, planned.home) as pool:
            case = case_of(planned.incident, planned.home, lambda c: _note(c, say), pool)
        failure = publish(case, planned.home, waiting)
        say("\n".join([case.assessment.verdict.value, *case.assessment.reasons, failure]))
        outcome = _outcome(planned, case.assessment.verdict, case.assessment.coverage, failure)
    except ForensicsError as error:
        say(str(error))
        outcome = _failed(planned, error.what)
    except Exception as error:  # our own bug costs this case, and none of the others
        say(traceback.format_exc())
        outcome = _failed(planned, f"{type(error).__name__}: {error}")
    return dataclasses.replace(outcome, seconds=round(time.monotonic() - begun, 2))


def _note(capture: Capture, say: Say) -> None:
    if not capture.usable:
        say(f"{capture.source} did not answer {capture.query}: {capture.error}")


def _outcome(
    planned: Planned, verdict: str, coverage: Sequence[Coverage], failure: str = ""
) -> Outcome:
    lacking = tuple(f"{row.query} {row.state}" for row in coverage if row.missing)
    code = FAILED_NOTEBOOK if failure else MISSING_EVIDENCE if lacking else DONE
    return Outcome(
        planned.incident.id,
        planned.incident.kind,
        code,
        verdict=str(verdict),
        asked=len(coverage),
        covered=sum(row.enough for row in coverage),
        missing=lacking,
        report=str(planned.folder / "report.html"),
        log=str(planned.log),
        error=failure,
    )


def _failed(planned: Planned, words: str) -> Outcome:
    line = visible(words.partition("\n")[0], limit=200)
    incident = planned.incident
    return Outcome(incident.id, incident.kind, FAILED, log=str(planned.log), error=line)


# --- all cases -----------------------------------------------------------------------------


def run_all(
    cases: Sequence[Planned], jobs: int, ended: Callable[[Outcome], None] = lambda outcome: None
) -> list[Outcome]:
    """Every case that is not done yet, `jobs` at a time; the outcomes, in the order of the cases.

    ended: called with each outcome as it comes.

    Whoever interrupts it, with Ctrl-C or SIGTERM, gets the outcomes so far: what runs is stopped,
    what it captured is kept, and what did not begin says so.
    """
    outcomes: dict[str, Outcome] = {}
    ahead, running = deque[Planned](), list[_Running]()

    def end(outcome: Outcome) -> None:
        outcomes[outcome.incident] = outcome
        ended(outcome)

    for planned in cases:
        if before := done_before(planned):
            end(before)
        else:
            ahead.append(planned)
    if ahead:
        kernel.warm_up()  # once, for the processes of all
    with _terminated_as_interrupted():
        try:
            while ahead or running:
                while ahead and len(running) < jobs:
                    running.append(_Running(ahead.popleft()))
                wait([case.answer for case in running], timeout=_LOOK_S)
                for case in [case for case in running if case.is_over]:
                    running.remove(case)
                    end(case.outcome())
        except KeyboardInterrupt:
            _stop(running)
            for case in running:
                end(case.outcome("it was stopped; what it captured is kept"))
            for planned in ahead:
                end(_failed(planned, "it did not begin"))
    return [outcomes[planned.incident.id] for planned in cases]


class _Running:
    """One case in a process of its own, so that not even `kill -9` reaches another."""

    def __init__(self, planned: Planned) -> None:
        self.planned = planned
        self.begun = time.monotonic()
        self.answer, sender = _CONTEXT.Pipe(duplex=False)
        self.process = _CONTEXT.Process(target=_child, args=(planned, sender))
        self.process.start()
        sender.close()  # or no end of the process would be an end of its answer

    @property
    def is_over(self) -> bool:
        return self.process.exitcode is not None or bool(self.answer.poll())

    def outcome(self, otherwise: str = "") -> Outcome:
        """What it said of itself; a process that was killed says nothing."""
        said: Outcome | None = None
        with suppress(EOFError, OSError):
            if self.answer.poll():
                said = self.answer.recv()
        self.process.join(_GRACE_S)
        self.signal(signal.SIGKILL)  # it has said all that it had to say
        self.process.join()
        seconds = round(time.monotonic() - self.begun, 2)
        died = _failed(self.planned, otherwise or _death(self.process.exitcode))
        return said or dataclasses.replace(died, seconds=seconds)

    def signal(self, number: int) -> None:
        if self.process.exitcode is None:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:  # it has no session of its own yet
                os.kill(self.process.pid, number)


_CONTEXT: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _death(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "its process was killed, as the system does when memory runs out"
    return f"its process ended with {code}, and the log may say why"


def _stop(running: Sequence[_Running]) -> None:
    """Ctrl-C for each, and after a while, or after another one for us, the end."""
    try:
        for case in running:
            case.signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE_S
        for case in running:
            case.process.join(max(0.0, deadline - time.monotonic()))
    except KeyboardInterrupt:
        pass  # whoever asks twice means it
    for case in running:
        case.signal(signal.SIGKILL)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _child(planned: Planned, answer: Connection) -> None:
    os.setsid()  # Ctrl-C is for the process that started this one
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        planned.log.parent.mkdir(parents=True, exist_ok=True)
        with planned.log.open("a", encoding="utf-8") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)  # what libraries and the kernel print, too

            def say(words: str) -> None:
                # Evidence may hold what a terminal would obey, and logs are read on terminals.
                log.write(show_hidden(words, lines=True).rstrip() + "\n")
                log.flush()

            say(f"--- {utc_text(datetime.now(UTC))} {planned.parameters}")
            answer.send(run_case(planned, say, kernel.waiting()))
    except OSError as error:
        answer.send(_failed(planned, f"{planned.log} cannot be written: {error.strerror}"))
    except KeyboardInterrupt:
        pass  # who interrupts knows


# --- what to read --------------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome]) -> str:
    """One line a case."""
    return table_of(map(_row, outcomes)).text


def _row(outcome: Outcome) -> dict[str, Json]:
    answered = f"{outcome.covered} of {outcome.asked} covered" if outcome.asked else ""
    shown, more = outcome.missing[:2], len(outcome.missing) - 2
    lacking = [*shown, *([f"{more} more"] if more > 0 else [])]
    return {
        "incident": outcome.incident,
        "kind": outcome.kind,
        "verdict": outcome.verdict,
        "evidence": ", ".join([answered, *lacking]),
        "exit": outcome.code,
        "seconds": "before" if outcome.before else f"{outcome.seconds:.1f}",
        "report": outcome.error or os.path.relpath(outcome.report),
    }


def to_json(outcomes: Sequence[Outcome]) -> dict[str, Json]:
    """The same for machines."""
    return {
        "exit": worst(outcomes),
        "cases": [{**dataclasses.asdict(o), "missing": list(o.missing)} for o in outcomes],
    }
