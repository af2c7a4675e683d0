"""Escaped HTML for what a table cannot show, each with its plain-text twin.

A notebook cell ends with one of these objects. JupyterLab and the report show the HTML, a terminal
and the tests read the text. Everything that came from a log, a label or a reply passes `visible`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from tbforensics.model import (
    Assessment,
    Capture,
    Coverage,
    Doubt,
    Finding,
    Json,
    Moment,
    Query,
    utc_text,
)
from tbforensics.report_page.text import (
    VERDICTS,
    duration,
    number,
    percent,
    slug,
    table_of,
    visible,
)

ROWS_LIMIT = 500  # of one table; the manifest and findings.json hold them all
CITED_LIMIT = 20  # captures beside one finding
LOG_COLUMNS = (
    "ts", "level", "message", "peer", "correlation_id", "tx", "block", "source", "file", "line",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class Shown:
    """HTML for a page, text for everything else."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


# --- the fragments -----------------------------------------------------------------------


def verdict(assessment: Assessment) -> Shown:
    """The verdict in words and colour, and why."""
    mark, word, meaning = VERDICTS[assessment.verdict]
    reasons = [visible(reason) for reason in assessment.reasons]
    text = f"{mark} {word}. {meaning}" + "".join(f"\n  - {reason}" for reason in reasons)
    return _shown(
        "verdict", text, tone=assessment.verdict, mark=mark, word=word, meaning=meaning,
        reasons=reasons,
    )  # fmt: skip


def coverage(rows: Iterable[Coverage], doubts: Iterable[Doubt] = ()) -> Shown:
    """What we could see, query by query, and what makes us doubt it."""
    seen = [
        {
            "query": visible(row.query, limit=80),
            "source": visible(row.source, limit=80),
            "needed": "required" if row.required else "",
            "state": visible(row.state, limit=40),
            "enough": row.enough,
            "percent": percent(row.ratio),
            "detail": visible(row.detail),
        }
        for row in rows
    ]
    worries = [
        {
            "what": visible(doubt.what, limit=80),
            "detail": visible(doubt.detail),
            "when": str(doubt.window) if doubt.window else "",
            "limits": f"limits “{doubt.limits}”" if doubt.limits else "",
            "cites": ", ".join(visible(cite, limit=80) for cite in doubt.cites),
        }
        for doubt in doubts
    ]
    text = table_of({k: v for k, v in row.items() if k != "enough"} for row in seen)
    lines = [text.text if seen else "no query was asked"]
    for worry in worries:
        lines.append("doubt: " + "; ".join(part for part in worry.values() if part))
    return _shown("coverage", "\n".join(lines), rows=seen, doubts=worries)


def findings(
    assessment: Assessment | Sequence[Finding],
    captures: Mapping[str, Sequence[Capture]] | None = None,
    queries: Mapping[str, Query] | None = None,
) -> Shown:
    """Each claim with its number, and the way back to the bytes it rests on.

    captures: by query name. queries: by name, for the text that was asked.
    """
    found = assessment.findings if isinstance(assessment, Assessment) else tuple(assessment)
    items = [_finding(finding, captures or {}, queries or {}) for finding in found]
    text = "\n\n".join(_finding_text(finding) for finding in found) or "no findings"
    return _shown("findings", text, findings=items)


def _finding(
    finding: Finding, captures: Mapping[str, Sequence[Capture]], queries: Mapping[str, Query]
) -> dict[str, object]:
    cited = []
    for name in finding.cites:
        query, replies = queries.get(name), captures.get(name, ())
        cited.append(
            {
                "name": visible(name, limit=80),
                "anchor": slug(name),
                "asked": visible(query.text, limit=2000) if query else "",
                "why": visible(query.why) if query else "",
                "captures": [_capture(capture) for capture in replies[:CITED_LIMIT]],
                "more": max(0, len(replies) - CITED_LIMIT),
            }
        )
    return {
        "id": slug(finding.id),
        "claim": visible(finding.claim),
        "number": number(finding.value, finding.unit, digits=4),
        "limits": _limits(finding),
        "window": str(finding.window),
        "lasted": duration(finding.window.seconds),
        "decides": finding.decides,
        "caution": visible(finding.caution),
        "cites": cited,
        "rows": table_of(finding.rows[:ROWS_LIMIT]) if finding.rows else None,
        "more": max(0, len(finding.rows) - ROWS_LIMIT),
    }


def _limits(finding: Finding) -> list[str]:
    parts = []
    if finding.threshold is not None:
        parts.append(f"threshold {number(finding.threshold, finding.unit, digits=4)}")
    if finding.interval is not None:
        low, high = finding.interval
        upper = number(high, finding.unit, digits=4)
        parts.append(f"between {number(low, digits=4)} and {upper}")
    if finding.unit == "s" and abs(finding.value) >= 60:
        parts.append(f"that is {duration(finding.value)}")
    return parts


def _finding_text(finding: Finding) -> str:
    parts = [number(finding.value, finding.unit, digits=4), *_limits(finding)]
    role = "decides" if finding.decides else "explains"
    lines = [
        f"{visible(finding.claim)} [{role}]",
        f"  {'; '.join(parts)}",
        f"  {finding.window}",
        f"  rests on {', '.join(visible(cite, limit=80) for cite in finding.cites)}",
    ]
    if finding.caution:
        lines.append(f"  caution: {visible(finding.caution)}")
    if finding.rows:
        rows = table_of(finding.rows[:ROWS_LIMIT])
        lines += [f"    {line}" for line in rows.text.splitlines()]
    return "\n".join(lines)


