"""Captures -> parts of the evidence, several at a time, while others are still asked for.

The captures are cut into jobs by what they are, never by who does them or when, and a job knows
nothing of the others. So the parts have the same bytes for any number of workers, on any machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from tbforensics import evidence, manifest, plugins, store
from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Incident

JOB_BYTES = 8 << 20  # of replies; what is parsed in a fraction of a second
_MOST_WORKERS = 4  # each holds a reply in memory, and beyond this the disk is what they wait for


@dataclass(frozen=True)
class Job:
    """Captures of one query of one source, in order, that become one part of each table."""

    number: int  # of the jobs of this query, from 1
    captures: tuple[Capture, ...]

    @property
    def name(self) -> tuple[str, str, int]:
        return *_query(self.captures[0]), self.number


class Making:
    """Parts of a case that are made while more of its captures come; see `making`."""

    def __init__(self, to: Path, raw: Path, incident: Incident, pool: Executor) -> None:
        self._to, self._raw, self._pool = to, raw, pool
        self._types = {config.name: config.type for config in incident.sources}
        self._cuts: dict[tuple[str, str], _Cut] = {}
        self._begun: dict[tuple[str, str, int], tuple[Job, Future[evidence.Shared]]] = {}

    def add(self, capture: Capture) -> None:
        """Begin the job that this completes, if it will be one. A source has one thread."""
        if _says_something(capture):
            cut = self._cuts.setdefault(_query(capture), _Cut())
            if job := cut.add(capture):
                self._begin(job)

    def finish(self, captures: Iterable[Capture]) -> None:
        """All parts of these captures, whatever was added before and in what order."""
        wanted = {job.name: job for job in jobs(captures)}
        for name, (job, made) in [*self._begun.items()]:
            if wanted.get(name) != job:
                wait([made])
                evidence.drop(self._to, *name)
                del self._begun[name]
        for name, job in wanted.items():
            if name not in self._begun:
                self._begin(job)
        evidence.write_shared(self._to, [self._begun[name][1].result() for name in wanted])

    def cancel(self) -> None:
        for _, made in self._begun.values():
            made.cancel()

    def _begin(self, job: Job) -> None:
        made = self._pool.submit(make, self._to, self._raw, self._types, job)
        self._begun[job.name] = job, made


@contextmanager
def making(
    folder: Path, incident: Incident, pool: Executor | None = None, replies_of: Path | None = None
) -> Iterator[Making]:
    """`raw/` -> `evidence/`: the same captures give the same bytes, on any machine.

    pool:       who does the jobs, threads of our own by default; workers elsewhere must find
                `folder` under the same path, or share a store.
    replies_of: the case whose `raw/` it is, where that is another than `folder`.
    """
    if pool is None:
        threads = ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1))
        with threads, making(folder, incident, threads, replies_of) as parts:
            yield parts
        return
    to, raw = (store.place_of(case).absolute() for case in (folder, replies_of or folder))
    parts = Making(to, raw, incident, pool)
    try:
        yield parts
    finally:
        parts.cancel()


def build(
    folder: Path,
    incident: Incident,
    captures: Iterable[Capture],
    replies_of: Path | None = None,
) -> None:
    """As `making`, of captures that are all there."""
    with making(folder, incident, replies_of=replies_of) as parts:
        parts.finish(captures)


def jobs(captures: Iterable[Capture]) -> Iterator[Job]:
    """Captures of one query follow each other; a job ends when it has `JOB_BYTES`."""
    telling = filter(_says_something, manifest.ordered(captures))
    for _, of_one in groupby(telling, _query):
        cut = _Cut()
        for capture in of_one:
            if job := cut.add(capture):
                yield job
        if job := cut.rest():
            yield job


class _Cut:
    """Cuts the captures of one query into jobs."""

    def __init__(self) -> None:
        self._number, self._bytes = 1, 0
        self._together: list[Capture] = []

    def add(self, capture: Capture) -> Job | None:
        self._together.append(capture)
        self._bytes += capture.bytes
        return self.rest() if self._bytes >= JOB_BYTES else None

    def rest(self) -> Job | None:
        if not self._together:
            return None
        job = Job(self._number, tuple(self._together))
        self._number, self._bytes, self._together = self._number + 1, 0, []
        return job


def _says_something(capture: Capture) -> bool:
    # A reply that was cut or that is an error in words still says something.
    return capture.usable or bool(capture.sha256 and capture.status == 200)


def make(to: Path, raw: Path, types: Mapping[str, str], job: Job) -> evidence.Shared:
    """Write the parts of one job; what it adds to the tables that all jobs share.

    to, raw: the places of the case that gets the parts, and of the one that has the replies.
    """
    source, query = _query(job.captures[0])
    parser, archive = plugins.load_source(types[source]), Archive(raw)
    with evidence.Part(to, source, query, job.number) as part:
        for capture in job.captures:
            try:
                with archive.open(capture) as body:
                    for table, rows in parser.parse(capture, body):
                        part.add(table, rows)
            except (EvidenceError, OSError):
                raise  # the archive lost or damaged the reply: no word about the reply itself
            except Exception as error:  # evidence is hostile: what breaks a parser is set aside
                part.add("quarantine", _unread(capture, error))
    return part.shared


def _query(capture: Capture) -> tuple[str, str]:
    return capture.source, capture.query


def _unread(capture: Capture, error: Exception) -> pa.Table:
    record = {
        "source": capture.source,
        "query": capture.query,
        "reason": f"the reply could not be read: {type(error).__name__}: {error}"[:500],
    }
    return evidence.rows("quarantine", [record])


def rebuild(folder: Path, incident: Incident) -> None:
    """Make `evidence/` and `evidence.duckdb` of a sealed case anew from `raw/`.

    The old evidence stays until the new one is whole.

    Errors: EvidenceError when `raw/` is not what was sealed; the old evidence stays then.
    """
    sealed = manifest.read_manifest(folder)
    replies = manifest.raw_replies(folder, sealed)
    if not replies.holds:
        raise EvidenceError(
            f"{folder.name} cannot be rebuilt: {replies.detail}",
            next_step="restore raw/ from a copy of the case",
        )
    fresh, place = folder / ".rebuilding", store.place_of(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    build(fresh, incident, sealed.captures, replies_of=folder)
    store.remove(place / "evidence")
    if store.is_remote(place):
        for path in manifest.part_paths(fresh):
            store.put(fresh / path, place / path)
    else:
        (fresh / "evidence").rename(place / "evidence")
    shutil.rmtree(fresh)
    evidence.write_views(folder)
