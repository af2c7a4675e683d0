"""What Njord Quant writes beside its portfolio: halts, alert rules, log lines without a time.

Facts are those of blackforestdev/njord-quant at 5a621af. Its exporter forwards what a site
registered and stamps nothing; its risk engine logs no denial; most of its alert rules look at
metrics that nothing in the repository emits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pandas as pd

from tbforensics.frames import labelled
from tbforensics.model import Frames, Json, utc_text
from tbforensics.trading.portfolio import decimal_of

HALT_FILE = "njord.trading.halt"  # /var/run/...: its being there is the state, its mtime the trip
_DENIALS = ("kill-switch", "halted")  # of the risk engine, of the broker


def moment(ts_ns: int) -> datetime:
    """Unix nanoseconds, cut to the millisecond that every time of a finding is given in."""
    seconds, rest = divmod(ts_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1_000_000 * 1000)


def second(at: int | datetime) -> str:
    """A moment, or unix nanoseconds, cut to the second: for tables that people read."""
    return utc_text((moment(at) if isinstance(at, int) else at).replace(microsecond=0))


def text(value: Json, name: str) -> str:
    """A field of a record when it is text; "" otherwise."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, str) else ""


def timed(table: pd.DataFrame) -> Iterator[tuple[int, Mapping[str, Json], str]]:
    """Unix ns, value and `file:line` of the records that have a time, in time order."""
    for row in table[table["ts"].notna()].to_dict("records"):
        yield int(row["ts"].as_unit("ns").value), row["value"], f"{row['file']}:{row['line']}"


# --- what the exporter says ----------------------------------------------------------------


def by_strategy(table: pd.DataFrame, label: str = "strategy_id") -> pd.DataFrame:
    """One column per strategy: the largest of the series that name it, whoever scraped them.

    Series without the label are placeholders that each restart prints before there is a value.
    One exporter is often scraped by two jobs, so a sum would count it twice.
    Unit: as given. A percent below zero is one by another sign: take `abs()` first.
    """
    parts: dict[str, list[pd.Series]] = {}
    for labels, column in labelled(table):
        if name := labels.get(label, ""):
            parts.setdefault(name, []).append(column)
    columns = {name: pd.concat(parts[name], axis=1).max(axis=1) for name in sorted(parts)}
    return pd.DataFrame(columns, index=table.index)


def still_since(column: pd.Series) -> pd.Timestamp | None:
    """The step from which a series never changed again; None when it changed at its end."""
    known = column.dropna()
    changed = known.index[known.ne(known.shift())]
    return changed[-1] if len(changed) and changed[-1] != known.index[-1] else None


# --- halts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sign:
    """One thing that shows trading was halted at a moment, by `file` or by `redis`.

    width_s: how much earlier it may have been; of a counter `ts_ns` is the end of the step.
    """

    ts_ns: int
    by: str
    what: str
    query: str
    count: int = 1
    width_s: float = 0.0


def halts(frames: Frames) -> list[Sign]:
    """Every sign of a halt, in time order.

    No journal tells of the switch itself. The file's mtime is when it was last tripped, and
    clearing destroys it; the Redis key keeps no time at all; the counter of trips counts denied
    intents. So the first sign may be later than the trip, never earlier.
    """
    found = []
    for file in halt_files(frames["journal_files"]):
        ts_ns = pd.Timestamp(file["modified"]).as_unit("ns").value
        what = "the halt file was last touched"
        found.append(Sign(int(ts_ns), "file", what, "journal_files"))
    for ts_ns, value, _ in timed(frames["app"]):
        if text(value, "event") == "live_halted":
            what = "intent refused (live_halted)"
            found.append(Sign(ts_ns, text(value, "source"), what, "app"))
    for ts_ns, value, _ in timed(frames["bus"]):
        told = value.get("payload")
        if not isinstance(told, Mapping) or told.get("allowed") is not False:
            continue
        if text(told, "reason") in _DENIALS:
            by = text(told.get("caps"), "source")
            found.append(Sign(ts_ns, by, f"intent denied ({text(told, 'reason')})", "bus"))
    for by, column in by_strategy(frames["killswitch_trips"], "source").items():
        for step, count in column[column > 0].items():
            what = "intents denied (counter)"
            ns = int(pd.Timestamp(step).as_unit("ns").value) + round(frames.step_s * 1e9)
            found.append(Sign(ns, str(by), what, "killswitch_trips", round(count), frames.step_s))
    return sorted(found, key=lambda sign: (sign.ts_ns, sign.query))


