"""Captures -> parts of the evidence, several at a time.

The captures are cut into jobs by what they are, never by who does them, and a job knows nothing
of the others. So the parts have the same bytes for any number of workers, on any machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
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


def build(
    folder: Path,
    incident: Incident,
    captures: Iterable[Capture],
    pool: Executor | None = None,
    replies_of: Path | None = None,
) -> None:
    """`raw/` -> `evidence/`: the same captures give the same bytes, on any machine.

    pool:       who does the jobs, threads of our own by default; workers elsewhere must find
                `folder` under the same path, or share a store.
    replies_of: the case whose `raw/` it is, where that is another than `folder`.
    """
    if pool is None:
        with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as threads:
            build(folder, incident, captures, threads, replies_of)
        return
    types = {config.name: config.type for config in incident.sources}
    to, raw = (store.place_of(case).absolute() for case in (folder, replies_of or folder))
    made = [pool.submit(make, to, raw, types, job) for job in jobs(captures)]
    try:
        shared = [future.result() for future in made]
    finally:
        for future in made:
            future.cancel()
    evidence.write_shared(folder, shared)


def jobs(captures: Iterable[Capture]) -> Iterator[Job]:
    """Captures of one query follow each other; a job ends when it has `JOB_BYTES`."""
    together: list[Capture] = []
    number, size = 1, 0
    for capture in manifest.ordered(captures):
        # A reply that was cut or that is an error in words still says something.
        if not (capture.usable or (capture.sha256 and capture.status == 200)):
            continue
        if together and _part(together[0]) != _part(capture):
            yield Job(number, tuple(together))
            together, number, size = [], 1, 0
        elif size >= JOB_BYTES:
            yield Job(number, tuple(together))
            together, number, size = [], number + 1, 0
        together.append(capture)
        size += capture.bytes
    if together:
        yield Job(number, tuple(together))


def make(to: Path, raw: Path, types: Mapping[str, str], job: Job) -> evidence.Shared:
    """Write the parts of one job; what it adds to the tables that all jobs share.

    to, raw: the places of the case that gets the parts, and of the one that has the replies.
    """
    source, query = _part(job.captures[0])
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


def _part(capture: Capture) -> tuple[str, str]:
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
