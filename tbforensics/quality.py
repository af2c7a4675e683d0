"""What the evidence can carry: how much of each question was answered, and what to doubt.

Nothing found and nothing seen are told apart here. A verdict never claims more than this allows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta

from tbforensics.evidence import Evidence
from tbforensics.manifest import Manifest
from tbforensics.model import (
    Capture,
    Coverage,
    Doubt,
    Incident,
    Query,
    Shape,
    Window,
    utc_text,
)

ENOUGH_RATIO = 0.9  # of the window's steps; below it, silence is not read as health
GAP_S = 60.0  # shorter holes are noise of any scraper
UNSEEN_SHARE = 0.1  # of the window, for one target, before it limits a verdict
QUARANTINED_SHARE = 0.05  # unreadable lines for each that could be read
FROZEN_S = 300.0  # nothing at all moved, although every scrape succeeded
# Gauges of The-Block by the names of counters: they may fall without any restart.
GAUGES_NAMED_TOTAL = (
    *("rent_escrow_locked_total", "rent_escrow_locked_ct_total", "cluster_peer_active_total"),
)
PROVISIONAL = "provisional"  # the note of a capture that was asked too soon


# --- coverage ------------------------------------------------------------------------------


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
    (row,) = evidence.records(text, {"query": query.name, "source": source, **_edges(window)})
    return float(row["ratio"] or 0.0)


def _logs_covered(
    query: Query, source: str, window: Window, error: str, evidence: Evidence
) -> Coverage:
    (row,) = evidence.records(
        "SELECT count(*) AS n FROM log_lines WHERE source = $source AND ts >= $start AND ts < $end",
        {"source": source, **_edges(window)},
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
        {"query": query.name, "source": source, **_edges(window)},
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


# --- doubts --------------------------------------------------------------------------------


def doubts(
    incident: Incident, queries: Sequence[Query], manifest: Manifest, evidence: Evidence
) -> list[Doubt]:
    """Everything about the evidence that limits what may be said, or is worth knowing."""
    return [
        *_holes(incident, evidence),
        *_unknown_targets(incident, manifest),
        *_resets(incident, queries, evidence),
        *_frozen(incident, evidence),
        *_scraped_twice(incident, evidence),
        *_provisional(manifest),
        *_quarantined(evidence),
        *_cut_short(evidence),
    ]


def _holes(incident: Incident, evidence: Evidence) -> Iterator[Doubt]:
    for place, window in (("window", incident.window), ("baseline", incident.baseline)):
        spells = evidence.records(_HOLES, {"gap_s": GAP_S, **_edges(window)})
        unseen_s: Counter[tuple[str, str]] = Counter()
        for spell in spells:
            unseen_s[spell["source"], spell["target"]] += spell["seconds"]
        for spell in spells:
            share = unseen_s[spell["source"], spell["target"]] / window.seconds
            yield Doubt(
                spell["what"],
                f"{spell['source']}: {spell['target']} unseen for {duration(spell['seconds'])} "
                f"of the {place}",
                Window(spell["since"], spell["until"]),
                # A baseline with holes makes a comparison weaker, not a silence healthier.
                "cleared" if place == "window" and share > UNSEEN_SHARE else "",
                ("up",),
            )


def _unknown_targets(incident: Incident, manifest: Manifest) -> Iterator[Doubt]:
    """Without `up`, a target that nobody could scrape is not even missed."""
    failed = [c for c in manifest.captures_of("up") if not c.usable]
    for capture in failed:
        if capture.window is None or capture.window.overlap_s(incident.window):
            yield Doubt(
                "targets unknown",
                f"{capture.source} did not say which targets it could scrape: {capture.error}",
                capture.window,
                "cleared",
                ("up",),
            )
            return


def _resets(incident: Incident, queries: Sequence[Query], evidence: Evidence) -> Iterator[Doubt]:
    asked = [query.name for query in queries if query.shape is Shape.GAUGE]
    gauges = {"gauges": list(GAUGES_NAMED_TOTAL), "asked_as_gauges": asked}
    for row in evidence.records(_RESETS, {**gauges, **_edges(incident.span)}):
        names = row["queries"]
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        yield Doubt(
            "counter reset",
            f"{row['source']}: {row['target']} began again at zero ({', '.join(names[:4])}{more}); "
            "undone in every sum",
            Window(row["ts"] - timedelta(seconds=1), row["ts"]),
            cites=tuple(names),
        )


def _frozen(incident: Incident, evidence: Evidence) -> Iterator[Doubt]:
    for spell in evidence.records(_FROZEN, {"frozen_s": FROZEN_S, **_edges(incident.span)}):
        window = Window(spell["since"], spell["until"])
        share = window.overlap_s(incident.window) / incident.window.seconds
        before = "they moved before" if spell["moved_before"] else "nor did they before that"
        yield Doubt(
            "frozen exporter",
            f"{spell['source']}: {spell['target']} answered every scrape, yet none of its "
            f"{spell['series']} series moved for {duration(spell['seconds'])}; {before}",
            window,
            "cleared" if share > UNSEEN_SHARE else "",
            ("up",),
        )


def _scraped_twice(incident: Incident, evidence: Evidence) -> Iterator[Doubt]:
    for row in evidence.records(_TWICE, _edges(incident.span)):
        names = row["queries"]
        yield Doubt(
            "scraped twice",
            f"{row['source']}: {row['one']} and {row['other']} tell the same values of "
            f"{', '.join(names[:4])}, as one exporter does that two jobs scrape: sums over both "
            "count twice",
            cites=tuple(names),
        )


def _provisional(manifest: Manifest) -> Iterator[Doubt]:
    names = sorted({c.query for c in manifest.captures if PROVISIONAL in c.notes})
    if names:
        yield Doubt(
            "provisional",
            "asked so soon after the window that samples could still arrive or vanish: "
            + ", ".join(names),
            limits="cleared",
            cites=tuple(names),
        )


def _quarantined(evidence: Evidence) -> Iterator[Doubt]:
    for row in evidence.records(_QUARANTINED):
        yield Doubt(
            "quarantined",
            f"{row['source']}: {row['bad']} of {row['bad'] + row['good']} lines of "
            f"{row['file'] or row['query']} could not be read (for instance: {row['reason']}); "
            "they are in the table quarantine",
            limits="cleared" if row["bad"] > QUARANTINED_SHARE * row["good"] else "",
            cites=(row["query"],),
        )


def _cut_short(evidence: Evidence) -> Iterator[Doubt]:
    for row in evidence.records(_CUT_SHORT):
        yield Doubt(
            "not read to its end",
            f"{row['source']}: {row['file']}: {row['stopped']}; what came after is unknown",
            limits="cleared",
            cites=(row["query"],),
        )


def _edges(window: Window) -> dict[str, object]:
    return {"start": window.start, "end": window.end}


def duration(seconds: float) -> str:
    """`90 s`, `12 min`, `3.5 h`, `2.0 d`: for people, to two figures or so."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


