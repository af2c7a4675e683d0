"""Incident -> sealed folder. A folder appears whole or not at all.

Everything happens in `incidents/.<id>.collecting`, which is renamed when it is whole. An
interrupted collection leaves that folder; the next one asks only what was not answered yet.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tbforensics import cluster, evidence, manifest, plugins, store
from tbforensics.archive import Archive
from tbforensics.build import making
from tbforensics.credentials import Credentials, read_credentials
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Incident, Kind, Query, SourceConfig
from tbforensics.parameters import to_yaml
from tbforensics.wire import Client

Report = Callable[[Capture], None]


def collect(
    incident: Incident,
    home: Path,
    report: Report = lambda capture: None,
    pool: Executor | None = None,
) -> Path:
    """Ask every source of the incident once and seal the answers; the case's folder.

    A source that fails lowers coverage and is on record; it does not stop the others.
    `report` is called with each capture as it arrives, from several threads. Files that the
    parameters name are found from `home`, wherever the command was given.
    pool: of `cluster.workers`, when others are to put the questions and make the parts.

    Errors: ParametersError for credentials that cannot be read, before anything is asked.
            EvidenceError when the case is there already, another run is collecting it, or it
            cannot be written; what was captured is kept for the next run.
    """
    folder = home / "incidents" / incident.id
    _refuse_sealed(folder)
    credentials = {
        source.name: read_credentials(
            source.name, home / source.http_config if source.http_config else None
        )
        for source in incident.sources
    }
    partial = folder.with_name(f".{incident.id}.collecting")
    try:
        with _alone(partial, incident):
            if folder.exists():  # another run sealed it since
                shutil.rmtree(partial, ignore_errors=True)
                _refuse_sealed(folder)
            store.begin(partial, incident.id)
            archive = Archive(partial)
            store.remove(archive.place / "evidence")
            archive.drop_leftovers()
            queries = catalogue(plugins.load_kind(incident.kind), incident.sources)
            with making(partial, incident, pool) as parts:
                heard = (parts.add, report)
                captures = manifest.ordered(
                    _ask_all(incident, home, queries, archive, credentials, heard, pool)
                )
                # What an interrupted attempt asked, and what became of it, is part of the story.
                now = [capture.to_json() for capture in captures]
                earlier = [known for known in archive.recorded() if known.to_json() not in now]
                archive.drop_unnamed([*captures, *earlier])
                parts.finish(captures)
            evidence.write_views(partial)
            (partial / "parameters.yaml").write_bytes(to_yaml(incident))
            manifest.seal(partial, incident, queries, captures, earlier)
            files = {
                name: manifest.sha256_of(partial / name)
                for name in ("manifest.json", "parameters.yaml")
            }
            manifest.note_act(partial, "sealed", files=files, captures=len(captures))
            partial.rename(folder)
            # Not before: until here, a run that dies leaves all that the next one needs.
            tidy(folder)
    except OSError as error:
        raise EvidenceError(
            f"incidents/{incident.id} cannot be written: {error.strerror or error}",
            next_step="make room, or allow writing there, and run again: what was captured is kept",
        ) from None
    return folder


def tidy(folder: Path) -> None:
    """Take away what only a collection needs; a run may have died right after it had sealed."""
    Archive(folder).close_journal()
    if (lock := folder / ".lock").exists():
        lock.unlink(missing_ok=True)


def _refuse_sealed(folder: Path) -> None:
    if folder.exists():
        raise EvidenceError(
            f"incidents/{folder.name} is sealed already",
            next_step="use it, or give the new question another incident_id",
        )


def catalogue(kind: Kind, sources: Sequence[SourceConfig]) -> tuple[Query, ...]:
    """The kind's queries, and what each type of source is always asked."""
    named = {query.name for query in kind.queries}
    types = sorted({source.type for source in sources} | {q.source for q in kind.queries})
    always = [q for name in types for q in plugins.load_source(name).always if q.name not in named]
    return (*kind.queries, *always)


def _ask_all(
    incident: Incident,
    home: Path,
    queries: Sequence[Query],
    archive: Archive,
    credentials: dict[str, Credentials],
    heard: Sequence[Report],
    pool: Executor | None,
) -> list[Capture]:
    def ask(config: SourceConfig) -> list[Capture]:
        source = plugins.load_source(config.type)
        client = Client(config, archive, credentials[config.name], source.manners)
        if pool:
            client.elsewhere = functools.partial(
                cluster.put, pool, home, archive.place, config, source.manners
            )
        # A source may answer what is asked of another type, as a copied TSDB does for Prometheus.
        speaks = getattr(source, "speaks", config.type)
        asked = [query for query in queries if query.source == speaks]
        captures: list[Capture] = []
        try:
            options = _from_home(source.options(**config.options), home)
            for capture in source.fetch(asked, incident, options, client):
                for tell in (captures.append, *heard):
                    tell(capture)
        except EvidenceError:
            raise  # the archive cannot be written or read: that is no failure of the source
        except Exception as error:  # our bug in one source must not cost the others' evidence
            words = f"{type(error).__name__}: {error}"[:500]
            whole = {capture.query for capture in captures[:-1]} - {
                capture.query
                for capture in captures[-1:]  # more of it may have been to come
            }
            names = dict.fromkeys([*(q.name for q in asked), *(c.query for c in captures[-1:])])
            captures += [
                client.fail(query=name, role="", request={}, error=words)
                for name in names
                if name not in whole
            ]
        finally:
            client.session.close()
        return captures

    with ThreadPoolExecutor(max_workers=max(1, len(incident.sources))) as threads:
        return [capture for captures in threads.map(ask, incident.sources) for capture in captures]


def _from_home(options: Any, home: Path) -> Any:
    """A source's options with the files that they name found from the project's folder."""
    names = (field.name for field in dataclasses.fields(options))
    named = {name: getattr(options, name) for name in names if re.search("(^|_)(path|file)$", name)}
    found = {name: str(home / Path(path).expanduser()) for name, path in named.items() if path}
    return dataclasses.replace(options, **found)


@contextmanager
def _alone(partial: Path, incident: Incident) -> Iterator[None]:
    """One run at a time on one incident; an interrupted one is taken up where it stopped."""
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvidenceError(
                f"another run is collecting {incident.id}",
                next_step="wait for it, or stop it; what it captured is kept",
            ) from None
        lock.seek(0)
        if lock.read().strip() not in ("", incident.digest):
            raise EvidenceError(
                f"{partial.name} holds an interrupted collection that asked something else",
                next_step=f"finish that one, or remove incidents/{partial.name}",
            )
        lock.truncate(0)
        lock.write(incident.digest)
        lock.flush()
        shutil.rmtree(partial / evidence.MAKING, ignore_errors=True)
        for leftover in ("manifest.json", "custody.jsonl"):
            (partial / leftover).unlink(missing_ok=True)
        yield
