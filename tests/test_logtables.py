"""From bytes to tables: blocks, arrays, compression, and that no bytes at all can break it."""

from __future__ import annotations

import gzip
import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.evidence import SCHEMAS
from tbforensics.model import Window
from tbforensics.reading import logstream
from tbforensics.reading.logtables import MOST_QUARANTINED, Reading

TEN = 1_773_136_800_000  # 2026-03-10T10:00:00Z in ms


def read(data: bytes, **how: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Reading]:
    """Kept lines, quarantined pieces, and the reading with its tally."""
    reading = Reading("logs", "log_lines", "f", **how)
    found: dict[str, list[dict[str, Any]]] = {"log_lines": [], "quarantine": []}
    for name, table in reading.tables(io.BytesIO(data)):
        assert table.schema == SCHEMAS[name]
        found[name] += table.to_pylist()
    return found["log_lines"], found["quarantine"], reading


# --- from bytes to lines -----------------------------------------------------------------


def test_line_numbers_count_physical_lines_and_offsets_count_bytes() -> None:
    data = b'{"message":"a"}\r\n\r\n{"torn\n{"message":"\xc3\xa9"}\n{"message":"c"}'
    kept, bad, _ = read(data)
    assert [(r["line"], r["offset"], r["message"]) for r in kept] == [
        (1, 0, "a"),
        (4, 26, "é"),
        (5, 43, "c"),
    ]
    assert [(r["line"], r["offset"], r["bytes"]) for r in bad] == [(3, 19, b'{"torn')]
    assert data[26:].startswith(b'{"message":"\xc3')


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress, lambda data: data])
def test_compression_is_told_by_the_first_bytes(pack: Any) -> None:
    kept, bad, _ = read(pack(b'{"message":"a"}\n') + pack(b'{"message":"b"}\n'))
    assert ([r["message"] for r in kept], bad) == (["a", "b"], [])


@pytest.mark.parametrize(
    "data",
    [
        b'[{"id":1,"message":"a"},{"id":2,"message":"b"}]',
        b'\xef\xbb\xbf [\n  {\n    "id": 1, "message": "a"\n  },\n  {"id": 2, "message": "b"}\n]\n',
        b'[{"id":1,"message":"a"},\n{"id":2,"message":"b"}]',
    ],
)
def test_a_file_that_is_one_array_gives_places_as_line_numbers(data: bytes) -> None:
    kept, bad, _ = read(data)
    assert [(r["line"], r["id"], r["message"]) for r in kept] == [(1, 1, "a"), (2, 2, "b")]
    assert bad == []
    assert all(data[r["offset"] :].startswith(b"{") for r in kept)


def test_an_array_longer_than_any_line_may_be_is_read_element_by_element() -> None:
    rows = [{"id": i, "message": "ü" * 500} for i in range(6000)]
    kept, bad, _ = read(json.dumps(rows, ensure_ascii=False).encode())
    assert ([r["id"] for r in kept], bad) == (list(range(6000)), [])


def test_a_file_of_arrays_one_a_line_is_not_one_array() -> None:
    lines = b'[{"id":1},{"id":2}]\n[{"id":3}]\n'
    for data in (lines, b'[{"id":0},{"to\n' + lines):
        kept, _, _ = read(data)
        assert [r["id"] for r in kept] == [1, 2, 3]
        assert kept[0]["line"] == kept[1]["line"] == kept[2]["line"] - 1


@pytest.mark.parametrize("rest", [b'{"id":', b"{'id':3}]", b"", b"\xff]", b'{"id":3}'])
def test_an_array_that_breaks_off_keeps_what_came_before(rest: bytes) -> None:
    kept, bad, reading = read(b'[{"id":1},{"id":2},' + rest)
    assert [r["id"] for r in kept][:2] == [1, 2]
    assert (len(bad), bool(reading.tally.stopped)) == (1, True)


def test_a_line_without_end_is_cut_and_the_next_one_is_read() -> None:
    data = b'{"message":"' + b"x" * 9_000_000 + b'"}\n{"message":"next"}\n'
    kept, bad, _ = read(data)
    assert [(r["line"], r["message"]) for r in kept] == [(2, "next")]
    assert kept[0]["offset"] == data.rindex(b'{"message"')
    assert (bad[0]["line"], len(bad[0]["bytes"])) == (1, 4096)
    assert "longer than" in bad[0]["reason"]


def test_a_line_of_two_million_bytes_inside_a_block_is_refused_as_well() -> None:
    data = b'{"message":"a"}\n{"message":"' + b"x" * 2_000_000 + b'"}\n{"message":"b"}\n'
    kept, bad, _ = read(data)
    assert [r["line"] for r in kept] == [1, 3]
    assert [r["line"] for r in bad] == [2]


