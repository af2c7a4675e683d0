"""The drawdown kind: how deep, by what, who stopped it, and what silence does not prove."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tbforensics.assess import judge
from tbforensics.case import open_case
from tbforensics.kinds.drawdown import KIND, QUERIES, Thresholds
from tbforensics.model import (
    Coverage,
    Doubt,
    Finding,
    Frames,
    Shape,
    Verdict,
    Window,
    utc_text,
)
from tbforensics.reading.journalrows import time_ns
from tbforensics.trading.aftermath import moments
from tbforensics.trading.njord import bounded, halts, moment, shared_ids, stretches
from tbforensics.trading.njordrules import Rule, replay

START = datetime(2026, 11, 20, 10, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
CALM = Window(START - timedelta(hours=1), START)
STEP_S = 30.0
STEPS = pd.date_range(CALM.start, WINDOW.end, freq="30s", inclusive="left").as_unit("ms")
TREND, RSI = "trendline_break_v1", "rsi_tema_bb_v1"
ATOM, SOL = "ATOM/USDT", "SOL/USDT"
EXAMPLE = Path(__file__).parent.parent / "incidents" / "example-drawdown"
HOSTILE = "</script><img src=x onerror=alert(1)> \x1b[2J\u202e=1+1 [a](javascript:b)"


def at(minute: float) -> int:
    """Unix ns of a minute after ten."""
    return round((START.timestamp() + 60 * minute) * 1e9)


# --- frames by hand ----------------------------------------------------------------------


def records(values: Sequence[Mapping[str, Any]], file: str = "a.ndjson") -> pd.DataFrame:
    rows = [
        {"ts": time_ns(dict(v)), "source": "j", "file": file, "line": n, "place": 0, "value": v}
        for n, v in enumerate(values, start=1)
    ]
    table = pd.DataFrame(rows, columns=["ts", "source", "file", "line", "place", "value"])
    table["ts"] = pd.to_datetime(table["ts"].astype("Int64"), utc=True).dt.as_unit("ns")
    return table


def series(*columns: tuple[Mapping[str, str], Mapping[float, float] | float]) -> pd.DataFrame:
    """A frame of series: labels, and a constant or {minute: value from then on}."""
    names = sorted({name for labels, _ in columns for name in labels})
    made = {}
    for labels, given in columns:
        values = pd.Series(float("nan"), index=STEPS)
        for minute, value in ({-60.0: given} if isinstance(given, float) else given).items():
            values[moment(at(minute)) <= STEPS] = value
        made["prometheus", *(labels.get(name, "") for name in names)] = values
    if not made:
        return pd.DataFrame(index=STEPS, columns=pd.MultiIndex.from_tuples([], names=["source"]))
    table = pd.DataFrame(made, index=STEPS)
    table.columns = pd.MultiIndex.from_tuples(list(made), names=["source", *names])
    return table


def files(*values: Mapping[str, Any], role: str = "summary") -> pd.DataFrame:
    rows = [{"source": "j", "role": role, "value": value, "state": "ok"} for value in values]
    return pd.DataFrame(rows, columns=["source", "role", "value", "state"])


def frames(
    doubts: tuple[Doubt, ...] = (), states: Mapping[str, str] | None = None, **tables: pd.DataFrame
) -> Frames:
    """Every query of the kind, empty where it is not given."""
    made = {
        query.name: records(()) if query.shape is Shape.RECORDS else series() for query in QUERIES
    }
    covered = dict.fromkeys(tables, "covered") | dict(states or {})
    coverage = tuple(
        Coverage(q.name, "s", 1.0, covered.get(q.name, "failed"), q.required) for q in QUERIES
    )
    everything = {**made, "journal_files": files(), "ALERTS": series(), **tables}
    return Frames(WINDOW, CALM, STEP_S, everything, coverage, doubts)


def row(
    minute: float,
    price: float,
    *,
    qty: float = 3000.0,
    sol: float | None = None,
    rsi: float = 13.0,
    cash: float = 21_000.0,
    rebalanced: int = 0,
) -> dict[str, Any]:
    """A row of the journal: 60,000 USD of one strategy, 40,000 of the other, at 13.0 a piece."""
    held = [(TREND, ATOM, qty, price, cash), (RSI, ATOM, 1000.0, rsi, 27_000.0)]
    if sol is not None:
        held.append((TREND, SOL, 10.0, sol, cash))
    worth = sum(q * p for _, _, q, p, _ in held)
    return {
        "ts_ns": at(minute),
        "cash": cash + 27_000.0,
        "total_equity": cash + 27_000.0 + worth,
        "positions": [
            {
                "strategy_id": strategy,
                "symbol": symbol,
                "qty": number,
                "current_price": last,
                "allocated_capital": own + number * last,
            }
            for strategy, symbol, number, last, own in held
        ],
        "last_rebalance_ts": rebalanced,
    }


def path(*points: tuple[float, float], every: float = 1.0, **more: Any) -> list[dict[str, Any]]:
    """Rows along straight lines between (minute, price) points."""
    minutes = [m * every for m in range(round(-59 / every), round(59 / every) + 1)]
    known = pd.Series(dict(points), dtype=float)
    known = known.reindex(sorted({*known.index, *minutes})).interpolate("index").ffill().bfill()
    return [row(minute, round(float(known[minute]), 4), **more) for minute in minutes]


FALL = path((0, 13.0), (10, 13.0), (20, 9.4), (30, 9.4), (40, 13.0))  # 18 % of 60,000
BREATHING = path((0, 13.0), (10, 13.0), (20, 11.1), (40, 13.0))  # 9.5 %


def alive(fills: float = 4.0) -> dict[str, pd.DataFrame]:
    """An exporter that counts fills and market prices that are seen."""
    lag = pd.DataFrame(
        [[0.01 + 0.001 * (n % 7)] for n in range(len(STEPS))],
        index=STEPS,
        columns=pd.MultiIndex.from_tuples([("p", "x")], names=["source", "job"]),
    )
    bars = [{"symbol": ATOM, "close": 13.0, "ts_close": at(minute)} for minute in range(-59, 60)]
    counted = series(({"venue": "binanceus", "job": "a"}, fills))
    return {"loop_lag": lag, "fills_counted": counted, "bars": records(bars)}


def found(given: Frames, **thresholds: Any) -> dict[str, Finding]:
    return {finding.id: finding for finding in KIND.analyse(given, Thresholds(**thresholds))}


def verdict(given: Frames, **thresholds: Any) -> Verdict:
    chosen = Thresholds(**thresholds)
    doubts = (*given.doubts, *KIND.doubts(given, chosen))
    return judge(KIND.analyse(given, chosen), given.coverage, doubts)[0]


def doubted(given: Frames) -> dict[str, Doubt]:
    return {doubt.what: doubt for doubt in KIND.doubts(given, Thresholds())}


# --- how deep ----------------------------------------------------------------------------


def test_a_fall_by_18_percent_is_confirmed_with_its_onset_and_recovery() -> None:
    given = frames(portfolio=records(FALL))
    fall = found(given)["drawdown"]
    assert fall.decides
    assert (fall.value, fall.unit, fall.threshold) == (pytest.approx(18.0), "%", 10.0)
    assert fall.spell is not None
    assert (fall.spell.onset, fall.spell.onset_latest) == (moment(at(10)), moment(at(11)))
    assert fall.spell.recovery == moment(at(40))
    assert verdict(given) is Verdict.CONFIRMED


def test_the_portfolio_dilutes_the_fall_of_a_strategy() -> None:
    whole = found(frames(portfolio=records(FALL)))["drawdown-of-all"]
    assert whole.value == pytest.approx(10.8)


def test_a_near_miss_decides_nothing_and_is_cleared_where_all_was_seen() -> None:
    given = frames(portfolio=records(BREATHING), **alive())
    assert not any(finding.decides for finding in found(given).values())
    assert found(given)["deepest"].value == pytest.approx(9.5)
    assert verdict(given) is Verdict.CLEARED


def test_a_fall_that_goes_on_has_no_recovery() -> None:
    fall = found(frames(portfolio=records(path((0, 13.0), (10, 13.0), (20, 9.4)))))["drawdown"]
    assert fall.spell is not None
    assert fall.spell.recovery is None
    assert fall.window.end == WINDOW.end
    assert "not recovered" in fall.claim


def test_rows_of_a_strategy_with_two_symbols_repeat_its_cash() -> None:
    rows = path((0, 13.0), (10, 13.0), (20, 9.0), cash=20_000.0, sol=100.0)
    fall = found(frames(portfolio=records(rows)))["drawdown"]
    assert fall.value == pytest.approx(20.0)  # of 60,000, not of 80,000


def test_the_journal_has_no_opening_row_so_the_first_peak_is_capital_times_weight() -> None:
    given = frames(portfolio=records([row(minute, 10.9) for minute in (1, 2, 3)]))
    fall = found(given)["drawdown"]
    assert fall.value == pytest.approx(10.5)
    assert "before the journal begins" in fall.claim
    half = {TREND: 0.53, RSI: 0.4}
    assert "drawdown" not in found(given, target_weights=half, total_capital_usd=101_000.0)


def test_a_strategy_without_a_weight_begins_at_its_first_equity() -> None:
    given = frames(portfolio=records([row(minute, 10.9) for minute in (1, 2, 3)]))
    (deepest,) = (r for r in found(given, target_weights={})["deepest"].rows if r["who"] == TREND)
    assert deepest["drawdown_pct"] == 0.0


def test_a_baseline_that_was_not_calm_is_said_and_still_decides() -> None:
    rows = [row(minute, 9.0) for minute in range(-59, 60)]
    fall = found(frames(portfolio=records(rows)))["drawdown"]
    assert fall.decides
    assert fall.spell is None
    assert "not calm" in fall.claim


def test_a_fall_of_the_baseline_alone_is_not_of_the_window() -> None:
    given = frames(portfolio=records(path((-40, 13.0), (-35, 9.0), (-30, 13.0))), **alive())
    assert not any(finding.decides for finding in found(given).values())


def test_the_same_frames_give_the_same_findings() -> None:
    given = frames(portfolio=records(FALL), **alive())
    once, twice = (json.dumps([f.to_json() for f in found(given).values()]) for _ in "ab")
    assert once == twice


def test_every_finding_cites_queries_that_the_kind_asks() -> None:
    asked = {query.name for query in QUERIES} | {"journal_files", "ALERTS"}
    for finding in found(frames(portfolio=records(FALL), **alive())).values():
        assert set(finding.cites) <= asked


# --- what made it ------------------------------------------------------------------------


def test_the_parts_add_up_to_the_fall_to_the_cent() -> None:
    rows = found(frames(portfolio=records(FALL)))["made-by"].rows
    assert sum(part["cents"] for part in rows) == -1_080_000
    assert rows[0]["symbol"] == ATOM
    assert rows[0]["share"] == 1.0


def test_rebalancing_buys_into_the_fall() -> None:
    marked = at(14.5)
    rows = [r for r in FALL if r["ts_ns"] <= at(14)]
    rows += [
        row(m, p, qty=3500.0, cash=21_000.0 - 500 * 11.2, rebalanced=marked)
        for m, p in ((15, 11.2), (18, 10.0), (20, 9.4), (30, 9.4))
    ]
    finding = found(frames(portfolio=records(rows)))["rebalanced"]
    assert [(r["qty"], r["usd"], r["lost_usd"]) for r in finding.rows] == [(500.0, 5600.0, 900.0)]


def test_a_buy_without_a_mark_is_no_rebalancing() -> None:
    rows = [
        row(m, p, qty=q) for m, p, q in ((1, 13.0, 3000.0), (5, 11.0, 3300.0), (9, 9.0, 3300.0))
    ]
    assert "rebalanced" not in found(frames(portfolio=records(rows)))


def test_caps_that_no_code_enforces_are_noted() -> None:
    rows = [row(1, 13.0), row(5, 11.0, qty=3100.0), row(9, 9.0, qty=3100.0)]
    caps = {r["cap"]: r for r in found(frames(portfolio=records(rows)))["caps"].rows}
    assert caps["per_order_usd_cap"]["seen"] == 1100.0
    assert caps["daily_loss_usd_cap"]["exceeded"]
    assert not caps["orders_per_min_cap"]["exceeded"]


# --- priced by the market ----------------------------------------------------------------


def test_prices_in_the_journal_move_only_on_fills_so_the_market_decides() -> None:
    quiet = [row(minute, 13.0) for minute in range(-59, 11)]
    bars = [{"symbol": ATOM, "close": 9.0, "ts_close": at(minute)} for minute in (20, 21)]
    given = frames(portfolio=records(quiet), bars=records(bars))
    finding = found(given)["marked-to-market"]
    assert finding.decides
    assert finding.value == pytest.approx(20.0)
    assert verdict(given) is Verdict.CONFIRMED


def test_a_market_that_agrees_with_the_journal_adds_nothing() -> None:
    assert "marked-to-market" not in found(frames(portfolio=records(BREATHING), **alive()))


# --- what the exporter claims ------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gauge_of_either_sign_is_the_same_percent(sign: float) -> None:
    gauge = series(({"strategy_id": TREND}, {-60.0: 0.0, 15.0: sign * 18.0}))
    finding = found(frames(portfolio=records(FALL), drawdown_gauge=gauge))["exported"]
    assert finding.value == 18.0
    assert ("negative" in finding.claim) == (sign < 0)


def test_placeholders_without_a_strategy_are_dropped() -> None:
    gauge = series(({"strategy_id": ""}, 99.0), ({"strategy_id": TREND}, {0.0: 12.0}))
    rows = found(frames(portfolio=records(FALL), drawdown_gauge=gauge))["exported"].rows
    assert [(r["strategy"], r["deepest_pct"]) for r in rows] == [(TREND, 12.0)]


def test_one_exporter_scraped_by_two_jobs_is_not_added_up() -> None:
    gauge = series(
        ({"strategy_id": TREND, "job": "njord_quant_fast"}, {0.0: 12.0}),
        ({"strategy_id": TREND, "job": "njord_quant_slow"}, {0.0: 11.0}),
    )
    assert found(frames(portfolio=records(FALL), drawdown_gauge=gauge))["exported"].value == 12.0


def test_profit_and_loss_is_turned_into_a_drawdown() -> None:
    pnl = series(({"strategy_id": TREND}, {-60.0: 0.0, 5.0: 6000.0, 15.0: -600.0}))
    rows = found(frames(pnl=pnl))["exported"].rows
    assert rows[0]["deepest_pct"] == pytest.approx(10.0)  # 66,000 -> 59,400


def test_what_only_an_exporter_claims_decides_only_where_a_site_trusts_it() -> None:
    gauge = series(({"strategy_id": TREND}, {-60.0: 0.0, 15.0: 18.0}))
    given = frames(drawdown_gauge=gauge)
    assert verdict(given) is Verdict.INCONCLUSIVE
    assert doubted(given)["exporter disagrees"].limits == "cleared"
    assert verdict(given, trust_exporter=True) is Verdict.CONFIRMED


def test_an_exporter_that_claims_what_the_journal_denies_prevents_cleared() -> None:
    gauge = series(({"strategy_id": TREND}, {-60.0: 0.0, 15.0: 18.0}))
    given = frames(portfolio=records(BREATHING), drawdown_gauge=gauge, **alive())
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_a_metric_that_nobody_exports_is_a_finding() -> None:
    given = frames(portfolio=records(FALL), states={"drawdown_gauge": "absent", "pnl": "absent"})
    finding = found(given)["never-exported"]
    assert finding.value == 2
    assert "njord_strategy_drawdown_pct" in finding.claim


# --- silence -----------------------------------------------------------------------------

HOLE = [r for r in path((0, 13.0)) if not at(20) < r["ts_ns"] < at(45)]


def test_without_a_journal_nothing_is_cleared() -> None:
    given = frames(states={"portfolio": "absent"})
    assert found(given) == {}
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_a_journal_that_is_silent_while_fills_are_counted_has_stopped() -> None:
    given = frames(portfolio=records(HOLE), **alive())
    assert doubted(given)["journal stopped"].limits == "cleared"
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_a_fill_that_something_else_wrote_shows_that_the_journal_stopped() -> None:
    written = records([{"symbol": ATOM, "qty": 1.0, "ts_ns": at(30)}])
    given = frames(portfolio=records(HOLE), positions=written, **alive(0.0))
    assert "1 fills" in doubted(given)["journal stopped"].detail


def test_a_journal_that_is_silent_without_a_fill_is_calm() -> None:
    given = frames(portfolio=records(HOLE), **alive(0.0))
    assert doubted(given) == {}
    assert verdict(given) is Verdict.CLEARED


def test_without_a_fill_and_without_prices_a_position_may_have_lost_anything() -> None:
    seen = {**alive(0.0), "bars": records(())}
    given = frames(portfolio=records(HOLE), **seen)
    assert "saw no price" in doubted(given)["journal silent"].detail
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_an_exporter_that_answers_and_never_moves_proves_no_calm() -> None:
    still = series(({"job": "x"}, 0.01))
    given = frames(portfolio=records(HOLE), **{**alive(0.0), "loop_lag": still})
    assert "seen alive" in doubted(given)["journal silent"].detail
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_a_journal_without_any_witness_proves_no_calm() -> None:
    given = frames(portfolio=records(HOLE))
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_a_journal_that_ends_within_the_window_is_silent_too() -> None:
    rows = [r for r in path((0, 13.0)) if r["ts_ns"] < at(30)]
    given = frames(portfolio=records(rows), **alive())
    assert doubted(given)["journal stopped"].window == Window(moment(at(29)), WINDOW.end)


def archive(stem: str, *spans: tuple[float, float]) -> pd.DataFrame:
    names = [f"{stem}.20261120.ndjson.gz", f"{stem}.ndjson"]
    told = [
        {"file": name, "stem": stem, "first_ns": at(a), "last_ns": at(b)}
        for name, (a, b) in zip(names, spans, strict=True)
    ]
    return files(*told)


def test_between_an_archive_and_the_next_file_lines_may_be_lost() -> None:
    given = frames(
        portfolio=records(BREATHING),
        journal_files=archive("portfolio", (-90, 20), (30, 59)),
        **alive(),
    )
    lost = doubted(given)["lines lost at compression"]
    assert lost.window == Window(moment(at(20)), moment(at(30)))
    assert "10 min later, while 80 fills were counted" in lost.detail
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_lines_lost_before_the_window_limit_nothing() -> None:
    told = archive("portfolio", (-900, -50), (-40, 59))
    given = frames(portfolio=records(BREATHING), journal_files=told, **alive())
    assert doubted(given)["lines lost at compression"].limits == ""


def test_a_file_that_follows_its_archive_at_once_lost_nothing() -> None:
    told = archive("portfolio", (-900, 20), (21, 59))
    assert doubted(frames(portfolio=records(BREATHING), journal_files=told, **alive())) == {}


def test_rows_that_cannot_be_read_prevent_cleared_when_they_are_many() -> None:
    rows = [*BREATHING, *({"ts_ns": at(n), "cash": "many"} for n in range(20))]
    given = frames(portfolio=records(rows), **alive())
    assert doubted(given)["unreadable rows"].limits == "cleared"
    assert verdict(given) is Verdict.INCONCLUSIVE


def test_symbols_that_disagree_about_their_strategys_cash_are_doubted() -> None:
    rows = [row(minute, 13.0, sol=10.0) for minute in range(60)]
    for one in rows:
        one["positions"][2]["allocated_capital"] += 500
    assert doubted(frames(portfolio=records(rows), **alive()))["ambiguous cash"].limits == "cleared"


# --- rules -------------------------------------------------------------------------------

IN_PROCESS = Rule("high_drawdown", "in-process", "m", 10.0, 60.0, repeat_s=300.0)
CATALOGUE = Rule("HighDrawdown", "Prometheus", "m", 15.0, 60.0, every_s=30.0)


def drawdown(*points: tuple[float, float]) -> pd.Series:
    times = pd.to_datetime([at(minute) for minute, _ in points], utc=True)
    return pd.Series([value for _, value in points], index=times)


def test_a_hold_is_checked_only_when_a_sample_arrives() -> None:
    (firing,) = replay(IN_PROCESS, {TREND: drawdown((0, 5), (1, 11), (1.5, 12), (9, 12))})
    assert (firing.crossed_ns, firing.fires_ns) == (at(1), at(9))


def test_a_stalled_metric_never_fires_in_process() -> None:
    (firing,) = replay(IN_PROCESS, {TREND: drawdown((0, 5), (1, 11), (1.5, 19))})
    assert firing.fires_ns is None


def test_a_bounce_below_the_threshold_begins_the_hold_anew() -> None:
    curve = drawdown((1, 11), (1.5, 9), (2, 11), (2.9, 12), (3.1, 12))
    (firing,) = replay(IN_PROCESS, {TREND: curve})
    assert (firing.crossed_ns, firing.fires_ns) == (at(1), at(3.1))


def test_a_second_strategy_within_five_minutes_is_never_told() -> None:
    first, second = drawdown((0, 11), (1, 11), (9, 11)), drawdown((2, 11), (3, 11), (9, 11))
    third = drawdown((0, 1), (6, 11), (8, 11))
    told = {
        f.strategy: f.suppressed for f in replay(IN_PROCESS, {"a": first, "b": second, "c": third})
    }
    assert told == {"a": False, "b": True, "c": False}


def test_prometheus_goes_on_with_the_last_value_and_fires_after_its_hold() -> None:
    (firing,) = replay(CATALOGUE, {TREND: drawdown((0, 5), (1, 16), (30, 16))})
    assert firing.fires_ns == at(2)
    (short,) = replay(CATALOGUE, {TREND: drawdown((0, 5), (1, 16), (1.5, 14))})
    assert short.fires_ns is None


def test_both_thresholds_are_replayed_and_grafanas_never_fires() -> None:
    rows = found(frames(portfolio=records(FALL)))["alert-replay"].rows
    by = {r["rule"]: r for r in rows}
    assert by["high_drawdown (in-process)"]["would_fire"] == utc_text(moment(at(17)))
    assert by["HighDrawdown (Prometheus)"]["would_fire"] == utc_text(moment(at(20)))
    assert "nobody exports" in by["Strategy Drawdown > 10% (Grafana)"]["why_not"]


def test_a_rule_that_would_have_fired_on_a_negative_gauge_did_not() -> None:
    gauge = series(({"strategy_id": TREND}, {-60.0: 0.0, 15.0: -18.0}))
    rows = found(frames(portfolio=records(FALL), drawdown_gauge=gauge))["alert-replay"].rows
    assert rows[0]["why_not"] == "the exported value is negative"


def test_a_rule_that_fired_is_seen_in_prometheus_and_on_the_bus() -> None:
    alert = {"alertname": "HighDrawdown", "alertstate": "firing", "strategy_id": TREND}
    told = {
        "capture_ts_ns": at(18),
        "topic": "telemetry.alerts",
        "payload": {"name": "high_drawdown", "labels": {"strategy_id": TREND}},
    }
    given = frames(
        portfolio=records(FALL), ALERTS=series((alert, {21.0: 1.0})), bus=records([told])
    )
    fired = {r["rule"]: r["fired"] for r in found(given)["alert-replay"].rows}
    assert fired["HighDrawdown (Prometheus)"] == utc_text(moment(at(21)))
    assert fired["high_drawdown (in-process)"] == utc_text(moment(at(18)))


# --- the kill switch ---------------------------------------------------------------------


def refused(minute: float, by: str) -> dict[str, Any]:
    stamp = moment(at(minute)).isoformat()
    return {"event": "live_halted", "source": by, "timestamp": stamp, "level": "warning"}


def halt_file(minute: float, name: str = "var/njord.trading.halt") -> pd.DataFrame:
    file = {"file": name, "modified": utc_text(moment(at(minute)))}
    return files(
        {"files": [file, {"file": "app.ndjson", "modified": "2026-11-20T10:00:00Z"}]},
        role="listing",
    )


def test_how_long_after_the_crossing_it_was_halted_and_by_what() -> None:
    said = records([refused(20, "file"), refused(24, "redis")])
    finding = found(frames(portfolio=records(FALL), app=said))["kill-switch"]
    assert finding.value == 240.0  # crossed at 10:16, refused at 10:20
    assert "file and redis" in finding.claim


def test_the_mtime_of_the_halt_file_is_its_last_trip_and_not_the_first() -> None:
    given = frames(
        portfolio=records(FALL), app=records([refused(20, "file")]), journal_files=halt_file(50)
    )
    finding = found(given)["kill-switch"]
    assert finding.value == 240.0
    assert "halted again once later" in finding.claim
    assert [(r["halt"], r["first"][11:16]) for r in finding.rows] == [(1, "10:20"), (2, "10:50")]


def test_a_halt_file_that_is_gone_tells_nothing() -> None:
    gone = files({"halt_file": {"there": False, "modified": ""}, "files": []}, role="listing")
    finding = found(frames(portfolio=records(FALL), journal_files=gone))["kill-switch"]
    assert finding.claim == "Nothing shows that trading was halted"


def test_the_counter_of_trips_counts_denied_intents_and_knows_only_the_step() -> None:
    trips = series(({"source": "redis", "job": "a"}, {0.0: 0.0, 20.0: 3.0, 20.5: 0.0}))
    (sign,) = halts(frames(killswitch_trips=trips))
    assert (sign.by, sign.count, sign.width_s) == ("redis", 3, 30.0)
    assert sign.ts_ns == at(20.5)  # by then at the latest


def test_denials_on_the_bus_name_the_switch_and_other_reasons_do_not() -> None:
    def denial(minute: float, reason: str, **more: Any) -> dict[str, Any]:
        payload = {"intent_id": "a", "allowed": False, "reason": reason, **more}
        return {"capture_ts_ns": at(minute), "topic": "risk.decision", "payload": payload}

    bus = records(
        [
            denial(20, "kill-switch", caps={"source": "file"}),
            denial(21, "halted"),
            denial(22, "duplicate-intent"),
            denial(23, "live_micro_cap"),
            {"capture_ts_ns": at(24), "payload": "torn"},
        ]
    )
    assert [(s.ts_ns, s.by) for s in halts(frames(bus=bus))] == [(at(20), "file"), (at(21), "")]


def test_signs_that_are_far_apart_are_two_halts() -> None:
    signs = halts(frames(app=records([refused(m, "file") for m in (1, 3, 7, 13)])))
    assert [len(stretch) for stretch in stretches(signs, 300.0)] == [3, 1]


def test_only_what_traded_while_it_was_halted_traded_on() -> None:
    rows = [
        *(r for r in FALL if r["ts_ns"] <= at(19)),
        row(21, 9.4, qty=3010.0),
        row(30, 9.4, qty=3050.0),
    ]
    said = records([refused(20, "file"), refused(22, "file"), refused(45, "file")])
    finding = found(frames(portfolio=records(rows), app=said))["traded-after-halt"]
    assert [r["qty"] for r in finding.rows] == [10.0]
    assert finding.value == 94.0


# --- log lines, orders, reloads ----------------------------------------------------------


def test_a_line_without_a_time_lies_between_its_neighbours() -> None:
    silent = {"event": "telemetry.metrics.consumer_error", "level": "error"}
    said = records([silent, refused(20, "file"), silent, refused(25, "file"), silent])
    lines = [b for b in bounded(said) if b.value is silent]
    assert [(b.after_ns, b.before_ns) for b in lines] == [
        (None, at(20)),
        (at(20), at(25)),
        (at(25), None),
    ]
    rows = found(frames(portfolio=records(FALL), app=said))["log-lines"].rows
    assert rows[0]["means"] == "the exporter's values stand still from here on"


def test_shared_order_ids_are_many_to_many_and_time_tells_some_apart() -> None:
    def one(minute: float, name: str = "NJ-trendline_sell_17952", **more: Any) -> dict[str, Any]:
        return {"client_order_id": name, "ts_ns": at(minute), **more}

    orders = records([one(1), one(2), one(2.01), one(9, "NJ-other")])
    acks = records(
        [
            {**one(1), "ts_ns": at(1) // 1_000_000 + 200},  # milliseconds, as an exchange has them
            one(2.02),
            one(2.03),
            one(9.01, "NJ-other"),
        ]
    )
    ids = shared_ids(orders, acks, near_s=5.0)
    assert (ids.ids, ids.shared, ids.pairs) == (2, 1, 10)
    assert (ids.near, ids.certain) == (6, 2)
    finding = found(frames(portfolio=records(FALL), orders=orders, acks=acks))["order-ids"]
    assert "1 of 2 client_order_ids" in finding.claim


def test_a_reload_of_the_configuration_is_set_beside_the_onset() -> None:
    reloads = records([{"ts_ns": at(4), "old": "a" * 64, "new": "b" * 64}])
    finding = found(frames(portfolio=records(FALL), config_changes=reloads))["config-change"]
    assert finding.value == -360.0


def test_hostile_text_is_data_wherever_it_stands() -> None:
    rows = json.loads(json.dumps(FALL).replace(TREND, "X").replace(ATOM, "Y"))
    for one in rows:
        for position in one["positions"]:
            position["strategy_id"] += HOSTILE
            position["symbol"] = HOSTILE + "{rule}%s"
    app = records(
        [{**refused(20, HOSTILE), "logger": HOSTILE}, {"event": HOSTILE, "level": "error"}]
    )
    bus = records(
        [
            {
                "capture_ts_ns": at(20),
                "payload": {"allowed": False, "caps": HOSTILE, "reason": "halted"},
            }
        ]
    )
    gauge = series(({"strategy_id": "X" + HOSTILE}, {0.0: 18.0}))
    given = frames(portfolio=records(rows), app=app, bus=bus, drawdown_gauge=gauge)
    findings = found(given, target_weights={"X" + HOSTILE: 0.6})
    assert findings["drawdown"].decides
    assert json.dumps([f.to_json() for f in findings.values()])
    assert len(moments(list(findings.values()))) > 3


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {"positions": None}, {"payload": 3}])
def test_records_of_any_shape_break_nothing(wrong: Any) -> None:
    odd = [{"ts_ns": at(20), "event": wrong, "payload": wrong, "client_order_id": wrong,
            "close": wrong, "price": wrong, "symbol": wrong, "source": wrong, "old": wrong,
            "positions": wrong, "cash": wrong, "level": wrong}]  # fmt: skip
    tables = {q.name: records(odd) for q in QUERIES if q.shape is Shape.RECORDS}
    given = frames(**{**tables, "portfolio": records([*FALL, *odd])})
    assert found(given)["drawdown"].decides
    KIND.doubts(given, Thresholds())


# --- the sealed example ------------------------------------------------------------------


@pytest.fixture(scope="module")
def example() -> Any:
    return open_case(EXAMPLE)


@pytest.fixture(scope="module")
def told(example: Any) -> dict[str, Finding]:
    return {finding.id: finding for finding in example.assessment.findings}


def test_the_example_is_confirmed_by_its_strategy(example: Any, told: dict[str, Finding]) -> None:
    assert example.assessment.verdict is Verdict.CONFIRMED
    assert told["drawdown"].claim.startswith(TREND)
    assert told["drawdown"].value == pytest.approx(17.29, abs=0.01)
    assert told["drawdown-of-all"].value < told["drawdown"].value


def test_the_examples_second_strategy_fell_by_the_market_alone(told: dict[str, Finding]) -> None:
    (second,) = (r for r in told["marked-to-market"].rows if r["who"] == RSI)
    assert second["by_journal_pct"] < 10 < second["by_market_pct"]


def test_the_examples_exporter_is_negative_doubled_and_frozen(
    example: Any, told: dict[str, Finding]
) -> None:
    assert told["exported"].value == pytest.approx(told["drawdown"].value, abs=0.01)
    assert "negative" in told["exported"].claim
    frozen = [d for d in example.assessment.doubts if d.what == "frozen exporter"]
    assert {d.limits for d in frozen} == {"cleared"}


def test_the_examples_first_crossing_does_not_hold(told: dict[str, Finding]) -> None:
    first = told["alert-replay"].rows[0]
    assert (first["crossed"][11:19], first["would_fire"][11:19]) == ("10:34:50", "10:40:43")
    assert not any(r["fired"] for r in told["alert-replay"].rows)


def test_the_examples_halt_was_seen_long_before_the_file_that_is_there(
    told: dict[str, Finding],
) -> None:
    assert utc_text(told["kill-switch"].window.start)[11:19] == "10:47:44"
    assert [r["qty"] for r in told["traded-after-halt"].rows] == [40.0, 40.0]
    assert told["rebalanced"].rows[0]["qty"] == 300.0


def test_the_examples_silences_are_told_apart(example: Any) -> None:
    doubts = {doubt.what: doubt for doubt in example.assessment.doubts}
    assert "journal stopped" not in doubts  # it was halted, and nothing was filled
    assert "lines lost at compression" in doubts
    assert "quarantined" in doubts


@pytest.mark.parametrize("away", ["journals", "prometheus"])
def test_the_example_without_a_source_claims_no_more_than_it_saw(example: Any, away: str) -> None:
    whole = example.frames
    gone = {query.name for query in example.queries if query.source == away}
    tables = {name: t if name not in gone else t.iloc[:0] for name, t in whole.tables.items()}
    coverage = tuple(
        replace(c, state="failed", ratio=0.0) if c.query in gone else c for c in whole.coverage
    )
    if away == "prometheus":
        tables |= {name: tables[name].iloc[:, :0] for name in gone & tables.keys()}
    left = replace(whole, tables=tables, coverage=coverage)
    expected = Verdict.INCONCLUSIVE if away == "journals" else Verdict.CONFIRMED
    assert verdict(left) is expected
