"""Replies of the Prometheus API as columns, without a Python object per sample.

The samples are cut out of the reply first (`Reply.texts`), so that the JSON parser reads a small
skeleton, and all numbers are then converted at once (`numbers`). Both halves are checked: what is
left must be JSON, what was cut out must be nothing but `[time,"value"]` pairs. A reply that is
not JSON as a whole is read series by series, and whatever cannot be read is `broken`.

Why cutting is safe: `"values":[[` cannot occur within a JSON string, where every quotation mark
has a backslash before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from tbforensics.model import Json

_VALUES = b'"values":'
_CUT = b'"values":[['
_ITEM = b'{"metric":'
_LABELS_THEN_VALUES = re.compile(rb'\{"metric":(\{.*?\}),"values":\[(?=\[)', re.S)
_PLACEHOLDER_LIKE = re.compile(rb'"values":\s*[-0-9]')
_SAMPLE = re.compile(
    rb"\[\s*(-?\d{1,15}(?:\.\d{1,17})?)\s*,"
    rb'\s*"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?i:inf|nan))"\s*\]'
)
_NUMBER_BYTES = b"0123456789.+-eENaInf"
_BATCH_BYTES = 1 << 23  # converted at a time: fits a cache, and bounds the working memory
_SHOWN_BYTES = 4096

# Seconds of the years 1 to 9999; what no calendar holds is no time of a sample.
_FIRST_S, _LAST_S = -62_135_596_800, 253_402_300_800

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Broken:
    """A piece of a reply that cannot be read. `offset` is where it starts, -1 if unknown."""

    offset: int
    reason: str
    piece: bytes


@dataclass(frozen=True)
class Item:
    """One series of a reply: its labels, the text of its samples, its native histograms."""

    labels: Mapping[str, str]
    text: bytes | memoryview = b""  # `[time,"value"],[time,"value"]`, or what stands in its place
    offset: int = -1
    histograms: tuple[Json, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What one reply says.

    error: why it answers nothing, in the server's words where it has any; "" when it answers.
    notes: the server's warnings and infos, and whether it calls its answer partial.
    kind:  "matrix", "vector", "scalar" or "string" for the reply to a query, else "".
    data:  the `data` of the reply, where it does not hold series.
    """

    error: str = ""
    notes: tuple[str, ...] = ()
    kind: str = ""
    data: Json = None
    items: tuple[Item, ...] = ()
    broken: tuple[Broken, ...] = ()


def explain(body: bytes) -> tuple[str, tuple[str, ...]]:
    """Why a reply cannot be used, "" when it can; and what it says beside its answer."""
    skeleton, _ = _cut(body)
    try:
        tree = orjson.loads(skeleton)
    except orjson.JSONDecodeError as error:
        return _not_json(body, error), ()
    return _error(tree), _notes(tree)


def read_reply(body: bytes) -> Reply:
    """A reply of any endpoint. Never raises for what it holds."""
    skeleton, spans = _cut(body)
    try:
        tree = orjson.loads(skeleton)
    except orjson.JSONDecodeError as failure:
        why = _not_json(body, failure)
        items, broken = _salvage(body)
        broken = broken or (Broken(0, why, body[:_SHOWN_BYTES]),)
        return Reply("" if items else why, (), "matrix" if items else "", None, items, broken)
    if error := _error(tree):
        return Reply(error, _notes(tree))
    data = tree["data"]
    kind = data.get("resultType") if isinstance(data, dict) else None
    if kind not in ("matrix", "vector", "scalar"):
        whole = orjson.loads(body)["data"] if spans else data
        return Reply(notes=_notes(tree), kind=str(kind or ""), data=whole)
    result = data.get("result")
    if kind == "scalar":
        result = [{"metric": {}, "value": result}]
    reader = _Items(body, spans)
    reader.read(result if isinstance(result, list) else [{"metric": None, "result": result}])
    return Reply("", _notes(tree), kind, None, tuple(reader.items), tuple(reader.broken))


