"""What one must know about The-Block to read it: peer ids, two generations of names, the root.

Generation A is what its runbooks describe, B is its HEAD of January 2026; builds in between mix
their names. Everything here gives names of B, whichever came in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import base58
import pandas as pd
from blake3 import blake3

from tbforensics.model import Json

_HEX_DIGITS = 64
_HEX_KEY = re.compile(rf"[0-9a-fA-F]{{{_HEX_DIGITS}}}")
_LONGEST_BASE58 = 50  # 36 bytes never take more digits
_CHECKSUM_BYTES = 4


# --- peer ids ----------------------------------------------------------------------------


def peer_hex(text: str) -> str | None:
    """The 64 hex digits of a peer's key, from either spelling; None for anything else.

    Metrics, `net.quic_stats` and log lines spell a peer in hex; handshake failures, peer
    statistics and the aggregator in base58 of the key and the first 4 bytes of its BLAKE3.
    """
    return _peer_hex(text) if len(text) <= _HEX_DIGITS else None


@lru_cache(maxsize=65_536)
def _peer_hex(text: str) -> str | None:
    if _HEX_KEY.fullmatch(text):
        return text.lower()
    if not 0 < len(text) <= _LONGEST_BASE58:
        return None
    try:
        raw = base58.b58decode(text.encode("ascii"))
    except ValueError:
        return None
    key, checksum = raw[:32], raw[32:]
    if len(raw) != 32 + _CHECKSUM_BYTES or _checksum(key) != checksum:
        return None
    return bytes(key).hex()


def peer_base58(hex_key: str) -> str:
    """The base58 spelling of a peer's key. ValueError when that is not 64 hex digits."""
    if not _HEX_KEY.fullmatch(hex_key):
        raise ValueError(f"not a peer key of 64 hex digits: {hex_key[:80]!r}")
    key = bytes.fromhex(hex_key)
    return base58.b58encode(key + _checksum(key)).decode("ascii")


def _checksum(key: bytes) -> bytes:
    return blake3(key).digest()[:_CHECKSUM_BYTES]


# --- the settlement root -----------------------------------------------------------------


def ledger_root(providers: Sequence[Mapping[str, Json]]) -> str:
    """The settlement root over the rows of `compute_market.provider_balances`.

    A leaf is BLAKE3 of the name and the balance (u64, little-endian), and of the industrial
    balance where the ledger still has two. Sorted leaves are folded from 32 zero bytes.
    Errors: KeyError, TypeError or OverflowError when a row is no balance.
    """
    leaves = []
    for row in providers:
        leaf = row["provider"].encode() + row["balance"].to_bytes(8, "little")
        if "industrial" in row:
            leaf += row["industrial"].to_bytes(8, "little")
        leaves.append(blake3(leaf).digest())
    root = bytes(32)
    for leaf in sorted(leaves):
        root = blake3(root + leaf).digest()
    return root.hex()


# --- words -------------------------------------------------------------------------------

HANDSHAKE_REASONS = (
    *("tls", "version", "timeout", "certificate", "other"),
    *("fingerprint_mismatch", "protocol", "feature"),
)
DROP_REASONS = ("rate_limit", "malformed", "blacklist", "duplicate", "too_busy", "other")
OUTCOMES = ("completed", "cancelled", "violated")
OUTCOME_REASONS = (
    *("deadline_missed", "runtime_overage", "proof_latency_budget", "provider", "provider_fault"),
    *("client", "client_timeout", "preempted"),
)
MODES = ("dryrun", "armed", "real")
STATUSES = ("open", "passed", "rejected", "activated", "rolled_back")


def word(text: str, known: Sequence[str] = ()) -> str:
    """An enum value in lower snake case, whatever case and underscores it came with."""
    squashed = text.lower().replace("_", "").replace("-", "")
    for candidate in known:
        if candidate.replace("_", "") == squashed:
            return candidate
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text.strip()).replace("-", "_").lower()


def param_key(text: str) -> str:
    """A governance parameter's name as B's metrics spell it: `BetaStorageSubCt` and
    `beta_storage_sub_ct` are both `beta_storage_sub`."""
    return without_ct(word(text))


def without_ct(name: str) -> str:
    """A name of generation A as B spells it: without the unit of money that B dropped."""
    return re.sub(r"_ct(?=_|$)", "", name)


