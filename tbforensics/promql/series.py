"""The sealed samples of one Prometheus, as an evaluator wants them: arrays, series by series."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tbforensics.evidence import Evidence

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Labels = tuple[tuple[str, str], ...]  # sorted by name; the metric is `__name__`

_ON_TIME = 0.9  # of a series' samples share their moment with `up`: it is scraped, not pushed


@dataclass(frozen=True)
class Series:
    """One series: milliseconds ascending, values, and the moments at which it was found gone."""

    labels: Labels
    times: Ints
    values: Floats
    ends: Ints = field(default_factory=lambda: np.empty(0, np.int64))


Samples = Mapping[str, Sequence[Series]]  # by metric


def labels_of(given: Mapping[str, str] | Iterable[tuple[str, str]]) -> Labels:
    """Sorted, without empty values: to Prometheus an empty label is none."""
    return tuple(sorted((k, v) for k, v in dict(given).items() if v))


def sizes(evidence: Evidence, source: str, queries: Sequence[str]) -> dict[str, int]:
    """How many samples the named queries brought of each metric."""
    given = {"source": source, "queries": list(queries)}
    return {str(row["metric"]): int(row["n"]) for row in evidence.records(_SIZES, given)}


def load(
    evidence: Evidence, source: str, queries: Sequence[str], metrics: Iterable[str]
) -> dict[str, list[Series]]:
    """Every series of the named metrics that the named queries brought from a source, by metric.

    Two queries may have brought the same series; it is one here. Staleness markers never leave a
    server in raw samples, so they are put back where they must have been: at the first scrape of
    the target (a sample of its `up`) that did not find the series any more.
    """
    given = {"source": source, "queries": list(queries), "metrics": sorted({*metrics, "up"})}
    named = {
        row["sid"]: labels_of([("__name__", row["metric"]), *dict(row["labels"]).items()])
        for row in evidence.records(_SERIES, given)
    }
    table = evidence.sql(_SAMPLES, given)
    sids = table["sid"].to_numpy(np.int64)
    times, values = table["ms"].to_numpy(np.int64), table["value"].to_numpy(np.float64)
    edges = [0, *(np.flatnonzero(np.diff(sids)) + 1).tolist(), len(sids)] if len(sids) else [0]
    pieces: dict[Labels, list[tuple[Ints, Floats]]] = {}
    for first, last in pairwise(edges):
        piece = (times[first:last], values[first:last])
        pieces.setdefault(named[int(sids[first])], []).append(piece)
    merged = {labels: _merged(parts) for labels, parts in pieces.items()}
    ups = {_target(dict(k)): t for k, (t, _) in merged.items() if dict(k).get("__name__") == "up"}
    found: dict[str, list[Series]] = {}
    for labels, (moments, readings) in sorted(merged.items(), key=lambda pair: pair[0]):
        name = dict(labels).get("__name__", "")
        scrapes = ups.get(_target(dict(labels)))
        ends = np.empty(0, np.int64) if scrapes is None else gone(moments, scrapes)
        found.setdefault(name, []).append(Series(labels, moments, readings, ends))
    return found


def gone(times: Ints, scrapes: Ints) -> Ints:
    """Moments of the scrapes that were the first not to find a series: where it went stale.

    None at all for a series with times of its own: nothing tells when that was found gone.
    """
    if not len(times) or not len(scrapes):
        return np.empty(0, np.int64)
    if np.isin(times, scrapes).mean() < _ON_TIME:
        return np.empty(0, np.int64)
    place = np.searchsorted(scrapes, times, side="right")
    following = np.append(times[1:], np.iinfo(np.int64).max)
    missed = (place < len(scrapes)) & (scrapes[np.minimum(place, len(scrapes) - 1)] < following)
    return np.asarray(scrapes[place[missed]])


def _target(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels.get("job", ""), labels.get("instance", "")


def _merged(parts: list[tuple[Ints, Floats]]) -> tuple[Ints, Floats]:
    if len(parts) == 1:
        return parts[0]
    times = np.concatenate([part[0] for part in parts])
    values = np.concatenate([part[1] for part in parts])
    unique, first = np.unique(times, return_index=True)
    return unique, values[first]


_SERIES = """
SELECT sid, metric, labels FROM series
WHERE source = $source AND list_contains($queries, query) AND list_contains($metrics, metric)
ORDER BY sid
"""
_SAMPLES = """
SELECT sid, epoch_ms(ts) AS ms, value FROM samples JOIN series USING (sid)
WHERE source = $source AND list_contains($queries, query) AND list_contains($metrics, metric)
ORDER BY sid, ts
"""
_SIZES = """
SELECT metric, count(*) AS n FROM samples JOIN series USING (sid)
WHERE source = $source AND list_contains($queries, query) GROUP BY metric ORDER BY metric
"""
