"""A node's own files: who became whom; and its raw log, which the logs source reads."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from handed import HOUR, NOW, POSTED, Handed
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.model import Capture
from tbforensics.sources import logs
from tbforensics.sources.nodefiles import SOURCE, Options

OLD, NEW = "0a" * 32, "0b" * 32


def rotation(ts: int = POSTED, old: str = OLD, new: str = NEW) -> str:
    return json.dumps({"old": old, "new": new, "ts": ts}) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def test_each_rotation_is_a_record_that_says_how_long_the_old_key_is_valid(folder: Path) -> None:
    (folder / "peer_key_history.log").write_text(rotation(new=NEW.upper()))
    given_ = Handed(folder / "case", SOURCE, Options(str(folder)))
    (record,) = given_.records
    assert record["value"] == {
        **{"old": OLD, "new": NEW, "ts": POSTED},
        "old_valid_until": POSTED + 300,
    }
    assert (record["ts"].timestamp(), record["query"]) == (POSTED, "key_rotations")
    assert given_.errors == ["no util_history.json or kalman_state.json under `path`"]


def test_rotations_long_ago_are_counted_and_torn_lines_set_aside(folder: Path) -> None:
    early = round(HOUR.start.timestamp()) - 3600 - 500  # before the baseline, and still near
    text = rotation(1) + rotation(early) + "\n[]\n" + rotation(old="x") + rotation()[:-20]
    (folder / "peer_key_history.log").write_text(text)
    given_ = Handed(folder / "case", SOURCE, Options(str(folder)))
    assert [r["line"] for r in given_.records] == [2]
    assert [r["line"] for r in given_.bad] == [4, 5, 6]
    (summary,) = given_.said("summary")
    assert (summary["kept"], summary["outside_window"], summary["unreadable"]) == (1, 1, 3)


def test_states_of_the_estimator_are_snapshots(folder: Path) -> None:
    (folder / "util_history.json").write_text("[0.5, 0.25]")
    (folder / "kalman_state.json").write_text("[" * 4000)
    given_ = Handed(folder / "case", SOURCE, Options(str(folder)))
    rows = sorted(given_.tables["snapshots"], key=lambda row: row["state"])
    assert [row["state"] for row in rows] == ["error", "ok"]
    assert json.loads(rows[1]["value"]) == {"file": "util_history.json", "state": [0.5, 0.25]}
    assert given_.bad[0]["file"] == "kalman_state.json"


def test_nothing_there_is_said(folder: Path) -> None:
    assert len(Handed(folder / "case", SOURCE, Options(str(folder / "no"))).errors) == 2


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["key_rotations", "estimator_state"]),
    st.binary(max_size=80) | st.text(alphabet='{}[]",:oldnewts019\n ', max_size=80).map(str.encode),
)
def test_no_bytes_do_harm(role: str, body: bytes) -> None:
    capture = Capture("it", role, role, {"file": "x"}, NOW, HOUR, sha256="0")
    for name, table in SOURCE.parse(capture, io.BytesIO(body)):
        assert name in ("records", "snapshots", "quarantine")
        json.dumps(table.to_pylist(), default=str)


# --- raw node logs ---------------------------------------------------------------------------

# As `--log-format json` writes them: neither fits the node's own indexer.
OF_B = {
    **{"level": "warn", "target": "p2p", "module": "the_block::p2p", "line": 412},
    "file": "node/src/p2p/handshake.rs",
    "message": "QUIC certificate validation failed",
    "fields": {"peer": OLD, "provider": "quinn", "error": "expired"},
}
OF_A = {
    **{"timestamp": "2026-11-21T01:57:40.123456Z", "level": "ERROR", "target": "the_block::net"},
    "fields": {"message": "quic_connect_fail", "reason": "timeout"},
}


def test_raw_logs_of_both_generations_are_lines(folder: Path) -> None:
    (folder / "node-a.log").write_text(json.dumps(OF_A) + "\n")
    (folder / "node-b.log").write_text(json.dumps(OF_B) + "\nplain words of a panic\n")
    given_ = Handed(folder / "case", logs.SOURCE, logs.Options(path=str(folder)))
    a, b, panic = sorted(given_.lines, key=lambda line: (line["file"], line["line"]))
    assert (a["message"], a["level"], a["target"]) == (
        "quic_connect_fail",
        "ERROR",
        "the_block::net",
    )
    assert a["ts"].isoformat() == "2026-11-21T01:57:40.123000+00:00"
    assert json.loads(a["fields"]) == {"reason": "timeout"}
    assert (b["message"], b["level"], b["peer"]) == (
        "QUIC certificate validation failed",
        "WARN",
        OLD,
    )
    assert b["ts"] is None  # B writes no time, and none is made up
    assert json.loads(b["fields"])["error"] == "expired"
    assert panic["message"] == "plain words of a panic"
    assert given_.bad == []