def compact(value: Json) -> bytes | None:
    """Canonical JSON: sorted keys, no spaces. None for what is nested too deeply to write."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return None


def numbers(items: Sequence[Item]) -> tuple[Ints, Ints, Floats, list[Broken]]:
    """The samples of items as columns.

    Shape:  (place of the item, time in ms, value), items in the order given.
    Exact:  values are the nearest double of their text, times whole milliseconds: a double of
            seconds holds them to a quarter of a microsecond, so rounding finds the one meant.
    """
    places, times, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    broken: list[Broken] = []

    def add(first: int, counts: Ints, moments: Ints, readings: Floats) -> None:
        places.append(np.repeat(np.arange(first, first + len(counts)), counts))
        times.append(moments)
        values.append(readings)

    for first, last in _batches(items):
        if together := _fast([item.text for item in items[first:last]]):
            add(first, *together)
            continue
        for place, item in enumerate(items[first:last], first):
            add(place, *(_fast([item.text]) or _slow(item, broken)))
    return np.concatenate(places), np.concatenate(times), np.concatenate(values), broken


def _batches(items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Ranges of items that have text, of about `_BATCH_BYTES` each."""
    first, size = 0, 0
    for place, item in enumerate(items):
        if not item.text:
            if first < place:
                yield first, place
            first, size = place + 1, 0
            continue
        size += len(item.text)
        if size >= _BATCH_BYTES:
            yield first, place + 1
            first, size = place + 1, 0
    if first < len(items):
        yield first, len(items)


def _fast(texts: Sequence[bytes | memoryview]) -> tuple[Ints, Ints, Floats] | None:
    """How many pairs each text of `[t,"v"],[t,"v"]` has, and the times and values of all.

    None when anything at all is unlike that. Each mark has its place beside a comma: when those
    hold it, and there are no more marks than places, what is left is two numbers a pair.
    """
    text = b",".join(texts)
    digits = text.translate(None, b'[],"')
    raw = np.frombuffer(text, np.uint8)
    commas = np.flatnonzero(raw == ord(","))
    count = (len(commas) + 1) // 2
    inner, outer = commas[0::2], commas[1::2]
    ends = np.cumsum([len(one) + 1 for one in texts])[:-1] - 1
    tight = (
        len(commas) == 2 * count - 1
        and len(text) == len(digits) + 6 * count - 1
        and text.startswith(b"[")
        and text.endswith(b'"]')
        and (raw[inner + 1] == ord('"')).all()
        and (raw[outer - 2] == ord('"')).all()
        and (raw[outer - 1] == ord("]")).all()
        and (raw[outer + 1] == ord("[")).all()
        and (raw[ends + 1] == ord("[")).all()  # or two halves of a pair, of two texts, look whole
    )
    if not tight:
        return None
    before = 6 * np.arange(count)  # marks before each pair
    edges = np.empty(2 * count + 1, np.int64)
    edges[0], edges[-1] = 0, len(digits)
    edges[1::2] = inner - before - 1
    edges[2:-1:2] = outer - before[1:] + 1
    if not (edges[1:] > edges[:-1]).all():
        return None
    column = pa.LargeStringArray.from_buffers(2 * count, pa.py_buffer(edges), pa.py_buffer(digits))
    try:
        both = column.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        return None
    seconds, values = both[0::2], both[1::2].copy()
    if not ((seconds >= _FIRST_S) & (seconds < _LAST_S)).all():
        return None
    if not np.isfinite(values).all() and digits.translate(None, _NUMBER_BYTES):
        return None  # `infinity` and `nan(1)` are numbers elsewhere
    counts = np.diff(np.searchsorted(outer, ends, "right"), prepend=0, append=count)
    return counts, np.rint(seconds * 1000.0).astype(np.int64), values


def _slow(item: Item, broken: list[Broken]) -> tuple[Ints, Ints, Floats]:
    """As `_fast`, pair by pair: keeps what can be read, and the rest as broken."""
    times, values, end = [], [], 0

    def between(start: int, stop: int) -> None:
        piece = bytes(item.text[start:stop]).strip(b", \t\r\n")
        if piece:
            at = -1 if item.offset < 0 else item.offset + start
            broken.append(Broken(at, "not a sample", piece[:_SHOWN_BYTES]))

    for match in _SAMPLE.finditer(item.text):
        seconds = float(match[1])
        if not _FIRST_S <= seconds < _LAST_S:
            continue  # stays between two good ones
        between(end, match.start())
        end = match.end()
        times.append(round(seconds * 1000.0))
        values.append(float(match[2]))
    between(end, len(item.text))
    return np.array([len(times)]), np.array(times, np.int64), np.array(values, np.float64)


# --- the skeleton ------------------------------------------------------------------------


def _cut(body: bytes) -> tuple[bytes, list[tuple[int, int]]]:
    """The reply with a number in place of each list of samples, and where each list was."""
    pieces: list[bytes] = []
    spans: list[tuple[int, int]] = []
    kept_from = at = 0
    while (found := body.find(_CUT, at)) >= 0:
        start = found + len(_CUT) - 1
        end = body.find(b"]]", start) + 1
        if end == 0:
            break
        at = end
        if body.find(b"{", start, end) >= 0:
            continue  # more than a list of samples: left to the JSON parser
        pieces += (body[kept_from : found + len(_VALUES)], b"%d" % len(spans))
        spans.append((start, end))
        kept_from = end + 1
    pieces.append(body[kept_from:])
    if any(_PLACEHOLDER_LIKE.search(piece) for piece in pieces[0::2]):
        return body, []  # it has such numbers of its own
    return b"".join(pieces), spans


