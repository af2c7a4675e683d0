"""SQL that turns raw samples into the frames that a kind sees: increase, last, per step.

Samples stay in DuckDB; a frame is series times steps, however many samples lie beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator

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
            being scraped rose from zero.
    """
    return _wide(evidence, _INCREASE, query, span, step_s)


def last(evidence: Evidence, query: str, span: Window, step_s: float) -> pd.DataFrame:
    """The last sample of each series in each step; NaN where there is none. Shape as above."""
    return _wide(evidence, _LAST, query, span, step_s)


def labelled(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.Series]]:
    """Each column of a frame with its labels as a dict."""
    for position, labels in enumerate(table.columns.to_list()):
        yield dict(zip(table.columns.names, labels, strict=True)), table.iloc[:, position]


def _wide(evidence: Evidence, text: str, query: str, span: Window, step_s: float) -> pd.DataFrame:
    step_ms = round(step_s * 1000)
    index = pd.date_range(
        span.start, span.end, freq=pd.Timedelta(milliseconds=step_ms), inclusive="left"
    ).as_unit("ms")
    given = {"query": query, "start": span.start, "end": span.end, "step_ms": step_ms}
    long = evidence.sql(text, given)
    series = evidence.sql(
        "SELECT sid, source, labels FROM series WHERE query = ? ORDER BY sid", [query]
    )
    wide = long.pivot(index="step", columns="sid", values="value").reindex(columns=series["sid"])
    wide.columns = _columns(series)
    wide.index = pd.DatetimeIndex(wide.index, tz="UTC").as_unit("ms")
    return wide.reindex(index).rename_axis(index="ts").sort_index(axis=1)


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
