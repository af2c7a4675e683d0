"""A copy without the names that the rules found: every byte of it is searched for them."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pyrage
import pytest
import yaml
import zstandard
from click.testing import CliRunner
from conftest import EXAMPLE, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics import cli, parameters, redact, theblock
from tbforensics.case import case_of, open_case, prove
from tbforensics.errors import EvidenceError, ParametersError
from tbforensics.evidence import Evidence
from tbforensics.manifest import custody, note_act, read_manifest, sha256_of

HEX = "25303b46515c67727d88939ea9b4bfcad5e0ebf6010c17222d38434e59646f7a"
SECRETS = [HEX, theblock.peer_base58(HEX), "10.0.0.1", "10.0.0.2", "node-a", "on-call", "node-b"]
RULES: dict[str, Any] = {
    "addresses": True,
    "keys": True,
    "tokens": True,
    "names": {"host": ["node-b", "node-a.jsonl"], "person": ["on-call"]},
    "labels": ["instance"],
    "fields": ["author"],
}
KEY = b"k" * redact.KEY_BYTES


def rules_in(folder: Path, **changes: Any) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({**RULES, **changes}))
    return path


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the example and its redacted copy, which has a report."""
    home = tmp_path_factory.mktemp("project")
    folder = home / "incidents" / EXAMPLE.name
    shutil.copytree(EXAMPLE, folder)
    opened = open_case(folder)
    opened.record_findings()
    (folder / "report.html").touch()  # so the copy is to have one
    note_act(folder, "rendered", files={"report.html": sha256_of(folder / "report.html")})
    opened.evidence.close()
    redact.redact(folder, rules_in(home), folder.parent, "passphrase", key=KEY)
    return home


@pytest.fixture
def copy(project: Path) -> Path:
    return project / "incidents" / f"{EXAMPLE.name}-redacted"


@pytest.fixture
def original(project: Path) -> Path:
    return project / "incidents" / EXAMPLE.name


