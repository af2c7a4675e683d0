"""A folder appears whole or not at all, whatever dies on the way; what answered is kept."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from collected import World, scenario, world
from prometheus_server import serve

from tbforensics import build as making
from tbforensics import collect as work
from tbforensics import manifest, parameters, plugins
from tbforensics.archive import Archive
from tbforensics.build import rebuild
from tbforensics.case import case_of, open_case, prove
from tbforensics.collect import collect
from tbforensics.errors import EvidenceError, ParametersError
from tbforensics.model import Capture, Incident, Verdict
from tbforensics.sources.logs import Logs

ID = str(scenario.PARAMETERS["incident_id"])
SHORT = {
    "incident_id": "INC-short",
    "kind": "quic_failure",
    "start": "2026-11-20T10:00:00Z",
    "end": "2026-11-20T10:10:00Z",
}


@pytest.fixture(scope="module")
def here() -> World:
    return world()


def home_of(tmp_path: Path, here: World) -> Path:
    home = tmp_path / "home"
    (home / "incidents").mkdir(parents=True)
    shutil.copytree(here.home / "dumps", home / "dumps")
    return home


def short(sources: dict[str, Any], **changes: Any) -> Incident:
    return parameters.incident_from({**SHORT, "sources": sources, **changes})


def parts(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in manifest.part_paths(folder)}


def holds(folder: Path, **options: bool) -> None:
    assert [check for check in prove(folder, **options) if not check.holds] == []


def partial(home: Path, incident_id: str = ID) -> Path:
    return home / "incidents" / f".{incident_id}.collecting"


# --- the whole road ------------------------------------------------------------------------


def test_a_case_is_sealed_over_http_and_proves_itself(here: World) -> None:
    holds(here.case, recompute=True)
    assert sorted(path.name for path in here.case.iterdir()) == [
        *("custody.jsonl", "evidence", "evidence.duckdb", "findings.json", "manifest.json"),
        *("parameters.yaml", "raw"),
    ]
    assert [p.name for p in (here.home / "incidents").iterdir()] == [ID]


def test_every_reply_is_on_record_with_its_question_its_moment_and_its_hash(here: World) -> None:
    captures = manifest.read_manifest(here.case).captures
    usable = [capture for capture in captures if capture.usable]
    assert len(usable) > 40
    for capture in usable:
        assert capture.request and capture.asked_at
        assert (here.case / "raw" / f"{capture.sha256}.zst").exists()
    by_type = {capture.source for capture in usable}
    assert by_type == {"prometheus", "node", "node-logs", "dumps"}


def test_files_that_the_parameters_name_are_found_from_the_project(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(tmp_path, here)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    case = open_case(collect(short({"dumps": {"type": "logs", "path": "dumps"}}), home))
    (found,) = case.evidence.records("SELECT DISTINCT file FROM log_lines")
    assert found["file"] == "node-a.jsonl"


def test_a_sealed_case_is_never_collected_again(here: World, tmp_path: Path) -> None:
    home = here.project(tmp_path / "home")
    asked = len(here.node.asked)
    with pytest.raises(EvidenceError, match="sealed already"):
        collect(here.incident(), home)
    assert case_of(here.incident(), home).assessment.verdict is Verdict.CONFIRMED
    assert len(here.node.asked) == asked


def test_credentials_that_cannot_be_read_stop_it_before_anything_is_asked(
    here: World, tmp_path: Path
) -> None:
    asked = len(here.node.asked)
    sources = {"node": {"type": "jsonrpc", "url": here.node.url, "http_config": "none.yaml"}}
    with pytest.raises(ParametersError):
        collect(short(sources), tmp_path)
    assert len(here.node.asked) == asked
    assert not list(tmp_path.glob("incidents/*"))


def test_http_config_is_found_from_the_project(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "secrets.yaml").write_text("basic_auth: {username: u, password: canary-7f3a}\n")
    sources = {"node": {"type": "jsonrpc", "url": here.node.url, "http_config": "secrets.yaml"}}
    folder = collect(short(sources), tmp_path)
    assert open_case(folder).frames["handshake_ring"]["state"].tolist() == ["ok"]
    for path in folder.rglob("*"):
        assert not path.is_file() or b"canary-7f3a" not in path.read_bytes(), path


# --- sources that fail ---------------------------------------------------------------------


@contextmanager
def failing(how: str) -> Iterator[str]:
    """A server that is not there, answers 500, hangs, or sends what is no reply."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if how == "hangs":
                time.sleep(3)
                return
            body = b"<html>not what you asked for</html>"
            self.send_response(500 if how == "500" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    if how == "nobody":
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield f"http://127.0.0.1:{probe.getsockname()[1]}"
        return
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources' own manners, but for minutes of patience."""
    for name in plugins.source_names():
        source = plugins.load_source(name)
        quick = replace(
            source.manners, connect_s=0.3, read_s=0.3, retries=1, backoff_s=0.01, ban_s=0.01,
            requests_per_s=1000.0,
        )  # fmt: skip
        monkeypatch.setattr(type(source), "manners", quick)


@pytest.mark.parametrize("how", ["nobody", "500", "hangs", "nonsense"])
@pytest.mark.usefixtures("hasty")
def test_sources_that_fail_are_on_record_and_cost_the_others_nothing(
    here: World, tmp_path: Path, how: str
) -> None:
    with failing(how) as url:
        sources = {
            "dead": {"type": "prometheus", "url": url},
            "dead-node": {"type": "jsonrpc", "url": url},
            "node": {"type": "jsonrpc", "url": here.node.url},
            "node-logs": {"type": "logs", "url": here.node.url},
        }
        case = case_of(short(sources), tmp_path)
    state = {(row.query, row.source): row.state for row in case.frames.coverage}
    assert state["handshake_fail", "dead"] == "failed"
    assert state["handshake_ring", "dead-node"] == "failed"
    assert state["handshake_ring", "node"] == state["log_lines", "node-logs"] == "covered"
    assert case.assessment.verdict is Verdict.INCONCLUSIVE
    assert any("handshake_fail is failed" in reason for reason in case.assessment.reasons)
    failed = [c for c in case.manifest.captures if c.source == "dead"]
    if how != "nonsense":
        assert all(capture.error for capture in failed)
    holds(case.folder, recompute=True)


@pytest.mark.usefixtures("hasty")
def test_when_nobody_answers_the_silence_is_sealed_and_proves_itself(tmp_path: Path) -> None:
    with failing("nobody") as url:
        case = case_of(short({"dead": {"type": "prometheus", "url": url}}), tmp_path)
    assert case.assessment.verdict is Verdict.INCONCLUSIVE
    assert not any(capture.usable for capture in case.manifest.captures)
    holds(case.folder, recompute=True)
    rebuild(case.folder, case.incident)
    holds(case.folder)


@pytest.mark.usefixtures("hasty")
def test_a_source_that_dies_midway_leaves_what_it_said_and_what_it_did_not(
    tmp_path: Path,
) -> None:
    with serve(tmp_path / "tsdb", scenario.history(), rules=scenario.RULES) as server:
        sources = {"prometheus": {"type": "prometheus", "url": server.url}}

        def report(capture: Capture) -> None:
            if capture.query == "bytes_sent":
                server.kill()

        case = case_of(short(sources), tmp_path, report)
    states = {row.query: row.state for row in case.frames.coverage if row.source}
    assert states["handshake_fail"] == "covered"
    assert states["disconnects"] == "failed"
    assert case.assessment.verdict is Verdict.INCONCLUSIVE
    holds(case.folder, recompute=True)


class Careless(Logs):
    """A source with a bug of ours."""

    def fetch(self, queries: Any, incident: Any, options: Any, client: Any) -> Iterator[Capture]:
        yield from super().fetch(queries, incident, options, client)
        raise KeyError("a bug of ours")


@pytest.mark.usefixtures("hasty")
def test_a_bug_in_one_source_is_told_though_it_answered_before(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[Logs.__module__], "SOURCE", Careless())
    sources = {
        "node": {"type": "jsonrpc", "url": here.node.url},
        "node-logs": {"type": "logs", "url": here.node.url},
    }
    case = case_of(short(sources), tmp_path)
    (logs,) = [row for row in case.frames.coverage if row.query == "log_lines"]
    assert logs.state == "partial" and "a bug of ours" in logs.detail
    assert case.frames["handshake_ring"]["state"].tolist() == ["ok"]


class Blind(Logs):
    def parse(self, capture: Any, body: Any) -> Iterator[Any]:
        yield from list(super().parse(capture, body))[:1]
        raise ZeroDivisionError("hostile bytes")


def test_a_parser_that_breaks_sets_the_reply_aside_with_the_reason(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[Logs.__module__], "SOURCE", Blind())
    case = case_of(short({"node-logs": {"type": "logs", "url": here.node.url}}), tmp_path)
    reasons = [row["reason"] for row in case.evidence.records("SELECT reason FROM quarantine")]
    assert reasons == ["the reply could not be read: ZeroDivisionError: hostile bytes"]
    assert any(doubt.what == "quarantined" for doubt in case.frames.doubts)


# --- interrupted, at once, on a full disk --------------------------------------------------

COLLECT = """
import sys
from pathlib import Path
from tbforensics.collect import collect
from tbforensics.parameters import read_parameters
collect(read_parameters(sys.argv[1]), Path(sys.argv[2]))
"""


def started(incident: Incident, home: Path) -> subprocess.Popen[bytes]:
    given = home / "given.yaml"
    given.write_bytes(parameters.to_yaml(incident))
    return subprocess.Popen(
        [sys.executable, "-c", COLLECT, given, home],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def test_a_collection_that_is_killed_again_and_again_ends_sealed_and_asks_nothing_twice(
    here: World, tmp_path: Path
) -> None:
    home, incident = home_of(tmp_path, here), here.incident()
    dice, before = random.Random(7), len(here.node.asked)
    journal = partial(home) / "captures.jsonl"
    # Each run may get some lines further than the one before; the last kills come while it seals.
    for lines in (1, 20, 57, 57):
        running = started(incident, home)
        while running.poll() is None:
            kept = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if kept >= lines:
                time.sleep(dice.uniform(0, 0.3))
                break
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if (home / "incidents" / ID).exists():
            break  # it was faster than the kill
    else:
        assert partial(home).exists()
        last = started(incident, home)
        said, _ = last.communicate(timeout=60)
        assert last.returncode == 0, said
    holds(home / "incidents" / ID, recompute=True)
    assert not partial(home).exists()
    questions = Counter(
        json.dumps([name, {**params, "id": 0}], sort_keys=True)
        for name, params in here.node.asked[before:]
    )
    # A reply that was cut off by the kill has to be asked for again; whole ones are not. Two
    # sources ask the node at once, and it has answered both before the last kills come.
    assert len(questions) == 4 and sum(questions.values()) <= 4 + 2 * 2
    mine, theirs = parts(home / "incidents" / ID), parts(here.case)
    for name in set(mine) & set(theirs):
        if "/samples/" in name or "/log_lines/" in name:
            assert mine[name] == theirs[name], name


@pytest.mark.parametrize("when", ["build", "seal", "rename"])
def test_what_was_captured_is_not_asked_again_whenever_the_run_dies(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    class Died(BaseException):
        """As a kill: nothing catches it."""

    def die(*_: object, **__: object) -> None:
        raise Died

    home, asked = home_of(tmp_path, here), len(here.node.asked)
    sources = {"node": {"type": "jsonrpc", "url": here.node.url}}
    with monkeypatch.context() as patched:
        place = {
            "build": (making.Making, "finish"),
            "seal": (manifest, "seal"),
            "rename": (Path, "rename"),
        }
        patched.setattr(*place[when], die)
        with pytest.raises(Died):
            collect(short(sources), home)
    assert not (home / "incidents" / "INC-short").exists()
    assert len(here.node.asked) == asked + 3
    folder = collect(short(sources), home)
    assert len(here.node.asked) == asked + 3
    assert not (folder / "captures.jsonl").exists() and not (folder / ".lock").exists()
    holds(folder, recompute=True)


def test_the_manifest_shows_what_an_interrupted_attempt_got(tmp_path: Path) -> None:
    incident = parameters.incident_from(
        {
            "incident_id": "INC-again",
            "kind": "quic_failure",
            "start": "2026-11-20T10:00:00Z",
            "end": "2026-11-20T10:10:00Z",
            "sources": {"logs": {"type": "logs", "path": "nowhere"}},
        }
    )
    partial = tmp_path / "incidents" / ".INC-again.collecting"
    partial.mkdir(parents=True)
    archive = Archive(partial)
    sha256, length = archive.keep([b"try later"])
    refused = Capture(
        source="logs",
        query="log_lines",
        role="search",
        request={"method": "GET", "url": "http://127.0.0.1:1/logs/search"},
        asked_at=datetime(2026, 11, 20, 10, 11, tzinfo=UTC),
        status=503,
        sha256=sha256,
        bytes=length,
        error="HTTP 503",
    )
    archive.record(refused)
    folder = work.collect(incident, tmp_path)
    sealed = manifest.read_manifest(folder)
    assert sealed.earlier == (refused,) and refused not in sealed.captures
    assert Archive(folder).read(refused) == b"try later"
    assert all(check.holds for check in manifest.checks(folder))


def test_a_second_run_at_once_is_refused_and_does_no_harm(here: World, tmp_path: Path) -> None:
    home, refused = home_of(tmp_path, here), list[str]()
    incident = short({"node": {"type": "jsonrpc", "url": here.node.url}})

    def report(_: Capture) -> None:
        if not refused:
            with pytest.raises(EvidenceError, match="another run is collecting") as caught:
                collect(incident, home)
            refused.append(caught.value.next_step)

    folder = collect(incident, home, report)
    assert refused == ["wait for it, or stop it; what it captured is kept"]
    holds(folder)


def test_two_processes_at_once_seal_one_case(here: World, tmp_path: Path) -> None:
    home = home_of(tmp_path, here)
    incident = short({"node": {"type": "jsonrpc", "url": here.node.url}})
    runs = [started(incident, home) for _ in range(2)]
    said = [run.communicate()[0].decode() for run in runs]
    codes = sorted(run.returncode for run in runs)
    assert codes == [0, 1]
    assert any("another run is collecting" in text or "sealed already" in text for text in said)
    holds(home / "incidents" / "INC-short")
    assert [p.name for p in (home / "incidents").iterdir()] == ["INC-short"]


def test_a_run_that_waited_while_another_sealed_leaves_the_sealed_case_alone(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = home_of(tmp_path, here)
    incident = short({"node": {"type": "jsonrpc", "url": here.node.url}})
    read, sealed = work.read_credentials, list[Path]()

    def another_was_faster(*given: Any) -> Any:
        if not sealed:
            sealed.append(Path())
            sealed[0] = collect(incident, home)
        return read(*given)

    monkeypatch.setattr(work, "read_credentials", another_was_faster)
    with pytest.raises(EvidenceError, match="sealed already"):
        collect(incident, home)
    holds(sealed[0], recompute=True)
    assert [p.name for p in (home / "incidents").iterdir()] == ["INC-short"]


def test_an_interrupted_collection_of_another_question_is_not_taken_up(
    here: World, tmp_path: Path
) -> None:
    (partial(tmp_path, "INC-short")).mkdir(parents=True)
    (partial(tmp_path, "INC-short") / ".lock").write_text("another digest")
    with pytest.raises(EvidenceError, match="asked something else"):
        collect(short({"node": {"type": "jsonrpc", "url": here.node.url}}), tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 600 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("only root may mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize("room_kib", [0, 40, 200, 330, 400])
@pytest.mark.usefixtures("hasty")
def test_a_full_disk_is_told_and_seals_nothing_and_the_next_run_goes_on(
    here: World, tmp_path: Path, small_disk: Path, room_kib: int
) -> None:
    sources = {name: here.sources[name] for name in ("prometheus", "node", "node-logs")}
    incident = short(sources, start="2026-11-20T10:00:00Z", end="2026-11-20T10:40:00Z")
    (small_disk / "incidents").mkdir()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (600 - room_kib) * 1024 if room_kib else b"")
    if not room_kib:
        with suppress(OSError):
            filler.write_bytes(b"x" * 600 * 1024)
    asked = len(here.node.asked)
    try:
        collect(incident, small_disk)
    except EvidenceError as error:
        assert "No space left on device" in str(error)
        assert "run again" in error.next_step
        assert not (small_disk / "incidents" / "INC-short").exists()
    else:
        assert room_kib >= 400, "it fitted"
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    if not (small_disk / "incidents" / "INC-short").exists():
        collect(incident, small_disk)
    case = open_case(small_disk / "incidents" / "INC-short")
    failed = [capture.error for capture in case.manifest.captures if capture.error]
    assert failed == [], "a full disk is no failure of a source"
    assert len(here.node.asked) <= asked + 2 * 4
    case.evidence.close()
    holds(case.folder, recompute=True)


# --- evidence/ from raw/ -------------------------------------------------------------------


def test_the_same_raw_gives_the_same_evidence_in_another_process_zone_and_locale(
    here: World, tmp_path: Path
) -> None:
    environment = {"TZ": "Pacific/Kiritimati", "LC_ALL": "C", "PYTHONHASHSEED": "1"}
    folder = tmp_path / "incidents" / ID
    shutil.copytree(here.case, folder)
    shutil.rmtree(folder / "evidence")
    (folder / "evidence.duckdb").unlink()
    subprocess.run(
        [sys.executable, "-c", "from tbforensics.cli import main; main()", "rebuild", folder],
        check=True,
        capture_output=True,
        env={**os.environ, **environment},
    )
    assert parts(folder) == parts(here.case)
    assert (folder / "evidence.duckdb").exists()
    holds(folder)


def test_a_rebuild_that_dies_leaves_the_old_evidence(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, incident = parts(sealed), open_case(sealed).incident
    with monkeypatch.context() as patched:
        patched.setattr(making, "build", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            rebuild(sealed, incident)
    assert parts(sealed) == before
    assert [c for c in manifest.checks(sealed) if not c.holds and c.name == "evidence"] == []
    rebuild(sealed, incident)
    assert not (sealed / ".rebuilding").exists()


@pytest.mark.parametrize("spoil", ["missing", "changed"])
def test_nothing_is_rebuilt_from_replies_that_are_not_those_that_came(
    sealed: Path, spoil: str
) -> None:
    before, incident = parts(sealed), open_case(sealed).incident
    reply = min((sealed / "raw").iterdir())
    reply.unlink() if spoil == "missing" else reply.write_bytes(b"x")
    with pytest.raises(EvidenceError, match="cannot be rebuilt"):
        rebuild(sealed, incident)
    assert parts(sealed) == before