_GRID = """
grid AS (SELECT greatest(60.0, 2 * coalesce(quantile_cont(since, 0.5), 0)) AS step_s
         FROM (SELECT epoch(ts - lag(ts) OVER (PARTITION BY sid ORDER BY ts)) AS since FROM own))
SELECT least(1.0, count(DISTINCT floor(epoch(ts - $start::TIMESTAMPTZ) / step_s))
       / greatest(1, floor(epoch($end::TIMESTAMPTZ - $start::TIMESTAMPTZ) / any_value(step_s))))
       AS ratio
"""
_SEEN = f"""
WITH own AS (
    SELECT sid, ts FROM samples JOIN series USING (sid)
    WHERE query = $query AND source = $source AND ts >= $start AND ts < $end
),
{_GRID} FROM own, grid
"""
_SEEN_COUNTER = f"""
WITH own AS (
    SELECT sid, ts, labels['job'] AS job, labels['instance'] AS instance
    FROM samples JOIN series USING (sid)
    WHERE query = $query AND source = $source AND ts < $end
),
scraped AS (
    SELECT ts FROM own WHERE ts >= $start
    UNION ALL
    SELECT ts FROM samples JOIN series USING (sid)
    JOIN (SELECT DISTINCT job, instance FROM own)
      ON labels['job'] = job AND labels['instance'] = instance
    WHERE query = 'up' AND value = 1 AND source = $source AND ts >= $start AND ts < $end
),
{_GRID} FROM scraped, grid
"""

