"""What a stand-in node holds, and how each generation of The-Block spells it.

State is plain data in the names of generation B; `spell` writes it as A or B would. It does not
use the tables of `tbforensics.theblock`, so that a mistake there is not repeated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import base58
from blake3 import blake3

Json = Any


def peer_key(seed: str) -> str:
    """A peer's key in hex, the same for the same seed."""
    return blake3(seed.encode()).hexdigest()


def in_base58(hex_key: str) -> str:
    key = bytes.fromhex(hex_key)
    return base58.b58encode(key + blake3(key).digest()[:4]).decode()


def root_of(balances: dict[str, int | tuple[int, int]]) -> str:
    """Settlement root; a pair is a ledger of two balances."""
    leaves = []
    for name, balance in balances.items():
        parts = balance if isinstance(balance, tuple) else (balance,)
        leaves.append(blake3(name.encode() + b"".join(p.to_bytes(8, "little") for p in parts)))
    root = bytes(32)
    for leaf in sorted(leaf.digest() for leaf in leaves):
        root = blake3(root + leaf).digest()
    return root.hex()


@dataclass
class NodeState:
    """Everything that a stand-in node answers from. Change it while the node runs if you like.

    handshake_failures: (unix s, peer in hex, reason in snake case), oldest first; 128 are kept.
    peer_stats: metrics by peer in hex, without `reputation` as an object: a number here.
    balances:   by account; a pair (ct, industrial) makes A's ledger of two.
    roots:      newest first; None computes one from the balances at each question.
    audit, sla_history: oldest first, the last 256 are kept. An audit row may say `delta` and
                `balance`, and for A `delta_industrial` and `balance_industrial` too.
    logs:       rows as ingested: timestamp, level, message and what else there is; ids are given
                in this order. None: the node has no log store.
    log_passphrase: what opens the messages; None when they are not encrypted.
    """

    inflation: dict[str, int] = field(
        default_factory=lambda: {
            "beta_storage_sub": 50,
            "gamma_read_sub": 20,
            "kappa_cpu_sub": 10,
            "lambda_bytes_out_sub": 5,
            "rent_rate_per_byte": 0,
            "industrial_multiplier": 100,
            "industrial_backlog": 0,
            "industrial_utilization": 0,
        }
    )
    stakes: dict[tuple[str, str], int] = field(default_factory=dict)
    quic_stats: list[dict[str, Json]] = field(default_factory=list)
    handshake_failures: list[tuple[int, str, str]] = field(default_factory=list)
    peer_stats: dict[str, dict[str, Json]] = field(default_factory=dict)
    overlay: dict[str, Json] = field(
        default_factory=lambda: {
            "backend": "inhouse",
            "active_peers": 0,
            "persisted_peers": 0,
            "database_path": None,
        }
    )
    balances: dict[str, int | tuple[int, int]] = field(default_factory=dict)
    roots: list[str] | None = None
    audit: list[dict[str, Json]] = field(default_factory=list)
    sla_history: list[dict[str, Json]] = field(default_factory=list)
    market: dict[str, Json] = field(default_factory=dict)
    scheduler: dict[str, Json] = field(default_factory=dict)
    settlement_mode: str = "dryrun"
    mempool: dict[str, dict[str, int]] = field(default_factory=dict)
    escrow: dict[str, int] = field(default_factory=dict)
    release_signers: dict[str, Json] = field(
        default_factory=lambda: {"signers": [], "threshold": 1}
    )
    proposals: list[dict[str, Json]] = field(default_factory=list)
    params: dict[str, int] = field(default_factory=dict)
    difficulty: int = 1
    metrics: str = ""
    logs: list[dict[str, Json]] | None = None
    log_passphrase: str | None = None


class BadParams(Exception):
    """Answered with -32602 and this text."""


def peer_metrics(metrics: dict[str, Json]) -> dict[str, Json]:
    """Statistics of one peer with everything that the state left out."""
    filled: dict[str, Json] = dict.fromkeys(
        (
            *("requests", "bytes_sent", "sends", "handshake_success", "last_handshake_ms"),
            *("tls_errors", "last_updated", "backoff_level", "sec_start", "throttled_until"),
        ),
        0,
    )
    filled |= {"drops": {}, "handshake_fail": {}, "req_avg": 0.0, "byte_avg": 0.0}
    filled |= {"throttle_reason": None, "reputation": 1.0, **metrics}
    return {**filled, "reputation": {"score": filled["reputation"]}}