_METRICS_WITH_CT = (
    "rent_escrow_locked_ct_total",
    "rent_escrow_refunded_ct_total",
    "rent_escrow_burned_ct_total",
    "slashing_burn_ct_total",
)


def metric_spellings(name: str) -> tuple[str, ...]:
    """Every name under which a metric may be exposed, B's first."""
    for old in _METRICS_WITH_CT:
        if name in (old, without_ct(old)):
            return without_ct(old), old
    return (name,)


# --- JSON-RPC results --------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """What to do with an object, or with each object of a list.

    names:    generation A's field name, and B's.
    only_b:   fields that no build of A has.
    optional: fields that A leaves out and B sends as null; null in both cases here.
    words:    enum fields and their known values.
    counts:   fields that are {enum value: number}.
    peers:    fields that hold a peer id.
    within:   shapes of the objects below; "*" stands for every key.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    only_b: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    peers: tuple[str, ...] = ()
    within: Mapping[str, _Shape] = field(default_factory=dict)
    peer_keys: bool = False


_PEER = _Shape(
    optional=("throttle_reason",),
    counts={"handshake_fail": HANDSHAKE_REASONS, "drops": DROP_REASONS},
)
_PENDING = _Shape(words={"priority": ()})
_SHAPES: Mapping[str, _Shape] = {
    "inflation.params": _Shape(
        names={
            "beta_storage_sub_ct": "beta_storage_sub",
            "gamma_read_sub_ct": "gamma_read_sub",
            "kappa_cpu_sub_ct": "kappa_cpu_sub",
            "lambda_bytes_out_sub_ct": "lambda_bytes_out_sub",
            "rent_rate_ct_per_byte": "rent_rate_per_byte",
        }
    ),
    "stake.role": _Shape(),
    "net.quic_stats": _Shape(
        optional=("address", "latency_ms", "fingerprint", "provider"), peers=("peer_id",)
    ),
    "net.handshake_failures": _Shape(
        within={"failures": _Shape(words={"reason": HANDSHAKE_REASONS}, peers=("peer",))}
    ),
    "net.peer_stats": _PEER,
    "net.peer_stats_export": _PEER,
    "net.peer_stats_all": _Shape(peers=("peer_id",), within={"metrics": _PEER}),
    "net.peer_stats_export_all": _Shape(peer_keys=True, within={"*": _PEER}),
    "net.overlay_status": _Shape(optional=("database_path",), words={"backend": ()}),
    # The industrial part stays beside the balance: the root of a ledger with two covers both.
    "compute_market.provider_balances": _Shape(within={"providers": _Shape({"ct": "balance"})}),
    "compute_market.recent_roots": _Shape(),
    "compute_market.audit": _Shape(
        names={
            "delta_ct": "delta",
            "delta_it": "delta_industrial",
            "balance_ct": "balance",
            "balance_it": "balance_industrial",
        },
        optional=("anchor",),
    ),
    "compute_market.sla_history": _Shape(
        names={"burned_ct": "burned", "refunded_ct": "refunded"},
        optional=("outcome_reason",),
        words={"outcome": OUTCOMES, "outcome_reason": OUTCOME_REASONS},
        within={"proofs": _Shape(words={"backend": ()})},
    ),
    "compute_market.stats": _Shape(
        only_b=("blocktorch",),
        optional=("industrial_price_weighted", "industrial_price_base"),
        within={
            "pending": _PENDING,
            "lanes": _Shape(
                optional=("oldest_bid_wait_ms", "oldest_ask_wait_ms"), words={"lane": ()}
            ),
            "lane_starvation": _Shape(words={"lane": ()}),
            "recent_matches": _Shape(within={"*": _Shape(words={"lane": ()})}),
            "settlement_engine": _Shape(words={"engine": ()}),
        },
    ),
    "compute_market.scheduler_stats": _Shape(
        optional=("effective_price",), within={"pending": _PENDING}
    ),
    "settlement_status": _Shape(optional=("balance",), words={"mode": MODES}),
    "mempool.stats": _Shape(),
    "rent.escrow.balance": _Shape(),
    "gov.release_signers": _Shape(),
    "gov_list": _Shape(words={"status": STATUSES}),
    "gov_params": _Shape(),
    "consensus.difficulty": _Shape(),
    "metrics": _Shape(),
}
_ALIASES = {"settlement.audit": "compute_market.audit"}


