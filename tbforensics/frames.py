"""Raw samples to the frames that a kind sees: increase, last, per step.

Samples stay in DuckDB and come out a piece at a time; a frame is series times steps, however many
samples lie beneath it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd

from tbforensics.analysis.persteps import (
    Bools,
    Floats,
    Ints,
    Piece,
    Rises,
    Steps,
    piece_of,
)
from tbforensics.analysis.quantiles import bucket_quantiles
from tbforensics.evidence import Evidence
from tbforensics.model import Capture, Window

Target = tuple[str, str, str]  # source, job, instance
How = Literal["last", "min", "max", "mean"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BLOCK_MS = 2 * 3600 * 1000  # samples are in order within one reply, which seldom tells of more
_PIECE = 2_000_000  # samples; larger pieces cost memory and gain no time


def increase(
    evidence: Evidence,
    query: str,
    span: Window,
    step_s: float,
    captures: Sequence[Capture] | None = None,
) -> pd.DataFrame:
    """How much each counter of a query rose in each step, resets undone.

    captures: the replies to the query. In a step of which no usable one speaks nothing is known;
            without them every step counts as answered.
    Shape:  index: UTC start of each step of `span`; columns: a MultiIndex of labels.
    Unit:   that of the counter. Sums over steps are exact: nothing is extrapolated.
    Source: the rise between two samples is `later - earlier`, or `later` where it is smaller
            (the counter began again at zero; Prometheus documentation, `increase`). It belongs
            to the step that holds the later sample; between samples further apart than a step
            it is spread evenly over them. A series that appears while its target was already
            being scraped rose from zero, and one that is absent while its target is up stands
            still: it counts 0, not NaN, in the answered steps that saw its target up.
    """
    steps, lines, ups = _steps(span, step_s), _lines(evidence, query), _ups(evidence)
    rises = Rises(steps, [ups.get(target, _NONE) for target in lines.targets])
    for piece in _pieces(evidence, query, lines):
        rises.add(piece)
    answered = {source: _answered(captures, source, steps) for source, *_ in set(lines.targets)}
    still = np.zeros((len(lines.sids), steps.count), bool)
    targets, scraped = _per_step(evidence, "up", steps, "last")
    up = dict(zip(targets.targets, scraped == 1, strict=True))
    for place, target in enumerate(lines.targets):
        if target in up:
            still[place] = up[target] & answered[target[0]]
    return _frame(rises.table(still), lines, steps)


def last(evidence: Evidence, query: str, span: Window, step_s: float) -> pd.DataFrame:
    """The last sample of each series in each step; NaN where there is none. Shape as above."""
    return values(evidence, query, span, step_s)


def values(
    evidence: Evidence, query: str, span: Window, step_s: float, how: How = "last"
) -> pd.DataFrame:
    """As `last`, or the lowest sample in each step, the highest, or the mean of all."""
    steps = _steps(span, step_s)
    lines, table = _per_step(evidence, query, steps, how)
    return _frame(table, lines, steps)


def labelled(table: pd.DataFrame) -> Iterator[tuple[dict[str, str], pd.Series]]:
    """Each column of a frame with its labels as a dict."""
    for position, labels in enumerate(table.columns.to_list()):
        yield dict(zip(table.columns.names, labels, strict=True)), table.iloc[:, position]


def sight(
    evidence: Evidence,
    span: Window,
    step_s: float,
    counters: Sequence[str] = (),
    captures: Sequence[Capture] | None = None,
) -> pd.DataFrame:
    """In which steps each query has any sample.

    captures: as for `increase`, of all queries.
    Shape: index: UTC start of each step; one boolean column per query that has any. A counter may
           register late or go with a restart: it was seen where a target that has ever counted it
           was scraped, and the question about it answered.
    """
    steps = _steps(span, step_s)
    given = {**_edges(steps), "step_ms": steps.step_ms, "counters": list(counters)}
    found = evidence.sql(_SIGHT, given)
    seen = pd.DataFrame(False, index=_index(steps), columns=sorted(set(found["query"])))
    for (query, source, scraped), rows in found.groupby(["query", "source", "scraped"]):
        column = np.zeros(steps.count, bool)
        column[rows["step"]] = True
        if scraped and captures is not None:
            column &= _answered([c for c in captures if c.query == query], source, steps)
        seen[query] |= column
    return seen


def at_lines(
    evidence: Evidence,
    query: str,
    span: Window,
    on: Mapping[str, str],
    levels: Sequence[str] = (),
    within_s: float = 300.0,
) -> pd.DataFrame:
    """Log lines, each with what a query said last before it.

    on:       which series belong to a line: a column of `log_lines` and the label that must equal
              it, such as {"peer": "peer_id"}. Empty: all of them.
    levels:   only lines of these, such as ("WARN", "ERROR").
    within_s: what is older no longer holds; five minutes is how long Prometheus itself looks back.
    Shape:    in time order, a row for each line and each series that belongs to it: the line's ts,
              level, message, source, file, line and those of `on`; then labels, sampled_at and
              value, missing where no series belongs to it, none had a sample or it went stale.
    Errors:   EvidenceError for a column that log lines do not have.
    """
    agree = "".join(
        f" AND labels[$label_{n}] = lines.{_quoted(column)}" for n, column in enumerate(on)
    )
    own = ", ".join(_quoted(column) for column in dict.fromkeys([*_LINE, *on]))
    given: dict[str, object] = {f"label_{n}": label for n, label in enumerate(on.values())}
    given |= {"query": query, "levels": list(levels), "within_ms": round(within_s * 1000)}
    found = evidence.sql(
        _AT_LINES.format(own=own, agree=agree), {**given, **_edges(_steps(span, span.seconds))}
    )
    # A map for each row would cost more than all the rest.
    rows = evidence.records("SELECT sid, labels FROM series WHERE query = ?", [query])
    labels = {row["sid"]: row["labels"] for row in rows}
    found.insert(found.columns.get_loc("sid"), "labels", found["sid"].map(labels.get))
    return found.drop(columns="sid")


def summed(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Columns added up over every label but those named; NaN only where none has a value.

    Shape: one column per combination of the named labels: plain strings for one name, tuples for
           more; no names give the one column "total". A label that no series has is "".
    """
    columns: dict[str | tuple[str, ...], pd.Series] = {}
    for key, positions in _grouped(table, names):
        columns[_name(key)] = table.iloc[:, positions].sum(axis=1, min_count=1)
    return pd.DataFrame(columns, index=table.index)


