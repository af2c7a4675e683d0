"""Stable names that tell nothing, and that keep their form where they have one."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics import theblock
from tbforensics.pseudonyms import Pattern, Pseudonyms, Rules

KEY = b"k" * 32
HEX = "25303b46515c67727d88939ea9b4bfcad5e0ebf6010c17222d38434e59646f7a"
BASE58 = theblock.peer_base58(HEX)
ALL = Rules(
    addresses=True,
    keys=True,
    tokens=True,
    names={"host": ("db-1.example.org",)},
    labels=("instance",),
    fields=("account",),
    patterns=(Pattern(r"ticket (\d+)", "ticket"),),
)


def cleaned(text: str, rules: Rules = ALL, key: bytes = KEY, public: tuple[str, ...] = ()) -> str:
    names = Pseudonyms(rules, key, public)
    names.learn(text)
    return names.clean(text)


def test_a_key_stays_a_key_and_its_spellings_still_join() -> None:
    hexed, based, upper = cleaned(f"{HEX} {BASE58} {HEX.upper()}").split()
    assert re.fullmatch("[0-9a-f]{64}", hexed) and hexed != HEX
    assert theblock.peer_hex(based) == hexed and upper == hexed.upper()


def test_a_key_within_a_file_name_is_found() -> None:
    assert BASE58 not in cleaned(f"quic_fail_total_{BASE58}_deadbeef_1.json")


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1", "http://10.0.0.1:9000/x", "v10.0.0.1", "from 10.0.0.1.", "ip_10.0.0.1",
        "fe80::1", "[fe80::1]:9000", "addr:fe80::1", "peer fe80::1: refused", "at fe80::1.",
        "FE80:0:0:0:0:0:0:1", "::ffff:10.0.0.1",
    ],
)  # fmt: skip
def test_an_address_becomes_one_that_nobody_has(text: str) -> None:
    found = cleaned(text)
    assert "10.0.0.1" not in found and "fe80" not in found.lower()


def test_two_spellings_of_an_address_become_one() -> None:
    first, second = cleaned("FE80:0:0:0:0:0:0:1 fe80::1").split()
    assert first == second and ip_address(first) in __import__("ipaddress").ip_network(
        "2001:db8::/32"
    )
    assert ip_address(cleaned("8.8.8.8")).is_reserved


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "::1",
        "0.0.0.0",
        "10:00:00",
        "2026-01-01T10:00:00Z",
        "the_block::net::quic",
        "1.2.3",
    ],
)
def test_what_is_no_address_of_anybody_stays(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer s3cretvalue", '"password": "s3cretvalue"', "token=s3cretvalue&x=1",
        "api_key: s3cretvalue", "postgres://u:p?secret=s3cretvalue",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.s3cretvalue",
    ],
)  # fmt: skip
def test_a_token_is_not_told(text: str) -> None:
    assert "s3cretvalue" not in cleaned(text)


def test_a_number_that_is_called_token_stays_a_number() -> None:
    assert cleaned('{"token": 123456}') == '{"token": 123456}'


def test_what_a_label_names_is_replaced_wherever_it_stands() -> None:
    names = Pseudonyms(ALL, KEY)
    texts = ['{"instance":"node-a:9898"}', 'up{instance="node-a:9898"}', "node-a went away"]
    for text in texts:
        names.learn(text)
    one, two, three = (names.clean(text) for text in texts)
    host = json.loads(one)["instance"].removesuffix(":9898")
    assert re.fullmatch("instance-[0-9a-f]{10}", host)
    assert two == f'up{{instance="{host}:9898"}}' and three == f"{host} went away"


def test_a_short_or_public_value_is_replaced_in_its_field_alone() -> None:
    text = '{"account":"a","x":"a"} {"account":"quic","x":"quic"}'
    found = cleaned(text, public=("quic",))
    assert '"x":"a"' in found and '"x":"quic"' in found
    assert '"account":"a"' not in found and '"account":"quic"' not in found


def test_a_given_name_is_found_in_any_case() -> None:
    first, second = cleaned("DB-1.example.org db-1.EXAMPLE.org").split()
    assert first == second and first.startswith("host-")


def test_what_is_to_be_kept_stays() -> None:
    rules = Rules(keys=True, addresses=True, keep=("10.0.0.1",), keep_fields=("root",))
    text = f'{{"root":"{HEX}"}} 10.0.0.1 10.0.0.2 {HEX}'
    assert cleaned(text, rules).startswith(f'{{"root":"{HEX}"}} 10.0.0.1 ')
    assert "10.0.0.2" not in cleaned(text, rules)


def test_a_pattern_replaces_its_first_group() -> None:
    assert re.fullmatch("see ticket ticket-[0-9a-f]{10}!", cleaned("see ticket 4711!"))


def test_one_key_gives_one_pseudonym_and_another_key_another() -> None:
    text = f'{HEX} 10.0.0.1 {{"account":"alice"}}'
    assert cleaned(text) == cleaned(text) != cleaned(text, key=b"x" * 32)


WORDS = st.sampled_from(
    ["10.0.0.1", "8.8.4.4", "fe80::2", HEX, BASE58, "node-a", "alice-smith", "db-1.example.org"]
)
TEXTS = st.lists(
    st.tuples(WORDS, st.text(alphabet=' ,;:."{}[]=/_\n\té\\', max_size=4)), max_size=12
)


@settings(max_examples=200, deadline=None)
@given(pieces=TEXTS, key=st.binary(min_size=32, max_size=32))
def test_nothing_that_the_rules_found_remains(pieces: list[tuple[str, str]], key: bytes) -> None:
    text = "".join(word + (gap or " ") for word, gap in pieces)
    named = '{"instance":"node-a","account":"alice-smith"}'
    names = Pseudonyms(ALL, key)
    names.learn(text)
    names.learn(named)
    found = names.clean(f"{text} {named}")
    assert not names.remaining(found)
    for original in (HEX, BASE58, "node-a", "alice-smith", "db-1.example.org"):
        assert original not in found
    for value in names.originals.values():
        assert not names.remaining(value)


@settings(max_examples=200, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.integers() | WORDS | st.text(max_size=12),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["instance", "account", "token", "x", HEX]), inner)
        ),
        max_leaves=10,
    )
)
def test_json_stays_json(value: object) -> None:
    text = json.dumps(value)
    json.loads(cleaned(text))


@settings(max_examples=100, deadline=None)
@given(numbers=st.sets(st.integers(1, 2**32 - 2), min_size=2, max_size=50))
def test_different_addresses_stay_different(numbers: set[int]) -> None:
    given_ = [str(ip_address(n)) for n in numbers if not ip_address(n).is_loopback]
    names = Pseudonyms(Rules(addresses=True), KEY)
    assert len({names.clean(text) for text in given_}) == len(given_)
