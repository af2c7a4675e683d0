"""Subsidies double: one provider floods receipts, and governance doubles what a read is worth.

Two nodes. From 10:24 the provider `prov-mallory` hands node-b six times the usual computing; at
10:36 proposal 12 sets the read multiplier from 20 to 44, while a release makes honest readers
read two fifths more; at 11:12 both end. What the report must get right:

* the published multipliers move at every epoch by noise, differ between the nodes and fall below
  zero, with no act of governance; the raw ones move once;
* volume and multiplier effect are told apart and add up;
* the inflation guard and the kill switch count epochs on two nodes: one activation each;
* the escrow's gauge is named like a counter, falls with each release, and begins again at zero
  when node-b is restarted at 10:50: nothing was lost;
* node-a cannot be scraped for three minutes from 10:58, over an epoch's boundary;
* receipts stand in two files, some have no time, and a provider's name holds markup;
* a line of events.log is damaged;
* a stake of 0 proves little; proposals are not shown without a token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from examples.history import History, born, counter, restarted, unseen

DAY = datetime(2026, 11, 20, tzinfo=UTC)
DUMPS = "examples/dumps-subsidy"


def at(hour: int, minute: int, second: int = 0) -> float:
    return DAY.replace(hour=hour, minute=minute, second=second).timestamp()


FROM, UNTIL = at(8, 20), at(11, 40)
BEGAN, ACT, ENDED = at(10, 24, 10), at(10, 36), at(11, 12)
GUARD, KILLED, RELEASED = at(10, 44), at(11, 0), at(11, 20)
RESTARTED, GAP = at(10, 50), (at(10, 58), at(11, 1))
FIRST_EPOCH = 48210
WORK = ("storage", "read", "cpu", "bytes_out")
RAW = {"storage": 50, "read": 20, "cpu": 15_000, "bytes_out": 400}
NOISE = 9.0  # the scale of the noise: supply over 2^20
ACCOUNT = "5c" * 32
MALLORY = "prov-mallory"
HOSTILE = "prov-<img src=x onerror=alert(1)>\x1b[31m\u202e"

PARAMETERS: dict[str, Any] = {
    "incident_id": "example-subsidy-spike",
    "kind": "subsidy_spike",
    "title": "Subsidies double while one provider floods receipts",
    "start": "2026-11-20T10:00:00Z",
    "end": "2026-11-20T11:30:00Z",
    "baseline_start": "2026-11-20T08:30:00Z",
    "baseline_end": "2026-11-20T10:00:00Z",
    "step": "15s",
    "sources": {
        "dumps": {"type": "governance", "path": DUMPS},
        "explorer": {"type": "explorer", "url": "http://127.0.0.1:3131"},
        "node": {
            "type": "jsonrpc",
            "url": "http://127.0.0.1:3130",
            "params": {"stake.role": [{"id": ACCOUNT, "role": "provider"}]},
        },
        "node-files": {"type": "logs", "path": f"{DUMPS}/logs"},
        "node-logs": {"type": "logs", "url": "http://127.0.0.1:3130"},
        "prometheus": {"type": "prometheus", "url": "http://127.0.0.1:9190"},
    },
    "thresholds": {},
    "timeline": [
        {"time": "2026-11-20T10:53:00Z", "event": "detected", "author": "treasurer",
         "text": "the day's issuance looks twice as high as yesterday's"},
        {"time": "2026-11-20T10:55:00Z", "event": "acknowledged", "author": "on-call",
         "text": "proposal 13 was put up to cut subsidies by half"},
        {"time": "2026-11-20T11:12:00Z", "event": "mitigated", "author": "on-call",
         "text": "prov-mallory suspended; proposal 12 rolled back"},
        {"time": "2026-11-20T11:25:00Z", "event": "resolved", "author": "treasurer", "text": ""},
    ],
    "notes": "An invented incident, collected for real from a Prometheus, a stand-in node and a "
    "stand-in explorer.",
}  # fmt: skip

RULES = """\
groups:
  - name: chain-health
    rules:
      - alert: SubsidyGrowthSpike
        expr: increase(subsidy_cpu_ms_total[10m]) > 1e9 or increase(subsidy_bytes_total[10m]) > 1e12
        for: 10m
        labels: {severity: warn}
      - alert: RentEscrowLockedSpike
        expr: increase(rent_escrow_locked_total[10m]) > 1e6
        for: 10m
        labels: {severity: warn}
