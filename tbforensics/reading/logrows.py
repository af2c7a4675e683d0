"""One row of `log_lines` from a JSON object, whoever wrote it.

Whatever is not a column of its own stays in `fields`, so a line loses nothing but its order.
Log text is evidence of unknown origin: control characters, colours and markup stay as they came.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple

import orjson

from tbforensics.model import Json
from tbforensics.theblock import peer_hex

_INT64 = range(-(1 << 63), 1 << 63)
_LATEST_MS = 253_402_300_799_999  # the end of year 9999
_EARLIEST_MS = -62_135_596_800_000

TIMES = (
    *("timestamp", "ts", "time", "@timestamp", "timestamp_ns", "ts_ns", "timestamp_ms", "ts_ms"),
    "ts_close",  # a bar is known when it closes
)
_LEVELS = ("level", "severity", "lvl")
MESSAGES = ("message", "msg", "event")
_CORRELATIONS = ("correlation_id", "correlation")
_PEERS = ("peer", "peer_id")
_TXS = ("tx", "tx_hash")
_BLOCKS = ("block", "block_height")
_TARGETS = ("target", "module", "logger")
_ONE_LEVEL = {"WARNING": "WARN", "ERR": "ERROR", "CRIT": "CRITICAL"}


class LineError(ValueError):
    """Why a line cannot be read, in words."""


class Row(NamedTuple):
    """The columns of `log_lines` that a line itself can fill. `ts_ms` is unix milliseconds."""

    id: int | None
    ts_ms: int | None
    level: str | None
    message: str | None
    correlation_id: str | None
    peer: str | None
    tx: str | None
    block: int | None
    target: str | None
    fields: str


@dataclass(frozen=True)
class Clock:
    """How to read a time that does not say everything.

    zone: the zone of times without one; None leaves such lines without a time.
    near: for formats without a year, the year is taken so that the line is nearest to this.
    """

    zone: tzinfo | None = None
    near: datetime | None = None


UNKNOWN_CLOCK = Clock()


# --- JSON --------------------------------------------------------------------------------

# orjson reads whole numbers beyond 64 bits as floats; the standard parser keeps every digit.
_LONG_NUMBER = re.compile(rb"[:,\[\s-]\d{20,}")


def parse(line: bytes) -> Json:
    """The JSON value of a line. Of a name given twice the last value counts.

    What strict JSON forbids and loggers write all the same is kept as text: NaN and infinities.
    Half a surrogate pair becomes `?`. Errors: LineError.
    """
    if not _LONG_NUMBER.search(line):
        try:
            return orjson.loads(line)
        except orjson.JSONDecodeError:
            pass  # the standard parser may still read it, and names the reason if not
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=str, parse_float=_finite)
        text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise LineError(f"invalid UTF-8 at its byte {error.start}") from None
    except RecursionError:
        raise LineError("it is nested too deep") from None
    except ValueError as error:
        raise LineError(f"not JSON: {error}"[:200]) from None


def _finite(digits: str) -> float | str:
    number = float(digits)
    return number if math.isfinite(number) else digits


def row_of_json(value: Json, clock: Clock = UNKNOWN_CLOCK) -> Row:
    """A row from a JSON object: of the log store, of tracing, of structlog, of a journal.

    Names are looked for at the top and then under `fields`. A value of an unexpected type stays
    in `fields` under its name and its column is null; a time that cannot be read is an error,
    because the line would silently leave its place.
    """
    if not isinstance(value, dict):
        raise LineError(f"it is {_KINDS.get(type(value), 'a number')}, not an object")
    rest = {name: item for name, item in value.items() if item is not None}
    if isinstance(rest.get("fields"), dict):
        inner = rest.pop("fields")
        twice = {k: v for k, v in inner.items() if k in rest and v is not None}
        rest.update({k: v for k, v in inner.items() if k not in rest and v is not None})
        if twice:
            rest["fields"] = twice
    return row(take_time(rest, clock), rest)


def row(ts_ms: int | None, rest: dict[str, Json]) -> Row:
    level = _take_text(rest, _LEVELS)
    peer = _take_text(rest, _PEERS)
    return Row(
        id=_take_int(rest, ("id",)),
        ts_ms=ts_ms,
        level=level_of(level) if level else None,
        message=_take_message(rest),
        correlation_id=_take_text(rest, _CORRELATIONS),
        peer=peer_of(peer) if peer else None,
        tx=_take_text(rest, _TXS),
        block=_take_int(rest, _BLOCKS),
        target=_take_text(rest, _TARGETS),
        fields=_object(rest),
    )


_KINDS = {list: "an array", str: "a text", type(None): "null", bool: "a boolean"}


def take_time(rest: dict[str, Json], clock: Clock) -> int | None:
    for name in TIMES:
        if name in rest:
            try:
                ts_ms = time_ms(rest[name], clock)
            except LineError:
                if "timestamp" in name:
                    raise
                continue  # `time` may be how long something took
            if ts_ms is not None:  # else the text stays, for a reader who knows the zone
                del rest[name]
                return ts_ms
    return None


def _take_text(rest: dict[str, Json], names: tuple[str, ...]) -> str | None:
    for name in names:
        item = rest.get(name)
        if isinstance(item, str):
            del rest[name]
            return item or None  # the store writes "" for "none"
    return None


def _take_message(rest: dict[str, Json]) -> str | None:
    for name in MESSAGES:
        if name in rest:
            item = rest.pop(name)
            return item if isinstance(item, str) else _text(item)
    return None


def _take_int(rest: dict[str, Json], names: tuple[str, ...]) -> int | None:
    for name in names:
        item = rest.get(name)
        if isinstance(item, str) and item.isascii() and item.isdigit() and len(item) <= 18:
            item = int(item)
        if isinstance(item, int) and not isinstance(item, bool) and item in _INT64:
            del rest[name]
            return item
    return None


def level_of(text: str) -> str:
    upper = text.strip().upper()
    return _ONE_LEVEL.get(upper, upper)


def peer_of(text: str) -> str:
    return peer_hex(text) or text


def _object(rest: dict[str, Json]) -> str:
    return _text(rest) if rest else "{}"


def _text(value: Json) -> str:
    try:
        return orjson.dumps(value).decode("utf-8")
    except TypeError:  # a number beyond 64 bits, or more than 254 levels
        pass
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise LineError("it is nested too deep") from None


# --- times -------------------------------------------------------------------------------


def time_ms(value: Json, clock: Clock = UNKNOWN_CLOCK) -> int | None:
    """Unix milliseconds, rounded down. None for a time of day whose zone nobody knows.

    Numbers: s below 1e11, ms below 1e14, us below 1e17, ns from there; no unit is told by the
    name, because writers put milliseconds into fields called `ts_ns`. Whole numbers never pass
    through a float. Errors: LineError.
    """
    if isinstance(value, str):
        text = value.strip()
        if not (text.isascii() and text.isdigit()):
            return iso_ms(text, clock)
        value = int(text) if len(text) <= 20 else -1
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LineError(f"its time cannot be read: {_text(value)[:80]}")
    if isinstance(value, float):
        if not 0 <= value < 1e11:
            if not (value.is_integer() and 0 <= value < 1e20):
                raise LineError(f"its time cannot be read: {value!r}")
            return time_ms(int(value), clock)
        return math.floor(round(value * 1e6) / 1e3)
    if value < 0:
        raise LineError(f"its time cannot be read: {value}"[:120])
    if value < 10**11:
        return value * 1000
    if value < 10**14:
        return value
    if value < 10**17:
        return value // 1000
    if (ts_ms := value // 1_000_000) > _LATEST_MS:
        raise LineError(f"its time cannot be read: {value}"[:120])
    return ts_ms


def iso_ms(text: str, clock: Clock) -> int | None:
    try:
        moment = datetime.fromisoformat(text.replace(" UTC", "Z"))
    except ValueError:
        raise LineError(f"its time cannot be read: {text[:80]!r}") from None
    return moment_ms(moment, clock)


def moment_ms(moment: datetime, clock: Clock) -> int | None:
    if moment.tzinfo is None:
        if clock.zone is None:
            return None
        moment = moment.replace(tzinfo=clock.zone)
    return (moment - _EPOCH) // timedelta(milliseconds=1)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
