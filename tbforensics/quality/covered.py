"""How much of each question was answered."""

from __future__ import annotations

from collections.abc import Sequence

from tbforensics.evidence import Evidence
from tbforensics.manifest import Manifest
from tbforensics.model import Capture, Coverage, Incident, Query, Shape, Window, utc_text

ENOUGH_RATIO = 0.9  # of the window's steps; below it, silence is not read as health


def coverage(
    incident: Incident, queries: Sequence[Query], manifest: Manifest, evidence: Evidence
) -> list[Coverage]:
    """One row per query and source that could answer it; one "not asked" row where none could."""
    rows: list[Coverage] = []
    for query in queries:
        asked = [s for s in incident.sources if s.type == query.source]
        names = sorted(
            {c.source for c in manifest.captures_of(query.name)} | {s.name for s in asked}
        )
        if not names:
            detail = f"no source of type {query.source} is named in the parameters"
            rows.append(Coverage(query.name, "", 0.0, "not asked", query.required, detail))
        rows += [_covered(query, name, incident.window, manifest, evidence) for name in names]
    return _witnessed(queries, rows)


def _covered(
    query: Query, source: str, window: Window, manifest: Manifest, evidence: Evidence
) -> Coverage:
    captures = [c for c in manifest.captures_of(query.name) if c.source == source]
    failed = [c for c in captures if not c.usable]
    if not captures or len(failed) == len(captures):
        detail = failed[0].error if failed else "it was not asked"
        return Coverage(query.name, source, 0.0, "failed", query.required, detail)
    if query.shape is Shape.RECORDS:
        return _records_covered(query, source, window, failed[0].error if failed else "", evidence)
    if query.shape is not Shape.ROWS:
        ratio = min(_seen_ratio(query, source, window, evidence), _answered(captures, window))
        if query.sparse and not failed:
            detail = "" if ratio else "none in the window"
            return Coverage(query.name, source, 1.0, "covered", query.required, detail)
        state = "absent" if ratio == 0 else "covered" if ratio >= ENOUGH_RATIO else "partial"
        detail = (
            f"{len(failed)} of {len(captures)} requests failed: {failed[0].error}" if failed else ""
        )
        if state == "absent" and failed:
            state = "failed"
        return Coverage(query.name, source, ratio, state, query.required, detail)
    if query.source == "logs":
        return _logs_covered(query, source, window, failed[0].error if failed else "", evidence)
    return _snapshot_covered(query, source, window, evidence)


def _answered(captures: Sequence[Capture], window: Window) -> float:
    """Share of the window that usable replies speak of.

    A counter without samples stood still only where it was asked about.
    """
    spoken = sorted(c.window for c in captures if c.usable and c.window)
    if not spoken:
        return 1.0  # what has no window speaks of all time
    answered_s, until = 0.0, window.start
    for piece in spoken:
        if piece.end > until and piece.start < window.end:
            begun, until = max(until, piece.start), min(piece.end, window.end)
            answered_s += (until - begun).total_seconds()
    return answered_s / window.seconds


def _seen_ratio(query: Query, source: str, window: Window, evidence: Evidence) -> float:
    """Share of the window's minutes (or of its scrapes, where those are rarer) that were seen.

    A gauge was seen where it has a sample. A counter may register late or go with a restart, so
    it was seen where a target that has ever counted it was scraped.
    """
    text = _SEEN if query.shape is Shape.GAUGE else _SEEN_COUNTER
    (row,) = evidence.records(text, {"query": query.name, "source": source, **edges(window)})
    return float(row["ratio"] or 0.0)


def _logs_covered(
    query: Query, source: str, window: Window, error: str, evidence: Evidence
) -> Coverage:
    (row,) = evidence.records(
        "SELECT count(*) AS n FROM log_lines WHERE source = $source AND ts >= $start AND ts < $end",
        {"source": source, **edges(window)},
    )
    lines = row["n"]
    if error:
        return Coverage(query.name, source, 0.0, "partial", query.required, error)
    if lines == 0:
        detail = "it answered, and holds no line in the window"
        return Coverage(query.name, source, 0.0, "absent", query.required, detail)
    return Coverage(query.name, source, 1.0, "covered", query.required, f"{lines} lines")


def _records_covered(
    query: Query, source: str, window: Window, error: str, evidence: Evidence
) -> Coverage:
    """A journal is written when something happens, so it covers what its lines span.

    What records without a time span, only a kind that knows their own count can tell.
    """
    (row,) = evidence.records(
        "SELECT count(ts) AS n, min(ts) AS first, max(ts) AS last, "
        "count(*) FILTER (ts IS NULL) AS undated FROM records "
        "WHERE query = $query AND source = $source AND (ts IS NULL "
        "OR (ts >= $start::TIMESTAMPTZ_NS AND ts < $end::TIMESTAMPTZ_NS))",
        {"query": query.name, "source": source, **edges(window)},
    )
    if row["n"] == 0 and row["undated"] and not error:
        detail = f"{row['undated']} records, none with a time of its own"
        return Coverage(query.name, source, 1.0, "covered", query.required, detail)
    if row["n"] == 0:
        state, detail = "absent", "no record in the window"
        return Coverage(query.name, source, 0.0, state, query.required, error or detail)
    detail = f"{row['n']} records, {utc_text(row['first'])} to {utc_text(row['last'])}"
    state = "partial" if error else "covered"
    return Coverage(query.name, source, 1.0, state, query.required, error or detail)


