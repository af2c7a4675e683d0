"""SQL that turns raw samples into the frames that a kind sees: increase, last, per step.

Samples stay in DuckDB; a frame is series times steps, however many samples lie beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from tbforensics.evidence import Evidence
from tbforensics.model import Window


def increase(evidence: Evidence, query: str, span: Window, step_s: float) -> pd.DataFrame:
    """How much each counter of a query rose in each step, resets undone.

    Shape:  index: UTC start of each step of `span`; columns: a MultiIndex of labels.
    Unit:   that of the counter. Sums over steps are exact: nothing is extrapolated.
    Source: the rise between two samples is `later - earlier`, or `later` where it is smaller
            (the counter began again at zero; Prometheus documentation, `increase`). It belongs
            to the step that holds the later sample; between samples further apart than a step
            it is spread evenly over them. A series that appears while its target was already
            being scraped rose from zero, and one that is absent while its target is up stands
            still: it counts 0, not NaN, in the steps that saw its target up.
    """
    rises = _wide(evidence, _INCREASE, query, span, step_s)
    if rises.empty:
        return rises
    up = {
        _target(labels): column == 1
        for labels, column in labelled(last(evidence, "up", span, step_s))
    }
    for position, (labels, column) in enumerate(labelled(rises)):
        if (scraped := up.get(_target(labels))) is not None:
            rises.isetitem(position, column.mask(column.isna() & scraped, 0.0))
    return rises


def _target(labels: dict[str, str]) -> tuple[str, str, str]:
    return labels["source"], labels.get("job", ""), labels.get("instance", "")


def last(evidence: Evidence, query: str, span: Window, step_s: float) -> pd.DataFrame:
    """The last sample of each series in each step; NaN where there is none. Shape as above."""
    return _wide(evidence, _LAST, query, span, step_s)


def labelled(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.Series]]:
    """Each column of a frame with its labels as a dict."""
    for position, labels in enumerate(table.columns.to_list()):
        yield dict(zip(table.columns.names, labels, strict=True)), table.iloc[:, position]


def sight(
    evidence: Evidence, span: Window, step_s: float, counters: Sequence[str] = ()
) -> pd.DataFrame:
    """In which steps each query has any sample.

    Shape: index: UTC start of each step; one boolean column per query that has any. A counter may
           register late or go with a restart: it was seen where a target that has ever counted it
           was scraped.
    """
    step_ms = round(step_s * 1000)
    given = {"start": span.start, "end": span.end, "step_ms": step_ms, "counters": list(counters)}
    long = evidence.sql(_SIGHT, given)
    long["seen"] = True
    seen = long.pivot(index="step", columns="query", values="seen")
    seen.index = pd.DatetimeIndex(seen.index, tz="UTC").as_unit("ms")
    return seen.reindex(_steps(span, step_ms)).notna().rename_axis(index="ts", columns=None)


def summed(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Columns added up over every label but those named; NaN only where none has a value.

    Shape: one column per combination of the named labels: plain strings for one name, tuples for
           more; no names give the one column "total". A label that no series has is "".
    """
    keys = [tuple(labels.get(name, "") for name in names) for labels, _ in labelled(table)]
    columns: dict[str | tuple[str, ...], pd.Series] = {}
    for key in sorted(set(keys)):
        chosen = table.iloc[:, [position for position, k in enumerate(keys) if k == key]]
        name = key if len(key) > 1 else key[0] if key else "total"
        columns[name] = chosen.sum(axis=1, min_count=1)
    return pd.DataFrame(columns, index=table.index)


def _wide(evidence: Evidence, text: str, query: str, span: Window, step_s: float) -> pd.DataFrame:
    step_ms = round(step_s * 1000)
    given = {"query": query, "start": span.start, "end": span.end, "step_ms": step_ms}
    long = evidence.sql(text, given)
    series = evidence.sql(
        "SELECT sid, source, labels FROM series WHERE query = ? ORDER BY sid", [query]
    )
    wide = long.pivot(index="step", columns="sid", values="value").reindex(columns=series["sid"])
    wide.columns = _columns(series)
    wide.index = pd.DatetimeIndex(wide.index, tz="UTC").as_unit("ms")
    return wide.reindex(_steps(span, step_ms)).rename_axis(index="ts").sort_index(axis=1)


