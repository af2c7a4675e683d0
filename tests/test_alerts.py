"""Alert rules replayed: against promtool, over sealed cases, and where a rule is at fault."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import prometheus_server
import pytest
import yaml
from made import START, Writer, at, capture, window

from tbforensics import collect, display, parameters
from tbforensics.alerts import claims as alerts
from tbforensics.alerts import rules as alertrules
from tbforensics.alerts import watch as alertwatch
from tbforensics.alerts.checks import Known, problems
from tbforensics.alerts.replay import Replay, replay
from tbforensics.alerts.rules import Rule
from tbforensics.assess import assess
from tbforensics.case import open_case
from tbforensics.errors import ParametersError
from tbforensics.evidence import Evidence, rows, series_id, series_row
from tbforensics.model import (
    Capture,
    Finding,
    Frames,
    Incident,
    Kind,
    Query,
    Shape,
    SourceConfig,
    Spell,
    Verdict,
)
from tbforensics.promql.ranges import semantics
from tbforensics.promql.series import Series, labels_of

NEW, OLD = semantics("3.5.0"), semantics("2.42.0+ds")
EXAMPLE = Path(__file__).parent.parent / "incidents" / "example-quic-failure"

# --- against promtool ----------------------------------------------------------------------

STEP_S, STEPS = 15, 160
RULES = [
    Rule("Level", "level > 5", for_s=60),
    Rule("Kept", "level > 6", for_s=30, keep_firing_for_s=120),
    Rule("AtOnce", "max by (instance) (level) > 7", labels={"severity": "page"}),
    Rule("Rate", "sum by (lane) (rate(fails_total[2m])) > 0.25", for_s=120),
    Rule("Odd", "increase(fails_total[3m]) > 30 or level < 1", for_s=45),
    Rule("Gone", 'absent(level{instance="b"})', for_s=20, labels={"instance": "b"}),
    Rule("Ratio", "rate(fails_total[5m]) / on(instance) group_left level > 0.1", for_s=60),
]


def generated(seed: int) -> dict[str, list[list[float | str | None]]]:
    """Values at every step, by series in promtool's spelling; None for no sample."""
    rng = np.random.default_rng(seed)
    made: dict[str, list[float | str | None]] = {}
    for instance in "ab":
        level = np.clip(np.cumsum(rng.normal(0, 0.8, STEPS)) % 10, 0, 10).round(1)
        values: list[float | str | None] = [float(v) for v in level]
        for hole in rng.integers(0, STEPS - 40, 3):
            length = int(rng.integers(1, 35))
            values[hole : hole + length] = [None] * length
            if rng.random() < 0.6:
                values[hole] = "stale"
        made[f'level{{instance="{instance}"}}'] = values
        for lane in ("fast", "slow"):
            total = np.cumsum(rng.poisson(rng.choice([0.5, 6.0], STEPS)))
            restart = int(rng.integers(20, STEPS))
            total[restart:] -= total[restart]
            counted: list[float | str | None] = [float(v) for v in total]
            late = int(rng.integers(0, 50))  # it registers at first use
            counted[:late] = [None] * late
            made[f'fails_total{{instance="{instance}", lane="{lane}"}}'] = counted
    return {name: list(values) for name, values in made.items()}


def as_series(made: Mapping[str, Sequence[float | str | None]]) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for spelled, values in made.items():
        name, _, rest = spelled.partition("{")
        pairs = [part.split("=") for part in rest.rstrip("}").split(", ")]
        labels = labels_of([("__name__", name), *((k, v.strip('"')) for k, v in pairs)])
        kept = [(n, v) for n, v in enumerate(values) if isinstance(v, float)]
        ends = [n * STEP_S * 1000 for n, v in enumerate(values) if v == "stale"]
        times = np.array([n * STEP_S * 1000 for n, _ in kept], np.int64)
        series = Series(labels, times, np.array([v for _, v in kept]), np.array(ends, np.int64))
        found.setdefault(name, []).append(series)
    return found


