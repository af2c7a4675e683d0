"""One peer's certificate expires after a rotation; another peer is just noisy.

Two nodes watch four peers. From 10:21 every handshake of the first peer fails with `certificate`,
until its operator installs a good one at 11:03. What the report must get right:

* the second peer fails all the time, by timeouts, and has nothing to do with it;
* the same failures are counted in three families, in two spellings of the peer's id;
* node-b is restarted at 10:41, so its counters begin again;
* node-a cannot be scraped for three minutes from 10:48;
* a log line and a label hold markup, terminal codes and bidi controls;
* a dump holds lines that cannot be read;
* an alert for just this can never fire: it asks for a reason in another spelling.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from examples.history import History, born, counter, restarted, unseen
from tbforensics.theblock import peer_base58

DAY = datetime(2026, 11, 20, tzinfo=UTC)


def at(hour: int, minute: int, second: int = 0) -> float:
    return DAY.replace(hour=hour, minute=minute, second=second).timestamp()


CULPRIT, NOISY, THIRD, FOURTH = PEERS = tuple(
    bytes((37 * n + 11 * k) % 256 for k in range(32)).hex() for n in (1, 2, 3, 4)
)
BEGAN, ROTATED, MENDED = at(10, 21, 10), at(10, 20, 0), at(11, 3, 0)
RESTARTED, GAP = at(10, 41), (at(10, 48), at(10, 51))
HOSTILE = (
    "QUIC certificate validation failed: </script><img src=x onerror=alert(document.domain)> "
    "[click](javascript:alert(1)) \x1b]8;;http://evil.example\x1b\\link\x1b[31m\x1b[2J "
    "\u202etxt.exe"
)
HOSTILE_REASON = "<img src=x onerror=alert(1)>"

PARAMETERS: dict[str, Any] = {
    "incident_id": "example-quic-failure",
    "kind": "quic_failure",
    "title": "Handshakes with one peer fail after its certificate rotation",
    "start": "2026-11-20T10:00:00Z",
    "end": "2026-11-20T11:30:00Z",
    "baseline_start": "2026-11-20T08:30:00Z",
    "baseline_end": "2026-11-20T10:00:00Z",
    "step": "30s",
    "sources": {
        "dumps": {"type": "logs", "path": "examples/dumps"},
        "node": {"type": "jsonrpc", "url": "http://127.0.0.1:3030"},
        "node-logs": {"type": "logs", "url": "http://127.0.0.1:3030"},
        "prometheus": {"type": "prometheus", "url": "http://127.0.0.1:9090"},
    },
    "thresholds": {},
    "timeline": [
        {
            "time": "2026-11-20T10:37:00Z",
            "event": "detected",
            "author": "on-call",
            "text": "paged by QuicHandshakeFailures",
        },
        {"time": "2026-11-20T10:41:00Z", "event": "acknowledged", "author": "on-call",
         "text": "node-b restarted, to no effect"},
        {"time": "2026-11-20T11:03:00Z", "event": "mitigated", "author": "peer's operator",
         "text": "a good certificate was installed"},
        {"time": "2026-11-20T11:20:00Z", "event": "resolved", "author": "on-call", "text": ""},
    ],
    "notes": "An invented incident, collected for real from a Prometheus and a stand-in node.",
}  # fmt: skip

RULES = """\
groups:
  - name: site
    interval: 15s
    rules:
      - alert: QuicHandshakeFailures
        expr: sum(rate(quic_handshake_fail_total[5m])) * 60 > 20
        for: 10m
        labels: {severity: page}
        annotations: {summary: "QUIC handshakes fail"}
      - alert: QuicCertificateRejected
        expr: increase(quic_handshake_fail_total{reason="Certificate"}[5m]) > 5
        labels: {severity: page}
  - name: chain-health
    rules:
      - alert: SubsidyGrowthSpike
        expr: increase(subsidy_bytes_total[10m]) > 1e12
        for: 10m
        labels: {severity: warn}
