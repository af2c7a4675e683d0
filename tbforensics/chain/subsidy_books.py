"""A subsidy ledger's books put into claims: the trail, its noise, its cuts, rent and records.

The tables are made in `subsidy_tables`; a kind passes what it holds to be too much.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from tbforensics.chain import govacts
from tbforensics.chain import subsidy_tables as tables
from tbforensics.chain.nodes import answers, between, by_node
from tbforensics.chain.subsidies import Ledger, escrow_books, events, trail
from tbforensics.model import Finding, Frames, Window, utc_text

_MOST_ROWS = 12
_MOST_EPOCHS = 120


def accounting_trail(frames: Frames, ledger: Ledger) -> Iterator[Finding]:
    """Issued and allowed, epoch by epoch."""
    rows = trail(frames, ledger)
    inside = [row for row in rows if row["start"] >= utc_text(frames.window.start)]
    if not inside or not ledger.basis:
        return
    issued, allowed = (sum(row[name] for row in inside) for name in ("issued", "allowed"))
    yield Finding(
        claim=f"In the {len(inside)} epochs of the window {issued:,} ledger units fell due by the "
        f"raw multipliers, and the published parameters allowed {allowed:,}: "
        f"{abs(issued - allowed):,} {'more' if issued >= allowed else 'less'} than allowed"
        if ledger.basis == "raw"
        else f"In the {len(inside)} epochs of the window {issued:,} ledger units fell due",
        id="accounting-trail",
        value=float(issued - allowed),
        unit="ledger units",
        window=frames.window,
        cites=(*ledger.cites, *(["multipliers"] if ledger.basis == "raw" else [])),
        rows=tuple(inside[:_MOST_EPOCHS]),
        caution=f"epochs: {ledger.dating.how}; blocks pay by the raw multipliers, while noise and "
        "cuts are in the published ones, so the difference is those",
    )


def noise(frames: Frames, ledger: Ledger) -> Iterator[Finding]:
    """How far the published multipliers stray from the raw ones by themselves."""
    rows, n = tables.noise_rows(ledger) if ledger.basis == "raw" else ([], {})
    if not rows:
        return
    yield Finding(
        claim=f"The published multipliers moved at {n['published_moved']} of {n['boundaries']} "
        f"epoch boundaries and stood below zero in {n['published_below']} epochs; the raw ones "
        f"moved at {n['raw_moved']}"
        + (f" and stood below zero in {n['raw_below']}" if n["raw_below"] else ""),
        id="noise",
        value=float(n["published_moved"]),
        unit="boundaries",
        window=Window(min(frames.baseline.start, frames.window.start), frames.window.end),
        cites=("multipliers", "multipliers_raw"),
        rows=tuple(rows),
        caution="each node adds its own random noise at each epoch, so published values move, and "
        "differ between nodes, with no act of governance"
        + ("; blocks read a raw multiplier below zero as a huge one" if n["raw_below"] else ""),
    )


def cuts(frames: Frames, ledger: Ledger) -> Iterator[Finding]:
    """Guard and kill switch count an epoch each time, so many epochs are one activation."""
    percents = sorted(
        {
            e["reduction_percent"]
            for e in events(frames)
            if e.get("event") == "kill_switch" and e.get("epoch") in ledger.began()
        }
    )
    for query, id, what, means in (
        ("kill_switch", "kill-switch", "The kill switch", "cut every published multiplier"),
        ("auto_reduced", "inflation-guard", "The inflation guard", "cut each by 5 %"),
    ):
        table = between(by_node(frames[query], ""), frames.window)
        rows = govacts.cut_rows(table, ledger.dating.epoch_s)
        if not rows:
            continue
        most = max(rows, key=lambda row: (row["epochs"], -row["activations"]))
        times = most["activations"]
        percent = f" by {', '.join(map(str, percents))} %" if percents and id[0] == "k" else ""
        yield Finding(
            claim=f"{what} {means}{percent} in {most['epochs']:.0f} epochs, which is "
            f"{times} activation{'s' if times > 1 else ''}",
            id=id,
            value=most["epochs"],
            unit="epochs",
            window=Window(
                pd.Timestamp(min(row["first"] for row in rows)),
                pd.Timestamp(max(row["last"] for row in rows))
                + pd.Timedelta(seconds=frames.step_s),
            ),
            cites=(query, *(["gov_events"] if percent else [])),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="the counter rises once per epoch while it holds, on every node; it changes "
            "what is published, and blocks pay by the raw multipliers",
        )


# --- rent, records, stakes -----------------------------------------------------------------


def rent(frames: Frames, lost_units: float, share_off: float) -> Iterator[Finding]:
    """What became of the rent in escrow; it decides when some of it left without a trace."""
    books = escrow_books(frames, frames.window)
    if not books:
        return
    cites = ("escrow_locked", "escrow_refunded", "escrow_burned")
    rows = tables.escrow_rows(books)
    refunded, burned = (sum(row[name] for row in rows) for name in ("refunded", "burned"))
    released = refunded + burned
    share = burned / released if released else 0.0
    yield Finding(
        claim=f"Rent escrow released {released:,} ledger units, {refunded:,} refunded and "
        f"{burned:,} burned ({share:.1%}); at least {sum(r['locked_anew'] for r in rows):,} "
        "were locked anew",
        id="escrow",
        value=float(released),
        unit="ledger units",
        window=frames.window,
        cites=cites,
        rows=tuple(rows),
        caution="the balance is a gauge, whatever its name says, and begins again at zero when "
        "its node does",
    )
    lost, where = max((book.lost, node) for node, book in books.items())
    if lost > lost_units:
        at = pd.Timestamp(books[where].lost_at)
        yield Finding(
            claim=f"{lost:,} ledger units left the rent escrow of {where} and were neither "
            "refunded nor burned",
            id="escrow-unaccounted",
            value=float(lost),
            unit="ledger units",
            threshold=lost_units,
            window=Window(at, at + pd.Timedelta(seconds=frames.step_s)),
            decides=True,
            cites=cites,
        )
    off = abs(share - 0.1)
    if released >= 1000 and off > share_off:
        yield Finding(
            claim=f"{share:.1%} of the released rent was burned; the rule is a tenth",
            id="escrow-split",
            value=off,
            unit="share off the rule",
            threshold=share_off,
            window=frames.window,
            decides=True,
            cites=cites[1:],
        )


def records(frames: Frames, ledger: Ledger, during: Window) -> Iterator[Finding]:
    """Explorer, journal, gauges and the node's own answer, held against each other."""
    rows, names = tables.record_rows(frames, ledger)
    if rows:
        both, agree = (sum(row[name] for row in rows) for name in ("epochs_in_both", "agree"))
        yield Finding(
            claim=f"Records of the multipliers agree in {agree} of {both} comparisons of one epoch",
            id="records",
            value=float(both - agree),
            unit="comparisons apart",
            window=during,
            cites=names,
            rows=tuple(rows),
            caution="each node publishes its own noise, so an explorer agrees with one node only",
        )


def stakes(frames: Frames, during: Window) -> Iterator[Finding]:
    """Stakes of the accounts that the parameters name."""
    rows = [
        {
            "id": str(row["value"].get("id", "")),
            "role": str(row["value"].get("role", "")),
            "stake": row["value"]["stake"],
            "asked": utc_text(row["ts"]),
        }
        for row in answers(frames, "stake_role")
        if isinstance(row["value"].get("stake"), int)
    ]
    if rows:
        bare = sum(row["stake"] == 0 for row in rows)
        yield Finding(
            claim=f"{bare} of {len(rows)} accounts that were asked for show no stake"
            + (", which proves little" if bare else ""),
            id="stake",
            value=float(bare),
            unit="accounts",
            window=during,
            cites=("stake_role",),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="the table lives in memory, is fed by consensus.pos calls only and is lost at "
            "a restart; true at the moment of asking",
        )