@pytest.mark.skipif(not prometheus_server.installed(), reason="no promtool here")
@pytest.mark.parametrize("seed", range(4))
def test_promtool_sees_the_same_alerts_pending_and_firing_at_every_evaluation(seed, tmp_path):
    made = generated(seed)
    done = [
        replay(replace(rule, interval_s=STEP_S), as_series(made), 0, STEPS * STEP_S * 1000, OLD, 0)
        for rule in RULES
    ]
    assert {one.state for one in done} == {"replayed"}
    assert any(s.firing is not None for one in done for s in one.spells)
    moments = [n * STEP_S * 1000 for n in range(STEPS)]
    expected = [[label for one in done for label in told(one, ms)] for ms in moments]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [as_group(RULES)]}))
    tests = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": f"{STEP_S}s",
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [
                    {"series": name, "values": " ".join("_" if v is None else str(v) for v in row)}
                    for name, row in made.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": "ALERTS",
                        "eval_time": f"{ms // 1000}s",
                        "exp_samples": [{"labels": label, "value": 1} for label in labels],
                    }
                    for ms, labels in zip(moments, expected, strict=True)
                ],
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))
    referee = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert referee.returncode == 0, referee.stdout[-3000:] + referee.stderr[-3000:]


def told(done: Replay, ms: int) -> list[str]:
    """Series of ALERTS that the rule would have at a moment."""
    found = []
    for spell in done.spells:
        if spell.pending <= ms and (spell.ended is None or ms < spell.ended):
            state = "firing" if spell.firing is not None and spell.firing <= ms else "pending"
            labels = {**dict(spell.labels), "alertstate": state}
            found.append(
                "ALERTS{" + ", ".join(f"{k}={json.dumps(v)}" for k, v in labels.items()) + "}"
            )
    return found


def as_group(rules: Sequence[Rule]) -> dict[str, object]:
    return {
        "name": "g",
        "rules": [
            {
                "alert": rule.alert,
                "expr": rule.expr,
                "for": f"{rule.for_s:g}s",
                "keep_firing_for": f"{rule.keep_firing_for_s:g}s",
                "labels": dict(rule.labels),
            }
            for rule in rules
        ],
    }


# --- a rule's own faults -------------------------------------------------------------------


def flat(name: str, value: float = 1.0, **labels: str) -> Series:
    times = np.arange(0, 3_600_000, 15_000, dtype=np.int64)
    named = labels_of({"__name__": name, **labels})
    return Series(named, times, np.full(len(times), value))


def known(*series: Series, types: Mapping[str, str] = {}, **more) -> Known:
    samples: dict[str, list[Series]] = {}
    for one in series:
        samples.setdefault(dict(one.labels)["__name__"], []).append(one)
    given = {"names": set(samples), "asked": set(samples), "documented": set(types), **more}
    given["asked"] = given["asked"] | {"CONSUMER_FEE_P90", "ghost_total"}
    return Known(samples=samples, rules=OLD, types=types, **given)


def faults(expr: str, given: Known, cannot: str = "fire") -> list[str]:
    return [p.why for p in problems(Rule("a", expr), given) if p.cannot == cannot]


BUCKETS = [flat("gossip_convergence_seconds_bucket", le=le) for le in ("0.5", "2", "10", "+Inf")]
CONVERGENCE = (
    "histogram_quantile(0.95, sum(rate(gossip_convergence_seconds_bucket[5m])) by (le)) {}"
)


@pytest.mark.parametrize(
    ("comparison", "dead"),
    [("> 30", True), ("> 10", True), (">= 10", False), ("> 9.9", False), ("< 30", False)],
)
def test_a_quantile_cannot_exceed_the_highest_finite_bucket(comparison, dead):
    found = faults(CONVERGENCE.format(comparison), known(*BUCKETS))
    assert bool(found) is dead
    if dead:
        assert "the highest finite bucket of gossip_convergence_seconds_bucket is 10" in found[0]


def test_a_scaled_quantile_keeps_its_ceiling_and_so_does_one_on_the_right():
    scaled = "max(histogram_quantile(0.9, gossip_convergence_seconds_bucket) * 1000) > 20000"
    assert "times 1000 that is 10000" in faults(scaled, known(*BUCKETS))[0]
    turned = "30 < histogram_quantile(0.9, gossip_convergence_seconds_bucket)"
    assert faults(turned, known(*BUCKETS))
    assert not faults("sum(gossip_convergence_seconds_bucket) > 30", known(*BUCKETS))