def quantile(table: pd.DataFrame, q: float, *names: str) -> pd.DataFrame:
    """The q-quantile in each step, for each combination of the named labels.

    table: increase per step of each bucket, with a label `le`; buckets of one bound are added up.
    Shape: as `summed`. NaN where the buckets cannot tell; see `bucket_quantiles`.
    Unit:  that of the bounds.
    Errors: ValueError where a bound is no number or there is none for +Inf, or for an odd `q`.
    """
    counts = table.to_numpy(float)
    bounds = np.array([float(labels.get("le", "nan")) for labels in _labels(table)])
    columns: dict[str | tuple[str, ...], Floats] = {}
    for key, positions in _grouped(table, names):
        own = bounds[positions]
        uppers = np.unique(own)
        merged = [_added(counts[:, np.array(positions)[own == upper]]) for upper in uppers]
        columns[_name(key)] = bucket_quantiles(uppers, np.array(merged), q)
    return pd.DataFrame(columns, index=table.index)


def _added(values: Floats) -> Floats:
    """Columns added up; NaN where none has a value."""
    if values.shape[1] == 1:
        return values[:, 0]
    return np.where(np.isnan(values).all(axis=1), np.nan, np.nansum(values, axis=1))


def _labels(table: pd.DataFrame) -> list[dict[str, str]]:
    return [dict(zip(table.columns.names, column, strict=True)) for column in table.columns]


def _name(key: tuple[str, ...]) -> str | tuple[str, ...]:
    return key if len(key) > 1 else key[0] if key else "total"


