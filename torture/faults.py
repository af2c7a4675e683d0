"""The fault table: what breaks around a collection, and what the kit must make of it."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from http_fake import Handler, fake
from prometheus_server import start, stop

from examples import quic_failure as scenario
from tbforensics import manifest
from torture import proxy as net
from torture.bench import HASTE, Bench, Home, Ran
from torture.proxy import Asked, Plan
from torture.table import Counts, NotTried, Row

WHOLE = "quic_handshake_fail_total"  # the selector that a fault hits, where it does not hit all


def no_traceback(ran: Ran) -> None:
    assert "Traceback" not in ran.said, ran.said


# --- a server that misbehaves ------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """A fault of the server: the run ends sealed, tells it, and the next run asks nothing.

    code: exit code of both runs. says: what the output must match. error: what some capture of
    the source must match. most: how many questions may be asked at most, 0 for any number. only:
    what each question that failed must hold, so that one bad answer does not cost the others.
    """

    name: str
    how: str
    plan: Plan
    error: str
    code: int = 3
    says: str = ""
    most: int = 0
    only: str = ""
    quick: bool = False
    changes: dict[str, Any] = field(default_factory=dict)

    def row(self) -> Row:
        expected = f"exit {self.code}, sealed, on record as /{self.error}/, again: asks nothing"
        return Row(self.name, self.how, expected, self.act, self.quick)

    def act(self, bench: Bench, counts: Counts) -> str:
        with bench.home(self.plan, **self.changes) as home:
            began = time.monotonic()
            ran = bench.collect(home)
            took_s, asked = time.monotonic() - began, len(home.prometheus.asked)
            no_traceback(ran)
            assert ran.code == self.code, f"exit {ran.code}: {ran.said}"
            told = [*home.errors(), *_notes(home)]
            lost = [json.dumps(c["request"]) for c in home.failed() if not c["sha256"]]
            assert all(self.only in request for request in lost), f"others failed too: {lost[:3]}"
            assert any(re.search(self.error, text) for text in told), f"on record: {set(told)}"
            assert re.search(self.says or self.error if ran.code else "", ran.said), ran.said
            assert not self.most or asked <= self.most, f"{asked} questions"
            counts.inputs += asked
            bench.holds(home, counts)
            again = _again(bench, home, self.code)
        return f"exit {ran.code} after {took_s:.1f} s and {asked} questions, holds; {again}"


def _notes(home: Home) -> list[str]:
    return [note for capture in home.manifest()["captures"] for note in capture["notes"]]


def _again(bench: Bench, home: Home, code: int) -> str:
    """A second run opens what is sealed."""
    before = home.asked()
    again = bench.collect(home)
    assert again.code == code, f"again: exit {again.code}: {again.said}"
    assert home.asked() == before, f"again: {home.asked() - before} questions"
    bench.holds(home)
    return f"again: exit {again.code}, 0 questions"


SERVED = (
    Served(
        "hangs", "takes every question, answers none", net.always(net.hang(30)),
        "no answer within the time allowed", says="no answer within the time allowed", most=8,
    ),
    Served(
        "one query hangs", "in every part", net.on(WHOLE, net.hang(30)),
        "no answer to 3 parts of this query: no answer within the time allowed", only=WHOLE,
    ),
    Served(
        "drips", "one byte a second, one query", net.on(WHOLE, net.drip(1)),
        "took longer than 6 s", only=WHOLE,
    ),
    Served(
        "resets midway", "RST after half of each body, one query", net.on(WHOLE, net.reset),
        "cut short or damaged", only=WHOLE,
    ),
    Served(
        "resets once", "RST midway the first time only", net.on(WHOLE, net.reset, times=1),
        "tried again: the reply was cut short", code=0,
    ),
    Served(
        "200 with HTML", "a login page for every question",
        net.always(net.says("<html>log in</html>", Content_Type="text/html")),
        "HTML in place of JSON",
    ),
    Served(
        "truncated", "the length fits what is sent", net.on(WHOLE, net.shortened),
        "the reply ends within a frame",
    ),
    Served(
        "truncated JSON", "a server without remote read; the length fits what is sent",
        lambda asked: net.says("404 page not found", 404) if asked.path.endswith("/read")
        else net.on(WHOLE, net.shortened)(asked),
        "not JSON, or cut short",
    ),
    Served(
        "gzip damaged", "Content-Encoding: gzip, one byte wrong", net.on(WHOLE, net.gzip_damaged),
        "cut short or damaged",
    ),
    Served(
        "429, Retry-After: 1", "the first time each question is asked",
        lambda asked: net.says("slow down", 429, Retry_After="1") if asked.times == 1
        and WHOLE in asked.selector else None,
        "tried again after 429", code=0,
    ),
    Served(
        "429, no Retry-After", "always", net.always(net.says("slow down", 429)),
        "HTTP 429", most=8,
    ),
    Served(
        "429, Retry-After: a year", "always: waits no longer than its own limit",
        net.always(net.says("slow down", 429, Retry_After="31536000")), "HTTP 429", most=8,
    ),
    Served(
        "429, Retry-After: nonsense", "always",
        net.always(net.says("slow down", 429, Retry_After="-1; x")), "429|Retry-After", most=8,
    ),
    Served(
        "503, Retry-After: 0", "a restart: the first time each question is asked",
        lambda asked: net.says("starting", 503, Retry_After="0") if asked.times == 1 else None,
        "tried again after 503", code=0,
    ),
    Served(
        "503, no Retry-After", "always", net.always(net.says("no", 503)), "HTTP 503", most=8,
    ),
    Served(
        "422", "execution error for one query",
        net.on(WHOLE, net.says(
            '{"status":"error","errorType":"execution","error":"found duplicate series"}', 422)),
        "HTTP 422 .*found duplicate series",
    ),
)  # fmt: skip


# --- a process that dies -----------------------------------------------------------------------


def _go_on(bench: Bench, home: Home, counts: Counts, answered: set[str], command: str) -> None:
    """The last run after the kills: it ends sealed, and asks nothing that was answered."""
    before = home.asked()
    home.forget_what_was_on_its_way()
    last = bench.run(command, home.parameters)
    no_traceback(last)
    assert last.code == 0, f"the last run: exit {last.code}: {last.said}"
    _nothing_twice(home, before, answered)
    bench.holds(home, counts)
    strays = [path.name for path in home.case.iterdir() if path.name.startswith(".")]
    assert not strays, f"left in the case: {strays}"


def _nothing_twice(home: Home, before: int, answered: set[str]) -> None:
    asked = [*home.prometheus.asked, *home.node.asked]
    fresh = sorted(asked, key=lambda a: a.at)[before:]
    twice = [a.key for a in fresh if a.key in answered]
    assert not twice, f"asked again, though answered: {twice[:3]}"


def random_kills(command: str, kills: int) -> Callable[[Bench, Counts], str]:
    """kill -9 at random moments, again and again, until a run is faster than its kill."""

    def act(bench: Bench, counts: Counts) -> str:
        dice, rounds, most_s = random.Random(20261121), 0, 0.0
        while counts.kills < kills:
            with bench.home() as home:
                rounds += 1
                if not most_s:  # how long it takes undisturbed, on this machine as it is now
                    began = time.monotonic()
                    assert bench.run(command, home.parameters).code == 0
                    most_s = time.monotonic() - began
                    shutil.rmtree(home.case)
                while counts.kills < kills:
                    answered, before = home.answered(), home.asked()
                    running = bench.start(command, home.parameters)
                    with suppress(subprocess.TimeoutExpired):
                        running.communicate(timeout=dice.uniform(0.3 * most_s, 1.1 * most_s))
                    finished = running.poll() is not None
                    running.kill()
                    running.communicate()
                    _nothing_twice(home, before, answered)
                    if finished:
                        break
                    counts.kills += 1
                _nobody_left(home)
                _go_on(bench, home, counts, home.answered(), command)
        return f"{counts.kills} kills in {rounds} incidents; each ended sealed, asked nothing twice"

    return act


def _nobody_left(home: Home, patience_s: float = 20.0) -> None:
    """A kernel whose parent was killed ends by itself."""
    limit = time.monotonic() + patience_s
    while left := _working_in(home.folder):
        assert time.monotonic() < limit, f"processes left behind: {left}"
        time.sleep(0.2)


def _working_in(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def killed_before_each_change(
    command: str, share: float, tail: int
) -> Callable[[Bench, Counts], str]:
    """kill -9 just before a change to the disk: some of all, and every one of the last."""

    def act(bench: Bench, counts: Counts) -> str:
        dice = random.Random(7)
        with bench.home() as home:
            tally = home.folder / "changes"
            launch = {"below": str(home.folder / "incidents"), "count_into": str(tally)}
            assert bench.collect(home, command, launch={"manners": HASTE, **launch}).code == 0
            changes = tally.stat().st_size
        early = sorted(dice.sample(range(1, changes - tail), int(share * changes)))
        for nth in [*early, *range(changes - tail, changes + 1)]:
            with bench.home() as home:
                launch = {"below": str(home.folder / "incidents"), "die_at": nth}
                died = bench.collect(home, command, launch={"manners": HASTE, **launch})
                if died.code == 0:
                    continue  # threads: this time there were fewer
                assert died.code == -signal.SIGKILL, f"at change {nth}: {died.said}"
                counts.kills += 1
                try:
                    _go_on(bench, home, counts, home.answered(), command)
                except AssertionError as wrong:
                    raise AssertionError(f"killed at change {nth} of {changes}: {wrong}") from None
        return f"{counts.kills} kills at changes of {changes}; each ended sealed"

    return act


def killed_after_a_bad_answer(bench: Bench, counts: Counts) -> str:
    """What failed in a run that was killed is asked again, and its first body is not in the way."""
    with bench.home(net.on(WHOLE, net.says("<html>try later</html>"))) as home:
        running = bench.start("collect", home.parameters, launch={"manners": HASTE})
        journal = home.partial / "captures.jsonl"
        while running.poll() is None and b"HTML in place of" not in _bytes(journal):
            time.sleep(0.01)
        running.kill()
        running.communicate()
        counts.kills += 1
        assert not home.case.exists(), "it was sealed before it could be killed"
        home.prometheus.plan = lambda asked: None
        _go_on(bench, home, counts, home.answered(), "collect")
        assert not home.errors(), home.errors()
    return "the last run asked it again, exit 0, holds"


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


DEATHS = (
    Row(
        "kill -9 of collect", "at random moments, 16 times",
        "a last run ends sealed; nothing answered is asked twice; hashes right; nothing left over",
        random_kills("collect", 16),
    ),
    Row(
        "kill -9 of run", "at random moments, 8 times, mostly in the notebook",
        "as above; no kernel stays behind; the report is on record",
        random_kills("run", 8),
    ),
    Row(
        "kill -9 at a change to the disk", "collect: one in 50 changes, and each of the last 12",
        "as above", killed_before_each_change("collect", 0.02, 12),
    ),
    Row(
        "kill -9 at a change, reporting", "run: each of the last 6 changes",
        "as above", killed_before_each_change("run", 0.0, 6),
    ),
    Row(
        "kill -9 after a bad answer", "200 with HTML, then killed; the server mends",
        "asked again, sealed, nothing of the bad body left in the way",
        killed_after_a_bad_answer,
    ),
)  # fmt: skip


# --- a disk that fills -------------------------------------------------------------------------


@contextmanager
def small_disk(bench: Bench, kib: int) -> Iterator[Path]:
    """A disk of its own, which `mount -o remount,size=` makes larger."""
    place = Path(tempfile.mkdtemp(dir=bench.folder))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        raise NotTried("only root may mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def full_disk(command: str, kib: int, sealed: bool) -> Callable[[Bench, Counts], str]:
    """Told, nothing half done, and with room again the next run goes on."""

    def act(bench: Bench, counts: Counts) -> str:
        with small_disk(bench, kib) as place, bench.home(place=place) as home:
            full = bench.collect(home, command)
            no_traceback(full)
            assert full.code == 1, f"exit {full.code}: {full.said}"
            assert "No space left on device" in full.said, full.said
            assert home.case.exists() is sealed, f"sealed: {home.case.exists()}"
            answered = home.answered()
            subprocess.run(["mount", "-o", "remount,size=60m", place], check=True)
            _go_on(bench, home, counts, answered, command)
        return f"exit 1, says so, sealed: {sealed}; then exit 0, {len(answered)} answers not asked"

    return act


def short_files(bench: Bench, counts: Counts) -> str:
    """RLIMIT_FSIZE: no file may be longer."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    with bench.home() as home:
        full = bench.collect(home, before=before)
        no_traceback(full)
        assert full.code == 1 and "File too large" in full.said, f"exit {full.code}: {full.said}"
        assert not home.case.exists()
        answered = home.answered()
        _go_on(bench, home, counts, answered, "collect")
    return f"exit 1, says so, not sealed; then exit 0, {len(answered)} answers not asked again"


