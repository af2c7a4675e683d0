"""Where the portfolio's journal says nothing: calm, stopped, or lost. Silence is not health."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from tbforensics.model import Doubt, Frames, Json, Window
from tbforensics.trading.accounts import spans_between
from tbforensics.trading.njord import by_strategy, moment, prices, timed
from tbforensics.trading.portfolio import Snapshot

# A fill is counted up to a scrape later than it is written, and its neighbours are rows.
_LATE_S = 60.0
_WRITERS = ("fills", "acks", "positions")
_COUNTERS = ("fills_counted", "orders_counted", "bus_messages", "intents_denied")
_GAUGES = ("drawdown_gauge", "pnl", "equity_gauge", "loop_lag")


def silences(frames: Frames, rows: Sequence[Snapshot], silent_s: float) -> Iterator[Doubt]:
    """Holes in the journal that are longer than `silent_s`, unless they were calm.

    A hole is calm when a living exporter counted no fill in it, nothing else wrote one, and the
    market's prices were seen: for without a fill the journal has no price.
    """
    if not rows:
        return
    written = [moment(ns) for name in _WRITERS for ns, _, _ in timed(frames[name])]
    priced = [moment(ns) for ns, _, _ in prices(frames["trades"], frames["bars"])]
    moved = list(_moves(frames))
    for hole in spans_between([moment(row.ts_ns) for row in rows], frames.window):
        if hole.seconds <= silent_s:
            continue
        inner = Window(
            hole.start + timedelta(seconds=min(_LATE_S, hole.seconds / 4)),
            hole.end - timedelta(seconds=min(_LATE_S, hole.seconds / 4)),
        )
        span = f"the portfolio journal has no row for {hole.seconds / 60:.0f} min"
        fills = max(round(counted(frames, inner)), sum(time in inner for time in written))
        if fills:
            yield Doubt(
                "journal stopped",
                f"{span}, while {fills} fills were counted or written; a fill without strategy_id "
                "ends its writer, and paper fills may never reach it",
                hole,
                "cleared",
                ("portfolio", "fills_counted", *_WRITERS),
            )
        elif not frames.seen("fills_counted") or _longest_s(moved, inner) > silent_s:
            yield Doubt(
                "journal silent",
                f"{span}, and no exporter that counts fills was seen alive all the time",
                hole,
                "cleared",
                ("portfolio", "fills_counted"),
            )
        elif _longest_s(priced, hole) > silent_s:
            yield Doubt(
                "journal silent",
                f"{span}; nothing was filled, so it saw no price, and neither did we",
                hole,
                "cleared",
                ("portfolio", "trades", "bars"),
            )


def _longest_s(times: Sequence[datetime], window: Window) -> float:
    """The longest stretch of a window without any of the times."""
    return max((span.seconds for span in spans_between(times, window)), default=0.0)


def _moves(frames: Frames) -> Iterator[datetime]:
    """Steps in which anything that the exporter says changed: it was alive then."""
    for name in (*_COUNTERS, *_GAUGES):
        if frames.seen(name):
            table = frames[name]
            rises = table if name in _COUNTERS else table.diff().abs()
            changed = (rises > 0).any(axis=1)
            yield from (time.to_pydatetime() for time in table.index[changed])


def counted(frames: Frames, span: Window) -> float:
    """Fills that the exporter counted in a span."""
    table = by_strategy(frames["fills_counted"], "venue")
    step = timedelta(seconds=frames.step_s)
    inside = table[(table.index >= span.start) & (table.index + step <= span.end)]
    return float(inside.sum().sum())


def archived(frames: Frames, silent_s: float) -> Iterator[Doubt]:
    """Between an archive's end and the next file's start lines may be lost: the tool that
    compresses idle journals removes them while their writer still has them open."""
    told: dict[tuple[str, str], list[Mapping[str, Json]]] = {}
    for row in frames["journal_files"].to_dict("records"):
        if row["role"] == "summary" and row["value"].get("last_ns"):
            told.setdefault((row["source"], row["value"]["stem"]), []).append(row["value"])
    for (_, stem), files in sorted(told.items()):
        files.sort(key=lambda file: (file["first_ns"], file["file"]))
        for earlier, later in pairwise(files):
            gap_s = (later["first_ns"] - earlier["last_ns"]) / 1e9
            if not earlier["file"].endswith(".gz") or gap_s <= silent_s:
                continue
            hole = Window(moment(earlier["last_ns"]), moment(later["first_ns"]))
            if hole.end <= frames.baseline.start or hole.start >= frames.window.end:
                continue
            fills = counted(frames, hole)
            yield Doubt(
                "lines lost at compression",
                f"{earlier['file']} ends and {later['file']} begins {gap_s / 60:.0f} min later"
                + (f", while {fills:.0f} fills were counted" if fills else "")
                + "; what was written to the removed file is gone",
                hole,
                "cleared" if stem == "portfolio" and hole.overlap_s(frames.window) > 0 else "",
                ("journal_files", "fills_counted"),
            )
