"""The kind against made frames: each trap of the wire, each near miss, and the sealed example."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from made import at, frames_of, steps, window
from prometheus_server import installed, serve
from standin_explorer import StandInExplorer
from standin_node import NodeState, StandInNode

sys.path.append(str(ROOT))

from examples import subsidy_spike as scenario
from tbforensics import case, parameters, quality
from tbforensics.assess import judge
from tbforensics.chain.subsidies import due_by_provider, open_ledger, receipts, trail, trail_table
from tbforensics.kinds.subsidy_spike import KIND, QUERIES, Thresholds, analyse, doubts
from tbforensics.model import Coverage, Finding, Frames, Verdict

STEP_S, CALM, STEPS = 15.0, 240, 480  # an hour of calm, an hour of window
EPOCH = 8  # steps
NODES = ("node-a", "node-b")
RAW = {"storage": 50.0, "read": 20.0, "cpu": 15_000.0, "bytes_out": 400.0}
UNITS = {"storage": 4e5, "read": 1.5e6, "cpu": 600.0, "bytes_out": 2e4}  # per step and node
SPELL = slice(300, 400)


@dataclass
class Story:
    """A calm network on two nodes; everything may be changed before it is told."""

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        self.units = {
            (node, work): rng.poisson(units / 100, STEPS) * 100.0
            for node in NODES
            for work, units in UNITS.items()
        }
        self.raw = {(n, w): np.full(STEPS, level) for n in NODES for w, level in RAW.items()}
        wander = {cell: np.repeat(rng.laplace(0, 9, STEPS // EPOCH), EPOCH) for cell in self.raw}
        self.noise = {cell: np.round(values) for cell, values in wander.items()}
        self.more: dict[str, pd.DataFrame] = {}

    def times(self, work: str, factor: float, node: str = "") -> Story:
        for n, w in self.units:
            if w == work and node in ("", n):
                self.units[n, w][SPELL] *= factor
        return self

    def dearer(self, work: str, level: float) -> Story:
        for node in NODES:
            self.raw[node, work][SPELL] = level
        return self

    def told(self) -> Frames:
        def table(values: Mapping[Any, Any], *names: str) -> pd.DataFrame:
            return steps(values, STEP_S, *names)

        kinds = {"storage": "storage", "read": "read", "bytes_out": "compute"}
        seen = {
            "subsidy_bytes": table(
                {(n, kinds[w]): v for (n, w), v in self.units.items() if w != "cpu"},
                "instance", "type",
            ),
            "subsidy_cpu": table(
                {(n,): v for (n, w), v in self.units.items() if w == "cpu"}, "instance"
            ),
            "multipliers_raw": table(self.raw, "instance", "type"),
            "multipliers": table(
                {cell: self.raw[cell] + self.noise[cell] for cell in self.raw}, "instance", "type"
            ),
            **self.more,
        }  # fmt: skip
        return frames_of(QUERIES, seen, STEP_S, CALM)

    def findings(self, **thresholds: float) -> dict[str, Finding]:
        return {f.id: f for f in analyse(self.told(), Thresholds(**thresholds))}


def gauges(values: Mapping[str, Any]) -> pd.DataFrame:
    return steps({(node,): v for node, v in values.items()}, STEP_S, "instance")


def answers(*values: Any, state: str = "ok") -> pd.DataFrame:
    rows = [{"ts": at(9000), "source": "s", "state": state, "value": value} for value in values]
    return pd.DataFrame(rows).assign(ts=lambda t: pd.to_datetime(t["ts"], utc=True))


def decided(findings: Mapping[str, Finding]) -> set[str]:
    return {finding.id for finding in findings.values() if finding.decides}


# --- did it spike --------------------------------------------------------------------------


def test_calm_work_at_calm_multipliers_is_no_spike() -> None:
    assert decided(Story().findings()) == set()


def test_more_work_is_a_spike_by_volume() -> None:
    found = Story().times("cpu", 6).findings()
    spike, effects = found["issuance"], found["effects"]
    assert spike.decides and spike.value >= spike.threshold
    assert spike.window == window(300 * STEP_S, 400 * STEP_S)
    assert effects.value == pytest.approx(1.0, abs=0.001)
    assert {row["work"]: row["by_multiplier"] for row in effects.rows}["cpu"] == 0


def test_dearer_work_is_a_spike_by_multiplier() -> None:
    effects = Story().dearer("read", 60).findings()["effects"]
    assert effects.value == pytest.approx(0.0, abs=0.01)


def test_both_effects_add_up_to_the_change_to_the_unit() -> None:
    effects = Story().times("read", 1.7).dearer("read", 44).times("cpu", 3).findings()["effects"]
    for row in effects.rows:
        assert row["by_volume"] + row["by_multiplier"] == row["change"]
        assert abs(row["issued"] - row["issued_expected"] - row["change"]) <= len(NODES)


def test_less_than_half_as_much_again_is_a_near_miss() -> None:
    assert "issuance" not in Story().times("read", 1.6).findings()
    assert "issuance" in Story().times("read", 1.6).findings(times_baseline=1.2)


def test_a_fall_is_no_spike() -> None:
    assert decided(Story().times("read", 0.1).findings()) == set()


def test_a_gap_in_all_scrapes_is_no_spike() -> None:
    story = Story()
    for values in story.units.values():
        values[SPELL] = np.nan
    assert decided(story.findings()) == set()


def test_a_gap_in_the_baseline_does_not_make_the_window_look_high() -> None:
    story = Story()
    for values in story.units.values():
        values[20:200] = np.nan
    assert decided(story.findings()) == set()


def test_growth_above_the_line_of_the_shipped_alert_decides_without_any_change() -> None:
    story = Story()
    for node in NODES:
        story.units[node, "storage"][:] = 3e10
    found = story.findings()
    assert decided(found) == {"growth-bytes"}
    assert found["growth-bytes"].value == pytest.approx(40 * 3e10)


def test_no_samples_at_all_find_nothing_and_clear_nothing() -> None:
    frames = frames_of(QUERIES, {"up": gauges({"a": [1.0] * STEPS})}, STEP_S, CALM)
    frames = replace(frames, tables={**frames.tables, "up": frames["up"].iloc[:, :0]})
    assert analyse(frames, Thresholds()) == []
    unseen = [Coverage(q.name, "p", 0.0, "absent", q.required) for q in QUERIES]
    verdict, reasons = judge([], unseen, [])
    assert verdict is Verdict.INCONCLUSIVE
    assert any("subsidy_bytes is absent" in reason for reason in reasons)


def test_the_same_frames_give_the_same_findings() -> None:
    story = Story().times("cpu", 6).dearer("read", 44)
    first, second = (json.dumps([f.to_json() for f in story.findings().values()]) for _ in "ab")
    assert first == second


# --- traps of the metrics ------------------------------------------------------------------


def test_multipliers_that_wander_below_zero_with_no_act_are_noise() -> None:
    story = Story()
    story.noise["node-a", "read"][320:328] = -60
    found = story.findings()
    assert decided(found) == set()
    noise = found["noise"]
    assert "the raw ones moved at 0" in noise.claim
    assert {row["work"]: row["below_zero"] for row in noise.rows}["read"] >= 1
    assert "no act of governance" in noise.caution


def test_a_raw_multiplier_below_zero_is_named_because_blocks_read_it_as_huge() -> None:
    noise = Story().dearer("read", -3).findings()["noise"]
    assert "stood below zero in 1" in noise.claim.rpartition("raw")[2]
    assert "huge" in noise.caution


def test_the_trail_issues_by_raw_and_allows_by_published_and_their_difference_is_noise() -> None:
    story = Story().times("cpu", 6)
    frames = story.told()
    for row in trail(frames, open_ledger(frames)):
        assert row["difference"] == row["issued"] - row["allowed"]
    for values in story.noise.values():
        values[:] = 0
        values[::2] = 0
    frames = story.told()
    assert {row["difference"] for row in trail(frames, open_ledger(frames))} == {0}


def test_each_epoch_of_the_trail_is_the_calm_pace_and_its_two_effects() -> None:
    frames = Story().times("read", 2).dearer("read", 44).told()
    table = trail_table(frames, open_ledger(frames))
    calm = table["at_calm_pace"]
    assert calm.max() == pytest.approx(calm.min(), rel=1e-9)
    parts = table[["at_calm_pace", "by_volume", "by_multiplier"]].sum(axis=1)
    assert np.allclose(parts, table["issued"])


def test_type_compute_is_egress_of_computing_and_priced_by_lambda() -> None:
    frames = Story().told()
    book = open_ledger(frames).accounts["node-a", "bytes_out"]
    assert sum(filter(None, book.issued)) == 400 * sum(book.units)


def test_a_read_and_its_gateway_receipt_may_both_count_so_reads_are_halved_below() -> None:
    spike = Story().times("read", 3).findings()["issuance"]
    low, high = spike.interval
    assert high == spike.value
    assert low < 0.7 * high
    assert "halves reads" in spike.caution


def test_seed_series_are_no_work() -> None:
    story = Story()
    frames = story.told()
    seeded = frames["subsidy_bytes"].copy()
    seeded["main", "node-a", "__"] = 1e15
    frames = replace(frames, tables={**frames.tables, "subsidy_bytes": seeded})
    assert open_ledger(frames).accounts.keys() == open_ledger(story.told()).accounts.keys()


def test_the_kill_switch_counts_epochs_on_every_node_and_is_one_activation() -> None:
    counted = np.zeros(STEPS)
    counted[304:384:EPOCH] = 1
    story = Story()
    story.more["kill_switch"] = gauges(dict.fromkeys(NODES, counted))
    switch = story.findings()["kill-switch"]
    assert switch.value == 10
    assert "10 epochs, which is 1 activation" in switch.claim


def test_the_inflation_guard_counts_epochs_too() -> None:
    counted = np.zeros(STEPS)
    counted[304:344:EPOCH] = counted[400:424:EPOCH] = 1
    story = Story()
    story.more["auto_reduced"] = gauges({"node-a": counted})
    assert "8 epochs, which is 2 activations" in story.findings()["inflation-guard"].claim


def test_a_realized_act_explains_a_raw_multiplier_that_moved() -> None:
    story = Story().dearer("read", 44).times("cpu", 2)
    message = "gov_param_activated key=GammaReadSub new=44 old=20 epoch=5"
    story.more["log_lines"] = logs({"ts": at(300 * STEP_S + 1), "message": message})
    found = story.findings()
    (moved,) = [row for row in found["multipliers"].rows if row["moved"]]
    assert (moved["work"], moved["act"]) == ("read", "gamma_read_sub set to 44")
    (act,) = found["governance"].rows
    assert (act["raw_before"], act["raw_after"]) == (20.0, 44.0)
    assert "cause" in found["governance"].caution


def test_a_multiplier_that_moved_without_any_act_says_so() -> None:
    (moved,) = [r for r in Story().dearer("read", 60).findings()["multipliers"].rows if r["moved"]]
    assert moved["act"] == "none seen"


def test_the_histogram_of_activation_delays_is_only_counted_because_it_holds_epochs() -> None:
    (query,) = [q for q in QUERIES if "activation_delay" in q.text]
    assert (query.text, query.unit) == ("gov_activation_delay_seconds_count", "activations")
    declared = ("gov_activation_total", "gov_open_proposals", "gov_quorum", "gov_proposals_total")
    assert not [q for q in QUERIES if q.text.startswith(declared)]


def test_denied_reads_speak_for_abuse_and_admitted_jobs_for_demand() -> None:
    story = Story().times("read", 3)
    denied, admitted = np.full(STEPS, 1.0), np.full(STEPS, 10.0)
    denied[SPELL], admitted[SPELL] = 20.0, 11.0
    story.more["reads_denied"] = steps({("node-b", "limit"): denied}, STEP_S, "instance", "reason")
    story.more["industrial_admitted"] = gauges({"node-a": admitted})
    traffic = story.findings()["traffic"]
    assert traffic.claim.startswith("1 of 1 signs of abuse rose with it, and 0 of 1")
    assert "not proof" in traffic.caution


# --- fewer sources than hoped for ----------------------------------------------------------


def test_without_raw_multipliers_the_published_ones_are_used_and_said_to_be() -> None:
    story = Story().times("cpu", 6)
    frames = story.told()
    tables = {**frames.tables, "multipliers_raw": frames["multipliers_raw"].iloc[:, :0]}
    found = {f.id: f for f in analyse(replace(frames, tables=tables), Thresholds())}
    assert "no raw multipliers" in found["issuance"].caution
    assert "multipliers" in found["issuance"].cites
    assert "noise" not in found


def test_without_any_gauge_one_answer_prices_the_work_and_shows_no_multiplier_moving() -> None:
    story = Story().times("cpu", 6)
    frames = story.told()
    params = {"beta_storage_sub": 50, "gamma_read_sub": 20, "kappa_cpu_sub": 15_000,
              "lambda_bytes_out_sub": 400}  # fmt: skip
    none = frames["multipliers"].iloc[:, :0]
    tables = {**frames.tables, "multipliers": none, "multipliers_raw": none,
              "inflation_params": answers(params)}  # fmt: skip
    found = {f.id: f for f in analyse(replace(frames, tables=tables), Thresholds())}
    assert "one answer of inflation.params" in found["issuance"].caution
    assert "nominal" in found["accounting-trail"].caution
    assert {row["by_multiplier"] for row in found["effects"].rows} == {0}


def test_work_without_any_multiplier_is_no_money_and_no_calm() -> None:
    story = Story().times("cpu", 6)
    for values in story.raw.values():
        values[:] = np.nan
    found = doubts(story.told(), Thresholds())
    assert [d.limits for d in found if d.what == "no multiplier"] == ["cleared"]
    assert "issuance" not in story.findings()


def test_an_empty_history_is_weak_evidence() -> None:
    story = Story()
    story.more["subsidy_history"] = answers({"message": "empty", "answer": []}, state="empty")
    (doubt,) = doubts(story.told(), Thresholds())
    assert doubt.what == "empty answer"


def numbered(story: Story) -> list[dict[str, Any]]:
    """What an explorer of node-a tells of this story."""
    names = {"storage": "beta", "read": "gamma", "cpu": "kappa", "bytes_out": "lambda"}
    return [
        {"epoch": 700 + n}
        | {
            name: int(story.raw["node-a", w][n * EPOCH] + story.noise["node-a", w][n * EPOCH])
            for w, name in names.items()
        }
        for n in range(STEPS // EPOCH)
    ]


def test_epochs_are_numbered_by_the_one_node_that_the_explorer_follows() -> None:
    story = Story()
    story.more["subsidy_history"] = answers(numbered(story))
    found = story.findings()
    assert found["accounting-trail"].rows[0]["epoch"] == 700 + CALM // EPOCH
    assert found["records"].value == 0
    assert found["records"].rows[0]["against"] == "multipliers of node-a"


def test_records_that_differ_from_what_was_published_are_found() -> None:
    story = Story()
    history = numbered(story)
    history[40] = {**history[40], "beta": 999}
    story.more["subsidy_history"] = answers(history)
    (row,) = story.findings()["records"].rows
    assert (row["epochs_in_both"] - row["agree"], row["first_apart"]) == (1, 740)


def test_a_journal_that_ends_before_the_window_is_doubted() -> None:
    story = Story()
    story.more["subsidy_history"] = answers(numbered(story))
    early = [{"event": "retune", **row} for row in numbered(story)[:30]]
    story.more["gov_events"] = pd.DataFrame({"value": early, "ts": pd.NaT})
    assert "journal ends early" in {d.what for d in doubts(story.told(), Thresholds())}


def test_a_stake_of_zero_proves_little() -> None:
    story = Story()
    story.more["stake_role"] = answers({"id": "ab12", "role": "validator", "stake": 0})
    stake = story.findings()["stake"]
    assert not stake.decides
    assert "proves little" in stake.claim
    assert "lost at a restart" in stake.caution


# --- rent ----------------------------------------------------------------------------------


def with_rent(locked: Any, refunded: Any, burned: Any) -> Story:
    story = Story()
    story.more["escrow_locked"] = gauges({"node-a": locked})
    story.more["escrow_refunded"] = gauges({"node-a": refunded})
    story.more["escrow_burned"] = gauges({"node-a": burned})
    return story


def released(at_step: int, refund: float, burn: float) -> tuple[Any, Any, Any]:
    locked, refunded, burned = np.full(STEPS, 1e6), np.zeros(STEPS), np.zeros(STEPS)
    locked[at_step:] -= 1e5
    refunded[at_step], burned[at_step] = refund, burn
    return locked, refunded, burned


def test_a_release_of_rent_adds_up_and_decides_nothing() -> None:
    found = with_rent(*released(300, 9e4, 1e4)).findings()
    assert decided(found) == set()
    assert found["escrow"].value == 1e5
    assert "a gauge" in found["escrow"].caution


def test_rent_that_leaves_without_a_refund_or_a_burn_decides() -> None:
    found = with_rent(*released(300, 0, 0)).findings()
    assert decided(found) == {"escrow-unaccounted"}
    assert found["escrow-unaccounted"].value == 1e5


def test_a_split_other_than_nine_to_one_decides() -> None:
    found = with_rent(*released(300, 8e4, 2e4)).findings()
    assert decided(found) == {"escrow-split"}
    assert found["escrow-split"].value == pytest.approx(0.1)


def test_a_restart_that_empties_the_gauge_loses_no_rent() -> None:
    locked = np.full(STEPS, 1e6)
    locked[300:] = 0
    story = with_rent(locked, np.zeros(STEPS), np.zeros(STEPS))
    begun = np.full(STEPS, 100.0)
    begun[300:] = 5000.0
    story.more["process_start_time_seconds"] = gauges({"node-a": begun})
    found = story.findings()
    assert decided(found) == set()
    assert found["escrow"].rows[0]["restarts"] == 1


def test_rent_told_in_both_generations_names_is_held_once() -> None:
    locked, refunded, burned = released(300, 9e4, 1e4)
    story = with_rent(locked, refunded, burned)
    story.more = {name: pd.concat([table, table], axis=1) for name, table in story.more.items()}
    assert story.findings()["escrow"].value == 1e5


# --- receipts ------------------------------------------------------------------------------


def logs(*rows: dict[str, Any]) -> pd.DataFrame:
    columns = ("ts", "message", "fields", "level", "source", "file", "line")
    table = pd.DataFrame([{**dict.fromkeys(columns), **row} for row in rows], columns=columns)
    table["ts"] = pd.to_datetime(table["ts"], utc=True)
    return table


def receipt(step: float | None, provider: str, cpu: Any, trace: str = "") -> dict[str, Any]:
    fields = {"provider_id": provider, "cpu_ms": cpu, "bytes_out": 1000, "trace_id": trace}
    moment = None if step is None else at(step * STEP_S + 1)
    return {"ts": moment, "message": "exec receipt", "fields": json.dumps(fields)}


def test_the_provider_whose_receipts_rose_explains_the_rise() -> None:
    story = Story().times("cpu", 12, "node-b")
    rows = [receipt(n, "honest", 100, f"h{n}") for n in range(STEPS)]
    rows += [receipt(n, "<img src=x>", 5000, f"m{n}") for n in range(300, 400)]
    story.more["log_lines"] = logs(*rows)
    provider = story.findings()["by-provider"]
    assert provider.claim.startswith("Provider <img src=x> explains")
    assert provider.value > 0.9
    assert "1 in 100" in provider.caution


def test_a_receipt_in_several_files_is_counted_once_and_one_without_a_time_not_at_all() -> None:
    rows = [receipt(1, "p", 100, "t1"), receipt(1, "p", 100, "t1"), receipt(None, "p", 100, "t2")]
    found = receipts(logs(*rows))
    assert (len(found.table), found.repeated, found.undated) == (1, 1, 1)


def test_receipts_without_a_trace_are_never_taken_for_one_another() -> None:
    assert len(receipts(logs(receipt(1, "p", 100), receipt(1, "p", 100))).table) == 2


@pytest.mark.parametrize("cpu", ["100", -1, 1.5, None, True, [1], 10**400])
def test_a_receipt_whose_numbers_are_none_is_passed_over(cpu: Any) -> None:
    kept = receipts(logs(receipt(1, "p", cpu))).table
    assert len(kept) == (1 if cpu == 10**400 else 0)  # a whole number, however absurd, is one


def test_no_receipts_make_an_empty_table() -> None:
    frames = Story().told()
    assert due_by_provider(frames, open_ledger(frames), receipts(frames["log_lines"])).empty


# --- the sealed example --------------------------------------------------------------------

EXAMPLE = ROOT / "incidents" / "example-subsidy-spike"


@pytest.fixture(scope="module")
def example() -> Any:
    opened = case.open_case(EXAMPLE)
    yield opened
    opened.evidence.close()


def test_the_example_is_confirmed_by_its_issuance_alone(example: Any) -> None:
    assessment = example.assessment
    assert assessment.verdict is Verdict.CONFIRMED
    assert decided({f.id: f for f in assessment.findings}) == {"issuance"}


def test_the_example_finds_its_onset_and_its_end_to_a_step(example: Any) -> None:
    (spike,) = [f for f in example.assessment.findings if f.id == "issuance"]
    assert str(spike.window) == "2026-11-20T10:24:15Z to 2026-11-20T11:12:00Z"


def test_releases_of_rent_and_a_restarted_gauge_are_no_counter_reset(example: Any) -> None:
    resets = [d for d in example.frames.doubts if d.what == "counter reset"]
    assert len(resets) == 1
    assert "escrow_locked" not in resets[0].cites


def test_verification_recomputes_the_example_byte_for_byte() -> None:
    assert all(check.holds for check in case.prove(EXAMPLE, recompute=True))


# --- the other generation, and sources taken away ------------------------------------------


@dataclass
class Live:
    """The example's sources on free ports, as generation A spells everything."""

    home: Path
    sources: dict[str, dict[str, Any]]

    def ask(self, incident_id: str, **changed: Any) -> case.Case:
        sources = {**self.sources, **changed}
        sources = {name: source for name, source in sources.items() if source}
        given = {**scenario.PARAMETERS, "incident_id": incident_id, "sources": sources}
        return case.case_of(parameters.incident_from(given), self.home)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    if not installed():
        pytest.skip("needs prometheus and promtool")
    home = tmp_path_factory.mktemp("home")
    (home / "incidents").mkdir()
    files = home / "files"
    scenario.write_dumps(files)
    records = files / "governance" / "history" / "param_changes.json"
    records.write_text(records.read_text().replace("GammaReadSub", "GammaReadSubCt"))
    history = re.sub(r"rent_escrow_(\w+)_total", r"rent_escrow_\1_ct_total", scenario.history())
    history = history.replace('key="gamma_read_sub"', 'key="gamma_read_sub_ct"')
    state = NodeState(**scenario.node_state())
    for row in state.logs or ():
        row["message"] = row["message"].replace("key=GammaReadSub ", "key=GammaReadSubCt ")
    with (
        serve(home / "tsdb", history, rules=scenario.RULES) as prometheus,
        StandInNode(state, generation="A") as node,
        StandInExplorer(scenario.explorer_replies()) as explorer,
    ):
        urls = {"prometheus": prometheus.url, "node": node.url, "node-logs": node.url,
                "explorer": explorer.url}  # fmt: skip
        paths = {"dumps": str(files), "node-files": str(files / "logs")}
        sources = {
            name: {**source}
            | ({"url": urls[name]} if name in urls else {})
            | ({"path": paths[name]} if name in paths else {})
            for name, source in scenario.PARAMETERS["sources"].items()
        }
        yield Live(home, sources)


