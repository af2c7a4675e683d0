"""A node's frames read as a ledger: work, multipliers, money, epochs, receipts and rent.

Everything that a subsidy kind computes with is made here from frames, once; the arithmetic itself
is in `issuance`, the dating of epochs in `epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pandas as pd

from tbforensics.chain import govacts, issuance
from tbforensics.chain.epochs import Dating, boundaries, date_epochs, numbers_of
from tbforensics.chain.issuance import PARAMETERS, SYMBOLS, WORK
from tbforensics.chain.nodes import answers, between, by_node, named_cells
from tbforensics.model import Frames, Json, Window, utc_text

_TYPES = {"storage": "storage", "read": "read", "compute": "bytes_out"}  # as metrics name work
Levels = Mapping[issuance.Cell, tuple[Fraction | None, Fraction | None]]

# --- the ledger ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """What the frames say about work, multipliers and money.

    accounts: what each kind of work was due on each node, step by step.
    raw, published: multipliers per step, columns (node, work).
    dating: the epochs of baseline and window.
    basis:  where the multipliers behind `issued` come from: "raw", "published", "snapshot" (the
            one answer of `inflation.params`) or "" (nowhere).
    cites:  queries behind `issued`.
    seen:   by step, whether the work of any node was.
    """

    accounts: Mapping[issuance.Cell, issuance.Account]
    raw: pd.DataFrame
    published: pd.DataFrame
    dating: Dating
    basis: str
    cites: tuple[str, ...]
    seen: pd.Series

    def paid(self, of: str = "issued") -> pd.DataFrame:
        """Ledger units (or `allowed`, `units`) per step by kind of work, as floats, for charts
        and onsets; NaN where no node was seen. Money is added up by `issuance.booked` alone."""
        columns = {}
        for work in WORK:
            own = [account for (_, w), account in self.accounts.items() if w == work]
            if own:
                values = [[float(x or 0) for x in getattr(account, of)] for account in own]
                columns[work] = np.where(self.seen, np.sum(values, axis=0), np.nan)
        return pd.DataFrame(columns, index=self.seen.index)

    def began(self) -> dict[int, pd.Timestamp]:
        """When each numbered epoch began."""
        return {e.number: e.start for e in self.dating.epochs if e.number is not None}

    def steps_in(self, window: Window) -> slice:
        first, last = self.seen.index.searchsorted([window.start, window.end])
        return slice(int(first), int(last))

    def share(self, part: Window, of: Window) -> Fraction:
        """Steps that were seen of one window over those of another."""
        here, there = (int(self.seen.iloc[self.steps_in(window)].sum()) for window in (part, of))
        return Fraction(here, there) if there else Fraction(0)

    def levels(self, before: Window, after: Window) -> Levels:
        """The mean raw multiplier of each account in two windows; None where none was seen."""
        values, cells = self.raw.to_numpy(dtype=float), list(self.raw.columns)
        found: dict[issuance.Cell, list[Fraction | None]] = {cell: [] for cell in self.accounts}
        for window in (before, after):
            part = values[self.steps_in(window)]
            for cell in self.accounts:
                known = part[:, cells.index(cell)] if cell in cells else np.empty(0)
                known = known[np.isfinite(known)]
                mean = float(known.mean()) if len(known) else None
                found[cell].append(
                    None if mean is None else Fraction(mean).limit_denominator(10**6)
                )
        return {cell: (pair[0], pair[1]) for cell, pair in found.items()}

    def seen_share(self, window: Window) -> float:
        """Share of the steps in which the multipliers of a node were scraped."""
        part = self.raw.to_numpy(dtype=float)[self.steps_in(window)]
        return float(np.isfinite(part).mean()) if part.size else 0.0


def open_ledger(frames: Frames) -> Ledger:
    """Price the work of every node with its own multipliers, and date the epochs."""
    by_type = by_node(frames["subsidy_bytes"], "type")
    kept = [key for key in by_type.columns if key[1] in _TYPES]
    cpu = by_node(frames["subsidy_cpu"], "")
    work = pd.concat(
        [
            named_cells(by_type[kept], [(node, _TYPES[kind]) for node, kind in kept]),
            named_cells(cpu, [(node, "cpu") for node, _ in cpu.columns]),
        ],
        axis=1,
    )
    raw = by_node(frames["multipliers_raw"], "type")
    published = by_node(frames["multipliers"], "type")
    cites: tuple[str, ...]
    basis, cites = "raw", ("multipliers_raw",)
    if raw.empty and not published.empty:
        raw, basis, cites = published, "published", ("multipliers",)
    elif raw.empty:
        raw = _of_snapshot(frames, work)
        basis, cites = ("", ()) if raw.empty else ("snapshot", ("inflation_params",))
        published = raw
    levels = pd.concat([raw, published], axis=1)
    seen = boundaries(levels)
    shown = settings_of(published, list(seen))
    settings = {start: list(nodes.values()) for start, nodes in shown.items()}
    start, end = frames.baseline.start, frames.window.end
    span = (pd.Timestamp(min(start, frames.window.start)), pd.Timestamp(end))
    dating = date_epochs(*span, list(seen), numbers_of(list(seen), settings, _known(frames)))
    return Ledger(
        accounts=issuance.priced(work, raw, published),
        raw=raw,
        published=published,
        dating=dating,
        basis=basis,
        cites=("subsidy_bytes", "subsidy_cpu", *cites),
        seen=work.notna().any(axis=1),
    )


def _of_snapshot(frames: Frames, work: pd.DataFrame) -> pd.DataFrame:
    """The multipliers of the moment of asking, for want of any that were scraped."""
    for row in answers(frames, "inflation_params"):
        found = {kind: row["value"].get(PARAMETERS[kind]) for kind in WORK}
        if all(isinstance(value, int) for value in found.values()):
            levels = {place: float(found[kind]) for place, (_, kind) in enumerate(work.columns)}
            return named_cells(pd.DataFrame(levels, index=work.index), list(work.columns))
    return named_cells(pd.DataFrame(index=work.index), [])


def settings_of(
    published: pd.DataFrame, starts: Sequence[pd.Timestamp]
) -> dict[pd.Timestamp, dict[str, tuple[int, ...]]]:
    """What each node published last between one boundary and the next, where all four were seen."""
    found: dict[pd.Timestamp, dict[str, tuple[int, ...]]] = {}
    places = [*published.index.searchsorted(list(starts)), len(published)]
    for node in dict.fromkeys(node for node, _ in published.columns):
        cells = [(node, work) for work in WORK if (node, work) in published.columns]
        if len(cells) < len(WORK):
            continue
        values = published[cells].to_numpy(dtype=float)
        whole = np.flatnonzero(np.isfinite(values).all(axis=1))
        for start, first, end in zip(starts, places, places[1:], strict=False):
            last = int(np.searchsorted(whole, end)) - 1
            if last >= 0 and whole[last] >= first:
                setting = tuple(round(value) for value in values[whole[last]].tolist())
                found.setdefault(start, {})[node] = setting
    return found


def _known(frames: Frames) -> dict[tuple[int, ...], set[int]]:
    """The epochs under which each setting stands in the records."""
    known: dict[tuple[int, ...], set[int]] = {}
    for setting, epoch in [*history(frames).items(), *retunes(frames).items()]:
        for values in epoch:
            known.setdefault(values, set()).add(setting)
    return known


def history(frames: Frames) -> dict[int, set[tuple[int, ...]]]:
    """Epoch -> multipliers, as the explorer tells them."""
    rows = [
        r for row in answers(frames, "subsidy_history") for r in row["value"] if type(r) is dict
    ]
    return _by_epoch(rows)


def retunes(frames: Frames) -> dict[int, set[tuple[int, ...]]]:
    """Epoch -> multipliers, as the node's own journal tells them; the last retune counts."""
    return _by_epoch([e for e in events(frames) if e.get("event") == "retune"])