def test_an_upper_case_metric_is_found_under_its_true_name():
    rule = (
        "max_over_time(CONSUMER_FEE_P90[10m]) "
        '> on() param_change_active{key="ConsumerFeeComfortP90Microunits"}'
    )
    given = known(
        flat("consumer_fee_p90"),
        flat("param_change_active", key="consumer_fee_comfort_p90_microunits"),
        flat("param_change_active", key="other"),
    )
    assert faults(rule, given) == [
        "there is no metric CONSUMER_FEE_P90; there is consumer_fee_p90",
        'no series of param_change_active has key="ConsumerFeeComfortP90Microunits"; '
        'there is key="consumer_fee_comfort_p90_microunits"',
    ]


def test_a_value_that_may_still_come_is_no_fault():
    given = known(flat("fails_total", reason="timeout"))
    assert not faults('fails_total{reason="tls"} > 0', given)
    assert not faults('fails_total{reason="timeout"} > 0', given)
    assert faults('fails_total{Reason="timeout"} > 0', given) == [
        'no series of fails_total has Reason="timeout"; the label is spelled reason'
    ]


def test_a_metric_that_nobody_knows_cannot_be_told_from_one_that_registers_late():
    given = known(flat("fails_total"), types={"fails_total": "counter"})
    (why,) = faults("rate(ghost_total[5m]) > 0", given)
    assert "neither in samples nor in the server's metadata" in why
    assert "registers at first use" in why
    silent = known(flat("fails_total"))  # a server without metadata proves nothing
    assert not faults("rate(ghost_total[5m]) > 0", silent)
    assert not faults("rate(ghost_total[5m]) > 0", replace(given, names={"ghost_total"}))


def test_a_dead_side_of_or_and_what_absent_looks_for_kill_no_rule():
    given = known(flat("consumer_fee_p90"))
    assert not faults("CONSUMER_FEE_P90 > 1 or consumer_fee_p90 > 1", given)
    assert faults("CONSUMER_FEE_P90 > 1 or CONSUMER_FEE_P90 > 2", given)
    assert faults("CONSUMER_FEE_P90 > 1 unless consumer_fee_p90 > 1", given)
    assert not faults("consumer_fee_p90 > 1 unless CONSUMER_FEE_P90 > 1", given)
    assert not faults("absent(CONSUMER_FEE_P90)", given)


def test_increase_of_a_gauge_is_unsound_and_the_same_of_a_counter_is_not():
    types = {"rent_escrow_locked_ct_total": "gauge", "subsidy_bytes_total": "counter"}
    given = known(flat("rent_escrow_locked_ct_total"), flat("subsidy_bytes_total"), types=types)
    spike = "increase(subsidy_cpu_ms_total[10m]) > 1e9 or increase(subsidy_bytes_total[10m]) > 1e12"
    (why,) = faults("increase(rent_escrow_locked_ct_total[10m]) > 1e6", given, "mean it")
    assert "is a gauge" in why
    assert problems(Rule("SubsidyGrowthSpike", spike), given) == []
    (why,) = faults("delta(subsidy_bytes_total[10m]) > 5", given, "mean it")
    assert "is a counter" in why


def test_a_payout_rule_that_looks_odd_and_can_fire_is_left_alone():
    given = known(
        flat("explorer_read_payout_last_seen_timestamp", 100.0, role="viewer"),
        flat("explorer_read_payout_total", 3.0, role="viewer"),
    )
    expr = (
        "(time() - explorer_read_payout_last_seen_timestamp > 1800) "
        "and on(role) explorer_read_payout_total > 0"
    )
    assert problems(Rule("ExplorerReadPayoutStalled", expr), given) == []


def test_a_range_no_longer_than_the_scrape_interval_never_holds_two_samples():
    (why,) = faults("rate(fails_total[15s]) > 0", known(flat("fails_total")))
    assert "scraped every 15 s" in why
    assert not faults("rate(fails_total[1m]) > 0", known(flat("fails_total")))


# --- thresholds ----------------------------------------------------------------------------


def ramp(name: str, values: Sequence[float], every_s: int = 60, **labels: str) -> Series:
    times = np.arange(len(values), dtype=np.int64) * every_s * 1000
    return Series(labels_of({"__name__": name, **labels}), times, np.array(values, float))