def read_only(bench: Bench, counts: Counts) -> str:
    """`incidents/` may not be written."""
    with small_disk(bench, 4000) as place, bench.home(place=place) as home:
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        shut = bench.collect(home)
        subprocess.run(["mount", "-o", "remount,rw", place], check=True)
        no_traceback(shut)
        assert shut.code == 1 and "Read-only file system" in shut.said, shut.said
        assert home.asked() == 0, "asked, though nothing could be kept"
        _go_on(bench, home, counts, set(), "collect")
    return "exit 1, says so, nothing asked; then exit 0"


DISKS = (
    Row(
        "disk full at once", "a disk of 60 KiB", "exit 1, says so, not sealed; goes on with room",
        full_disk("collect", 60, sealed=False), quick=True,
    ),
    Row(
        "disk full midway", "a disk of 300 KiB", "exit 1, says so, not sealed; goes on with room",
        full_disk("collect", 300, sealed=False),
    ),
    Row(
        "disk full in the report", "a disk of 2.5 MB: the case fits, the page does not",
        "exit 1, says so, the case is sealed; a second run makes the report",
        full_disk("run", 2500, sealed=True),
    ),
    Row(
        "files limited", "RLIMIT_FSIZE of 2,000 bytes", "as a full disk", short_files,
    ),
    Row("disk read-only", "remounted", "exit 1, says so, asks nothing", read_only),
)  # fmt: skip


