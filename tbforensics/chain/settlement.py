"""What The-Block's settlement counted, target by target: flows, stalls, quiet burns, modes.

Frames in, small facts out; what they mean is said in `kinds/settlement_stall.py`. A target is one
scraped process, named by its instance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from tbforensics.analysis.plateau import Plateau, plateaus
from tbforensics.frames import labelled, summed
from tbforensics.model import Frames, Json, Spell, Window
from tbforensics.theblock import MODES, word

SEEDS = ("", "__")  # of a label: series that exist only to exist
_ENOUGH = 10  # arrivals, before a ratio is taken from them
_LAST_SECOND = 253_402_300_799  # of year 9999; a time beyond it is a made-up number


# --- flows and stalls ----------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """What one target counted per step.

    settled:   settlements applied. matched: matches that are to be settled. rehearsed: dry runs.
    due:       settlements to expect of the matches, at the usual ratio; of a target that counts
               no matches at all, its usual rate wherever jobs are pending.
    due_of_all: the same when dry runs are taken for matches.
    usual:     settlements per step, whatever arrived.
    """

    target: str
    settled: pd.Series
    matched: pd.Series
    rehearsed: pd.Series
    due: pd.Series
    due_of_all: pd.Series
    usual: float


def flows(frames: Frames) -> list[Flow]:
    """One per target that counted settlements, matches or pending jobs.

    A family that never registered, while its target counts others, stands at zero: a node that
    never settled anything has no `settle_applied_total` to show for it.
    """
    settled, pending = by_target(frames["settled"]), by_target(frames["sla_pending"])
    dry = [row.get("dry_run", "").lower() == "true" for row, _ in labelled(frames["matches"])]
    matched = by_target(frames["matches"].loc[:, [not each for each in dry]])
    rehearsed = by_target(frames["matches"].loc[:, dry])
    pooled = _ratio(frames, total(settled), total(matched))
    found = []
    for target in sorted({*settled, *matched, *rehearsed, *pending}):
        known = [t[target] for t in (settled, matched, rehearsed, pending) if target in t]
        seen = pd.concat(known, axis=1).notna().any(axis=1)
        nothing = pd.Series(np.where(seen, 0.0, np.nan), index=known[0].index)
        came, real, dry_runs = (t.get(target, nothing) for t in (settled, matched, rehearsed))
        ratio = _ratio(frames, came, real)
        usual = usual_of(frames, came)
        due = (pooled if np.isnan(ratio) else ratio) * real
        if target not in matched and target not in rehearsed and target in pending:
            due = usual * (pending[target] > 0).where(pending[target].notna())
        every = real.add(dry_runs, fill_value=0.0)
        due_of_all = _ratio(frames, came, every) * every
        found.append(Flow(target, came, real, dry_runs, due, due_of_all, usual))
    return found


def _ratio(frames: Frames, came: pd.Series, arrived: pd.Series) -> float:
    """Settlements for each arrival, in the baseline or in all that was seen, whichever is more.

    A baseline in which nothing landed, or hardly anything arrived, says little of what is due; a
    stall in the window only lowers the second of the two. NaN where too little arrived in both.
    """
    ratios = [
        float(came_in.sum() / arrived_in.sum())
        for came_in, arrived_in in (
            (between(came, frames.baseline), between(arrived, frames.baseline)),
            (came, arrived),
        )
        if arrived_in.sum() >= _ENOUGH
    ]
    return max(ratios, default=float("nan"))


def usual_of(frames: Frames, came: pd.Series) -> float:
    """The mean per step, in the baseline or in all that was seen, whichever is more."""
    return float(np.nanmax([0.0, between(came, frames.baseline).mean(), came.mean()]))


@dataclass(frozen=True)
class Stall:
    """One spell of one target in which settlements were due and did not land."""

    flow: Flow
    plateau: Plateau
    window: Window
    matches: float
    dry_runs: float
    due_of_matches: float


def stalls(
    frames: Frames, flow: Flow, due: pd.Series, *, share: float, missing: float, at_least_s: float
) -> list[Stall]:
    """Spells of one target that reach into the window for long enough; see `plateaus`."""
    found = []
    for plateau in plateaus(
        flow.settled.to_numpy(float), due.to_numpy(float), share=share, missing=missing
    ):
        window = window_of(frames, flow.settled.index, plateau)
        if window.overlap_s(frames.window) >= at_least_s:
            inside = slice(plateau.first, plateau.last + 1)
            sums = (s.iloc[inside].sum() for s in (flow.matched, flow.rehearsed, flow.due))
            found.append(Stall(flow, plateau, window, *map(float, sums)))
    return found


def window_of(frames: Frames, index: pd.DatetimeIndex, plateau: Plateau) -> Window:
    """From a plateau's first step to the step in which something came again."""
    end = index[plateau.after] if plateau.after is not None else index[-1] + step_of(frames)
    return Window(index[plateau.first], end)


def spell_of(frames: Frames, index: pd.DatetimeIndex, plateau: Plateau) -> Spell:
    """Onset and recovery of a plateau, each with the earliest and latest moment it may have.

    Something last came somewhere in the step `before`, and again somewhere in the step `after`.
    """
    step, after = step_of(frames), plateau.after
    back = index[after] if after is not None else None
    return Spell(
        onset=index[plateau.first],
        onset_earliest=index[plateau.before],
        onset_latest=index[plateau.sure] + step,
        recovery=back,
        recovery_earliest=min(index[plateau.last] + step, back) if back is not None else None,
        recovery_latest=back + step if back is not None else None,
    )


