"""A strategy falls by a fifth; rules that should have told of it look the other way.

ATOM loses a quarter of its price from 10:24 to 10:52 and comes back by 11:22. What the report
must get right:

* rows of a strategy with two symbols repeat its cash, and the journal has no opening row;
* prices in the journal move only at fills, so the second strategy, which stopped trading at the
  halt, falls by 9 % in its journal and by 11 % by the market;
* the exporter gives the drawdown as a negative percent, twice (two scrape jobs), with placeholders
  without a strategy after its restart at 10:05, and stands still from 10:58 while `up` stays 1;
* the first crossing of 10 %, at 10:34:50, holds for less than a minute;
* the rebalancer buys into the fall at 10:40;
* the halt is first seen at 10:47:44, but the halt file that is there was tripped again at 11:24;
* two orders that rested at the exchange still fill after the halt;
* the journal is silent for a quarter of an hour, which is the halt and no fault;
* an archive ends a day earlier than the next file begins, and fills were counted in between;
* acknowledgements have milliseconds in `ts_ns` and share their order ids; the last line is torn;
* half of the log lines have no time, and one of them is hostile.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from examples.history import History, restarted

DAY = datetime(2026, 11, 20, tzinfo=UTC)
DUMPS = "examples/journals"
TREND, RSI = "trendline_break_v1", "rsi_tema_bb_v1"
ATOM, SOL = "ATOM/USDT", "SOL/USDT"


def at(hour: int, minute: int, second: int = 0) -> float:
    return DAY.replace(hour=hour, minute=minute, second=second).timestamp()


BEGAN, LOWEST, TURNED, BACK = at(10, 24), at(10, 52), at(11, 0), at(11, 22)
REBALANCED, TRIPPED, CLEARED, AGAIN = at(10, 40), at(10, 47, 30), at(11, 4), at(11, 24)
BOUNCE = at(10, 34, 50), at(10, 35, 10), at(10, 37)
RESTARTED, FROZEN, REOPENED = at(10, 5), at(10, 58), at(9, 19, 20)
HOSTILE = "</script><img src=x onerror=alert(1)> \x1b[2J\u202e[click](javascript:alert(1))"

PARAMETERS: dict[str, Any] = {
    "incident_id": "example-drawdown",
    "kind": "drawdown",
    "title": "A strategy loses a fifth of its equity while its alerts stay silent",
    "start": "2026-11-20T10:00:00Z",
    "end": "2026-11-20T11:30:00Z",
    "baseline_start": "2026-11-20T08:30:00Z",
    "baseline_end": "2026-11-20T10:00:00Z",
    "step": "15s",
    "sources": {
        "journals": {"type": "journals", "path": DUMPS},
        "prometheus": {"type": "prometheus", "url": "http://127.0.0.1:9390"},
    },
    "thresholds": {},
    "timeline": [
        {"time": "2026-11-20T10:45:00Z", "event": "detected", "author": "trader",
         "text": "the balance at the exchange looked wrong"},
        {"time": "2026-11-20T10:46:30Z", "event": "acknowledged", "author": "on-call", "text": ""},
        {"time": "2026-11-20T10:47:30Z", "event": "mitigated", "author": "on-call",
         "text": "njord_kill trip-file"},
        {"time": "2026-11-20T11:04:00Z", "event": "note", "author": "on-call",
         "text": "Redis key deleted, trading again"},
        {"time": "2026-11-20T11:25:00Z", "event": "resolved", "author": "on-call",
         "text": "tripped again for the night"},
    ],
    "notes": "An invented incident, collected for real from journals and a Prometheus.",
}  # fmt: skip

RULES = """\
groups:
  - name: critical_alerts
    interval: 30s
    rules:
      - alert: HighDrawdown
        expr: njord_strategy_drawdown_pct > 15.0
        for: 1m
        labels: {severity: critical}
      - alert: DailyLossLimitExceeded
        expr: njord_portfolio_daily_pnl_usd < -5000
        labels: {severity: critical}
