"""Subsidy spike: far more is due in subsidies than before, by more work or by dearer work."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from tbforensics.analysis.contributions import contributions
from tbforensics.analysis.spans import Span, incident_spans
from tbforensics.chain import govacts, issuance
from tbforensics.chain import subsidy_books as books
from tbforensics.chain import subsidy_tables as tables
from tbforensics.chain.nodes import between, by_node
from tbforensics.chain.subsidies import (
    Ledger,
    Receipts,
    due_by_provider,
    events,
    open_ledger,
    receipts,
)
from tbforensics.model import (
    Doubt,
    Finding,
    Frames,
    Json,
    Kind,
    Query,
    Shape,
    Spell,
    Window,
)
from tbforensics.theblock import metric_spellings

_MINUTE_S = 60.0
_TEN_MINUTES_S = 600.0
_MOST_ROWS = 12
_WITNESSES = ("multipliers", "multipliers_raw")


@dataclass(frozen=True)
class Thresholds:
    """What makes it an incident, and how near is near."""

    times_baseline: float = 1.5  # half as much again: the whole estimator aims at 2 % a year
    bytes_per_10_min: float = 1e12  # the shipped alert SubsidyGrowthSpike, per node and type
    cpu_ms_per_10_min: float = 1e9  # the same alert, per node
    escrow_lost_units: float = 0.0  # rent that left the escrow is refunded or burned, to the unit
    burned_share_off: float = 0.01  # releases burn a tenth; each may round by less than a unit
    multiplier_moved_ratio: float = 0.2  # of its calm level, beyond what it strays by itself
    near_s: float = 1200.0  # ten epochs: an act of governance waits for its epoch


def analyse(frames: Frames, thresholds: Thresholds) -> list[Finding]:
    """Whether more was due, what made it so, who worked, what was decided, and the books."""
    ledger = open_ledger(frames)
    findings = [*_issuance(frames, ledger, thresholds), *_growth(frames, thresholds)]
    spell = next((f for f in findings if f.decides and f.spell), None)
    during = spell.window if spell else frames.window
    if spell:
        findings += _effects(frames, ledger, during)
    findings += books.accounting_trail(frames, ledger)
    findings += books.noise(frames, ledger)
    findings += _multipliers(frames, ledger, during, thresholds)
    findings += _governance(frames, ledger, during, thresholds)
    findings += books.cuts(frames, ledger)
    if spell:
        findings += _traffic(frames, during, thresholds)
        findings += _providers(frames, ledger, during)
    findings += books.rent(frames, thresholds.escrow_lost_units, thresholds.burned_share_off)
    findings += books.records(frames, ledger, during)
    findings += books.stakes(frames, during)
    return findings


# --- was more due --------------------------------------------------------------------------


def _issuance(frames: Frames, ledger: Ledger, thresholds: Thresholds) -> Iterator[Finding]:
    paid = ledger.paid().sum(axis=1, min_count=1)
    if paid.empty or not ledger.basis:
        return
    found = _spell(frames, paid)
    if found is None:
        return
    spell, window = found
    per_epoch = ledger.dating.epoch_s / frames.step_s
    calm = between(paid, frames.baseline).mean() * per_epoch
    rate = between(paid, window).mean() * per_epoch
    limit = thresholds.times_baseline * calm
    if not rate >= limit or rate <= 0:
        return
    read = between(ledger.paid()["read"], window).mean() * per_epoch if _reads(ledger) else 0.0
    book = issuance.booked(ledger.accounts, window.start, window.end)
    due = issuance.total(book).issued
    ratio = f"{rate / calm:.3g} times" if calm > 0 else "none in"
    yield Finding(
        claim=f"Subsidies of {due:,} ledger units fell due in {window.seconds / 60:.0f} min, "
        f"{rate:,.0f} an epoch: {ratio} the baseline",
        id="issuance",
        value=rate,
        unit="ledger units/epoch",
        threshold=limit,
        interval=(rate - read / 2, rate) if read > 0 else None,
        window=window,
        spell=spell,
        decides=True,
        cites=ledger.cites,
        caution="; ".join(_basis_cautions(ledger, read > 0)),
    )


def _reads(ledger: Ledger) -> bool:
    return any(work == "read" for _, work in ledger.accounts)


def _basis_cautions(ledger: Ledger, reads: bool) -> Iterator[str]:
    yield "computed from work and multipliers, every unit of work once; no block was looked at"
    if ledger.basis == "published":
        yield "no raw multipliers were seen, so their noise is part of it"
    if ledger.basis == "snapshot":
        yield "priced by one answer of inflation.params, so it cannot show a multiplier that moved"
    if reads:
        yield "a read and its gateway receipt can both be counted: the lower bound halves reads"


def _spell(frames: Frames, paid: pd.Series) -> tuple[Spell, Window] | None:
    """The strongest rise that lasts an epoch or more."""
    shortest = max(4, math.ceil(120 / frames.step_s))
    baseline = (frames.baseline.start, frames.baseline.end)
    spans = incident_spans(paid, "gauge", baseline=baseline, shortest=shortest, at_most=3)
    for span in spans:
        if span.difference > 0 and (found := _as_spell(span, frames)):
            return found
    return None


def _as_spell(span: Span, frames: Frames) -> tuple[Spell, Window] | None:
    def moment(time: object) -> pd.Timestamp:
        return pd.Timestamp(time)

    onset = moment(span.onset)
    recovery = moment(span.recovery) if span.recovery is not None else None
    end = recovery or frames.window.end
    if onset < frames.window.start or end <= onset:
        return None
    # A step's label is its start; what it counted may have happened anywhere in it.
    step = pd.Timedelta(seconds=frames.step_s)
    back = span.recovery_interval
    spell = Spell(
        onset=onset,
        onset_earliest=moment(span.onset_interval[0]),
        onset_latest=moment(span.onset_interval[1]) + step,
        recovery=recovery,
        recovery_earliest=moment(back[0]) - step if recovery and back else None,
        recovery_latest=moment(back[1]) if recovery and back else None,
    )
    return spell, Window(onset, end)


def _growth(frames: Frames, thresholds: Thresholds) -> Iterator[Finding]:
    """The volumes against the line of the shipped alert, counter by counter as it does."""
    steps = max(1, round(_TEN_MINUTES_S / frames.step_s))
    for query, label, unit, limit in (
        ("subsidy_bytes", "type", "bytes/10 min", thresholds.bytes_per_10_min),
        ("subsidy_cpu", "", "ms/10 min", thresholds.cpu_ms_per_10_min),
    ):
        table = by_node(frames[query], label)
        if table.empty:
            continue
        grown = between(table.rolling(steps, min_periods=1).sum(), frames.window)
        highest = grown.max()
        (node, kind), most = highest.idxmax(), float(highest.max())
        if not most > limit:
            continue
        column = grown[(node, kind)]
        above = column.index[column > limit]
        yield Finding(
            claim=f"{query}{f' of type {kind}' if kind else ''} on {node} grew by {most:.3g} in "
            f"10 min, above the alert's line of {limit:.3g}",
            id=f"growth-{'bytes' if label else 'cpu'}",
            value=most,
            unit=unit,
            threshold=limit,
            window=Window(above[0], above[-1] + pd.Timedelta(seconds=frames.step_s)),
            decides=True,
            cites=(query,),
        )


# --- what made it so -----------------------------------------------------------------------


def _effects(frames: Frames, ledger: Ledger, during: Window) -> Iterator[Finding]:
    """Volume and multiplier apart, against as long a stretch of the baseline."""
    rows, whole = tables.effect_rows(frames, ledger, during)
    if not whole.change:
        return
    share = whole.volume / whole.change
    yield Finding(
        claim=f"{abs(whole.change):,} ledger units {'more' if whole.change > 0 else 'less'} than "
        f"at the baseline's pace: {whole.volume:,} ({share:.0%}) by volume and "
        f"{whole.multiplier:,} ({1 - share:.0%}) by multipliers",
        id="effects",
        value=float(share),
        unit="share of the change by volume",
        window=during,
        cites=ledger.cites,
        rows=tuple(rows),
        caution="midpoint decomposition (Bennet, 1920), node by node: mean multiplier times "
        "change of work, and mean work times change of multiplier; the two add up exactly",
    )


# --- multipliers: noise and acts -----------------------------------------------------------


def _multipliers(
    frames: Frames, ledger: Ledger, during: Window, thresholds: Thresholds
) -> Iterator[Finding]:
    """Which raw multipliers left their calm level, and whether an act explains it."""
    if not ledger.basis or ledger.basis == "snapshot" or ledger.raw.empty:
        return
    rows = tables.multiplier_rows(
        frames,
        ledger,
        during,
        govacts.acts(frames, ledger.began()),
        thresholds.multiplier_moved_ratio,
    )
    moved = [row for row in rows if row["moved"]]
    if not rows:
        return
    named = ", ".join(f"{r['multiplier']} from {r['baseline']:g} to {r['spell']:g}" for r in moved)
    yield Finding(
        claim=f"{len(moved)} of {len(rows)} {ledger.basis} multipliers left their calm level"
        + (f": {named}" if moved else ""),
        id="multipliers",
        value=float(len(moved)),
        unit="multipliers",
        window=during,
        cites=ledger.cites[2:],
        rows=tuple(rows),
        caution="medians; an estimator that follows the load moves multipliers without any act",
    )


def _governance(
    frames: Frames, ledger: Ledger, during: Window, thresholds: Thresholds
) -> Iterator[Finding]:
    """What governance did from near the onset on, and what its webhooks and counters said."""
    onset = pd.Timestamp(during.start)
    near = Window(onset - pd.Timedelta(seconds=thresholds.near_s), during.end)
    rows = govacts.told_rows(frames, ledger.began(), near, onset)
    if not rows:
        return
    for row in rows:
        if "new" in row:
            key = row["what"].removesuffix(" set")
            row.update(tables.raw_around(ledger, key, pd.Timestamp(row["time"])))
    set_ = [row for row in rows if "new" in row]
    cites = {name for row in rows for name in row["told_by"].split(", ")}
    nearest = min(set_ or rows, key=lambda row: (abs(row["after_onset_s"]), row["what"]))
    side = "before" if nearest["after_onset_s"] <= 0 else "after"
    yield Finding(
        claim=f"Governance set {len(set_)} parameters; the nearest to the onset is "
        + nearest["what"]
        + (f" to {nearest['new']}" if set_ else "")
        + f", {abs(nearest['after_onset_s']):.0f} s {side} it",
        id="governance",
        value=nearest["after_onset_s"],
        unit="s after onset",
        window=_step_at(pd.Timestamp(nearest["time"]), frames),
        cites=tuple(sorted(cites)),
        rows=tuple(rows[:_MOST_ROWS]),
        caution="near in time is not a cause; a webhook has no time of its own and no signature",
    )


def _step_at(moment: pd.Timestamp, frames: Frames) -> Window:
    return Window(moment, moment + pd.Timedelta(seconds=frames.step_s))


# --- who worked ----------------------------------------------------------------------------


def _traffic(frames: Frames, during: Window, thresholds: Thresholds) -> Iterator[Finding]:
    """Signs that speak for abuse, for load beyond capacity, and for honest demand."""
    rows, cites = tables.traffic_rows(frames, during, thresholds.times_baseline)
    if not rows:
        return
    risen = {
        side: sum(1 for row in rows if row["speaks_for"] == side and row["rose"])
        for side in ("abuse", "demand")
    }
    all_ = {side: sum(row["speaks_for"] == side for row in rows) for side in risen}
    yield Finding(
        claim=f"{risen['abuse']} of {all_['abuse']} signs of abuse rose with it, and "
        f"{risen['demand']} of {all_['demand']} signs of honest demand",
        id="traffic",
        value=float(risen["abuse"]),
        unit="signs of abuse",
        window=during,
        cites=cites,
        rows=tuple(rows),
        caution="signs, not proof: who sends much is not told apart from who cheats",
    )


def _providers(frames: Frames, ledger: Ledger, during: Window) -> Iterator[Finding]:
    """Which providers' receipts make up the rise of computing."""
    found = receipts(frames["log_lines"])
    if found.table.empty:
        return
    due = due_by_provider(frames, ledger, found)
    parts = contributions(between(due, frames.baseline), between(due, during))
    per_min = _MINUTE_S / frames.step_s
    rows = tables.provider_rows(parts, found, during, per_min, _MOST_ROWS)
    cpu = ledger.paid("units").get("cpu")
    counted = float(between(cpu, during).sum()) if cpu is not None else 0.0
    inside = (found.table["ts"] >= during.start) & (found.table["ts"] < during.end)
    logged = sum(found.table["cpu_ms"][inside])
    named = ", ".join(str(name) for name in parts.explained_by)
    share = sum(part.share for part in parts.parts if part.label in parts.explained_by)
    yield Finding(
        claim=(
            f"Provider {named} explains {share:.1%} of the rise in what receipts were due"
            if parts.explained_by
            else "No single provider explains the rise in what receipts were due"
        )
        + (
            f"; {logged / counted:.0%} of the counted CPU time is in these lines" if counted else ""
        ),
        id="by-provider",
        value=float(share),
        unit="share of the rise",
        window=during,
        cites=("log_lines", *ledger.cites[1:]),
        rows=tuple(rows),
        caution="; ".join(_receipt_cautions(found)),
    )


