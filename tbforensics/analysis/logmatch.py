"""Which log lines go with which counts: same key, near in time, grouped by message template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from drain3.drain import Drain

_LONGEST = 500  # characters of a message that tell its template
_MOST_TEMPLATES = 1_000
_MASKED = re.compile(
    r"\b0x[0-9a-f]+\b|\b[0-9a-f]{8,}\b|\b[1-9A-HJ-NP-Za-km-z]{40,}\b|\d+(?:\.\d+)*", re.IGNORECASE
)
_SOME = "<*>"


@dataclass(frozen=True)
class LogMatch:
    """One message template and how it goes with the counts.

    lines:       how many lines have it. keys: how many different keys they name.
    matched:     counts in steps that have such a line of the same key in them or near them.
    share:       matched over all counts, 0 to 1.
    correlation: Spearman's, of lines per step with counts per step; NaN where either stands still.
    lead_s:      from the first such line to the first count; negative when the counts came first.
    example:     position of the first such line in the frame of lines.
    """

    template: str
    lines: int
    keys: int
    matched: float
    share: float
    correlation: float
    lead_s: float
    correlation_ids: tuple[str, ...]
    example: int


@dataclass(frozen=True)
class LogMatches:
    """share: counts that any line explains, over all counts; matches: best first."""

    share: float
    share_by_time: float
    matches: tuple[LogMatch, ...]


def templates(messages: pd.Series) -> pd.Series:
    """The template of each message, its variable parts as `<*>`.

    Shape:  n texts in, n texts out, same index; a message that is no text has the template "".
    Source: He, Zhu, Zheng and Lyu, "Drain: an online log parsing approach with fixed depth
            tree", ICWS 2017, in drain3; numbers, hex and base58 are masked first. Different
            messages are mined once each, in sorted order, so that the order of lines does not
            change a template.
    """
    masked = messages.fillna("").astype(str).str.slice(0, _LONGEST)
    masked = masked.str.replace(_MASKED, _SOME, regex=True)
    miner = Drain(max_clusters=_MOST_TEMPLATES)
    clusters = {text: miner.add_log_message(text)[0] for text in sorted(set(masked))}
    return masked.map({text: c.get_template() for text, c in clusters.items()})


def match_logs(
    counts: pd.DataFrame, lines: pd.DataFrame, *, key: str, step_s: float, near_s: float
) -> LogMatches:
    """How far log lines explain counts, by the same key and near in time.

    Shape:  counts: increases per step, UTC index of step starts, one column per key. lines: rows
            with `ts`, `message`, the column `key`, and perhaps `correlation_id`. A line without a
            key, or a time, matches nothing by key.
    Unit:   step_s: width of a step. near_s: seconds before a step's start or after its end that
            are still near.
    """
    total = float(counts.to_numpy(dtype=float, na_value=0.0).sum())
    step, near = pd.Timedelta(seconds=step_s), pd.Timedelta(seconds=near_s)
    timed = lines[lines["ts"].notna()]
    if timed.empty or counts.empty or not total:
        return LogMatches(0.0, 0.0, ())
    found = []
    for template, group in timed.groupby(templates(timed["message"]), sort=True):
        matched = _matched(counts, group, key, step, near)
        found.append(
            LogMatch(
                template=str(template),
                lines=len(group),
                keys=int(group[key].nunique()),
                matched=matched,
                share=matched / total,
                correlation=_correlation(counts, group),
                lead_s=_lead_s(counts, group),
                correlation_ids=tuple(_ids(group)),
                example=int(lines.index.get_indexer([group.index[0]])[0]),
            )
        )
    found.sort(key=lambda m: (-m.share, -np.nan_to_num(m.correlation), -m.lines, m.template))
    together = counts.sum(axis=1, min_count=1).to_frame("all")
    anyone = timed.assign(**{key: "all"})
    return LogMatches(
        share=_matched(counts, timed, key, step, near) / total,
        share_by_time=_matched(together, anyone, key, step, near) / total,
        matches=tuple(found),
    )


def _matched(
    counts: pd.DataFrame, lines: pd.DataFrame, key: str, step: pd.Timedelta, near: pd.Timedelta
) -> float:
    """Counts in steps that have a line of the same key in them or near them."""
    total = 0.0
    for name, group in lines.groupby(key):
        if name in counts.columns:
            times = pd.DatetimeIndex(group["ts"]).sort_values()
            index = counts.index.as_unit(times.unit)
            has_line = times.searchsorted(index - near) < times.searchsorted(index + step + near)
            total += float(counts[name][has_line].sum())
    return total


def _correlation(counts: pd.DataFrame, lines: pd.DataFrame) -> float:
    steps = counts.index.as_unit("ns")
    at = steps.searchsorted(pd.DatetimeIndex(lines["ts"]).as_unit("ns"), side="right") - 1
    per_step = np.bincount(at[at >= 0], minlength=len(steps))[: len(steps)]
    pair = pd.DataFrame({"lines": per_step, "counts": counts.sum(axis=1).to_numpy()}).rank()
    if pair["lines"].nunique() < 2 or pair["counts"].nunique() < 2:
        return float("nan")
    return float(pair["lines"].corr(pair["counts"]))


def _lead_s(counts: pd.DataFrame, lines: pd.DataFrame) -> float:
    counted = counts.index[counts.sum(axis=1) > 0]
    return float((counted[0] - lines["ts"].min()).total_seconds()) if len(counted) else float("nan")


def _ids(lines: pd.DataFrame) -> Iterator[str]:
    if "correlation_id" in lines.columns:
        yield from sorted(set(lines["correlation_id"].dropna()) - {""})[:5]
