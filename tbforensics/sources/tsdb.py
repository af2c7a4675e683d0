"""A Prometheus TSDB that was handed over, asked through a Prometheus that is started for it.

The server runs on a copy, on a loopback port, scrapes nothing, and ends with the questions. It is
asked what a live Prometheus would be asked, by the same code; what it answered is the evidence.
The tarball or folder itself is not kept, but its SHA-256 is on record. The copy's server knows
nothing of the rules, alerts and targets of the one that wrote the samples, so those are not asked.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from tbforensics.asking.server import ROLE
from tbforensics.credentials import Credentials
from tbforensics.evidence import rows
from tbforensics.model import Capture, Incident, Json, Query
from tbforensics.reading import tsdbcopies
from tbforensics.reading.tsdbcopies import NoCopy
from tbforensics.sources import prometheus
from tbforensics.wire import Client, Manners

ORIGIN = "origin"
# The server is reached through its port as through a proxy, so that no record holds a number that
# is another one at the next run.
_URL = "http://tsdb"
_CONFIG = "global: {scrape_interval: 1h, evaluation_interval: 1h}\n"
_READY_S = 600.0  # a long log takes minutes to be read again
_TRIES = 3  # another process may take the free port first
_STATUS = ("buildinfo",)  # its flags are ours, and hold the number of a port


@dataclass(frozen=True)
class Options:
    """path: the TSDB's folder, or a tarball of it (.tar, .tar.gz, .tar.bz2, .tar.xz).
    binary: the Prometheus to start; one of the version that wrote it, or newer.
    match, slice_hours, step_s, rule_files: as of a live Prometheus.
    """

    path: str
    binary: str = "prometheus"
    match: str = ""
    slice_hours: float = 2.0
    step_s: float = 0.0
    rule_files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.asked_as()

    def asked_as(self) -> prometheus.Options:
        """Errors: ParametersError."""
        return prometheus.Options(self.match, self.slice_hours, self.step_s, self.rule_files)


class Tsdb:
    about = "A Prometheus TSDB that was handed over: a folder or a tarball of it"
    options = Options
    needs_url = False
    speaks = "prometheus"  # what kinds ask of Prometheus is asked here
    always: tuple[Query, ...] = ()
    manners: Manners = prometheus.SOURCE.manners

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        with tempfile.TemporaryDirectory(prefix="tbforensics-tsdb-") as scratch:
            try:
                copied = Path(scratch) / "copy"
                copied.mkdir()
                root, origin = tsdbcopies.copy(options.path, copied)
                told = json.dumps(asdict(origin), sort_keys=True).encode()
                request: dict[str, Json] = {"file": origin.name}
                yield client.keep_file([told], query=ORIGIN, role=ORIGIN, request=request)
                with _served(options.binary, root, Path(scratch)) as port:
                    yield from _asked(queries, incident, options, client, port)
            except NoCopy as error:
                yield from _failed(client, queries, options, str(error))

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        if capture.role != ORIGIN:
            yield from prometheus.SOURCE.parse(capture, body)
            return
        snapshot = {
            "source": capture.source,
            "query": capture.query,
            "role": ORIGIN,
            "ts": capture.asked_at,
            "generation": "",
            "state": "ok",
            "value": json.dumps(json.load(body), sort_keys=True),
        }
        yield "snapshots", rows("snapshots", [snapshot])


SOURCE = Tsdb()


def _asked(
    queries: Sequence[Query], incident: Incident, options: Options, client: Client, port: int
) -> Iterator[Capture]:
    server = Client(
        replace(client.source, url=_URL),
        client.archive,
        Credentials(proxies={"http": f"http://127.0.0.1:{port}"}),
        client.manners,
        client.now,
        client.stopped,
    )
    try:
        yield from prometheus.asked(queries, incident, options.asked_as(), server, _STATUS)
    finally:
        server.session.close()


def _failed(
    client: Client, queries: Sequence[Query], options: Options, why: str
) -> Iterator[Capture]:
    request = {"file": tsdbcopies.shown(Path(options.path).name)}
    yield client.fail(query=ORIGIN, role=ORIGIN, request=request, error=why)
    for query in queries:
        error = f"not asked: {why}"
        yield client.fail(query=query.name, role=ROLE, request=request, error=error)


# --- the server ----------------------------------------------------------------------------


@contextmanager
def _served(binary: str, root: Path, scratch: Path) -> Iterator[int]:
    """The port of a Prometheus over a TSDB until the block ends. Errors: NoCopy."""
    found = shutil.which(binary)
    if found is None:
        raise NoCopy("no Prometheus here to ask it with: install one, or name it as `binary`")
    (scratch / "prometheus.yml").write_text(_CONFIG)
    for attempt in range(1, _TRIES + 1):
        port = _free_port()
        with (scratch / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    found,
                    "--config.file=prometheus.yml",
                    f"--storage.tsdb.path={root.relative_to(scratch)}",
                    "--storage.tsdb.retention.time=100y",  # else it drops what is older than 15 d
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env={"PATH": os.defpath, "HOME": str(scratch), "GOMAXPROCS": "2"},
            )
        try:
            if _ready(process, port):
                yield port
                return
        finally:
            _stop(process)
        if attempt == _TRIES or b"address already in use" not in (scratch / "log").read_bytes():
            raise NoCopy(f"Prometheus does not start: {_last_words(scratch)}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(process: subprocess.Popen[bytes], port: int) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with direct.open(f"http://127.0.0.1:{port}/-/ready", timeout=1) as reply:
                # Somebody else's server may hold the port, and ours be about to end.
                time.sleep(0.05)
                return bool(reply.status == 200) and process.poll() is None
        except OSError:
            time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(scratch: Path) -> str:
    """What it said last, without the place of the copy."""
    text = (scratch / "log").read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if "err" in line] or text.splitlines()
    return (lines[-1] if lines else "it says nothing").replace(str(scratch), ".")[-300:]