"""


def history() -> str:
    """What Prometheus scraped, from 08:20 to 11:40."""
    rng = np.random.default_rng(20261120)
    past = History(DAY.replace(hour=8, minute=20), DAY.replace(hour=11, minute=40))
    for node, offset_s in (("node-a:9898", 3.2), ("node-b:9898", 9.7)):
        _node(past, node, past.times(offset_s), rng)
    times = past.times()
    told = (("pending", at(10, 24), at(10, 34)), ("firing", at(10, 34), at(11, 5, 45)))
    for state, start, end in told:
        labels = {"alertname": "QuicHandshakeFailures", "alertstate": state, "severity": "page"}
        inside = (times >= start) & (times < end)
        past.add("ALERTS", labels, times[inside], np.ones(inside.sum()))
    return past.text()


def _node(past: History, node: str, times: np.ndarray, rng: np.random.Generator) -> None:
    target = {"instance": node, "job": "the_block"}
    is_a = node.startswith("node-a")
    bad = (times >= BEGAN) & (times < MENDED)

    def seen(values: np.ndarray) -> np.ndarray:
        if not is_a:
            values = restarted(times, values, RESTARTED)
        return unseen(times, values, *GAP) if is_a else values

    def add(name: str, values: np.ndarray, **labels: str) -> None:
        past.add(name, {**target, **labels}, times, seen(values))

    up = np.ones(len(times))
    if is_a:
        up[(times >= GAP[0]) & (times < GAP[1])] = 0
    past.add("up", target, times, up)
    begun = np.where((times < RESTARTED) | is_a, at(5, 0), RESTARTED)
    if is_a:
        begun = unseen(times, begun, *GAP)
    past.add("process_start_time_seconds", target, times, begun)

    share = 1.0 if is_a else 0.4
    cert = counter(times, np.where(bad, 26.0 * share, 0.02), rng)
    timeouts = counter(times, 1.1 * share, rng)
    third = counter(times, 0.1, rng)
    odd = counter(times, np.where(bad, 0.3, 0.0), rng)
    for peer, reason, values in (
        (CULPRIT, "certificate", cert),
        (NOISY, "timeout", timeouts),
        (THIRD, "tls", third),
        (FOURTH, HOSTILE_REASON, odd),
    ):
        add("quic_handshake_fail_total", born(values), peer=peer, reason=reason)
        add("net_peer_handshake_fail_total", born(values), peer_id=peer_base58(peer), reason=reason)
    add("quic_handshake_fail_total", np.zeros(len(times)), peer="__", reason="__")
    for reason, values in (("certificate", cert), ("timeout", timeouts), ("tls", third)):
        add("handshake_fail_total", born(values), reason=reason)
    add("net_peer_tls_error_total", born(cert), peer_id=peer_base58(CULPRIT))
    for number, peer in enumerate(PEERS):
        rate = np.where(bad & (peer == CULPRIT), 0.5, 14.0 + 3 * number)
        add("quic_handshake_success_total", counter(times, rate, rng, 4000.0), peer=peer)
    add("quic_retransmit_total", counter(times, np.where(bad, 190.0, 42.0) * share, rng, 9e4))
    add("quic_bytes_sent_total", counter(times, 4.1e5 * share, rng, 8e8))
    add("quic_bytes_recv_total", counter(times, 3.6e5 * share, rng, 7e8))
    add("quic_endpoint_reuse_total", counter(times, 21.0 * share, rng, 2e4))
    add("quic_provider_connect_total", counter(times, 60.0 * share, rng, 5e4), provider="quinn")
    add("quic_fallback_tcp_total", born(counter(times, np.where(bad, 9.0 * share, 0.05), rng)))
    add("quic_disconnect_total", counter(times, np.where(bad, 3.0, 1.0), rng, 300.0), code="0")
    rotated = (times >= ROTATED).astype(float)
    add("quic_cert_rotation_total", born(rotated), peer=CULPRIT)
    add("peer_drop_total", counter(times, 0.4, rng, 50.0), peer_id=peer_base58(NOISY),
        reason="rate_limit")  # fmt: skip
    add("peer_drop_total", np.zeros(len(times)), peer_id="__", reason="__")
    add("log_correlation_fail_total", born(counter(times, np.where(bad, 0.2, 0.0), rng)))


def log_rows() -> list[dict[str, Any]]:
    """What the node's own log store holds, oldest first, as `/logs/search` tells it."""
    rng = np.random.default_rng(1120)
    rows: list[dict[str, Any]] = []

    def say(time: float, level: str, message: str, peer: str | None, correlation: str = "") -> None:
        rows.append(
            {
                "timestamp": int(time),
                "level": level,
                "message": message,
                "correlation_id": correlation,
                "peer": peer,
                "tx": None,
                "block": None,
            }
        )

    for time in np.arange(at(8, 25), at(11, 35), 40.0):
        say(time + rng.uniform(0, 30), "INFO", f"match #{int(time) % 997}", None)
    for time in np.arange(at(8, 25), at(11, 35), 300.0):
        say(time + rng.uniform(0, 200), "ERROR", "quic_connect_fail", NOISY)
    for number, time in enumerate(np.arange(BEGAN, MENDED, 22.0)):
        correlation = f"deadbeef{number:08x}"
        moment = time + rng.uniform(0, 20)
        say(moment, "WARN", "QUIC certificate validation failed", CULPRIT, correlation)
        if number % 4 == 0:
            say(moment + 1, "WARN", "quic certificate rejected; continuing with tcp only",
                peer_base58(CULPRIT), correlation)  # fmt: skip
    say(at(10, 30, 30), "WARN", HOSTILE, CULPRIT, "deadbeef00000bad")
    rows.sort(key=lambda row: row["timestamp"])
    return rows