def one_peer(metrics: dict[str, Json]) -> dict[str, Json]:
    names = (
        *("requests", "bytes_sent", "drops", "handshake_fail", "reputation"),
        *("throttle_reason", "throttled_until"),
    )
    filled = peer_metrics(metrics)
    return {name: filled[name] for name in names} | {"reputation": filled["reputation"]["score"]}


# --- spelling ----------------------------------------------------------------------------

_CT = ("beta_storage_sub", "gamma_read_sub", "kappa_cpu_sub", "lambda_bytes_out_sub")


def title(text: str) -> str:
    """`rate_limit` as B's enums come out: `RateLimit`."""
    return "".join(part.capitalize() for part in text.split("_"))


def _inflation(row: dict[str, Json], generation: str) -> dict[str, Json]:
    if generation == "B":
        return row
    names = {**{name: f"{name}_ct" for name in _CT}, "rent_rate_per_byte": "rent_rate_ct_per_byte"}
    return {names.get(name, name): value for name, value in row.items()}


def _optional(row: dict[str, Json], names: tuple[str, ...], generation: str) -> dict[str, Json]:
    """A leaves absent fields out, B sends them as null."""
    if generation == "B":
        return {**dict.fromkeys(names), **row}
    return {name: value for name, value in row.items() if name not in names or value is not None}


def _quic(rows: list[dict[str, Json]], generation: str) -> list[dict[str, Json]]:
    names = ("address", "latency_ms", "fingerprint", "provider")
    return [_optional(row, names, generation) for row in sorted(rows, key=lambda r: r["peer_id"])]


def _audit(rows: list[dict[str, Json]], generation: str) -> list[dict[str, Json]]:
    out = []
    for row in rows[-256:]:
        row = {key: value for key, value in row.items() if value is not None}
        two = {f"{key}_it": row.pop(f"{key}_industrial", 0) for key in ("delta", "balance")}
        if generation == "A":
            row |= {f"{key}_ct": row.pop(key) for key in ("delta", "balance")} | two
        out.append(row)
    return out


def _balances(balances: dict[str, Json], generation: str) -> dict[str, Json]:
    rows = []
    for name in sorted(balances):
        balance = balances[name]
        if generation == "B":
            rows.append({"provider": name, "balance": balance})
        else:
            ct, industrial = balance if isinstance(balance, tuple) else (balance, 0)
            rows.append({"provider": name, "ct": ct, "industrial": industrial})
    return {"providers": rows}


_MARKET: dict[str, Json] = {
    "industrial_backlog": 0,
    "industrial_utilization": 0,
    "industrial_units_total": 0,
    "industrial_price_per_unit": 0,
    "industrial_price_weighted": None,
    "industrial_price_base": None,
    "pending": [],
    "lanes": [],
    "lane_starvation": [],
    "recent_matches": {},
    "settlement_engine": {"engine": "inhouse", "legacy_mode": False},
}
_SCHEDULER: dict[str, Json] = {
    **dict.fromkeys(
        (
            *("success", "capability_mismatch", "reputation_failure", "preemptions"),
            *("active_jobs", "queued_high", "queued_normal", "queued_low", "priority_miss"),
        ),
        0,
    ),
    "utilization": {},
    "effective_price": None,
    "pending": [],
}
_MEMPOOL = dict.fromkeys(("size", "age_p50", "age_p95", "fee_p50", "fee_p90", "fee_floor"), 0)


def _given(params: dict[str, Json], name: str) -> str:
    if not isinstance(params.get(name), str):
        raise BadParams(f"missing {name}")
    return str(params[name])


def _known_peer(params: dict[str, Json], state: NodeState) -> str:
    text = _given(params, "peer_id")
    for peer in state.peer_stats:
        if text in (peer, in_base58(peer)):
            return peer
    raise BadParams("invalid params")


def _page(params: dict[str, Json], state: NodeState) -> list[Json]:
    offset, limit = int(params.get("offset", 0)), int(params.get("limit", 100))
    peers = sorted(state.peer_stats, key=in_base58)[offset : offset + limit]
    return [
        {"peer_id": in_base58(peer), "metrics": peer_metrics(state.peer_stats[peer])}
        for peer in peers
    ]


