"""The settlement ledger, checked by its own arithmetic: audit log, balances, roots, refunds.

Everything comes from `theblock.normalise`, so rows carry the names of generation B; a ledger of
two balances has `industrial` beside each. Whole numbers throughout; times are unix seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tbforensics.model import Json
from tbforensics.theblock import ledger_root

ANCHOR = "__anchor__"  # an entity without a balance: it records that an anchor was submitted
AUDIT_RING = 256  # entries that a node keeps
REFUND = "sla_consumer_refund"
VIOLATION, REFUSED = "sla_violation_", "_failed"
# What raises `settle_applied_total`; resolutions of an SLA do not.
COUNTED = ("accrue", "accrue_split", "spend", "refund_split", "penalize_sla")
_MOST_ACCOUNTS = 20_000  # beyond it one root is computed, and not one for every step back
_U64 = range(1 << 64)


# --- reading -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One line of the audit log. `deltas`, `balances`: one number, or two with the industrial."""

    sequence: int
    timestamp: int
    entity: str
    memo: str
    deltas: tuple[int, ...]
    balances: tuple[int, ...]

    @property
    def resolves_sla(self) -> bool:
        return self.memo.startswith("sla_") and self.memo != REFUND


def entries(rows: Json) -> tuple[list[Entry], int]:
    """The rows of `compute_market.audit` in the order given, and how many could not be read."""
    if not isinstance(rows, list):
        return [], 1
    read = [_entry(row) for row in rows]
    found = [entry for entry in read if entry is not None]
    return found, len(read) - len(found)


def _entry(row: Json) -> Entry | None:
    if not isinstance(row, dict):
        return None
    entity, memo = row.get("entity"), row.get("memo")
    sequence, timestamp = row.get("sequence"), row.get("timestamp")
    names = ("", "_industrial") if row.get("balance_industrial") is not None else ("",)
    deltas = tuple(row.get(f"delta{name}") for name in names)
    balances = tuple(row.get(f"balance{name}") for name in names)
    if not isinstance(entity, str) or not isinstance(memo, str):
        return None
    if not all(map(_whole, (sequence, timestamp, *deltas, *balances))):
        return None
    return Entry(sequence, timestamp, entity, memo, deltas, balances)  # type: ignore[arg-type]


def _whole(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def accounts(value: Json) -> list[dict[str, Json]] | None:
    """The rows of `compute_market.provider_balances`; None when any of them is no balance."""
    rows = value.get("providers") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        return None
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("provider"), str):
            return None
        numbers = [row.get("balance"), row.get("industrial", 0)]
        if not all(_whole(number) and number in _U64 for number in numbers):
            return None
    return rows


def supply(rows: Iterable[Mapping[str, Json]]) -> int:
    """All balances together, in ledger units."""
    return sum(int(row["balance"]) + int(row.get("industrial", 0)) for row in rows)


# --- the audit log -------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """Where the audit log does not go on: `lost` entries are missing, or it went back (0)."""

    after: Entry
    before: Entry
    lost: int


@dataclass(frozen=True)
class Break:
    """An entry whose balance less its delta is not what the entity had before."""

    entry: Entry
    earlier: Entry
    account: str
    expected: int
    found: int


def gaps(log: Sequence[Entry]) -> list[Gap]:
    """Neighbours whose sequence numbers do not follow each other."""
    return [
        Gap(one, two, max(0, two.sequence - one.sequence - 1))
        for one, two in pairwise(log)
        if two.sequence != one.sequence + 1
    ]


def runs(log: Sequence[Entry]) -> list[list[Entry]]:
    """The log cut at its gaps; nothing can be concluded across one."""
    cut: list[list[Entry]] = []
    for entry in log:
        if cut and entry.sequence == cut[-1][-1].sequence + 1:
            cut[-1].append(entry)
        else:
            cut.append([entry])
    return cut


def breaks(log: Sequence[Entry]) -> tuple[list[Break], int]:
    """Entries that do not add up, and how many entries could be checked.

    Source: per entity and in order of `sequence`, balance - delta is the balance before. The first
            entry of an entity after a gap has nothing to be checked against.
    """
    found: list[Break] = []
    checked = 0
    for run in runs(log):
        last: dict[str, Entry] = {}
        for entry in run:
            earlier = last.get(entry.entity)
            last[entry.entity] = entry
            if entry.entity == ANCHOR or earlier is None:
                continue
            checked += 1
            pairs = zip(earlier.balances, entry.deltas, entry.balances, strict=False)
            for account, (had, delta, has) in zip(("balance", "industrial"), pairs, strict=False):
                if has - delta != had:
                    found.append(Break(entry, earlier, account, had + delta, has))
    return found, checked


def differing(log: Sequence[Entry], rows: Iterable[Mapping[str, Json]]) -> list[dict[str, Json]]:
    """Entities whose last audit balance is not the one that the ledger gives; absent is zero."""
    last = {entry.entity: entry for entry in log if entry.entity != ANCHOR}
    held = {row["provider"]: (row["balance"], row.get("industrial", 0)) for row in rows}
    found: list[dict[str, Json]] = []
    for name, entry in sorted(last.items()):
        has = held.get(name, (0, 0))[: len(entry.balances)]
        if has != entry.balances:
            row = {"entity": name, "sequence": entry.sequence}
            found.append({**row, "audit": sum(entry.balances), "ledger": sum(has)})
    return found


