"""Does a settlement ledger add up? Findings from a node's audit log, balances, roots and history.

The arithmetic is in `ledger`; here it is put into claims. What a node answers is true
at the moment of asking; only the audit log and the SLA history carry times of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tbforensics.chain import ledger
from tbforensics.chain.books import Books, books_of
from tbforensics.chain.settlement import moment, number, objects
from tbforensics.model import Finding, Frames, Json, Window, utc_text

_MOST_ROWS = 12


def findings(
    frames: Frames,
    during: Window,
    *,
    stalled: Window | None,
    unbacked_share: float,
    root_stale_after_s: float,
) -> Iterator[Finding]:
    """Everything that the ledger of each node says, about the spell where it carries times.

    stalled: where the metric certainly stood still, without the edges that one step blurs.
    """
    names = ("roots_before", "balances", "audit", "roots_after")
    sources = sorted({source for name in names for source in frames[name]["source"]})
    for source in sources:
        books = books_of(frames, source)
        for finding in _of_node(during, books, stalled, unbacked_share, root_stale_after_s):
            if len(sources) == 1:
                yield finding
            else:
                named = f"{source}: {finding.claim}"
                yield replace(finding, id=f"{finding.id}-{source}", claim=named)
    yield from _remembered(frames, during)


def _of_node(
    during: Window,
    books: Books,
    stalled: Window | None,
    unbacked_share: float,
    root_stale_after_s: float,
) -> Iterator[Finding]:
    if books.log or books.unread:
        yield _grown(during, books, stalled)
        yield _added_up(during, books)
        yield from _refunded(during, books, unbacked_share)
    yield _root(during, books, root_stale_after_s)
    yield from _stale(during, books, root_stale_after_s)


# --- the audit log -------------------------------------------------------------------------


def _grown(during: Window, books: Books, stalled: Window | None) -> Finding:
    """The audit log in the spell. SLA resolutions grow it and raise no `settle_applied_total`."""
    inside = [e for e in books.log if (at := moment(e.timestamp)) is not None and at in during]
    rows: list[dict[str, Json]] = [
        {
            "memo": memo,
            "entries": sum(entry.memo == memo for entry in inside),
            "delta": sum(sum(entry.deltas) for entry in inside if entry.memo == memo),
            "raises_the_metric": memo in ledger.COUNTED,
        }
        for memo in sorted({entry.memo for entry in inside})
    ]
    rows.sort(key=lambda row: (-row["entries"], row["memo"]))
    settlements = sum(row["entries"] for row in rows if row["raises_the_metric"])
    surely = [
        entry
        for entry in inside
        if entry.memo in ledger.COUNTED
        and stalled
        and stalled.start.timestamp() <= entry.timestamp < stalled.end.timestamp()
    ]
    cautions = []
    oldest = moment(books.log[0].timestamp) if books.log else None
    if oldest and oldest > during.start and books.log[0].sequence > 0:
        cautions.append("its oldest entry is younger than the spell's start: earlier ones are lost")
    if surely:
        cautions.append("the node that was asked may be another than the one that stalled")
    return Finding(
        claim=f"The audit log has {len(inside)} entries of the spell, {settlements} of them "
        "settlements that raise the metric"
        + (f"; where it certainly stood still: {len(surely)}" if surely else ""),
        id="audit-grew",
        value=float(len(inside)),
        unit="entries",
        window=during,
        cites=("audit", "settled"),
        rows=tuple(rows[:_MOST_ROWS]),
        caution="; ".join(cautions),
    )


def _added_up(during: Window, books: Books) -> Finding:
    """Balance less delta is the balance before; the last balance is the ledger's; no gaps."""
    log, check = books.log, books.check
    broken, checked = ledger.breaks(log)
    gaps = ledger.gaps(log)
    differing = ledger.differing(log, books.accounts) if check.state == "holds" else []
    wrong, lost = len(broken) + len(differing), sum(gap.lost for gap in gaps)
    claim = f"{checked} of {len(log)} audit entries could be checked and "
    claim += f"{len(broken)} do not add up" if broken else "each of them adds up"
    if differing:
        claim += f"; {len(differing)} last balances are not those of the ledger"
    elif check.state == "holds":
        claim += "; the last balances are those of the ledger"
    if lost:
        claim += f"; {lost} entr{'ies are' if lost > 1 else 'y is'} missing from the sequence"
    cautions = [f"{books.unread} entries could not be read"] if books.unread else []
    if any(gap.lost == 0 for gap in gaps):
        cautions.append("the sequence went back: the log began anew")
    if log and log[0].sequence > 0:
        cautions.append(
            f"the node keeps {ledger.AUDIT_RING} entries; those before {log[0].sequence} are gone"
        )
    if check.state != "holds":
        cautions.append("the last balances were not compared: see the root")
    return Finding(
        claim=claim,
        id="audit-broken" if wrong else "audit-adds-up",
        value=float(wrong),
        unit="entries",
        threshold=0.0 if wrong else None,
        window=during,
        decides=wrong > 0,
        cites=("audit", "balances"),
        rows=tuple(_audit_rows(broken, differing, gaps))[:_MOST_ROWS],
        caution="; ".join(cautions),
    )


