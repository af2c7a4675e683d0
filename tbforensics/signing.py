"""Who vouches for a case: signed statements that any in-toto or DSSE tool can check.

`attestations.intoto.jsonl` is an in-toto bundle: one DSSE envelope a line, in the order of
signing. Each holds an in-toto Statement that names the files of the case with their hashes, and
the custody log as it was: its first acts, byte for byte. Several keys may sign one statement.

A signature is good or bad, and good ones are current or stale. A bad one is not over what stands
beside it. A stale one is over what the case was before an act that is on record.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
    ssh_key_fingerprint,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]

from tbforensics import manifest
from tbforensics.errors import EvidenceError, ForensicsError
from tbforensics.manifest import Check
from tbforensics.model import Json, utc_text

NAME = "attestations.intoto.jsonl"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:tbforensics:custody:v1"
LOG = "custody.jsonl"
_FILES = ("manifest.json", "parameters.yaml", "findings.json", "report.ipynb", "report.html")
_LONGEST_KEY_BYTES = 1 << 16


# --- keys ----------------------------------------------------------------------------------


def read_private(path: Path, passphrase: Callable[[], str]) -> Ed25519PrivateKey:
    """An Ed25519 key in OpenSSH or PEM form; `passphrase` is asked only when the key has one.

    Errors: EvidenceError in words that show nothing of the key.
    """
    content = _key_file(path)
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content else load_pem_private_key
    try:
        try:
            key = load(content, None)
        except TypeError:  # how cryptography says that it has a passphrase
            key = load(content, passphrase().encode("utf-8"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise EvidenceError(
            f"{path.name} is no private key that can be read, or the passphrase is another",
            next_step="make one with: ssh-keygen -t ed25519 -f KEY",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_ed25519(path)
    return key


def read_public(path: Path) -> SSlibKey:
    """An Ed25519 public key in OpenSSH (`KEY.pub`) or PEM form. Errors: EvidenceError."""
    content = _key_file(path)
    load = load_pem_public_key if b"-----BEGIN" in content else load_ssh_public_key
    try:
        key = load(content.strip() if load is load_ssh_public_key else content)
    except (ValueError, UnsupportedAlgorithm):
        raise EvidenceError(
            f"{path.name} is no public key that can be read",
            next_step="give the file that ends in .pub, or PEM from: openssl pkey -pubout",
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise _not_ed25519(path)
    return _named(key)


def _named(key: Ed25519PublicKey) -> SSlibKey:
    """A key whose id is its fingerprint, as `ssh-keygen -l` prints it."""
    digest = b64encode(ssh_key_fingerprint(key, SHA256())).decode().rstrip("=")
    return SSlibKey.from_crypto(key, keyid=f"SHA256:{digest}")


def _key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_KEY_BYTES)
    except OSError as error:
        raise EvidenceError(
            f"the key {path.name} cannot be read: {error.strerror}",
            next_step="give the path of a key file",
        ) from None


def _not_ed25519(path: Path) -> EvidenceError:
    return EvidenceError(
        f"{path.name} is no Ed25519 key", next_step="make one with: ssh-keygen -t ed25519 -f KEY"
    )


# --- statements ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Attestation:
    """One line of the bundle. `files` and `log_sha256` are what its statement speaks of.

    acts: how many acts of the custody log it covers.
    """

    envelope: Envelope
    files: Mapping[str, str]
    acts: int
    log_sha256: str

    @property
    def statement(self) -> str:
        """The SHA-256 of the signed statement, as the custody log names it."""
        return hashlib.sha256(self.envelope.payload).hexdigest()

    @property
    def signers(self) -> list[str]:
        return sorted(self.envelope.signatures)

    def good(self, key: SSlibKey) -> bool:
        """Whether any of the signatures is this key's; the id beside it is only a hint."""
        for signature in self.envelope.signatures.values():
            try:
                key.verify_signature(signature, self.envelope.pae())
            except UnverifiedSignatureError:
                continue
            return True
        return False