def test_both_generations_names_give_the_same_findings(old: Live, example: Any) -> None:
    a = old.ask("generation-a").assessment
    b = example.assessment
    assert a.verdict is b.verdict
    ours, theirs = ({f.id: f.to_json() for f in x.findings if f.id != "stake"} for x in (a, b))
    assert ours.keys() == theirs.keys()
    for name, finding in ours.items():
        assert finding == theirs[name], name


def test_without_the_metrics_nothing_is_confirmed_and_nothing_cleared(old: Live) -> None:
    gone = {"type": "prometheus", "url": "http://127.0.0.1:9"}
    assessment = old.ask("no-metrics", prometheus=gone).assessment
    assert assessment.verdict is Verdict.INCONCLUSIVE
    assert any("subsidy_bytes is failed" in reason for reason in assessment.reasons)


def test_without_explorer_and_files_the_money_is_the_same_and_epochs_are_nameless(
    old: Live, example: Any
) -> None:
    opened = old.ask("metrics-only", explorer=None, dumps=None, **{"node-files": None})
    found = {f.id: f for f in opened.assessment.findings}
    theirs = {f.id: f for f in example.assessment.findings}
    assert found["issuance"].value == theirs["issuance"].value
    assert {row["epoch"] for row in found["accounting-trail"].rows} == {None}
    assert "nothing numbers them" in found["accounting-trail"].caution
    states = {row.query: row.state for row in opened.frames.coverage}
    assert states["subsidy_history"] == states["gov_events"] == "not asked"


def test_every_question_says_why_it_is_asked_and_required_ones_are_four() -> None:
    required = {query.name for query in KIND.queries if query.required}
    assert required == {"subsidy_bytes", "subsidy_cpu", "multipliers", "multipliers_raw"}
    assert all(query.why for query in KIND.queries)
    assert quality.GAUGES_NAMED_TOTAL