# --- too much, too far, not who it says it is --------------------------------------------------


def first(words: str, fault: net.Fault) -> Plan:
    """One question of all that hold these words."""
    hits = itertools.count()
    return lambda asked: fault if words in asked.selector and next(hits) == 0 else None


def ten_gigabytes(bench: Bench, counts: Counts) -> str:
    """The product's own limit, 2 GiB; the command as users run it."""
    with bench.home(first(WHOLE, net.endless(10 << 30))) as home:
        running, most_kb = bench.start("collect", home.parameters), 0
        while running.poll() is None:
            most_kb = max(most_kb, _peak_kb(running.pid))
            time.sleep(0.1)
        out, err = running.communicate()
        said = (out + err).decode()
        assert running.returncode in (0, 3) and "Traceback" not in said, said
        asked = [*home.manifest()["captures"], *home.manifest()["earlier"]]
        assert any("is longer than 2147483648 bytes" in capture["error"] for capture in asked)
        assert most_kb < 900_000, f"{most_kb} KB resident"
        counts.inputs += 1
        bench.holds(home, counts)
    return f"stopped at 2 GiB, asked in halves, exit {running.returncode}, peak {most_kb >> 10} MiB"


def _peak_kb(pid: int) -> int:
    with suppress(OSError, ValueError):
        status = Path(f"/proc/{pid}/status").read_text()
        if found := re.search(r"VmHWM:\s+(\d+)", status):  # one that has just ended has none
            return int(found[1])
    return 0


