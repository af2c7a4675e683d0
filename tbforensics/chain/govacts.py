"""What governance did, from every place that tells of it, and one act for what several told.

A proposal that is activated leaves a log line with its epoch, a gauge that takes the new value, a
row in `param_changes.json`, and a webhook that says only its number. The line and the gauge have
a time, the row and the line have an epoch, so an act is told fully only by several of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd

from tbforensics.chain.nodes import between, by_node
from tbforensics.frames import labelled
from tbforensics.model import Frames, Json, Window, utc_text
from tbforensics.theblock import param_key

_ACTIVATED = re.compile(
    r"gov_param_activated key=(\w{1,80}) new=(-?\d{1,19}) old=(-?\d{1,19}) epoch=(\d{1,19})"
)
_WEBHOOKS = ("vote", "activate", "rollback")
_SAME_S = 300.0  # the gauge is scraped, and the line written, soon after the boundary


@dataclass(frozen=True)
class Act:
    """One change of a parameter by governance, as far as it was told.

    told_by: queries that tell of it, in alphabetical order.
    """

    key: str
    old: int | None
    new: int
    time: pd.Timestamp | None = None
    epoch: int | None = None
    proposal: int | None = None
    told_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Call:
    """A webhook as its receiver logged it: no more than a word and a number."""

    time: pd.Timestamp
    event: str
    proposal: int


def acts(frames: Frames, began: Mapping[int, pd.Timestamp]) -> list[Act]:
    """Every act that touches the span of the frames, in time order.

    began: when epochs began, as far as known: it dates what tells only an epoch. Rows of the
           history from epochs outside of it belong to another time and are left out.
    """
    told = [
        *_logged(frames.tables.get("log_lines")),
        *_changed(frames.tables.get("gov_changes"), began),
        *_shown(frames.tables.get("param_active"), frames.tables.get("up")),
    ]
    merged: list[Act] = []
    for act in told:
        place = next((i for i, other in enumerate(merged) if _same(act, other)), None)
        if place is None:
            merged.append(act)
        else:
            merged[place] = _both(merged[place], act)
    return sorted(merged, key=lambda act: (act.time is None, act.time, act.key))


def calls(frames: Frames) -> list[Call]:
    """Webhooks among the log lines, in time order, each once per receiver's line."""
    found = []
    for row in _lines(frames.tables.get("log_lines"), _WEBHOOKS):
        fields = fields_of(row["fields"])
        number = fields.get("proposal_id")
        if isinstance(number, int) and not isinstance(number, bool) and not pd.isna(row["ts"]):
            found.append(Call(row["ts"], row["message"], number))
    return sorted(found, key=lambda call: (call.time, call.event, call.proposal))


def fields_of(text: object) -> dict[str, Json]:
    """The fields of a log line; none when they are no JSON object."""
    try:
        fields = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _logged(lines: pd.DataFrame | None) -> Iterator[Act]:
    if lines is None or lines.empty:
        return
    told = lines["message"].fillna("").str.startswith("gov_param_activated ")
    for row in lines[told].to_dict("records"):
        if found := _ACTIVATED.match(row["message"]):
            time = None if pd.isna(row["ts"]) else row["ts"]
            key, new, old, epoch = param_key(found[1]), int(found[2]), int(found[3]), int(found[4])
            yield Act(key, old, new, time, epoch, told_by=("log_lines",))


def _changed(answers: pd.DataFrame | None, began: Mapping[int, pd.Timestamp]) -> Iterator[Act]:
    for row in _answers(answers):
        for change in row.get("changes", ()):
            epoch, new = change.get("epoch"), change.get("new_value")
            if epoch in began and isinstance(new, int):
                yield Act(
                    key=str(change.get("key")),
                    old=change.get("old_value"),
                    new=new,
                    time=began[epoch],
                    epoch=epoch,
                    proposal=change.get("proposal_id"),
                    told_by=("gov_changes",),
                )


def _shown(gauge: pd.DataFrame | None, up: pd.DataFrame | None) -> Iterator[Act]:
    """Changes of `param_change_active`, which holds the value that is in force.

    The gauge appears with the first act after a start of the node, so a first value on a node
    that was scraped before is an act as well; what it replaced is not told.
    """
    if gauge is None or gauge.empty:
        return
    for labels, column in labelled(gauge):
        seen = column.dropna()
        if seen.empty:
            continue
        key = param_key(labels.get("key", ""))
        if _scraped_before(seen.index[0], labels, up):
            yield Act(key, None, round(seen.iloc[0]), seen.index[0], told_by=("param_active",))
        for (_, before), (at, after) in pairwise(seen.items()):
            if after != before:
                yield Act(key, round(before), round(after), at, told_by=("param_active",))


