"""Which moved first: every metric that was asked for, by when it left its level."""

from __future__ import annotations

import math

import pandas as pd

from tbforensics.analysis.attribution import rank_movers
from tbforensics.frames import summed
from tbforensics.model import Finding, Frames, Kind, Shape, Window, utc_text

_MOST_ROWS = 15


def moved_first(frames: Frames, kind: Kind) -> Finding | None:
    """The kind's metrics that moved within the window, first mover first; None when none did.

    Each metric is the sum over its series: a counter as increase per step, a gauge as it is.
    Source: `attribution.rank_movers`; near in time is not a cause, and the finding says so.
    """
    totals = {}
    for query in kind.queries:
        table = frames.tables.get(query.name)
        if query.shape in (Shape.COUNTER, Shape.GAUGE) and table is not None and table.size:
            totals[query.name] = summed(table)["total"]
    if not totals:
        return None
    movers = [
        mover
        for mover in rank_movers(pd.DataFrame(totals))
        if frames.window.start <= mover.onset < frames.window.end
    ]
    if not movers:
        return None
    step = pd.Timedelta(seconds=frames.step_s)
    together = [m for m in movers if m.onset_interval[0] <= movers[0].onset_interval[1] + step]
    names = ", ".join(str(mover.label) for mover in together[:3])
    if len(together) > 3:
        names += f" and {len(together) - 3} more within a step of them"
    return Finding(
        claim=f"{len(movers)} of {len(totals)} metrics moved; first: {names}",
        id="moved-first",
        value=float(len(movers)),
        unit="metrics",
        window=Window(movers[0].onset, frames.window.end),
        cites=tuple(str(mover.label) for mover in movers),
        rows=tuple(
            {
                "metric": str(mover.label),
                "onset": utc_text(mover.onset),
                "earliest": utc_text(mover.onset_interval[0]),
                "latest": utc_text(mover.onset_interval[1] + step),
                "times_before": mover.ratio if math.isfinite(mover.ratio) else None,
                "change_per_step": mover.difference,
                "strength": mover.strength,
            }
            for mover in movers[:_MOST_ROWS]
        ),
        caution="first in time is not a cause; onsets closer than a step have no order",
    )
