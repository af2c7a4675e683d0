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
    """So many bytes from a line's n-th quote; the 0th is its start, and one more is its end."""

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
    """quotes: how many a line has.
    literals, values: what is fixed and what varies, in turn.
    columns: which value fills a column of `log_lines`; one that is not named is null.
    fields: JSON, with the numbers of values where these belong.
    no_digits: texts that would fill another column if they were digits.
    """

    quotes: int
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
    quotes, literals, values = _taken_apart(line)
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
    return Shape(quotes, tuple(literals), tuple(values), columns, fields, tuple(no_digits))


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
    return seen, literals, values


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

    fewest_lines: int = 64

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
            alike = _Alike(lines, candidates[counts == quotes], quotes)
            if len(alike.numbers) >= self.fewest_lines:
                for shape, among in self._among(alike):
                    of = among if len(among) < len(alike.numbers) else slice(None)
                    spans = [(alike.at(v.begin, of), alike.at(v.end, of)) for v in shape.values]
                    found.add(shape, alike.numbers[of], spans)
        return found.rows()

    def _among(self, alike: _Alike) -> Iterator[tuple[Shape, Ints]]:
        """Shapes, and which of the lines have each."""
        left: Mask = np.ones(len(alike.numbers), np.bool_)
        for shape in [shape for shape in self._known if shape.quotes == alike.quotes]:
            having = alike.having(shape, left)
            if len(having) >= self.fewest_lines:
                yield shape, having
                left[having] = False
        while np.count_nonzero(left) >= self.fewest_lines and self._samples < _MOST_SAMPLES:
            self._samples += 1
            sample = int(left.argmax())
            if learned := learn(alike.lines.data(alike.numbers[sample])):
                self._known.append(learned)
                having = alike.having(learned, left)
                if len(having) >= self.fewest_lines:
                    yield learned, having
                left[having] = False
            left[sample] = False


class _Alike:
    """Lines of a block that have the same number of quotes."""

    def __init__(self, lines: Lines, numbers: Ints, quotes: int) -> None:
        self.lines, self.numbers, self.quotes = lines, numbers, quotes
        self._first = lines.first_quote[numbers]
        self._places: dict[int, Ints] = {0: lines.starts[numbers], quotes + 1: lines.ends[numbers]}

    def at(self, place: Place, among: Ints | slice) -> Ints:
        if place.n not in self._places:
            self._places[place.n] = self.lines.quotes[self._first + (place.n - 1)]
        return self._places[place.n][among] + place.bytes

    def having(self, shape: Shape, left: Mask) -> Ints:
        """Which of the lines that are left have a shape."""
        among: Ints | slice = slice(None) if left.all() else np.flatnonzero(left)
        for at, said in shape.literals:
            there = self.lines.bytes_at(self.at(at, among), len(said))
            if there.tobytes() != said * len(there):
                among = _narrowed(among, there == said)
        for value in shape.values:
            if not value.is_text:
                fits = self.at(value.begin, among) < self.at(value.end, among)
                if not fits.all():
                    among = _narrowed(among, fits)
        return np.arange(len(left)) if isinstance(among, slice) else among


def _narrowed(among: Ints | slice, fits: Mask) -> Ints | slice:
    return np.flatnonzero(fits) if isinstance(among, slice) else among[fits]


@dataclass
class _Spans:
    """Where in a block the values of one column stand. begin: -1 in lines that have none."""

    begin: Ints
    end: Ints
    is_text: Mask


class _Found:
    """Where in a block the values of each column stand, and what `fields` are."""

    def __init__(self, lines: Lines) -> None:
        self._lines, self._count = lines, len(lines.starts)
        self._sure: Mask = np.zeros(self._count, np.bool_)
        self._spans: dict[str, _Spans] = {}
        self._fields: list[tuple[Ints, pa.Array]] = []

    def add(self, shape: Shape, of: Ints, spans: Sequence[tuple[Ints, Ints]]) -> None:
        """Lines of a shape, and where each of its values begins and ends in them."""
        sure: Mask = np.ones(len(of), np.bool_)
        for i in shape.no_digits:
            first = self._lines.bytes[spans[i][0]]
            sure &= (first < ord("0")) | (first > ord("9"))
        for name, i in shape.columns.items():
            column = self._spans.get(name) or self._spans.setdefault(name, self._no_spans())
            column.begin[of], column.end[of] = spans[i]
            column.is_text[of] = shape.values[i].is_text
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

    def _no_spans(self) -> _Spans:
        count = self._count
        return _Spans(np.full(count, -1), np.full(count, -1), np.zeros(count, np.bool_))

    def rows(self) -> pa.Table:
        of = np.flatnonzero(self._sure)
        if not len(of):
            return _SCHEMA.empty_table()
        columns: list[pa.Array] = []
        sure: Mask = np.ones(len(of), np.bool_)
        for name in _COLUMNS:
            if name in self._spans:
                column, fine = self._column(name, self._spans[name], of)
                sure &= fine
            else:
                column = pa.nulls(len(of), _SCHEMA.field(name).type)
            columns.append(column)
        table = pa.Table.from_arrays([pa.array(of), *columns, self._fields_of(of)], schema=_SCHEMA)
        return table if sure.all() else table.filter(pa.array(sure))

    def _fields_of(self, of: Ints) -> pa.Array:
        said = pa.concat_arrays([said for _, said in self._fields])
        place = np.empty(self._count, np.int64)
        place[np.concatenate([lines for lines, _ in self._fields])] = np.arange(len(said))
        return said.take(pa.array(place[of]))

    def _column(self, name: str, spans: _Spans, of: Ints) -> tuple[pa.Array, Mask]:
        """A column, null where it has no value; and where it is known to be what it is."""
        begin, end, is_text = spans.begin[of], spans.end[of], spans.is_text[of]
        known: Mask = begin >= 0
        fine: Mask = np.ones(len(of), np.bool_)
        if name in ("id", "ts", "block"):
            numbers = np.zeros(len(of), np.int64)
            of_numbers = logcolumns.ms_of_numbers if name == "ts" else logcolumns.integers
            for some, read in ((is_text, logcolumns.ms_of_texts), (known & ~is_text, of_numbers)):
                if some.any():
                    texts = self._lines.texts(begin[some], end[some])
                    numbers[some], fine[some] = read(texts)
            return pa.array(numbers, mask=~known).cast(_SCHEMA.field(name).type), fine
        texts = self._lines.texts(
            np.where(known, begin, self._lines.starts[of]),
            np.where(known, end, self._lines.starts[of]),
        )
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
