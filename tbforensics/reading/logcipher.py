"""How The-Block's log store shuts and opens a message.

Text is shut with XChaCha20-Poly1305, and the key is BLAKE3 in its key derivation mode over the
passphrase. Builds before October 2025 wrote the standard tag. Later ones write one of their own:
the last, short block of ciphertext is closed as if the message ended there, nothing is padded,
and the lengths follow as one more block. Both tags agree where the length divides by 16, so a
short store may not tell which build wrote it.

Source: RFC 8439 (ChaCha20, Poly1305); draft-irtf-cfrg-xchacha-03 (HChaCha20, XChaCha20).
"""

from __future__ import annotations

import binascii
import hmac
import struct
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

CONTEXT = "the-block-log-indexer"
NONCE_BYTES = 24
SHORT_NONCE_BYTES = 12  # the oldest rows: ChaCha20-Poly1305 without the X
_TAG_BYTES = 16
_PRIME = (1 << 130) - 5
_CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
_CONSTANTS = struct.unpack("<4I", b"expand 32-byte k")


class Tag(StrEnum):
    """Which tag a message carries."""

    STANDARD = "standard"
    OWN = "own"
    EITHER = "either"  # both are the same for a message of this length


@dataclass(frozen=True)
class Opened:
    text: str
    tag: Tag


class Shut(Exception):
    """Why a message stays shut, in words; never quotes it."""


def key_of(passphrase: bytes) -> bytes:
    return blake3(passphrase, derive_key_context=CONTEXT).digest()


def opened(key: bytes, message: str, nonce: bytes) -> Opened:
    """The text of a message that is base64 of ciphertext and tag. The tag is checked first.

    nonce: 24 bytes, 12 in the oldest rows; where it is empty the first 24 bytes of the message
           are it. Errors: Shut.
    """
    try:
        body = binascii.a2b_base64(message, strict_mode=True)
    except (binascii.Error, ValueError):
        raise Shut("it is not base64") from None
    if not nonce:
        nonce, body = body[:NONCE_BYTES], body[NONCE_BYTES:]
    if len(nonce) not in (NONCE_BYTES, SHORT_NONCE_BYTES):
        raise Shut(f"its nonce has {len(nonce)} bytes, not {NONCE_BYTES} or {SHORT_NONCE_BYTES}")
    if len(body) < _TAG_BYTES:
        raise Shut(f"it has {len(body)} bytes, fewer than a tag has")
    if len(nonce) == NONCE_BYTES:
        key, nonce = hchacha20(key, nonce[:16]), bytes(4) + nonce[16:]
    ciphertext, tag = body[:-_TAG_BYTES], body[-_TAG_BYTES:]
    one_time = _keystream(key, nonce, 0, bytes(32))
    standard, own = standard_tag(one_time, ciphertext), own_tag(one_time, ciphertext)
    matched = [
        name
        for name, right in ((Tag.STANDARD, standard), (Tag.OWN, own))
        if hmac.compare_digest(right, tag)
    ]
    if not matched:
        raise Shut("neither tag fits: a wrong passphrase, or it was changed")
    try:
        text = _keystream(key, nonce, 1, ciphertext).decode("utf-8")
    except UnicodeDecodeError:
        raise Shut("it opens, and is not UTF-8") from None
    return Opened(text, Tag.EITHER if len(matched) == 2 else matched[0])


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """The subkey of a key and 16 bytes of nonce.

    A ChaCha20 block is the same state after the same rounds, with the state from before added to
    each word: taking that away again leaves HChaCha20.
    """
    block = struct.unpack("<16I", _cipher(key, nonce, bytes(64)))
    before = (*_CONSTANTS, *struct.unpack("<4I", nonce))
    words = (*block[:4], *block[12:])
    return struct.pack("<8I", *((w - b) & 0xFFFFFFFF for w, b in zip(words, before, strict=True)))


def standard_tag(one_time: bytes, ciphertext: bytes) -> bytes:
    """RFC 8439, section 2.8, without additional data."""
    padded = ciphertext + bytes(-len(ciphertext) % 16)
    return poly1305(one_time, padded + _lengths(ciphertext))


def own_tag(one_time: bytes, ciphertext: bytes) -> bytes:
    """As The-Block has written it since October 2025."""
    return poly1305(one_time, ciphertext, _lengths(ciphertext))


def poly1305(one_time: bytes, *parts: bytes) -> bytes:
    """RFC 8439, section 2.5; each part ends with a short block where its length does."""
    r = int.from_bytes(one_time[:16], "little") & _CLAMP
    sum_ = 0
    for part in parts:
        for at in range(0, len(part), 16):
            sum_ = (sum_ + int.from_bytes(part[at : at + 16] + b"\1", "little")) * r % _PRIME
    return ((sum_ + int.from_bytes(one_time[16:32], "little")) % (1 << 128)).to_bytes(16, "little")


def _lengths(ciphertext: bytes) -> bytes:
    return struct.pack("<QQ", 0, len(ciphertext))


def _keystream(key: bytes, nonce: bytes, counter: int, data: bytes) -> bytes:
    return _cipher(key, struct.pack("<I", counter) + nonce, data)


def _cipher(key: bytes, counter_and_nonce: bytes, data: bytes) -> bytes:
    encryptor = Cipher(ChaCha20(key, counter_and_nonce), mode=None).encryptor()
    return encryptor.update(data) + encryptor.finalize()