def all_endless(bench: Bench, counts: Counts) -> str:
    """Every reply is longer than allowed: the run still ends."""
    with bench.home(net.always(net.endless(1 << 30))) as home:
        ran = bench.collect(home, launch={"manners": {**HASTE, "longest_body_bytes": 4 << 20}})
        no_traceback(ran)
        asked = len(home.prometheus.asked)
        assert ran.code == 3, f"exit {ran.code}: {ran.said}"
        assert asked <= 600, f"{asked} questions to a server that never answered one"
        counts.inputs += asked
        bench.holds(home, counts)
    return f"exit 3 after {asked} questions, holds"


def bombs(bench: Bench, counts: Counts) -> str:
    """Content-Encoding: gzip, unasked: 1 GB of zeros in 1 MB."""
    with bench.home(net.on(WHOLE, net.gzip_bomb(256))) as home:
        ran = bench.collect(home, launch={"manners": {**HASTE, "longest_body_bytes": 16 << 20}})
        no_traceback(ran)
        assert ran.code == 3, f"exit {ran.code}: {ran.said}"
        assert any("is longer than" in text for text in home.errors()), home.errors()
        counts.inputs += sum(WHOLE in asked.selector for asked in home.prometheus.asked)
        bench.holds(home, counts)
    return "exit 3, each stopped at the limit, holds"