# --- refunds -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refund:
    """What a buyer was given back after a violation, and what the provider paid for it.

    unbacked: ledger units given to the buyer that nobody paid: created from nothing.
    """

    entry: Entry
    violation: Entry
    debited: int
    refunded: int
    refused: bool

    @property
    def unbacked(self) -> int:
        return max(0, self.refunded - self.debited)


def refunds(log: Sequence[Entry]) -> tuple[list[Refund], int]:
    """Refunds with the violation just before each, and how many have none to be paired with.

    A debit that is refused is written with the memo `..._failed` and a delta of zero; the buyer
    is refunded all the same.
    """
    found: list[Refund] = []
    alone = 0
    for run in runs(log):
        for earlier, entry in zip([None, *run], run, strict=False):
            if entry.memo != REFUND:
                continue
            if earlier is None or not earlier.memo.startswith(VIOLATION):
                alone += 1
                continue
            refused = earlier.memo.endswith(REFUSED)
            debited = max(0, -sum(earlier.deltas))
            found.append(Refund(entry, earlier, debited, sum(entry.deltas), refused))
    return found, alone


# --- the root ------------------------------------------------------------------------------


@dataclass(frozen=True)
class RootCheck:
    """The root computed from the balances, against those that the node gave around them.

    state: "holds"   it is the newest root
           "earlier" it is an older root of the ring: the balances are those of a moment before
           "moved"   it is none, and the node's root changed while it was asked: no judgement
           "broken"  it is none, although the root did not change while it was asked
           "unread"  balances or roots are missing or cannot be read
    place: where it stands in the ring, 0 for the newest; -1 for nowhere.
    """

    state: str
    computed: str = ""
    newest: str = ""
    place: int = -1


def root_check(before: Json, balances: Json, after: Json) -> RootCheck:
    """Judge balances by the roots captured just before and just after them.

    Errors: none; what cannot be read is "unread".
    Source: `theblock.ledger_root`. A match is proof wherever it stands in the ring, because no
            other balances have that root; a miss is one only when both roots agree.
    """
    rows, first, ring = accounts(balances), roots(before), roots(after)
    if rows is None or not first or not ring:
        return RootCheck("unread")
    computed = [ledger_root(layout) for layout in _layouts(rows)]
    for root in computed:
        if root in ring:
            state = "holds" if ring[0] == root else "earlier"
            return RootCheck(state, root, ring[0], ring.index(root))
    state = "broken" if first[0] == ring[0] else "moved"
    return RootCheck(state, computed[0], ring[0])


def roots(value: Json) -> list[str]:
    """The roots of `compute_market.recent_roots`, newest first; none when it cannot be read."""
    ring = value.get("roots") if isinstance(value, dict) else None
    return (
        [root.lower() for root in ring if isinstance(root, str)] if isinstance(ring, list) else []
    )


def _layouts(rows: list[dict[str, Json]]) -> Iterator[list[dict[str, Json]]]:
    """As sent, then with the other number of balances where that says the same.

    Builds of December 2025 still sent two names for a ledger of one, and the other way round.
    """
    yield rows
    if not any(row.get("industrial", 0) for row in rows):
        two = all("industrial" in row for row in rows)
        bare = [{"provider": row["provider"], "balance": row["balance"]} for row in rows]
        yield bare if two else [{**row, "industrial": 0} for row in bare]


@dataclass(frozen=True)
class RootChange:
    """A root of the ring, and the audit entry that made it. `place`: 0 for the newest."""

    root: str
    place: int
    entry: Entry


def root_changes(balances: Json, log: Sequence[Entry], after: Json) -> list[RootChange]:
    """When each root of the ring came to be, oldest first: roots carry no time, entries do.

    Undoes the audit log entry by entry from the balances and looks each state's root up in the
    ring. It stops at a gap, and at the first state whose root the ring does not know.
    """
    rows, ring = accounts(balances), roots(after)
    if not rows or not ring or not log or len(rows) > _MOST_ACCOUNTS:
        return []
    layout = next((x for x in _layouts(rows) if ledger_root(x) in ring), None)
    if layout is None:
        return []
    width = 2 if "industrial" in layout[0] else 1
    held = {
        row["provider"]: (row["balance"], row["industrial"])[:width]
        if width == 2
        else (row["balance"],)
        for row in layout
    }
    root = _root_of(held)
    found: list[RootChange] = []
    for entry in reversed(runs(log)[-1]):
        if entry.entity == ANCHOR or not any(entry.deltas):
            continue
        found.append(RootChange(root, ring.index(root), entry))
        deltas = (*entry.deltas, 0)[:width]
        has = held.get(entry.entity, (0,) * width)
        had = tuple(a - b for a, b in zip(has, deltas, strict=True))
        if any(number not in _U64 for number in had):
            break
        # An account at zero may have a row or none; the ring knows which.
        without = {name: kept for name, kept in held.items() if name != entry.entity}
        candidates = [without] if not any(had) else []
        candidates.append({**without, entry.entity: had})
        known = [(state, _root_of(state)) for state in candidates]
        known = [(state, computed) for state, computed in known if computed in ring]
        if not known:
            break
        held, root = known[0]
    return found[::-1]


def _root_of(held: Mapping[str, tuple[int, ...]]) -> str:
    names = ("balance", "industrial")
    return ledger_root(
        [
            {"provider": name, **dict(zip(names, numbers, strict=False))}
            for name, numbers in held.items()
        ]
    )
