"""The log store's cipher: published vectors, a recorded store, and nothing else opens."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.reading import logcipher
from tbforensics.reading.logcipher import Shut, Tag, hchacha20, key_of, opened, own_tag, poly1305

FIXTURES = Path(__file__).parent / "fixtures" / "the-block" / "handed-over"
PASSPHRASE = b"correct horse 12"
SAID = (
    *("quic_connect_fail", "QUIC certificate validation failed"),
    *("receipt insert failed: disk full", "match"),
)


def stored() -> list[dict[str, Any]]:
    lines = (FIXTURES / "store-encrypted/inhouse/entries/wal.log").read_bytes().splitlines()
    return [json.loads(bytes(json.loads(line)["kind"]["Put"]["value"])) for line in lines]


def sealed(key: bytes, nonce: bytes, text: bytes, tag: Tag) -> str:
    """As a build with that tag writes a message."""
    inner, short = key, nonce
    if len(nonce) == 24:
        inner, short = hchacha20(key, nonce[:16]), bytes(4) + nonce[16:]
    standard = ChaCha20Poly1305(inner).encrypt(short, text, b"")
    if tag is Tag.STANDARD:
        return base64.b64encode(standard).decode()
    one_time = logcipher._keystream(inner, short, 0, bytes(32))
    return base64.b64encode(standard[:-16] + own_tag(one_time, standard[:-16])).decode()


# --- published vectors -------------------------------------------------------------------


def test_hchacha20_gives_the_subkey_of_the_draft() -> None:
    # draft-irtf-cfrg-xchacha-03, section 2.2.1
    nonce = bytes.fromhex("000000090000004a0000000031415927")
    wanted = "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc"
    assert hchacha20(bytes(range(32)), nonce).hex() == wanted


def test_poly1305_gives_the_tag_of_the_rfc() -> None:
    # RFC 8439, section 2.5.2
    one_time = "85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b"
    tag = poly1305(bytes.fromhex(one_time), b"Cryptographic Forum Research Group")
    assert tag.hex() == "a8061dc1305136c6c22b8baf0c0127a9"


@given(st.binary(max_size=200))
def test_the_standard_tag_is_that_of_the_library(text: bytes) -> None:
    key, nonce = bytes(range(32)), bytes(12)
    body = ChaCha20Poly1305(key).encrypt(nonce, text, b"")
    one_time = logcipher._keystream(key, nonce, 0, bytes(32))
    assert logcipher.standard_tag(one_time, body[:-16]) == body[-16:]


# --- a recorded store ----------------------------------------------------------------------


def test_every_message_of_a_recorded_store_opens() -> None:
    key = key_of(PASSPHRASE)
    texts, tags = [], []
    for row in stored():
        found = opened(key, row["message"], bytes(row["nonce"]))
        texts.append(found.text)
        tags.append((found.tag, len(found.text.encode()) % 16 == 0))
    assert texts == [f"{SAID[n % 4]} #{n}" + "x" * n for n in range(16)]
    assert set(tags) <= {(Tag.OWN, False), (Tag.EITHER, True)}
    assert (Tag.OWN, False) in tags


def test_a_wrong_passphrase_is_said_and_not_shown() -> None:
    row = stored()[0]
    with pytest.raises(Shut, match="a wrong passphrase, or it was changed") as said:
        opened(key_of(b"canary-4711"), row["message"], bytes(row["nonce"]))
    assert "canary" not in str(said.value)
    assert said.value.__cause__ is None


def test_one_flipped_bit_anywhere_keeps_a_message_shut() -> None:
    key, row = key_of(PASSPHRASE), stored()[3]
    body = bytearray(base64.b64decode(row["message"]))
    for at in range(len(body)):
        body[at] ^= 1
        with pytest.raises(Shut):
            opened(key, base64.b64encode(body).decode(), bytes(row["nonce"]))
        body[at] ^= 1
    for at in range(24):
        nonce = bytearray(row["nonce"])
        nonce[at] ^= 1
        with pytest.raises(Shut):
            opened(key, row["message"], bytes(nonce))


@pytest.mark.parametrize("length", [24, 12])
@given(text=st.text(max_size=70), nonce=st.binary(min_size=24, max_size=24))
def test_both_tags_open_and_say_which_it_was(length: int, text: str, nonce: bytes) -> None:
    key, plain = key_of(PASSPHRASE), text.encode("utf-8")
    for tag in (Tag.STANDARD, Tag.OWN):
        found = opened(key, sealed(key, nonce[:length], plain, tag), nonce[:length])
        assert found.text == text
        assert found.tag is (Tag.EITHER if len(plain) % 16 == 0 else tag)


def test_a_nonce_may_stand_before_the_message() -> None:
    key, nonce = key_of(PASSPHRASE), bytes(range(24))
    body = base64.b64decode(sealed(key, nonce, b"first", Tag.STANDARD))
    assert opened(key, base64.b64encode(nonce + body).decode(), b"").text == "first"


def test_what_opens_and_is_no_text_stays_shut() -> None:
    key, nonce = key_of(PASSPHRASE), bytes(24)
    with pytest.raises(Shut, match="not UTF-8"):
        opened(key, sealed(key, nonce, b"\xff\xfe", Tag.OWN), nonce)


@given(st.text(max_size=80), st.binary(max_size=30))
def test_anything_else_is_refused_in_words(message: str, nonce: bytes) -> None:
    with pytest.raises(Shut):
        opened(key_of(PASSPHRASE), message, nonce)