def everything(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of all that a reader of the copy can get at, unpacked where it is packed."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        yield path.name, content
        if path.suffix == ".zst":
            content = zstandard.ZstdDecompressor().stream_reader(content).read()
            yield f"{path.name} unpacked", content
            if content[:2] == b"\x1f\x8b":
                yield f"{path.name} unpacked twice", gzip.decompress(content)
        if path.suffix == ".parquet":
            yield f"{path.name} read", repr(pq.read_table(path).to_pylist()).encode()
    if (folder / "evidence").is_dir():
        store = Evidence(folder)
        for table in ("series", "log_lines", "snapshots", "quarantine"):
            yield f"table {table}", store.sql(f"SELECT * FROM {table}").to_csv().encode()
        store.close()


def test_no_byte_of_the_copy_holds_an_original(copy: Path) -> None:
    seen = []
    for name, content in everything(copy):
        seen.append(name)
        for secret in SECRETS:
            assert secret.encode() not in content, f"{secret} in {name}"
            assert secret not in name
    assert {"report.html", "report.ipynb", "findings.json", "table log_lines"} <= set(seen)


def test_the_originals_were_there_to_be_found(original: Path) -> None:
    whole = b"".join(content for _, content in everything(original))
    assert all(secret.encode() in whole for secret in SECRETS)


def test_the_copy_holds_and_says_what_the_original_says(original: Path, copy: Path) -> None:
    assert [check for check in prove(copy, recompute=True) if not check.holds] == []
    before, after = (json.loads((f / "findings.json").read_bytes()) for f in (original, copy))
    assert before["verdict"] == after["verdict"]
    assert [(f["id"], f["value"]) for f in before["findings"]] == [
        (f["id"], f["value"]) for f in after["findings"]
    ]
    assert (copy / "findings.json").read_bytes() != (original / "findings.json").read_bytes()


def test_both_spellings_of_a_peer_still_join(copy: Path) -> None:
    store = Evidence(copy)
    hexed = store.sql("SELECT DISTINCT labels['peer'] AS peer FROM series WHERE labels['peer'] IS "
                      "NOT NULL")["peer"]  # fmt: skip
    based = store.sql("SELECT DISTINCT labels['peer_id'] AS peer FROM series WHERE "
                      "labels['peer_id'] IS NOT NULL")["peer"]  # fmt: skip
    store.close()
    assert set(hexed) & {theblock.peer_hex(peer) for peer in based}


def test_custody_of_the_copy_begins_with_what_was_done(original: Path, copy: Path) -> None:
    first = custody(copy)[0]
    assert first["act"] == "redacted"
    assert first["original_manifest_sha256"] == read_manifest(original).sha256
    assert first["replacements"]["keys"] > 10
    before = {c.sha256 for c in read_manifest(original).captures if c.sha256}
    after = {c.sha256 for c in read_manifest(copy).captures if c.sha256}
    assert set(first["changed"]) == before - after
    assert set(first["changed"].values()) == after - before
    for query in ("buildinfo", "alerts"):  # untouched replies keep their hash
        hashes = [{c.sha256 for c in read_manifest(f).captures_of(query)} for f in (original, copy)]
        assert hashes[0] == hashes[1]


def test_the_map_opens_with_its_passphrase_alone(original: Path, copy: Path) -> None:
    path = copy.with_name(f"{copy.name}.map.age")
    content = path.read_bytes()
    assert content.startswith(b"age-encryption.org/v1") and path.stat().st_mode & 0o077 == 0
    value = json.loads(pyrage.passphrase.decrypt(content, "passphrase"))
    assert HEX in value["originals"].values()
    assert value["original"]["manifest"] == read_manifest(original).sha256
    assert redact.key_of(path, "passphrase") == KEY
    with pytest.raises(EvidenceError, match="passphrase is another"):
        redact.key_of(path, "other")
    with pytest.raises(EvidenceError, match="no map"):
        redact.key_of(copy / "manifest.json", "passphrase")


# --- a small case of files alone, collected for a test ---------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("files")
    (home / "dumps").mkdir()
    line = {"timestamp": 1795170144, "level": "WARN", "message": "from 10.0.0.1", "peer": HEX}
    (home / "dumps" / "node-a.jsonl").write_text(json.dumps(line) + "\n")
    (home / "dumps" / "other.log.gz").write_bytes(gzip.compress(b"alice-smith at node-a\n"))
    (home / "dumps" / "store.db").write_bytes(b"SQLite format 3\0" + HEX.encode())
    incident = parameters.incident_from(
        {
            "incident_id": "files-1",
            "kind": "quic_failure",
            "start": "2026-11-20T10:00:00Z",
            "end": "2026-11-20T11:30:00Z",
            "sources": {"dumps": {"type": "logs", "path": "dumps"}},
            "notes": "alice-smith saw it",
        }
    )
    (home / "incidents").mkdir()
    case_of(incident, home).evidence.close()
    return home / "incidents" / "files-1"


def test_the_same_key_gives_the_same_copy_and_a_fresh_one_another(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBFORENSICS_MAP_PASSPHRASE", "passphrase")
    words = ["redact", str(files), "--rules", str(rules_in(tmp_path)), "--out"]
    same = ["--same-as", str(tmp_path / "first" / "files-1-redacted.map.age")]
    for out, more in (("first", []), ("same", same), ("fresh", [])):
        done = CliRunner().invoke(cli.main, [*words, str(tmp_path / out), *more])
        assert done.exit_code == 0, done.output
    folders = [tmp_path / out / "files-1-redacted" for out in ("first", "same", "fresh")]
    names = [{path.name for path in (folder / "raw").iterdir()} for folder in folders]
    assert names[0] == names[1] != names[2]
    assert {path.name for path in (tmp_path / "fresh").iterdir()} == {
        "files-1-redacted",
        "files-1-redacted.map.age",
    }


def test_what_a_field_names_is_taken_out_of_notes_and_packed_logs(
    files: Path, tmp_path: Path
) -> None:
    rules = rules_in(tmp_path, names={"person": ["Alice-Smith"]})
    folder = redact.redact(files, rules, tmp_path, "passphrase").folder
    whole = b"".join(content for _, content in everything(folder))
    assert b"alice-smith" not in whole and b"person-" in whole
    assert [check for check in prove(folder, recompute=True) if not check.holds] == []


def test_a_reply_that_is_no_text_is_withheld_and_said_so(files: Path, tmp_path: Path) -> None:
    """A store of SQLite may hold anything; what cannot be read cannot be cleaned."""
    done = redact.redact(files, rules_in(tmp_path), tmp_path, "passphrase")
    assert done.withheld == 1
    (withheld,) = [c for c in read_manifest(done.folder).captures if "withheld" in c.error]
    assert withheld.sha256 is None and withheld.request["file"] == "store.db"
    assert list(custody(done.folder)[0]["changed"].values()).count(None) == 1


def test_a_name_that_cannot_be_taken_out_leaves_no_copy(files: Path, tmp_path: Path) -> None:
    """The kind's name stands in the parameters, where it must stay."""
    rules = rules_in(tmp_path, names={"host": ["quic_failure"]})
    with pytest.raises(EvidenceError, match="would still stand in"):
        redact.redact(files, rules, tmp_path / "out", "passphrase")
    assert list((tmp_path / "out").iterdir()) == []


def test_rules_that_break_a_reply_leave_no_copy(files: Path, tmp_path: Path) -> None:
    rules = rules_in(tmp_path, patterns=[{"regex": '"peer": "[^"]*"', "prefix": "x"}])
    with pytest.raises(EvidenceError, match="something other than JSON"):
        redact.redact(files, rules, tmp_path / "out", "passphrase")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_copy_that_is_there_is_not_written_over(files: Path, tmp_path: Path) -> None:
    (tmp_path / "files-1-redacted").mkdir()
    with pytest.raises(EvidenceError, match="is there already"):
        redact.redact(files, rules_in(tmp_path), tmp_path, "passphrase")


def test_a_case_that_does_not_hold_is_not_redacted(sealed: Path, tmp_path: Path) -> None:
    with (sealed / "manifest.json").open("a") as file:
        file.write(" ")
    with pytest.raises(EvidenceError, match="is not redacted"):
        redact.redact(sealed, rules_in(tmp_path), tmp_path / "out", "passphrase")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lambda body: body])
