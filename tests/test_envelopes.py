"""Each form of an export opens with its key and with no other, and a change is noticed first."""

from __future__ import annotations

import hashlib
import io
from contextlib import nullcontext
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tbforensics.reading import envelopes
from tbforensics.reading.envelopes import Form, Keys, Shut, form_of, identities_in, unseal
from tbforensics.reading.givensecrets import NoSecret, secret

FIXTURES = Path(__file__).parent / "fixtures" / "the-block" / "handed-over"
SHA256 = "0bfcd6c31ff5b8a5ea38247258b817d46042ea3b91da240c3be6cc43016b8fe1"
PASSPHRASE = "export pass 1"
KEY = "b09c362c4de1cf448a7713fd2d6fd5bccd6d66c043461ba082389a7e89988a69"
IDENTITY = pyrage.x25519.Identity.generate()
KEYS = Keys(PASSPHRASE, (KEY, str(IDENTITY)))
CANARY = Keys("canary-4711", ("ca" * 32, str(pyrage.x25519.Identity.generate())))
PLAIN = (FIXTURES / "export.zip").read_bytes()


def of_generation_a(plain: bytes, passphrase: str = PASSPHRASE) -> bytes:
    iv, padder = bytes(range(16)), PKCS7(128).padder()
    cipher = Cipher(AES(hashlib.sha256(passphrase.encode()).digest()), CBC(iv)).encryptor()
    return iv + cipher.update(padder.update(plain) + padder.finalize()) + cipher.finalize()


SEALED = {
    Form.TBPW: (FIXTURES / "export.tbpw").read_bytes(),
    Form.TBXE: (FIXTURES / "export.tbxe").read_bytes(),
    Form.AGE: pyrage.encrypt(PLAIN, [IDENTITY.to_public()]),
    Form.PASSWORD: of_generation_a(PLAIN),
}


def held(body: bytes, keys: Keys = KEYS) -> tuple[Form, bytes]:
    into = io.BytesIO()
    form = unseal(lambda: nullcontext(io.BytesIO(body)), len(body), keys, into)
    return form, into.getvalue()


@pytest.mark.parametrize("form", SEALED)
def test_each_form_is_told_by_its_first_bytes_and_opens(form: Form) -> None:
    found, plain = held(SEALED[form])
    assert (found, form_of(SEALED[form])) == (form, form)
    assert hashlib.sha256(plain).hexdigest() == SHA256


@pytest.mark.parametrize("form", SEALED)
def test_another_key_is_refused_in_words_that_do_not_show_it(form: Form) -> None:
    with pytest.raises(Shut) as said:
        held(SEALED[form], CANARY)
    words = str(said.value)
    assert "wrong" in words or "No matching keys" in words
    assert not any(text in words for text in (CANARY.passphrase, *CANARY.identities))
    assert not any(text in repr(CANARY) for text in (CANARY.passphrase, *CANARY.identities))


@pytest.mark.parametrize("form", SEALED)
def test_without_any_key_it_says_what_is_missing(form: Form) -> None:
    with pytest.raises(Shut, match="is named"):
        held(SEALED[form], Keys())


@pytest.mark.parametrize("form", [Form.TBPW, Form.TBXE])
def test_one_flipped_byte_is_refused_before_anything_is_decrypted(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decrypted before the MAC was checked")

    monkeypatch.setattr(envelopes, "_decrypt", never)
    body = bytearray(SEALED[form])
    for at in (*range(5, len(body), 97), len(body) - 1):
        body[at] ^= 0x40
        with pytest.raises(Shut, match="MAC"):
            held(bytes(body))
        body[at] ^= 0x40


def test_the_age_form_notices_a_flipped_byte_too() -> None:
    body = bytearray(SEALED[Form.AGE])
    for at in range(200, len(body), 401):
        body[at] ^= 1
        with pytest.raises(Shut):
            held(bytes(body))
        body[at] ^= 1


@pytest.mark.parametrize("form", SEALED)
@pytest.mark.parametrize("left", [0, 1, 3, 4, 5, 30, 60, 85, 100, -1, -16, -32])
def test_what_is_cut_short_stays_shut(form: Form, left: int) -> None:
    body = SEALED[form]
    with pytest.raises(Shut):
        held(body[:left])


def test_an_envelope_of_another_version_is_not_guessed_at() -> None:
    body = SEALED[Form.TBPW]
    with pytest.raises(Shut, match="version 2"):
        held(b"TBPW\2" + body[5:])


def test_a_sender_key_that_gives_no_secret_is_refused() -> None:
    body = SEALED[Form.TBXE]
    with pytest.raises(Shut, match="no secret"):
        held(body[:5] + bytes(32) + body[37:])


def test_a_plain_zip_needs_no_key() -> None:
    with pytest.raises(Shut, match="not encrypted"):
        held(PLAIN)


def test_of_several_identities_the_right_one_is_found() -> None:
    text = f"# ours\n{'ab' * 32}\n\n{KEY}  # the one\n{IDENTITY}\n"
    keys = Keys("", identities_in(text))
    assert len(keys.identities) == 3
    assert held(SEALED[Form.TBXE], keys)[1] == PLAIN
    assert held(SEALED[Form.AGE], keys)[1] == PLAIN


def test_a_long_export_of_generation_a_opens_in_pieces() -> None:
    plain = PLAIN + bytes(3_000_017)
    assert held(of_generation_a(plain))[1] == plain


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([b"", b"TBPW\1", b"TBXE\1", b"age-encryption.org/v1\n"]), st.binary())
@example(b"age-encryption.org/v1\n", b"-> X25519 " + b"A" * 43 + b"\n")
def test_no_bytes_do_more_than_stay_shut(start: bytes, rest: bytes) -> None:
    if (start + rest)[:2] != b"PK":
        with pytest.raises(Shut):
            held(start + rest)


# --- where keys are ------------------------------------------------------------------------


def test_a_secret_comes_from_its_file_or_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "phrase").write_text(" two words \r\n")
    assert secret(str(tmp_path / "phrase"), "") == " two words "
    assert secret("", "PHRASE", {"PHRASE": "canary"}) == "canary"
    assert secret("", "") == ""


def test_a_secret_that_is_missing_says_so_without_the_path(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "long").write_bytes(bytes(100_000))
    for name in ("missing", "empty", "binary", "long", "."):
        with pytest.raises(NoSecret) as said:
            secret(str(tmp_path / name), "")
        assert str(tmp_path) not in str(said.value)
    with pytest.raises(NoSecret, match="PHRASE is not set"):
        secret("", "PHRASE", {})
