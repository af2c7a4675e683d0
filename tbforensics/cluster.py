"""More machines, where there are any: the work of one, done by workers of a Dask scheduler.

A task is what a thread does otherwise: put one question to a server and keep the reply, or turn
a few replies into parts of the evidence. The case's folder is on storage that all workers share
under the same path, or its bulk is in an object store. Bodies have their hash for a name and parts
appear when they are whole, so a task that is done twice, because a worker died or seemed to, leaves
what doing it once leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tbforensics import manifest, store
from tbforensics.archive import Archive
from tbforensics.credentials import read_credentials
from tbforensics.errors import EvidenceError, ParametersError, Unseen
from tbforensics.model import Capture, SourceConfig
from tbforensics.wire import Client, Manners

RETRIES = 3  # of a task whose worker died


@contextmanager
def workers(address: str, home: Path, patience_s: float = 20.0) -> Iterator[Executor | None]:
    """An executor whose tasks are done by the scheduler's workers; None without an address.

    home:       where `incidents/` is; every worker must find the same folder there, or the
                store that is in use (`store`).
    patience_s: for the scheduler to answer, and for a first worker.

    Errors: ParametersError when nobody answers, there are no workers, they run another version,
            or they do not see that folder.
    """
    if not address:
        yield None
        return
    try:
        import distributed
        from distributed.comm.addressing import get_address_host_port
    except ImportError:
        raise ParametersError(
            "--scheduler needs Dask, which is not installed",
            next_step="pip install 'tbforensics[cluster]', here and where the workers run",
        ) from None
    try:
        get_address_host_port(address)  # a client of an impossible address takes 40 s to go away
        client = distributed.Client(address, timeout=patience_s, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ParametersError(
            f"no Dask scheduler answers at {address}: {error}"[:500],
            next_step="start one (`dask scheduler`), or leave --scheduler out",
        ) from None
    with client:
        with suppress(TimeoutError):
            client.wait_for_workers(1, patience_s)
        _refuse_strangers(client, address, home.resolve())
        yield client.get_executor(pure=False, retries=RETRIES)


def put(
    pool: Executor, home: Path, place: Path, source: SourceConfig, manners: Manners, words: Any
) -> Capture:
    """Have a worker put one question, given as the words of `Client.ask`; its capture.

    place: of the case's replies, see `store.place_of`.

    Errors: EvidenceError when workers died over it, again and again; what was captured is kept.
    """
    try:
        return pool.submit(_put, home.resolve(), place.absolute(), source, manners, words).result()
    except EvidenceError:
        raise
    except Exception as error:
        raise EvidenceError(
            f"no worker could ask {source.name} for {words['query']}: {error}"[:500],
            next_step="see the workers' logs, and run again: what was captured is kept",
        ) from None


def _put(home: Path, place: Path, source: SourceConfig, manners: Manners, words: Any) -> Capture:
    """Runs on a worker, with the secrets that the worker has."""
    config = home / source.http_config if source.http_config else None
    client = Client(source, _Bodies(place), read_credentials(source.name, config), manners)
    try:
        return client.ask(**words)
    finally:
        client.session.close()


class _Bodies(Archive):
    """Keeps bodies only: the journal belongs to the run that asked for them."""

    def record(self, capture: Capture) -> Capture:
        return capture

    def recorded(self) -> list[Capture]:
        return []


def _refuse_strangers(client: Any, address: str, home: Path) -> None:
    shared = store.store() or home / "incidents"
    if not store.is_remote(shared):
        shared.mkdir(parents=True, exist_ok=True)
    mark = shared / f".shared-{os.urandom(8).hex()}"
    mark.touch()
    try:
        said = client.run(_seen, mark, on_error="return")
    finally:
        mark.unlink(missing_ok=True)
    if not said:
        raise ParametersError(
            f"the scheduler at {address} has no workers", next_step="start some: `dask worker`"
        )
    here = manifest.tool_version()
    problems = []
    for worker, answer in sorted(said.items()):
        version, sees = answer if isinstance(answer, tuple) else ("", False)
        if version != here:
            problems.append(f"{worker} has tbforensics {version or '(none)'}, this is {here}")
        elif not sees:
            problems.append(f"{worker} does not see {shared}")
    if problems:
        raise ParametersError(
            "these workers cannot do the work:",
            problems=problems,
            next_step="give every worker the same version, and storage that all of them share",
        )


def _seen(mark: Path) -> tuple[str, bool]:
    """Runs on a worker."""
    try:
        sees = store.answering(mark).exists()
    except (OSError, Unseen):
        sees = False
    return manifest.tool_version(), sees
