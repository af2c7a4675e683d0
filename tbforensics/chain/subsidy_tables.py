"""The small tables behind the claims of a subsidy report: plain rows, one job each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from tbforensics.analysis.contributions import Contributions
from tbforensics.analysis.signals import Floats
from tbforensics.chain import issuance
from tbforensics.chain.govacts import Act
from tbforensics.chain.issuance import PARAMETERS, SYMBOLS, WORK, Due, Effects
from tbforensics.chain.nodes import between, by_node
from tbforensics.chain.subsidies import Ledger, Receipts, history, per_epoch, retunes, settings_of
from tbforensics.model import Frames, Json, Window

Rows = list[dict[str, Json]]
Setting = set[tuple[int, ...]]


def effect_rows(frames: Frames, ledger: Ledger, during: Window) -> tuple[Rows, Effects]:
    """Volume and multiplier effect of each kind of work against the baseline's pace, and of all.

    `expected` is the baseline scaled to the steps of `during`. Rows add up to the whole.
    """
    before = issuance.booked(ledger.accounts, frames.baseline.start, frames.baseline.end)
    after = issuance.booked(ledger.accounts, during.start, during.end)
    share = ledger.share(during, frames.baseline)
    parts = issuance.book_effects(before, after, share, ledger.levels(frames.baseline, during))
    rows: Rows = []
    for work in WORK:
        own = {cell: part for cell, part in parts.items() if cell[1] == work}
        if not own:
            continue
        was, now = issuance.total(before, work), issuance.total(after, work)
        part = sum(own.values(), issuance.NOTHING)
        lead = max(own, key=lambda cell: (abs(own[cell].change), cell))
        rows.append(
            {
                "work": work,
                "change": part.change,
                "by_volume": part.volume,
                "by_multiplier": part.multiplier,
                "most_on": lead[0],
                "multiplier_before": _quotient(was),
                "multiplier": _quotient(now),
                "issued_expected": round(share * was.issued),
                "issued": now.issued,
                "units_expected": round(share * was.units),
                "units": now.units,
                "unit": "ms" if work == "cpu" else "bytes",
            }
        )
    return rows, sum(parts.values(), issuance.NOTHING)


def _quotient(due: Due) -> float | None:
    return due.issued / due.units if due.units else None


def noise_rows(ledger: Ledger) -> tuple[Rows, dict[str, int]]:
    """Published against raw multipliers, epoch by epoch; and how often each moved or was below 0.

    Counts: "boundaries", "published_moved", "raw_moved", "published_below", "raw_below".
    """
    raw, told = (per_epoch(ledger, table) for table in (ledger.raw, ledger.published))
    cells = [cell for cell in told.columns if cell in raw.columns]
    if len(told) < 2 or not cells:
        return [], {}
    rows: Rows = []
    for work in WORK:
        own = [cell for cell in cells if cell[1] == work]
        inner, outer = (table[own].to_numpy(dtype=float) for table in (raw, told))
        both = np.isfinite(inner) & np.isfinite(outer)
        if both.any():
            rows.append(
                {
                    "multiplier": SYMBOLS[work],
                    "work": work,
                    "raw_low": float(inner[both].min()),
                    "raw_high": float(inner[both].max()),
                    "published_low": float(outer[both].min()),
                    "published_high": float(outer[both].max()),
                    "below_zero": int((outer < 0).any(axis=1).sum()),
                    "usually_off": float(np.median(np.abs(outer - inner)[both])),
                }
            )
    return rows, {
        "boundaries": len(told) - 1,
        "published_moved": _moves(told[cells]),
        "raw_moved": _moves(raw[cells]),
        "published_below": int((told[cells] < 0).any(axis=1).sum()),
        "raw_below": int((raw[cells] < 0).any(axis=1).sum()),
    }


def _moves(table: pd.DataFrame) -> int:
    return int((table.diff().iloc[1:].fillna(0.0) != 0).any(axis=1).sum())


def multiplier_rows(
    frames: Frames, ledger: Ledger, during: Window, acts: Sequence[Act], moved_ratio: float
) -> Rows:
    """Which multipliers left their calm level, beyond what they stray by themselves."""
    rows: Rows = []
    for work in WORK:
        cells = [cell for cell in ledger.raw.columns if cell[1] == work]
        calm, upset = (
            _finite(between(ledger.raw[cells], part)) for part in (frames.baseline, during)
        )
        if not len(calm) or not len(upset):
            continue
        before, after = float(np.median(calm)), float(np.median(upset))
        strays = float(np.abs(calm - before).max())
        act = next((a for a in acts if a.key == PARAMETERS[work]), None)
        rows.append(
            {
                "multiplier": SYMBOLS[work],
                "work": work,
                "baseline": before,
                "strays_by": strays,
                "spell": after,
                "moved": abs(after - before) > max(strays, moved_ratio * abs(before)),
                "act": f"{act.key} set to {act.new}" if act else "none seen",
            }
        )
    return rows


def _finite(table: pd.DataFrame) -> Floats:
    values = table.to_numpy(dtype=float).ravel()
    return np.asarray(values[np.isfinite(values)])


def raw_around(ledger: Ledger, key: str, moment: pd.Timestamp) -> dict[str, Json]:
    """The raw multiplier that an act names, half an epoch before and one and a half after."""
    work = next((work for work, name in PARAMETERS.items() if name == key), None)
    cells = [cell for cell in ledger.raw.columns if cell[1] == work]
    if not cells:
        return {}
    levels = ledger.raw[cells].ffill().median(axis=1)
    half = pd.Timedelta(seconds=ledger.dating.epoch_s / 2)
    before, after = levels[: moment - half], levels[: moment + 3 * half]
    return {
        "raw_before": float(before.iloc[-1]) if len(before) else None,
        "raw_after": float(after.iloc[-1]) if len(after) else None,
    }


def record_rows(frames: Frames, ledger: Ledger) -> tuple[Rows, tuple[str, ...]]:
    """Explorer, journal and gauges held against each other; and the queries that say anything.

    Each node publishes its own noise, so records are held against the one node that they follow:
    the one they agree with most often.
    """
    told = {"subsidy_history": history(frames), "gov_events": retunes(frames)}
    rows: Rows = []
    if told["subsidy_history"] and told["gov_events"]:
        rows += _compared("subsidy_history", "gov_events", *told.values())
    gauges = _gauges(ledger) if ledger.basis == "raw" else {}
    for name, record in told.items():
        followed = max(gauges, key=lambda node: (_agreed(record, gauges[node]), node), default="")
        if record and followed:
            rows += _compared(name, f"multipliers of {followed}", record, gauges[followed])
    cites = tuple(name for name, epochs in {**told, "multipliers": gauges}.items() if epochs)
    return rows, cites


def _gauges(ledger: Ledger) -> dict[str, dict[int, Setting]]:
    """Node -> epoch -> what its gauges showed."""
    numbers = {epoch.start: epoch.number for epoch in ledger.dating.epochs}
    found: dict[str, dict[int, Setting]] = {}
    for start, nodes in settings_of(ledger.published, list(numbers)).items():
        if (number := numbers[start]) is not None:
            for node, setting in nodes.items():
                found.setdefault(node, {})[number] = {setting}
    return found


def _agreed(one: Mapping[int, Setting], other: Mapping[int, Setting]) -> int:
    return sum(1 for epoch in one.keys() & other.keys() if one[epoch] & other[epoch])


def _compared(
    name: str, against: str, one: Mapping[int, Setting], other: Mapping[int, Setting]
) -> Rows:
    shared = sorted(one.keys() & other.keys())
    apart = [epoch for epoch in shared if not one[epoch] & other[epoch]]
    row: dict[str, Json] = {"record": name, "against": against, "epochs_in_both": len(shared)}
    row |= {"agree": len(shared) - len(apart), "first_apart": apart[0] if apart else None}
    return [row] if shared else []


# --- who worked ----------------------------------------------------------------------------

_SIGNS: tuple[tuple[str, str, tuple[str, ...], str, str], ...] = (
    # query, label, values of it (none for all), how it is counted, what it speaks for
    ("reads_denied", "reason", ("limit",), "per min", "abuse"),
    ("industrial_rejected", "reason", ("fair_share", "burst_exhausted"), "per min", "abuse"),
    ("industrial_rejected", "reason", ("comfort_guard", "capacity"), "per min", "load"),
    ("industrial_deferred", "", (), "per min", "load"),
    ("industrial_backlog", "", (), "level", "load"),
    ("industrial_utilization", "", (), "level", "load"),
    ("industrial_admitted", "", (), "per min", "demand"),
)


def traffic_rows(frames: Frames, during: Window, times: float) -> tuple[Rows, tuple[str, ...]]:
    """Signs of abuse, of load beyond capacity and of demand; and the queries that showed any."""
    rows: Rows = []
    cites: dict[str, None] = {}
    for query, label, values, how, speaks in _SIGNS:
        table = by_node(frames[query], label)
        own = table[[cell for cell in table.columns if not values or cell[1] in values]]
        if own.empty:
            continue
        if how == "level":
            signal = own.mean(axis=1)
        else:
            signal = own.sum(axis=1, min_count=1) * 60.0 / frames.step_s
        calm, now = (float(between(signal, part).mean()) for part in (frames.baseline, during))
        if math.isnan(calm) or math.isnan(now):
            continue
        cites[query] = None
        rows.append(
            {
                "sign": query + (f" ({', '.join(values)})" if values else ""),
                "counted": how,
                "baseline": calm,
                "spell": now,
                "rose": now > times * calm,
                "speaks_for": speaks,
            }
        )
    return rows, tuple(cites)


def provider_rows(
    parts: Contributions, found: Receipts, during: Window, per_min: float, most: int
) -> Rows:
    """What each provider's receipts add to the rise, the largest first."""
    table = found.table[(found.table["ts"] >= during.start) & (found.table["ts"] < during.end)]
    own = dict(iter(table.groupby("provider")))
    none = table.iloc[:0]
    return [
        {
            "provider": str(part.label) or "(none)",
            "receipts": len(own.get(part.label, none)),
            "cpu_ms": int(sum(own.get(part.label, none)["cpu_ms"])),
            "bytes_out": int(sum(own.get(part.label, none)["bytes_out"])),
            "change_per_min": part.change * per_min,
            "share": part.share,
            "explains": part.label in parts.explained_by,
        }
        for part in parts.parts[:most]
    ]


def escrow_rows(books: Mapping[str, issuance.Escrow]) -> Rows:
    return [
        {
            "node": node,
            "locked_at_start": book.opened,
            "locked_anew": book.locked_new,
            "refunded": book.refunded,
            "burned": book.burned,
            "burned_share": None if math.isnan(book.burned_share) else book.burned_share,
            "locked_at_end": book.closed,
            "unaccounted": book.lost,
            "restarts": book.restarts,
        }
        for node, book in sorted(books.items())
    ]
