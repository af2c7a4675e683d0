"""A whole collection of what a deployment handed over: sealed, provable, and without a secret."""

from __future__ import annotations

import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import prometheus_server
import pyrage
import pytest
import zstandard
from handed import EXPORT_KEY, EXPORT_PASSPHRASE, FIXTURES, LOG_PASSPHRASE, POSTED
from test_envelopes import of_generation_a
from test_logstore import sqlite

from tbforensics.case import open_case, prove
from tbforensics.collect import collect
from tbforensics.model import utc_text
from tbforensics.parameters import incident_from
from tbforensics.reading.logcipher import Tag

LOGGED = 1_795_217_000
IDENTITY = pyrage.x25519.Identity.generate()
PLAIN = (FIXTURES / "export.zip").read_bytes()


def moment(second: int) -> str:
    return utc_text(datetime.fromtimestamp(second, UTC))


def given_folder(home: Path) -> None:
    exports = home / "given" / "exports"
    exports.mkdir(parents=True)
    for name in ("export.tbpw", "export.tbxe", "metrics-archive.jsonl"):
        (exports / name).write_bytes((FIXTURES / name).read_bytes())
    (exports / "a.bin").write_bytes(of_generation_a(PLAIN))
    (exports / "a.age").write_bytes(pyrage.encrypt(PLAIN, [IDENTITY.to_public()]))
    (home / "given" / "phrase").write_text(EXPORT_PASSPHRASE)
    (home / "given" / "identities").write_text(f"{EXPORT_KEY}\n{IDENTITY}\n")
    (home / "given" / "peer_key_history.log").write_text(
        '{"old": "%s", "new": "%s", "ts": %d}\n' % ("0a" * 32, "0b" * 32, POSTED)  # noqa: UP031
    )


def tsdb(home: Path) -> None:
    """A tarball of a TSDB with one counter that climbs."""
    samples = [(POSTED * 1000 - 3_600_000 + n * 15_000, float(n)) for n in range(300)]
    up = [(ms, 1.0) for ms, _ in samples]
    labels = 'job="node",instance="a"'
    history = {"up": {labels: up}, "quic_bytes_sent_total": {labels: samples}}
    (home / "history.om").write_text(prometheus_server.openmetrics(history))
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "data"]
    subprocess.run(command, cwd=home, check=True, capture_output=True)
    with tarfile.open(home / "given" / "tsdb.tar.gz", "w:gz") as tar:
        tar.add(home / "data", "data")


def all_bytes(folder: Path) -> bytes:
    """Everything in a case, what is compressed also as it was before."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(str(path).encode() + path.read_bytes())
            if path.suffix == ".zst":
                with path.open("rb") as file:
                    found.append(zstandard.ZstdDecompressor().stream_reader(file).read())
    return b"\n".join(found)


@pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")
def test_a_case_of_files_alone_is_sealed_proved_and_free_of_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "incidents").mkdir()
    given_folder(tmp_path)
    tsdb(tmp_path)
    sqlite(tmp_path / "given" / "logs.db", encrypt=Tag.STANDARD)
    monkeypatch.setenv("LOG_PHRASE", LOG_PASSPHRASE)
    monkeypatch.setenv("WRONG_PHRASE", "canary-4711")
    sources = {
        "exports": {
            "type": "aggregator",
            "path": "given/exports",
            "passphrase_file": "given/phrase",
            "identity_file": "given/identities",
        },
        "shut": {
            "type": "aggregator",
            "path": "given/exports/export.tbpw",
            "passphrase_env": "WRONG_PHRASE",
        },
        "store": {"type": "logstore", "path": "given/logs.db", "passphrase_env": "LOG_PHRASE"},
        "keys": {"type": "nodefiles", "path": "given/peer_key_history.log"},
        "samples": {"type": "tsdb", "path": "given/tsdb.tar.gz"},
    }
    incident = incident_from(
        {
            "incident_id": "INC-handed",
            "kind": "quic_failure",
            "start": moment(LOGGED - 60),
            "end": moment(POSTED + 600),
            "sources": sources,
        }
    )
    folder = collect(incident, tmp_path)
    text = all_bytes(folder)
    for canary in (EXPORT_PASSPHRASE, EXPORT_KEY, str(IDENTITY), LOG_PASSPHRASE, "canary-4711"):
        assert canary.encode() not in text
    case = open_case(folder)
    case.record_findings()
    case.evidence.close()
    assert [check for check in prove(folder, recompute=True) if not check.holds] == []

    case = open_case(folder)
    counted = case.sql("SELECT source, query, count(*) AS n FROM records GROUP BY ALL ORDER BY ALL")
    assert counted.values.tolist() == [
        ["exports", "peer_posts", 7],
        ["exports", "peer_samples", 40],
        ["keys", "key_rotations", 1],
    ]
    messages = case.sql("SELECT message FROM log_lines ORDER BY id")["message"]
    assert messages[0] == "quic_connect_fail #0"
    assert len(messages) == 16
    states = {(row.query, row.source): row.state for row in case.frames.coverage}
    assert states["log_lines", "store"] == "covered"
    assert states["peer_samples", "exports"] == "covered"
    assert ("up", "samples") in states
    assert case.frames["bytes_sent"].shape[1] == 1
    shut = [c for c in case.manifest.captures if c.source == "shut" and c.error]
    assert [c.error for c in shut] == [
        "the MAC of TBPW does not fit: a wrong passphrase, or it was changed"
    ]
    case.evidence.close()