"""


# --- the chain ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """What one retune set on each node; it holds from its start to the next."""

    number: int
    start: float
    raw: dict[str, int]
    published: dict[str, dict[str, int]]  # by node
    guard: bool
    kill_percent: int


def chain() -> list[Epoch]:
    """Epochs of 120 blocks, each block near one second."""
    rng = np.random.default_rng(48210)
    epochs, start, number = [], FROM - 47.0, FIRST_EPOCH
    while start < UNTIL:
        raw = dict(RAW)
        if ACT - 60 <= start < ENDED - 60:
            raw["read"] = 44
        guard = GUARD <= start < RELEASED
        kill = 50 if KILLED - 60 <= start < RELEASED - 60 else 0
        published = {}
        for node in ("node-a", "node-b"):
            noisy = {work: round(raw[work] + rng.laplace(0, NOISE)) for work in WORK}
            if guard:
                noisy = {work: round(value * 0.95) for work, value in noisy.items()}
            if kill:
                noisy = {work: round(value * (1 - kill / 100)) for work, value in noisy.items()}
            published[node] = noisy
        epochs.append(Epoch(number, start, raw, published, guard, kill))
        start += float(np.sum(rng.normal(1.0, 0.5, 120)))
        number += 1
    return epochs


def held(times: np.ndarray, epochs: list[Epoch], values: list[float]) -> np.ndarray:
    """What a gauge shows at each scrape that every epoch sets anew."""
    starts = np.array([epoch.start for epoch in epochs])
    return np.array(values)[np.searchsorted(starts, times, side="right") - 1].astype(float)


def counted(times: np.ndarray, moments: list[float]) -> np.ndarray:
    return np.searchsorted(np.array(moments), times, side="right").astype(float)


def act_of(epochs: list[Epoch], moment: float) -> Epoch:
    """The epoch at whose start an act took hold."""
    return next(epoch for epoch in epochs if epoch.start >= moment - 60)


def acts(epochs: list[Epoch]) -> list[tuple[Epoch, str, int, int, int]]:
    """Epoch, key, old, new, proposal."""
    return [
        (act_of(epochs, at(9, 10)), "FeeFloorWindow", 256, 512, 11),
        (act_of(epochs, ACT), "GammaReadSub", 20, 44, 12),
        (act_of(epochs, KILLED), "KillSwitchSubsidyReduction", 0, 50, 13),
        (act_of(epochs, ENDED), "GammaReadSub", 44, 20, 14),
        (act_of(epochs, RELEASED), "KillSwitchSubsidyReduction", 50, 0, 15),
    ]


SNAKE = {
    "FeeFloorWindow": "fee_floor_window",
    "GammaReadSub": "gamma_read_sub",
    "KillSwitchSubsidyReduction": "kill_switch_subsidy_reduction",
}


# --- metrics -----------------------------------------------------------------------------


def history() -> str:
    """What Prometheus scraped, from 08:20 to 11:40."""
    rng = np.random.default_rng(20261120)
    past = History(DAY.replace(hour=8, minute=20), DAY.replace(hour=11, minute=40))
    epochs = chain()
    for node, offset_s in (("node-a", 3.2), ("node-b", 9.7)):
        _node(past, node, past.times(offset_s), epochs, rng)
    times = past.times()
    # The shipped rule takes `increase` of a gauge, so a restart looks like a spike to it.
    told = (("pending", at(10, 52), at(11, 2)), ("firing", at(11, 2), at(11, 8)))
    for state, start, end in told:
        labels = {"alertname": "RentEscrowLockedSpike", "alertstate": state, "severity": "warn"}
        inside = (times >= start) & (times < end)
        past.add("ALERTS", labels, times[inside], np.ones(inside.sum()))
    return past.text()


def _node(
    past: History, node: str, times: np.ndarray, epochs: list[Epoch], rng: np.random.Generator
) -> None:
    target = {"instance": f"{node}:9898", "job": "the_block"}
    is_a = node == "node-a"
    flood = (times >= BEGAN) & (times < ENDED)

    def add(name: str, values: np.ndarray, gauge: bool = False, **labels: str) -> None:
        if not is_a and not gauge:
            values = begun_again(times, values)
        past.add(name, {**target, **labels}, times, unseen(times, values, *GAP) if is_a else values)

    up = np.ones(len(times))
    if is_a:
        up[(times >= GAP[0]) & (times < GAP[1])] = 0
    past.add("up", target, times, up)
    add(
        "process_start_time_seconds",
        np.where((times < RESTARTED) | is_a, at(5, 0), RESTARTED),
        gauge=True,
    )

    more = np.where(flood, 6.0, 1.0) if not is_a else np.ones(len(times))
    reads = np.where(flood & is_a, 1.4, 1.0)
    block = 4096.0  # bytes are served in blocks
    size = 1.0 if is_a else 0.8
    for kind, per_min in (("storage", 6e8), ("read", 2.4e9 * reads), ("compute", 3e7 * more)):
        bytes_ = block * counter(times, size * per_min / block, rng, 9e7 * size)
        add("subsidy_bytes_total", bytes_, type=kind)
    add("subsidy_cpu_ms_total", 50 * counter(times, size * 9e5 * more / 50, rng, 4e8 * size))
    # A gauge of a node that was restarted is there again after the next retune.
    next_retune = next(epoch.start for epoch in epochs if epoch.start > RESTARTED)
    for work in WORK:
        raw = held(times, epochs, [epoch.raw[work] for epoch in epochs])
        told = held(times, epochs, [epoch.published[node][work] for epoch in epochs])
        for name, values in (("subsidy_multiplier_raw", raw), ("subsidy_multiplier", told)):
            if not is_a:
                values = unseen(times, values, RESTARTED, next_retune)
            add(name, values, gauge=True, type=work)

    guards = [epoch.start for epoch in epochs if epoch.guard]
    kills = [epoch.start for epoch in epochs if epoch.kill_percent]
    add("subsidy_auto_reduced_total", born(counted(times, guards)))
    add("kill_switch_trigger_total", born(counted(times, kills)))
    _escrow(add, times, is_a, rng)
    denied = np.where(flood & (not is_a), 60.0, 2.0)
    add("read_denied_total", born(counter(times, denied, rng)), reason="limit")
    for reason, per_min in (
        ("burst_exhausted", np.where(flood & (not is_a), 30.0, 1.0)),
        ("capacity", 0.6),
    ):
        add("industrial_rejected_total", born(counter(times, per_min, rng)), reason=reason)
    add("industrial_rejected_total", np.zeros(len(times)), reason="__")
    add(
        "industrial_admitted_total",
        counter(times, size * np.where(flood, 46.0, 40.0), rng, 9e4 * size),
    )
    add("industrial_deferred_total", counter(times, np.where(flood, 11.0, 5.0), rng, 3e3))
    add(
        "industrial_backlog", rng.integers(2, 7, len(times)) * np.where(flood, 3.0, 1.0), gauge=True
    )
    add("industrial_utilization", np.where(flood, 88.0, 55.0) + rng.integers(0, 6, len(times)),
        gauge=True)  # fmt: skip
    _governed(add, times, is_a, epochs)


def begun_again(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A counter of the node that was restarted; one that registers late does so again."""
    again = restarted(times, np.nan_to_num(values), RESTARTED)
    return born(again) if np.isnan(values).any() else again


