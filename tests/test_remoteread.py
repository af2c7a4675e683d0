"""Remote read: the same rows as the JSON reply for the same time, and safe on any bytes."""

from __future__ import annotations

import io
import math
import random
import struct
import tracemalloc
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import cramjam
import prometheus_server
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_server import openmetrics
from test_promjson import item, matrix
from xor_encoder import STALE, bits_of, encoded, value_of

from tbforensics.evidence import SCHEMAS, series_id
from tbforensics.model import Capture, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson, prompb, promrows, remoteframes, remoteread

T0 = 1_773_136_800_000  # 2026-03-10T10:00:00Z in ms
START = datetime.fromtimestamp(T0 / 1000, UTC)
HOUR = Window(START, START + timedelta(hours=1))
Rows = dict[str, list[dict[str, Any]]]

real = pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")


def capture(**more: Any) -> Capture:
    settled = {"window": HOUR, "status": 200, "sha256": "0" * 64, **more}
    return Capture("main", "q", "samples", {}, START, **settled)


def gathered(found: Iterator[tuple[str, pa.Table]]) -> Rows:
    """All rows of each table, times in ms and values as bits."""
    tables: Rows = {}
    for name, table in found:
        assert table.schema == SCHEMAS[name]
        if "ts" in table.column_names:
            ts = table.column("ts").cast(pa.int64())
            table = table.set_column(table.column_names.index("ts"), "ts", ts)
        records = table.to_pylist()
        for record in records:
            if name == "samples":
                record["value"] = bits_of(record["value"])
        if records:
            tables.setdefault(name, []).extend(records)
    return tables


def read(body: bytes, *, without: dict[str, str] | None = None, **more: Any) -> Rows:
    found = remoteread.tables(capture(**more), io.BytesIO(body), without=without or {})
    return gathered(found)


# --- a real server -----------------------------------------------------------------------


def history() -> str:
    """Every class of a change of the delta, gaps, odd values, resets, and a long series."""
    draw = random.Random(11)
    steps = [15_000, 15_000, 15_001, 14_990, 1, 8_192, 70_000, 300_000, 540_000, 15_000, 15_000]
    times = [T0 - 900_000]
    while times[-1] < T0 + 4_500_000:
        times.append(times[-1] + draw.choice(steps))
    even = range(T0 - 600_000, T0 + 4_200_000, 15_000)
    odd = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308, 0.1, -1e-7]
    return openmetrics(
        {
            "jitter": {'a="1"': [(ms, draw.random()) for ms in times]},
            "odd": {'a="1"': [(ms, odd[n % len(odd)]) for n, ms in enumerate(even)]},
            "flat": {f'i="{n}"': [(ms, float(n)) for ms in even] for n in range(30)},
            "count": {
                f'i="{n}"': [(ms, float(k * (n + 1) % 1000)) for k, ms in enumerate(even)]
                for n in range(30)
            },
            "long": {
                'a="1"': [
                    (T0 + n * 250 + draw.randrange(99), draw.gauss(0, 1)) for n in range(16_000)
                ]
            },
            "late": {'a="é\\"\\n"': [(T0 + 3_599_999, 1.0), (T0 + 3_600_000, 2.0)]},
            "far": {'a="1"': [(T0 - 80_000_000, 1.0), (T0, 2.0), (T0 + 1, 3.0)]},
        }
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[prometheus_server.Server]:
    folder = tmp_path_factory.mktemp("prometheus")
    flags = ("--storage.remote.read-max-bytes-in-frame=4096",)
    with prometheus_server.serve(folder, history(), *flags) as running:
        yield running


def ask(url: str, selector: str, matchers: list[tuple[str, str, str]]) -> tuple[bytes, bytes]:
    """The JSON reply and the streamed reply for an hour."""
    end_ms = T0 + 3_600_000
    query = {"query": f"{selector}[1h]", "time": promql.seconds_text(end_ms - 1)}
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode(query)}") as reply:
        as_json = reply.read()
    body = remoteread.question(matchers, T0, end_ms - 1)
    request = urllib.request.Request(f"{url}/api/v1/read", body, dict(remoteread.HEADERS))
    with urllib.request.urlopen(request) as reply:
        assert "application/x-streamed-protobuf" in reply.headers["Content-Type"]
        return as_json, reply.read()


