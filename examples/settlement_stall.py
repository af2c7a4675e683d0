"""A disk fills up: one node goes on matching work, and no settlement lands for 59 minutes.

Two nodes. From 10:23 node-a cannot keep receipts, until its disk is made larger at 11:22. What the
report must get right:

* SLAs go on being resolved, so audit log and roots go on changing while the metric stands still;
* node-b settles all the time, and so does the sum of both;
* node-a has no demand from 10:06 to 10:16, node-b from 10:58 to 11:08: pauses, not stalls;
* node-b is restarted at 10:31 and cannot be scraped for four minutes from 10:40;
* node-b rehearses: its dry runs are no demand;
* an operator turns node-a to dryrun and back, long after the onset;
* the industrial lane falls silent, not slow, while jobs starve in it;
* violations go on and burns stop; three debits are refused, and the buyers refunded all the same;
* three audit entries are lost in a gap, and the ring has dropped the oldest;
* a provider, a label and a log line hold markup, terminal codes and bidi controls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from standin_replies import root_of

from examples.history import History, born, counter, restarted, unseen

DAY = datetime(2026, 11, 20, tzinfo=UTC)


def at(hour: int, minute: int, second: int = 0) -> float:
    return DAY.replace(hour=hour, minute=minute, second=second).timestamp()


START, END = at(8, 20), at(11, 40)
BEGAN, MENDED = at(10, 23), at(11, 22)
DRY = at(10, 49), at(10, 52)
LANE_SILENT = at(10, 27)
BURNS_STOPPED = at(10, 46)
PAUSE_A, PAUSE_B = (at(10, 6), at(10, 16)), (at(10, 58), at(11, 8))
RESTARTED, GAP = at(10, 31), (at(10, 40), at(10, 44))
ASKED = at(11, 30)
LOST = (at(10, 2), 3)  # from when on, and how many audit entries
HOSTILE = "prov-<img src=x onerror=alert(1)>\u202egnp"
POOR = "prov-poor"
REFUSED = ((at(10, 35), 12), (at(10, 51), 9), (at(11, 6), 16))

PARAMETERS: dict[str, Any] = {
    "incident_id": "example-settlement-stall",
    "kind": "settlement_stall",
    "title": "No settlement lands on one node while its disk is full",
    "start": "2026-11-20T10:00:00Z",
    "end": "2026-11-20T11:30:00Z",
    "baseline_start": "2026-11-20T08:30:00Z",
    "baseline_end": "2026-11-20T10:00:00Z",
    "step": "30s",
    "sources": {
        "dumps": {"type": "logs", "path": "examples/dumps-settlement"},
        "node-a": {"type": "jsonrpc", "url": "http://127.0.0.1:3230"},
        "node-a-logs": {"type": "logs", "url": "http://127.0.0.1:3230"},
        "prometheus": {"type": "prometheus", "url": "http://127.0.0.1:9290"},
    },
    "thresholds": {},
    "timeline": [
        {"time": "2026-11-20T10:44:00Z", "event": "detected", "author": "on-call",
         "text": "paged by SettlementsStopped"},
        {"time": "2026-11-20T10:49:00Z", "event": "acknowledged", "author": "on-call",
         "text": "node-a turned to dryrun and back, to no effect"},
        {"time": "2026-11-20T11:22:00Z", "event": "mitigated", "author": "operator",
         "text": "the disk of node-a was made larger"},
        {"time": "2026-11-20T11:28:00Z", "event": "resolved", "author": "on-call", "text": ""},
    ],
    "notes": "An invented incident, collected for real from a Prometheus and a stand-in node.",
}  # fmt: skip

RULES = """\
groups:
  - name: site
    rules:
      - alert: SettlementsStopped
        expr: increase(settle_applied_total[10m]) == 0
        for: 10m
        labels: {severity: page}
        annotations: {summary: "No settlement lands"}
