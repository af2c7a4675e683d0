"""Drawdown: a strategy of Njord Quant loses more of its peak equity than its rules allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from tbforensics.model import Doubt, Finding, Frames, Json, Kind, Query, Shape, Window
from tbforensics.trading import accounts as books
from tbforensics.trading import aftermath, journaldoubts, njord, njordrules, portfolio
from tbforensics.trading.accounts import Account
from tbforensics.trading.aftermath import after_text, trade_row, usd_text
from tbforensics.trading.njord import by_strategy, second
from tbforensics.trading.njordrules import Rule
from tbforensics.trading.portfolio import PORTFOLIO, Snapshot

_MOST_ROWS = 12


@dataclass(frozen=True)
class Thresholds:
    """What makes it an incident, what the site was configured with, and how near is near.

    target_weights: share of the capital by strategy. With the capital they give the first peaks,
                    because the journal has no opening row.
    trust_exporter: let a drawdown that only the exporter claims decide. Nothing in the repository
                    computes one, so a site has to know what its own exporter does.
    """

    drawdown_pct: float = 10.0  # the lower of the two rules that are both real
    onset_pct: float = 1.0  # above the usual drawdown of the baseline; less is breathing
    total_capital_usd: float = 100_000.0  # `portfolio.total_capital` of config/base.yaml
    target_weights: Mapping[str, float] = field(
        default_factory=lambda: {"trendline_break_v1": 0.6, "rsi_tema_bb_v1": 0.4}
    )
    in_process_pct: float = 10.0  # high_drawdown in config/alerts.yaml
    catalogue_pct: float = 15.0  # HighDrawdown of the metrics catalogue, for Prometheus
    grafana_pct: float = -10.0  # fires below it, on a metric that nothing emits
    rule_hold_s: float = 60.0  # of both rules that can fire
    per_order_cap_usd: float = 200.0  # the three caps of config/base.yaml; no code enforces them
    daily_loss_cap_usd: float = 50.0
    orders_per_min_cap: float = 30.0
    journal_silent_s: float = 300.0  # a running portfolio fills more often
    disagree_pct: float = 2.0  # between exporter and journal; less is one of them being later
    rebalance_near_s: float = 120.0  # from the rebalancer's mark to the last of its fills
    ack_near_s: float = 5.0  # an exchange answers sooner, or not at all
    halt_gap_s: float = 300.0  # strategies try again within seconds; a longer gap ends a halt
    before_s: float = 3600.0  # how long before the onset a log line or a reload may matter
    trust_exporter: bool = False

    def caps(self) -> dict[str, float]:
        return {
            "per_order_usd_cap": self.per_order_cap_usd,
            "daily_loss_usd_cap": self.daily_loss_cap_usd,
            "orders_per_min_cap": self.orders_per_min_cap,
        }


def analyse(frames: Frames, thresholds: Thresholds) -> list[Finding]:
    """How deep, since when, who made it, what traded on, and what the rules would have said."""
    rows, _ = portfolio.read(frames["portfolio"])
    accounts = accounts_of(frames, rows, thresholds)
    findings = list(_fallen(frames, accounts, thresholds))
    findings += _marked(frames, accounts, thresholds)
    findings += _exported(frames, accounts, thresholds)
    worst = worst_of(accounts)
    if worst is None:
        return findings
    during = worst.during(frames.window)
    findings += _made_by(accounts, worst, during)
    findings += _rebalanced(worst, rows, during, thresholds)
    findings += aftermath.halted(
        frames,
        rows,
        during,
        worst.crossed(thresholds.drawdown_pct) or during.start,
        thresholds.halt_gap_s,
    )
    findings += _replayed(frames, accounts, worst, during, thresholds)
    whole = next((a for a in accounts if a.name == PORTFOLIO), worst)
    lost_cents = whole.peak_cents - whole.lowest_cents
    findings += aftermath.uncapped(rows, during, lost_cents, thresholds.caps())
    findings += aftermath.ambiguous(frames, during, thresholds.ack_near_s)
    findings += aftermath.said(frames, during, thresholds.before_s)
    findings += aftermath.reloaded(frames, during, thresholds.before_s)
    return findings


# --- how deep ------------------------------------------------------------------------------


def accounts_of(frames: Frames, rows: Sequence[Snapshot], thresholds: Thresholds) -> list[Account]:
    """Every strategy and the portfolio, as the rows of the journal tell them."""
    return books.accounts(
        frames,
        rows,
        capital_usd=thresholds.total_capital_usd,
        weights=thresholds.target_weights,
        onset_pct=thresholds.onset_pct,
        deep_pct=thresholds.drawdown_pct,
    )


def worst_of(accounts: Sequence[Account]) -> Account | None:
    """The strategy that fell deepest; the portfolio only when no strategy fell."""
    fallen = (account for account in accounts if account.fall)
    return max(fallen, key=lambda account: (bool(account.name), account.depth_pct), default=None)


def _fallen(
    frames: Frames, accounts: Sequence[Account], thresholds: Thresholds
) -> Iterator[Finding]:
    table = tuple(account.row() for account in accounts)
    deep = [account for account in accounts if account.depth_pct >= thresholds.drawdown_pct]
    worst = worst_of(accounts)
    if accounts and not deep:
        deepest = max(accounts, key=lambda account: account.depth_pct)
        yield Finding(
            claim=f"The deepest drawdown is {deepest.depth_pct:.2f} %, of {deepest.title}",
            id="deepest",
            value=deepest.depth_pct,
            unit="%",
            threshold=thresholds.drawdown_pct,
            window=frames.window,
            cites=("portfolio",),
            rows=table,
        )
    deep.sort(key=lambda account: (account is not worst, -account.depth_pct, account.name))
    for account in deep:
        lost = account.peak_cents - account.lowest_cents
        yield Finding(
            claim=f"{account.name or 'The portfolio'} fell {account.depth_pct:.2f} % below its "
            f"peak of {usd_text(account.peak_cents)}, by {usd_text(lost)}: "
            + (account.speed() if account.fall else "no more than in a baseline that was not calm"),
            id="drawdown" if account is deep[0] else f"drawdown-of-{account.name or 'all'}",
            value=account.depth_pct,
            unit="%",
            threshold=thresholds.drawdown_pct,
            window=account.during(frames.window) if account.fall else frames.window,
            spell=account.spell if account.fall else None,
            decides=True,
            cites=("portfolio",),
            rows=table if account is deep[0] else (),
            caution="prices in the journal move only when something is filled; peaks from before "
            "the baseline are taken from capital and weight",
        )


def _marked(
    frames: Frames, accounts: Sequence[Account], thresholds: Thresholds
) -> Iterator[Finding]:
    """The journal's prices stand still between fills; the market's do not."""
    if not njord.prices(frames["trades"], frames["bars"]):
        return
    rows: list[dict[str, Json]] = []
    for account in accounts:
        drawdown = priced(frames, account, thresholds)["drawdown"]
        rows.append(
            {
                "who": account.title,
                "by_journal_pct": account.depth_pct,
                "by_market_pct": float(drawdown.max()),
                "lowest_at": second(drawdown.idxmax()),
                "missed_points": float(drawdown.max()) - account.depth_pct,
            }
        )
    rows.sort(key=lambda row: (-row["by_market_pct"], row["who"]))
    if not rows or max(row["missed_points"] for row in rows) < 0.005:
        return
    most = max(rows, key=lambda row: row["missed_points"])
    yield Finding(
        claim=f"Priced by the market, {most['who']} fell {most['by_market_pct']:.2f} %; its "
        f"journal, priced at fills only, shows {most['by_journal_pct']:.2f} %",
        id="marked-to-market",
        value=rows[0]["by_market_pct"],
        unit="%",
        threshold=thresholds.drawdown_pct,
        window=frames.window,
        decides=rows[0]["by_market_pct"] >= thresholds.drawdown_pct,
        cites=("portfolio", "trades", "bars"),
        rows=tuple(rows),
        caution="bars count by their close: a low within a bar has no moment",
    )


def priced(frames: Frames, account: Account, thresholds: Thresholds) -> pd.DataFrame:
    """An account's curve at every price of the market, within the window."""
    prices = njord.prices(frames["trades"], frames["bars"])
    seed = books.first_peak(account.name, thresholds.total_capital_usd, thresholds.target_weights)
    return books.marked(account, prices, frames.window, seed)


