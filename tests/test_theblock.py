"""Peer ids, the settlement root, and one spelling for what two generations send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_replies import ANSWERS, NodeState

from tbforensics import theblock

FIXTURES = Path(__file__).parent / "fixtures" / "the-block"


def replies(generation: str) -> dict[str, Any]:
    lines = (FIXTURES / f"replies-{generation.lower()}.jsonl").read_text().splitlines()
    return {line["name"]: line for line in map(json.loads, lines)}


def result_of(generation: str, name: str) -> Any:
    return json.loads(replies(generation)[name]["reply"])["result"]


# --- peer ids ----------------------------------------------------------------------------


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_survives_both_spellings(key: bytes) -> None:
    assert theblock.peer_hex(theblock.peer_base58(key.hex())) == key.hex()
    assert theblock.peer_hex(key.hex().upper()) == key.hex()


@settings(deadline=None)
@given(st.text(max_size=80))
def test_other_texts_are_no_peer_id(text: str) -> None:
    found = theblock.peer_hex(text)
    assert found is None or text.lower() == found or theblock.peer_base58(found) == text


def test_real_peer_ids_are_read() -> None:
    failures = result_of("B", "net.handshake_failures")["failures"]
    assert len({theblock.peer_hex(peer) for _, peer, _ in failures} - {None}) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unknown",
        "07ab34",
        "46WPtSJH9Mc1",  # cut short
        "46WPtSJH9Mc1rNbRaWo6k2v6Bm8dc1FuCFxS2n6gFo7M2ZwPJ",  # last digit changed
        "0OIl" * 12,  # digits that base58 does not have
        "é" * 49,
        "1" * 36,  # 36 zero bytes: the right length and the wrong checksum
        "z" * 100_000,
        "g" * 64,
    ],
)
def test_what_only_looks_like_a_peer_id_is_none(text: str) -> None:
    assert theblock.peer_hex(text) is None


def test_only_a_whole_key_has_a_base58_spelling() -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        theblock.peer_base58("07ab34")


# --- the settlement root -----------------------------------------------------------------


def test_the_root_of_the_balances_is_the_one_that_the_node_gave() -> None:
    balances, _ = theblock.normalise(
        "compute_market.provider_balances", result_of("B", "compute_market.provider_balances")
    )
    roots = result_of("B", "compute_market.recent_roots")["roots"]
    assert theblock.ledger_root(balances["providers"]) == roots[0]


@pytest.mark.parametrize("generation", ["A", "B"])
def test_the_root_is_that_of_a_stand_in_in_both_generations(generation: str) -> None:
    state = NodeState(balances={"prov-a": (35, 4) if generation == "A" else 35, "prov-b": 40})
    answer = {m: ANSWERS[m]({}, state, generation) for m in ANSWERS if "compute_market" in m}
    balances, _ = theblock.normalise(
        "compute_market.provider_balances", answer["compute_market.provider_balances"]
    )
    assert answer["compute_market.recent_roots"]["roots"] == [
        theblock.ledger_root(balances["providers"])
    ]


def test_the_industrial_balance_belongs_to_the_root_of_an_old_ledger() -> None:
    one = [{"provider": "p", "balance": 1}]
    two = [{"provider": "p", "balance": 1, "industrial": 0}]
    assert theblock.ledger_root(one) != theblock.ledger_root(two)
    assert theblock.ledger_root([]) == "00" * 32


# --- one spelling ------------------------------------------------------------------------

# Where names differ between the generations; the others give no hint of theirs.
TELLING = {
    "inflation.params",
    "compute_market.provider_balances",
    "compute_market.audit",
    "compute_market.sla_history",
    "compute_market.sla_history-n2",
    "compute_market.stats",
}


@pytest.mark.parametrize("name", [n for n, r in replies("B").items() if '"result"' in r["reply"]])
def test_every_real_reply_keeps_its_names_and_says_its_generation(name: str) -> None:
    reply = replies("B")[name]
    result = json.loads(reply["reply"])["result"]
    value, generation = theblock.normalise(reply["method"], result)
    assert generation == ("B" if name in TELLING else "")
    if isinstance(result, dict) and reply["method"] != "net.peer_stats_export_all":
        assert set(result) <= set(value)


def test_multipliers_of_both_generations_are_one() -> None:
    old = theblock.normalise("inflation.params", result_of("A", "inflation.params"))
    new = theblock.normalise("inflation.params", result_of("B", "inflation.params"))
    assert old == (new[0], "A")
    assert new[1] == "B"


def test_a_build_between_the_generations_is_mixed() -> None:
    row = {"sequence": 1, "delta_ct": -5, "balance": 30}
    value, generation = theblock.normalise("compute_market.audit", [row])
    assert value == [{"sequence": 1, "delta": -5, "balance": 30, "anchor": None}]
    assert generation == "mixed"


def test_where_a_build_sends_both_names_the_new_one_counts_and_the_old_one_stays() -> None:
    value, generation = theblock.normalise("compute_market.audit", [{"delta_ct": 1, "delta": 2}])
    assert value == [{"delta": 2, "delta_ct": 1, "anchor": None}]
    assert generation == "mixed"


def test_an_old_ledger_keeps_its_industrial_half() -> None:
    value, generation = theblock.normalise(
        "compute_market.provider_balances", result_of("A", "compute_market.provider_balances")
    )
    assert value["providers"][0] == {"provider": "prov-a", "balance": 35, "industrial": 4}
    audit, _ = theblock.normalise("settlement.audit", result_of("A", "compute_market.audit"))
    assert audit[0]["delta"] == 25
    assert audit[0]["balance_industrial"] == 4
    assert (audit[0]["anchor"], audit[1]["anchor"]) == (None, "4087bfcf")
    assert generation == "A"


@pytest.mark.parametrize("reason", ["Certificate", "certificate", "CERTIFICATE"])
def test_handshake_failures_get_names_hex_and_lower_case(reason: str) -> None:
    ring = {"failures": [[1759400000, theblock.peer_base58("07" * 32), reason]]}
    value, _ = theblock.normalise("net.handshake_failures", ring)
    assert value["failures"] == [{"ts": 1759400000, "peer": "07" * 32, "reason": "certificate"}]


def test_a_missing_optional_and_a_null_one_are_the_same() -> None:
    old = result_of("A", "net.quic_stats")
    new = [{**old[0], "address": None, "latency_ms": None, "fingerprint": None, "provider": None}]
    assert theblock.normalise("net.quic_stats", old) == theblock.normalise("net.quic_stats", new)


def test_reputation_is_a_number_whether_it_comes_as_one_or_as_an_object() -> None:
    one, _ = theblock.normalise("net.peer_stats", {"reputation": 0.93})
    (row,), _ = theblock.normalise(
        "net.peer_stats_all",
        [{"peer_id": theblock.peer_base58("07" * 32), "metrics": {"reputation": {"score": 0.93}}}],
    )
    assert one["reputation"] == row["metrics"]["reputation"] == 0.93
    assert row["peer_id"] == "07" * 32


def test_counts_by_reason_are_added_when_two_spellings_of_one_word_come() -> None:
    peer = theblock.peer_base58("07" * 32)
    value, _ = theblock.normalise(
        "net.peer_stats_export_all", {peer: {"drops": {"RateLimit": 2, "rate_limit": 3}}}
    )
    assert value["07" * 32]["drops"] == {"rate_limit": 5}


def test_service_records_of_the_builds_in_between_are_read() -> None:
    row = {"outcome": "Violated", "outcome_reason": "DeadlineMissed", "burned_ct": 25}
    (value,), generation = theblock.normalise("compute_market.sla_history", [row])
    assert (value["outcome"], value["outcome_reason"]) == ("violated", "deadline_missed")
    assert (value["burned"], generation) == (25, "A")


def test_governance_keys_are_those_of_the_metrics() -> None:
    (row,), generation = theblock.normalise("gov_list", result_of("A", "gov_list"))
    assert (row["key"], row["status"], generation) == ("beta_storage_sub", "rolled_back", "A")
    flat, _ = theblock.normalise("gov_params", result_of("A", "gov_params"))
    nested, generation = theblock.normalise(
        "gov_params", {"epoch": 5, "params": {**flat["params"]}}
    )
    assert flat == nested
    assert flat["params"]["rent_rate_per_byte"] == 0
    assert generation == "B"
    assert theblock.param_key("ConsumerFeeComfortP90Microunits") == (
        "consumer_fee_comfort_p90_microunits"
    )


@pytest.mark.parametrize("method", theblock.METHODS)
@pytest.mark.parametrize("result", [None, 7, "x", [], {}, [[1]], [None], {"failures": [7, [1]]}])
def test_a_result_of_an_unexpected_form_is_left_as_it_came(method: str, result: Any) -> None:
    value, _ = theblock.normalise(method, result)
    if not isinstance(result, (dict, list)):
        assert value == result


def test_a_method_that_is_not_known_is_left_alone() -> None:
    assert theblock.normalise("new.method", {"burned_ct": 1}) == ({"burned_ct": 1}, "")


@pytest.mark.parametrize("name", ["rent_escrow_locked_ct_total", "rent_escrow_locked_total"])
def test_a_metric_is_looked_for_under_both_names(name: str) -> None:
    assert theblock.metric_spellings(name) == (
        "rent_escrow_locked_total",
        "rent_escrow_locked_ct_total",
    )
    assert theblock.metric_spellings("settle_applied_total") == ("settle_applied_total",)


def test_a_word_is_the_same_without_case_and_underscores() -> None:
    assert theblock.word("ROLLEDBACK", theblock.STATUSES) == "rolled_back"
    assert theblock.word("DryRun", theblock.MODES) == "dryrun"
    assert theblock.word("TooBusy") == "too_busy"