def test_a_lower_threshold_would_have_fired_earlier_and_noise_before_the_window_counts():
    # The rule of the catalogue says 15, the engine's own says 10: both are real.
    drawdown = [0, 0, 11, 0, 0, 0, 0, 0, 6, 8, 10.5, 11, 12, 13, 16, 17, 18, 9, 2, 0]
    samples = {"njord_strategy_drawdown_pct": [ramp("njord_strategy_drawdown_pct", drawdown)]}
    rule = Rule("HighDrawdown", "njord_strategy_drawdown_pct > 15", 60.0, interval_s=60.0)
    done = replay(rule, samples, 0, 20 * 60_000, OLD, opens=5 * 60_000)
    (spell,) = done.spells
    assert (spell.pending, spell.firing, spell.ended) == (840_000, 900_000, 1_020_000)
    assert done.threshold == 15.0
    assert done.extreme == 17.0  # 17 % was kept up for the minute that the rule waits
    quarter = {other.threshold: other for other in done.nearer}
    assert quarter[11.25].firing == 780_000
    assert quarter[7.5].firing == 600_000
    assert quarter[3.75].firing == 540_000
    assert [other.before for other in done.nearer] == [0, 0, 0]
    at_once = replay(replace(rule, for_s=0.0), samples, 0, 20 * 60_000, OLD, opens=5 * 60_000)
    assert [other.before for other in at_once.nearer] == [0, 1, 1]


def test_thresholds_below_are_searched_upwards_for_a_rule_that_fires_when_low():
    samples = {"sharpe": [ramp("sharpe", [2, 2, 2, 0.7, 0.6, 0.4, 0.4, 2])]}
    rule = Rule("LowSharpe", "sharpe < 0.5", interval_s=60.0)
    done = replay(rule, samples, 0, 8 * 60_000, OLD, opens=0)
    assert [(o.threshold, o.firing) for o in done.nearer] == [
        (0.625, 240_000),
        (0.75, 180_000),
        (0.875, 180_000),
    ]
    assert done.extreme == 0.4


# --- a sealed case -------------------------------------------------------------------------

FAILS = Query("fails", "prometheus", "fails_total", "failures", Shape.COUNTER, required=True)
QUERIES = (
    FAILS,
    Query("up", "prometheus", "up"),
    Query("ALERTS", "prometheus", "ALERTS", params={"everywhere": True}, sparse=True),
)
INCIDENT = Incident(
    id="i",
    kind="k",
    title="",
    window=window(3600, 7200),
    baseline=window(0, 3600),
    step_s=30.0,
    sources=(SourceConfig("main", "prometheus", "http://x"),),
    thresholds={},
    timeline=(),
    notes="",
    digest="",
)
SPIKE = Rule("Spike", "rate(fails_total[2m]) > 0.5", for_s=300.0, interval_s=15.0)


def sealed(
    folder: Path,
    rules: Sequence[Rule] = (SPIKE,),
    *,
    series: Mapping[str, Mapping[tuple[tuple[str, str], ...], Sequence[tuple[float, float]]]] = {},
    snapshots: Mapping[str, object] = {},
    version: str = "2.42.0",
    missing: tuple[str, ...] = (),
) -> tuple[Evidence, list[Capture]]:
    """A case in which fails_total rises by 1 a second from 4200 s on, and its captures."""
    spiking = [(s, 0.0 if s < 4200 else float(s - 4200)) for s in range(-300, 7200, 15)]
    found = {
        "fails_total": {(("instance", "a"), ("job", "j")): spiking},
        "up": {(("instance", "a"), ("job", "j")): [(s, 1.0) for s, _ in spiking]},
        **series,
    }
    said = {
        "rules": {"groups": [served(rule) for rule in rules]},
        "buildinfo": {"version": version},
        "flags": {"query.lookback-delta": "5m"},
        **snapshots,
    }
    names = {query.text: query.name for query in QUERIES}
    writer = Writer(folder)
    captures = []
    for metric, lines in found.items():
        query = names.get(metric, "rule_series")
        for number, (labels, samples) in enumerate(lines.items()):
            named = {"__name__": metric, **dict(labels)}
            row = series_row("main", query, named)
            asked = replace(capture(query), request={"n": number, "m": metric})
            writer.add(asked, "series", rows("series", [row]))
            sid = series_id("main", query, named)
            batch = [{"sid": sid, "ts": at(s), "value": v} for s, v in samples]
            writer.add(asked, "samples", rows("samples", batch))
    for query, value in said.items():
        record = {
            "source": "main", "query": query, "role": query, "ts": at(7300), "generation": "",
            "state": "ok", "value": json.dumps(value),
        }  # fmt: skip
        writer.add(replace(capture(query), role=query), "snapshots", rows("snapshots", [record]))
    writer.close()
    asked_names = "|".join(m for m in found if m not in names)
    for query, text in [*((q.name, q.text) for q in QUERIES), ("rule_series", asked_names)]:
        for edges in ((-300, 3000), (3000, 7200)):
            part = f'{{__name__=~"{text}"}}' if query == "rule_series" else text
            bad = query in missing and edges[0] == 3000
            captures.append(
                replace(
                    capture(query),
                    window=window(*edges),
                    request={"params": {"query": f"{part}[1h]"}},
                    error="HTTP 500" if bad else "",
                )
            )
    return Evidence(folder), captures


