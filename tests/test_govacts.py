"""One act of governance, told by several, is one act; and text that looks like one is none."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from made import START, at, frames_of, steps

from tbforensics.chain.govacts import acts, calls, cut_rows, told_rows
from tbforensics.kinds.subsidy_spike import QUERIES
from tbforensics.model import Frames, Window

STEP_S = 15.0
BEGAN = {48278: pd.Timestamp(at(600)), 48279: pd.Timestamp(at(720))}


def lines(*rows: dict[str, Any]) -> pd.DataFrame:
    columns = ("ts", "message", "fields", "level", "source", "file", "line")
    table = pd.DataFrame([{**dict.fromkeys(columns), **row} for row in rows], columns=columns)
    table["ts"] = pd.to_datetime(table["ts"], utc=True)
    return table


def activated(
    seconds: float | None, key: str = "GammaReadSub", epoch: int = 48278
) -> dict[str, Any]:
    message = f"gov_param_activated key={key} new=44 old=20 epoch={epoch}"
    return {"ts": None if seconds is None else at(seconds), "message": message, "fields": "{}"}


def changed(epoch: int = 48278, key: str = "gamma_read_sub") -> pd.DataFrame:
    change = {"key": key, "proposal_id": 12, "epoch": epoch, "old_value": 20, "new_value": 44}
    value = {"file": "param_changes.json", "changes": [change]}
    return pd.DataFrame([{"ts": at(9000), "source": "g", "state": "ok", "value": value}])


def gauge(values: list[float], key: str = "gamma_read_sub") -> pd.DataFrame:
    return steps({("j", "a", key): values}, STEP_S, "job", "instance", "key")


def frames(**tables: pd.DataFrame) -> Frames:
    up = steps({("j", "a"): [1.0] * 100}, STEP_S, "job", "instance")
    return frames_of(QUERIES, {"up": up, **tables}, STEP_S, 20)


def test_line_gauge_and_row_of_one_act_are_one_act() -> None:
    nan = float("nan")
    (act,) = acts(
        frames(
            log_lines=lines(activated(601)),
            gov_changes=changed(),
            param_active=gauge([nan] * 41 + [44.0] * 59),
        ),
        BEGAN,
    )
    assert (act.key, act.old, act.new, act.epoch, act.proposal) == (
        "gamma_read_sub", 20, 44, 48278, 12,
    )  # fmt: skip
    assert act.told_by == ("gov_changes", "log_lines", "param_active")
    assert act.time == pd.Timestamp(at(600))


@pytest.mark.parametrize("key", ["GammaReadSub", "GammaReadSubCt", "gamma_read_sub_ct"])
def test_either_generations_name_is_the_same_parameter(key: str) -> None:
    (act,) = acts(frames(log_lines=lines(activated(601, key))), {})
    assert act.key == "gamma_read_sub"


def test_two_nodes_that_log_one_act_are_one_act() -> None:
    assert len(acts(frames(log_lines=lines(activated(601), activated(603))), {})) == 1


def test_the_same_value_in_another_epoch_is_another_act() -> None:
    table = lines(activated(601), activated(721, epoch=48279))
    assert [act.epoch for act in acts(frames(log_lines=table), {})] == [48278, 48279]


def test_a_client_that_quotes_an_activation_is_no_activation() -> None:
    forged = {"ts": at(601), "message": f"said: {activated(601)['message']}", "fields": "{}"}
    assert acts(frames(log_lines=lines(forged)), {}) == []


@pytest.mark.parametrize(
    "text",
    ["gov_param_activated key=X new=1e9 old=2 epoch=3", "gov_param_activated key= new=1",
     "gov_param_activated key=X new=9999999999999999999999 old=1 epoch=1"],
)  # fmt: skip
def test_an_activation_with_numbers_that_are_none_is_passed_over(text: str) -> None:
    assert acts(frames(log_lines=lines({"ts": at(1), "message": text, "fields": "{}"})), {}) == []


def test_changes_of_epochs_from_another_time_are_left_out() -> None:
    assert acts(frames(gov_changes=changed(epoch=7)), BEGAN) == []


def test_a_gauge_that_first_appears_on_a_node_that_was_scraped_is_an_act() -> None:
    (act,) = acts(frames(param_active=gauge([float("nan")] * 40 + [44.0] * 60)), {})
    assert (act.old, act.new, act.time) == (None, 44, pd.Timestamp(at(600)))


def test_a_gauge_of_a_node_that_is_first_scraped_late_is_no_act() -> None:
    up = steps({("j", "a"): [float("nan")] * 40 + [1.0] * 60}, STEP_S, "job", "instance")
    late = gauge([float("nan")] * 40 + [44.0] * 60)
    assert acts(frames(up=up, param_active=late), {}) == []


def test_a_webhook_tells_a_word_and_a_number_and_arrives_when_it_was_logged() -> None:
    hook = {"ts": at(602), "message": "activate", "fields": json.dumps({"proposal_id": 12})}
    other = {"ts": at(603), "message": "activate", "fields": "{}"}
    (call,) = calls(frames(log_lines=lines(hook, other)))
    assert (call.event, call.proposal, call.time) == ("activate", 12, pd.Timestamp(at(602)))


@pytest.mark.parametrize("fields", ["null", "[]", "{", '{"proposal_id": "12"}', "[" * 100_000])
def test_a_webhook_with_hostile_fields_is_passed_over(fields: str) -> None:
    hook = {"ts": at(602), "message": "activate", "fields": fields}
    assert calls(frames(log_lines=lines(hook))) == []


def test_votes_counted_on_two_nodes_are_votes_of_one_chain() -> None:
    votes = {("j", node, "yes"): [0.0] * 50 + [3.0] + [0.0] * 49 for node in ("a", "b")}
    table = steps(votes, STEP_S, "job", "instance", "choice")
    near = Window(START, at(1500))
    (row,) = told_rows(frames(gov_votes=table), {}, near, pd.Timestamp(START))
    assert (row["what"], row["count"], row["told_by"]) == ("votes counted (yes)", 3.0, "gov_votes")


def cut(values: list[float]) -> dict[str, Any]:
    index = pd.date_range(START, periods=len(values), freq="15s")
    columns = pd.MultiIndex.from_tuples([("a", "")])
    (row,) = cut_rows(pd.DataFrame({0: values}, index=index).set_axis(columns, axis=1), 120.0)
    return row


def test_a_rise_in_each_epoch_is_one_activation() -> None:
    row = cut(([1.0] + [0.0] * 7) * 10)
    assert (row["epochs"], row["activations"]) == (10.0, 1)


def test_a_calm_stretch_between_makes_two_activations() -> None:
    row = cut(([1.0] + [0.0] * 7) * 3 + [0.0] * 40 + ([1.0] + [0.0] * 7) * 3)
    assert (row["epochs"], row["activations"]) == (6.0, 2)


def test_a_gap_that_spreads_a_rise_neither_dates_nor_divides_it() -> None:
    row = cut([0.0] * 4 + [0.2] * 10 + ([0.0] * 6 + [1.0] + [0.0]) * 3)
    assert (row["epochs"], row["activations"]) == (5.0, 1)
    assert row["first"] == "2026-03-10T10:05:00Z"