# --- burns, modes, counts ------------------------------------------------------------------


def quiet_burns(frames: Frames, *, missing: float) -> list[tuple[str, Window, float]]:
    """Target, window and violations of each spell in which violations burned nothing any more."""
    burnt: dict[str, pd.Series] = {}
    for name in ("burns", "burns_ct"):  # one counter, whose name changed
        for target, column in by_target(frames[name]).items():
            burnt[target] = column.add(burnt[target], fill_value=0) if target in burnt else column
    found = []
    for target, violated in by_target(
        without_seeds_of(frames["sla_violations"], "provider")
    ).items():
        burns = burnt.get(target)
        if burns is None or not between(burns, frames.baseline).sum() > 0:
            continue  # it never burned, so nothing stopped
        came, due = ((s > 0).where(s.notna()).to_numpy(float) for s in (burns, violated))
        for plateau in plateaus(came, due, missing=missing):
            index = violated.index
            window = Window(index[plateau.first], index[plateau.last] + step_of(frames))
            if window.overlap_s(frames.window) > 0:
                inside = violated.iloc[plateau.first : plateau.last + 1]
                found.append((target, window, float(inside.sum())))
    return found


def mode_changes(frames: Frames) -> list[tuple[datetime, str, str]]:
    """Step, target and new mode of every change that was counted. The label is `to`."""
    return sorted(
        (at, target_of(labels), word(labels["to"], MODES))
        for labels, column in labelled(frames["mode_changes"])
        if labels.get("to", "") not in SEEDS
        for at in column.index[column > 0]
    )


def counts(frames: Frames, name: str, label: str, during: Window) -> list[dict[str, Json]]:
    """How often each value of a label was counted in a spell, and how often a minute before."""
    per_min = 60.0 / frames.step_s
    by = summed(without_seeds_of(frames[name], label), label)
    rows: list[dict[str, Json]] = [
        {
            label: str(value),
            "count": float(between(by[value], during).sum()),
            "per_min": float(between(by[value], during).mean() * per_min),
            "before_per_min": float(between(by[value], frames.baseline).mean() * per_min),
        }
        for value in by.columns
    ]
    rows = [row for row in rows if row["count"] > 0]
    return sorted(rows, key=lambda row: (-row["count"], row[label]))


def without_seeds_of(table: pd.DataFrame, label: str) -> pd.DataFrame:
    keep = [labels.get(label, "") not in SEEDS for labels, _ in labelled(table)]
    return table.loc[:, keep]


# --- small words ---------------------------------------------------------------------------


def by_target(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of a frame added up by target."""
    found: dict[str, list[pd.Series]] = {}
    for labels, column in labelled(table):
        found.setdefault(target_of(labels), []).append(column)
    return {target: added(columns) for target, columns in sorted(found.items())}


def target_of(labels: Mapping[str, str]) -> str:
    """The name of the process that a series speaks of."""
    return labels.get("instance") or labels.get("job") or labels.get("source", "")


def added(columns: Sequence[pd.Series]) -> pd.Series:
    """The sum of columns; NaN only where none of them was seen."""
    return pd.concat(columns, axis=1).sum(axis=1, min_count=1)


def total(by: Mapping[str, pd.Series]) -> pd.Series:
    """All targets together; empty when there is none."""
    return (
        added(list(by.values()))
        if by
        else pd.Series(dtype=float, index=pd.DatetimeIndex([], tz="UTC"))
    )


def between(column: pd.Series, window: Window) -> pd.Series:
    return column[(column.index >= window.start) & (column.index < window.end)]


def step_of(frames: Frames) -> pd.Timedelta:
    return pd.Timedelta(seconds=frames.step_s)


def answers(frames: Frames, name: str) -> Iterator[tuple[str, Json]]:
    """Source and value of each usable answer of a JSON-RPC query, in the order asked."""
    for row in frames[name].to_dict("records"):
        if row["state"] == "ok":
            yield row["source"], row["value"]


def objects(value: Json, field: str = "") -> list[dict[str, Json]]:
    """The objects in a list, or in a field that holds one; none when it has another form."""
    if field:
        value = value.get(field) if isinstance(value, dict) else None
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def number(value: Json) -> int | float:
    """A number that is one; 0 for anything else."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def moment(seconds: Json) -> datetime | None:
    """The time of unix seconds; None for what is no time."""
    if (
        not isinstance(seconds, int)
        or isinstance(seconds, bool)
        or not 0 <= seconds <= _LAST_SECOND
    ):
        return None
    return datetime.fromtimestamp(seconds, UTC)


def flow_of(frames: Frames, target: str = "") -> pd.DataFrame:
    """Matches, dry runs and settlements per step, of one target or of all together.

    Shape: the frames' index; one column each, NaN where none was seen.
    """
    chosen = [flow for flow in flows(frames) if target in ("", flow.target)]
    index = frames["settled"].index
    return pd.DataFrame(
        {
            name: total({flow.target: getattr(flow, field) for flow in chosen}).reindex(index)
            for name, field in (
                ("matches", "matched"),
                ("dry runs", "rehearsed"),
                ("settlements", "settled"),
            )
        }
    )