def redirected(bench: Bench, counts: Counts) -> str:
    """The other host records what reaches it."""
    with fake(lambda to, before: to.reply("{}")) as other:
        away = net.says("", 302, Location=f"{other.url}/api/v1/query?token=canary-tok")
        with bench.home(net.always(away)) as home:
            (home.folder / "http.yaml").write_text("authorization: {credentials: canary-red}\n")
            home.source("prometheus", http_config="http.yaml")
            ran = bench.collect(home)
            no_traceback(ran)
            assert ran.code == 3, f"exit {ran.code}: {ran.said}"
            assert all(a.authorization == "Bearer canary-red" for a in home.prometheus.asked)
            assert any("redirects are not followed" in text for text in home.errors())
            counts.inputs += len(home.prometheus.asked)
            bench.holds(home, counts)
        assert not other.seen, f"the other host got {other.seen}"
    return "exit 3, the other host got nothing, holds"


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server that shows a certificate of its own making; `folder/cert.pem` vouches for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def wrong_certificate(known: bool) -> Callable[[Bench, Counts], str]:
    """known: the authority is trusted, but the name is another's."""

    def act(bench: Bench, counts: Counts) -> str:
        folder = Path(tempfile.mkdtemp(dir=bench.folder))
        context = certificate(folder, "elsewhere.example")
        with bench.home() as home, net.proxy(bench.prometheus.url, tls=context) as shown:
            trust = f"tls_config: {{ca_file: {folder / 'cert.pem'}}}\n" if known else "{}\n"
            (home.folder / "http.yaml").write_text(trust)
            home.source("prometheus", url=shown.url, http_config="http.yaml")
            ran = bench.collect(home)
            no_traceback(ran)
            assert ran.code == 3, f"exit {ran.code}: {ran.said}"
            told = "mismatch|is not valid for" if known else "self.signed certificate"
            errors = home.errors()
            assert any("TLS failed" in e and re.search(told, e) for e in errors), errors[:3]
            assert not shown.asked, "it asked all the same"
            bench.holds(home, counts)
            words = next(e for e in errors if "TLS failed" in e)
        return f"exit 3, no question got through, {words[:80]!r}"

    return act