def normalise(method: str, result: Json) -> tuple[Json, str]:
    """A JSON-RPC result in B's names, and the generation whose names it came in.

    "A" or "B" when every name that differs was of that generation, "mixed" when both were seen,
    "" when nothing tells them apart. What has an unexpected form is left as it came.
    """
    method = _ALIASES.get(method, method)
    shape = _SHAPES.get(method)
    if shape is None:
        return result, ""
    seen: set[str] = set()
    if reshape := _RESHAPED.get(method):
        result = reshape(result, seen)
    value = _read(shape, result, seen)
    return value, "mixed" if len(seen) == 2 else "".join(seen)


def _read(shape: _Shape, value: Json, seen: set[str]) -> Json:
    if isinstance(value, list):
        return [_read(shape, item, seen) for item in value]
    if not isinstance(value, dict):
        return value
    out: dict[str, Json] = {}
    news = {*shape.names.values(), *shape.only_b}
    for name, item in value.items():
        new = shape.names.get(name)
        if new is not None:
            seen.add("A")
            name = name if new in value else new  # a build that sends both means B's
        elif name in news:
            seen.add("B")
        out[name] = _field(shape, name, item, seen)
    for name in shape.optional:
        out.setdefault(name, None)
    if shape.peer_keys:
        return {peer_hex(name) or name: item for name, item in out.items()}
    return out


def _field(shape: _Shape, name: str, item: Json, seen: set[str]) -> Json:
    below = shape.within.get(name) or shape.within.get("*")
    if below is not None:
        return _read(below, item, seen)
    if isinstance(item, str):
        if name in shape.words:
            return word(item, shape.words[name])
        if name in shape.peers:
            return peer_hex(item) or item
    elif isinstance(item, dict):
        if name in shape.counts:
            return _counts(item, shape.counts[name])
        if name == "reputation" and "score" in item:
            return item["score"]
    return item


def _counts(counts: Mapping[str, Json], known: Sequence[str]) -> dict[str, Json]:
    """Two spellings of one word are one count."""
    out: dict[str, Json] = {}
    for name, count in counts.items():
        name = word(name, known)
        out[name] = out[name] + count if name in out else count
    return out


def _failures(result: Json, seen: set[str]) -> Json:
    """Handshake failures come as (time, peer, reason) without names."""
    if not isinstance(result, dict) or not isinstance(result.get("failures"), list):
        return result
    names = ("ts", "peer", "reason")
    return {
        **result,
        "failures": [
            dict(zip(names, row, strict=True)) if isinstance(row, list) and len(row) == 3 else row
            for row in result["failures"]
        ],
    }


def _proposals(result: Json, seen: set[str]) -> Json:
    """A governance key is in camel case here and in snake case everywhere else."""
    if not isinstance(result, list):
        return result
    out = []
    for row in result:
        if isinstance(row, dict) and isinstance(row.get("key"), str):
            if word(row["key"]) != param_key(row["key"]):
                seen.add("A")
            row = {**row, "key": param_key(row["key"])}
        out.append(row)
    return out


def _params(result: Json, seen: set[str]) -> Json:
    """A sends the parameters flat, B under `params`."""
    if not isinstance(result, dict):
        return result
    if isinstance(result.get("params"), dict):
        seen.add("B")
        flat = result["params"]
        rest = {name: item for name, item in result.items() if name != "params"}
    else:
        seen.add("A")
        flat = {name: item for name, item in result.items() if name != "epoch"}
        rest = {name: item for name, item in result.items() if name == "epoch"}
    if any(name != without_ct(name) for name in flat):
        seen.add("A")
    return {**rest, "params": {without_ct(name): item for name, item in flat.items()}}


_RESHAPED = {
    "net.handshake_failures": _failures,
    "gov_list": _proposals,
    "gov_params": _params,
}
METHODS = (*_SHAPES, *_ALIASES)

# Without one of these parameters a method answers -32602 and tells nothing.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "stake.role": ("id",),
    "net.peer_stats": ("peer_id",),
    "net.peer_stats_export": ("peer_id",),
    "rent.escrow.balance": ("id", "account"),
}
# Answered page by page: {"offset", "limit"} until a page is short.
PAGED: Mapping[str, int] = {"net.peer_stats_all": 100}


def without_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """A frame without the series that exist only to exist: label `__`, value 0 for ever."""
    keep = ["__" not in labels for labels in table.columns.to_list()]
    return table.loc[:, keep]