# --- what the exporter claims --------------------------------------------------------------

_CLAIMED = (("drawdown_gauge", "its drawdown"), ("pnl", "its P&L on the first peak"))


def _exported(
    frames: Frames, accounts: Sequence[Account], thresholds: Thresholds
) -> Iterator[Finding]:
    """What a site's own exporter says, against the journal. Its sign may be either."""
    rows: list[dict[str, Json]] = []
    known = {account.name: account for account in accounts if account.name}
    for query, what in _CLAIMED:
        for name, claimed in _claims(frames, query, thresholds).items():
            inside = _inside(claimed, frames.window)
            if not inside.notna().any():
                continue
            still = njord.still_since(inside)
            row: dict[str, Json] = {
                "strategy": name,
                "by": what,
                "deepest_pct": float(inside.max()),
            }
            if name in known:
                steps = books.at_steps(known[name], "drawdown", claimed.index, frames.step_s)
                away = _inside((claimed - steps).abs(), frames.window)
                apart = away.index[away > thresholds.disagree_pct]
                row |= {
                    "by_journal_pct": known[name].depth_pct,
                    "apart_points": float(away.max()) if away.notna().any() else None,
                    "apart_since": second(apart[0]) if len(apart) else None,
                }
            row["still_since"] = second(still) if still is not None else None
            rows.append(row)
    signs = _signs(frames["drawdown_gauge"])
    if rows:
        deepest = max(rows, key=lambda row: row["deepest_pct"])
        apart = max((row.get("apart_points") or 0.0 for row in rows), default=0.0)
        yield Finding(
            claim=f"The exporter puts {deepest['strategy']} at {deepest['deepest_pct']:.2f} %"
            + (f", {signs}" if signs else "")
            + (f"; at its worst {apart:.1f} points away from the journal" if known else ""),
            id="exported",
            value=deepest["deepest_pct"],
            unit="%",
            threshold=thresholds.drawdown_pct,
            window=frames.window,
            decides=thresholds.trust_exporter
            and deepest["deepest_pct"] >= thresholds.drawdown_pct
            and deepest["strategy"] not in known,
            cites=tuple(query for query, _ in _CLAIMED if frames.seen(query)),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="a gauge has no time of its own and keeps its last value when its source dies",
        )
    asked = {row.query: row.state for row in frames.coverage}
    missing = [q for q in _METRICS if asked.get(q) == "absent"]
    if missing:
        names = ", ".join(query.text for query in QUERIES if query.name in missing)
        yield Finding(
            claim=f"{len(missing)} metrics that rules or panels look at were not exported: {names}",
            id="never-exported",
            value=float(len(missing)),
            unit="metrics",
            window=frames.window,
            cites=tuple(missing),
            caution="the repository catalogues them and emits none; a rule on them can never fire",
        )