_TARGETS = """
ups AS (
    SELECT source, concat_ws(' ', labels['job'], labels['instance']) AS target, ts, value
    FROM samples JOIN series USING (sid)
    WHERE query = 'up' AND ts >= $start AND ts < $end
)"""

# A target's scrapes cut the window into pieces; a piece is a hole when no scrape came (gap), or
# when the scrapes within it failed. A target that was seen outside the window alone is one gap.
_HOLES = f"""
WITH {_TARGETS},
pace AS (
    SELECT source, target, quantile_cont(since, 0.5) AS usual FROM (
        SELECT source, target,
               epoch(ts - lag(ts) OVER (PARTITION BY source, target ORDER BY ts)) AS since FROM ups
    ) GROUP BY ALL
),
pieces AS (
    SELECT source, target, 'gap' AS what,
           coalesce(lag(ts) OVER w, $start::TIMESTAMPTZ) AS since, ts AS until FROM ups
    WINDOW w AS (PARTITION BY source, target ORDER BY ts)
    UNION ALL
    SELECT source, target, 'gap', max(ts), $end::TIMESTAMPTZ FROM ups GROUP BY source, target
    UNION ALL
    SELECT DISTINCT source, concat_ws(' ', labels['job'], labels['instance']) AS target, 'gap',
           $start::TIMESTAMPTZ, $end::TIMESTAMPTZ
    FROM series SEMI JOIN samples USING (sid)
    WHERE query = 'up' AND (source, target) NOT IN (SELECT (source, target) FROM ups)
    UNION ALL
    SELECT source, target, 'scrape failure', min(ts), least($end::TIMESTAMPTZ, max(until)) FROM (
        SELECT source, target, ts, value, lead(ts, 1, ts) OVER w AS until,
               row_number() OVER w - row_number() OVER (PARTITION BY source, target, value
                                                        ORDER BY ts) AS run
        FROM ups WINDOW w AS (PARTITION BY source, target ORDER BY ts)
    ) WHERE value = 0 GROUP BY source, target, run
)
SELECT source, target, what, since, until, epoch(until - since) AS seconds
FROM pieces LEFT JOIN pace USING (source, target)
WHERE until > since
  AND (what = 'scrape failure' OR epoch(until - since) > greatest($gap_s, 2.5 * usual))
ORDER BY ALL
"""

_RESETS = """
SELECT source, target, ts, list(DISTINCT query ORDER BY query) AS queries FROM (
    SELECT source, concat_ws(' ', labels['job'], labels['instance']) AS target, query, ts, value,
           lag(value) OVER (PARTITION BY sid ORDER BY ts) AS before
    FROM samples JOIN series USING (sid)
    WHERE metric SIMILAR TO '.*_(total|count|sum|bucket)'
      AND NOT list_contains($gauges, metric)
      AND NOT list_contains($asked_as_gauges::VARCHAR[], query) AND ts >= $start AND ts < $end
      AND NOT isnan(value)
) WHERE value < before
GROUP BY ALL ORDER BY ALL
"""

_QUARANTINED = """
WITH bad AS (
    SELECT source, query, file, count(*) AS bad, min(reason) AS reason FROM quarantine GROUP BY ALL
),
good AS (
    SELECT source, file, count(*) AS good
    FROM (SELECT source, file FROM log_lines UNION ALL SELECT source, file FROM records)
    GROUP BY ALL
)
SELECT bad.*, coalesce(good, 0) AS good
FROM bad LEFT JOIN good ON good.source = bad.source AND good.file IS NOT DISTINCT FROM bad.file
ORDER BY ALL
"""

