"""From the bytes of a log to the tables of `evidence`.

`of_block` is the one function from bytes to a table; a faster one has only to return the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import BinaryIO

import pyarrow as pa

from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows
from tbforensics.model import Json, Window, utc_text
from tbforensics.reading import logstream
from tbforensics.reading.loglines import rows_of_element, rows_of_line
from tbforensics.reading.logrows import UNKNOWN_CLOCK, Clock, LineError, Row

# A file that is no log at all must not fill the case with its pieces.
MOST_QUARANTINED = 10_000
_ENCRYPTED, _DECRYPT_FAILED = "<encrypted>", "<decrypt-failed>"
_ELEMENTS_PER_TABLE = 50_000


@dataclass
class Tally:
    """What was met in one file or reply.

    first_ms, last_ms: over all lines that have a time, kept or not.
    stopped: why the rest of it was not read; "" when all of it was.
    """

    rows: int = 0
    kept: int = 0
    outside_window: int = 0
    without_time: int = 0
    unreadable: int = 0
    encrypted: int = 0
    decrypt_failed: int = 0
    left_to_next_page: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    stopped: str = ""

    def to_json(self) -> dict[str, Json]:
        out = asdict(self)
        for name in ("first", "last"):
            ts_ms = out.pop(f"{name}_ms")
            out[name] = _utc(ts_ms) if ts_ms is not None else None
        return out


def _utc(ts_ms: int) -> str:
    return utc_text(datetime.fromtimestamp(ts_ms / 1000, UTC))


@dataclass
class Reading:
    """One file or reply being read.

    window: lines outside it are counted and left out. A line without a time goes with the last
            line above it that has one.
    left_ms: lines of these milliseconds are left to another reply, which gives them all.
    """

    source: str
    query: str
    file: str
    window: Window | None = None
    clock: Clock = UNKNOWN_CLOCK
    left_ms: range | None = None

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._inside = True
        self._range_ms = (
            range(_ms(self.window.start), _ms(self.window.end)) if self.window else None
        )

    def tables(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        """Rows of `log_lines` and `quarantine`; read `tally` when it has ended."""
        place = offset = 0
        elements: list[logstream.Element] = []
        try:
            for piece in logstream.read(body):
                place, offset = _end_of(piece)
                if isinstance(piece, logstream.Block):
                    yield from self.of_block(piece)
                    continue
                elements.append(piece)
                if len(elements) == _ELEMENTS_PER_TABLE:
                    yield from self.of_elements(elements)
                    elements = []
            yield from self.of_elements(elements)
        except logstream.StreamError as error:
            yield from self.of_elements(elements)
            self.tally.stopped = str(error)
            yield self._quarantine([(place + 1, offset, str(error), b"")])
        if (more := self.tally.unreadable - MOST_QUARANTINED) > 0:
            reason = f"{more} more pieces of this file cannot be read"
            yield self._quarantine([(place + 1, offset, reason, b"")])

    def of_block(self, block: logstream.Block) -> Iterator[tuple[str, pa.Table]]:
        if block.too_long:
            reason = f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {block.too_long}"
            yield from self._tables([], [(block.first_line, block.offset, reason, block.data)])
            return
        kept: list[_Kept] = []
        refused: list[_Refused] = []
        offset = block.offset
        for line, data in enumerate(block.data.split(b"\n"), block.first_line):
            self._read(rows_of_line, data, line, offset, kept, refused)
            offset += len(data) + 1
        yield from self._tables(kept, refused)

    def of_elements(self, elements: list[logstream.Element]) -> Iterator[tuple[str, pa.Table]]:
        kept: list[_Kept] = []
        refused: list[_Refused] = []
        for element in elements:
            place, offset = element.place, element.offset
            self._read(rows_of_element, element.data, place, offset, kept, refused)
        yield from self._tables(kept, refused)

    def _read(
        self,
        rows_of: Callable[[bytes, Clock], list[Row | LineError]],
        data: bytes,
        line: int,
        offset: int,
        kept: list[_Kept],
        refused: list[_Refused],
    ) -> None:
        if line == 1 and data.startswith(b"\xef\xbb\xbf"):
            data = data[3:]
        try:
            if len(data) > logstream.LONGEST_LINE_BYTES:
                raise LineError(f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {len(data)}")
            found = rows_of(data, self.clock)
        except LineError as error:
            refused.append((line, offset, str(error), data))
            return
        for row in found:
            if isinstance(row, LineError):
                refused.append((line, offset, str(row), data))
            elif self._counted(row):
                kept.append((line, offset, *row))

    def _counted(self, row: Row) -> bool:
        """Whether to keep the row; counts it either way."""
        tally, ts_ms = self.tally, row.ts_ms
        if self.left_ms and ts_ms in self.left_ms:
            tally.left_to_next_page += 1
            return False
        tally.rows += 1
        if ts_ms is None:
            tally.without_time += 1
        else:
            self._inside = self._range_ms is None or ts_ms in self._range_ms
            tally.first_ms = ts_ms if tally.first_ms is None else min(tally.first_ms, ts_ms)
            tally.last_ms = ts_ms if tally.last_ms is None else max(tally.last_ms, ts_ms)
        if not self._inside:
            tally.outside_window += 1
            return False
        tally.kept += 1
        tally.encrypted += row.message == _ENCRYPTED
        tally.decrypt_failed += row.message == _DECRYPT_FAILED
        return True

    def _tables(self, kept: list[_Kept], refused: list[_Refused]) -> Iterator[tuple[str, pa.Table]]:
        if kept:
            count, schema = len(kept), SCHEMAS["log_lines"]
            columns = [[self.source] * count, [self.file] * count, *zip(*kept, strict=True)]
            yield (
                "log_lines",
                pa.Table.from_arrays(
                    [
                        pa.array(column, kind)
                        for column, kind in zip(columns, schema.types, strict=True)
                    ],
                    schema=schema,
                ),
            )
        room = max(0, MOST_QUARANTINED - self.tally.unreadable)
        self.tally.unreadable += len(refused)
        if refused[:room]:
            yield self._quarantine(refused[:room])

    def refusal(self, reason: str, data: bytes) -> tuple[str, pa.Table]:
        """All of it is refused, as one row of `quarantine`."""
        return self._quarantine([(1, 0, reason, data)])

    def _quarantine(self, refused: list[_Refused]) -> tuple[str, pa.Table]:
        return "quarantine", rows(
            "quarantine",
            [
                {
                    "source": self.source,
                    "query": self.query,
                    "file": self.file,
                    "line": line,
                    "offset": offset,
                    "reason": reason,
                    "bytes": data[:QUARANTINED_BYTES],
                }
                for line, offset, reason, data in refused
            ],
        )

    def summary(self, role: str, asked_at: datetime, extra: Json) -> tuple[str, pa.Table]:
        """A row of `snapshots` with the tally."""
        value = {"file": self.file, **self.tally.to_json(), **extra}
        snapshot = {
            "source": self.source,
            "query": self.query,
            "role": role,
            "ts": asked_at,
            "generation": "",
            "state": "ok",
            "value": json.dumps(value, sort_keys=True),
        }
        return "snapshots", rows("snapshots", [snapshot])


_Kept = tuple[object, ...]  # line, offset and the columns of a Row, in the table's order
_Refused = tuple[int, int, str, bytes]  # line, offset, reason, bytes


def _end_of(piece: logstream.Block | logstream.Element) -> tuple[int, int]:
    if isinstance(piece, logstream.Element):
        return piece.place, piece.offset + len(piece.data)
    if piece.too_long:
        return piece.first_line, piece.offset + piece.too_long
    newlines = piece.data.count(b"\n", 0, -1)  # the last one ends a line and begins none
    return piece.first_line + newlines, piece.offset + len(piece.data)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
