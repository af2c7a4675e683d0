"""Who vouches for a case: good, bad, stale and lost signatures, and a check without our tool."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics import cli, signing
from tbforensics.errors import EvidenceError
from tbforensics.manifest import custody, note_act, sha256_of, write_atomically

PASSPHRASE = "correct horse"


def keygen(folder: Path, name: str, passphrase: str = "") -> Path:
    path = folder / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", name, "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return keygen(tmp_path, "alice")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return keygen(tmp_path, "bob")


def sign(case: Path, key: Path) -> tuple[str, bool]:
    return signing.sign(case, signing.read_private(key, lambda: PASSPHRASE))


def public(key: Path) -> Any:
    return signing.read_public(key.with_suffix(".pub"))


def checks(case: Path, *keys: Path) -> list[str]:
    found = signing.checks(case, [public(key) for key in keys])
    return [f"{'ok' if check.holds else 'BROKEN'} {check.detail}" for check in found]


def broken(case: Path, *keys: Path) -> str:
    return next((line for line in checks(case, *keys) if line.startswith("BROKEN")), "")


def amend(case: Path) -> None:
    content = (case / "parameters.yaml").read_bytes() + b"# later\n"
    sha256 = write_atomically(case / "parameters.yaml", content)
    note_act(case, "amended", files={"parameters.yaml": sha256})


def run(*words: object, **more: Any) -> Result:
    return CliRunner().invoke(cli.main, [str(word) for word in words], **more)


# --- what the signatures say ---------------------------------------------------------------


def test_an_unsigned_case_says_so_and_fails_whoever_asks_for_a_signature(
    sealed: Path, key: Path
) -> None:
    assert checks(sealed) == [
        "ok unsigned: the hashes agree with each other, but nobody vouches for them"
    ]
    assert broken(sealed, key).startswith("BROKEN unsigned")


def test_a_signed_case_names_the_key_as_ssh_keygen_does(sealed: Path, key: Path) -> None:
    fingerprint, fresh = sign(sealed, key)
    listed = subprocess.run(["ssh-keygen", "-lf", str(key)], capture_output=True, text=True)
    assert fresh and fingerprint == listed.stdout.split()[1]
    (line,) = checks(sealed, key)
    assert line.startswith(f"ok good, by {fingerprint}, over acts 1 to")
    assert "not checked without its key" in checks(sealed)[0]
    assert custody(sealed)[-1]["act"] == "signed" and custody(sealed)[-1]["key"] == fingerprint


def test_another_key_is_not_enough(sealed: Path, key: Path, other: Path) -> None:
    sign(sealed, key)
    assert "has not signed the case as it is now" in broken(sealed, other)


def test_two_keys_sign_one_statement(sealed: Path, key: Path, other: Path) -> None:
    sign(sealed, key)
    sign(sealed, other)
    (statement,) = signing.read(sealed)
    assert len(statement.signers) == 2
    assert broken(sealed, key, other) == ""


def test_signing_twice_changes_nothing(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    before = (sealed / signing.NAME).read_bytes(), (sealed / "custody.jsonl").read_bytes()
    assert sign(sealed, key)[1] is False
    assert before == ((sealed / signing.NAME).read_bytes(), (sealed / "custody.jsonl").read_bytes())


def test_after_an_amendment_a_signature_is_stale_and_signing_again_heals_that(
    sealed: Path, key: Path
) -> None:
    sign(sealed, key)
    amend(sealed)
    stale, missing = checks(sealed, key)
    assert stale.startswith("ok good") and "stale: parameters.yaml changed since, in act" in stale
    assert missing.startswith("BROKEN") and "as it is now" in missing
    sign(sealed, key)
    assert broken(sealed, key) == ""
    assert [("stale" in line) for line in checks(sealed, key)] == [True, False]


def test_a_report_that_came_after_the_signature_makes_it_stale(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    (sealed / "report.html").write_text("<p>later</p>")
    note_act(sealed, "rendered", files={"report.html": sha256_of(sealed / "report.html")})
    assert "stale: report.html changed since" in checks(sealed, key)[0]


def test_a_file_that_changed_without_an_act_is_no_staleness(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    with (sealed / "parameters.yaml").open("a") as file:
        file.write("# quietly\n")
    assert "no act says how" in broken(sealed, key)
    with pytest.raises(EvidenceError, match="is not signed"):
        sign(sealed, key)


def lines_of(case: Path) -> list[bytes]:
    return (case / "custody.jsonl").read_bytes().splitlines(keepends=True)


def rewritten(lines: list[bytes], **changes: Any) -> bytes:
    """A custody log with its first act changed and the chain forged anew."""
    out, before = [], ""
    for number, line in enumerate(lines, start=1):
        entry = {**json.loads(line), "before": before, "n": number}
        out.append(json.dumps({**entry, **(changes if number == 1 else {})}).encode() + b"\n")
        before = hashlib.sha256(out[-1]).hexdigest()
    return b"".join(out)


def test_a_log_cut_at_its_end_is_found_by_the_signature(sealed: Path, key: Path) -> None:
    note_act(sealed, "exported")
    acts = len(custody(sealed))
    sign(sealed, key)
    (sealed / "custody.jsonl").write_bytes(b"".join(lines_of(sealed)[:-2]))
    assert f"ends at act {acts - 1}; when it was signed it had {acts}" in broken(sealed, key)


def test_a_log_that_was_forged_as_a_whole_is_found_by_the_signature(
    sealed: Path, key: Path
) -> None:
    sign(sealed, key)
    (sealed / "custody.jsonl").write_bytes(rewritten(lines_of(sealed), by="someone else"))
    custody(sealed)  # each act follows from the one before
    assert "not the one that was signed" in broken(sealed, key)


def test_a_signature_that_was_taken_away_is_missed(sealed: Path, key: Path, other: Path) -> None:
    sign(sealed, key)
    sign(sealed, other)
    line = json.loads((sealed / signing.NAME).read_bytes())
    line["signatures"].pop()
    (sealed / signing.NAME).write_text(json.dumps(line) + "\n")
    assert "that signature is gone" in broken(sealed)
    (sealed / signing.NAME).unlink()
    assert "that signature is gone" in broken(sealed, key)


def spoiled(line: dict[str, Any], how: str) -> dict[str, Any]:
    if how == "payload":
        payload = base64.b64decode(line["payload"])
        forged = payload.replace(b'"acts": ', b'"acts":  ')
        assert forged != payload
        return {**line, "payload": base64.b64encode(forged).decode()}
    signature = bytearray(base64.b64decode(line["signatures"][0]["sig"]))
    signature[7] ^= 1
    named = {**line["signatures"][0], "sig": base64.b64encode(signature).decode()}
    return {**line, "signatures": [named]}


@pytest.mark.parametrize("how", ["payload", "signature"])
def test_a_bad_signature_is_an_error(sealed: Path, key: Path, how: str) -> None:
    sign(sealed, key)
    line = spoiled(json.loads((sealed / signing.NAME).read_bytes()), how)
    (sealed / signing.NAME).write_text(json.dumps(line) + "\n")
    assert any("bad: not made by" in line for line in checks(sealed, key))
    result = run("verify", sealed, "--key", key.with_suffix(".pub"))
    assert result.exit_code == 1 and "BROKEN" in result.output


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]\n", b"null\n", b"\xff\n", b"[" * 90_000, b'{"payload": 3}\n', b"{}\n", b" \n"],
)
def test_what_is_no_attestation_is_refused_in_words(sealed: Path, content: bytes) -> None:
    (sealed / signing.NAME).write_bytes(content)
    assert "line 1 is no signed statement" in broken(sealed)


def test_an_attestation_that_is_a_link_is_refused(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    (sealed / signing.NAME).rename(sealed.parent / "elsewhere")
    (sealed / signing.NAME).symlink_to(sealed.parent / "elsewhere")
    assert "is a link" in broken(sealed, key)


@settings(max_examples=60, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["_type", "subject", "predicate", "predicateType", "acts"]), inner
            )
        ),
        max_leaves=8,
    )
)
def test_no_payload_breaks_the_check(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("case")
    note_act(folder, "sealed")
    payload = base64.b64encode(json.dumps(value).encode()).decode()
    signature = {"keyid": "x", "sig": base64.b64encode(b"0" * 64).decode()}
    envelope = {"payload": payload, "payloadType": signing.PAYLOAD_TYPE, "signatures": [signature]}
    (folder / signing.NAME).write_text(json.dumps(envelope) + "\n")
    assert broken(folder)


# --- keys ----------------------------------------------------------------------------------


def pem(key: Ed25519PrivateKey, path: Path) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix(".pub").write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return path


def test_a_pem_key_signs_too(sealed: Path, tmp_path: Path) -> None:
    key = pem(Ed25519PrivateKey.generate(), tmp_path / "pem")
    sign(sealed, key)
    assert broken(sealed, key) == ""


def test_a_key_with_a_passphrase_takes_it_from_the_environment_a_file_or_the_keyboard(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keygen(tmp_path, "locked", PASSPHRASE)
    (tmp_path / "words").write_text(PASSPHRASE + "\n")
    result = run("sign", sealed, "--key", key, input=PASSPHRASE + "\n")
    assert result.exit_code == 0 and PASSPHRASE not in result.output
    assert run("sign", sealed, "--key", key, "--passphrase-file", tmp_path / "words").exit_code == 0
    monkeypatch.setenv("TBFORENSICS_KEY_PASSPHRASE", "wrong")
    result = run("sign", sealed, "--key", key)
    assert result.exit_code == 1 and "passphrase is another" in result.output
    assert broken(sealed, key) == ""


def test_what_is_no_ed25519_key_is_refused_with_the_way_out(tmp_path: Path) -> None:
    curve = pem(generate_private_key(SECP256R1()), tmp_path / "curve")  # type: ignore[arg-type]
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "junk.pub").write_text("ssh-ed25519 junk")
    for path in (curve, tmp_path / "junk", tmp_path / "missing"):
        with pytest.raises(EvidenceError):
            signing.read_private(path, lambda: "")
        with pytest.raises(EvidenceError):
            signing.read_public(path.with_suffix(".pub"))
    with pytest.raises(EvidenceError, match="no private key"):
        signing.read_private(curve.with_suffix(".pub"), lambda: "")


# --- without our tool ----------------------------------------------------------------------


def test_the_signed_bytes_are_those_of_the_dsse_specification(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    line = json.loads((sealed / signing.NAME).read_bytes())
    payload = base64.b64decode(line["payload"])
    expected = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    (item,) = signing.read(sealed)
    assert item.envelope.pae() == expected
    statement = json.loads(payload)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {subject["name"] for subject in statement["subject"]} >= {
        "manifest.json", "parameters.yaml", "findings.json", "custody.jsonl",
    }  # fmt: skip


def test_the_recipe_of_the_readme_checks_a_signature_with_openssl_alone(
    sealed: Path, key: Path, tmp_path: Path
) -> None:
    sign(sealed, key)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    recipe = readme.split("<!-- recipe -->")[1].split("```")[1].removeprefix("sh\n")
    (sealed / "KEY.pub").write_bytes(key.with_suffix(".pub").read_bytes())
    done = subprocess.run(["sh", "-e"], input=recipe, cwd=sealed, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert "manifest.json: OK" in done.stdout and "custody.head: OK" in done.stdout


def case_commands() -> list[Callable[[Path], Result]]:
    return [lambda case: run("verify", case), lambda case: run("verify", case, "--recompute")]


@pytest.mark.parametrize("command", case_commands())
def test_verify_leaves_no_trace_on_a_case(
    sealed: Path, key: Path, command: Callable[[Path], Result]
) -> None:
    sign(sealed, key)
    before = {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}
    command(sealed)
    assert before == {path: path.stat().st_mtime_ns for path in sealed.rglob("*")}


def test_verify_is_on_record_when_asked_for(sealed: Path, key: Path) -> None:
    sign(sealed, key)
    result = run("verify", sealed, "--key", key.with_suffix(".pub"), "--record")
    if result.exit_code == 0:  # the example's findings may be of another version
        assert custody(sealed)[-1]["act"] == "verified"
    else:
        assert custody(sealed)[-1]["act"] == "signed"