@real
@pytest.mark.parametrize(
    ("selector", "matchers"),
    [
        ("jitter", [("__name__", "=", "jitter")]),
        ("odd", [("__name__", "=", "odd")]),
        ("long", [("__name__", "=", "long")]),
        ("late", [("__name__", "=", "late")]),
        ("far", [("__name__", "=", "far")]),
        ('flat{i!="3"}', [("__name__", "=", "flat"), ("i", "!=", "3")]),
        ('count{i=~"1.*"}', [("__name__", "=", "count"), ("i", "=~", "1.*")]),
        ('count{i!~"1.*"}', [("__name__", "=", "count"), ("i", "!~", "1.*")]),
        ('{__name__=~".+"}', [("__name__", "=~", ".+")]),
        ("nothing", [("__name__", "=", "nothing")]),
    ],
)
def test_the_rows_are_those_of_the_json_reply(server, selector, matchers):
    as_json, streamed = ask(server.url, selector, matchers)
    expected = gathered(promrows.tables(capture(), promjson.read_reply(as_json), samples="samples"))
    assert read(streamed) == expected
    assert remoteread.explain(streamed) == ("", ())
    assert len(streamed) < len(as_json)
    assert bool(expected) == (selector != "nothing")


def field(number: int, content: bytes | int | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(content, float):
        return remoteframes.varint(number << 3 | 1) + struct.pack("<d", content)
    if isinstance(content, int):
        return remoteframes.varint(number << 3) + remoteframes.varint(content)
    head = remoteframes.varint(number << 3 | 2)
    return head + remoteframes.varint(len(content)) + content


def written(name: str, *points: bytes) -> bytes:
    """A series of a remote write request."""
    label = field(1, b"__name__") + field(2, name.encode())
    return field(1, field(1, label) + b"".join(points))


def sample(ms: int, value: float) -> bytes:
    return field(2, field(1, value) + field(2, ms))


def histogram(ms: int, count: int) -> bytes:
    """One bucket, from 1 to 2."""
    spans = field(11, field(1, 2) + field(2, 1))  # one bucket, from the first one on: zigzag
    rest = field(3, 1.5 * count) + spans + field(12, bytes([2 * count])) + field(15, ms)
    return field(4, field(1, count) + rest)


@real
def test_stale_markers_and_native_histograms_of_a_real_server(tmp_path):
    flags = ("--web.enable-remote-write-receiver", "--enable-feature=native-histograms")
    stale = value_of(STALE)
    with prometheus_server.serve(tmp_path, "# EOF\n", *flags) as server:
        request = b"".join(
            [
                written("m", sample(T0, 1.0), sample(T0 + 1, stale), sample(T0 + 2, 2.0)),
                written("gone", sample(T0 + 3, stale)),
                written("h", *(histogram(T0 + n, 3 + n) for n in range(3))),
            ]
        )
        body = bytes(cramjam.snappy.compress_raw(request))
        headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf"}
        urllib.request.urlopen(
            urllib.request.Request(f"{server.url}/api/v1/write", body, headers)
        ).close()
        matchers = [("__name__", "=~", ".+"), ("job", "=", "")]
        as_json, streamed = ask(server.url, '{__name__=~".+",job=""}', matchers)
    expected = gathered(promrows.tables(capture(), promjson.read_reply(as_json), samples="samples"))
    tables = read(streamed)
    assert tables["samples"] == expected["samples"] != []
    gone = {(sid(__name__="m"), T0 + 1), (sid(__name__="gone"), T0 + 3)}
    assert {(row["sid"], row["ts"]) for row in tables["stale"]} == gone
    assert len(expected["histograms"]) == 3
    assert reasons(tables) == [
        "native histogram chunks are kept in raw/ and not decoded: 1 of 3 series"
    ]
    assert remoteread.explain(streamed) == ("", (remoteread.HISTOGRAMS,))


# --- made by hand ------------------------------------------------------------------------

NAN = bits_of(math.nan)
Samples = list[tuple[int, int]]


def message(*series: tuple[dict[str, str], Sequence[bytes]], kind: int = prompb.XOR) -> bytes:
    """A frame's payload: each series with its chunks."""
    made = prompb.ChunkedReadResponse()
    for labels, chunks in series:
        one = made.chunked_series.add()
        for name, value in labels.items():
            one.labels.add(name=name.encode(), value=value.encode())
        for chunk in chunks:
            one.chunks.add(type=kind, data=chunk)
    return bytes(made.SerializeToString())


def framed(*payloads: bytes) -> bytes:
    return b"".join(map(remoteframes.framed, payloads))


def samples(tables: Rows) -> list[tuple[int, int, int]]:
    return [(row["sid"], row["ts"], row["value"]) for row in tables.get("samples", [])]


def reasons(tables: Rows) -> list[str]:
    return [row["reason"] for row in tables.get("quarantine", [])]


def sid(**labels: str) -> int:
    return series_id("main", "q", labels)


def run(start: int, count: int, value: float = 0.5) -> Samples:
    return [(T0 + 1000 * n, bits_of(value * n)) for n in range(start, start + count)]


GOOD = run(0, 20)
GOOD_ROWS = [(sid(a="good"), ms, value) for ms, value in GOOD]
GOOD_FRAME = message(({"a": "good"}, [encoded(GOOD)]))


def test_the_question_names_its_matchers_and_both_ends():
    body = remoteread.question([("__name__", "=", "m"), ("é", "!~", "x|y")], T0, T0 + 5)
    asked = prompb.ReadRequest.FromString(bytes(cramjam.snappy.decompress_raw(body)))
    (query,) = asked.queries
    assert (query.start_timestamp_ms, query.end_timestamp_ms) == (T0, T0 + 5)
    found = [(match.type, match.name.decode(), match.value.decode()) for match in query.matchers]
    assert found == [(0, "__name__", "m"), (3, "é", "x|y")]
    assert list(asked.accepted_response_types) == [prompb.STREAMED_XOR_CHUNKS]


LABELS = st.dictionaries(st.text("ab", min_size=1, max_size=2), st.text(max_size=3), max_size=2)
TIMES = st.integers(T0 - 3_000, T0 + 3_603_000) | st.integers(T0, T0 + 30)
VALUES = st.floats() | st.integers(0, 3).map(float)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(
        st.tuples(LABELS, st.lists(st.tuples(TIMES, VALUES), max_size=9), st.integers(1, 9)),
        max_size=6,
    )
)
def test_any_chunks_give_the_rows_of_the_same_samples_as_json(series):
    """Also where chunks overlap, overhang, contradict each other, or come in any order."""
    payloads = []
    for labels, pairs, size in series:
        found = [(ms, bits_of(value)) for ms, value in pairs]
        parts = [encoded(found[n : n + size]) for n in range(0, len(found), size)]
        payloads += [message((labels, parts[n : n + 2])) for n in range(0, len(parts), 2)]
    told = [item(labels, pairs) for labels, pairs, _ in series if pairs]
    as_json = promrows.tables(capture(), promjson.read_reply(matrix(*told)), samples="samples")
    body = framed(*payloads)
    assert read(body) == gathered(as_json)
    assert remoteread.explain(body) == ("", ())