def _claims(frames: Frames, query: str, thresholds: Thresholds) -> pd.DataFrame:
    """Drawdown in positive percent by strategy, as the exporter has it."""
    if query == "drawdown_gauge":
        return by_strategy(frames[query].abs())
    pnl = by_strategy(frames[query])
    curves = {}
    for name in pnl:
        seed = books.first_peak(name, thresholds.total_capital_usd, thresholds.target_weights)
        if seed is not None and seed > 0:
            equity = pnl[name] + float(seed)
            peak = equity.cummax().clip(lower=float(seed))
            curves[name] = 100.0 * (peak - equity) / peak
    return pd.DataFrame(curves, index=pnl.index)


def _signs(gauge: pd.DataFrame) -> str:
    """Code and catalogue say positive; Grafana's rule says negative."""
    values = by_strategy(-gauge)
    return (
        "as a negative percent, which no rule above zero ever sees"
        if (values > 0).any(axis=None)
        else ""
    )


# --- what made it --------------------------------------------------------------------------


def _made_by(accounts: Sequence[Account], worst: Account, during: Window) -> Iterator[Finding]:
    for account in accounts:
        if account.fall is None or account.name not in (worst.name, PORTFOLIO):
            continue
        rows = books.parts(account)
        if not rows:
            continue
        fell = sum(row["cents"] for row in rows)
        first = rows[0]
        yield Finding(
            claim=f"{first['share']:.0%} of the {usd_text(-fell)} that {account.title} lost from "
            f"onset to lowest is {first['symbol']} of {first['strategy']}: {first['what']}",
            id="made-by" if account is worst else "made-by-in-all",
            value=fell / 100,
            unit="USD",
            window=during,
            cites=("portfolio",),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="exact decimals of the journal's text, rounded once to the cent so that the "
            "parts add up to the fall"
            + (f"; the largest {_MOST_ROWS} of {len(rows)}" if len(rows) > _MOST_ROWS else ""),
        )
    steepest = books.steps(worst, _MOST_ROWS)
    if steepest:
        cents = round(100 * steepest[0]["usd"])
        yield Finding(
            claim=f"The largest loss from one row to the next was {usd_text(-cents)}, mostly "
            f"{steepest[0]['mostly']}",
            id="steepest",
            value=steepest[0]["usd"],
            unit="USD",
            window=during,
            cites=("portfolio",),
            rows=tuple(steepest),
            caution="after_s is how long the journal had been silent before the row",
        )


