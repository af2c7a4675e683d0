"""What one physical log line says: JSON, or plain text of the usual styles.

Log text is evidence of unknown origin: control characters, colours and markup stay as they came.
"""

from __future__ import annotations

import re
from datetime import datetime
from itertools import islice

from tbforensics.model import Json
from tbforensics.reading.logrows import (
    MESSAGES,
    TIMES,
    UNKNOWN_CLOCK,
    Clock,
    LineError,
    Row,
    iso_ms,
    moment_ms,
    parse,
    row,
    row_of_json,
    take_time,
    time_ms,
)


def rows_of_line(line: bytes, clock: Clock = UNKNOWN_CLOCK) -> list[Row | LineError]:
    """What one physical line says: one row, one row per element of an array, none when blank.

    Errors: LineError when the line cannot be read. An element that cannot be read is an error
    in its place, so that its neighbours survive.
    """
    line = line.strip(b" \t\r\n")
    if not line:
        return []
    if b"\0" in line:
        raise LineError("it holds a NUL byte")
    if line[:1] == b"{":
        return [row_of_json(parse(line), clock)]
    if line[:1] == b"[":
        try:
            items = parse(line)
        except LineError:
            if line[1:].lstrip()[:1] in (b"{", b"[", b'"'):
                raise
        else:
            return [_element(item, clock) for item in items]
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LineError(f"invalid UTF-8 at its byte {error.start}") from None
    return [row_of_text(text, clock)]


def rows_of_element(data: bytes, clock: Clock = UNKNOWN_CLOCK) -> list[Row | LineError]:
    """What one element of an array says that fills a file. Errors: LineError."""
    return [row_of_json(parse(data), clock)]


def _element(item: Json, clock: Clock) -> Row | LineError:
    try:
        return row_of_json(item, clock)
    except LineError as error:
        return error


_COLOUR = re.compile(r"\x1b\[[0-9;]{0,16}m")
_STAMP = re.compile(
    r"\[?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)(Z| UTC| ?[+-]\d\d:?\d\d)?(?!\w)"
)
# A number is a time only where it can hardly be anything else.
_UNIX = re.compile(r"\[?(\d{10}\.\d{1,9}|\d{13}|\d{16}|\d{19})(?=[\]\s])")
_WORDS = "TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|ERR|CRITICAL|CRIT|FATAL|PANIC"
# A word in lower case may begin the message; it is a level only where punctuation says so.
_LEVEL = re.compile(
    rf"[\]\s|,:-]{{0,8}}\[?\s?(?:({_WORDS})\b|((?i:{_WORDS}))(?=\s?[\]:|]))\s?[\]:|]?"
)
_TARGET = re.compile(
    r"\s{0,8}([a-z_][a-z0-9_]{0,63}(?:(?:::|[./])[A-Za-z0-9_]{1,63}){0,8})(?:: |\] )"
)
_PYTHON = re.compile(rf" - ([\w.]{{1,128}}) - ({_WORDS}) - ")
_KLOG = re.compile(
    r"([DIWEF])(\d\d)(\d\d) (\d\d:\d\d:\d\d\.\d{1,9})\s{1,8}\d{1,10} ([^\]\s]{1,200})\] ?"
)
_KLOG_LEVELS = {"D": "DEBUG", "I": "INFO", "W": "WARN", "E": "ERROR", "F": "FATAL"}
_PAIR = re.compile(
    r'(?<!\S)([A-Za-z_][\w.]{0,63})=(?:"((?:[^"\\]|\\.){0,2048})"|([^\s"]{0,1024}))(?!\S)'
)
_LOGFMT = re.compile(r"(?:ts|time|timestamp|level|lvl)=")
_PAIRED_CHARS = 8192  # `name=value` pairs are looked for this far into a line
_MOST_PAIRS = 64


def row_of_text(text: str, clock: Clock = UNKNOWN_CLOCK) -> Row:
    """A row from a line that is not JSON: time, level and target where it starts with them.

    Read are the styles of tracing, env_logger, klog, Python's logging, and logfmt. `name=value`
    pairs become fields and stay in the message too. A line of no known style is all message.
    """
    bare = _COLOUR.sub("", text) if "\x1b" in text else text
    rest: dict[str, Json] = _pairs(bare)
    if _LOGFMT.match(bare):
        try:
            ts_ms = take_time(rest, clock)
            return row(ts_ms, rest if rest.keys() & set(MESSAGES) else {"message": text, **rest})
        except LineError:
            rest = _pairs(bare)
    for name in TIMES:
        rest.pop(name, None)  # a time further on is a value that the line speaks of
    ts_ms, stamp, at = _stamp(bare, clock, rest)
    if stamp == "klog":
        pass
    elif stamp and (found := _PYTHON.match(bare, at)):
        rest["target"], rest["level"], at = found[1], found[2], found.end()
    elif found := _LEVEL.match(bare, at):
        rest["level"], at = found[1] or found[2], found.end()
        if target := _TARGET.match(bare, at):
            rest["target"], at = target[1], target.end()
    # Colours sit between the words, so a coloured line is kept whole.
    message = bare[at:].lstrip(" \t]-:|") if at and bare is text else ""
    rest["message"] = message or text
    return row(ts_ms, rest)


def _stamp(text: str, clock: Clock, rest: dict[str, Json]) -> tuple[int | None, str, int]:
    """Time, style, and where the line goes on; a time that has no zone stays in `rest`."""
    if found := _KLOG.match(text):
        letter, month, day, time, rest["target"] = found.groups()
        rest["level"], rest["time"] = _KLOG_LEVELS[letter], f"{month}-{day} {time}"
        ts_ms = _nearest_ms(rest["time"], clock)
        style = "klog"
    elif found := _STAMP.match(text):
        moment, zone = found[1].replace(",", "."), (found[2] or "").strip()
        try:
            ts_ms = iso_ms(moment + ("Z" if zone == "UTC" else zone), clock)
        except LineError:
            return None, "", 0  # it only looks like a time
        rest["time"], style = found[1], "iso"
    elif found := _UNIX.match(text):
        seconds, _, fraction = found[1].partition(".")
        ts_ms, style = time_ms(int(seconds)), "unix"
        if ts_ms is not None and fraction:
            ts_ms += int(fraction.ljust(3, "0")[:3])
        rest["time"] = found[1]
    else:
        return None, "", 0
    if ts_ms is not None:
        del rest["time"]
    return ts_ms, style, found.end()


def _nearest_ms(month_to_second: str, clock: Clock) -> int | None:
    """A time without a year, in the year that brings it nearest to `clock.near`."""
    if clock.near is None or clock.zone is None:
        return None
    candidates = []
    for year in (clock.near.year - 1, clock.near.year, clock.near.year + 1):
        try:
            moment = datetime.fromisoformat(f"{year}-{month_to_second}")
        except ValueError:
            continue
        candidates.append(moment.replace(tzinfo=clock.zone))
    if not candidates:
        return None
    near = clock.near
    return moment_ms(min(candidates, key=lambda moment: abs(moment - near)), clock)


def _pairs(text: str) -> dict[str, Json]:
    out: dict[str, Json] = {}
    for found in islice(_PAIR.finditer(text[:_PAIRED_CHARS]), _MOST_PAIRS):
        name, quoted, plain = found.groups()
        out[name] = plain if quoted is None else quoted
    return out
