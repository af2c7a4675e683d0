"""Samples of peers: sums are flagged, and nothing is differenced with them or across them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.reading.logrows import LineError
from tbforensics.reading.peersamples import Rise, Sample, posts_of, rises, samples_of, text_of
from tbforensics.theblock import peer_base58

HEX = "0b" * 32
T = 1_795_226_264


def stats(updated: int, score: float = 0.9, **counts: Any) -> dict[str, Any]:
    return {
        "requests": counts.pop("requests", 0),
        "last_updated": updated,
        "reputation": {"score": score, "slow_responses": 0},
        "handshake_fail": counts,
        "drops": {},
    }


def read(*samples: tuple[int, Any], peer: str = HEX) -> list[Sample]:
    found = samples_of(json.dumps(samples).encode(), peer)
    assert all(isinstance(sample, Sample) for sample in found), found
    return found  # type: ignore[return-value]


def test_a_peer_is_hex_and_reasons_are_spelled_one_way() -> None:
    (old,) = read((T, stats(T, tls=1)), peer=HEX)
    (new,) = read((T, stats(T, Tls=1)), peer=peer_base58(HEX))
    assert old.value == new.value
    assert (new.ts_ms, new.value["peer"], new.value["what"]) == (T * 1000, HEX, "stats")
    assert new.value["sample"]["handshake_fail"] == {"tls": 1}
    assert new.value["sample"]["reputation"] == 0.9
    assert read((T, {}), peer="nobody")[0].value["peer"] == "nobody"


@pytest.mark.parametrize(
    ("sample", "summed"),
    [
        (stats(T - 4), False),
        (stats(2 * T), True),
        (stats(T - 4, score=1.8), True),
        (stats(0), None),
        ({"quic_retransmit_total": {"value": 4}}, None),
        ({**stats(T), "reputation": 1.8}, True),
        ({**stats(T), "last_updated": True}, None),
    ],
)
def test_sums_are_flagged_and_what_cannot_be_told_is_null(sample: Any, summed: bool | None) -> None:
    (found,) = read((T, sample))
    assert found.value["summed"] is summed
    assert bool(found.value["why"]) is (summed is True)


def test_a_rotation_names_the_new_key() -> None:
    (found,) = read((T, {"key_rotation": "0B" * 32}))
    assert (found.value["what"], found.value["new_key"]) == ("rotation", HEX)


def pairs(*samples: Sample) -> list[tuple[int, dict[str, Any]]]:
    return [(s.ts_ms or 0, s.value) for s in samples]


def test_nothing_is_differenced_with_or_across_a_sum() -> None:
    samples = read(
        (T, stats(T, tls=1)),
        (T + 10, stats(T + 10, tls=4)),
        (T + 20, stats(2 * T, score=1.8, tls=10)),
        (T + 30, stats(T + 30, tls=5)),
        (T + 40, stats(T + 40, tls=6)),
    )
    found = [r for r in rises(pairs(*samples)) if r.counter == "handshake_fail.tls"]
    assert [(r.since // 1000 - T, r.until // 1000 - T, r.rise) for r in found] == [
        (0, 10, 3),
        (30, 40, 1),
    ]


def test_a_restart_a_new_reason_and_a_repeated_reply_are_understood() -> None:
    samples = read(
        (T, stats(T, requests=9)),
        (T + 10, stats(T + 10, requests=2, timeout=3)),
        (T + 20, {"key_rotation": HEX}),
    )
    found = {r.counter: r for r in rises(pairs(*samples, *samples))}
    assert found["requests"] == Rise(HEX, "requests", T * 1000, T * 1000 + 10_000, 2, True)
    assert found["handshake_fail.timeout"].rise == 3
    assert len(found) == 2


def test_posts_carry_the_time_of_the_node() -> None:
    line = [
        {"peer_id": peer_base58(HEX), "metrics": stats(T)},
        {"peer_id": HEX, "metrics": {"key_rotation": HEX}},
        {"peer_id": HEX},
    ]
    first, second, third = posts_of(json.dumps(line).encode())
    assert isinstance(first, Sample)
    assert (first.ts_ms, first.value["summed"]) == (T * 1000, False)
    assert isinstance(second, Sample)
    assert (second.place, second.ts_ms) == (1, None)
    assert isinstance(third, LineError)


@pytest.mark.parametrize(
    "text",
    [b"", b"{}", b"null", b"[[", b'"x"', b"[" * 5000, b"\xff", b"7"],
)
def test_what_is_no_array_is_refused(text: bytes) -> None:
    for reader in (lambda t: samples_of(t, HEX), posts_of):
        with pytest.raises(LineError):
            reader(text)


def test_a_sample_that_cannot_be_read_costs_no_other() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"x": deep}
    body = [[T, stats(T)], [T], ["x", {}], [True, {}], [T, deep], [-1, {}], [T, {}], {}, [T, []]]
    found = samples_of(json.dumps(body).encode(), HEX)
    assert [isinstance(s, Sample) for s in found] == [True, *[False] * 5, True, False, False]
    bad = {"handshake_fail": {"tls": 1, "Tls": None}}
    (refused,) = samples_of(json.dumps([[T, bad]]).encode(), HEX)
    assert isinstance(refused, LineError)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["handshake_fail", "reputation", "score", "last_updated", "peer_id"])
            | st.sampled_from(["metrics", "key_rotation", "drops", "requests", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(_JSON, max_size=3) | _JSON, max_size=4))
def test_no_values_do_harm(value: Any) -> None:
    text = json.dumps(value).encode()
    for found in (samples_of(text, HEX), posts_of(text)):
        good = [s for s in found if isinstance(s, Sample)]
        for sample in good:
            text_of(sample.value)
        list(rises((s.ts_ms or 0, s.value) for s in good))