def _rebalanced(
    worst: Account, rows: Sequence[Snapshot], during: Window, thresholds: Thresholds
) -> Iterator[Finding]:
    """The rebalancer buys what fell below its weight, which is what is falling."""
    falling = worst.falling
    marks = sorted({row.last_rebalance_ns for row in rows})
    last = falling[-1]
    found: list[dict[str, Json]] = []
    for mark in marks:
        if not falling[0].ts_ns <= mark <= last.ts_ns:
            continue
        until = mark + round(thresholds.rebalance_near_s * 1e9)
        near = [row for row in rows if row.ts_ns < mark][-1:]
        near += [row for row in rows if mark <= row.ts_ns <= until]
        for trade in portfolio.trades(near):
            price = last.held.get((trade.strategy, trade.symbol), (None, None))[1]
            if trade.qty > 0 and price is not None and price < trade.price:
                lost = trade.qty * (trade.price - price)
                found.append(
                    {
                        **trade_row(trade),
                        "lost_usd": portfolio.cents(lost) / 100,
                        "after_mark_s": round((trade.ts_ns - mark) / 1e9, 3),
                    }
                )
    if found:
        cost = sum(round(100 * row["lost_usd"]) for row in found)
        bought = sum(round(100 * row["usd"]) for row in found)
        yield Finding(
            claim=f"Rebalancing bought {usd_text(bought)} into the fall, which had lost another "
            f"{usd_text(cost)} by its lowest",
            id="rebalanced",
            value=cost / 100,
            unit="USD",
            window=during,
            cites=("portfolio",),
            rows=tuple(found[:_MOST_ROWS]),
            caution="the journal marks when it rebalanced, not which fills were its own: buys "
            f"within {thresholds.rebalance_near_s:.0f} s of a mark count",
        )


# --- who was told --------------------------------------------------------------------------


def _replayed(
    frames: Frames,
    accounts: Sequence[Account],
    worst: Account,
    during: Window,
    thresholds: Thresholds,
) -> Iterator[Finding]:
    """Three rules contradict each other; each is held against the recomputed curve."""
    metric, hold_s = njordrules.DRAWDOWN, thresholds.rule_hold_s
    rules = (
        Rule("high_drawdown", "in-process", metric, thresholds.in_process_pct, hold_s, 0.0, 300.0),
        Rule("HighDrawdown", "Prometheus", metric, thresholds.catalogue_pct, hold_s, 30.0),
    )
    curves = {a.name: _inside(a.curve["drawdown"], frames.window) for a in accounts if a.name}
    rows = njordrules.rows(frames, rules, curves, during.start)
    panel, exported = "Strategy Drawdown > 10%", frames.seen("max_drawdown_gauge")
    rows.append(
        {
            "rule": f"{panel} (Grafana)",
            "condition": f"min < {thresholds.grafana_pct:g}",
            "fired": njordrules.fired(frames, panel, worst.name),
            "why_not": "it looks at njord_strategy_max_drawdown_pct, which "
            + ("only this site exports" if exported else "nobody exports")
            + ", and a positive percent is never below it",
            "strategy": worst.name or None,
        }
    )
    told = [row for row in rows if row.get("after_onset_s") is not None]
    first = min(told, key=lambda row: row["after_onset_s"], default=None)
    claim = "No rule about drawdown would have fired"
    if first:
        late = after_text(first["after_onset_s"])
        claim = f"{first['rule']} would have fired for {first['strategy']} {late} the onset"
    any_fired = any(row["fired"] for row in rows)
    yield Finding(
        claim=claim
        + (", and some rule was" if any_fired else "; no rule about drawdown was")
        + " seen firing",
        id="alert-replay",
        value=first["after_onset_s"] if first else 0.0,
        unit="s",
        window=during,
        cites=("portfolio", "drawdown_gauge", "ALERTS", "bus"),
        rows=tuple(rows[:_MOST_ROWS]),
        caution="replayed over the recomputed curve; Prometheus may be later by its evaluation and "
        "its scrape, and no service of the repository runs the in-process rules",
    )


# --- what to doubt -------------------------------------------------------------------------