def _by_epoch(rows: Sequence[Mapping[str, Json]]) -> dict[int, set[tuple[int, ...]]]:
    names = [SYMBOLS[work] for work in WORK]
    found: dict[int, set[tuple[int, ...]]] = {}
    for row in rows:
        values = [row.get(name) for name in names]
        epoch = row.get("epoch")
        whole = tuple(value for value in values if isinstance(value, int))
        if isinstance(epoch, int) and len(whole) == len(names):
            found[epoch] = {whole}
    return found


def events(frames: Frames) -> list[dict[str, Json]]:
    """Retunes, guard and kill switch, in the order in which the node wrote them."""
    table = frames["gov_events"]
    found = table["value"] if "value" in table.columns else []
    return [value for value in found if isinstance(value, dict)]


# --- stretches of it ----


def per_epoch(ledger: Ledger, levels: pd.DataFrame) -> pd.DataFrame:
    """The level in the middle of each whole epoch, rows by epoch."""
    middles = [e.start + (e.end - e.start) / 2 for e in ledger.dating.epochs if e.whole]
    places = levels.index.searchsorted(middles, side="right") - 1
    return levels.ffill().iloc[places[places >= 0]]


def trail(frames: Frames, ledger: Ledger) -> list[dict[str, Json]]:
    """The accounting trail: one row per whole epoch of baseline and window, in time order.

    scraped: share of the epoch's steps in which the multipliers of a node were seen.
    issued, allowed, difference: ledger units; the difference is what noise and cuts made.
    by_volume, by_multiplier: how issued differs from the mean calm epoch; they add up to it.
    """
    calm = issuance.booked(ledger.accounts, frames.baseline.start, frames.baseline.end)
    rows: list[dict[str, Json]] = []
    for epoch in ledger.dating.epochs:
        if not epoch.whole:
            continue
        window = Window(epoch.start, epoch.end)
        book = issuance.booked(ledger.accounts, epoch.start, epoch.end)
        share = ledger.share(window, frames.baseline)
        levels = ledger.levels(frames.baseline, window)
        part = sum(issuance.book_effects(calm, book, share, levels).values(), issuance.NOTHING)
        due = issuance.total(book)
        rows.append(
            {
                "epoch": epoch.number,
                "start": utc_text(epoch.start),
                "issued": due.issued,
                "allowed": due.allowed,
                "difference": due.issued - due.allowed,
                "by_volume": part.volume,
                "by_multiplier": part.multiplier,
                "seconds": epoch.seconds,
                "dated": "seen" if epoch.seen else "reckoned",
                "scraped": ledger.seen_share(window),
                **{work: issuance.total(book, work).units for work in WORK},
            }
        )
    return rows


