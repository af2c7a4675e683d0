"""JSON lines that are made alike, read together: the rows of `rows_of_line`, many at a time.

A program logs with a few statements, so its lines have a few *shapes*: the same bytes but for the
values, which are what stands between two quotes, or a number. What becomes of the values is told
nowhere here. `rows_of_line` reads one line of each shape with a marker in place of every value,
and where a marker comes out, there the values of all lines of this shape belong:

    a line    {"ts":"2026-11-20T10:00:00Z","msg":"late","ms":7}
    marked    {"ts":"2000-01-01T00:00:00.000Z","msg":"2000-01-01T00:00:00.001Z","ms":1000000000002}
    gives     ts_ms 946684800000, message "2000-01-01T00:00:00.001Z", fields {"ms":1000000000002}

A line is of a shape when it has as many quotes and, outside its values, the same bytes. Any line
of which something is not certain (no shape, a value that is no plain one, an odd byte) is left
over, for `rows_of_line` itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.evidence import SCHEMAS
from tbforensics.reading import logcolumns
from tbforensics.reading.logblock import AHEAD_BYTES, Lines
from tbforensics.reading.logcolumns import Ints, Mask
from tbforensics.reading.loglines import rows_of_line
from tbforensics.reading.logrows import LineError, Row

_MOST_SAMPLES = 512  # a program with more statements than that is read one by one from there on
_MOST_VALUES = 100
# What a line itself says, and first which line of the block it is.
_SCHEMA = pa.schema([f for f in SCHEMAS["log_lines"] if f.name not in ("source", "file", "offset")])
_COLUMNS = _SCHEMA.names[1:-1]  # `fields` come last


class Place(NamedTuple):
    """So many bytes from the n-th of a line's places: its start, its quotes, its end."""

    n: int
    bytes: int


class Value(NamedTuple):
    begin: Place
    end: Place
    is_text: bool


class Literal(NamedTuple):
    """What has to stand at a place."""

    at: Place
    said: bytes


@dataclass(frozen=True)
class Shape:
    """places: how many a line has: its start, its quotes, its end.
    literals, values: what is fixed and what varies, in turn.
    columns: which value fills a column of `log_lines`; one that is not named is null.
    fields: JSON, with the numbers of values where these belong.
    no_digits: texts that would fill another column if they were digits.
    """

    places: int
    literals: tuple[Literal, ...]
    values: tuple[Value, ...]
    columns: Mapping[str, int]
    fields: tuple[str | int, ...]
    no_digits: tuple[int, ...]


# --- from one line to its shape ----------------------------------------------------------------

_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?|-?\d[\d.eE+-]*')
_TEXT, _NUMBER = b"2000-01-01T00:00:00.%03dZ", b"1000000000%03d"
_MARKER = re.compile(r"2000-01-01T00:00:00\.(\d{3})Z|1000000000(\d{3})|946684800(\d{3})")


def learn(line: bytes) -> Shape | None:
    """The shape of a line; None where it has none that can be read here."""
    if len(line) >= AHEAD_BYTES or not line.lstrip(b" \t\r").startswith(b"{"):
        return None
    places, literals, values = _taken_apart(line)
    fixed = b"".join(literal.said for literal in literals)
    # A name must not be taken for a marker, nor spell one with escapes.
    if len(values) > _MOST_VALUES or b"\\" in fixed or _MARKER.search(fixed.decode("latin")):
        return None
    markers = [(_TEXT if value.is_text else _NUMBER) % i for i, value in enumerate(values)]
    row = _row(literals, markers)
    if row is None:
        return None
    columns, no_digits = dict[str, int](), list[int]()
    for name, said in row._asdict().items():
        if name != "fields" and said is not None:
            if not (marker := _MARKER.fullmatch(str(said))):
                return None  # it is made of several values, or of none
            columns["ts" if name == "ts_ms" else name] = _number(marker)
    for i, value in enumerate(values):
        if value.is_text:
            other = _row(literals, [*markers[:i], _NUMBER % i, *markers[i + 1 :]])
            if other is None or (other.id, other.block) != (row.id, row.block):
                no_digits.append(i)
    fields = tuple(_with_numbers(row.fields))
    return Shape(places, tuple(literals), tuple(values), columns, fields, tuple(no_digits))


