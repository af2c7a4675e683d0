"""From the bytes of a journal to rows of `records`: one JSON object each, as it was spelled.

A journal is written without care for crashes: its last line may be torn, an archive may end
early, and what a line holds is of unknown origin. What cannot be read is set aside with why.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

import orjson
import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows
from tbforensics.model import Json, Window
from tbforensics.reading import logstream
from tbforensics.reading.logrows import TIMES, LineError, parse
from tbforensics.reading.logtables import MOST_QUARANTINED

DEEPEST = 64  # levels; no journal nests so far, and every reader after us may recurse
_ROWS_PER_TABLE = 50_000
_TIMES = (*TIMES, "ts_fill_ns", "ts_accepted_ns", "ts_local_ns", "capture_ts_ns")
_LATEST_NS = (1 << 63) - 1
_NS_PER_S = 1_000_000_000


class Record(NamedTuple):
    """One object of a line. `ts_ns` is unix nanoseconds; `value` its JSON as it was spelled."""

    place: int
    ts_ns: int | None
    value: str


@dataclass
class Tally:
    """What was met in one file.

    first_ns, last_ns: over all records that have a time, kept or not.
    torn: the file ends in the middle of a line. stopped: why its rest was not read.
    """

    records: int = 0
    kept: int = 0
    outside_window: int = 0
    without_time: int = 0
    unreadable: int = 0
    torn: bool = False
    first_ns: int | None = None
    last_ns: int | None = None
    stopped: str = ""

    def to_json(self) -> dict[str, Json]:
        return asdict(self)


class Journal:
    """One file being read.

    window: records outside it are counted and left out. A record without a time goes with the
            last one above it that has one.
    """

    def __init__(self, source: str, query: str, file: str, window: Window | None = None) -> None:
        self.source, self.query, self.file = source, query, file
        self.tally = Tally()
        self._inside = True
        self._range_ns = range(_ns(window.start), _ns(window.end)) if window else None

    def tables(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        """Rows of `records` and `quarantine`; read `tally` when it has ended."""
        kept: list[_Kept] = []
        line = offset = 0
        try:
            for piece in logstream.read(body):
                if isinstance(piece, logstream.Block) and piece.too_long:
                    self.tally.unreadable += 1
                    why = f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {piece.too_long}"
                    yield self._refused(piece.first_line, piece.offset, why, piece.data)
                    continue
                for line, offset, data, torn in _lines(piece):
                    place = piece.place - 1 if isinstance(piece, logstream.Element) else 0
                    yield from self._read(data, line, offset, place, torn, kept)
                if len(kept) >= _ROWS_PER_TABLE:
                    yield self._table(kept)
                    kept = []
        except logstream.StreamError as error:
            self.tally.stopped = str(error)
            yield self._refused(line + 1, offset, str(error), b"")
        if kept:
            yield self._table(kept)
        if (more := self.tally.unreadable - MOST_QUARANTINED) > 0:
            yield self._refused(line + 1, offset, f"{more} more lines cannot be read", b"")

    def _read(
        self, data: bytes, line: int, offset: int, place: int, torn: bool, kept: list[_Kept]
    ) -> Iterator[tuple[str, pa.Table]]:
        try:
            found = records_of_line(data)
        except LineError as error:
            self.tally.unreadable += 1
            self.tally.torn = self.tally.torn or torn
            if self.tally.unreadable <= MOST_QUARANTINED:
                why = f"the file ends in the middle of it: {error}" if torn else str(error)
                yield self._refused(line, offset, why, data)
            return
        for record in found:
            if self._counted(record):
                kept.append((line, offset, place + record.place, record.ts_ns, record.value))

    def _counted(self, record: Record) -> bool:
        """Whether to keep the record; counts it either way."""
        tally, ts_ns = self.tally, record.ts_ns
        tally.records += 1
        if ts_ns is None:
            tally.without_time += 1
        else:
            self._inside = self._range_ns is None or ts_ns in self._range_ns
            tally.first_ns = ts_ns if tally.first_ns is None else min(tally.first_ns, ts_ns)
            tally.last_ns = ts_ns if tally.last_ns is None else max(tally.last_ns, ts_ns)
        tally.outside_window += not self._inside
        tally.kept += self._inside
        return self._inside

    def _table(self, kept: list[_Kept]) -> tuple[str, pa.Table]:
        schema, count = SCHEMAS["records"], len(kept)
        named = ([self.source] * count, [self.query] * count, [self.file] * count)
        columns = [*named, *zip(*kept, strict=True)]
        arrays = [pa.array(c, kind) for c, kind in zip(columns, schema.types, strict=True)]
        return "records", pa.Table.from_arrays(arrays, schema=schema)

    def _refused(self, line: int, offset: int, reason: str, data: bytes) -> tuple[str, pa.Table]:
        row = {
            "source": self.source,
            "query": self.query,
            "file": self.file,
            "line": line,
            "offset": offset,
            "reason": reason,
            "bytes": data[:QUARANTINED_BYTES],
        }
        return "quarantine", rows("quarantine", [row])


_Kept = tuple[int, int, int, int | None, str]  # line, offset, place, ts, value


def _lines(piece: logstream.Block | logstream.Element) -> Iterator[tuple[int, int, bytes, bool]]:
    """Line number, offset and bytes of each line, and whether the file ends within it."""
    if isinstance(piece, logstream.Element):
        yield 1, piece.offset, piece.data, False
        return
    offset, lines = piece.offset, piece.data.split(b"\n")
    for number, data in enumerate(lines):
        yield piece.first_line + number, offset, data, number == len(lines) - 1
        offset += len(data) + 1


# --- one line ------------------------------------------------------------------------------


def records_of_line(line: bytes) -> list[Record]:
    """The objects that one line holds: one, those of an array, none when it is blank.

    A tab-separated line `ts_ns old new event` of a change log is read as an object, too.
    Errors: LineError when any of it cannot be read.
    """
    line = line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n")
    if not line:
        return []
    if len(line) > logstream.LONGEST_LINE_BYTES:
        raise LineError(f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {len(line)}")
    if b"\0" in line:
        raise LineError("it holds a NUL byte")
    if changed := _changed(line):
        return [Record(0, time_ns(changed), json.dumps(changed))]
    value, text = _spelled(line)
    if isinstance(value, dict):
        return [Record(0, time_ns(value), text)]
    if not isinstance(value, list):
        raise LineError("it is neither an object nor an array")
    found = []
    for place, (item, spelled) in enumerate(zip(value, _elements(text), strict=True)):
        if not isinstance(item, dict):
            raise LineError(f"its element {place} is not an object")
        found.append(Record(place, time_ns(item), spelled))
    return found


def _spelled(line: bytes) -> tuple[Json, str]:
    """The value and its text. Strict JSON keeps its spelling; what is less is written anew."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        value = parse(line)
        text = json.dumps(value, ensure_ascii=False)
    else:
        text = line.decode("utf-8")
    if line.count(b"[") + line.count(b"{") > DEEPEST and _levels(value) > DEEPEST:
        raise LineError("it is nested too deep")
    return value, text


