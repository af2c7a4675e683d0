"""What limits what may be said, or is worth knowing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta

from tbforensics.evidence import Evidence
from tbforensics.manifest import Manifest
from tbforensics.model import Doubt, Incident, Query, Shape, Window
from tbforensics.quality.covered import duration, edges

GAP_S = 60.0  # shorter holes are noise of any scraper
UNSEEN_SHARE = 0.1  # of the window, for one target, before it limits a verdict
QUARANTINED_SHARE = 0.05  # unreadable lines for each that could be read
FROZEN_S = 300.0  # nothing at all moved, although every scrape succeeded
# Gauges of The-Block by the names of counters: they may fall without any restart.
GAUGES_NAMED_TOTAL = (
    *("rent_escrow_locked_total", "rent_escrow_locked_ct_total", "cluster_peer_active_total"),
)
PROVISIONAL = "provisional"  # the note of a capture that was asked too soon


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
        spells = evidence.records(_HOLES, {"gap_s": GAP_S, **edges(window)})
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
    for row in evidence.records(_RESETS, {**gauges, **edges(incident.span)}):
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
    for spell in evidence.records(_FROZEN, {"frozen_s": FROZEN_S, **edges(incident.span)}):
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
    for row in evidence.records(_TWICE, edges(incident.span)):
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


# Windows over all samples carry numbers only: names are joined to the few rows that are left.
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
WITH falls AS (
    SELECT sid, ts FROM (
        SELECT sid, ts, value, lag(value) OVER (PARTITION BY sid ORDER BY ts) AS before FROM samples
        WHERE sid IN (SELECT sid FROM series WHERE metric SIMILAR TO '.*_(total|count|sum|bucket)'
                      AND NOT list_contains($gauges, metric)
                      AND NOT list_contains($asked_as_gauges::VARCHAR[], query))
          AND ts >= $start AND ts < $end AND NOT isnan(value)
    ) WHERE value < before
)
SELECT source, concat_ws(' ', labels['job'], labels['instance']) AS target, ts,
       list(DISTINCT query ORDER BY query) AS queries
FROM falls JOIN series USING (sid) GROUP BY ALL ORDER BY ALL
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
    SELECT sid,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span / 4) AS a,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span / 2) AS b,
           arg_max(value, ts) FILTER (ts < $start::TIMESTAMPTZ + span * 3 / 4) AS c
    FROM samples, (SELECT $end::TIMESTAMPTZ - $start::TIMESTAMPTZ AS span)
    WHERE ts >= $start AND ts < $end AND isfinite(value)
    GROUP BY sid
),
alike AS (
    SELECT x.source, x.query, x.target AS one, y.target AS other, x.sid AS sid_x, y.sid AS sid_y
    FROM own x JOIN probes p ON p.sid = x.sid
    JOIN own y
      ON y.source = x.source AND y.query = x.query AND y.rest = x.rest AND y.target > x.target
    JOIN probes q ON q.sid = y.sid
    WHERE p.a <> p.b AND p.b <> p.c
      AND abs(p.a - q.a) <= 0.001 * abs(p.a) AND abs(p.b - q.b) <= 0.001 * abs(p.b)
      AND abs(p.c - q.c) <= 0.001 * abs(p.c)
),
moving AS (  -- to count distinct values is dear, and few are alike
    SELECT sid FROM samples
    WHERE sid IN (SELECT sid_x FROM alike UNION ALL SELECT sid_y FROM alike)
      AND ts >= $start AND ts < $end AND isfinite(value)
    GROUP BY sid HAVING count(DISTINCT value) > 3
)
SELECT source, one, other, list(DISTINCT query ORDER BY query) AS queries
FROM alike WHERE sid_x IN (SELECT sid FROM moving) AND sid_y IN (SELECT sid FROM moving)
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
named AS (
    SELECT sid, source, concat_ws(' ', labels['job'], labels['instance']) AS target
    FROM series WHERE metric <> 'up'
      AND NOT starts_with(metric, 'scrape_') AND NOT starts_with(metric, 'ALERTS')
),
numbered AS (SELECT *, dense_rank() OVER (ORDER BY source, target) AS who FROM named),
moves AS (
    SELECT sid, ts, lag(ts) OVER one AS before_ts,
           value IS DISTINCT FROM lag(value) OVER one AS moved
    FROM samples WHERE ts < $end AND sid IN (SELECT sid FROM named)
    WINDOW one AS (PARTITION BY sid ORDER BY ts)
),
begun AS (
    SELECT who, min(ts) AS begun
    FROM samples JOIN (SELECT sid, who FROM numbered) USING (sid) WHERE ts < $end GROUP BY who
),
counted AS (  -- a series that appears moves, unless everything of its target appears with it
    SELECT who, ts, count(*) AS series,
           bool_or(moved AND (before_ts IS NOT NULL OR ts > begun)) AS moved
    FROM moves JOIN (SELECT sid, who FROM numbered) USING (sid) JOIN begun USING (who)
    WHERE ts >= $start GROUP BY ALL
),
scrapes AS (
    SELECT source, target, ts, series, moved
    FROM counted JOIN (SELECT DISTINCT who, source, target FROM numbered) USING (who)
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