STRANGE = (
    Row(
        "a body of 10 GB", "zeros for one question; the product's own limit, read at full speed",
        "stopped at 2 GiB, memory flat (< 900 MB), the rest of the evidence sealed", ten_gigabytes,
    ),
    Row(
        "every body endless", "limit 4 MiB", "exit 3, ends, sealed", all_endless,
    ),
    Row(
        "gzip bombs", "256 MB in 256 KB each, limit 16 MiB", "exit 3, stopped at the limit", bombs,
    ),
    Row(
        "redirect to another host", "302 for every question, bearer token in use",
        "exit 3, the other host gets nothing", redirected, quick=True,
    ),
    Row(
        "certificate of another name", "its authority is trusted",
        "exit 3, TLS failed, nothing asked", wrong_certificate(known=True), quick=True,
    ),
    Row(
        "certificate of nobody", "self-signed, unknown",
        "exit 3, TLS failed, nothing asked", wrong_certificate(known=False),
    ),
)  # fmt: skip


# --- the world moves on ------------------------------------------------------------------------


def two_at_once(bench: Bench, counts: Counts) -> str:
    with bench.home(net.always(net.late(0.05))) as home:
        runs = [bench.start("collect", home.parameters) for _ in range(2)]
        said = [b"".join(run.communicate(timeout=120)).decode() for run in runs]
        codes = sorted(run.returncode for run in runs)
        assert not any("Traceback" in text for text in said), said
        assert codes == [0, 1], f"exits {codes}: {said}"
        assert any("another run is collecting" in text for text in said), said
        bench.holds(home, counts)
        return f"exits 0 and 1, one case that holds; {_again(bench, home, 0)}"


def clock_jumps(*days: float, noted: str = "") -> Callable[[Bench, Counts], str]:
    """days: by which the wall clock is off, by turns. noted: by a capture."""

    def act(bench: Bench, counts: Counts) -> str:
        launch = {"manners": HASTE, "clock_off_by_s": [86400 * each for each in days]}
        with bench.home() as home:
            ran = bench.collect(home, launch=launch)
            no_traceback(ran)
            assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
            assert not noted or noted in _notes(home), f"no capture is {noted}"
            times = [capture["asked_at"] for capture in home.manifest()["captures"]]
            bench.holds(home, counts)
            again = _again(bench, home, ran.code)
        return f"exit {ran.code}, asked {min(times)} to {max(times)}, holds; {again}"

    return act


def other_format(version: object) -> Callable[[Bench, Counts], str]:
    """A case as another version would have sealed it, its custody log in order."""

    def act(bench: Bench, counts: Counts) -> str:
        with bench.home() as home:
            assert bench.collect(home).code == 0
            path = home.case / "manifest.json"
            path.write_bytes(manifest.canonical({**home.manifest(), "format": version}))
            files = {"manifest.json": manifest.sha256_of(path)}
            manifest.note_act(home.case, "sealed", files=files)
            before = {path: path.read_bytes() for path in home.files()}
            asked = home.asked()
            for words in (
                ("collect", home.parameters), ("run", home.parameters), ("report", home.case),
                ("verify", home.case), ("rebuild", home.case), ("export", home.case, "/dev/null"),
            ):  # fmt: skip
                ran = bench.run(*words)
                no_traceback(ran)
                assert ran.code == 1, f"{words[0]}: exit {ran.code}: {ran.said}"
                assert f"sealed in format {version}" in ran.said, f"{words[0]}: {ran.said}"
            assert home.asked() == asked
            assert {path: path.read_bytes() for path in home.files()} == before, "files changed"
        return "six commands: exit 1, name both formats, change nothing, ask nothing"

    return act


def lost_after(half: int) -> tuple[Plan, threading.Event]:
    """The network of Prometheus is lost after so many questions, until the event is set."""
    back = threading.Event()

    def plan(asked: Asked) -> net.Fault | None:
        return net.drop if asked.n >= half and not back.is_set() else None

    return plan, back


