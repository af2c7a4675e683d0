"""The envelopes around a metrics aggregator's export, told apart by their first bytes.

    PK                    the ZIP itself
    age-encryption.org/   age, for an `age1...` recipient                      (generation A)
    TBPW 01               salt(16)  ciphertext  mac(32)                        (generation B)
    TBXE 01               ephemeral X25519 key(32)  salt(16)  ciphertext  mac(32)
    anything else         IV(16)  ciphertext, with the SHA-256 of a passphrase as key    (A)

TBPW and TBXE take 80 bytes from HKDF-SHA256 (over the passphrase, or the X25519 shared secret; salt
as sent; info `tb-export-password` or `tb-export-recipient`): an AES key, an IV and an HMAC key.
The ciphertext is AES-256-CBC with PKCS#7; HMAC-SHA256 covers all that stands before it and is
checked before anything is decrypted. A's own form has no MAC, so whether it was changed on the way
cannot be told; it counts as opened when it begins like a ZIP and its padding fits.

Source: RFC 5869, RFC 7748, NIST SP 800-38A; age-encryption.org/v1.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO

import pyrage
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.padding import PKCS7

_BLOCK_BYTES, _KEY_BYTES, _SALT_BYTES, _MAC_BYTES = 16, 32, 16, 32
_CHUNK_BYTES = 1 << 20
_VERSION = 1
_HEX_KEY = re.compile(r"[0-9a-fA-F]{64}")
_AGE_KEY = "AGE-SECRET-KEY-"

Reopen = Callable[[], AbstractContextManager[BinaryIO]]  # the same bytes from their start


class Form(StrEnum):
    ZIP = "zip"
    AGE = "age"
    TBPW = "TBPW"
    TBXE = "TBXE"
    PASSWORD = "AES-256-CBC under a passphrase"  # noqa: S105 (a name)


class Shut(Exception):
    """Why an envelope stays shut, in words; never quotes a key."""


@dataclass(frozen=True)
class Keys:
    """What may open an envelope. `repr` shows none of it.

    identities: age identities (`AGE-SECRET-KEY-1...`) and X25519 keys of 64 hex digits.
    """

    passphrase: str = field(default="", repr=False)
    identities: tuple[str, ...] = field(default=(), repr=False)


def identities_in(text: str) -> tuple[str, ...]:
    """One a line; what follows `#` is a remark."""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return tuple(line for line in lines if line)


def form_of(head: bytes) -> Form:
    """The form of an export from its first 24 bytes or more."""
    if head[:2] == b"PK":
        return Form.ZIP
    if head[:4] == b"TBPW":
        return Form.TBPW
    if head[:4] == b"TBXE":
        return Form.TBXE
    return Form.AGE if head.startswith(b"age-encryption.org/") else Form.PASSWORD


def unseal(reopen: Reopen, length: int, keys: Keys, into: BinaryIO) -> Form:
    """Write what an envelope holds to `into`; the form that it had.

    length: of the envelope in bytes. Memory does not grow with it. Errors: Shut; what `into`
    holds by then means nothing.
    """
    with reopen() as body:
        head = body.read(64)
    form = form_of(head)
    if form is Form.ZIP:
        raise Shut("it is not encrypted")
    if form is Form.AGE:
        _age(reopen, keys, into)
    elif form is Form.PASSWORD:
        _password(reopen, length, keys, into)
    else:
        _envelope(reopen, length, form, head, keys, into)
    return form


# --- generation B --------------------------------------------------------------------------


def _envelope(
    reopen: Reopen, length: int, form: Form, head: bytes, keys: Keys, into: BinaryIO
) -> None:
    before = 5 + _SALT_BYTES + (_KEY_BYTES if form is Form.TBXE else 0)
    inner = length - before - _MAC_BYTES
    if len(head) > 4 and head[4] != _VERSION:
        raise Shut(f"{form} of version {head[4]}, which is unknown")
    if inner <= 0 or inner % _BLOCK_BYTES:
        raise Shut(f"{form} of {length} bytes: cut short, or damaged")
    salt, ephemeral = head[before - _SALT_BYTES : before], head[5 : 5 + _KEY_BYTES]
    if form is Form.TBPW:
        if not keys.passphrase:
            raise Shut("TBPW, and no passphrase is named")
        materials = [keys.passphrase.encode("utf-8")]
    else:
        materials = list(_shared(ephemeral, keys))
        if not materials:
            raise Shut("TBXE, and no X25519 key of 64 hex digits is named")
    info = b"tb-export-password" if form is Form.TBPW else b"tb-export-recipient"
    for material in materials:
        held = HKDF(SHA256(), 80, salt, info).derive(material)
        if _mac_fits(reopen, length, held[48:]):
            _decrypt(reopen, before, inner, held[:32], held[32:48], into)
            return
    what = "passphrase" if form is Form.TBPW else "key"
    raise Shut(f"the MAC of {form} does not fit: a wrong {what}, or it was changed")


def _shared(ephemeral: bytes, keys: Keys) -> Iterator[bytes]:
    for text in keys.identities:
        if _HEX_KEY.fullmatch(text):
            private = X25519PrivateKey.from_private_bytes(binascii.unhexlify(text))
            try:
                yield private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
            except ValueError:
                raise Shut("TBXE with a sender's key that gives no secret") from None


def _mac_fits(reopen: Reopen, length: int, key: bytes) -> bool:
    mac = hmac.new(key, digestmod=hashlib.sha256)
    with reopen() as body:
        for chunk in _taken(body, length - _MAC_BYTES):
            mac.update(chunk)
        return hmac.compare_digest(mac.digest(), body.read(_MAC_BYTES))


# --- generation A --------------------------------------------------------------------------


def _password(reopen: Reopen, length: int, keys: Keys, into: BinaryIO) -> None:
    if length < 2 * _BLOCK_BYTES or length % _BLOCK_BYTES:
        raise Shut(f"{length} bytes of no known form")
    if not keys.passphrase:
        raise Shut("no known form; under a passphrase perhaps, and none is named")
    key = hashlib.sha256(keys.passphrase.encode("utf-8")).digest()
    with reopen() as body:
        iv, first = body.read(_BLOCK_BYTES), body.read(_BLOCK_BYTES)
    block = Cipher(AES(key), CBC(iv)).decryptor().update(first)
    if block[:2] != b"PK":
        raise Shut("it does not open to a ZIP: a wrong passphrase, or another form")
    _decrypt(reopen, _BLOCK_BYTES, length - _BLOCK_BYTES, key, iv, into)


def _age(reopen: Reopen, keys: Keys, into: BinaryIO) -> None:
    identities = []
    for text in keys.identities:
        if text.upper().startswith(_AGE_KEY):
            try:
                identities.append(pyrage.x25519.Identity.from_str(text.upper()))
            except pyrage.IdentityError:
                raise Shut("age, and an identity that is named is not one") from None
    if not identities:
        raise Shut(f"age, and no identity ({_AGE_KEY}...) is named")
    with reopen() as body:
        try:
            pyrage.decrypt_io(body, into, identities)
        except (pyrage.DecryptError, OSError) as error:
            # The library tells a wrong identity from a damaged file, and quotes neither.
            raise Shut(f"age: {error}"[:200]) from None


# --- both ----------------------------------------------------------------------------------


def _decrypt(
    reopen: Reopen, before: int, length: int, key: bytes, iv: bytes, into: BinaryIO
) -> None:
    decryptor, unpadder = Cipher(AES(key), CBC(iv)).decryptor(), PKCS7(128).unpadder()
    with reopen() as body:
        body.read(before)
        for chunk in _taken(body, length):
            into.write(unpadder.update(decryptor.update(chunk)))
    try:
        into.write(unpadder.update(decryptor.finalize()) + unpadder.finalize())
    except ValueError:
        raise Shut("its padding does not fit: cut short, or changed on the way") from None


def _taken(body: BinaryIO, length: int) -> Iterator[bytes]:
    while length and (chunk := body.read(min(length, _CHUNK_BYTES))):
        length -= len(chunk)
        yield chunk