def test_stale_markers_are_no_samples_but_moments_at_which_a_series_went_away():
    known = [
        *((T0, bits_of(1.0)), (T0 + 1, STALE), (T0 + 2, bits_of(2.0)), (T0 + 3, STALE)),
        *((T0 + 4, NAN), (T0 + 5, NAN | 7), (T0 + 3_600_000, STALE)),
    ]
    gone = [(T0 + 9, STALE)]
    tables = read(framed(message(({"a": "1"}, [encoded(known)]), ({"a": "2"}, [encoded(gone)]))))
    assert math.isnan(value_of(STALE))
    kept = [(T0, bits_of(1.0)), (T0 + 2, bits_of(2.0)), (T0 + 4, NAN), (T0 + 5, NAN)]
    assert samples(tables) == [(sid(a="1"), *pair) for pair in kept]
    expected = [(sid(a="1"), T0 + 1), (sid(a="1"), T0 + 3), (sid(a="2"), T0 + 9)]
    assert sorted((row["sid"], row["ts"]) for row in tables["stale"]) == sorted(expected)
    assert {row["sid"] for row in tables["series"]} == {sid(a="1"), sid(a="2")}


def test_labels_that_the_server_adds_to_this_answer_only_are_left_out():
    added = {"region": "eu", "replica": "a"}
    frames = [
        message(({"__name__": "m", **added}, [encoded(GOOD)])),
        message(({"__name__": "m", "region": "us", "replica": "a"}, [encoded(GOOD)])),
    ]
    tables = read(framed(*frames), without=added)
    expected = {sid(__name__="m"): [], sid(__name__="m", region="us"): [("region", "us")]}
    assert {row["sid"]: row["labels"] for row in tables["series"]} == expected
    assert {row["sid"] for row in tables["samples"]} == expected.keys()