def _levels(value: Json) -> int:
    levels, inner = 0, [value]
    while inner:
        levels += 1
        held = [item for item in inner if isinstance(item, dict | list)]
        inner = [v for item in held for v in (item.values() if isinstance(item, dict) else item)]
    return levels


def _elements(text: str) -> Iterator[str]:
    """The elements of an array, each as it is spelled."""
    decoder, at = json.JSONDecoder(), text.index("[") + 1
    while True:
        while text[at] in " \t\r\n,":
            at += 1
        if text[at] == "]":
            return
        _, end = decoder.raw_decode(text, at)
        yield text[at:end]
        at = end


def _changed(line: bytes) -> dict[str, Json] | None:
    parts = line.split(b"\t")
    if len(parts) != 4 or not parts[0].isdigit() or len(parts[0]) > 19:
        return None
    old, new, event = (part.decode("utf-8", "backslashreplace") for part in parts[1:])
    return {"ts_ns": int(parts[0]), "old": old, "new": new, "event": event}


def time_ns(value: dict[str, Json]) -> int | None:
    """Unix nanoseconds of a record; None where it has no time, or none with a zone.

    Numbers: s below 1e11, ms below 1e15, us below 1e17, ns from there: fields called `ts_ns` hold
    milliseconds where an exchange filled them. Whole numbers never pass through a float.
    Errors: LineError for a time that cannot be read: the record would leave its place.
    """
    for name in _TIMES:
        if value.get(name) is not None:
            ts_ns = _moment_ns(value[name])
            if ts_ns is not None and not 0 <= ts_ns <= _LATEST_NS:
                raise LineError(f"its time cannot be read: {str(value[name])[:80]!r}")
            return ts_ns
    return None


def _moment_ns(given: Json) -> int | None:
    if isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given)
        except ValueError:
            raise LineError(f"its time cannot be read: {given[:80]!r}") from None
        return _ns(moment) if moment.tzinfo else None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 1e20:
        raise LineError(f"its time cannot be read: {str(given)[:80]}")
    if given < 10**11:
        return given * _NS_PER_S if isinstance(given, int) else round(given * 1e6) * 1_000
    if given < 10**15:
        return int(given) * 1_000_000
    return int(given) * 1_000 if given < 10**17 else int(given)


def _ns(moment: datetime) -> int:
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * _NS_PER_S + since.microseconds * 1_000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