def served(rule: Rule) -> dict[str, object]:
    """A group of one rule, as /api/v1/rules tells it."""
    return {
        "name": rule.group or "g",
        "interval": rule.interval_s,
        "rules": [
            {"type": "recording", "name": "x:y", "query": "x"},
            {
                "type": "alerting",
                "name": rule.alert,
                "query": rule.expr,
                "duration": rule.for_s,
                "keepFiringFor": rule.keep_firing_for_s,
                "labels": dict(rule.labels),
                "lastEvaluation": "0001-01-01T00:00:00Z",
            },
        ],
    }


def watched(folder: Path, *args, incident: Incident = INCIDENT, **more):
    evidence, captures = sealed(folder, *args, **more)
    with_close = alertwatch.watch(evidence, incident, QUERIES, captures)
    evidence.close()
    return with_close


ONSET = Finding(
    "it began",
    1.0,
    "x",
    window(4200, 7200),
    ("fails",),
    id="onset",
    spell=Spell(at(4200), at(4200), at(4215)),
    decides=True,
)
KIND = Kind("K", "?", QUERIES, type("T", (), {}), lambda frames, thresholds: [ONSET], "onset")


def assessed(replays) -> object:
    frames = Frames(INCIDENT.window, INCIDENT.baseline, 30.0, {})
    return assess(INCIDENT, KIND, frames, replays)


def test_a_replay_tells_when_it_would_have_fired_and_the_timing_audit_names_it_so(tmp_path):
    (one,) = replays = watched(tmp_path)
    (spell,) = one.fired(INCIDENT.window)
    assert one.replay.state == "replayed"
    assert spell.firing == round((START + timedelta(seconds=4575)).timestamp() * 1000)
    assert spell.ended is None
    assessment = assessed(replays)
    assert assessment.verdict is Verdict.CONFIRMED
    (row,) = [row for row in assessment.timing if row["what"] == "would have fired, by replay"]
    assert row["after_onset_s"] == 375.0
    assert row["by"] == "replay: alert Spike would have fired"
    told = next(f for f in assessment.findings if f.id == "rules-replayed")
    assert (told.value, told.unit, told.decides) == (375.0, "s after onset", False)
    assert told.cites == ("rules", "fails")
    assert "would have fired" in repr(display.alerts(assessment))


def test_the_recorded_alert_agrees_or_differs_and_gives_the_pace(tmp_path):
    def alerts_from(first: float) -> dict:
        firing = (("alertname", "Spike"), ("alertstate", "firing"))
        return {"ALERTS": {firing: [(s, 1.0) for s in np.arange(first, 7200, 15.0)]}}

    slow = replace(SPIKE, interval_s=3600.0)  # as the server says now; ALERTS knows better
    (one,) = watched(tmp_path / "a", (slow,), series=alerts_from(4577))
    assert (one.agrees, one.rule.interval_s, one.rule.phase_s) == ("agrees", 15.0, 2.0)
    (late,) = watched(tmp_path / "b", series=alerts_from(4875))
    assert late.agrees == "recorded 300 s later"
    (silent,) = watched(tmp_path / "c")
    assert silent.agrees == "not recorded"
    (other,) = watched(
        tmp_path / "d", (replace(SPIKE, expr="fails_total > 1e9"),), series=alerts_from(4875)
    )
    assert other.agrees == "recorded, but not in the replay"
    assert any("differ" in text for text in alerts.unknowns([other]))


