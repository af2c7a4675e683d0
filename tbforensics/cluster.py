"""More machines, where there are any: the work of one, done by workers of a Dask scheduler.

A task is what a thread does otherwise: put one question to a server and keep the reply, or turn
a few replies into parts of the evidence. The folder of the case is on storage that all workers
share under the same path; bodies have their hash for a name and parts appear when they are whole,
so a task that is done twice, because a worker died or seemed to, leaves what doing it once leaves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tbforensics import manifest
from tbforensics.errors import ParametersError

RETRIES = 3  # of a task whose worker died
_ANSWER_S = 20.0


@contextmanager
def workers(address: str, home: Path) -> Iterator[Executor]:
    """An executor whose tasks are done by the scheduler's workers.

    home: where `incidents/` is; every worker must find the same folder there.

    Errors: ParametersError when nobody answers, there are no workers, they run another version,
            or they do not see that folder.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ParametersError(
            "--scheduler needs Dask, which is not installed",
            next_step="pip install 'tbforensics[cluster]', here and where the workers run",
        ) from None
    try:
        client = Client(address, timeout=_ANSWER_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ParametersError(
            f"no Dask scheduler answers at {address}: {error}"[:500],
            next_step="start one (`dask scheduler`), or leave --scheduler out",
        ) from None
    with client:
        _refuse_strangers(client, address, home.resolve())
        yield client.get_executor(pure=False, retries=RETRIES)


def _refuse_strangers(client: Any, address: str, home: Path) -> None:
    incidents = home / "incidents"
    incidents.mkdir(parents=True, exist_ok=True)
    mark = incidents / f".shared-{os.urandom(8).hex()}"
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
            problems.append(f"{worker} does not see {incidents}")
    if problems:
        raise ParametersError(
            "these workers cannot do the work:",
            problems=problems,
            next_step="give every worker the same version, and storage that all of them share",
        )


def _seen(mark: Path) -> tuple[str, bool]:
    """Runs on a worker."""
    return manifest.tool_version(), mark.exists()