def _taken_apart(line: bytes) -> tuple[int, list[Literal], list[Value]]:
    tokens = list(_TOKEN.finditer(line))
    quotes = [place for t in tokens if t[1] is not None for place in (t.start(), t.end(1))]
    places = [0, *quotes, len(line)]
    literals, values = list[Literal](), list[Value]()
    seen = last = until = 0  # quotes; the place that the last value ends at, and where that is
    for token in tokens:
        is_text = token[1] is not None
        seen += 2 * is_text
        if token[2] is not None:  # it is a name
            continue
        begin, end = token.span(1 if is_text else 0)
        before, after = (seen - 1, seen) if is_text else (seen, seen + 1)
        if before < last:  # two numbers and no quote between: where one ends cannot be said
            return 0, [], []
        literals.append(Literal(Place(last, until - places[last]), line[until:begin]))
        begins, ends = Place(before, begin - places[before]), Place(after, end - places[after])
        values.append(Value(begins, ends, is_text))
        last, until = after, end
    # With the newline, so that nothing may follow.
    literals.append(Literal(Place(last, until - places[last]), line[until:] + b"\n"))
    return len(places), literals, values


def _row(literals: Sequence[Literal], values: Sequence[bytes]) -> Row | None:
    said = (literal.said for literal in literals)
    line = b"".join(chain.from_iterable(zip_longest(said, values, fillvalue=b"")))
    try:
        (row,) = rows_of_line(line)
    except (LineError, ValueError):
        return None
    return row if isinstance(row, Row) else None


def _number(marker: re.Match[str]) -> int:
    assert marker.lastindex
    return int(marker[marker.lastindex])


def _with_numbers(fields: str) -> Iterator[str | int]:
    at = 0
    for marker in _MARKER.finditer(fields):
        yield fields[at : marker.start()]
        yield _number(marker)
        at = marker.end()
    yield fields[at:]


# --- from shapes to rows -----------------------------------------------------------------------


@dataclass
class Shapes:
    """The shapes that were met so far. They change how fast a block is read, never what it gives.

    fewest_lines: of one shape in a block; fewer are read sooner one by one.
    """

    fewest_lines: int = 32

    def __post_init__(self) -> None:
        self._known: list[Shape] = []
        self._samples = 0

    def read(self, lines: Lines) -> pa.Table:
        """Rows as in `log_lines` but for source, file and offset; `line` counts from 0, in the
        block. A line that has no row here is to be read by itself."""
        found = _Found(lines)
        candidates = np.flatnonzero(lines.sure & (lines.quotes_in > 0))
        counts = lines.quotes_in[candidates]
        for quotes in np.unique(counts).tolist():
            alike = candidates[counts == quotes]
            if len(alike) >= self.fewest_lines:
                places = lines.places(alike, quotes)
                for shape, among in self._among(lines, alike, places):
                    of = among if len(among) < len(alike) else slice(None)
                    found.add(
                        shape, alike[of], [_span(value, places, of) for value in shape.values]
                    )
        return found.rows()

    def _among(self, lines: Lines, alike: Ints, places: list[Ints]) -> Iterator[tuple[Shape, Ints]]:
        """Shapes, and which of the lines that are alike in the number of quotes have each."""
        left: Mask = np.ones(len(alike), np.bool_)
        for shape in [shape for shape in self._known if shape.places == len(places)]:
            having = _having(shape, lines, places, left)
            if len(having) >= self.fewest_lines:
                yield shape, having
                left[having] = False
        while np.count_nonzero(left) >= self.fewest_lines and self._samples < _MOST_SAMPLES:
            self._samples += 1
            sample = int(left.argmax())
            if learned := learn(lines.data(alike[sample])):
                having = _having(learned, lines, places, left)
                if len(having) >= self.fewest_lines:
                    self._known.append(learned)
                    yield learned, having
                left[having] = False
            left[sample] = False


def _having(shape: Shape, lines: Lines, places: list[Ints], left: Mask) -> Ints:
    """Which of the lines that are left have a shape."""
    among: Ints | slice = slice(None) if left.all() else np.flatnonzero(left)
    for at, said in shape.literals:
        there = lines.bytes_at(places[at.n][among] + at.bytes, len(said))
        if there.tobytes() != said * len(there):
            among = _narrowed(among, there == said)
    for value in shape.values:
        if not value.is_text:
            begin, end = _span(value, places, among)
            if not (fits := begin < end).all():
                among = _narrowed(among, fits)
    return np.arange(len(left)) if isinstance(among, slice) else among


def _narrowed(among: Ints | slice, fits: Mask) -> Ints | slice:
    return np.flatnonzero(fits) if isinstance(among, slice) else among[fits]


