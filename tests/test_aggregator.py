"""The aggregator source: asked politely, opened with keys from elsewhere, hardly ever surprised."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyrage
import pytest
from handed import EXPORT_KEY, EXPORT_PASSPHRASE, FIXTURES, HOUR, POSTED, Handed
from http_fake import Fake, Handler, fake
from hypothesis import given, settings
from hypothesis import strategies as st
from test_envelopes import of_generation_a

from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Query, Shape, Window
from tbforensics.sources.aggregator import SOURCE, Options
from tbforensics.theblock import peer_hex

PLAIN = (FIXTURES / "export.zip").read_bytes()
PEER = "5s5mFYU9oGojmSeXLXFSbUsHSCMH6HyZJh5FUej4gpbmkiPzQ"
IDENTITY = pyrage.x25519.Identity.generate()
Collect = Callable[..., Handed]


@pytest.fixture
def collect(tmp_path: Path) -> Iterator[Collect]:
    count = iter(range(100))

    def collecting(url: str | None = None, queries: Any = (), **options: Any) -> Handed:
        home = tmp_path / f"case-{next(count)}"
        return Handed(home, SOURCE, Options(**options), url, queries=queries)

    yield collecting


def answering(handler: Handler, before: int) -> None:
    path, _, query = handler.path.partition("?")
    bodies = {
        "/healthz": b"",
        "/cluster": b"3",
        "/telemetry": b'{"n1": {"node_id": "n1", "sample_rate_ppm": 250000}}',
        "/wrappers": (FIXTURES / "wrappers.json").read_bytes(),
        "/correlations/quic_retransmit_total": b"[]",
        "/correlations/quic_handshake_fail_total": (
            FIXTURES / "correlations-quic_handshake_fail_total.json"
        ).read_bytes(),
        "/export/all": pyrage.encrypt(PLAIN, [IDENTITY.to_public()])
        if "recipient" in query
        else PLAIN,
        f"/peer/{PEER}": zipfile.ZipFile(io.BytesIO(PLAIN)).read(f"{PEER}.json"),
    }
    if path not in bodies:
        return handler.reply(b"", 404)
    return handler.reply(bodies[path])


@pytest.fixture
def server() -> Iterator[Fake]:
    with fake(answering) as fake_server:
        yield fake_server


# --- asking --------------------------------------------------------------------------------


def test_it_is_asked_for_all_but_the_export(collect: Collect, server: Fake) -> None:
    given_ = collect(server.url)
    assert [seen.path for seen in server.seen] == [
        *("/healthz", "/cluster", "/telemetry", "/wrappers"),
        *("/correlations/quic_handshake_fail_total", "/correlations/quic_retransmit_total"),
        f"/peer/{PEER}",  # the one that a correlation names
    ]
    assert given_.errors == []
    assert given_.said("healthz") == [{"healthy": True}]
    assert given_.said("cluster") == [{"path": "cluster", "peers": 3}]
    assert given_.said("telemetry")[0]["sampled"] is True
    linked, none = given_.said("correlations")
    assert linked["correlations"][0]["peer_id"] == peer_hex(PEER)
    assert linked["correlations"][0]["correlation_id"] == "deadbeef00000000"
    assert none["correlations"] == []


def test_siblings_of_generation_b_are_no_nodes(collect: Collect, server: Fake) -> None:
    given_ = collect(server.url)
    (wrappers,) = given_.said("wrappers")
    assert (wrappers["nodes"], set(wrappers) - {"nodes", "path"}) == ({}, {"treasury", "energy"})
    (row,) = [r for r in given_.tables["snapshots"] if r["role"] == "wrappers"]
    assert row["generation"] == "B"


def test_a_peer_is_one_record_a_sample_and_the_sum_is_flagged(
    collect: Collect, server: Fake
) -> None:
    records = collect(server.url).records
    assert [round(r["ts"].timestamp()) - POSTED for r in records] == [4, 5, 6, 9]
    assert [r["value"]["summed"] for r in records] == [False, False, None, True]
    assert {r["value"]["peer"] for r in records} == {peer_hex(PEER)}
    assert {(r["file"], r["query"]) for r in records} == {(f"peer/{PEER}", "peer_samples")}
    assert [r["place"] for r in records] == [0, 1, 2, 3]
    assert records[0]["value"]["sample"]["handshake_fail"] == {"tls": 1}


def test_an_export_is_asked_only_when_told(collect: Collect, server: Fake) -> None:
    wish = Query("x", "aggregator", "/export/all", shape=Shape.ROWS)
    refused = collect(server.url, queries=[wish])
    assert "not asked" in refused.errors[0]
    assert not [seen for seen in server.seen if "export" in seen.path]
    asked = collect(server.url, export=True)
    assert len([seen for seen in server.seen if "export" in seen.path]) == 1
    (summary,) = [s for s in asked.said("summary") if "peers" in s]
    assert summary == {
        **{"file": "export/all", "form": "zip", "peers": 3, "samples": 10},
        **{"summed": 3, "rotations": 1},
    }
    assert asked.said("tls_warnings")[0]["latest"] == []


def test_an_export_for_a_recipient_is_opened(
    collect: Collect, server: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IDENTITY", str(IDENTITY))
    recipient = str(IDENTITY.to_public())
    given_ = collect(server.url, export=True, recipient=recipient, identity_env="IDENTITY")
    assert given_.errors == []
    assert server.seen[-1].path == f"/export/all?recipient={recipient}"
    sealed, opened = [c for c in given_.captures if c.role == "export"]
    assert opened.request["opened_from"] == sealed.sha256
    assert str(IDENTITY) not in given_.everything()


def test_what_a_kind_names_is_asked_under_its_own_name(collect: Collect, server: Fake) -> None:
    queries = [Query("linked", "aggregator", "correlations/quic_retransmit_total")]
    given_ = collect(server.url, queries=queries, metrics=())
    (row,) = [r for r in given_.tables["snapshots"] if r["query"] == "linked"]
    assert (row["role"], row["state"]) == ("correlations", "ok")


def test_what_a_server_does_wrong_is_on_record(collect: Collect) -> None:
    def wrong(handler: Handler, before: int) -> None:
        bodies = [b"down", b'"three"', b"[]", b"{", b'{"a": 1}']
        handler.reply(bodies[before % 5], 404 if before == 0 else 200)

    with fake(wrong) as server:
        given_ = collect(server.url, peers=("nobody", "ab" * 32))
    assert len(given_.errors) == 1
    states = {row["role"]: row["state"] for row in given_.tables["snapshots"]}
    assert (states["cluster"], states["telemetry"], states["wrappers"]) == ("error",) * 3
    assert given_.bad


def test_neither_url_nor_path_is_said(collect: Collect) -> None:
    assert "neither" in collect().errors[0]


def test_a_recipient_that_is_none_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ParametersError, match="age1"):
        Options(recipient="AGE-SECRET-KEY-1CANARY")


# --- exports that were handed over ---------------------------------------------------------


def sealed_forms(folder: Path) -> None:
    folder.mkdir()
    for name in ("export.tbpw", "export.tbxe", "export.zip"):
        (folder / name).write_bytes((FIXTURES / name).read_bytes())
    (folder / "export.age").write_bytes(pyrage.encrypt(PLAIN, [IDENTITY.to_public()]))
    (folder / "export.bin").write_bytes(of_generation_a(PLAIN))


def keys(folder: Path) -> dict[str, str]:
    (folder / "phrase").write_text(EXPORT_PASSPHRASE + "\n")
    (folder / "identities").write_text(f"{EXPORT_KEY}\n{IDENTITY}\n")
    return {
        "passphrase_file": str(folder / "phrase"),
        "identity_file": str(folder / "identities"),
    }


def test_all_five_forms_give_the_same_records(collect: Collect, tmp_path: Path) -> None:
    sealed_forms(tmp_path / "given")
    given_ = collect(path=str(tmp_path / "given"), **keys(tmp_path))
    assert (given_.errors, given_.bad) == ([], [])
    assert len(given_.records) == 5 * 10
    places = {(r["file"], r["place"], r["ts"], str(r["value"])) for r in given_.records}
    assert len(places) == 10
    opened = [c for c in given_.captures if "opened_from" in c.request]
    assert {c.sha256 for c in opened} == {hashlib.sha256(PLAIN).hexdigest()}
    kept = {c.request.get("file"): c for c in given_.captures if "form" not in c.request}
    body = given_.client.body(kept["export.tbpw"])
    assert body == (FIXTURES / "export.tbpw").read_bytes()


def test_without_keys_the_envelopes_are_kept_and_said_to_be_shut(
    collect: Collect, tmp_path: Path
) -> None:
    sealed_forms(tmp_path / "given")
    given_ = collect(path=str(tmp_path / "given"))
    assert len(given_.errors) == 4
    assert all("is named" in error for error in given_.errors)
    assert len(given_.records) == 10
    assert {s.get("form") for s in given_.said("summary")} == {
        *("zip", "age", "TBPW", "TBXE", "AES-256-CBC under a passphrase")
    }


def test_wrong_keys_are_said_and_stand_nowhere(
    collect: Collect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(pyrage.x25519.Identity.generate())
    monkeypatch.setenv("WRONG", f"{'ca' * 32}\n{other}")
    monkeypatch.setenv("PHRASE", "canary-4711")
    sealed_forms(tmp_path / "given")
    given_ = collect(path=str(tmp_path / "given"), passphrase_env="PHRASE", identity_env="WRONG")
    assert len(given_.errors) == 4
    for canary in ("canary-4711", "ca" * 32, other):
        assert canary not in given_.everything()


def test_keys_that_cannot_be_read_are_said_without_their_path(
    collect: Collect, tmp_path: Path
) -> None:
    sealed_forms(tmp_path / "given")
    given_ = collect(path=str(tmp_path / "given"), passphrase_file=str(tmp_path / "missing"))
    assert "the passphrase: its file cannot be read" in given_.errors[0]
    assert str(tmp_path) not in given_.everything()


def test_the_evidence_is_made_anew_without_any_key(collect: Collect, tmp_path: Path) -> None:
    sealed_forms(tmp_path / "given")
    given_ = collect(path=str(tmp_path / "given"), **keys(tmp_path))
    again: list[Any] = []
    for capture in given_.captures:
        with given_.client.archive.open(Capture.from_json(capture.to_json())) as body:
            for name, table in SOURCE.parse(capture, body):
                again += table.to_pylist() if name == "records" else []
    assert again == given_.tables["records"]


def test_samples_outside_the_incident_are_counted_and_left(tmp_path: Path) -> None:
    (tmp_path / "export.zip").write_bytes(PLAIN)
    path = str(tmp_path / "export.zip")
    day = Window(HOUR.start + timedelta(days=1), HOUR.end + timedelta(days=1))
    there = Handed(tmp_path / "there", SOURCE, Options(path=path))
    later = Handed(tmp_path / "later", SOURCE, Options(path=path), window=day)
    assert (len(there.records), len(later.records)) == (10, 0)
    assert later.said("summary")[0]["outside_window"] == 10


def hostile() -> dict[str, bytes]:
    def packed(*named: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, data in named:
                archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
        return file.getvalue()

    good = (f"{PEER}.json", b"[[%d, {}]]" % POSTED)
    return {
        "bomb.zip": packed(
            good, ("x.json", bytes(9 << 20)), method=zipfile.ZIP_DEFLATED
        ),
        "slip.zip": packed(good, ("../../etc/cron.json", b"[]")),
        "odd.zip": packed(good, ("readme.txt", b""), ("y.json", b"not json"), ("z.json", b"{}")),
        "cut.zip": packed(good, ("cut.json", b"[]" * 500))[:400],
        "empty.zip": b"",
        "small.zip": b"PK",
        "warned.zip": packed(good, ("tls_warnings/latest.json", b"{")),
    }  # fmt: skip


def test_hostile_archives_cost_no_good_sample(collect: Collect, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    for name, body in hostile().items():
        (folder / name).write_bytes(body)
    given_ = collect(path=str(folder))
    assert len(given_.records) == 5
    reasons = {row["file"]: row["reason"] for row in given_.bad}
    assert "leads out" in reasons["../../etc/cron.json"]
    assert "no entry of an export" in reasons["readme.txt"]
    assert "compressed bytes" in reasons["x.json"]
    assert "cut short" in reasons["cut.json"]
    assert {"y.json", "z.json", "tls_warnings/latest.json", "small.zip"} <= set(reasons)


# --- archived posts ------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_archived_posts_are_records_as_the_nodes_sent_them(
    collect: Collect, tmp_path: Path, packed: bool
) -> None:
    text = (FIXTURES / "metrics-archive.jsonl").read_bytes()
    (tmp_path / "archive.jsonl").write_bytes(gzip.compress(text) if packed else text)
    given_ = collect(path=str(tmp_path / "archive.jsonl"))
    assert given_.errors == []
    records = given_.records
    assert {r["query"] for r in records} == {"peer_posts"}
    assert [r["line"] for r in records] == [1, 1, 1, 2, 2, 3, 4]
    assert records[0]["ts"].timestamp() == POSTED
    assert records[-1]["ts"] is None
    assert records[-1]["value"]["what"] == "rotation"
    (summary,) = given_.said("summary")
    assert (summary["posts"], summary["samples"], summary["without_time"]) == (4, 7, 2)


def test_a_torn_archive_gives_what_is_whole(collect: Collect, tmp_path: Path) -> None:
    text = (FIXTURES / "metrics-archive.jsonl").read_bytes()
    (tmp_path / "archive.jsonl").write_bytes(text[:-40] + b"\nnull\n[{}]\n\n")
    given_ = collect(path=str(tmp_path / "archive.jsonl"))
    assert len(given_.records) == 6
    assert [row["line"] for row in given_.bad] == [4, 5, 6]


def test_a_single_post_is_read_too(collect: Collect, tmp_path: Path) -> None:
    text = (FIXTURES / "metrics-archive.jsonl").read_bytes().splitlines()[0]
    (tmp_path / "archive.jsonl").write_bytes(text)
    given_ = collect(path=str(tmp_path / "archive.jsonl"))
    assert [(r["line"], r["place"]) for r in given_.records] == [(1, 0), (1, 1), (1, 2)]
    assert given_.said("summary")[0]["posts"] == 1


ROLES = ("export", "peer", "posts", "cluster", "telemetry", "wrappers", "correlations", "listing")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(ROLES), st.binary(max_size=60) | st.sampled_from([b"[[1,{}]]", b'{"a":[]}']))
def test_no_bytes_do_harm(role: str, body: bytes) -> None:
    capture = Capture("it", "q", role, {"file": "x"}, HOUR.end, HOUR, sha256="0")
    for name, table in SOURCE.parse(capture, io.BytesIO(body)):
        assert name in ("records", "snapshots", "quarantine")
        json.dumps(table.to_pylist(), default=str)
