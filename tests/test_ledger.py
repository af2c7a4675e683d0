"""The arithmetic of a settlement ledger, against replies of a real node and against damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin_replies import ANSWERS, NodeState, root_of

from tbforensics import theblock
from tbforensics.chain import ledger
from tbforensics.chain.ledger import Entry

FIXTURES = Path(__file__).parent / "fixtures" / "the-block"


def reply(name: str) -> Any:
    lines = map(json.loads, (FIXTURES / "replies-b.jsonl").read_text().splitlines())
    result = next(json.loads(line["reply"])["result"] for line in lines if line["name"] == name)
    return theblock.normalise(name.partition("-")[0], result)[0]


BALANCES, ROOTS, AUDIT = (
    reply(f"compute_market.{name}") for name in ("provider_balances", "recent_roots", "audit")
)
LOG, _ = ledger.entries(AUDIT)


def entry(sequence: int, entity: str, delta: int, balance: int, memo: str = "accrue") -> Entry:
    return Entry(sequence, 1_000 + sequence, entity, memo, (delta,), (balance,))


# --- a real node ---------------------------------------------------------------------------


def test_the_real_audit_adds_up_without_a_gap() -> None:
    assert ledger.breaks(LOG) == ([], 6)
    assert ledger.gaps(LOG) == []


def test_the_real_last_balances_are_those_of_the_ledger_and_zero_needs_no_row() -> None:
    assert ledger.differing(LOG, BALANCES["providers"]) == []  # prov-zz stands at zero, rowless


def test_the_real_root_is_the_one_that_the_balances_give() -> None:
    check = ledger.root_check(ROOTS, BALANCES, ROOTS)
    assert (check.state, check.place) == ("holds", 0)
    assert check.computed == "8337cdd164946c55a65b6d8fa659f082349bd9b985feef1dac62f6fb573f52b2"


def test_every_real_root_is_dated_by_undoing_the_audit_log() -> None:
    changes = ledger.root_changes(BALANCES, LOG, ROOTS)
    assert [change.place for change in changes] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [change.entry.sequence for change in changes] == [0, 1, 2, 3, 4, 5, 6, 9]
    assert [change.root for change in reversed(changes)] == ROOTS["roots"]


def test_a_refund_after_a_refused_debit_is_money_from_nothing() -> None:
    refunds, alone = ledger.refunds(LOG)
    assert [(r.entry.entity, r.debited, r.refunded, r.unbacked) for r in refunds] == [
        ("buyer-1", 25, 7, 0),
        ("buyer-2", 0, 3, 3),
    ]
    assert [refund.refused for refund in refunds] == [False, True]
    assert alone == 0


# --- the audit log -------------------------------------------------------------------------


def test_an_entry_that_does_not_add_up_is_named_with_what_it_should_be() -> None:
    log = [entry(1, "p", 5, 5), entry(2, "q", 1, 1), entry(3, "p", 5, 11)]
    (broken,), checked = ledger.breaks(log)
    assert (broken.entry.sequence, broken.expected, broken.found) == (3, 10, 11)
    assert checked == 1


def test_nothing_is_concluded_across_a_gap() -> None:
    log = [entry(1, "p", 5, 5), entry(4, "p", 5, 99), entry(5, "p", 1, 100)]
    assert [(gap.after.sequence, gap.lost) for gap in ledger.gaps(log)] == [(1, 2)]
    assert ledger.breaks(log) == ([], 1)


def test_a_sequence_that_goes_back_is_a_gap_that_lost_nothing_known() -> None:
    log = [entry(8, "p", 5, 5), entry(0, "p", 5, 5)]
    assert [gap.lost for gap in ledger.gaps(log)] == [0]
    assert ledger.breaks(log) == ([], 0)


def test_an_anchor_has_no_balance() -> None:
    log = [entry(1, ledger.ANCHOR, 0, 0, "anchor"), entry(2, ledger.ANCHOR, 0, 7, "anchor")]
    assert ledger.breaks(log) == ([], 0)


def test_both_balances_of_an_older_ledger_are_checked() -> None:
    log = [
        Entry(1, 1, "p", "accrue_split", (5, 2), (5, 2)),
        Entry(2, 2, "p", "accrue_split", (1, 1), (6, 4)),
    ]
    (broken,), _ = ledger.breaks(log)
    assert (broken.account, broken.expected, broken.found) == ("industrial", 3, 4)


@pytest.mark.parametrize(
    "row",
    [
        None, [], "x", {}, {"sequence": 1},
        {"sequence": "1", "timestamp": 1, "entity": "p", "memo": "m", "delta": 0, "balance": 0},
        {"sequence": 1, "timestamp": 1, "entity": "p", "memo": "m", "delta": 0.5, "balance": 0},
        {"sequence": 1, "timestamp": 1, "entity": "p", "memo": "m", "delta": True, "balance": 0},
        {"sequence": 1, "timestamp": 1, "entity": None, "memo": "m", "delta": 0, "balance": 0},
        {"sequence": 1, "timestamp": 1, "entity": "p", "memo": "m", "delta": 0, "balance": 0,
         "balance_industrial": 3},
    ],
)  # fmt: skip
def test_a_row_that_is_no_entry_is_counted_and_not_guessed_at(row: Any) -> None:
    assert ledger.entries([row]) == ([], 1)


def test_an_answer_that_is_no_list_is_one_thing_unread() -> None:
    assert ledger.entries({"error": 1}) == ([], 1)


@pytest.mark.parametrize("generation", ["A", "B"])
def test_both_generations_are_the_same_entries(generation: str) -> None:
    rows = [
        {"sequence": 5, "timestamp": 9, "entity": "p", "memo": "spend", "delta": -4, "balance": 2},
        {"sequence": 6, "timestamp": 9, "entity": "__anchor__", "memo": "anchor", "delta": 0,
         "balance": 0, "anchor": "4087"},
    ]  # fmt: skip
    result = ANSWERS["compute_market.audit"]({}, NodeState(audit=rows), generation)
    log, unread = ledger.entries(theblock.normalise("compute_market.audit", result)[0])
    assert [(e.sequence, sum(e.deltas), sum(e.balances)) for e in log] == [(5, -4, 2), (6, 0, 0)]
    assert unread == 0


def test_one_balance_with_ct_in_its_name_is_read_as_one() -> None:
    """Builds of December 2025 kept the name after the second balance was gone."""
    row = {"sequence": 5, "timestamp": 9, "entity": "p", "memo": "spend", "delta_ct": -4,
           "balance_ct": 2}  # fmt: skip
    log, _ = ledger.entries(theblock.normalise("compute_market.audit", [row])[0])
    assert (log[0].deltas, log[0].balances) == ((-4,), (2,))


# --- refunds -------------------------------------------------------------------------------


def test_a_refund_whose_violation_is_lost_is_not_called_unbacked() -> None:
    log = [
        entry(1, "p", -5, 9, "sla_violation_provider"),
        entry(3, "b", 5, 5, ledger.REFUND),
        entry(4, "b", 5, 10, ledger.REFUND),
    ]
    assert ledger.refunds(log) == ([], 2)


def test_a_refund_larger_than_its_debit_creates_the_difference() -> None:
    log = [entry(1, "p", -5, 9, "sla_violation_provider"), entry(2, "b", 8, 8, ledger.REFUND)]
    ((refund,), _) = ledger.refunds(log)
    assert (refund.unbacked, refund.refused) == (3, False)


# --- the root ------------------------------------------------------------------------------


def answered(balances: dict[str, Any], generation: str = "B") -> tuple[Any, Any]:
    state = NodeState(balances=balances)
    given = (ANSWERS[f"compute_market.{name}"]({"n": 32}, state, generation)
             for name in ("provider_balances", "recent_roots"))  # fmt: skip
    balances_of, roots = given
    return theblock.normalise("compute_market.provider_balances", balances_of)[0], roots


def test_the_root_of_a_ledger_of_two_covers_both_balances() -> None:
    balances, roots = answered({"p": (35, 4), "q": (1, 0)}, "A")
    assert ledger.root_check(roots, balances, roots).state == "holds"
    balances["providers"][0]["industrial"] += 1
    assert ledger.root_check(roots, balances, roots).state == "broken"


def test_two_names_over_one_balance_still_hold() -> None:
    balances = {"providers": [{"provider": "p", "balance": 3, "industrial": 0}]}
    one, two = {"roots": [root_of({"p": 3})]}, {"roots": [root_of({"p": (3, 0)})]}
    assert ledger.root_check(one, balances, one).state == "holds"
    assert ledger.root_check(two, balances, two).state == "holds"
    single = {"providers": [{"provider": "p", "balance": 3}]}
    assert ledger.root_check(two, single, two).state == "holds"


def test_a_miss_is_judged_only_when_both_roots_agree() -> None:
    balances, roots = answered({"p": 1})
    other, later = {"roots": [root_of({"p": 2})]}, {"roots": [root_of({"p": 3})]}
    assert ledger.root_check(other, balances, other).state == "broken"
    assert ledger.root_check(other, balances, later).state == "moved"
    assert ledger.root_check(other, balances, roots).state == "holds"


def test_balances_of_a_moment_before_are_not_called_broken() -> None:
    """A node whose ledger is locked may serve the snapshot before."""
    balances, _ = answered({"p": 1})
    ring = {"roots": [root_of({"p": 3}), root_of({"p": 2}), root_of({"p": 1})]}
    check = ledger.root_check(ring, balances, ring)
    assert (check.state, check.place) == ("earlier", 2)


@pytest.mark.parametrize(
    "balances",
    [
        None, {}, {"providers": None}, {"providers": [None]},
        {"providers": [{"provider": "p"}]},
        {"providers": [{"provider": "p", "balance": -1}]},
        {"providers": [{"provider": "p", "balance": 1 << 64}]},
        {"providers": [{"provider": 7, "balance": 1}]},
        {"providers": [{"provider": "p", "balance": True}]},
    ],
)  # fmt: skip
def test_balances_that_are_none_are_unread_and_never_broken(balances: Any) -> None:
    ring = {"roots": [root_of({"p": 3})]}
    assert ledger.root_check(ring, balances, ring).state == "unread"


@pytest.mark.parametrize("roots", [None, {}, {"roots": []}, {"roots": [None]}, {"roots": "x"}])
def test_roots_that_are_none_are_unread(roots: Any) -> None:
    assert ledger.root_check(roots, BALANCES, ROOTS).state == "unread"
    assert ledger.root_check(ROOTS, BALANCES, roots).state == "unread"


@given(
    st.lists(
        st.tuples(st.sampled_from("pqr"), st.integers(0, 9), st.integers(-5, 9)),
        min_size=1,
        max_size=40,
    )
)
def test_undoing_the_log_finds_the_entry_of_every_root_in_the_ring(
    acts: list[tuple[str, int, int]],
) -> None:
    held: dict[str, int] = {}
    ring: list[str] = []
    log: list[Entry] = []
    for sequence, (entity, _, delta) in enumerate(acts):
        delta = max(delta, -held.get(entity, 0))
        held[entity] = held.get(entity, 0) + delta
        log.append(entry(sequence, entity, delta, held[entity]))
        if delta:
            ring.insert(0, root_of(held))
    balances = {"providers": [{"provider": n, "balance": b} for n, b in held.items()]}
    assert ledger.breaks(log)[0] == []
    changes = ledger.root_changes(balances, log, {"roots": ring[:32]})
    assert all(ring[change.place] == change.root for change in changes)
    assert changes == [] or changes[-1].place == 0


def test_a_gap_ends_the_dating_of_roots() -> None:
    log = [entry(1, "p", 1, 1), entry(3, "p", 1, 3), entry(4, "p", 1, 4)]
    ring = {"roots": [root_of({"p": n}) for n in (4, 3, 2, 1)]}
    balances = {"providers": [{"provider": "p", "balance": 4}]}
    changes = ledger.root_changes(balances, log, ring)
    assert [change.entry.sequence for change in changes] == [3, 4]


def test_supply_is_whole_however_large() -> None:
    rows = [{"balance": (1 << 64) - 1, "industrial": 1}, {"balance": 1 << 63}]
    assert ledger.supply(rows) == (1 << 64) + (1 << 63)