def _receipt_cautions(found: Receipts) -> Iterator[str]:
    yield "a node writes only 1 in 100 lines above 100 a second, so lines undercount bursts"
    if found.repeated:
        yield f"{found.repeated} receipts stood in several places and are counted once"
    if found.undated:
        yield f"{found.undated} receipts have no time and are left out"


# --- what only this kind doubts ------------------------------------------------------------


def doubts(frames: Frames, thresholds: Thresholds) -> list[Doubt]:
    """Work that could not be priced, and records that say less than they seem to."""
    ledger = open_ledger(frames)
    found = []
    work = issuance.booked(ledger.accounts, frames.window.start, frames.window.end)
    due = issuance.total(work)
    if due.unpriced:
        found.append(
            Doubt(
                "no multiplier",
                f"{due.unpriced:,} of {due.units:,} units of work in the window were done before "
                "any multiplier was seen on their node; they are in no sum of money",
                limits="cleared",
                cites=("multipliers_raw",),
            )
        )
    if ledger.dating.contradictions:
        found.append(
            Doubt(
                "epoch numbers",
                f"{ledger.dating.contradictions} epochs stand in the records under a number that "
                "contradicts the others: a reorganisation, or files of another chain",
                cites=("subsidy_history", "gov_events"),
            )
        )
    numbers, written = ledger.began(), [e["epoch"] for e in events(frames)]
    if numbers and written and max(written) < max(numbers) - 1:
        found.append(
            Doubt(
                "journal ends early",
                f"events.log ends with epoch {max(written)}, the window with {max(numbers)}",
                cites=("gov_events",),
            )
        )
    for row in (r for r in frames["subsidy_history"].to_dict("records") if r["state"] == "empty"):
        found.append(
            Doubt(
                "empty answer",
                f"{row['source']} answered an empty history, and answers errors in the same way",
                cites=("subsidy_history",),
            )
        )
    return found