def _steps(span: Window, step_ms: int) -> pd.DatetimeIndex:
    step = pd.Timedelta(milliseconds=step_ms)
    return pd.date_range(span.start, span.end, freq=step, inclusive="left").as_unit("ms")


def _columns(series: pd.DataFrame) -> pd.MultiIndex:
    """`source` and every label that any series has; "" where one lacks it."""
    labels = [dict(row) for row in series["labels"]]
    names = sorted({name for row in labels for name in row})
    keys = [
        (source, *(row.get(name, "") for name in names))
        for source, row in zip(series["source"], labels, strict=True)
    ]
    return pd.MultiIndex.from_tuples(keys, names=["source", *names])


_STEPS = """
WITH readings AS (
    SELECT sid, source, labels['instance'] AS instance, labels['job'] AS job, ts, value
    FROM samples JOIN series USING (sid) WHERE query = $query AND NOT isnan(value)
)"""

_LAST = (
    _STEPS
    + """
SELECT sid, time_bucket(to_milliseconds($step_ms), ts, $start::TIMESTAMPTZ) AS step,
       arg_max(value, ts) AS value
FROM readings WHERE ts >= $start AND ts < $end
GROUP BY ALL ORDER BY ALL
"""
)

_SIGHT = """
WITH own AS (
    SELECT query, source, labels['job'] AS job, labels['instance'] AS instance, ts, value
    FROM samples JOIN series USING (sid)
),
counted AS (
    SELECT DISTINCT query, source, job, instance FROM own
    WHERE list_contains($counters::VARCHAR[], query)
)
SELECT query, time_bucket(to_milliseconds($step_ms), ts, $start::TIMESTAMPTZ) AS step
FROM (SELECT query, ts FROM own
      UNION ALL
      SELECT counted.query, up.ts FROM counted JOIN own up USING (source, job, instance)
      WHERE up.query = 'up' AND up.value = 1
      UNION ALL
      SELECT query, ts::TIMESTAMPTZ FROM records)
WHERE ts >= $start AND ts < $end GROUP BY ALL ORDER BY ALL
"""

_INCREASE = (
    _STEPS
    + """,
ups AS (  -- when each target was first seen up, and each scrape that found it up
    SELECT source, labels['instance'] AS instance, labels['job'] AS job, ts
    FROM samples JOIN series USING (sid) WHERE query = 'up' AND value = 1
),
born AS (  -- the last scrape before a series appeared: there it stood at zero
    SELECT first.sid, max(ups.ts) AS zero_at
    FROM (SELECT sid, source, instance, job, min(ts) AS ts FROM readings GROUP BY ALL) first
    JOIN ups ON ups.source = first.source AND ups.instance = first.instance
            AND ups.job = first.job AND ups.ts < first.ts
    GROUP BY first.sid
),
pairs AS (
    SELECT sid, ts, value,
           coalesce(lag(ts) OVER series, zero_at) AS since,
           CASE WHEN lag(ts) OVER series IS NULL AND zero_at IS NOT NULL THEN 0.0
                ELSE lag(value) OVER series END AS before
    FROM readings LEFT JOIN born USING (sid)
    WINDOW series AS (PARTITION BY sid ORDER BY ts)
),
rises AS (
    SELECT sid, since, ts, CASE WHEN value < before THEN value ELSE value - before END AS rise,
           -- a sample on the edge of two steps ends the earlier one
           time_bucket(to_milliseconds($step_ms), ts - INTERVAL 1 MILLISECOND,
                       $start::TIMESTAMPTZ) AS step
    FROM pairs WHERE before IS NOT NULL AND ts > $start AND since < $end
),
spread AS (
    SELECT sid, step, rise FROM rises WHERE ts - since <= to_milliseconds($step_ms)
    UNION ALL
    SELECT sid, step,
           rise * date_diff('millisecond', greatest(since, step),
                            least(ts, step + to_milliseconds($step_ms)))
                / date_diff('millisecond', since, ts)
    FROM (
        SELECT sid, since, ts, rise, unnest(generate_series(
            time_bucket(to_milliseconds($step_ms), since, $start::TIMESTAMPTZ),
            step, to_milliseconds($step_ms))) AS step
        FROM rises WHERE ts - since > to_milliseconds($step_ms)
    )
)
SELECT sid, step, sum(rise) AS value FROM spread
WHERE step >= $start AND step < $end
GROUP BY ALL ORDER BY ALL
"""
)