_TRAIL = (
    *("epoch", "start", "issued", "allowed", "difference", "by_volume", "by_multiplier"),
    *("seconds", "dated", "scraped", *WORK),
)


def trail_table(frames: Frames, ledger: Ledger) -> pd.DataFrame:
    """`trail` by the start of each epoch, for charts: money as floats and per minute, because an
    epoch is dated to a step and a step more or less is no change of pace.

    Shape: issued, allowed, at_calm_pace, by_volume, by_multiplier; the last three add up to issued.
    """
    table = pd.DataFrame(trail(frames, ledger), columns=_TRAIL)
    money = ["issued", "allowed", "by_volume", "by_multiplier"]
    paces = table[money].astype(float).div(table["seconds"].astype(float) / 60.0, axis=0)
    paces["at_calm_pace"] = paces["issued"] - paces["by_volume"] - paces["by_multiplier"]
    return paces.set_index(pd.DatetimeIndex(pd.to_datetime(table["start"], utc=True), name="ts"))


# --- receipts ----


@dataclass(frozen=True)
class Receipts:
    """`exec receipt` lines: one row per receipt, each once however many files repeat it."""

    table: pd.DataFrame  # ts, provider, cpu_ms, bytes_out
    repeated: int
    undated: int


def receipts(lines: pd.DataFrame) -> Receipts:
    """Receipts of log lines, as integers; a line whose numbers are none is left out."""
    found: list[dict[str, Json]] = []
    seen: set[str] = set()
    repeated = undated = 0
    for row in lines[lines["message"] == "exec receipt"].to_dict("records"):
        fields = govacts.fields_of(row.get("fields"))
        trace, cpu, out = (fields.get(name) for name in ("trace_id", "cpu_ms", "bytes_out"))
        if not (type(cpu) is int and type(out) is int and cpu >= 0 and out >= 0):
            continue
        if isinstance(trace, str) and trace:
            if trace in seen:
                repeated += 1
                continue
            seen.add(trace)
        if pd.isna(row["ts"]):
            undated += 1
            continue
        provider = str(fields.get("provider_id", ""))[:200]
        found.append({"ts": row["ts"], "provider": provider, "cpu_ms": cpu, "bytes_out": out})
    columns = ["ts", "provider", "cpu_ms", "bytes_out"]
    return Receipts(pd.DataFrame(found, columns=columns), repeated, undated)


def due_by_provider(frames: Frames, ledger: Ledger, found: Receipts) -> pd.DataFrame:
    """Ledger units per step and provider, by the median raw multiplier of the nodes."""
    index = frames["subsidy_cpu"].index
    if found.table.empty or not len(index):
        return pd.DataFrame(index=index)
    step = pd.Timedelta(seconds=frames.step_s)
    table = found.table
    place = ((table["ts"] - index[0]) // step).astype(int)
    inside = (place >= 0) & (place < len(index))
    table, place = table[inside], place[inside]
    level = {
        work: ledger.raw[[c for c in ledger.raw.columns if c[1] == work]].ffill().median(axis=1)
        for work in ("cpu", "bytes_out")
    }
    worth = {w: level[w].reindex(index).fillna(0.0).to_numpy()[place] for w in level}
    due = table["cpu_ms"] * worth["cpu"] + table["bytes_out"] * worth["bytes_out"]
    wide = (
        due.astype(float).groupby([index[place], table["provider"]]).sum().unstack(fill_value=0.0)
    )
    return wide.reindex(index, fill_value=0.0)


# --- rent ----


def escrow_books(frames: Frames, window: Window) -> dict[str, issuance.Escrow]:
    """The rent escrow of each node within a window."""
    locked = by_node(frames["escrow_locked"], "")
    refunded, burned = (by_node(frames[f"escrow_{n}"], "") for n in ("refunded", "burned"))
    begun = frames.tables.get("process_start_time_seconds")
    starts = by_node(begun, "") if begun is not None else pd.DataFrame(index=locked.index)
    none = pd.Series(0.0, index=locked.index)
    books = {}
    for node, _ in locked.columns:
        start = starts.get((node, ""), none).ffill()
        again = (start != start.shift()) & start.shift().notna()
        book = issuance.escrow(
            locked=between(locked[(node, "")], window),
            refunded=between(refunded.get((node, ""), none), window),
            burned=between(burned.get((node, ""), none), window),
            restarted=between(again, window),
        )
        if book is not None:
            books[node] = book
    return books