def test_what_was_not_collected_is_not_replayed_and_never_guessed(tmp_path):
    rules = (SPIKE, replace(SPIKE, alert="Ratio", expr="fails_total / tries_total > 0.1"))
    spike, ratio = watched(tmp_path / "a", rules)
    assert (spike.replay.state, ratio.replay.state) == ("replayed", "not replayed")
    assert ratio.replay.why == "tries_total was not collected"
    (torn,) = watched(tmp_path / "b", missing=("fails",))
    assert torn.replay.why == "fails_total was not collected up to the end of the window"
    assert list(alerts.unknowns([torn])) == [
        "whether the alert Spike would have fired: fails_total was not collected up to the end "
        "of the window"
    ]
    tries = {"tries_total": {(("instance", "a"), ("job", "j")): [(s, 5.0) for s in range(7200)]}}
    spike, ratio = watched(tmp_path / "c", rules, series=tries)
    assert (ratio.replay.state, ratio.cites) == ("replayed", ("fails", "rule_series"))


def test_a_source_that_asks_for_one_job_only_cannot_speak_for_a_rule_about_all(tmp_path):
    narrow = SourceConfig("main", "prometheus", "http://x", options={"match": 'job="j"'})
    (one,) = watched(tmp_path, incident=replace(INCIDENT, sources=(narrow,)))
    assert one.replay.why == "fails_total was not collected"


def test_rules_about_other_things_are_left_out_and_other_spellings_are_not(tmp_path):
    rules = (
        replace(SPIKE, alert="Disk", expr="disk_free < 5"),
        replace(SPIKE, alert="Upper", expr="FAILS_TOTAL > 5"),
    )
    (one,) = watched(tmp_path, rules, series={"FAILS_TOTAL": {}})
    assert one.cannot_fire == "there is no metric FAILS_TOTAL; there is fails_total"
    found = {f.id: f for f in alerts.findings([one], INCIDENT.window, ONSET)}
    assert found["rules-cannot-fire"].value == 1.0
    assert not any(f.decides for f in found.values())
    assert "can never fire: Upper" in found["rules-cannot-fire"].claim


def test_a_case_without_rules_or_with_odd_ones_says_nothing(tmp_path):
    assert watched(tmp_path / "a", ()) == ()
    for n, value in enumerate([None, [], {"groups": 3}, {"groups": [{"rules": [{"type": 1}, 2]}]}]):
        assert watched(tmp_path / str(n), snapshots={"rules": value}) == ()
    assert list(alerts.findings((), INCIDENT.window, None)) == []


def test_a_rule_that_the_server_itself_cannot_evaluate_is_said_to_fail(tmp_path):
    two = {
        "fails_total": {
            (("instance", i), ("job", "j")): [(s, 1.0) for s in range(-300, 7200, 15)] for i in "ab"
        }
    }
    many = replace(SPIKE, expr="fails_total * on(job) fails_total > 0")
    (one,) = watched(tmp_path, (many,), series=two)
    assert one.replay.state == "fails"
    assert "two series" in one.replay.why


def test_the_version_of_the_server_decides_which_end_of_a_range_is_open(tmp_path):
    counting = replace(SPIKE, expr="count_over_time(fails_total[1m]) > 4", for_s=0.0)
    (old,) = watched(tmp_path / "a", (counting,), version="2.53.1")
    (new,) = watched(tmp_path / "b", (counting,), version="3.1.0")
    assert old.fired(INCIDENT.window)
    assert not new.fired(INCIDENT.window)


def test_a_target_that_stopped_being_found_ends_an_alert_at_once(tmp_path):
    up = [(s, 1.0) for s in range(-300, 7200, 15)]
    level = [(s, 9.0) for s in range(-300, 5000, 15)]  # no marker in raw samples, `up` goes on
    found = {
        "fails_total": {(("instance", "a"), ("job", "j")): level},
        "up": {(("instance", "a"), ("job", "j")): up},
    }
    rule = replace(SPIKE, expr="fails_total > 5", for_s=0.0)
    (one,) = watched(tmp_path / "a", (rule,), series=found)
    (spell,) = one.fired(INCIDENT.window)
    assert spell.ended == round((START + timedelta(seconds=5010)).timestamp() * 1000)
    own = {
        **found,
        "fails_total": {(("instance", "a"), ("job", "j")): [(s + 1, v) for s, v in level]},
    }
    (one,) = watched(tmp_path / "b", (rule,), series=own)  # times of its own: the lookback decides
    (spell,) = one.fired(INCIDENT.window)
    assert spell.ended == round((START + timedelta(seconds=5310)).timestamp() * 1000)