def write_dumps(folder: Path) -> None:
    """Files that the aggregator and the node left behind, some lines torn."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"quic_handshake_fail_total_{peer_base58(CULPRIT)}_deadbeef00000003"
    dump = [row for row in log_rows() if row["correlation_id"] == "deadbeef00000003"]
    numbered = [{"id": 700 + n, **row} for n, row in enumerate(dump)]
    (folder / f"{name}_{int(at(10, 23))}.json").write_text(json.dumps(numbered))
    lines = [
        json.dumps(
            {
                "timestamp": datetime.fromtimestamp(at(10, minute), UTC).isoformat(),
                "level": "error",
                "fields": {"message": "quic_connect_fail", "reason": "certificate"},
                "target": "the_block::net::quic",
            }
        )
        for minute in range(0, 60, 2)
    ]
    lines[7] = lines[7][: len(lines[7]) // 2]
    text = "\n".join(lines).encode() + b'\n{"level":"error","message":"\xff\xfe not text"}\n'
    (folder / "node-a.jsonl").write_bytes(text)


def node_state() -> dict[str, Any]:
    """What the node remembers when it is asked: the ring, the peers, QUIC itself."""
    rng = np.random.default_rng(128)
    ring = sorted(
        [(int(t), CULPRIT, "certificate") for t in rng.uniform(at(10, 59), MENDED, 104)]
        + [(int(t), NOISY, "timeout") for t in rng.uniform(at(10, 59), at(11, 28), 24)]
    )
    return {
        "quic_stats": [
            {
                "peer_id": peer,
                "address": f"10.0.0.{number}:9000",
                "latency_ms": 30 + 7 * number,
                "fingerprint": f"{number:02x}" * 32,
                "provider": "quinn",
                "retransmits": 400 if peer == CULPRIT else 40 * number,
                "endpoint_reuse": 20 * number,
                "handshake_failures": {CULPRIT: 1490, NOISY: 210}.get(peer, 19),
                "last_updated": int(at(11, 29)),
            }
            for number, peer in enumerate(PEERS, start=1)
        ],
        "handshake_failures": ring,
        "logs": log_rows(),
    }