def _scraped_before(
    moment: pd.Timestamp, labels: Mapping[str, str], up: pd.DataFrame | None
) -> bool:
    if up is None:
        return False
    for others, column in labelled(up):
        if all(others.get(name) == labels.get(name) for name in ("source", "job", "instance")):
            return bool((column[column.index < moment] == 1).any())
    return False


def _same(act: Act, other: Act) -> bool:
    if (act.key, act.new) != (other.key, other.new):
        return False
    if act.epoch is not None and other.epoch is not None:
        return act.epoch == other.epoch
    if act.time is None or other.time is None:
        return False
    return bool(abs((act.time - other.time).total_seconds()) <= _SAME_S)


def _both(one: Act, other: Act) -> Act:
    # A line is written at the moment itself, a gauge is seen at a scrape: the earlier is nearer.
    times = [time for time in (one.time, other.time) if time is not None]
    return replace(
        one,
        old=one.old if one.old is not None else other.old,
        time=min(times) if times else None,
        epoch=one.epoch if one.epoch is not None else other.epoch,
        proposal=one.proposal if one.proposal is not None else other.proposal,
        told_by=tuple(sorted({*one.told_by, *other.told_by})),
    )


def _lines(lines: pd.DataFrame | None, messages: Sequence[str]) -> Iterable[Mapping[str, Json]]:
    if lines is None or lines.empty or "fields" not in lines.columns:
        return []
    rows: list[Mapping[str, Json]] = lines[lines["message"].isin(messages)].to_dict("records")
    return rows


def _answers(answers: pd.DataFrame | None) -> Iterator[dict[str, Json]]:
    if answers is None or answers.empty:
        return
    for row in answers.to_dict("records"):
        if row["state"] == "ok" and isinstance(row["value"], dict):
            yield row["value"]


# --- as rows of a report -------------------------------------------------------------------


def told_rows(
    frames: Frames, began: Mapping[int, pd.Timestamp], near: Window, onset: pd.Timestamp
) -> list[dict[str, Json]]:
    """Acts, webhooks and what was only counted, in time order; `told_by` names the queries."""
    rows: list[dict[str, Json]] = []
    for act in acts(frames, began):
        if act.time is not None and near.start <= act.time < near.end:
            rows.append(
                {
                    **_when(act.time, onset),
                    "what": f"{act.key} set",
                    "old": act.old,
                    "new": act.new,
                    "epoch": act.epoch,
                    "proposal": act.proposal,
                    "count": None,
                    "told_by": ", ".join(act.told_by),
                }
            )
    for call in calls(frames):
        if near.start <= call.time < near.end:
            rows.append(
                {
                    **_when(call.time, onset),
                    "what": f"webhook {call.event}",
                    "proposal": call.proposal,
                    "told_by": "log_lines",
                }
            )
    rows += _counted(frames, near, onset)
    return sorted(rows, key=lambda row: (row["time"], row["what"]))


def _when(moment: pd.Timestamp, onset: pd.Timestamp) -> dict[str, Json]:
    return {"time": utc_text(moment), "after_onset_s": (moment - onset).total_seconds()}


def _counted(frames: Frames, near: Window, onset: pd.Timestamp) -> Iterator[dict[str, Json]]:
    """Votes, rollbacks and activations that were only counted, each at its first step."""
    for query, label, what in (
        ("gov_votes", "choice", "votes"),
        ("gov_rollbacks", "key", "rollbacks"),
        ("gov_activations", "key", "activations"),
    ):
        table = by_node(frames[query], label)
        spelled = [param_key(name) if label == "key" else name for _, name in table.columns]
        for name in sorted(set(spelled)):
            # Every node counts the same chain, so the node that counted most is the count.
            own = between(table.loc[:, [word == name for word in spelled]], near)
            most = own.sum().max()
            if most > 0:
                first = own.index[(own > 0).any(axis=1)][0]
                yield {
                    **_when(first, onset),
                    "what": f"{what} counted" + (f" ({name})" if name else ""),
                    "count": float(most),
                    "told_by": query,
                }


def cut_rows(table: pd.DataFrame, epoch_s: float) -> list[dict[str, Json]]:
    """Per node, in how many epochs a cut was counted and in how many runs without a break.

    Shape:  steps by (node, ""): rises of a counter that rises once per epoch while a cut holds.
    """
    rows: list[dict[str, Json]] = []
    for (node, _), column in table.items():
        hits = column.index[column > 0]
        if len(hits):
            apart = hits.to_series().diff().dt.total_seconds() > 1.75 * epoch_s
            # A rise across a gap is spread over it in parts, which date nothing.
            whole = column.index[column > 0.99]
            hits = whole if len(whole) else hits
            rows.append(
                {
                    "node": node,
                    "epochs": float(column.sum()),
                    "activations": 1 + int(apart.sum()),
                    "first": utc_text(hits[0]),
                    "last": utc_text(hits[-1]),
                }
            )
    return rows