def _escrow(add: Any, times: np.ndarray, is_a: bool, rng: np.random.Generator) -> None:
    """Locks and releases of whole amounts; a release refunds nine tenths, rounded down."""
    locked = np.zeros(len(times))
    refunded, burned = np.zeros(len(times)), np.zeros(len(times))
    open_, balance, back, gone = [], 0, 0, 0
    for place in range(len(times)):
        if rng.random() < 0.5:
            amount = int(rng.integers(900, 40_000))
            open_.append(amount)
            balance += amount
        if open_ and rng.random() < 0.3:
            amount = open_.pop(0)
            balance -= amount
            back += amount * 9 // 10
            gone += amount - amount * 9 // 10
        locked[place], refunded[place], burned[place] = balance, back, gone
    if not is_a:  # the gauge is kept in memory, the escrow itself on disk
        locked = restarted(times, locked, RESTARTED)
    add("rent_escrow_locked_total", locked, gauge=True)
    add("rent_escrow_refunded_total", born(refunded))
    add("rent_escrow_burned_total", born(burned))


def _governed(add: Any, times: np.ndarray, is_a: bool, epochs: list[Epoch]) -> None:
    for key in SNAKE:
        mine = [(epoch.start, new) for epoch, k, _, new, _ in acts(epochs) if k == key]
        value, waits = np.full(len(times), np.nan), np.zeros(len(times))
        for start, new in mine:
            value = np.where(times >= start, new, value)
            waits = np.where((times >= start - 240) & (times < start), 1.0, waits)
        if not is_a:  # forgotten at the restart, until the next act
            later = [start for start, _ in mine if start > RESTARTED]
            value = unseen(times, value, RESTARTED, min(later, default=UNTIL + 60))
        add("param_change_active", value, gauge=True, key=SNAKE[key])
        add("param_change_pending", waits, gauge=True, key=SNAKE[key])
        counts = counted(times, [start for start, _ in mine])
        add("gov_activation_delay_seconds_count", born(counts), key=SNAKE[key])
        add("gov_activation_delay_seconds_sum", born(2 * counts), key=SNAKE[key])
    votes = [epoch.start - 200 for epoch, *_ in acts(epochs) for _ in range(3)]
    add("gov_votes_total", born(counted(times, votes)), choice="yes")