# --- rule files ----------------------------------------------------------------------------


def test_rules_of_a_file_are_replayed_whatever_they_are_about():
    value = alertrules.plain_yaml(
        """
groups:
  - name: g
    interval: 30s
    rules:
      - {record: a:b, expr: x}
      - {alert: A, expr: fails_total > 1, for: 5m, keep_firing_for: 1m, labels: {severity: page}}
      - {alert: B, expr: 1}
""",
        "rules.yml",
    )
    first, second = alertrules.from_file(value, "rules.yml", "main")
    assert (first.alert, first.for_s, first.keep_firing_for_s) == ("A", 300.0, 60.0)
    assert (first.interval_s, first.labels, first.origin) == (
        30.0,
        {"severity": "page"},
        "rules.yml",
    )
    assert alertrules.about([first, second, replace(second, origin="server")], ["nothing"]) == [
        first,
        second,
    ]


@pytest.mark.parametrize("text", ["a: &x [1]\nb: [*x, *x]", "a: [", "\x00", "- [" * 5000])
def test_a_rule_file_that_is_no_plain_yaml_is_refused_in_words(text):
    with pytest.raises(ParametersError):
        alertrules.plain_yaml(text, "rules.yml")


# --- hostile rules, and many ---------------------------------------------------------------

HOSTILE = [
    "(" * 10_000 + "fails_total" + ")" * 10_000,
    "-" * 9_000 + "fails_total",
    "+".join(["fails_total"] * 5_000),
    'fails_total{a=~"' + "(x+x+)+" * 400 + 'y"} > 1',
    'fails_total{a=~"' + "(" * 3_000 + ")" * 3_000 + '"}',
    'fails_total{a=~"(a{1000}){1000}"}',
    'fails_total{job=~"(?=j)"}',
    "rate(fails_total[290y])",
    "max_over_time(max_over_time(fails_total[1y:1ms])[1y:1ms])",
    "fails_total[5m]",
    '"text"',
    "fails_total > <script>",
    "\ud800fails_total",
    "",
    'label_replace(fails_total, "a", "$9", "job", "(((((x)))))(a*)*b")',
]


@pytest.mark.parametrize("expr", HOSTILE, ids=lambda expr: expr[:24])
def test_a_hostile_rule_costs_nothing_and_stops_nobody(expr):
    started = time.perf_counter()
    samples = as_series(generated(1))
    rule = Rule("Hostile", expr, interval_s=15.0)
    done = replay(rule, samples, 0, 3_600_000, NEW, 0)
    problems(rule, known(flat("fails_total")))
    assert done.state in ("not replayed", "replayed", "fails")
    assert time.perf_counter() - started < 1.5


def test_markup_in_a_rule_reaches_the_page_as_text(tmp_path):
    evil = replace(SPIKE, alert="<img src=x onerror=alert(1)>", labels={"a": "<b>"})
    shown = display.alerts(assessed(watched(tmp_path, (evil,))))
    assert "<img" not in shown.html
    assert "&lt;img" in shown.html


@pytest.mark.skipif(not EXAMPLE.exists(), reason="no bundled example")
def test_twenty_rules_over_the_bundled_example_take_less_than_two_seconds(monkeypatch):
    shapes = (
        "sum(rate(quic_handshake_fail_total[{m}m])) * 60 > 20",
        "sum by (peer) (increase(quic_handshake_fail_total[{m}m])) > 30",
        "rate(quic_retransmit_total[{m}m]) > 1.5",
        "sum(rate(quic_handshake_fail_total[{m}m])) "
        "/ sum(rate(quic_handshake_success_total[{m}m])) > 0.1",
    )
    rules = [
        Rule(
            f"R{n}", shapes[n % 4].format(m=2 + n % 5), 300.0, interval_s=15.0, source="prometheus"
        )
        for n in range(20)
    ]
    monkeypatch.setattr(alertrules, "from_server", lambda value, source: rules)
    case = open_case(EXAMPLE)
    started = time.perf_counter()
    found = case.alerts
    assert time.perf_counter() - started < 2.0
    assert len(found) == 20
    assert {one.replay.state for one in found} == {"replayed"}
    assert any(one.fired(case.incident.window) for one in found)
    case.evidence.close()