"""


# --- what node-a did -----------------------------------------------------------------------


@dataclass
class Ledger:
    """Balances, the audit log and the roots, as a node keeps them."""

    balances: dict[str, int] = field(default_factory=dict)
    audit: list[dict[str, Any]] = field(default_factory=list)
    roots: list[str] = field(default_factory=list)
    sla: list[dict[str, Any]] = field(default_factory=list)

    def write(self, time: float, entity: str, memo: str, delta: int = 0) -> None:
        had = self.balances.get(entity, 0)
        row = {"sequence": 3000 + len(self.audit), "timestamp": int(time), "entity": entity}
        self.audit.append({**row, "memo": memo, "delta": delta, "balance": had + delta})
        if delta:
            self.balances[entity] = had + delta
            self.roots.insert(0, root_of(self.balances))

    def anchor(self, time: float) -> None:
        self.write(time, "__anchor__", "anchor")
        self.audit[-1] |= {"anchor": root_of({"anchor": int(time)})}

    def resolve(
        self, time: float, provider: str, buyer: str, reason: str, paid: int, refund: int
    ) -> None:
        """An SLA that was completed (no reason), cancelled, or violated."""
        violated = reason and not reason.startswith("client")
        outcome = "violated" if violated else "cancelled" if reason else "completed"
        if violated:
            memo = f"sla_violation_{reason}" + ("" if paid else "_failed")
            self.write(time, provider, memo, -paid)
            self.write(time, buyer, "sla_consumer_refund", refund)
        else:
            self.write(time, provider, f"sla_{outcome}" + (f"_{reason}" if reason else ""))
        row = {"job_id": f"job-{len(self.sla)}", "provider": provider, "buyer": buyer}
        row |= {"outcome": outcome, "burned": paid, "refunded": refund, "proofs": []}
        row |= {"deadline": int(time) - 60, "resolved_at": int(time)}
        self.sla.append({**row, "outcome_reason": reason} if reason else row)


@dataclass
class NodeA:
    """Everything that happened on node-a, in unix seconds."""

    ledger: Ledger = field(default_factory=Ledger)
    matches: list[tuple[float, str, bool]] = field(default_factory=list)  # lane, dry run
    settled: list[float] = field(default_factory=list)
    violations: list[tuple[float, str, int]] = field(default_factory=list)  # provider, burned


def moments(rng: np.random.Generator, per_min: float) -> Iterator[float]:
    time = START
    while (time := time + rng.exponential(60.0 / per_min)) < END:
        yield float(time)


@cache
def node_a() -> NodeA:
    rng = np.random.default_rng(20261123)
    node = NodeA()
    ledger = node.ledger
    for name, balance in (("prov-a", 12_000), ("prov-b", 9_000), (HOSTILE, 3_000)):
        ledger.write(START, name, "accrue", balance)
    for name in ("buyer-1", "buyer-2"):
        ledger.write(START, name, "accrue", 20_000)
    acts: list[tuple[float, str, Any]] = [(time, "refused", n) for time, n in REFUSED]
    acts += [(float(time), "anchor", None) for time in np.arange(START + 600, ASKED, 1200)]
    for lane, per_min in (("consumer", 0.9), ("industrial", 0.5)):
        for time in moments(rng, per_min):
            silent = lane == "industrial" and LANE_SILENT <= time < MENDED
            if silent or PAUSE_A[0] <= time < PAUSE_A[1]:
                continue
            node.matches.append((time, lane, DRY[0] <= time < DRY[1]))
            if not BEGAN - 20 <= time < MENDED:
                acts.append((time + float(rng.uniform(5, 20)), "settle", None))
    for time in moments(rng, 0.55):
        if time >= BEGAN or rng.random() < 0.6:
            acts.append((time, "sla", None))
    for time, what, amount in sorted(acts, key=lambda act: act[0]):
        provider = str(rng.choice(["prov-a", "prov-b", HOSTILE], p=[0.5, 0.4, 0.1]))
        buyer, worth = str(rng.choice(["buyer-1", "buyer-2"])), int(rng.integers(4, 30))
        if time >= ASKED:
            continue
        if what == "anchor":
            ledger.anchor(time)
        elif what == "refused":
            ledger.resolve(time, POOR, buyer, "proof_latency_budget", 0, amount)
        elif what == "settle":
            memo = str(rng.choice(["accrue", "accrue_split", "spend", "refund_split"]))
            who, delta = (buyer, -worth) if memo == "spend" else (provider, worth)
            ledger.write(time, who if memo != "refund_split" else buyer, memo, delta)
            node.settled.append(time)
        elif (late := BEGAN + 300 <= time < MENDED) and rng.random() < 0.75:
            ledger.resolve(time, provider, buyer, "deadline_missed", 25, 7)
            node.violations.append((time, provider, 0 if time >= BURNS_STOPPED else 25))
        elif not late and rng.random() < 0.15:
            ledger.resolve(time, provider, buyer, "runtime_overage", 10, 3)
            node.violations.append((time, provider, 10))
        else:
            reason = "client" if rng.random() < 0.2 else ""
            ledger.resolve(time, provider, buyer, reason, 0, 0)
    return node


# --- what Prometheus scraped ---------------------------------------------------------------


def history() -> str:
    rng = np.random.default_rng(20261120)
    past = History(DAY.replace(hour=8, minute=20), DAY.replace(hour=11, minute=40))
    _node_a(past, rng)
    _node_b(past, rng)
    times = past.times()
    told = (("pending", at(10, 32), at(10, 42)), ("firing", at(10, 42), at(11, 23)))
    for state, start, end in told:
        labels = {"alertname": "SettlementsStopped", "alertstate": state, "severity": "page"}
        labels |= {"instance": "node-a:9898", "job": "the_block"}
        inside = (times >= start) & (times < end)
        past.add("ALERTS", labels, times[inside], np.ones(inside.sum()))
    return past.text()


def happened(times: np.ndarray, when: list[float], worth: list[float] | None = None) -> np.ndarray:
    """A counter of things that happened at known moments."""
    order = np.argsort(when)
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(worth or [1.0] * len(when))[order])])
    return sums[np.searchsorted(np.asarray(when)[order], times, side="right")]


def _node_a(past: History, rng: np.random.Generator) -> None:
    target, times = {"instance": "node-a:9898", "job": "the_block"}, past.times(3.2)
    node, bad = node_a(), (times >= BEGAN) & (times < MENDED)

    def add(name: str, values: np.ndarray, **labels: str) -> None:
        past.add(name, {**target, **labels}, times, values)

    add("up", np.ones(len(times)))
    add("process_start_time_seconds", np.full(len(times), at(5, 0)))
    add("block_mined_total", counter(times, 58.0, rng, 12_000.0))
    add("settle_applied_total", 52_100 + happened(times, node.settled))
    for lane, dry in (("consumer", False), ("industrial", False), ("consumer", True)):
        when = [t for t, of, rehearsed in node.matches if (of, rehearsed) == (lane, dry)]
        values = happened(times, when)
        add("matches_total", born(values), lane=lane, dry_run=str(dry).lower())
        if not dry:
            add("match_loop_latency_seconds_count", 900 + values, lane=lane)
            add("match_loop_latency_seconds_sum", 41.5 + values * 0.041, lane=lane)
    add("settle_failed_total", 7 + counter(times, np.where(bad, 0.9, 0.02), rng), reason="spend")
    add("settle_failed_total", born(happened(times, [at(10, 41), at(10, 57)])), reason="penalize")
    add("settle_mode_change_total", born(happened(times, [DRY[0]])), to="dryrun")
    add("settle_mode_change_total", 1 + happened(times, [DRY[1]]), to="armed")
    add("receipt_persist_fail_total", born(counter(times, np.where(bad, 1.1, 0.0), rng)))
    for provider in ("prov-a", "prov-b", HOSTILE):
        when = [t for t, of, _ in node.violations if of == provider]
        add("compute_sla_violations_total", born(happened(times, when)), provider=provider)
    add("compute_sla_violations_total", np.zeros(len(times)), provider="__")
    when, burned = [t for t, _, _ in node.violations], [float(b) for _, _, b in node.violations]
    add("compute_sla_automated_slash_total", born(happened(times, when)))
    add("slashing_burn_total", 610 + happened(times, when, burned))
    backlog = np.clip((np.minimum(times, MENDED) - BEGAN) / 60 * 0.9, 0, None)
    drained = np.clip((times - MENDED) / 60 * 9, 0, 53)
    pending = np.clip(np.round(rng.integers(0, 4, len(times)) + backlog - drained), 0, None)
    add("compute_sla_pending_total", pending)
    deadline = np.where(bad & (times > BEGAN + 480), BEGAN + 480, times + 300)
    add("compute_sla_next_deadline_ts", np.where(pending == 0, 0, np.round(deadline)))


def _node_b(past: History, rng: np.random.Generator) -> None:
    target, times = {"instance": "node-b:9898", "job": "the_block"}, past.times(9.7)

    def add(name: str, values: np.ndarray, **labels: str) -> None:
        gauge = name.startswith("compute_sla_") and "violations" not in name
        values = values if gauge else restarted(times, values, RESTARTED)
        past.add(name, {**target, **labels}, times, unseen(times, values, *GAP))

    past.add("up", target, times, np.where((times >= GAP[0]) & (times < GAP[1]), 0.0, 1.0))
    begun = np.where(times < RESTARTED, at(5, 0), RESTARTED)
    past.add("process_start_time_seconds", target, times, unseen(times, begun, *GAP))
    add("block_mined_total", counter(times, 58.0, rng, 12_000.0))
    busy = np.where((times >= PAUSE_B[0]) & (times < PAUSE_B[1]), 0.0, 1.0)
    for lane, per_min in (("consumer", 2.0), ("industrial", 1.2)):
        values = counter(times, per_min * busy, rng, 700.0)
        add("matches_total", values, lane=lane, dry_run="false")
        add("match_loop_latency_seconds_count", values, lane=lane)
        add("match_loop_latency_seconds_sum", values * 0.038, lane=lane)
    add("matches_total", counter(times, 4.0, rng, 90.0), lane="consumer", dry_run="true")
    add("settle_applied_total", counter(times, 3.2 * busy, rng, 8000.0))
    add("compute_sla_pending_total", rng.integers(0, 3, len(times)).astype(float))
    add("compute_sla_next_deadline_ts", np.zeros(len(times)))
    add("compute_sla_violations_total", counter(times, 0.1, rng), provider="prov-b")
    add("slashing_burn_total", 10 * counter(times, 0.1, rng))
    add("settle_mode_change_total", born(happened(times, [at(10, 18)])), to="armed")


# --- what node-a said and remembers --------------------------------------------------------


def log_rows() -> list[dict[str, Any]]:
    """What the log store of node-a holds, as `/logs/search` tells it: messages, no fields."""
    rng = np.random.default_rng(1120)
    rows: list[dict[str, Any]] = []

    def say(time: float, level: str, message: str) -> None:
        row = {"timestamp": int(time), "level": level, "message": message}
        rows.append({**row, "correlation_id": "", "peer": None, "tx": None, "block": None})

    for time, _, _ in node_a().matches:
        say(time, "INFO", "match")
    for time in np.arange(BEGAN, MENDED, 60.0):
        said = "receipt insert failed: No space left on device (os error 28)"
        say(time + rng.uniform(0, 50), "ERROR", said)
    for time in np.arange(BEGAN + 30, MENDED, 300.0):
        say(time, "ERROR", "persist settlement state")
    say(at(10, 40), "ERROR", "append compute anchor audit")
    say(
        at(10, 33, 20),
        "ERROR",
        "receipt insert failed: </script><img src=x onerror=alert(document.domain)> "
        "[click](javascript:alert(1)) \x1b]8;;http://evil.example\x1b\\link\x1b[31m\x1b[2J "
        "\u202etxt.exe",
    )
    rows.sort(key=lambda row: int(row["timestamp"]))
    return rows


def write_dumps(folder: Path) -> None:
    """What node-a wrote itself: JSON of its own form, one line torn and one no text at all."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, time in enumerate(np.arange(LANE_SILENT + 150, MENDED, 120.0)):
        fields = {"lane": "industrial", "job": f"job-i{number // 4}"}
        fields |= {"waited": 150 + 120 * number, "message": "lane starvation"}
        when = datetime.fromtimestamp(time, UTC).isoformat()
        target = "the_block::compute_market::matcher"
        lines.append({"timestamp": when, "level": "WARN", "fields": fields, "target": target})
    target = "the_block::compute_market"
    for time, lane, dry in node_a().matches:
        if START + 3600 <= time < ASKED:
            fields = {"message": "match", "lane": lane, "dry": dry, "price": 9}
            when = datetime.fromtimestamp(time, UTC).isoformat()
            lines.append({"timestamp": when, "level": "INFO", "fields": fields, "target": target})
    lines.sort(key=lambda line: str(line["timestamp"]))
    text = [json.dumps(line) for line in lines]
    text[7] = text[7][: len(text[7]) // 2]
    tail = b'\n{"level":"warn","message":"\xff\xfe not text"}\n'
    (folder / "node-a.jsonl").write_bytes("\n".join(text).encode() + tail)


def node_state() -> dict[str, Any]:
    """What node-a remembers when it is asked."""
    ledger = node_a().ledger
    lost, many = LOST
    first = next(i for i, row in enumerate(ledger.audit) if row["timestamp"] >= lost)
    recent = [t for t, lane, _ in node_a().matches if lane == "consumer" and t < ASKED][-2:]
    return {
        "balances": ledger.balances,
        "audit": ledger.audit[:first] + ledger.audit[first + many :],
        "roots": ledger.roots[:32],
        "sla_history": ledger.sla,
        "settlement_mode": "armed",
        "market": {
            "lanes": [
                {"lane": "consumer", "bids": 0, "asks": 3, "oldest_bid_wait_ms": None,
                 "oldest_ask_wait_ms": 9000}
            ],
            "recent_matches": {
                "consumer": [
                    {"job_id": f"job-c{n}", "provider": "prov-a", "buyer": "buyer-1", "price": 9,
                     "issued_at": int(time), "lane": "consumer"}
                    for n, time in enumerate(recent)
                ]
            },
        },
        "logs": log_rows(),
    }  # fmt: skip
