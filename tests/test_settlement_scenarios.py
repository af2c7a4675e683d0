"""Settlement stalls down the whole road: a real Prometheus, a stand-in node, a sealed case."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from prometheus_server import Server, installed, serve
from standin_node import NodeState, StandInNode
from standin_replies import ANSWERS

sys.path.append(str(ROOT))

from examples import settlement_stall as scenario
from examples.history import History, born, counter
from tbforensics import parameters
from tbforensics.case import Case, case_of
from tbforensics.model import Verdict

pytestmark = pytest.mark.skipif(not installed(), reason="Prometheus is not installed")
DAY = datetime(2026, 11, 20, tzinfo=UTC)
ONLY_NEWER = {"sla-history", "moved-first"}  # the second names metrics as they are spelled


def collected(folder: Path, **changes: Any) -> Case:
    """One incident collected and sealed in a folder of its own."""
    (folder / "incidents").mkdir(parents=True)
    return case_of(parameters.incident_from({**scenario.PARAMETERS, **changes}), folder)


# --- three scenarios, three verdicts -------------------------------------------------------


def jobs() -> str:
    """Each job a scenario: `stall`, `idle` (no demand), `gone` (the exporter went away) and `new`
    (a node whose first match and first settlement come within the window).
    """
    past = History(DAY.replace(hour=8, minute=20), DAY.replace(hour=11, minute=40))
    rng = np.random.default_rng(7)
    times = past.times(4.0)
    quiet = (times >= scenario.at(10, 30)) & (times < scenario.at(11, 10))
    for job in ("stall", "idle", "gone"):
        target = {"job": job, "instance": f"{job}:9898"}
        still = quiet & (job != "gone")  # it goes on settling where nobody sees it
        values = {
            "settle_applied_total": counter(times, np.where(still, 0.0, 3.0), rng, 900.0),
            "matches_total": counter(times, np.where(quiet & (job == "idle"), 0.0, 3.0), rng),
            "compute_sla_pending_total": np.where(quiet & (job == "idle"), 0.0, 2.0),
            "block_mined_total": counter(times, 60.0, rng),
        }
        seen = ~quiet | (job != "gone")
        past.add("up", target, times, seen * 1.0)
        for name, column in values.items():
            more = {"lane": "consumer", "dry_run": "false"} if name == "matches_total" else {}
            column = np.where(seen, column, np.nan)
            past.add(name, {**target, **more}, times, column)
    target = {"job": "new", "instance": "new:9898"}
    matches = born(counter(times, np.where(times >= scenario.at(10, 20), 3.0, 0.0), rng))
    for name, column in {
        "up": np.ones(len(times)),
        "block_mined_total": counter(times, 60.0, rng),
        "compute_sla_pending_total": np.zeros(len(times)),
        "settle_applied_total": matches,
    }.items():
        past.add(name, target, times, column)
    past.add("matches_total", {**target, "lane": "consumer"}, times, matches)
    return past.text()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("jobs"), jobs()) as server:
        yield server


@pytest.mark.parametrize(
    ("job", "verdict"),
    [
        ("stall", Verdict.CONFIRMED),
        ("idle", Verdict.CLEARED),
        ("gone", Verdict.INCONCLUSIVE),
    ],
)
def test_stall_no_demand_and_exporter_gone_are_three_verdicts(
    served: Server, tmp_path: Path, job: str, verdict: Verdict
) -> None:
    quiet = {"timestamp": int(scenario.at(10, 5)), "level": "INFO", "message": "match"}
    with StandInNode(NodeState(logs=[quiet])) as node:
        sources = {
            "logs": {"type": "logs", "url": node.url},
            "prometheus": {
                "type": "prometheus",
                "url": served.url,
                "slice_hours": 12,
                "match": f'job="{job}"',
            },
        }
        case = collected(tmp_path, sources=sources)
    assert case.assessment.verdict == verdict, case.assessment.reasons


def test_no_demand_without_logs_is_not_cleared(served: Server, tmp_path: Path) -> None:
    url = {"type": "prometheus", "url": served.url, "slice_hours": 12, "match": 'job="idle"'}
    case = collected(tmp_path, sources={"prometheus": url})
    assert case.assessment.verdict == Verdict.INCONCLUSIVE
    assert any("nobody used from one that stalled" in why for why in case.assessment.reasons)


def test_counters_that_register_late_are_no_stall_before(served: Server, tmp_path: Path) -> None:
    url = {"type": "prometheus", "url": served.url, "slice_hours": 12, "match": 'job="new"'}
    case = collected(tmp_path, sources={"prometheus": url})
    assert case.assessment.verdict == Verdict.CLEARED, case.assessment.reasons


# --- the bundled scenario, in every spelling -----------------------------------------------


def spelled(text: str, generation: str) -> str:
    return text if generation == "B" else text.replace("slashing_burn_", "slashing_burn_ct_")


def mixed(node: StandInNode) -> None:
    """A build in between: one balance under the old names, some enums in title case."""
    state, asked = node.state, {"audit": 3, "sla_history": 5}
    for name, number in asked.items():
        method = f"compute_market.{name}"
        rows = ANSWERS[method]({"limit": 256}, state, "B")
        old = ("delta", "balance", "burned", "refunded")
        rows = [{f"{k}_ct" if k in old else k: v for k, v in row.items()} for row in rows]
        for row in rows:
            if "outcome" in row:
                row["outcome"] = row["outcome"].capitalize()
        reply = {"jsonrpc": "2.0", "id": number, "result": rows}
        node.replies[method] = json.dumps(reply).encode()
    status = {"jsonrpc": "2.0", "id": 7, "result": {"mode": "Armed"}}
    node.replies["settlement_status"] = json.dumps(status).encode()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """The scenario as each generation spells it, and as a mixed build does."""
    cases = {}
    for generation in ("A", "B"):
        folder = tmp_path_factory.mktemp(generation)
        scenario.write_dumps(folder / "dumps")
        history = spelled(scenario.history(), generation)
        with serve(folder / "tsdb", history, rules=scenario.RULES) as server:
            for build in (generation, "mixed") if generation == "B" else (generation,):
                state = NodeState(**scenario.node_state())
                with StandInNode(state, generation=generation) as node:
                    if build == "mixed":
                        mixed(node)
                    sources = {
                        "dumps": {"type": "logs", "path": str(folder / "dumps")},
                        "node-a": {"type": "jsonrpc", "url": node.url},
                        "node-a-logs": {"type": "logs", "url": node.url},
                        "prometheus": {"type": "prometheus", "url": server.url, "slice_hours": 12},
                    }
                    cases[build] = collected(folder / build, sources=sources)
    return cases


def plain(case: Case) -> dict[str, Any]:
    """Findings by id, but for what tells how long the asking took."""
    findings = {f.id: f.to_json() for f in case.assessment.findings if f.id not in ONLY_NEWER}
    findings["root"]["caution"] = ""
    return findings


@pytest.mark.parametrize("build", ["A", "mixed"])
def test_every_spelling_gives_the_same_findings(told: dict[str, Case], build: str) -> None:
    assert plain(told[build]) == plain(told["B"])
    assert told[build].assessment.verdict == told["B"].assessment.verdict


def test_an_sla_history_that_older_builds_do_not_know_is_unsupported(
    told: dict[str, Case],
) -> None:
    state = {row.query: row.state for row in told["A"].assessment.coverage}
    assert state["sla_history"] == "unsupported"
    assert "sla-history" in {finding.id for finding in told["mixed"].assessment.findings}


def test_the_report_gets_every_trap_of_the_scenario_right(told: dict[str, Case]) -> None:
    found = {finding.id: finding for finding in told["B"].assessment.findings}
    stall = found["stall"]
    assert [row["target"] for row in stall.rows] == ["node-a:9898"]  # and not node-b
    assert stall.spell is not None and stall.spell.recovery is not None
    assert stall.spell.onset_earliest.timestamp() <= scenario.BEGAN
    assert stall.spell.onset_latest.timestamp() >= scenario.BEGAN
    assert abs(stall.spell.recovery.timestamp() - scenario.MENDED) <= 60
    pauses = [(row["target"], row["from"][11:16]) for row in found["no-demand"].rows]
    assert pauses == [("node-a:9898", "10:06"), ("node-b:9898", "10:57")]
    assert {row["lane"] for row in found["silent-lanes"].rows if row["longest_wait_s"]} == {
        "industrial"
    }
    assert [(row["target"][:6], row["to"]) for row in found["modes"].rows] == [
        ("node-b", "armed"),
        ("node-a", "dryrun"),
        ("node-a", "armed"),
    ]
    assert found["unbacked-refunds"].value == 37
    assert not any(row["raises_the_metric"] for row in found["audit-grew"].rows[:3])
    assert "3 entries are missing" in found["audit-adds-up"].claim
    assert (
        "is the newest" in found["root"].claim and "32 roots could be dated" in found["root"].claim
    )
    assert found["burns-stopped"].value >= 5
    assert scenario.HOSTILE in {row["provider"] for row in found["violations"].rows}
    onset = stall.spell.onset
    late = {row["what"]: row["after_onset_s"] for row in told["B"].assessment.timing}
    assert late["mitigated"] == scenario.MENDED - onset.timestamp()


def test_without_its_metrics_the_scenario_is_inconclusive(
    told: dict[str, Case], tmp_path: Path
) -> None:
    with StandInNode(NodeState(**scenario.node_state())) as node:
        scenario.write_dumps(tmp_path / "dumps")
        sources = {
            "dumps": {"type": "logs", "path": str(tmp_path / "dumps")},
            "node-a": {"type": "jsonrpc", "url": node.url},
            "node-a-logs": {"type": "logs", "url": node.url},
        }
        case = collected(tmp_path / "home", sources=sources)
    assert case.assessment.verdict == Verdict.INCONCLUSIVE
    assert any("settled is not asked" in reason for reason in case.assessment.reasons)
    assert {f.id for f in case.assessment.findings} >= {"unbacked-refunds", "root"}


def test_a_case_holds_when_its_evidence_is_made_anew(told: dict[str, Case]) -> None:
    from tbforensics.case import prove

    checks = list(prove(told["A"].folder, recompute=True))
    assert all(check.holds for check in checks), [c.detail for c in checks if not c.holds]