# --- records, logs, files ----------------------------------------------------------------


def explorer_replies() -> dict[str, Any]:
    """The explorer follows node-a."""
    names = dict(zip(WORK, ("beta", "gamma", "kappa", "lambda"), strict=True))
    return {
        "/subsidy/history": [
            {"epoch": e.number, **{names[w]: e.published["node-a"][w] for w in WORK}}
            for e in chain()
        ]
    }


def log_rows() -> list[dict[str, Any]]:
    """What the node's own log store holds, oldest first, as `/logs/search` tells it."""
    rng = np.random.default_rng(1120)
    rows: list[dict[str, Any]] = []

    def say(time: float, message: str, level: str = "INFO") -> None:
        empty = {"correlation_id": "", "peer": None, "tx": None, "block": None}
        rows.append({"timestamp": int(time), "level": level, "message": message, **empty})

    for time in np.arange(at(8, 25), at(11, 35), 60.0):
        say(time + rng.uniform(0, 50), f"match #{int(time) % 997}")
    epochs = chain()
    for epoch, key, old, new, _ in acts(epochs):
        say(epoch.start + 1, f"gov_param_activated key={key} new={new} old={old} "
            f"epoch={epoch.number}")  # fmt: skip
    for epoch in epochs:
        if epoch.guard:
            say(epoch.start + 1, "inflation_guard triggered (rolling_inflation=0.0213)")
        if epoch.kill_percent:
            say(epoch.start + 1, f"kill_switch_active reduction={epoch.kill_percent}")
    say(at(10, 40), "note: gov_param_activated key=BetaStorageSub new=9 old=50 epoch=1, said a "
        "</script><img src=x onerror=alert(1)> message of a client")  # fmt: skip
    rows.sort(key=lambda row: row["timestamp"])
    return rows


