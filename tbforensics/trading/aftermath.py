"""What was done about a fall: halts, trades that went on, caps, orders, log lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from tbforensics.model import Finding, Frames, Json, Moment, Window, utc_time
from tbforensics.trading import njord, portfolio
from tbforensics.trading.njord import Bounded, Sign, moment, second
from tbforensics.trading.portfolio import Snapshot, Trade

_MOST_ROWS = 12
_MINUTE_NS = 60_000_000_000
_HALTS = ("app", "bus", "journal_files", "killswitch_trips")


def usd_text(cents: int) -> str:
    return f"{'-' if cents < 0 else ''}{abs(cents) // 100:,}.{abs(cents) % 100:02d} USD"


def after_text(seconds: float) -> str:
    size = f"{abs(seconds):.0f} s" if abs(seconds) < 120 else f"{abs(seconds) / 60:.1f} min"
    return f"{size} {'after' if seconds >= 0 else 'before'}"


def trade_row(trade: Trade) -> dict[str, Json]:
    return {
        "time": second(trade.ts_ns),
        "strategy": trade.strategy,
        "symbol": trade.symbol,
        "qty": float(trade.qty),
        "price": float(trade.price),
        "usd": portfolio.cents(trade.usd) / 100,
    }


# --- the kill switch -----------------------------------------------------------------------


def halted(
    frames: Frames, rows: Sequence[Snapshot], during: Window, crossed: datetime, gap_s: float
) -> Iterator[Finding]:
    """When trading was first seen halted, by what, and what was traded in spite of it.

    crossed: when the threshold was. gap_s: signs further apart than that are of two halts.
    """
    signs = [s for s in njord.halts(frames) if during.start <= moment(s.ts_ns) < frames.window.end]
    spells = njord.stretches(signs, gap_s)
    if not spells:
        yield Finding(
            claim="Nothing shows that trading was halted",
            id="kill-switch",
            value=0.0,
            unit="halts",
            window=during,
            cites=_HALTS,
            caution="no event tells of the switch; a Redis key keeps no time, a cleared file none",
        )
        return
    late_s = (moment(signs[0].ts_ns) - crossed).total_seconds()
    by = " and ".join(dict.fromkeys(s.by or "an unnamed source" for s in spells[0]))
    first = Window(moment(signs[0].ts_ns), moment(spells[0][-1].ts_ns) + timedelta(seconds=1))
    yield Finding(
        claim=f"Trading was halted by {by}, first seen {after_text(late_s)} the threshold was "
        f"crossed, last seen {second(spells[0][-1].ts_ns)}"
        + (f"; halted again {len(spells) - 1} times later" if len(spells) > 2 else "")
        + ("; halted again once later" if len(spells) == 2 else ""),
        id="kill-switch",
        value=late_s,
        unit="s",
        window=first,
        cites=_HALTS,
        rows=tuple(_sorts(spells, crossed))[:_MOST_ROWS],
        caution="a sign may be later than the trip: the file keeps only its last trip, Redis no "
        "time at all, and the counter counts denied intents; a Redis error counts as not tripped",
    )
    yield from _traded_on(rows, spells)


def _sorts(spells: Sequence[Sequence[Sign]], crossed: datetime) -> Iterator[dict[str, Json]]:
    """The first and the last of each sort of sign of each halt."""
    for number, signs in enumerate(spells, start=1):
        for query, by, what in sorted({(s.query, s.by, s.what) for s in signs}):
            same = [s for s in signs if (s.query, s.by, s.what) == (query, by, what)]
            first = moment(same[0].ts_ns)
            yield {
                "halt": number,
                "by": by or "(not said)",
                "sign": what,
                "count": sum(sign.count for sign in same),
                "first": second(first),
                "last": second(same[-1].ts_ns),
                "after_s": (first - crossed).total_seconds(),
                "or_earlier_s": same[0].width_s,
            }


def _traded_on(rows: Sequence[Snapshot], spells: Sequence[Sequence[Sign]]) -> Iterator[Finding]:
    after = [
        trade
        for trade in portfolio.trades(rows)
        if any(signs[0].ts_ns < trade.ts_ns <= signs[-1].ts_ns for signs in spells)
    ]
    if not after:
        return
    cents = sum(abs(portfolio.cents(trade.usd)) for trade in after)
    yield Finding(
        claim=f"{len(after)} trades changed positions while the halt was seen, "
        f"worth {usd_text(cents)}",
        id="traded-after-halt",
        value=cents / 100,
        unit="USD",
        window=Window(moment(after[0].ts_ns), moment(after[-1].ts_ns) + timedelta(seconds=1)),
        cites=("portfolio", *_HALTS),
        rows=tuple(trade_row(trade) for trade in after[:_MOST_ROWS]),
        caution="orders that rest at the exchange may still fill; the switch denies intents only",
    )


# --- caps and orders -----------------------------------------------------------------------


def uncapped(
    rows: Sequence[Snapshot], during: Window, lost_cents: int, caps: Mapping[str, float]
) -> Iterator[Finding]:
    """Caps that the configuration names and no code enforces, against what was seen.

    caps: `per_order_usd_cap`, `daily_loss_usd_cap` and `orders_per_min_cap` as configured.
    """
    trades = [t for t in portfolio.trades(rows) if moment(t.ts_ns) in during]
    a_minute = Counter(t.ts_ns // _MINUTE_NS for t in trades)
    seen = {
        "per_order_usd_cap": max((abs(portfolio.cents(t.usd)) / 100 for t in trades), default=0.0),
        "daily_loss_usd_cap": lost_cents / 100,
        "orders_per_min_cap": float(max(a_minute.values(), default=0)),
    }
    exceeded = [name for name, value in seen.items() if value > caps[name]]
    if exceeded:
        yield Finding(
            claim=f"{' and '.join(exceeded)} exceeded: configured, and enforced by no code",
            id="caps",
            value=float(len(exceeded)),
            unit="caps",
            window=during,
            cites=("portfolio",),
            rows=tuple(
                {"cap": name, "configured": caps[name], "seen": value, "exceeded": name in exceeded}
                for name, value in seen.items()
            ),
            caution="orders as changes of positions from row to row; several fills may be one row",
        )


def ambiguous(frames: Frames, during: Window, near_s: float) -> Iterator[Finding]:
    """Orders that their id does not tell apart."""
    ids = njord.shared_ids(frames["orders"], frames["acks"], near_s)
    if not ids.shared:
        return
    yield Finding(
        claim=f"{ids.shared} of {ids.ids} client_order_ids name several orders: of {ids.pairs} "
        f"pairs by id {ids.near} are within {near_s:g} s, and {ids.certain} of those certain",
        id="order-ids",
        value=float(ids.shared),
        unit="ids",
        window=during,
        cites=("orders", "acks"),
        rows=(
            {
                "orders": ids.orders,
                "acknowledgements": ids.acks,
                "ids": ids.ids,
                "shared_ids": ids.shared,
                "pairs_by_id": ids.pairs,
                "pairs_near": ids.near,
                "pairs_certain": ids.certain,
            },
        ),
        caution="the id is NJ- and the first 20 letters of the intent id, which years share",
    )


# --- log lines -----------------------------------------------------------------------------

_MEANING = {
    "telemetry.metrics.consumer_error": "the exporter's values stand still from here on",
    "telemetry.metrics.unregistered_metric": "a metric was dropped: nobody registered it",
    "telemetry.metric_cardinality_high": "more than 100 label sets of one metric",
    "telemetry.aggregator_flush_failed": "rollups stop for good",
    "alert_manager.alert_fired": "an in-process rule fired; which one is not said",
    "alert_manager.alert_resolved": "an in-process rule resolved; which one is not said",
    "kill_switch_redis_check_failed": "Redis could not be asked: taken as not tripped",
    "kill_switch_check_failed": "Redis could not be asked: taken as not tripped",
    "live_halted": "the broker refused an intent",
    "live_micro_cap_block": "the one cap that is enforced: 10 USD of a live order",
    "reconcile_missing_orders": "the exchange does not know orders that we do",
}


def said(frames: Frames, during: Window, before_s: float) -> Iterator[Finding]:
    """Log lines that warn or mean something here, from `before_s` before the fall."""
    near = during.widened(before_s=before_s)
    groups: dict[tuple[str, str], list[Bounded]] = {}
    for line in njord.bounded(frames["app"]):
        name = njord.text(line.value, "event")
        if name.startswith("kill_switch"):
            name = name.partition(":")[0]
        loud = njord.text(line.value, "level") in ("warning", "error", "critical")
        early = line.before_ns is not None and moment(line.before_ns) < near.start
        late = line.after_ns is not None and moment(line.after_ns) >= near.end
        if (name in _MEANING or loud) and not early and not late:
            groups.setdefault((name, njord.text(line.value, "logger")), []).append(line)
    rows: list[dict[str, Json]] = [
        {
            "event": event,
            "lines": len(lines),
            "not_before": _at(lines[0].after_ns),
            "not_after": _at(lines[-1].before_ns),
            "means": _MEANING.get(event, ""),
            "logger": logger,
            "example": lines[0].place,
        }
        for (event, logger), lines in groups.items()
    ]
    if not rows:
        return
    rows.sort(key=lambda row: (not row["means"], row["not_before"] or "", row["event"]))
    lines = sum(row["lines"] for row in rows)
    yield Finding(
        claim=f"{lines} log lines of {len(rows)} sorts warn, or tell of alerts and halts",
        id="log-lines",
        value=float(lines),
        unit="lines",
        window=during,
        cites=("app",),
        rows=tuple(rows[:_MOST_ROWS]),
        caution="half of the services write no time: such a line lies between its neighbours",
    )


def _at(ts_ns: int | None) -> str | None:
    return None if ts_ns is None else second(ts_ns)


def reloaded(frames: Frames, during: Window, before_s: float) -> Iterator[Finding]:
    """Reloads of the configuration from `before_s` before the fall to its end."""
    near = during.widened(before_s=before_s)
    rows: list[dict[str, Json]] = [
        {
            "time": second(ts_ns),
            "before_onset_s": (during.start - moment(ts_ns)).total_seconds(),
            "old": njord.text(value, "old")[:12],
            "new": njord.text(value, "new")[:12],
        }
        for ts_ns, value, _ in njord.timed(frames["config_changes"])
        if moment(ts_ns) in near
    ]
    if rows:
        nearest = min(rows, key=lambda row: abs(row["before_onset_s"]))
        at = during.start - timedelta(seconds=nearest["before_onset_s"])
        yield Finding(
            claim=f"The configuration was reloaded {after_text(-nearest['before_onset_s'])} the "
            "onset",
            id="config-change",
            value=-nearest["before_onset_s"],
            unit="s",
            window=Window(at, at + timedelta(seconds=1)),
            cites=("config_changes",),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="near in time is not a cause",
        )


# --- on one line of time -------------------------------------------------------------------

_TIMES = (
    ("alert-replay", "crossed", "threshold", "{rule}: {strategy} crosses {condition}"),
    ("alert-replay", "would_fire", "would have fired", "{rule} for {strategy}"),
    ("alert-replay", "fired", "fired", "{rule} for {strategy}"),
    ("rebalanced", "time", "rebalancer", "buys {qty:g} {symbol} for {strategy}"),
    ("kill-switch", "first", "kill switch", "halt {halt}, by {by}, first: {sign}"),
    ("kill-switch", "last", "kill switch", "halt {halt}, by {by}, last: {sign}"),
    ("traded-after-halt", "time", "traded on", "{qty:+g} {symbol} of {strategy}"),
)


def moments(findings: Sequence[Finding]) -> list[Moment]:
    """Thresholds, rules, halts and what traded on, to be drawn on one line of time."""
    by_id = {finding.id: finding for finding in findings}
    found = []
    if (fall := by_id.get("drawdown")) and fall.spell:
        found.append(Moment(fall.spell.onset_latest, "fall", "onset", "drawdown"))
        if fall.spell.recovery:
            found.append(Moment(fall.spell.recovery, "fall", "recovered", "drawdown"))
    for name, column, origin, words in _TIMES:
        for row in by_id[name].rows if name in by_id else ():
            if row.get(column):
                time = utc_time(str(row[column]))
                found.append(Moment(time, origin, words.format_map(row), name))
    return sorted(found, key=lambda moment: (moment.time, moment.origin, moment.text))