def _span(value: Value, places: list[Ints], of: Ints | slice) -> tuple[Ints, Ints]:
    begin, end = value.begin, value.end
    return places[begin.n][of] + begin.bytes, places[end.n][of] + end.bytes


class _Found:
    """Where in a block the values of each column stand, and what `fields` are."""

    def __init__(self, lines: Lines) -> None:
        count = len(lines.starts)
        self._lines = lines
        self._sure: Mask = np.zeros(count, np.bool_)
        self._begin = {name: np.full(count, -1) for name in _COLUMNS}
        self._end = {name: np.full(count, -1) for name in _COLUMNS}
        self._is_text = {name: np.zeros(count, np.bool_) for name in _COLUMNS}
        self._fields: list[tuple[Ints, pa.Array]] = []

    def add(self, shape: Shape, of: Ints, spans: Sequence[tuple[Ints, Ints]]) -> None:
        """Lines of a shape, and where each of its values begins and ends in them."""
        sure: Mask = np.ones(len(of), np.bool_)
        for i in shape.no_digits:
            first = self._lines.bytes[spans[i][0]]
            sure &= (first < ord("0")) | (first > ord("9"))
        for name, i in shape.columns.items():
            self._begin[name][of], self._end[name][of] = spans[i]
            self._is_text[name][of] = shape.values[i].is_text
        texts = {
            i: self._lines.texts(*spans[i])
            for i in range(len(spans))
            if i not in shape.columns.values()
        }
        for i, said in texts.items():
            if not shape.values[i].is_text:
                sure &= logcolumns.as_spelled(said)
        self._sure[of] = sure
        parts = [texts[part] if isinstance(part, int) else part for part in shape.fields]
        if len(parts) > 1:
            self._fields.append((of, pc.binary_join_element_wise(*parts, "")))
        else:
            self._fields.append((of, pa.repeat(pa.scalar(parts[0], pa.string()), len(of))))

    def rows(self) -> pa.Table:
        of = np.flatnonzero(self._sure)
        if not len(of):
            return _SCHEMA.empty_table()
        columns, sure = [], np.ones(len(of), np.bool_)
        for name in _COLUMNS:
            column, fine = self._column(name, of)
            columns.append(column)
            sure &= fine
        place = np.empty(len(self._sure), np.int64)
        place[np.concatenate([lines for lines, _ in self._fields])] = np.arange(
            sum(len(lines) for lines, _ in self._fields)
        )
        fields = pa.concat_arrays([said for _, said in self._fields]).take(pa.array(place[of]))
        table = pa.Table.from_arrays([pa.array(of), *columns, fields], schema=_SCHEMA)
        return table if sure.all() else table.filter(pa.array(sure))

    def _column(self, name: str, of: Ints) -> tuple[pa.Array, Mask]:
        """A column, null where it has no value; and where it is known to be what it is."""
        begin, end, is_text = self._begin[name][of], self._end[name][of], self._is_text[name][of]
        known: Mask = begin >= 0
        fine: Mask = np.ones(len(of), np.bool_)
        kind = _SCHEMA.field(name).type
        if not known.any():
            return pa.nulls(len(of), kind), fine
        if name in ("id", "ts", "block"):
            numbers = np.zeros(len(of), np.int64)
            of_numbers = logcolumns.ms_of_numbers if name == "ts" else logcolumns.integers
            for some, read in ((is_text, logcolumns.ms_of_texts), (known & ~is_text, of_numbers)):
                if some.any():
                    texts = self._lines.texts(begin[some], end[some])
                    numbers[some], fine[some] = read(texts)
            return pa.array(numbers, mask=~known).cast(kind), fine
        begin = np.where(known, begin, self._lines.starts[of])
        texts = self._lines.texts(begin, np.maximum(begin, end))
        if not (is_text | ~known).all():  # a message may be a number
            fine = known & ~is_text
            fine[fine] = logcolumns.as_spelled(texts.filter(pa.array(fine)))
            fine |= is_text | ~known
        if self._lines.has_escapes:
            texts = _unescaped(texts)
        if not known.all():
            texts = pc.if_else(pa.array(known), texts, None)
        return logcolumns.of_texts(name, texts), fine


def _unescaped(texts: pa.Array) -> pa.Array:
    escaped = pc.match_substring(texts, "\\")
    spelled = texts.filter(escaped).to_pylist()
    if not spelled:
        return texts
    said = orjson.loads('["' + '","'.join(spelled) + '"]')
    return pc.replace_with_mask(texts, escaped, pa.array(said, pa.string()))