def write_dumps(folder: Path) -> None:
    """Files of node-a and node-b: governance history, receipts, webhooks."""
    records, logs = folder / "governance" / "history", folder / "logs"
    for made in (records, logs):
        made.mkdir(parents=True, exist_ok=True)
    epochs = chain()
    lines = []
    for epoch in epochs:
        if epoch.guard:
            lines.append(f"{epoch.number} inflation_guard 0.021300")
        if epoch.kill_percent:
            lines.append(f"{epoch.number} kill_switch {epoch.kill_percent}")
        values = " ".join(str(epoch.published["node-a"][work]) for work in WORK)
        lines.append(f"{epoch.number} retune {values}")
    lines[17] = lines[17][:9]
    (records / "events.log").write_text("\n".join(lines) + "\n")
    changes = [
        {"key": key, "proposal_id": proposal, "epoch": epoch.number, "old_value": old,
         "new_value": new, "fee_floor": None, "dependency_policy": None}
        for epoch, key, old, new, proposal in acts(epochs)
    ]  # fmt: skip
    (records / "param_changes.json").write_text(json.dumps(changes))
    receipts = _receipts()
    (logs / "node-b.jsonl").write_text("\n".join(receipts) + "\n")
    (logs / "node-b.rotated.jsonl").write_text("\n".join(receipts[400:460]) + "\n")
    hooks = [
        {"ts": epoch.start + 2.5, "event": "activate", "proposal_id": proposal}
        for epoch, *_, proposal in acts(epochs)
    ]
    (logs / "webhooks.jsonl").write_text("\n".join(map(json.dumps, hooks)) + "\n")


def _receipts() -> list[str]:
    rng = np.random.default_rng(77)
    lines = [
        json.dumps({"level": "info", "target": "the_block::exec", "message": "exec receipt",
                    "fields": {"trace_id": f"early{n}", "provider_id": "prov-a",
                               "bytes_out": 40_000, "cpu_ms": 1200}})
        for n in range(3)
    ]  # fmt: skip
    shares = {"prov-a": 4e5, "prov-b": 3e5, "prov-c": 2e5, MALLORY: 0.0, HOSTILE: 1e4}
    for number, time in enumerate(np.arange(at(8, 25), at(11, 35), 60.0)):
        flood = BEGAN <= time < ENDED
        for provider, cpu_ms in shares.items():
            per_min = 3.6e6 if provider == MALLORY and flood else cpu_ms
            if not per_min:
                continue
            cpu = int(0.9 * per_min * rng.uniform(0.8, 1.2))
            fields = {
                "message": "exec receipt",
                "trace_id": f"{number:05x}{len(lines):06x}",
                "provider_id": provider,
                "bytes_out": int(cpu * 33.3),
                "cpu_ms": cpu,
            }
            moment = datetime.fromtimestamp(time + rng.uniform(0, 59), UTC)
            lines.append(json.dumps({
                "timestamp": moment.isoformat(timespec="milliseconds"),
                "level": "INFO", "fields": fields, "target": "the_block::exec",
            }))  # fmt: skip
    return lines


def node_state() -> dict[str, Any]:
    """What the node answers when it is asked, long after the incident."""
    last = chain()[-1].published["node-a"]
    return {
        "inflation": {
            "beta_storage_sub": last["storage"],
            "gamma_read_sub": last["read"],
            "kappa_cpu_sub": last["cpu"],
            "lambda_bytes_out_sub": last["bytes_out"],
            "rent_rate_per_byte": 1,
            "industrial_multiplier": 100,
            "industrial_backlog": 3,
            "industrial_utilization": 57,
        },
        "stakes": {},
        "logs": log_rows(),
    }