class _Items:
    """Reads `data.result`."""

    def __init__(self, body: bytes, spans: list[tuple[int, int]]) -> None:
        self.items: list[Item] = []
        self.broken: list[Broken] = []
        self._body, self._unread = memoryview(body), dict(enumerate(spans))

    def read(self, result: list[Json]) -> None:
        for entry in result:
            labels = entry.get("metric") if isinstance(entry, dict) else None
            if not isinstance(labels, dict) or not _all_text(labels):
                self._refuse("not a series with labels", entry)
                continue
            text, offset = self._text(entry)
            one = [entry["histogram"]] if "histogram" in entry else []
            histograms = entry.get("histograms", one)
            if not isinstance(histograms, list):
                self._refuse("native histograms are not a list", histograms)
                histograms = []
            self.items.append(Item(labels, text, offset, tuple(histograms)))
        for start, end in self._unread.values():
            piece = bytes(self._body[start:end][:_SHOWN_BYTES])
            self.broken.append(Broken(start, "samples of no series", piece))

    def _text(self, entry: dict[str, Json]) -> tuple[bytes | memoryview, int]:
        values = entry.get("values", [entry["value"]] if "value" in entry else [])
        if type(values) is int and (span := self._unread.pop(values, None)):
            return self._body[slice(*span)], span[0]
        if isinstance(values, list) and (text := compact(values)) is not None:
            return text[1:-1], -1
        self._refuse("samples are not a list", values)
        return b"", -1

    def _refuse(self, reason: str, entry: Json) -> None:
        self.broken.append(Broken(-1, reason, (compact(entry) or b"")[:_SHOWN_BYTES]))


def _salvage(body: bytes) -> tuple[tuple[Item, ...], tuple[Broken, ...]]:
    """Series by series, of a reply that is not JSON as a whole."""
    items: list[Item] = []
    broken: list[Broken] = []
    if not body.startswith(b'{"status":"success",'):
        return (), ()
    start = body.find(_ITEM)
    while start >= 0:
        following = body.find(_ITEM, start + 1)
        stop = following if following >= 0 else len(body)
        chunk = body[start:stop]
        head = _LABELS_THEN_VALUES.match(chunk)
        try:
            labels = orjson.loads(head[1]) if head else None
        except orjson.JSONDecodeError:
            labels = None
        if head is None or not isinstance(labels, dict) or not _all_text(labels):
            broken.append(Broken(start, "not a series with labels", chunk[:_SHOWN_BYTES]))
        else:
            end = chunk.find(b"]]}", head.end())
            text = chunk[head.end() : end + 1 if end >= 0 else len(chunk)]
            items.append(Item(labels, text, start + head.end()))
            rest = chunk[end + 3 :] if end >= 0 else b""
            if rest != b"," and (following >= 0 or rest.strip() != b"]}}"):
                at = start + len(chunk) - len(rest)
                broken.append(Broken(at, "the reply is damaged here", rest[:_SHOWN_BYTES]))
        start = following
    return tuple(items), tuple(broken)


# --- what a reply says beside its data ---------------------------------------------------


def _error(tree: Json) -> str:
    if not isinstance(tree, dict) or "status" not in tree:
        return "not a reply of the Prometheus API"
    if tree["status"] != "success":
        return f"{tree.get('errorType', tree['status'])}: {tree.get('error', '')}"[:1000]
    return "" if "data" in tree else "the reply has no data"


def _notes(tree: Json) -> tuple[str, ...]:
    if not isinstance(tree, dict):
        return ()
    notes = []
    for word, name in (("warning", "warnings"), ("info", "infos")):
        said = tree.get(name)
        notes += [f"{word}: {text}"[:1000] for text in (said if isinstance(said, list) else ())]
    if tree.get("isPartial") is True:
        notes.append("warning: the server calls its answer partial")
    return tuple(notes)


def _not_json(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "the reply is empty"
    if body.lstrip()[:1] == b"<":
        return "HTML in place of JSON"
    return f"not JSON, or cut short after {len(body)} bytes: {error}"[:300]


def _all_text(labels: Mapping[Json, Json]) -> bool:
    return all(isinstance(value, str) for value in labels.values())