def read(folder: Path) -> list[Attestation]:
    """The statements of a case in the order of signing; none when it is unsigned.

    Errors: EvidenceError naming the first line that is no statement about a case.
    """
    path = folder / NAME
    if path.is_symlink():
        raise EvidenceError(f"{NAME} is a link", next_step="restore it from a copy of the case")
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            envelope = Envelope.from_dict(json.loads(line))
            if not envelope.signatures:
                raise ValueError("signed by nobody")
            found.append(_attestation(envelope))
        except Exception:  # hostile bytes: whatever the reader trips over, it is no statement
            raise EvidenceError(
                f"{NAME}: line {number} is no signed statement about a case",
                next_step="the file was changed; compare it with a copy of the case",
            ) from None
    return found


def _attestation(envelope: Envelope) -> Attestation:
    value = json.loads(envelope.payload)
    if (envelope.payload_type, value["_type"]) != (PAYLOAD_TYPE, STATEMENT_TYPE):
        raise ValueError("no in-toto statement")
    acts = value["predicate"]["acts"]
    if value["predicateType"] != PREDICATE_TYPE or not isinstance(acts, int) or acts < 1:
        raise ValueError("no statement about a case")
    digests = {subject["name"]: str(subject["digest"]["sha256"]) for subject in value["subject"]}
    if len(digests) != len(value["subject"]) or not digests.keys() <= {*_FILES, LOG}:
        raise ValueError("subjects that are not files of a case")
    log = digests.pop(LOG)
    return Attestation(envelope, digests, acts, log)


def _statement(folder: Path, acts: Sequence[Mapping[str, Json]], log: bytes) -> bytes:
    """What is signed: the files as they are, and the log up to here."""
    digests = {**_digests(folder), LOG: hashlib.sha256(log).hexdigest()}
    sealed = json.loads((folder / "manifest.json").read_bytes())
    return manifest.canonical(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "incident": sealed["incident"],
                "acts": len(acts),
                "made_at": utc_text(datetime.now(UTC)),
                "tool": {"name": "tbforensics", "version": manifest.tool_version()},
            },
        }
    )


def _digests(folder: Path) -> dict[str, str]:
    return {n: manifest.sha256_of(folder / n) for n in _FILES if (folder / n).is_file()}


# --- signing -------------------------------------------------------------------------------


def sign(folder: Path, private: Ed25519PrivateKey) -> tuple[str, bool]:
    """Vouch for a case as it is; the key's fingerprint, and whether there was anything to do.

    A statement that still holds is countersigned; otherwise a new one is made, and the older ones
    stay.

    Errors: EvidenceError when the case does not hold: nobody should vouch for that.
    """
    for check in manifest.checks(folder):
        if not check.holds:
            raise EvidenceError(
                f"{folder.name} is not signed: {check.detail}",
                next_step=f"see tbforensics verify {folder}",
            )
    key = _named(private.public_key())
    known, acts = read(folder), manifest.custody(folder)
    log = (folder / LOG).read_bytes()
    if known and not _why_stale(known[-1], folder, acts, log):
        newest = known[-1]
        if newest.good(key):
            return key.keyid, False
    else:
        newest = _attestation(Envelope(_statement(folder, acts, log), PAYLOAD_TYPE, {}))
        known.append(newest)
    newest.envelope.sign(CryptoSigner(private, key))
    lines = [json.dumps(item.envelope.to_dict(), sort_keys=True) + "\n" for item in known]
    manifest.write_atomically(folder / NAME, "".join(lines).encode("utf-8"))
    manifest.note_act(folder, "signed", key=key.keyid, statement=newest.statement)
    return key.keyid, True


# --- checking ------------------------------------------------------------------------------