def test_a_bomb_is_not_expanded_and_what_came_before_it_is_kept() -> None:
    good = b'{"message":"before"}\n'
    for data in (gzip.compress(good + bytes(100 << 20)), zstandard.compress(good + bytes(1 << 28))):
        kept, bad, reading = read(data)
        assert [r["message"] for r in kept] == ["before"]
        assert "not expanded further" in reading.tally.stopped
        assert bad[-1]["reason"] == reading.tally.stopped


def test_a_compressed_file_that_ends_early_keeps_what_came() -> None:
    lines = b"".join(
        b'{"message":"%d %s"}\n' % (i, bytes([97 + i % 26]) * (i % 90)) for i in range(4000)
    )
    packed = gzip.compress(lines)
    kept, bad, reading = read(packed[: len(packed) // 2])
    assert len(kept) > 500
    assert [r["line"] for r in kept] == list(range(1, len(kept) + 1))
    assert "compression is broken" in reading.tally.stopped
    assert bad


@pytest.mark.parametrize("data", [b"\x1f\x8b", b"\x1f\x8b\x08junk", b"\x28\xb5\x2f\xfd\0\0\0"])
def test_a_file_that_only_begins_as_a_compressed_one_is_quarantined(data: bytes) -> None:
    kept, bad, _ = read(data)
    assert kept == []
    assert len(bad) == 1


def test_a_database_is_not_read_as_lines() -> None:
    _, bad, _ = read(b"SQLite format 3\0" + bytes(range(256)) * 100)
    assert [r["reason"] for r in bad] == ["an SQLite file, not log lines"]


def test_a_file_that_is_no_log_does_not_fill_the_case() -> None:
    _, bad, reading = read(b"\xff\n" * (MOST_QUARANTINED + 500))
    assert len(bad) == MOST_QUARANTINED + 1
    assert bad[-1]["reason"] == "500 more pieces of this file cannot be read"
    assert reading.tally.unreadable == MOST_QUARANTINED + 500


def test_an_empty_file_is_nothing() -> None:
    assert read(b"")[:2] == read(b"\n\n \n")[:2] == ([], [])


# --- the window --------------------------------------------------------------------------


def test_lines_outside_the_window_are_counted_and_left_out() -> None:
    window = Window(datetime(2026, 3, 10, 10, tzinfo=UTC), datetime(2026, 3, 10, 11, tzinfo=UTC))
    data = b"".join(
        line + b"\n"
        for line in (
            b'{"message":"head without a time"}',
            b'{"timestamp":1773136799,"message":"before"}',
            b"    at frame of before",
            b'{"timestamp":1773136800,"message":"first"}',
            b"    at frame of first",
            b'{"timestamp":1773140399,"message":"last"}',
            b'{"timestamp":1773140400,"message":"after"}',
            b"    at frame of after",
        )
    )
    kept, _, reading = read(data, window=window)
    assert [r["line"] for r in kept] == [1, 4, 5, 6]
    told = reading.tally.to_json()
    assert (told["rows"], told["kept"], told["outside_window"]) == (8, 4, 4)
    assert (told["first"], told["last"]) == ("2026-03-10T09:59:59Z", "2026-03-10T11:00:00Z")


# --- whatever comes ----------------------------------------------------------------------

GOOD = st.integers(0, 10**6).map(lambda n: json.dumps({"id": n, "message": f"good {n}"}).encode())
BAD = st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"").replace(b"\r", b""))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"[{"]))
def test_no_bytes_at_all_raise(data: bytes, head: bytes) -> None:
    kept, _, reading = read(head + data)
    assert len(kept) == reading.tally.kept
    pa.array([r["message"] for r in kept], pa.string())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(GOOD, BAD, st.text(max_size=40).map(lambda t: t.encode())), max_size=30))
def test_good_lines_among_bad_ones_survive_with_their_numbers(lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b"").replace(b"\r", b"") for line in lines]
    if lines and lines[0].startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"SQLite", b"[")):
        lines[0] = b""  # that would be another kind of file
    kept, bad, _ = read(b"\n".join(lines))
    expected = {
        place: json.loads(line)["id"]
        for place, line in enumerate(lines, 1)
        if line.startswith(b'{"id": ') and b"good" in line
    }
    got = {r["line"]: r["id"] for r in kept if r["line"] in expected}
    assert got == expected
    assert not {r["line"] for r in bad} & set(expected)
    data = b"\n".join(lines)
    for r in bad:
        assert data[r["offset"] :].startswith(r["bytes"])


@settings(max_examples=30, deadline=None)
@given(st.lists(GOOD, min_size=1, max_size=40), st.integers(1, 64))
def test_lines_are_the_same_however_the_bytes_arrive(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    whole = read(data)[0]
    chunks = (data[at : at + size] for at in range(0, len(data), size))
    cut = [
        (block.first_line, block.offset, block.data) for block in logstream._blocks(iter(chunks))
    ]
    assert b"".join(piece for _, _, piece in cut) == data
    assert all(data[offset:].startswith(piece) for _, offset, piece in cut)
    assert whole[-1]["line"] == cut[-1][0] + cut[-1][2].rstrip(b"\n").count(b"\n")