def _audit_rows(
    broken: list[ledger.Break], differing: list[dict[str, Json]], gaps: list[ledger.Gap]
) -> Iterator[dict[str, Json]]:
    for each in broken:
        yield {
            "what": f"{each.account} does not add up",
            "entity": each.entry.entity,
            "sequence": each.entry.sequence,
            "expected": each.expected,
            "found": each.found,
        }
    for row in differing:
        yield {
            "what": "last balance is not the ledger's",
            "entity": row["entity"],
            "sequence": row["sequence"],
            "expected": row["audit"],
            "found": row["ledger"],
        }
    for gap in gaps:
        yield {
            "what": f"{gap.lost} entries missing" if gap.lost else "the sequence went back",
            "entity": None,
            "sequence": gap.after.sequence + 1,
            "expected": None,
            "found": None,
        }


def _refunded(during: Window, books: Books, share: float) -> Iterator[Finding]:
    """Refunds that nobody paid for: a node refunds the buyer even where its debit was refused."""
    refunds, alone = ledger.refunds(books.log)
    unbacked = sorted(
        (r for r in refunds if r.unbacked), key=lambda r: (-r.unbacked, r.entry.sequence)
    )
    if not unbacked:
        return
    created = sum(refund.unbacked for refund in unbacked)
    held = ledger.supply(books.accounts)
    limit = share * held if books.accounts else None
    refused = sum(refund.refused for refund in unbacked)
    yield Finding(
        claim=f"{created:,} units were created from nothing, by {len(unbacked)} refunds to buyers; "
        f"{refused} of them followed a debit that was refused",
        id="unbacked-refunds",
        value=float(created),
        unit="ledger units",
        threshold=limit,
        window=during,
        decides=limit is not None and created > limit,
        cites=("audit", "balances"),
        rows=tuple(
            {
                "time": utc_text(at) if (at := moment(refund.entry.timestamp)) else None,
                "created": refund.unbacked,
                "refunded": refund.refunded,
                "debited": refund.debited,
                "buyer": refund.entry.entity,
                "provider": refund.violation.entity,
                "violation": refund.violation.memo,
                "sequence": refund.entry.sequence,
            }
            for refund in unbacked[:_MOST_ROWS]
        ),
        caution=f"{alone} other refunds stand alone in the log: their violations are lost"
        if alone
        else "",
    )


# --- the root ------------------------------------------------------------------------------

_JUDGED = {
    "holds": "The root computed from {n} balances is the newest that the node has",
    "earlier": "The root computed from {n} balances is one of the node's, {place} before its "
    "newest: the balances are those of a moment earlier",
    "moved": "The root could not be judged: it changed while the balances were read",
    "broken": "The root computed from {n} balances is none that the node has, although its newest "
    "stayed the same while they were read",
    "unread": "The root could not be judged: roots or balances are missing or cannot be read",
}