def checks(folder: Path, keys: Sequence[SSlibKey] = ()) -> Iterator[Check]:
    """Whether the statements are about this case, and whether each key signed it as it is.

    Without keys it is said who signed, which proves nothing. Nothing is written.
    """
    try:
        known, acts = read(folder), manifest.custody(folder)
        log = (folder / LOG).read_bytes()
    except ForensicsError as error:
        yield Check("signature", False, error.what)
        return
    yield from _lost(known, acts)
    if not known:
        words = "unsigned: the hashes agree with each other, but nobody vouches for them"
        yield Check("signature", not keys, words)
        return
    current: set[str] = set()
    for number, item in enumerate(known, start=1):
        name = f"signature {number}"
        if broken := _not_about(item, acts, log):
            yield Check(name, False, broken)
            continue
        stale = _why_stale(item, folder, acts, log)
        if stale and _unexplained(item, folder, acts):
            yield Check(name, False, stale)
            continue
        span = f"over acts 1 to {item.acts} and the files of that time"
        state = f"{span}; stale: {stale}" if stale else span
        for keyid in item.signers:
            key = next((key for key in keys if key.keyid == keyid), None)
            if key is None:
                yield Check(name, True, f"says {keyid}, not checked without its key, {state}")
            elif not item.good(key):
                yield Check(name, False, f"bad: not made by {keyid} over what stands beside it")
            else:
                yield Check(name, True, f"good, by {keyid}, {state}")
        current |= {key.keyid for key in keys if not stale and item.good(key)}
    for key in keys:
        if key.keyid not in current:
            yield Check("signature", False, f"{key.keyid} has not signed the case as it is now")


def _lost(known: Sequence[Attestation], acts: Sequence[Mapping[str, Json]]) -> Iterator[Check]:
    """A signature that is on record and gone."""
    here = {(keyid, item.statement) for item in known for keyid in item.signers}
    for entry in acts:
        if entry.get("act") == "signed" and (entry.get("key"), entry.get("statement")) not in here:
            words = f"act {entry['n']} says that {entry.get('key')} signed; that signature is gone"
            yield Check("signature", False, words)


def _not_about(item: Attestation, acts: Sequence[Mapping[str, Json]], log: bytes) -> str:
    """Why a statement is not about this case, in words; "" when it is."""
    if len(acts) < item.acts:
        return f"the custody log ends at act {len(acts)}; when it was signed it had {item.acts}"
    if hashlib.sha256(_head(log, item.acts)).hexdigest() != item.log_sha256:
        return f"the custody log is not the one that was signed, within its acts 1 to {item.acts}"
    return ""


def _head(log: bytes, acts: int) -> bytes:
    return b"".join(log.splitlines(keepends=True)[:acts])


def _why_stale(
    item: Attestation, folder: Path, acts: Sequence[Mapping[str, Json]], log: bytes
) -> str:
    """What changed since it was signed, in words; "" when nothing did."""
    if broken := _not_about(item, acts, log):
        return broken
    here = _digests(folder)
    for name in _FILES:
        if here.get(name) != item.files.get(name):
            later = _later(acts, item.acts, name)
            since = f"in act {later['n']} ({later['act']})" if later else "and no act says how"
            return f"{name} changed since, {since}"
    return ""


def _unexplained(item: Attestation, folder: Path, acts: Sequence[Mapping[str, Json]]) -> bool:
    here = _digests(folder)
    changed = [name for name in _FILES if here.get(name) != item.files.get(name)]
    return any(_later(acts, item.acts, name) is None for name in changed)


def _later(acts: Sequence[Mapping[str, Json]], after: int, name: str) -> Mapping[str, Json] | None:
    return next((entry for entry in acts[after:] if name in entry.get("files", {})), None)


def words(folder: Path) -> str:
    """Who says to have signed a case as it was before its report, for the report to print."""
    try:
        known = read(folder)
    except ForensicsError:
        return "cannot be read"
    if not known:
        return ""
    return f"{', '.join(known[-1].signers)}; over acts 1 to {known[-1].acts} of the custody log"