def test_what_is_held_and_read_at_once_does_not_show(monkeypatch):
    frames = []
    for n in range(40):
        labels = {"i": str(n)}
        frames += [message((labels, [encoded(run(k, 4)), encoded(run(k + 3, 4))])) for k in (9, 0)]
    whole = read(framed(*frames))
    assert len(samples(whole)) == 40 * 14
    monkeypatch.setattr(remoteread, "_BLOCK_CHUNKS", 3)
    assert read(framed(*frames)) == whole
    monkeypatch.setattr(remoteread, "_BLOCK_SAMPLES", 5)
    assert read(framed(*frames)) == whole
    monkeypatch.setattr(remoteread, "_HELD_BYTES", 6000)
    parts = read(framed(*frames))
    assert samples(parts) != samples(whole)
    assert sorted(samples(parts)) == samples(whole)
    assert read(framed(*frames)) == parts


def test_a_series_without_end_is_read_in_parts(monkeypatch):
    monkeypatch.setattr(remoteread, "_BLOCK_SAMPLES", 50)
    monkeypatch.setattr(remoteread, "_MOST_OF_A_SERIES", 60)
    frames = [message(({"a": "long"}, [encoded(run(k, 20))])) for k in range(0, 2000, 20)]
    assert samples(read(framed(*frames))) == [(sid(a="long"), *pair) for pair in run(0, 2000)]


class Endless(io.RawIOBase):
    """A stream that is made while it is read."""

    def __init__(self, piece: bytes, times: int) -> None:
        self._left, self._piece, self._rest = times, piece, b""

    def read(self, size: int = -1) -> bytes:
        while len(self._rest) < size and self._left:
            self._rest += self._piece
            self._left -= 1
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def test_memory_does_not_grow_with_the_reply(monkeypatch):
    monkeypatch.setattr(remoteread, "_HELD_BYTES", 1 << 17)
    chunks = [encoded(run(0, 60))] * 2
    piece = framed(*(message(({"i": str(n)}, chunks)) for n in range(50)))

    def peak(times: int) -> tuple[int, int]:
        tracemalloc.start()
        rows = sum(
            table.num_rows
            for name, table in remoteread.tables(capture(), Endless(piece, times))  # type: ignore[arg-type]
            if name == "samples"
        )
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return rows, most

    few, many = peak(10), peak(60)
    assert many[0] > 5 * few[0]
    assert many[1] < 1.5 * few[1]