# Two targets of one exporter: the same labels but for the target, and the same values at three
# moments that are far apart, although the values move in between.
_TWICE = """
WITH own AS (
    SELECT sid, source, query, concat_ws(' ', labels['job'], labels['instance']) AS target,
           list_sort([e for e in map_entries(labels) if e.key NOT IN ('job', 'instance')]) AS rest
    FROM series WHERE metric <> 'up' AND NOT starts_with(metric, 'scrape_')
),
probes AS (
    SELECT sid, count(DISTINCT value) AS moves,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span / 4) AS a,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span / 2) AS b,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span * 3 / 4) AS c
    FROM samples, (SELECT $end::TIMESTAMPTZ - $start::TIMESTAMPTZ AS span)
    WHERE ts >= $start AND ts < $end AND isfinite(value)
    GROUP BY sid
)
SELECT x.source, x.target AS one, y.target AS other,
       list(DISTINCT x.query ORDER BY x.query) AS queries
FROM own x JOIN probes p ON p.sid = x.sid
JOIN own y ON y.source = x.source AND y.query = x.query AND y.rest = x.rest AND y.target > x.target
JOIN probes q ON q.sid = y.sid
WHERE p.moves > 3 AND q.moves > 3 AND p.a <> p.b AND p.b <> p.c
  AND abs(p.a - q.a) <= 0.001 * abs(p.a) AND abs(p.b - q.b) <= 0.001 * abs(p.b)
  AND abs(p.c - q.c) <= 0.001 * abs(p.c)
GROUP BY ALL ORDER BY ALL
"""

# Each file that was read leaves a summary of how far it could be read.
_CUT_SHORT = """
SELECT source, query, value->>'$.file' AS file, value->>'$.stopped' AS stopped
FROM snapshots WHERE role = 'summary' AND coalesce(value->>'$.stopped', '') <> ''
ORDER BY ALL
"""

# Series that Prometheus makes about a target move however dead the target is.
_FROZEN = f"""
WITH {_TARGETS},
moves AS (
    SELECT source, concat_ws(' ', labels['job'], labels['instance']) AS target, sid, ts,
           lag(ts) OVER one AS before_ts, value IS DISTINCT FROM lag(value) OVER one AS moved
    FROM samples JOIN series USING (sid)
    WHERE ts < $end AND metric <> 'up'
      AND NOT starts_with(metric, 'scrape_') AND NOT starts_with(metric, 'ALERTS')
    WINDOW one AS (PARTITION BY sid ORDER BY ts)
),
begun AS (SELECT source, target, min(ts) AS begun FROM moves GROUP BY ALL),
scrapes AS (  -- a series that appears moves, unless everything of its target appears with it
    SELECT source, target, ts, count(*) AS series,
           bool_or(moved AND (before_ts IS NOT NULL OR ts > begun)) AS moved
    FROM moves JOIN begun USING (source, target) WHERE ts >= $start GROUP BY ALL
),
still AS (
    SELECT source, target, max(series) AS series, ts_from IS NOT NULL AS moved_before,
           coalesce(ts_from, min(ts)) AS since, max(ts) AS until
    FROM (SELECT *, max(CASE WHEN moved THEN ts END) OVER (
                 PARTITION BY source, target ORDER BY ts) AS ts_from FROM scrapes)
    GROUP BY source, target, ts_from
)
SELECT still.source, still.target, series, since, until, moved_before,
       epoch(until - since) AS seconds
FROM still
WHERE epoch(until - since) >= $frozen_s AND series >= 3
  -- what moves seldom was not frozen; what never moved cannot be told from it
  AND coalesce((SELECT avg(moved::INT) FROM scrapes s
       WHERE s.source = still.source AND s.target = still.target
         AND CASE WHEN moved_before THEN s.ts <= still.since ELSE s.ts > still.until END), 1) >= 0.5
  AND NOT EXISTS (SELECT 1 FROM ups WHERE ups.source = still.source AND ups.target = still.target
                  AND ups.ts BETWEEN since AND until AND ups.value <> 1)
ORDER BY ALL
"""