"""


# --- the market and the portfolio ----------------------------------------------------------


def price(symbol: str, time: float) -> float:
    """What the symbol costs: calm with a ripple, a fall with one bounce in it, and back."""
    ripple = np.sin(time / 97.0) + 0.6 * np.sin(time / 31.0)
    knots = [at(0, 0), BEGAN, *BOUNCE, LOWEST, TURNED, BACK, at(23, 0)]
    fallen = float(np.interp(time, knots, [0.0, 0.0, 0.54, 0.42, 0.44, 1.0, 1.0, 0.0, 0.0]))
    calm, depth = {ATOM: (13.0, 3.72), SOL: (150.0, 9.0)}[symbol]
    return round(calm - depth * fallen + 0.001 * calm * float(ripple), 4)


@dataclass
class Book:
    """One portfolio manager: it learns a price only when something is filled."""

    cash: dict[str, float]
    held: dict[tuple[str, str], list[float]] = field(default_factory=dict)  # qty, average, last
    rebalanced_ns: int = 0
    rows: list[str] = field(default_factory=list)

    def fill(self, ts_ns: int, strategy: str, symbol: str, qty: float, paid: float) -> None:
        position = self.held.setdefault((strategy, symbol), [0.0, paid, paid])
        if qty > 0:
            position[1] = (position[0] * position[1] + qty * paid) / (position[0] + qty)
        position[0], position[2] = round(position[0] + qty, 8), paid
        self.cash[strategy] -= qty * paid + 0.001 * abs(qty) * paid
        self._write(ts_ns)

    def equity(self, strategy: str) -> float:
        held = sum(q * last for (owner, _), (q, _, last) in self.held.items() if owner == strategy)
        return self.cash[strategy] + held

    def _write(self, ts_ns: int) -> None:
        positions = [
            {
                "strategy_id": strategy,
                "symbol": symbol,
                "qty": qty,
                "avg_entry_price": average,
                "current_price": last,
                "unrealized_pnl": (last - average) * qty,
                "allocated_capital": self.cash[strategy] + qty * last,
            }
            for (strategy, symbol), (qty, average, last) in self.held.items()
        ]
        row = {
            "ts_ns": ts_ns,
            "portfolio_id": "default_portfolio",
            "total_equity": sum(self.equity(strategy) for strategy in self.cash),
            "cash": sum(self.cash.values()),
            "positions": positions,
            "last_rebalance_ts": self.rebalanced_ns,
        }
        self.rows.append(json.dumps(row, separators=(",", ":")))


@dataclass(frozen=True)
class Told:
    """What happened, for the exporter: by time, equities and how often each thing was counted."""

    times: list[float]
    equities: list[tuple[float, float]]
    fills: list[float]
    denied: list[tuple[float, str]]
    rows: tuple[list[str], list[str]]  # of the archive; of the file that followed


@cache
def traded() -> Told:
    rng = np.random.default_rng(20261120)
    book = Book({TREND: 60_000.0, RSI: 40_000.0})
    long_ago = at(8, 40) - 86_400
    for number, (strategy, symbol, qty) in enumerate(
        [(TREND, ATOM, 3000.0), (TREND, SOL, 100.0), (RSI, ATOM, 1200.0)]
    ):
        book.fill(
            _ns(long_ago + 60 * number), strategy, symbol, qty, {ATOM: 13.0, SOL: 150.0}[symbol]
        )
    archived, book.rows = book.rows, []
    times, equities, fills, denied = [], [], [], []
    intents = np.cumsum(rng.uniform(8, 34, 700)) + at(8, 22)
    halted = 0
    for number, time in enumerate(t for t in intents if t < at(11, 35)):
        strategy = (TREND, TREND, RSI)[number % 3]
        symbol = SOL if strategy == TREND and number % 6 == 0 else ATOM
        qty = (3.0, -3.0, 2.0, -2.0)[number % 4] * (0.1 if symbol == SOL else 1.0)
        if TRIPPED <= time < CLEARED or time >= AGAIN:
            denied.append((time, "file" if time < at(10, 55) or time >= AGAIN else "redis"))
            if time < CLEARED and halted < 2 and time > at(10, 48):
                halted += 1  # rested at the exchange, where no switch reaches
                strategy, symbol, qty = TREND, ATOM, 40.0
            else:
                continue
        if time >= REBALANCED and not book.rebalanced_ns:
            book.rebalanced_ns = _ns(REBALANCED + 0.41)
            strategy, symbol, qty = TREND, ATOM, 300.0
        fills.append(time)
        book.fill(_ns(time), strategy, symbol, qty, price(symbol, time))
        if time < REOPENED:
            book.rows.pop()  # written to a file that was compressed and removed
        times.append(time)
        equities.append((book.equity(TREND), book.equity(RSI)))
    return Told(times, equities, fills, denied, (archived, book.rows))


def _ns(time: float) -> int:
    return round(time * 1000) * 1_000_000 + 123_457


# --- what was scraped ----------------------------------------------------------------------


def history() -> str:
    """What Prometheus scraped, from 08:20 to 11:40: one exporter, by two jobs."""
    past = History(DAY.replace(hour=8, minute=20), DAY.replace(hour=11, minute=40), every_s=15.0)
    for job, offset_s in (("njord_quant_fast", 2.1), ("njord_quant_slow", 9.4)):
        _exporter(past, job, past.times(offset_s))
    times = past.times()
    loss = _known(times, [sum(pair) - 100_000.0 for pair in traded().equities], 0.0)
    firing = (loss < -5000) & (times >= BEGAN)
    labels = {"alertname": "DailyLossLimitExceeded", "alertstate": "firing", "severity": "critical",
              "portfolio_id": "default_portfolio"}  # fmt: skip
    past.add("ALERTS", labels, times[firing], np.ones(int(firing.sum())))
    return past.text()


def _known(times: np.ndarray, values: list[float], before: float) -> np.ndarray:
    """The last value at each time."""
    place = np.searchsorted(traded().times, times, side="right") - 1
    return np.where(place >= 0, np.asarray(values)[np.maximum(place, 0)], before)


def _exporter(past: History, job: str, times: np.ndarray) -> None:
    told = traded()
    target = {"instance": "njord_quant", "job": job, "environment": "production"}
    seen = np.minimum(times, FROZEN)  # its consumer died; what it last said stays
    past.add("up", target, times, np.ones(len(times)))
    fresh = (times >= RESTARTED) & (times < RESTARTED + 40)

    def gauge(name: str, values: np.ndarray, **labels: str) -> None:
        past.add(name, {**target, **labels}, times, np.where(fresh, np.nan, values))
        if labels and labels.get("strategy_id") != RSI:
            placeholder = {**target}
            past.add(name, placeholder, times[fresh], np.zeros(int(fresh.sum())))

    for place, (name, seed) in enumerate(((TREND, 60_000.0), (RSI, 40_000.0))):
        equity = np.maximum.accumulate([pair[place] for pair in told.equities])
        peaks = np.maximum(equity, seed)
        now = [pair[place] for pair in told.equities]
        drawdown = [-100.0 * (p - e) / p for p, e in zip(peaks, now, strict=True)]
        gauge("njord_strategy_drawdown_pct", _known(seen, drawdown, -0.1), strategy_id=name)
        gauge("njord_strategy_pnl_usd", _known(seen, [e - seed for e in now], -50.0),
              strategy_id=name)  # fmt: skip
    total = [sum(pair) for pair in told.equities]
    gauge("njord_portfolio_equity_usd", _known(seen, total, 99_900.0),
          portfolio_id="default_portfolio")  # fmt: skip
    gauge("njord_portfolio_daily_pnl_usd", _known(seen, [e - 1e5 for e in total], -100.0),
          portfolio_id="default_portfolio")  # fmt: skip

    def counter(name: str, moments: list[float], start: float, **labels: str) -> None:
        values = start + np.searchsorted(np.asarray(moments), seen, side="right").astype(float)
        past.add(name, {**target, **labels}, times, restarted(times, values, RESTARTED))

    rng = np.random.default_rng(9)
    lag = rng.uniform(0.003, 0.02, len(times))
    gauge("njord_event_loop_lag_seconds",
          np.where(times < FROZEN, lag, lag[np.searchsorted(times, FROZEN)]))  # fmt: skip
    told_of = list(np.arange(at(8, 20), at(11, 40), 2.5))
    counter("njord_bus_messages_sent_total", told_of, 7e4, topic="telemetry.metrics")
    counter("njord_fills_generated_total", told.fills, 40.0, venue="binanceus")
    counter("njord_orders_placed_total", told.fills, 44.0, venue="binanceus")
    counter("njord_intents_denied_total", [t for t, _ in told.denied], 0.0, reason="kill-switch")
    for source in ("file", "redis"):
        moments = [t for t, by in told.denied if by == source]
        counter("njord_killswitch_trips_total", moments, 0.0, source=source)


# --- journals ------------------------------------------------------------------------------


def write_dumps(folder: Path) -> None:
    """The journal folder as it was copied after the incident."""
    folder.mkdir(parents=True, exist_ok=True)
    archived, rows = traded().rows
    packed = gzip.compress(_text(archived), mtime=0)
    (folder / "portfolio.20261119.ndjson.gz").write_bytes(packed)
    (folder / "portfolio.ndjson").write_bytes(_text(rows) + rows[-1][:171].encode())
    for symbol in (ATOM, SOL):
        name = f"ohlcv.1m.{symbol.replace('/', '')}.ndjson"
        (folder / name).write_bytes(_text(_bars(symbol)))
    orders, acks = _orders()
    (folder / "broker.orders.ndjson").write_bytes(_text(orders))
    (folder / "broker.acks.ndjson").write_bytes(_text(acks))
    balances = [
        [{"asset": "ATOM", "free": 4380.0, "locked": 0.0, "ts_ns": _ns(at(10, minute))},
         {"asset": "USDT", "free": 27110.25, "locked": 40.0, "ts_ns": _ns(at(10, minute))}]
        for minute in (44, 50)
    ]  # fmt: skip
    (folder / "broker.balances.ndjson").write_bytes(_text([json.dumps(b) for b in balances]))
    (folder / "app.ndjson").write_bytes(_text(_lines()))
    changed = f"{_ns(at(10, 19))}\t{'5a' * 32}\t{'c4' * 32}\tconfig_changed\n"
    (folder / "config_changes.log").write_text(changed)
    halt = folder / "njord.trading.halt"
    halt.touch()
    os.utime(halt, (AGAIN, AGAIN))


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _bars(symbol: str) -> list[str]:
    bars = []
    for time in np.arange(at(8, 25), at(11, 36), 60.0):
        inside = [price(symbol, t) for t in np.arange(time, time + 60, 5)]
        bars.append(
            json.dumps(
                {
                    "symbol": symbol,
                    "timeframe": "1m",
                    "ts_open": int(time) * 1_000_000_000,
                    "ts_close": (int(time) + 60) * 1_000_000_000,
                    "open": inside[0],
                    "high": max(inside),
                    "low": min(inside),
                    "close": inside[-1],
                    "volume": 120.0,
                }
            )
        )
    return bars


def _orders() -> tuple[list[str], list[str]]:
    """Echoes and acknowledgements; the ids are cut, so that all of one side share theirs."""
    orders, acks = [], []
    fills = [t for t in traded().fills if at(10, 20) <= t < at(10, 50)]
    for number, time in enumerate(fills[::3]):
        side = ("buy", "sell")[number % 2]
        intent = f"trendline_{side}_{_ns(time)}"
        order = {
            "intent_id": intent,
            "client_order_id": f"NJ-{intent[:20]}",
            "symbol": ATOM,
            "side": side,
            "type": "limit",
            "qty": 3.0,
            "limit_price": price(ATOM, time),
            "ts_ns": _ns(time),
        }
        orders.append(json.dumps(order))
        ack = {
            "client_order_id": order["client_order_id"],
            "exchange_order_id": f"EX{number:06d}",
            "ts_ns": int(time * 1000) + 240,  # milliseconds, as the exchange tells them
        }
        acks.append(json.dumps(ack))
    return orders, acks


def _lines() -> list[str]:
    """`app.ndjson`: some services write a time, others none."""
    lines: list[tuple[float, dict[str, Any]]] = []

    def say(time: float, event: str, level: str, logger: str, **more: Any) -> None:
        stamp = datetime.fromtimestamp(round(time, 3), UTC).isoformat().replace("+00:00", "Z")
        lines.append((time, {**more, "event": event, "timestamp": stamp, "level": level,
                             "logger": logger}))  # fmt: skip

    def mumble(time: float, event: str, level: str, logger: str) -> None:
        lines.append((time, {"event": event, "level": level, "logger": logger}))

    for time in np.arange(at(8, 26), at(11, 35), 150.0):
        say(time, "bar_closed", "info", "ohlcv_aggregator", symbol=ATOM)
    for number, (time, by) in enumerate(traded().denied):
        say(time + 0.2, "live_halted", "warning", "broker.binanceus",
            intent_id=f"trendline_buy_{number}", source=by)  # fmt: skip
    mumble(
        RESTARTED + 1, "telemetry.metrics.unregistered_metric", "warning", "telemetry.prometheus"
    )
    mumble(at(10, 33), "alert_manager.alert_fired", "warning", "telemetry.alerts")
    mumble(FROZEN, "telemetry.metrics.consumer_error", "error", "telemetry.prometheus")
    say(at(10, 31), HOSTILE, "warning", "strategies.manager", reason=HOSTILE)
    say(at(10, 49), "reconcile_missing_orders", "warning", "broker.binanceus.reconcile",
        client_order_ids=["NJ-missing"])  # fmt: skip
    lines.sort(key=lambda line: line[0])
    return [json.dumps(line) for _, line in lines]


def node_state() -> dict[str, Any]:
    """No node belongs to this incident."""
    return {}