# --- what is not read --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [prompb.HISTOGRAM, prompb.FLOAT_HISTOGRAM])
def test_native_histograms_are_counted_and_said(kind):
    histogram = message(({"a": "h"}, [b"xyz"]), kind=kind)
    body = framed(histogram, histogram, GOOD_FRAME)
    tables = read(body)
    assert samples(tables) == GOOD_ROWS
    assert reasons(tables) == [
        "native histogram chunks are kept in raw/ and not decoded: 1 of 2 series"
    ]
    assert remoteread.explain(body) == ("", (remoteread.HISTOGRAMS,))


@pytest.mark.parametrize("kind", [0, 4, 250, -1])
def test_chunks_of_an_encoding_that_nobody_knows_are_counted_and_said(kind):
    tables = read(framed(message(({"a": "x"}, [b"xyz"]), kind=kind), GOOD_FRAME))
    assert samples(tables) == GOOD_ROWS
    assert reasons(tables) == [
        "chunks of an unknown encoding are kept in raw/ and not decoded: 1 of 2 series"
    ]


def test_series_with_label_names_without_end_are_set_aside_as_from_json():
    many = [({f"name{n}": "x"}, [(T0, 1.0)]) for n in range(1100)]
    frames = [message((labels, [encoded([(T0, bits_of(1.0))])])) for labels, _ in many]
    as_json = matrix(*(item(labels, found) for labels, found in many))
    expected = gathered(promrows.tables(capture(), promjson.read_reply(as_json), samples="samples"))
    assert read(framed(*frames)) == expected
    assert reasons(expected) == ["100 series have more than 1000 label names"]
    endless = message(({str(n): "x" for n in range(2000)}, [encoded(GOOD)]))
    tables = read(framed(endless, GOOD_FRAME))
    assert samples(tables) == GOOD_ROWS
    assert reasons(tables) == ["a series has labels without end"]
    long = [message(({"x" * 700_000 + str(n): "y"}, [encoded(GOOD)])) for n in range(3)]
    assert reasons(read(framed(*long))) == ["2 series have label names of megabytes"]


def test_a_label_that_is_no_text_costs_its_series_only():
    bad = GOOD_FRAME.replace(b"good", b"\xff\xfe\xfd\xfc")
    tables = read(framed(bad, GOOD_FRAME))
    assert samples(tables) == GOOD_ROWS
    assert reasons(tables) == ["not a series with labels"]


def test_a_chunk_that_lies_costs_itself_only():
    liar, cut = b"\xff\xff" + bytes(18), encoded(GOOD)[:-3]
    chunks = [liar, encoded(GOOD[:5]), cut, b"", encoded(GOOD[5:])]
    tables = read(framed(message(({"a": "good"}, chunks))))
    assert samples(tables) == GOOD_ROWS
    assert sorted(row["bytes"] for row in tables["quarantine"]) == sorted([liar, cut, b""])


def test_many_doubts_are_told_one_by_one_only_so_far(monkeypatch):
    monkeypatch.setattr(remoteread, "_MOST_DOUBTS", 5)
    tables = read(framed(message(({"a": "x"}, [b"?"] * 50)), GOOD_FRAME))
    assert samples(tables) == GOOD_ROWS
    assert len(tables["quarantine"]) == 6
    assert reasons(tables)[-1] == "45 more pieces cannot be read"


def test_an_answer_to_another_question_is_set_aside():
    other = prompb.ChunkedReadResponse.FromString(GOOD_FRAME)
    other.query_index = 1
    assert reasons(read(framed(other.SerializeToString()))) == [
        "a frame answers what was not asked"
    ]


# --- frames ------------------------------------------------------------------------------