def test_a_compressed_log_is_read_and_compressed_again(pack: Any) -> None:
    body = pack("peer caf\u00e9 \\u0041\n".encode() + b"\xff\n")
    text = redact._text_of(body)
    assert text == "peer café A\n\udcff\n"
    again = redact._packed(text, body[:4])
    assert redact._text_of(again) == text and again[:2] == body[:2]


@pytest.mark.parametrize("body", [b"\x1f\x8bjunk", b"\x28\xb5\x2f\xfdjunk", b"a\0b"])
def test_what_cannot_be_unpacked_is_no_text(body: bytes) -> None:
    assert redact._text_of(body) is None


def test_a_name_does_not_hide_behind_an_escape() -> None:
    assert redact._plain(r"node\u002da http:\/\/x \\u002d \u0022 \u00e9") == (
        r"node-a http://x \\u002d \u0022 \u00e9"
    )


# --- the rules -----------------------------------------------------------------------------


def test_every_problem_of_the_rules_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(
        "adresses: true\nkeys: perhaps\npatterns: [{regex: '('}, {regex: 'x*'}]\n"
        "names: {Host: [a]}\n"
    )
    with pytest.raises(ParametersError) as caught:
        redact.read_rules(tmp_path / "rules.yaml")
    words = " ".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    assert "adresses" in words and "no regular expression" in words and "everywhere" in words


@settings(max_examples=100, deadline=None)
@given(
    value=st.dictionaries(
        st.sampled_from([*RULES, "patterns", "keep", "keep_fields", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=2)
                | st.dictionaries(st.sampled_from(["regex", "prefix", "host"]), inner, max_size=2)
            ),
            max_leaves=6,
        ),
    )
)
def test_rules_are_read_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("rules") / "rules.yaml"
    path.write_text(yaml.safe_dump(value))
    try:
        redact.read_rules(path)
    except ParametersError as error:
        assert error.problems or error.next_step


@pytest.mark.parametrize("content", [b"[1]", b"\xff\xfe", b"a: [", b"x", b"&a [*a]"])
def test_what_is_no_file_of_rules_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rules.yaml").write_bytes(content)
    with pytest.raises(ParametersError):
        redact.read_rules(tmp_path / "rules.yaml")


def test_the_rules_of_the_readme_are_rules(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text().split("<!-- rules -->")[1]
    (tmp_path / "rules.yaml").write_text(text.split("```")[1].removeprefix("yaml\n"))
    rules, _ = redact.read_rules(tmp_path / "rules.yaml")
    assert rules.keys and rules.patterns
