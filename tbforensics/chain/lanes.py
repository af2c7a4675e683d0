"""Lanes of the compute market that fell silent, and whether jobs were waiting in them.

Only a lane that matches is counted, so one that stalls shows nothing at all. Whether it was idle
or stalled is told by jobs that waited: log lines, and the market's own list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from tbforensics.analysis.plateau import plateaus
from tbforensics.chain.settlement import (
    SEEDS,
    added,
    answers,
    between,
    moment,
    number,
    objects,
    target_of,
    usual_of,
    window_of,
)
from tbforensics.frames import labelled
from tbforensics.model import Frames, Json, Window
from tbforensics.theblock import word


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
    by_lane = _by_lane(frames["matches"])
    waits = _waits(frames, {_host(target) for _, target in by_lane})
    took, made = (_by_lane(frames[f"match_latency_{name}"]) for name in ("sum", "count"))
    found = []
    for (lane, target), came in by_lane.items():
        due = came.where(came.isna(), usual_of(frames, came))
        for plateau in plateaus(
            came.to_numpy(float), due.to_numpy(float), share=share, missing=missing
        ):
            window = window_of(frames, came.index, plateau)
            begun = came.iloc[: plateau.first].sum() > 0  # else nobody had used it yet
            if not begun or window.overlap_s(frames.window) < at_least_s:
                continue
            inside = waits[(waits["ts"] >= window.start) & (waits["ts"] < window.end)]
            inside = inside[inside["host"].isin(["", _host(target)])]
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


def _waits(frames: Frames, hosts: Iterable[str]) -> pd.DataFrame:
    """Jobs known to have waited, from log lines and from the market's own list.

    Shape: ts, lane, waited_s and host: one of `hosts` where the names of source or file say whose
           words these are, else "", for any.
    """
    told: list[tuple[datetime, str, Json, Json]] = []
    lines = frames["log_lines"]
    about = lines["message"].fillna("").str.contains("lane starvation", regex=False)
    for line in lines[about & lines["ts"].notna()].to_dict("records"):
        fields = json.loads(line["fields"] or "{}")
        where = f"{line['source']} {line['file']}"
        told.append((line["ts"], where, fields.get("lane"), fields.get("waited")))
    for source, value in answers(frames, "market"):
        for row in objects(value, "lane_starvation"):
            if (at := moment(row.get("updated_at"))) is not None:
                told.append((at, source, row.get("lane"), row.get("waited_for_secs")))
    rows = [
        (
            pd.Timestamp(at),
            word(lane) if isinstance(lane, str) else "",
            number(waited),
            max((host for host in hosts if host in where), key=len, default=""),
        )
        for at, where, lane, waited in told
    ]
    table = pd.DataFrame(rows, columns=["ts", "lane", "waited_s", "host"])
    return table.astype({"ts": "datetime64[ms, UTC]"})


def _host(target: str) -> str:
    return target.rpartition(":")[0] or target


def _by_lane(table: pd.DataFrame) -> dict[tuple[str, str], pd.Series]:
    """Columns by lane and target; dry runs too, because they show that the loop works."""
    found: dict[tuple[str, str], list[pd.Series]] = {}
    for labels, column in labelled(table):
        if (lane := labels.get("lane", "")) not in SEEDS:
            found.setdefault((word(lane), target_of(labels)), []).append(column)
    return {key: added(columns) for key, columns in sorted(found.items())}