def _root(during: Window, books: Books, stale_after_s: float) -> Finding:
    check = books.check
    changes = ledger.root_changes(books.balances, books.log, books.after)
    caution = "roots carry no time; the audit log dates those that its entries lead back to"
    if len(changes) > _MOST_ROWS:
        caution += f", and the newest {_MOST_ROWS} are shown"
    if books.apart_s < stale_after_s:
        caution += (
            f"; whether a root is stale needs two captures {stale_after_s:,.0f} s apart, and "
            f"these are {books.apart_s:,.0f} s apart"
        )
    broken = check.state == "broken"
    return Finding(
        claim=_JUDGED[check.state].format(n=len(books.accounts), place=check.place)
        + (f"; {len(changes)} roots could be dated" if changes else ""),
        id="root-broken" if broken else "root",
        value=float(broken),
        unit="roots that differ",
        threshold=0.0 if broken else None,
        window=during,
        decides=broken,
        cites=("roots_before", "balances", "roots_after", "audit"),
        rows=tuple(
            {
                "time": utc_text(at) if (at := moment(change.entry.timestamp)) else None,
                "root": f"{change.root[:16]}…",
                "back": change.place,
                "made_by": change.entry.memo,
                "entity": change.entry.entity,
                "sequence": change.entry.sequence,
            }
            for change in changes[-_MOST_ROWS:]
        ),
        caution=caution,
    )


def _stale(during: Window, books: Books, after_s: float) -> Iterator[Finding]:
    """One root at two captures far apart, while the audit log says that balances changed."""
    if len({root for _, root in books.asked}) != 1 or books.apart_s < after_s:
        return
    asked, again = books.asked[0][0], books.asked[-1][0]
    between = [
        entry
        for entry in books.log
        if any(entry.deltas) and (at := moment(entry.timestamp)) and asked < at < again
    ]
    if between:
        yield Finding(
            claim=f"The newest root is the same after {books.apart_s:,.0f} s, in which "
            f"{len(between)} audit entries changed balances: it is stale",
            id="root-stale",
            value=books.apart_s,
            unit="s",
            threshold=after_s,
            window=during,
            decides=True,
            cites=("roots_before", "roots_after", "audit"),
        )


# --- the SLA history -----------------------------------------------------------------------


def _remembered(frames: Frames, during: Window) -> Iterator[Finding]:
    """SLAs resolved in the spell, as newer builds remember them; older ones remember nothing."""
    table = frames["sla_history"]
    told = [row for value in table[table["state"] == "ok"]["value"] for row in objects(value)]
    inside = [r for r in told if (at := moment(r.get("resolved_at"))) is not None and at in during]
    if not inside:
        return
    keys = sorted({(str(row.get("provider")), str(row.get("outcome"))) for row in inside})
    rows: list[dict[str, Json]] = []
    for provider, outcome in keys:
        own = [
            r
            for r in inside
            if (str(r.get("provider")), str(r.get("outcome"))) == (provider, outcome)
        ]
        sums = {name: sum(int(number(r.get(name))) for r in own) for name in ("burned", "refunded")}
        rows.append({"provider": provider, "outcome": outcome, "jobs": len(own), **sums})
    rows.sort(key=lambda row: (-row["jobs"], row["provider"], row["outcome"]))
    yield Finding(
        claim=f"The node remembers {len(inside)} SLAs resolved in the spell, "
        f"{sum(row['jobs'] for row in rows if row['outcome'] == 'violated')} of them violated",
        id="sla-history",
        value=float(len(inside)),
        unit="jobs",
        window=during,
        cites=("sla_history",),
        rows=tuple(rows[:_MOST_ROWS]),
        caution=f"it keeps {ledger.AUDIT_RING} jobs, and older ones are lost"
        if len(told) >= ledger.AUDIT_RING
        else "",
    )
