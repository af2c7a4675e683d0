"""From wide frames to the rows of a chart: ranked, thinned, rounded, with gaps kept."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from tbforensics.model import Moment, Window, utc_text
from tbforensics.report_page.text import number, visible

SERIES_LIMIT = 12  # the largest eleven, and all others as one
POINTS_LIMIT = 4000  # drawn of each series: four for each of a thousand columns of pixels
ROWS_LIMIT = 12_000  # drawn of all series, or of a strip
POINTED_LIMIT = 4000  # that the pointer finds, and half of it where there are more: finding the
# nearest costs a browser ten times what drawing does
MOMENTS_LIMIT = 2000

Positions = npt.NDArray[np.intp]


def long_rows(
    wide: pd.DataFrame | pd.Series, *, aligned: bool
) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Rows `t` (ms since 1970, UTC), `v`, `series`; the names, largest first; and notes.

    aligned: all series keep the same times, as a stack needs it; the thinning looks at the total.
    A gap is one row whose `v` is missing. Series without any sample are left out and noted.
    Errors: ValueError when the index has no time zone.
    """
    frame = in_utc(wide.to_frame() if isinstance(wide, pd.Series) else wide).astype(float)
    frame.columns = pd.Index(_names(frame))
    notes: list[str] = []
    if np.isinf(frame.to_numpy()).any():
        frame = frame.replace([np.inf, -np.inf], np.nan)
        notes.append("infinite values are not drawn")
    full = frame.loc[:, frame.notna().any()]
    if full.shape[1] < frame.shape[1]:
        notes.append(f"{frame.shape[1] - full.shape[1]:,} series without samples not drawn")
    ranked = largest(full)
    if ranked.shape[1] < full.shape[1]:
        notes.append(f"the largest {SERIES_LIMIT - 1} of {full.shape[1]:,} series")
    limit = min(POINTS_LIMIT, ROWS_LIMIT // max(1, ranked.shape[1]))
    total = kept_positions(ranked.sum(axis=1, min_count=1).to_numpy(), limit) if aligned else None
    parts = [_series_rows(ranked[name], str(name), total, limit) for name in ranked.columns]
    known, shown = int(ranked.count().sum()), sum(int(part["v"].count()) for part in parts)
    if shown < known:
        which = "extremes of the sum" if total is not None and len(parts) > 1 else "extremes"
        notes.append(f"drawn from {known:,} points, {shown:,} shown; {which} kept")
    empty = pd.DataFrame({"t": [], "v": [], "series": []})
    return (pd.concat(parts, ignore_index=True) if parts else empty), list(ranked.columns), notes


def _series_rows(
    column: pd.Series, name: str, positions: Positions | None, limit: int
) -> pd.DataFrame:
    values = column.to_numpy(dtype=float)
    if positions is None:
        positions = kept_positions(values, limit)
    return pd.DataFrame(
        {
            "t": milliseconds(pd.DatetimeIndex(column.index))[positions],
            "v": pd.Series([rounded(v) for v in values[positions]], dtype=object),
            "series": name,
        }
    )


def sentence(kind: str, rows: pd.DataFrame, names: list[str], unit: str) -> str:
    """The chart in words, for those who cannot see it."""
    seen = rows[rows["v"].notna()]
    at = int(np.argmax(seen["v"].to_numpy(dtype=float)))
    times = seen["t"].to_numpy()
    first, last, top = (_moment(int(t)) for t in (times.min(), times.max(), times[at]))
    named = f"{len(names)} series" if len(names) > 1 else names[0]
    highest = f"{number(float(seen['v'].iloc[at]))} ({seen['series'].iloc[at]}) at {top}"
    return f"{kind} of {unit_word(unit)}: {named}, {first} to {last}. Highest {highest}."


def _moment(ms: int) -> str:
    return utc_text(pd.Timestamp(ms, unit="ms", tz="UTC").to_pydatetime())


def isolated(rows: pd.DataFrame) -> pd.DataFrame:
    """The samples with a gap on both sides: a line would not show them."""
    seen = rows["v"].notna()
    beside = seen.groupby(rows["series"])
    before, after = beside.shift(1, fill_value=False), beside.shift(-1, fill_value=False)
    return rows[seen & ~before & ~after]


def kept_positions(values: npt.NDArray[np.float64], limit: int = POINTS_LIMIT) -> Positions:
    """Which samples to draw: all, or the first, lowest, highest and last of each of even spans.

    No line is drawn over a gap: where samples are missing between two that are drawn, the first
    missing one is kept too. For display only: a finding never sees what is kept here.
    Source: Jugel et al., "M4: a visualization-oriented time series data aggregation", PVLDB 7(10),
            2014.
    """
    n = len(values)
    seen = np.isfinite(values)
    gaps = np.flatnonzero(~seen & np.concatenate([[False], seen[:-1]]))
    kept = np.flatnonzero(seen)
    if len(kept) > limit:
        span = kept * max(1, limit // 4) // n
        begins = np.flatnonzero(np.concatenate([[True], span[1:] != span[:-1]]))
        ends = np.append(begins[1:], len(kept)) - 1
        by_value = np.lexsort((values[kept], span))
        chosen = np.concatenate([begins, ends, by_value[begins], by_value[ends]])
        kept = kept[np.unique(chosen)]
        _, first = np.unique(np.searchsorted(kept, gaps), return_index=True)
        gaps = gaps[first]
    return np.union1d(kept, gaps)


def pointed(rows: pd.DataFrame, *, aligned: bool) -> pd.DataFrame:
    """Those of the rows of `long_rows` that the pointer finds: thinned where they are many."""
    if len(rows) <= POINTED_LIMIT:
        return rows
    series = rows.groupby("series", sort=False)
    limit = POINTED_LIMIT // 2 // series.ngroups
    if aligned:
        total = rows["v"].astype(float).groupby(rows["t"]).sum(min_count=1)
        return rows[rows["t"].isin(total.index[kept_positions(total.to_numpy(), limit)])]
    parts = [part.iloc[kept_positions(part["v"].to_numpy(float), limit)] for _, part in series]
    return pd.concat(parts)


def largest(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns, largest first (sum of absolute values); beyond eleven they are summed in one."""
    order = np.argsort(-frame.abs().sum().to_numpy(), kind="stable")
    ranked = frame.iloc[:, order]
    if ranked.shape[1] <= SERIES_LIMIT:
        return ranked
    rest = ranked.iloc[:, SERIES_LIMIT - 1 :]
    kept = ranked.iloc[:, : SERIES_LIMIT - 1].copy()
    kept[others(rest.shape[1])] = rest.sum(axis=1, min_count=1)
    return kept


def others(count: int) -> str:
    return f"all others ({count:,}), summed"


def is_others(name: str) -> bool:
    return name.startswith("all others (")


def unit_word(unit: str) -> str:
    return "value" if unit in ("", "1") else visible(unit, limit=40)


def label(column: Hashable) -> str:
    """The name of a column: its labels, with a dot between; a label without value is a dash."""
    parts = column if isinstance(column, tuple) else (column,)
    return visible(" · ".join(_word(part) for part in parts), limit=80)


def _word(part: object) -> str:
    missing = part is None or part == "" or (isinstance(part, float) and math.isnan(part))
    return "–" if missing else visible(part, limit=80)


def unique(names: list[str]) -> list[str]:
    """The same names, told apart where two became equal by being cut."""
    counts: dict[str, int] = {}
    result = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        result.append(name if counts[name] == 1 else f"{name} #{counts[name]}")
    return result


def in_utc(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame in time order, its index in UTC."""
    index = frame.index
    if len(index) == 0:
        return frame.set_axis(pd.DatetimeIndex([], tz="UTC"))
    if not isinstance(index, pd.DatetimeIndex) or index.tz is None:
        raise ValueError("a chart needs an index of times with a zone")
    return frame.set_axis(index.tz_convert("UTC")).sort_index(kind="stable")


def milliseconds(index: pd.DatetimeIndex) -> npt.NDArray[np.int64]:
    return np.asarray(index.as_unit("ms").asi8)


def rounded(value: float) -> float | int | None:
    """Nine digits that count: more than a chart shows, less than machines differ by."""
    if not math.isfinite(value):
        return None
    short = float(f"{value:.9g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def ranked_bars(table: pd.DataFrame, value: str, name: str, limit: int) -> pd.DataFrame:
    """Rows `series`, `v`, `text`, the longest first; what is beyond `limit` summed in the last."""
    known = table[[name, value]].dropna(subset=[value])
    known = known.iloc[np.argsort(-known[value].abs().to_numpy(dtype=float), kind="stable")]
    cut = limit - 1 if len(known) > limit else len(known)
    names = unique([visible(word, limit=80) for word in known[name].iloc[:cut]])
    amounts = [float(amount) for amount in known[value].iloc[:cut]]
    if cut < len(known):
        names.append(others(len(known) - cut))
        amounts.append(float(known[value].iloc[cut:].sum()))
    return pd.DataFrame(
        {
            "series": names,
            "v": pd.Series([rounded(amount) for amount in amounts], dtype=object),
            "text": [number(amount) for amount in amounts],
        }
    )


def spans_of_sight(seen: pd.DataFrame) -> tuple[pd.DataFrame, list[str], list[str]]:
    """Rows `query`, `t`, `end` (ms), `state`, one per run of equal state; the names; and notes."""
    frame = in_utc(seen)
    ends = step_ends(pd.DatetimeIndex(frame.index))
    spans, notes = _spans(frame, ends), list[str]()
    if len(spans) > ROWS_LIMIT:
        together = math.ceil(frame.size / ROWS_LIMIT)
        notes.append(f"{together:,} steps drawn as one, not seen where any of them was not")
        place = np.arange(len(frame)) // together
        lowest = frame.apply(pd.to_numeric, errors="coerce").groupby(place).min()
        last = np.minimum(np.arange(1, len(lowest) + 1) * together, len(frame)) - 1
        spans = _spans(lowest.set_axis(frame.index[::together]), ends[last])
    return pd.DataFrame(spans, columns=["query", "t", "end", "state"]), _names(frame), notes


def _spans(frame: pd.DataFrame, ends: npt.NDArray[np.int64]) -> list[dict[str, object]]:
    named = zip(_names(frame), frame.items(), strict=True)
    return [{"query": name, **span} for name, (_, column) in named for span in _runs(column, ends)]


def _names(frame: pd.DataFrame) -> list[str]:
    return unique([label(column) for column in frame.columns])


def _runs(column: pd.Series, ends: npt.NDArray[np.int64]) -> list[dict[str, object]]:
    starts = milliseconds(pd.DatetimeIndex(column.index))
    share = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
    state = np.where(np.isnan(share), "", np.where(share > 0, "seen", "not seen"))
    if not len(state):
        return []
    breaks = np.flatnonzero(
        np.concatenate([[True], (state[1:] != state[:-1]) | (starts[1:] != ends[:-1])])
    )
    lasts = np.concatenate([breaks[1:], [len(state)]]) - 1
    return [
        {"t": int(starts[a]), "end": int(ends[b]), "state": str(state[a])}
        for a, b in zip(breaks, lasts, strict=True)
        if state[a]
    ]


def step_ends(index: pd.DatetimeIndex) -> npt.NDArray[np.int64]:
    """Where each step ends: at the next start, or one usual step on when that is nearer."""
    starts = milliseconds(index)
    if len(starts) < 2:
        return starts + 60_000
    usual = int(np.median(np.diff(starts)))
    return np.asarray(np.minimum(np.append(starts[1:], starts[-1] + usual), starts + usual))


def epoch_ms(moment: datetime) -> int:
    """Errors: ValueError when the time has no zone."""
    if moment.tzinfo is None:
        raise ValueError(f"a chart needs a time with a zone: {moment.isoformat()}")
    return round(moment.timestamp() * 1000)


def days_shown(rows: pd.DataFrame | None, windows: Iterable[Window | None]) -> str:
    """The day that an axis shows, or its first and its last."""
    times = [] if rows is None or rows.empty else [int(rows["t"].min()), int(rows["t"].max())]
    for window in windows:
        times += [epoch_ms(window.start), epoch_ms(window.end) - 1] if window else []
    ends = (min(times), max(times)) if times else ()
    days = (f"{pd.Timestamp(ms, unit='ms'):%Y-%m-%d}" for ms in ends)
    return " to ".join(dict.fromkeys(days))


def near(known: list[Moment], window: Window | None) -> tuple[list[Moment], list[str]]:
    """The moments to draw, and what to say of the others."""
    wide = window and window.widened(before_s=window.seconds, after_s=window.seconds)
    close = [moment for moment in known if wide is None or moment.time in wide]
    notes = []
    if len(close) < len(known):
        notes.append(f"{len(known) - len(close):,} further off are not drawn")
    if len(close) > MOMENTS_LIMIT:
        notes.append(f"the first {MOMENTS_LIMIT:,} of {len(close):,}")
    return close[:MOMENTS_LIMIT], notes


def moment_row(moment: Moment) -> dict[str, object]:
    at, spread = epoch_ms(moment.time), round(1000 * moment.uncertainty_s)
    return {
        "t": at,
        "early": at - spread,
        "late": at + spread,
        "origin": visible(moment.origin, limit=20),
        "what": visible(moment.text, limit=160),
        "source": visible(moment.source, limit=80),
    }