def lost_and_stopped(bench: Bench, counts: Counts) -> str:
    """Ctrl-C while it waits for a network that is gone."""
    plan, back = lost_after(25)
    with bench.home(plan) as home:
        running = bench.start("collect", home.parameters)
        while running.poll() is None and len(home.prometheus.asked) < 27:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        said = b"".join(running.communicate(timeout=60)).decode()
        assert running.returncode not in (0, None) and not home.case.exists(), said
        answered, asked = home.answered(), len(home.prometheus.asked)
        back.set()
        _go_on(bench, home, counts, answered, "collect")
        again = len(home.prometheus.asked) - asked
        assert again == 52 - 25, f"{again} questions in the second run"
        assert "Traceback" not in said, f"on Ctrl-C: {said}"
    return f"25 questions answered; the second run asked the other {again}, sealed, holds"


def lost_and_left(bench: Bench, counts: Counts) -> str:
    plan, back = lost_after(25)
    with bench.home(plan) as home:
        ran = bench.collect(home)
        no_traceback(ran)
        assert ran.code == 3, f"exit {ran.code}: {ran.said}"
        bench.holds(home, counts)
        back.set()
        again = _again(bench, home, 3)
        lacking = len(home.errors())
    return f"exit 3, 25 answers sealed, {lacking} captures say what is lacking; {again}"


def restarted(bench: Bench, counts: Counts) -> str:
    """The real server is killed at a question and started again on its port at once."""
    folder = Path(tempfile.mkdtemp(dir=bench.folder))
    server = start(folder, scenario.history(), rules=scenario.RULES)
    port = urlsplit(server.url).port
    servers, lock = [server], threading.Lock()

    def fault(to: Handler, upstream: net.Upstream) -> None:
        with lock:
            servers[-1].kill()
            net.drop(to, upstream)
            servers.append(start(folder, "# EOF\n", rules=scenario.RULES, port=port or 0))

    try:
        plan: Plan = lambda asked: fault if asked.n in (15, 35) else None  # noqa: E731
        with bench.home(plan, upstream=server.url) as home:
            ran = bench.run("collect", home.parameters)
            no_traceback(ran)
            assert ran.code == 0, f"exit {ran.code}: {ran.said}"
            assert len(servers) == 3
            notes = [note for note in _notes(home) if note.startswith("tried again")]
            assert notes
            bench.holds(home, counts)
    finally:
        stop(servers[-1])
    return f"exit 0, {len(notes)} captures say that they were tried again, holds"


MOVING = (
    Row("two runs at once", "on one incident", "exit 0 and 1; one case, which holds",
        two_at_once),
    Row("clock ten years back", "of the process", "sealed and holds, whatever the clock says",
        clock_jumps(-3650)),
    Row("clock ten years ahead", "of the process", "sealed and holds", clock_jumps(3650)),
    Row("clock runs wild", "hours and days to and fro, 30 times a second", "sealed and holds",
        clock_jumps(0, -2, 0.1, 40, -0.05)),
    Row("clock inside the window", "2026-11-20 10:30", "sealed, holds, provisional",
        clock_jumps(
            (datetime(2026, 11, 20, 10, 30, tzinfo=UTC) - datetime.now(UTC)) / timedelta(days=1),
            noted="provisional",
        )),
    Row("case of a later format", "format 2, custody log in order", "exit 1, says which, no harm",
        other_format(2), quick=True),
    Row("case of an earlier format", "format 0", "exit 1, says which, no harm", other_format(0)),
    Row("network lost, run stopped", "after half of the questions; Ctrl-C; back for the second run",
        "the second run asks only the other half", lost_and_stopped),
    Row("network lost, run left alone", "after half of the questions; back for the second run",
        "sealed as it is, exit 3, both times; asks nothing", lost_and_left),
    Row("Prometheus restarted", "twice midway, the real server", "exit 0, tried again, holds",
        restarted),
)  # fmt: skip


def rows() -> Iterable[Row]:
    yield from (served.row() for served in SERVED)
    yield from (*DEATHS, *DISKS, *STRANGE, *MOVING)