def _capture(capture: Capture) -> dict[str, object]:
    return {
        "source": visible(capture.source, limit=80),
        "query": visible(capture.query, limit=80),
        "role": visible(capture.role, limit=40),
        "request": visible(
            json.dumps(dict(capture.request), ensure_ascii=False, default=str), limit=2000
        ),
        "window": str(capture.window) if capture.window else f"at {utc_text(capture.asked_at)}",
        "status": str(capture.status or ""),
        "sha256": visible(capture.sha256 or "", limit=64),
        "bytes": f"{capture.bytes:,}",
        "trouble": visible("; ".join(part for part in (capture.error, *capture.notes) if part)),
        "usable": capture.usable,
    }


def timeline(moments: Iterable[Moment]) -> Shown:
    """Findings, log lines, answers and people's notes, in time order."""
    known = sorted(moments, key=lambda moment: moment.time)
    rows = [
        {
            "time (UTC)": utc_text(moment.time)
            + (f" ± {duration(moment.uncertainty_s)}" if moment.uncertainty_s else ""),
            "origin": moment.origin,
            "what": moment.text,
            "source": moment.source,
        }
        for moment in known[:ROWS_LIMIT]
    ]
    return _table(rows, "nothing to put in order", more=max(0, len(known) - ROWS_LIMIT))


def timing(rows: Iterable[Mapping[str, Json]]) -> Shown:
    """From the telemetry onset to each step of the response; keys ending `_s` are seconds."""
    spoken = [
        {
            key.removesuffix("_s").replace("_", " "): duration(value)
            if key.endswith("_s") and isinstance(value, int | float)
            else value
            for key, value in row.items()
        }
        for row in rows
    ]
    return _table(spoken, "no onset, or nobody wrote down when they acted")


def unknowns(sentences: Iterable[str]) -> Shown:
    """What we could not tell."""
    lines = [visible(sentence) for sentence in sentences]
    text = "\n".join(f"- {line}" for line in lines) or "nothing was left unknown that we know of"
    return _shown("unknowns", text, sentences=lines)


def provenance(captures: Iterable[Capture]) -> Shown:
    """Every reply: what was asked, of whom, when, and the SHA-256 of what came."""
    known, seen = list(captures), set()
    items = [_capture(capture) for capture in known[:ROWS_LIMIT]]
    more = max(0, len(known) - ROWS_LIMIT)
    for item in items:  # the same bytes may have come twice; an id stands once in a page
        item["anchor"] = "" if item["sha256"] in seen else item["sha256"]
        seen.add(item["sha256"])
    shown = ("source", "query", "window", "status", "bytes", "sha256", "trouble")
    text = table_of({key: item[key] for key in shown} for item in items).text
    text = (text if items else "nothing was captured") + (_more(more) if more else "")
    return _shown("provenance", text, captures=items, more=more)


def log_lines(frame: pd.DataFrame, *, limit: int = 200) -> Shown:
    """Log lines as a table; no more than `limit` of them. Empty columns are left out.

    Shape: columns among LOG_COLUMNS; others, such as `fields`, are not shown.
    """
    wanted = [c for c in LOG_COLUMNS if c in frame.columns and frame[c].notna().any()]
    rows = [
        {str(key): _plain(value) for key, value in row.items()}
        for row in frame[wanted].head(limit).to_dict("records")
    ]
    return _table(rows, "no log lines", more=max(0, len(frame) - limit), limit=500)


def _plain(value: object) -> Json:
    """A nullable integer column becomes floats; a line number is not one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def alerts(assessment: Assessment) -> Shown:
    """What each alert rule about the kind's metrics would have told, and which never can."""
    by_id = {finding.id: finding for finding in assessment.findings}
    rows = by_id["rules-replayed"].rows if "rules-replayed" in by_id else ()
    return _table(rows, "no alert rule that the server had loaded is about these metrics")


# --- how a fragment is made --------------------------------------------------------------


def _table(
    rows: Iterable[Mapping[str, Json]], empty: str, *, more: int = 0, limit: int = 300
) -> Shown:
    table = table_of(rows, limit=limit)
    text = table.text if table.rows else empty
    if more:
        text += _more(more)
    return _shown("plain", text, table=table, empty=empty, more=more)


def _more(count: int) -> str:
    return f"\n… and {count:,} more"


def _shown(macro_name: str, text: str, **values: object) -> Shown:
    template = _TEMPLATES.get_template("fragments.html.j2")
    macro = getattr(template.module, macro_name)
    return Shown(f"<style>{FRAGMENT_CSS}</style>\n{macro(**values)}", text)


_TEMPLATES = Environment(
    loader=PackageLoader("tbforensics", "report_page"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
FRAGMENT_CSS = (
    _TEMPLATES.loader.get_source(_TEMPLATES, "fragments.css")[0].strip()
    if _TEMPLATES.loader
    else ""
)

__all__ = [
    "Shown", "alerts", "coverage", "duration", "findings", "log_lines", "number", "provenance",
    "timeline", "timing", "unknowns", "verdict", "visible",
]  # fmt: skip