# --- what is asked -------------------------------------------------------------------------


def _counter(name: str, text: str, unit: str, why: str, **more: Json) -> Query:
    more = {"witnesses": _WITNESSES, **more}
    return Query(name, "prometheus", text, unit, Shape.COUNTER, why=why, **more)


def _gauge(name: str, text: str, unit: str, why: str, **more: Json) -> Query:
    return Query(name, "prometheus", text, unit, Shape.GAUGE, why=why, **more)


def _either(name: str) -> str:
    """A selector for a metric in either generation's name, with and without `_ct`."""
    return f'{{__name__=~"{"|".join(metric_spellings(name))}"}}'


QUERIES: Sequence[Query] = (
    _counter("subsidy_bytes", "subsidy_bytes_total", "bytes",
             "work by type: stored, read, put out by computing", required=True),
    _counter("subsidy_cpu", "subsidy_cpu_ms_total", "ms", "computing", required=True),
    _gauge("multipliers_raw", "subsidy_multiplier_raw", "ledger units",
           "before noise and cuts: what blocks pay by", required=True),
    _gauge("multipliers", "subsidy_multiplier", "ledger units",
           "after noise and cuts; its changes date the epochs", required=True),
    _counter("auto_reduced", "subsidy_auto_reduced_total", "epochs",
             "one per epoch while rolling inflation is above 2 %"),
    _counter("kill_switch", "kill_switch_trigger_total", "epochs",
             "one per epoch while the switch is on"),
    _gauge("escrow_locked", _either("rent_escrow_locked_total"), "ledger units",
           "rent held; a gauge despite its name"),
    _counter("escrow_refunded", _either("rent_escrow_refunded_total"), "ledger units",
             "nine tenths of what is released"),
    _counter("escrow_burned", _either("rent_escrow_burned_total"), "ledger units",
             "the last tenth"),
    _counter("reads_denied", "read_denied_total", "reads",
             "rate limit of readers; no shipped alert looks at it"),
    _counter("industrial_admitted", "industrial_admitted_total", "jobs", "demand that was met"),
    _counter("industrial_deferred", "industrial_deferred_total", "jobs", "demand put off"),
    _counter("industrial_rejected", "industrial_rejected_total", "jobs", "by reason"),
    _gauge("industrial_backlog", "industrial_backlog", "jobs", "load"),
    _gauge("industrial_utilization", "industrial_utilization", "%", "load"),
    _gauge("param_active", "param_change_active", "1", "parameters in force"),
    _gauge("param_pending", "param_change_pending", "1", "parameters about to change"),
    _counter("gov_votes", "gov_votes_total", "votes", "by choice"),
    _counter("gov_rollbacks", "gov_rollback_total", "rollbacks", "by parameter"),
    _counter("gov_activations", "gov_activation_delay_seconds_count", "activations",
             "by parameter; the histogram's own values are epochs, whatever its name says"),
    _gauge("realized_inflation", "economics_realized_inflation_bps", "bps", "newer builds only"),
    Query("inflation_params", "jsonrpc", "inflation.params", shape=Shape.ROWS,
          why="multipliers at the moment of asking"),
    Query("stake_role", "jsonrpc", "stake.role", shape=Shape.ROWS,
          why="stakes of accounts that the parameters name"),
    Query("proposals", "jsonrpc", "gov_list", shape=Shape.ROWS, why="needs the admin token"),
    Query("subsidy_history", "explorer", "/subsidy/history", shape=Shape.ROWS,
          why="multipliers by epoch"),
    Query("gov_events", "governance", "events.log", "events", Shape.RECORDS,
          why="retunes, guard and kill switch by epoch"),
    Query("gov_changes", "governance", "param_changes.json", shape=Shape.ROWS,
          why="what proposals changed"),
    Query("log_lines", "logs", "", "lines", Shape.ROWS, why="receipts and acts of governance"),
)  # fmt: skip

KIND = Kind(
    title="Subsidy spike",
    question="Did far more subsidies fall due, by more work or by dearer work, and who and what "
    "made it so?",
    queries=tuple(QUERIES),
    thresholds=Thresholds,
    analyse=analyse,
    onset="issuance",
    doubts=doubts,
)