# --- from a real server to a finding -------------------------------------------------------


@pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")
def test_what_rules_look_at_is_collected_with_the_rest_and_so_are_rule_files(tmp_path):
    """A rule about the kind's metric divides by one that no query asks for."""
    start_ms = round(START.timestamp() * 1000)
    times = range(start_ms - 300_000, start_ms + 3_600_000, 15_000)
    failing = [(ms, float(max(0, ms - start_ms - 2_400_000)) / 1000) for ms in times]
    target = 'job="n",instance="a"'
    history = prometheus_server.openmetrics(
        {
            "up": {target: [(ms, 1.0) for ms in times]},
            "quic_handshake_fail_total": {f'{target},peer="p",reason="tls"': failing},
            "attempts_total": {target: [(ms, (ms - start_ms) / 100) for ms in times]},
            "disk_free": {target: [(ms, 3.0) for ms in times]},
        }
    )
    loaded = """
groups:
  - name: g
    interval: 15s
    rules:
      - alert: ShareFails
        expr: sum(rate(quic_handshake_fail_total[2m])) / sum(rate(attempts_total[2m])) > 0.05
        for: 1m
      - {alert: Disk, expr: disk_free < 5}
"""
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "own.yml").write_text(
        "groups: [{name: g, rules: [{alert: DiskSoon, expr: disk_free < 4, for: 1m}]}]"
    )
    (tmp_path / "rules" / "torn.yml").write_text("groups: [")
    given = {
        "incident_id": "x",
        "kind": "quic_failure",
        "start": (START + timedelta(minutes=30)).isoformat(),
        "end": (START + timedelta(minutes=60)).isoformat(),
        "baseline_start": START.isoformat(),
        "baseline_end": (START + timedelta(minutes=30)).isoformat(),
    }
    with prometheus_server.serve(tmp_path / "server", history, rules=loaded) as server:
        source = {
            "type": "prometheus",
            "url": server.url,
            "rule_files": [str(tmp_path / "rules" / "*.yml")],
        }
        incident = parameters.incident_from({**given, "sources": {"main": source}})
        folder = collect.collect(incident, tmp_path)
    case = open_case(folder)
    asked = {c.request["remote_read"]["query"] for c in case.captures_of("rule_series")}
    assert asked == {'{__name__=~"attempts_total|disk_free"}'}
    by_name = {one.rule.alert: one for one in case.alerts}
    assert set(by_name) == {"ShareFails", "DiskSoon"}  # Disk is about nothing of this kind
    share, disk = by_name["ShareFails"], by_name["DiskSoon"]
    assert share.replay.state == disk.replay.state == "replayed"
    (spell,) = share.fired(incident.window)
    assert abs(spell.firing - start_ms - 2_400_000) < 180_000
    assert (disk.rule.origin, bool(disk.fired(incident.window))) == ("own.yml", True)
    states = {row["role"]: row["state"] for row in case.frames["rules"].to_dict("records")}
    assert states["rules"] == "ok"
    refused = [r for r in case.frames["rules"].to_dict("records") if r["state"] == "error"]
    assert "no rule file" in refused[0]["value"]["message"]
    assert open_case(folder).findings_json() == case.findings_json()
    case.evidence.close()


def test_a_source_without_rule_files_asks_for_what_it_asked_before_there_were_any():
    given = {
        "incident_id": "x",
        "kind": "quic_failure",
        "start": START.isoformat(),
        "end": (START + timedelta(hours=1)).isoformat(),
    }
    source = {"type": "prometheus", "url": "http://x"}
    bare = parameters.incident_from({**given, "sources": {"main": source}})
    empty = parameters.incident_from({**given, "sources": {"main": {**source, "rule_files": []}}})
    named = parameters.incident_from(
        {**given, "sources": {"main": {**source, "rule_files": ["a.yml"]}}}
    )
    assert "rule_files" not in bare.sources[0].options
    assert bare.digest == empty.digest != named.digest
