"""What The-Block's settlement counted, target by target: flows, stalls, silent lanes, quiet burns.

Frames in, small facts out; what they mean is said in `kinds/settlement_stall.py`. A target is one
scraped process, named by its instance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from tbforensics.frames import labelled, summed
from tbforensics.model import Frames, Json, Spell, Window
from tbforensics.plateau import Plateau, plateaus
from tbforensics.theblock import word

_SEEDS = ("", "__")  # of a label: series that exist only to exist
_LAST_SECOND = 253_402_300_799  # of year 9999; a time beyond it is a made-up number


# --- flows and stalls ----------------------------------------------------------------------


@dataclass(frozen=True)
class Flow:
    """What one target counted per step.

    settled:   settlements applied. matched: matches that are to be settled. rehearsed: dry runs.
    due:       settlements to expect of the matches, at the baseline's ratio; of a target that
               counts no matches at all, its usual rate wherever jobs are pending.
    due_of_all: the same when dry runs are taken for matches.
    usual:     settlements per step in the baseline, whatever arrived.
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
        usual = float(between(came, frames.baseline).mean())
        due = (pooled if np.isnan(ratio) else ratio) * real
        if target not in matched and target not in rehearsed and target in pending:
            due = usual * (pending[target] > 0).where(pending[target].notna())
        every = real.add(dry_runs, fill_value=0.0)
        due_of_all = _ratio(frames, came, every) * every
        found.append(Flow(target, came, real, dry_runs, due, due_of_all, usual))
    return found


def _ratio(frames: Frames, came: pd.Series, arrived: pd.Series) -> float:
    """Settlements for each arrival in the baseline; NaN where nothing arrived in it."""
    arrivals = between(arrived, frames.baseline).sum()
    return float(between(came, frames.baseline).sum() / arrivals) if arrivals else float("nan")


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


# --- lanes ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Silence:
    """One lane of one target that matched nothing, or next to nothing, for a while.

    longest_wait_s: of the jobs that are known to have waited in it meanwhile; None for none.
    starved: how often that was told. unnamed: how often of a lane that was not named.
    latencies_ms: mean of a match in the baseline and in the silence; None where none was made.
    """

    lane: str
    target: str
    window: Window
    ended: bool
    due: float
    came: float
    longest_wait_s: float | None
    starved: int
    unnamed: int
    latencies_ms: tuple[float | None, float | None]


def silences(frames: Frames, *, share: float, missing: float, at_least_s: float) -> list[Silence]:
    """Lanes that fell silent in the window, measured by their own rate in the baseline."""
    waits = _waits(frames)
    took, made = (_by_lane(frames[f"match_latency_{name}"]) for name in ("sum", "count"))
    found = []
    for (lane, target), came in _by_lane(frames["matches"]).items():
        due = came.where(came.isna(), between(came, frames.baseline).mean())
        for plateau in plateaus(
            came.to_numpy(float), due.to_numpy(float), share=share, missing=missing
        ):
            window = window_of(frames, came.index, plateau)
            if window.overlap_s(frames.window) < at_least_s:
                continue
            inside = waits[(waits["ts"] >= window.start) & (waits["ts"] < window.end)]
            own = inside[inside["lane"] == lane]
            means: list[float | None] = []
            for part in (frames.baseline, window):
                pair = (between(by[lane, target], part).sum() for by in (took, made)
                        if (lane, target) in by)  # fmt: skip
                seconds, count = (*pair, 0.0, 0.0)[:2]
                means.append(float(1000 * seconds / count) if count else None)
            found.append(
                Silence(
                    lane=lane,
                    target=target,
                    window=window,
                    ended=plateau.after is not None,
                    due=plateau.due,
                    came=plateau.came,
                    longest_wait_s=float(own["waited_s"].max()) if len(own) else None,
                    starved=len(own),
                    unnamed=int((inside["lane"] == "").sum()),
                    latencies_ms=(means[0], means[1]),
                )
            )
    return found


def _waits(frames: Frames) -> pd.DataFrame:
    """Jobs known to have waited, from log lines and from the market's own list: ts, lane, s."""
    told: list[tuple[datetime, Json, Json]] = []
    lines = frames["log_lines"]
    about = lines["message"].fillna("").str.contains("lane starvation", regex=False)
    for line in lines[about & lines["ts"].notna()].to_dict("records"):
        fields = json.loads(line["fields"] or "{}")
        told.append((line["ts"], fields.get("lane"), fields.get("waited")))
    for _, value in answers(frames, "market"):
        for row in objects(value, "lane_starvation"):
            if (at := moment(row.get("updated_at"))) is not None:
                told.append((at, row.get("lane"), row.get("waited_for_secs")))
    rows = [
        (pd.Timestamp(at), word(lane) if isinstance(lane, str) else "", number(waited))
        for at, lane, waited in told
    ]
    table = pd.DataFrame(rows, columns=["ts", "lane", "waited_s"])
    return table.astype({"ts": "datetime64[ms, UTC]"})


def _by_lane(table: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Columns by lane and target; dry runs too, because they show that the loop works."""
    found: dict[tuple[str, str], list[pd.Series]] = {}
    for labels, column in labelled(table):
        if (lane := labels.get("lane", "")) not in _SEEDS:
            found.setdefault((word(lane), _target(labels)), []).append(column)
    return {key: _sum(columns) for key, columns in sorted(found.items())}


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
            window = window_of(frames, violated.index, plateau)
            if window.overlap_s(frames.window) > 0:
                inside = violated.iloc[plateau.first : plateau.last + 1]
                found.append((target, window, float(inside.sum())))
    return found


def mode_changes(frames: Frames) -> list[tuple[datetime, str, float]]:
    """Step, new mode and count of every change that was counted. The label is `to`."""
    by = summed(frames["mode_changes"], "to")
    return sorted(
        (at, word(str(to)), float(by.at[at, to]))
        for to in by.columns
        if to not in _SEEDS
        for at in by.index[by[to] > 0]
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
    keep = [labels.get(label, "") not in _SEEDS for labels, _ in labelled(table)]
    return table.loc[:, keep]


# --- small words ---------------------------------------------------------------------------


def by_target(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The columns of a frame added up by target."""
    found: dict[str, list[pd.Series]] = {}
    for labels, column in labelled(table):
        found.setdefault(_target(labels), []).append(column)
    return {target: _sum(columns) for target, columns in sorted(found.items())}


def _target(labels: Mapping[str, str]) -> str:
    return labels.get("instance") or labels.get("job") or labels.get("source", "")


def _sum(columns: Sequence[pd.Series]) -> pd.Series:
    return pd.concat(columns, axis=1).sum(axis=1, min_count=1)


def total(by: Mapping[str, pd.Series]) -> pd.Series:
    """All targets together; empty when there is none."""
    return (
        _sum(list(by.values()))
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
