"""From the bytes of a log to the tables of `evidence`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows
from tbforensics.model import Json, Window, utc_text
from tbforensics.reading import logstream
from tbforensics.reading.logblock import Lines
from tbforensics.reading.logcolumns import Ints, Mask, flags
from tbforensics.reading.loglines import rows_of_element, rows_of_line
from tbforensics.reading.logrows import UNKNOWN_CLOCK, Clock, LineError, Row
from tbforensics.reading.logshapes import Shapes

# A file that is no log at all must not fill the case with its pieces.
MOST_QUARANTINED = 10_000
_ENCRYPTED, _DECRYPT_FAILED = "<encrypted>", "<decrypt-failed>"
_ELEMENTS_PER_TABLE = 50_000
_ROWS_PER_TABLE = 100_000  # many are packed better, and sooner
_MOST_SLICES = 100  # with more of them it is quicker to copy all rows
_AT_ONCE = 2  # pieces are read
_AHEAD = 6  # of the one that is being written, which may take as long as reading several


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
    together: read lines that are made alike together. The rows are the same either way.
    """

    source: str
    query: str
    file: str
    window: Window | None = None
    clock: Clock = UNKNOWN_CLOCK
    left_ms: range | None = None
    together: bool = True
    shapes: Shapes = field(default_factory=Shapes)

    def __post_init__(self) -> None:
        self.tally = Tally()
        self._inside = True

    def tables(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        """Rows of `log_lines` and `quarantine`; read `tally` when it has ended."""
        rows: list[pa.Table] = []
        piece: _Piece = ()
        try:
            for read, found in _in_turn(self._found_in, _grouped(logstream.read(body))):
                piece = read
                for name, table in self.told(*found):
                    if name != "log_lines":
                        yield name, table
                        continue
                    rows.append(table)
                    if sum(map(len, rows)) >= _ROWS_PER_TABLE:
                        yield name, pa.concat_tables(rows)
                        rows.clear()
        except logstream.StreamError as error:
            self.tally.stopped = str(error)
            place, offset = _end_of(piece)
            yield self._quarantine([(place + 1, offset, str(error), b"")])
        if rows:
            yield "log_lines", pa.concat_tables(rows)
        if (more := self.tally.unreadable - MOST_QUARANTINED) > 0:
            reason = f"{more} more pieces of this file cannot be read"
            place, offset = _end_of(piece)
            yield self._quarantine([(place + 1, offset, reason, b"")])

    def of_elements(self, elements: Sequence[logstream.Element]) -> Iterator[tuple[str, pa.Table]]:
        yield from self.told(*self._found_in(elements))

    def told(
        self, rows: pa.Table, refused: Sequence[_Refused] = ()
    ) -> Iterator[tuple[str, pa.Table]]:
        """What was found, in the order of the file: counted, and without what lies outside."""
        rows = self._counted(rows)
        if len(rows):
            yield "log_lines", rows
        room = max(0, MOST_QUARANTINED - self.tally.unreadable)
        self.tally.unreadable += len(refused)
        if refused[:room]:
            yield self._quarantine(refused[:room])

    # --- from bytes to rows: changes nothing here, so that several pieces may be read at once -----

    def _found_in(self, piece: _Piece) -> _Found:
        kept: list[_Kept] = []
        refused: list[_Refused] = []
        if not isinstance(piece, logstream.Block):
            for element in piece:
                place, offset = element.place, element.offset
                self._read(rows_of_element, element.data, place, offset, kept, refused)
        elif piece.too_long:
            reason = f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {piece.too_long}"
            refused.append((piece.first_line, piece.offset, reason, piece.data))
        elif self.together:
            return self._read_together(piece)
        else:
            offset = piece.offset
            for line, data in enumerate(piece.data.split(b"\n"), piece.first_line):
                self._read(rows_of_line, data, line, offset, kept, refused)
                offset += len(data) + 1
        return _Found(self._one_by_one(kept), refused)

    def _read_together(self, block: logstream.Block) -> _Found:
        lines = Lines(block.data)
        together = self.shapes.read(lines)
        left = np.ones(len(lines.starts), np.bool_)
        left[together["line"].to_numpy()] = False
        kept: list[_Kept] = []
        refused: list[_Refused] = []
        for i in np.flatnonzero(left).tolist():
            number, offset = block.first_line + i, block.offset + int(lines.starts[i])
            self._read(rows_of_line, lines.data(i), number, offset, kept, refused)
        number = together["line"].to_numpy()
        places = number + block.first_line, lines.starts[number] + block.offset
        rows = self.table(*places, together.columns[1:])
        return _Found(_in_order(rows, self._one_by_one(kept)), refused)

    def table(self, line: Ints, offset: Ints, said: Sequence[pa.Array]) -> pa.Table:
        """Rows of `log_lines`; `said` are its columns from `id` on."""
        named = [pa.repeat(pa.scalar(name), len(line)) for name in (self.source, self.file)]
        return pa.table([*named, line, offset, *said], schema=_NONE.schema)

    def _one_by_one(self, kept: list[_Kept]) -> pa.Table:
        if not kept:
            return _NONE
        columns = [[self.source] * len(kept), [self.file] * len(kept), *zip(*kept, strict=True)]
        types = _NONE.schema.types
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
        return pa.table(arrays, schema=_NONE.schema)

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
            else:
                kept.append((line, offset, *row))

    # --- counting: row after row, in the order of the file ---------------------------------------

    def _counted(self, rows: pa.Table) -> pa.Table:
        """The rows to keep; counts all of them."""
        tally, ts = self.tally, rows["ts"].cast(pa.int64())
        if self.left_ms:
            left = flags(_within(ts, self.left_ms))
            tally.left_to_next_page += int(np.count_nonzero(left))
            rows, ts = rows.filter(pa.array(~left)), ts.filter(pa.array(~left))
        if not len(rows):
            return rows
        tally.rows += len(rows)
        tally.without_time += ts.null_count
        if ts.null_count < len(ts):
            first, last = pc.min_max(ts).as_py().values()
            tally.first_ms = first if tally.first_ms is None else min(tally.first_ms, first)
            tally.last_ms = last if tally.last_ms is None else max(tally.last_ms, last)
        inside = self._are_inside(ts)
        if not inside.all():
            rows = rows.filter(pa.array(inside))
        tally.outside_window += len(ts) - len(rows)
        tally.kept += len(rows)
        tally.encrypted += _count(rows["message"], _ENCRYPTED)
        tally.decrypt_failed += _count(rows["message"], _DECRYPT_FAILED)
        return rows

    def _are_inside(self, ts: pa.ChunkedArray) -> Mask:
        if self.window is None:
            return np.ones(len(ts), np.bool_)
        span = range(_ms(self.window.start), _ms(self.window.end))
        has_time = flags(ts.is_valid())
        # Of each row, the last one up to it that has a time; before the first, what was before.
        told_by = np.maximum.accumulate(np.where(has_time, np.arange(len(ts)), -1))
        within = np.append(flags(_within(ts, span)), self._inside)
        inside: Mask = within[told_by]
        self._inside = bool(inside[-1])
        return inside

    def refusal(self, reason: str, data: bytes) -> tuple[str, pa.Table]:
        """All of it is refused, as one row of `quarantine`."""
        return self._quarantine([(1, 0, reason, data)])

    def _quarantine(self, refused: Sequence[_Refused]) -> tuple[str, pa.Table]:
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


_Piece = logstream.Block | Sequence[logstream.Element]
_NONE = SCHEMAS["log_lines"].empty_table()


class _Found(NamedTuple):
    """What a piece of a file holds, in its order."""

    rows: pa.Table
    refused: Sequence[_Refused]


def _grouped(pieces: Iterator[logstream.Block | logstream.Element]) -> Iterator[_Piece]:
    """Elements by their thousands. Errors: StreamError, after all that came before it."""
    elements: list[logstream.Element] = []
    stopped = None
    try:
        for piece in pieces:
            if isinstance(piece, logstream.Block):
                yield piece
                continue
            elements.append(piece)
            if len(elements) == _ELEMENTS_PER_TABLE:
                yield elements
                elements = []
    except logstream.StreamError as error:
        stopped = error
    if elements:
        yield elements
    if stopped:
        raise stopped


def _in_turn(
    work: Callable[[_Piece], _Found], pieces: Iterator[_Piece]
) -> Iterator[tuple[_Piece, _Found]]:
    """Each piece and what was found in it, in order, while the next ones are being read.

    Errors: StreamError, after all that came before it.
    """
    ahead: deque[tuple[_Piece, Future[_Found]]] = deque()
    stopped = None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for piece in pieces:
                ahead.append((piece, pool.submit(work, piece)))
                if len(ahead) > _AHEAD:
                    piece, found = ahead.popleft()
                    yield piece, found.result()
        except logstream.StreamError as error:
            stopped = error
        for piece, found in ahead:
            yield piece, found.result()
    if stopped:
        raise stopped


def _in_order(many: pa.Table, few: pa.Table) -> pa.Table:
    """Both in the order of their lines."""
    places = np.searchsorted(many["line"].to_numpy(), few["line"].to_numpy()).tolist()
    if len(few) > _MOST_SLICES:
        rows = pa.concat_tables([many, few]).combine_chunks()
        return rows.take(np.argsort(rows["line"].to_numpy(), kind="stable"))
    parts = [
        part
        for i, (begin, end) in enumerate(pairwise([0, *places]))
        for part in (many[begin:end], few[i : i + 1])
    ]
    return pa.concat_tables([*parts, many[places[-1] if places else 0 :]])


def _within(ts: pa.ChunkedArray, span: range) -> pa.ChunkedArray:
    inside = pc.and_(pc.greater_equal(ts, span.start), pc.less(ts, span.stop))
    return inside.fill_null(False)


def _count(texts: pa.ChunkedArray, text: str) -> int:
    return pc.sum(pc.equal(texts, text)).as_py() or 0


def _end_of(piece: _Piece) -> tuple[int, int]:
    if not piece:
        return 0, 0
    if not isinstance(piece, logstream.Block):
        return piece[-1].place, piece[-1].offset + len(piece[-1].data)
    if piece.too_long:
        return piece.first_line, piece.offset + piece.too_long
    newlines = piece.data.count(b"\n", 0, -1)  # the last one ends a line and begins none
    return piece.first_line + newlines, piece.offset + len(piece.data)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