REPLY = framed(GOOD_FRAME, message(({"a": "second"}, [encoded(GOOD)])))
ONE = len(framed(GOOD_FRAME))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (REPLY[:-1], f"the reply ends within a frame, after 1 good ones and {ONE} bytes"),
        (REPLY[: ONE + 1], f"the reply ends within a frame, after 1 good ones and {ONE} bytes"),
        (REPLY[:-1] + b"?", f"a frame is not what its checksum says, after 1 good ones and {ONE}"),
        (REPLY[:ONE] + b"\xff" * 99, "not a frame of remote read, after 1 good ones"),
        (REPLY + b"\0", "the reply ends within a frame, after 2 good ones"),
        (REPLY + b"\xff", "the reply ends within a frame, after 2 good ones"),
        (b"<html><body>Bad gateway</body></html>", "the reply ends within a frame, after 0"),
        (b'{"status":"error","error":"not enabled"}' * 9, "a frame is not what its checksum says"),
        (b"\x80\x80\x80\x08" + bytes(99), "the reply ends within a frame, after 0"),
        (b"\x81\x80\x80\x08" + bytes(99), "not a frame of remote read, after 0 good ones"),
    ],
)
def test_a_frame_that_lies_is_told_and_what_came_before_it_is_kept(body, why):
    said, notes = remoteread.explain(body)
    assert (said[: len(why)], notes) == (why, ())
    tables = read(body)
    rows = samples(tables)
    assert rows in ([], GOOD_ROWS, samples(read(REPLY)))
    assert bool(rows) == ("after 0" not in said)
    (row,) = tables["quarantine"]
    assert row["reason"].endswith("; what follows is lost")
    assert body[row["offset"] :].startswith(row["bytes"])


def test_nothing_is_an_answer():
    assert remoteread.explain(b"") == ("", ())
    assert read(b"") == {}
    assert read(framed(b"")) == {}


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_nothing_that_a_server_sends_raises(data):
    payload = message(({"a": "good"}, [encoded(GOOD), encoded(GOOD[3:])]), ({"b": "c"}, [b"\0\0"]))
    for _ in range(data.draw(st.integers(1, 4))):
        at, patch = data.draw(st.integers(0, len(payload))), data.draw(st.binary(max_size=5))
        payload = payload[:at] + patch + payload[at + data.draw(st.sampled_from([0, len(patch)])) :]
    noise = data.draw(st.binary(max_size=60))
    for body in (framed(payload, GOOD_FRAME), framed(noise), noise, framed(GOOD_FRAME) + noise):
        remoteread.explain(body)
        tables = read(body)
        assert len(samples(tables)) <= 4 * len(body)
    assert GOOD_ROWS[0] in samples(read(framed(GOOD_FRAME) + noise))


# --- labels ------------------------------------------------------------------------------


def test_labels_are_replaced_and_nothing_else_is():
    body = message(({"__name__": "m", "instance": "db-1"}, [encoded(GOOD)]), ({"b": "c"}, []))
    body = framed(body) + framed(message(({"instance": "db-1", "z": ""}, [encoded(GOOD[3:])])))
    found = remoteread.labels_in(body)
    assert found == [
        {"__name__": "m", "instance": "db-1"}, {"b": "c"}, {"instance": "db-1", "z": ""}
    ]  # fmt: skip
    assert remoteread.labels_in(remoteread.with_labels(body, found)) == found
    other = [
        {name: value.replace("db-1", "host-é" * 99) for name, value in s.items()} for s in found
    ]
    changed = remoteread.with_labels(body, other)
    assert remoteread.explain(changed) == ("", ()) and remoteread.labels_in(changed) == other
    assert b"db-1" not in changed
    kept = [sorted(row[1:] for row in samples(read(reply))) for reply in (body, changed)]
    assert kept[0] == kept[1] and kept[0]


@pytest.mark.parametrize("body", [b"SQLite format 3\0" * 9, b"\0", framed(b"?\0"), b"PK\3\4\0\0"])
def test_what_is_no_whole_reply_has_no_labels(body):
    assert remoteread.labels_in(body) is None