def _snapshot_covered(query: Query, source: str, window: Window, evidence: Evidence) -> Coverage:
    answers = evidence.records(
        "SELECT ts, state, value FROM snapshots WHERE query = ? AND source = ? ORDER BY ts",
        [query.name, source],
    )
    if not answers:
        detail = "the reply could not be read; see quarantine"
        return Coverage(query.name, source, 0.0, "failed", query.required, detail)
    last = answers[-1]
    if last["state"] != "ok":
        # "empty": an answer of nothing, from a server that answers its own errors so too.
        states = {"unsupported": "unsupported", "empty": "absent"}
        state = states.get(last["state"], "failed")
        return Coverage(query.name, source, 0.0, state, query.required, last["value"] or "")
    detail, late_s = f"true at {utc_text(last['ts'])}", (last["ts"] - window.end).total_seconds()
    if late_s > 0:
        detail += f", {duration(late_s)} after the window"
    return Coverage(query.name, source, 1.0, "covered", query.required, detail)


def _witnessed(queries: Sequence[Query], rows: list[Coverage]) -> list[Coverage]:
    """A family that registers at first use may be absent because nothing happened.

    That is so only while another family of the same exporter, its witness, was being counted.
    """
    seen = {(row.query, row.source) for row in rows if row.state == "covered"}
    by_name = {query.name: query for query in queries}
    result = []
    for row in rows:
        witness = next((w for w in by_name[row.query].witnesses if (w, row.source) in seen), None)
        if row.state == "absent" and witness:
            detail = f"no such series while {witness} was counted: it never happened"
            row = Coverage(row.query, row.source, 1.0, "covered", row.required, detail)
        elif row.state == "absent" and not row.detail:
            detail = "no such series: never happened, not compiled in, or a wrong name"
            row = Coverage(row.query, row.source, 0.0, "absent", row.required, detail)
        result.append(row)
    return result


def edges(window: Window) -> dict[str, object]:
    return {"start": window.start, "end": window.end}


def duration(seconds: float) -> str:
    """`90 s`, `12 min`, `3.5 h`, `2.0 d`: for people, to two figures or so."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


# The median is counted: samples are many, and the intervals of a scraper take few values.
_GRID = """
intervals AS (
    SELECT since, sum(count(*)) OVER (ORDER BY since) AS upto,
           (sum(count(*)) OVER () - 1) / 2 AS mid
    FROM (SELECT epoch_ms(ts) - lag(epoch_ms(ts)) OVER (PARTITION BY sid ORDER BY ts) AS since
          FROM own)
    WHERE since IS NOT NULL GROUP BY since
),
median AS (
    SELECT (min(since) FILTER (upto > floor(mid)) + min(since) FILTER (upto > ceil(mid)))
           / 2000.0 AS usual_s FROM intervals
),
grid AS (SELECT greatest(60.0, 2 * coalesce(usual_s, 0)) AS step_s FROM median)
SELECT least(1.0, count(DISTINCT floor((epoch_ms(ts) - epoch_ms($start::TIMESTAMPTZ))
                                       / 1000.0 / step_s))
       / greatest(1, floor(epoch($end::TIMESTAMPTZ - $start::TIMESTAMPTZ) / any_value(step_s))))
       AS ratio
"""
_SEEN = f"""
WITH own AS (
    SELECT sid, ts FROM samples
    WHERE sid IN (SELECT sid FROM series WHERE query = $query AND source = $source)
      AND ts >= $start AND ts < $end
),
{_GRID} FROM own, grid
"""
_SEEN_COUNTER = f"""
WITH own AS (
    SELECT sid, ts FROM samples
    WHERE sid IN (SELECT sid FROM series WHERE query = $query AND source = $source) AND ts < $end
),
targets AS (
    SELECT DISTINCT labels['job'] AS job, labels['instance'] AS instance
    FROM series SEMI JOIN own USING (sid)
),
scraped AS (
    SELECT ts FROM own WHERE ts >= $start
    UNION ALL
    SELECT ts FROM samples
    WHERE sid IN (SELECT sid FROM series JOIN targets
                  ON labels['job'] = job AND labels['instance'] = instance
                  WHERE query = 'up' AND source = $source)
      AND value = 1 AND ts >= $start AND ts < $end
),
{_GRID} FROM scraped, grid
"""