def _grouped(table: pd.DataFrame, names: Sequence[str]) -> list[tuple[tuple[str, ...], list[int]]]:
    """The positions of the columns for each combination of the named labels, in order."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, labels in enumerate(_labels(table)):
        groups.setdefault(tuple(labels.get(name, "") for name in names), []).append(position)
    return sorted(groups.items())


# --- from samples to tables ----------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """The series of one query, by sid."""

    sids: Ints
    names: list[str]  # `source`, and every label that any series has
    keys: list[tuple[str, ...]]  # their values; "" where a series lacks one

    @property
    def targets(self) -> list[Target]:
        told = [dict(zip(self.names[1:], key[1:], strict=True)) for key in self.keys]
        return [
            (key[0], labels.get("job", ""), labels.get("instance", ""))
            for key, labels in zip(self.keys, told, strict=True)
        ]


def _lines(evidence: Evidence, query: str) -> _Lines:
    series = evidence.sql(
        "SELECT sid, source, labels FROM series WHERE query = ? ORDER BY sid", [query]
    )
    labels = [dict(row) for row in series["labels"]]
    names = sorted({name for row in labels for name in row})
    keys = [
        (source, *(row.get(name, "") for name in names))
        for source, row in zip(series["source"], labels, strict=True)
    ]
    return _Lines(series["sid"].to_numpy(np.int64), ["source", *names], keys)


def _per_step(evidence: Evidence, query: str, steps: Steps, how: How) -> tuple[_Lines, Floats]:
    """One value for each series and step; NaN where there is none."""
    lines = _lines(evidence, query)
    given = {"query": query, **_edges(steps), "step_ms": steps.step_ms}
    found = evidence.sql(_VALUES.format(value=_HOW[how]), given)
    table = np.full((len(lines.sids), steps.count), np.nan)
    table[np.searchsorted(lines.sids, found["sid"]), found["step"]] = found["value"]
    return lines, table


def _pieces(evidence: Evidence, query: str, lines: _Lines) -> Iterator[Piece]:
    """The samples of a query but NaN, some two million at a time, by time."""
    blocks = evidence.sql(_BLOCKS, {"query": query, "block_ms": _BLOCK_MS})
    for start_ms, end_ms in _cuts(blocks["block"].tolist(), blocks["samples"].tolist()):
        bounds = {"start_ms": start_ms, "end_ms": end_ms}
        found = evidence.sql(_SAMPLES, {"query": query, **bounds})
        if len(found):
            sid, ts, value = (found[name].to_numpy() for name in ("sid", "ts", "value"))
            yield piece_of(lines.sids, sid, ts, value)


def _cuts(blocks: Sequence[int], samples: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Spans of milliseconds, in order: blocks taken together, or one block cut evenly."""
    together: list[int] = []
    held = 0
    for block, count in zip(blocks, samples, strict=True):
        if together and held + count > _PIECE:
            yield together[0] * _BLOCK_MS, (together[-1] + 1) * _BLOCK_MS
            together, held = [], 0
        if count > _PIECE:
            cuts = np.linspace(0, _BLOCK_MS, -(-count // _PIECE) + 1).astype(int)
            edges = [block * _BLOCK_MS + int(cut) for cut in cuts]
            yield from pairwise(edges)
        else:
            together.append(block)
            held += count
    if together:
        yield together[0] * _BLOCK_MS, (together[-1] + 1) * _BLOCK_MS


def _ups(evidence: Evidence) -> dict[Target, Ints]:
    """When each target was found up, ascending."""
    lines, found = _lines(evidence, "up"), evidence.sql(_UPS)
    edges = np.searchsorted(found["sid"], lines.sids)
    moments: dict[Target, Ints] = {}
    for target, own in zip(lines.targets, np.split(found["ts"], edges)[1:], strict=True):
        moments[target] = np.union1d(moments.get(target, _NONE), own)
    return moments


def _answered(captures: Sequence[Capture] | None, source: str, steps: Steps) -> Bools:
    """In which steps a usable reply of a source speaks of all of their time."""
    begins = steps.begins
    ends = np.minimum(begins + steps.step_ms, steps.end_ms)
    if captures is None:
        return np.ones(steps.count, bool)
    usable = [c.window for c in captures if c.source == source and c.usable]
    if None in usable:  # what has no window speaks of all time
        return np.ones(steps.count, bool)
    spoken = np.zeros(steps.count, np.int64)
    until = begins[0] if steps.count else 0
    for window in sorted(window for window in usable if window):
        start, end = max(_ms(window.start), until), _ms(window.end)
        spoken += np.maximum(np.minimum(ends, end) - np.maximum(begins, start), 0)
        until = max(until, end)
    return spoken >= ends - begins


def _frame(table: Floats, lines: _Lines, steps: Steps) -> pd.DataFrame:
    """Series times steps -> steps times series, in the order of their labels."""
    order = sorted(range(len(lines.keys)), key=lines.keys.__getitem__)
    columns = pd.MultiIndex.from_tuples([lines.keys[n] for n in order], names=lines.names)
    return pd.DataFrame(table[order].T, index=_index(steps), columns=columns)


def _steps(span: Window, step_s: float) -> Steps:
    return Steps(_ms(span.start), _ms(span.end), round(step_s * 1000))


def _index(steps: Steps) -> pd.DatetimeIndex:
    start, step = pd.Timestamp(steps.start_ms, unit="ms", tz="UTC"), pd.Timedelta(milliseconds=1)
    freq = step * steps.step_ms
    return pd.date_range(start, periods=steps.count, freq=freq, name="ts").as_unit("ms")


def _edges(steps: Steps) -> dict[str, int]:
    return {"start_ms": steps.start_ms, "end_ms": steps.end_ms}


def _quoted(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _ms(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


_NONE = np.zeros(0, np.int64)

# A filter on the type that is kept lets Parquet's statistics skip what lies outside.
_WITHIN = """ts >= epoch_ms($start_ms::BIGINT)::TIMESTAMPTZ
         AND ts < epoch_ms($end_ms::BIGINT)::TIMESTAMPTZ"""

_OWN = "FROM samples WHERE sid IN (SELECT sid FROM series WHERE query = $query)"
_NUMBERS = f"{_OWN} AND {_WITHIN} AND NOT isnan(value)"

_BLOCKS = f"""
SELECT epoch_ms(ts) // $block_ms AS block, count(*) AS samples {_OWN} GROUP BY ALL ORDER BY ALL
"""

_SAMPLES = f"SELECT sid, epoch_ms(ts) AS ts, value {_NUMBERS}"

_UPS = """
SELECT sid, epoch_ms(ts) AS ts FROM samples
WHERE sid IN (SELECT sid FROM series WHERE query = 'up') AND value = 1 ORDER BY sid, samples.ts
"""

_STEP = "(epoch_ms(ts) - $start_ms) // $step_ms AS step"

_HOW = {
    "last": "arg_max(value, ts)",
    "min": "min(value)",
    "max": "max(value)",
    "mean": "avg(value)",
}
_VALUES = f"SELECT sid, {_STEP}, {{value}} AS value {_NUMBERS} GROUP BY ALL"

_SIGHT = f"""
WITH counted AS (
    SELECT DISTINCT query, source, labels['job'] AS job, labels['instance'] AS instance
    FROM series SEMI JOIN samples USING (sid)
    WHERE list_contains($counters::VARCHAR[], query)
),
ups AS (
    SELECT source, labels['job'] AS job, labels['instance'] AS instance, {_STEP}
    FROM samples JOIN series USING (sid)
    WHERE query = 'up' AND value = 1 AND {_WITHIN} GROUP BY ALL
)
SELECT query, source, {_STEP}, false AS scraped
FROM samples JOIN series USING (sid) WHERE {_WITHIN} GROUP BY ALL
UNION ALL
SELECT query, source, step, true FROM counted JOIN ups USING (source, job, instance) GROUP BY ALL
UNION ALL
SELECT query, source, {_STEP}, false
FROM (SELECT query, source, ts::TIMESTAMPTZ AS ts FROM records) WHERE {_WITHIN} GROUP BY ALL
"""

_LINE = ("ts", "level", "message", "source", "file", "line")

_AT_LINES = """
WITH lines AS (
    SELECT {own} FROM log_lines
    WHERE ts >= epoch_ms($start_ms::BIGINT)::TIMESTAMPTZ
      AND ts < epoch_ms($end_ms::BIGINT)::TIMESTAMPTZ
      AND (len($levels::VARCHAR[]) = 0 OR list_contains($levels::VARCHAR[], level))
),
paired AS (SELECT lines.*, sid FROM lines LEFT JOIN series ON query = $query{agree}),
said AS (
    SELECT * FROM (SELECT sid, ts, value FROM samples UNION ALL SELECT sid, ts, NULL FROM stale)
    WHERE sid IN (SELECT sid FROM series WHERE query = $query)
      AND ts >= epoch_ms($start_ms::BIGINT - $within_ms)::TIMESTAMPTZ
      AND ts < epoch_ms($end_ms::BIGINT)::TIMESTAMPTZ
),
joined AS (
    SELECT paired.* EXCLUDE (sid), coalesce(paired.sid, 0) AS sid, said.ts AS sampled_at, value,
           value IS NOT NULL AND epoch_ms(paired.ts) - epoch_ms(said.ts) <= $within_ms AS holds
    FROM paired ASOF LEFT JOIN said ON paired.sid = said.sid AND paired.ts >= said.ts
)
SELECT * EXCLUDE (sampled_at, value, holds), CASE WHEN holds THEN sampled_at END AS sampled_at,
       CASE WHEN holds THEN value END AS value
FROM joined ORDER BY ts, source, file, line, sid
"""