def doubts(frames: Frames, thresholds: Thresholds) -> list[Doubt]:
    """A journal that stopped, lost lines or contradicts itself is no calm one."""
    rows, unreadable = portfolio.read(frames["portfolio"])
    found = list(journaldoubts.silences(frames, rows, thresholds.journal_silent_s))
    found += journaldoubts.archived(frames, thresholds.journal_silent_s)
    if unreadable:
        many = unreadable > 0.05 * len(rows)
        detail = f"{unreadable} rows of the portfolio journal lack a time or a number"
        found.append(
            Doubt("unreadable rows", detail, None, "cleared" if many else "", ("portfolio",))
        )
    if mixed := sum(bool(row.unlike_cash) for row in rows):
        detail = f"in {mixed} rows the symbols of one strategy disagree about its cash"
        found.append(Doubt("ambiguous cash", detail, None, "cleared", ("portfolio",)))
    accounts = accounts_of(frames, rows, thresholds)
    calm = {a.name for a in accounts if a.depth_pct < thresholds.drawdown_pct}
    for query, what in _CLAIMED:
        claims = _claims(frames, query, thresholds)
        for name in claims.columns:
            deepest = _inside(claims[name], frames.window).max()
            if deepest >= thresholds.drawdown_pct and (name in calm or not accounts):
                detail = f"the exporter gives {name} {deepest:.1f} % by {what}; no journal shows it"
                found.append(Doubt("exporter disagrees", detail, None, "cleared", (query,)))
    return found


# --- small words ---------------------------------------------------------------------------


def _inside(table: pd.Series, window: Window) -> pd.Series:
    return table[(table.index >= window.start) & (table.index < window.end)]


def _journal(name: str, family: str, why: str, **more: Json) -> Query:
    return Query(name, "journals", family, "records", Shape.RECORDS, why=why, **more)


def _gauge(name: str, text: str, unit: str, why: str) -> Query:
    return Query(name, "prometheus", text, unit, why=why)


def _counter(name: str, text: str, unit: str, why: str) -> Query:
    return Query(name, "prometheus", text, unit, Shape.COUNTER, why=why)


QUERIES: Sequence[Query] = (
    _journal("portfolio", "portfolio", "equity, positions and prices at each fill", required=True),
    _journal("positions", "positions.*", "the paper trader's own positions"),
    _journal("orders", "broker.orders", "orders that were only echoed (dry run)"),
    _journal("acks", "broker.acks", "orders that the exchange took"),
    _journal("balances", "broker.balances", "what the exchange said we had"),
    _journal("fills", "fills*", "only where a site writes them"),
    _journal("trades", "md.trades.*", "the market's prices"),
    _journal("bars", "ohlcv.1m.*", "the market's prices by minute"),
    _journal("app", "app", "what the services said"),
    _journal("bus", "bus*", "bus messages, only where a site captured them"),
    _journal("config_changes", "config_changes", "reloads of the configuration"),
    _gauge("drawdown_gauge", "njord_strategy_drawdown_pct", "%", "catalogued, emitted by no code"),
    _gauge("max_drawdown_gauge", "njord_strategy_max_drawdown_pct", "%", "what Grafana looks at"),
    _gauge("pnl", "njord_strategy_pnl_usd", "USD", "catalogued, emitted by no code"),
    _gauge("equity_gauge", "njord_portfolio_equity_usd", "USD", "as pnl, for the portfolio"),
    _gauge("killswitch_gauge", "njord_killswitch_active", "1", "catalogued, emitted by no code"),
    _gauge("loop_lag", "njord_event_loop_lag_seconds", "s", "whether the exporter is alive"),
    _counter("bus_messages", "njord_bus_messages_sent_total", "messages", "as loop_lag"),
    _counter("fills_counted", "njord_fills_generated_total", "fills", "whether it is calm"),
    _counter("orders_counted", "njord_orders_placed_total", "orders", "before the broker's cap"),
    _counter("intents_denied", "njord_intents_denied_total", "intents", "by reason"),
    _counter("killswitch_trips", "njord_killswitch_trips_total", "intents",
             "denied intents by source, not trips"),
)  # fmt: skip
_METRICS = ("drawdown_gauge", "max_drawdown_gauge", "pnl", "killswitch_gauge")

KIND = Kind(
    title="Drawdown",
    question="Which strategy lost how much of its peak, since when, by what, and who stopped it?",
    queries=tuple(QUERIES),
    thresholds=Thresholds,
    analyse=analyse,
    onset="drawdown",
    doubts=doubts,
)