def _roots(params: dict[str, Json], state: NodeState, generation: str) -> dict[str, Json]:
    roots = state.roots
    if roots is None:
        ledger = state.balances
        if generation == "A":
            ledger = {k: v if isinstance(v, tuple) else (v, 0) for k, v in ledger.items()}
        roots = [root_of(ledger)]
    return {"roots": roots[: min(32, int(params.get("n", 1)))]}


def _sla(params: dict[str, Json], state: NodeState) -> list[Json]:
    limit = int(params.get("limit", params.get("n", 16)))
    return list(reversed(state.sla_history[-256:]))[:limit]


def _settlement(params: dict[str, Json], state: NodeState) -> dict[str, Json]:
    status: dict[str, Json] = {"mode": state.settlement_mode}
    if "provider" in params:
        balance = state.balances.get(params["provider"], 0)
        status["balance"] = balance[0] if isinstance(balance, tuple) else balance
    return status


def _proposals(state: NodeState, generation: str) -> list[Json]:
    old = {title(name): f"{title(name)}Ct" for name in _CT} if generation == "A" else {}
    return [{**row, "key": old.get(row["key"], row["key"])} for row in state.proposals]


def _params(params: dict[str, Json], state: NodeState, generation: str) -> dict[str, Json]:
    epoch = {"epoch": params.get("epoch", 0)}
    if generation == "A":
        return epoch | _inflation(state.params, "A")
    return epoch | {"params": state.params}


Answer = Callable[[dict[str, Json], NodeState, str], Json]
ANSWERS: dict[str, Answer] = {
    "inflation.params": lambda p, s, g: _inflation(s.inflation, g),
    "stake.role": lambda p, s, g: {
        "id": _given(p, "id"),
        "role": p.get("role", "validator"),
        "stake": s.stakes.get((p["id"], p.get("role", "validator")), 0),
    },
    "net.quic_stats": lambda p, s, g: _quic(s.quic_stats, g),
    "net.handshake_failures": lambda p, s, g: {
        "failures": [
            [ts, in_base58(peer), title(reason) if g == "B" else reason]
            for ts, peer, reason in s.handshake_failures[-128:]
        ]
    },
    "net.peer_stats": lambda p, s, g: one_peer(s.peer_stats[_known_peer(p, s)]),
    "net.peer_stats_all": lambda p, s, g: _page(p, s),
    "net.peer_stats_export_all": lambda p, s, g: {
        in_base58(peer): peer_metrics(m)
        for peer, m in s.peer_stats.items()
        if m.get("reputation", 1.0) >= p.get("min_reputation", 0)
    },
    "net.overlay_status": lambda p, s, g: _optional(s.overlay, ("database_path",), g),
    "compute_market.provider_balances": lambda p, s, g: _balances(s.balances, g),
    "compute_market.recent_roots": lambda p, s, g: _roots(p, s, g),
    "compute_market.audit": lambda p, s, g: _audit(s.audit, g),
    "settlement.audit": lambda p, s, g: _audit(s.audit, g),
    "compute_market.sla_history": lambda p, s, g: _sla(p, s),
    "compute_market.stats": lambda p, s, g: (
        _MARKET | s.market | ({"blocktorch": None} if g == "B" else {})
    ),
    "compute_market.scheduler_stats": lambda p, s, g: _SCHEDULER | s.scheduler,
    "settlement_status": lambda p, s, g: _settlement(p, s),
    "mempool.stats": lambda p, s, g: _MEMPOOL | s.mempool.get(str(p.get("lane", "consumer")), {}),
    "rent.escrow.balance": lambda p, s, g: {
        "balance": s.escrow.get(p["id"] if "id" in p else _given(p, "account"), 0)
    },
    "gov.release_signers": lambda p, s, g: s.release_signers,
    "gov_list": lambda p, s, g: _proposals(s, g),
    "gov_params": _params,
    "consensus.difficulty": lambda p, s, g: {"difficulty": s.difficulty},
    "metrics": lambda p, s, g: s.metrics,
}
LOOPBACK = {"net.peer_stats", "net.peer_stats_all", "net.peer_stats_export_all"}
ADMIN = {"gov_list", "gov_params"}
ONLY_B = {"compute_market.sla_history"}