def stretches(signs: Sequence[Sign], gap_s: float) -> list[list[Sign]]:
    """Signs of one halt each: those further apart than `gap_s` belong to two."""
    found: list[list[Sign]] = []
    for sign in signs:
        if found and sign.ts_ns - found[-1][-1].ts_ns <= gap_s * 1e9:
            found[-1].append(sign)
        else:
            found.append([sign])
    return found


def halt_files(files: pd.DataFrame) -> Iterator[Mapping[str, Json]]:
    """The halt files that were there when the journals were listed, with their mtime."""
    for value in files["value"] if len(files) else ():
        named = [value.get("halt_file")]
        named += [
            file
            for file in value.get("files") or ()
            if str(file.get("file", "")).rpartition("/")[2] == HALT_FILE
        ]
        for file in named:
            if isinstance(file, Mapping) and file.get("there", True) and file.get("modified"):
                yield file


# --- log lines without a time --------------------------------------------------------------


@dataclass(frozen=True)
class Bounded:
    """A log line with when it was written: exactly, or between its neighbours in the file.

    after_ns, before_ns: None where no neighbour with a time is known on that side.
    """

    value: Mapping[str, Json]
    place: str
    after_ns: int | None
    before_ns: int | None


def bounded(app: pd.DataFrame) -> list[Bounded]:
    """Every line of `app.ndjson` in the order of the file.

    Services that log in the standard way write no time and lose their extra fields; they share
    the file with those that do, so a line lies between the nearest ones that have a time.
    """
    found = []
    for (_, name), lines in app.sort_values(["source", "file", "line"]).groupby(["source", "file"]):
        ns = [None if pd.isna(t) else int(t.as_unit("ns").value) for t in lines["ts"]]
        after, before = _filled(ns), _filled(ns[::-1])[::-1]
        rows = zip(lines["value"], lines["line"], after, before, strict=True)
        found += [Bounded(value, f"{name}:{line}", a, b) for value, line, a, b in rows]
    return found


def _filled(ns: Sequence[int | None]) -> list[int | None]:
    last: int | None = None
    return [last := t if t is not None else last for t in ns]


# --- orders --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedIds:
    """How far `client_order_id` tells orders apart: it is the first 20 letters of the intent id.

    shared: ids that more than one order or acknowledgement carries. pairs: order and
    acknowledgement with the same id, of which `near` lie within so many seconds of each other
    and `certain` have no second partner there.
    """

    orders: int
    acks: int
    ids: int
    shared: int
    pairs: int
    near: int
    certain: int


def shared_ids(orders: pd.DataFrame, acks: pd.DataFrame, near_s: float) -> SharedIds:
    """Orders joined with acknowledgements by their id, many to many, then by time."""
    named: dict[str, tuple[list[int], list[int]]] = {}
    for side, table in enumerate((orders, acks)):
        for ts_ns, value, _ in timed(table):
            if name := text(value, "client_order_id"):
                named.setdefault(name, ([], []))[side].append(ts_ns)
    pairs = near = certain = 0
    width = round(near_s * 1e9)
    for sent, answered in named.values():
        asked, told = np.sort(np.array(sent, "int64")), np.sort(np.array(answered, "int64"))
        pairs += len(asked) * len(told)
        first = told.searchsorted(asked)
        acks_near = told.searchsorted(asked + width, "right") - first
        orders_near = asked.searchsorted(told, "right") - asked.searchsorted(told - width)
        near += int(acks_near.sum())
        alone = first[acks_near == 1]
        certain += int((orders_near[alone] == 1).sum())
    return SharedIds(
        orders=sum(len(asked) for asked, _ in named.values()),
        acks=sum(len(told) for _, told in named.values()),
        ids=len(named),
        shared=sum(len(asked) > 1 or len(told) > 1 for asked, told in named.values()),
        pairs=pairs,
        near=near,
        certain=certain,
    )


# --- prices --------------------------------------------------------------------------------


def prices(trades: pd.DataFrame, bars: pd.DataFrame) -> list[tuple[int, str, Decimal]]:
    """What the market said: each trade, and each bar's close at its close, in time order.

    A bar's low lies somewhere within it, so it has no moment and is not among them.
    """
    found = []
    for table, field in ((trades, "price"), (bars, "close")):
        for ts_ns, value, _ in timed(table):
            price, symbol = decimal_of(value.get(field)), text(value, "symbol")
            if price is not None and symbol:
                found.append((ts_ns, symbol, price))
    return sorted(found)
