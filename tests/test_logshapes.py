"""Lines read together give the rows that they give one by one, whatever they are."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_replies import in_base58

from tbforensics.evidence import SCHEMAS
from tbforensics.model import Window
from tbforensics.reading.logblock import Lines
from tbforensics.reading.logshapes import Shapes, learn
from tbforensics.reading.logtables import Reading

WINDOW = Window(datetime(2026, 3, 10, 10, tzinfo=UTC), datetime(2026, 3, 10, 11, tzinfo=UTC))
PEER = "0b" * 32


def told(data: bytes, *, together: bool) -> tuple[pa.Table, pa.Table, Any]:
    reading = Reading("logs", "q", "f", WINDOW, together=together, shapes=Shapes(fewest_lines=1))
    tables = {name: [SCHEMAS[name].empty_table()] for name in ("log_lines", "quarantine")}
    for name, table in reading.tables(io.BytesIO(data)):
        tables[name].append(table)
    found = [pa.concat_tables(parts) for parts in tables.values()]
    return found[0], found[1], reading.tally


def together(data: bytes) -> pa.Table:
    """The rows of a log, which are those that its lines give one by one."""
    one_by_one = told(data, together=False)
    found = told(data, together=True)
    for fast, slow in zip(found[:2], one_by_one[:2], strict=True):
        fast.validate(full=True)
        assert fast.to_pylist() == slow.to_pylist()
    assert found[2] == one_by_one[2]
    return found[0]


def without_help(data: bytes) -> list[int]:
    """Which lines, counted from 0, are read together."""
    rows = Shapes(fewest_lines=1).read(Lines(data))
    return [int(number) for number in rows["line"].to_pylist()]


def lines(*values: Any, spaced: bool = True) -> bytes:
    separators = None if spaced else (",", ":")
    return b"".join(
        json.dumps(value, ensure_ascii=False, separators=separators).encode() + b"\n"
        for value in values
    )


# --- what is read together ---------------------------------------------------------------------


def test_lines_of_one_statement_are_read_together() -> None:
    data = lines(
        *(
            {
                "timestamp": f"2026-03-10T10:00:0{i}.5Z", "level": "warning", "target": "net",
                "fields": {"message": f"dial {i}", "peer": in_base58(PEER), "tries": i, "s": i / 7},
            }
            for i in range(9)
        )
    )  # fmt: skip
    assert without_help(data) == list(range(9))
    last = together(data).to_pylist()[-1]
    assert (last["message"], last["level"], last["peer"]) == ("dial 8", "WARN", PEER)
    assert last["fields"] == '{"tries":8,"s":1.1428571428571428}'


def test_the_last_of_a_name_given_twice_counts_here_too() -> None:
    data = b'{"message":"first","n":1,"message":"last","n":2}\n' * 3
    assert without_help(data) == [0, 1, 2]
    assert together(data)["message"].to_pylist() == ["last"] * 3
    assert together(data)["fields"].to_pylist() == ['{"n":2}'] * 3


def test_lines_of_several_statements_keep_their_order() -> None:
    data = b"".join(
        lines({"msg": f"a{i}"}, {"msg": f"b{i}", "n": i}, {"event": i}) for i in range(9)
    )
    assert without_help(data) == list(range(27))
    assert [row["line"] for row in together(data).to_pylist()] == list(range(1, 28))


def test_escapes_are_read_where_they_are_spelled_as_we_spell_them() -> None:
    data = b"".join(
        b'{"message":"' + text + b'","x":"' + text + b'"}\n'
        for text in (rb"\"", rb"\\", rb"\\\"", rb"a\nb", rb"\\n", rb"\b\f\r\t", b"\xc3\xa9", b"")
    )
    assert without_help(data) == list(range(8))
    assert together(data)["message"].to_pylist()[:5] == ['"', "\\", '\\"', "a\nb", "\\n"]


@pytest.mark.parametrize(
    "odd",
    [
        b'{"message":"\\u00e9","n":1}',
        b'{"message":"\\/","n":1}',
        b'{"message":"\\x","n":1}',
        b'{"message":"\xff","n":1}',
        b'{"message":"\t","n":1}',
        b'{"message":"\0","n":1}',
        b'{"message":"m","n":01}',
        b'{"message":"m","n":1.50}',
        b'{"message":"m","n":-0}',
        b'{"message":"m","n":1e5}',
        b'{"message":"m","n":12345678901234567890}',
        b'{"message":"m","n":}',
        b'{"message":"m","n":1}}',
        b'{"message":"m","n":1} {"a":"b"}',
        b'{"message":"m","n":nan}',
        b'{"message":"m\\","n":1}',
        b'{"message":"m",\\"n":1}',
    ],
)
def test_a_line_that_is_only_nearly_of_a_shape_is_read_by_itself(odd: bytes) -> None:
    plain = b'{"message":"m","n":7}\n'
    data = plain * 3 + odd + b"\n" + plain
    assert without_help(data) == [0, 1, 2, 4]
    together(data)


@pytest.mark.parametrize(
    "value",
    [
        '"2026-03-10T10:00:00"',  # no zone
        '"2026-02-30T10:00:00Z"',
        '"1773136800"',
        '"yesterday"',
        '""',
        "-5",
        "99999999999999999",
        "1773136800.1234",
        "100000000000.5",
        "9223372036854775807",
    ],
)
def test_a_time_that_is_no_plain_one_is_told_as_it_is_alone(value: str) -> None:
    for plain in ('"2026-03-10T10:00:00Z"', "1773136800", "1773136800.5"):
        data = b"".join(b'{"ts":%s,"message":"m"}\n' % v.encode() for v in (plain, value, plain))
        assert {0, 2} <= set(without_help(data))
        together(data)
        together(data.replace(b'"ts"', b'"timestamp"'))


def test_a_text_where_a_number_is_expected_becomes_one_if_it_is_digits() -> None:
    data = lines(*({"id": i, "block": "x", "block_height": b} for i in ("a", "7") for b in "b8"))
    assert without_help(data) == [0]
    assert [(r["id"], r["block"]) for r in together(data).to_pylist()] == [
        (None, None), (None, 8), (7, None), (7, 8),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        b"[1]", b'"text"', b"plain text", b'{"a":[1,2]}', b'{"a":{"b":"c"},"msg":{"d":"e"}}',
        b'{"2000-01-01T00:00:00.000Z":"x"}', b'{"1000000000000":"x"}', b'{"a\\"":"x"}', b'{"a":"',
        b'{"a":"b"}x', b"{'a':'b'}", b'{"a":' * 2000 + b'"x"' + b"}" * 2000,
        b'\xef\xbb\xbf{"a":"b"}',
        b'{"timestamp":"x","a":' + b'["x"],"b":' * 500 + b"1}",
    ],
)  # fmt: skip
def test_what_has_no_shape_is_read_by_itself(line: bytes) -> None:
    assert learn(line) is None
    together((line + b"\n") * 3)


def test_lines_end_as_they_like() -> None:
    for end in (b"\n", b"\r\n"):
        data = end.join([b'{"message":"a"}', b'{"message":"b"}', b"", b' {"message":"c"} '] * 3)
        assert len(without_help(data)) >= 8
        together(data)


# --- whatever comes ----------------------------------------------------------------------------

NAMES = st.sampled_from(
    ["timestamp", "ts", "time", "ts_ns", "level", "lvl", "message", "msg", "event", "fields", "id",
     "block", "block_height", "peer", "peer_id", "tx", "correlation_id", "target", "logger", "x",
     "é"]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        ["", "7", "08", "info", " Warning ", "<encrypted>", "2026-03-10T10:00:00Z", "1773136800",
         "2026-03-10T10:30:00.123456789+01:00", "2026-03-10 10:00:00", PEER, in_base58(PEER), "\\",
         '"', "\u2028", "\x7f", "2000-01-01T00:00:00.001Z", "1000000000001"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 9),
    st.floats(),
    st.sampled_from([1773136800, 1773136800123, 1773136800000000000, 1773136800.25, 1e16, -0.0]),
)
KINDS = st.sampled_from([TEXTS, TEXTS, NUMBERS, st.sampled_from([None, True]), st.just({"a": "b"})])


@st.composite
def logs(draw: st.DrawFn) -> bytes:
    """Lines of a few statements in any order, some of them changed."""
    statements = draw(
        st.lists(st.lists(st.tuples(NAMES, KINDS), min_size=1, max_size=6), min_size=1, max_size=3)
    )
    out = []
    spelled = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}]))
    for _ in range(draw(st.integers(1, 12))):
        members = [(name, draw(kind)) for name, kind in draw(st.sampled_from(statements))]
        if draw(st.integers(0, 4)) == 0:
            members.append(("fields", dict(draw(st.lists(st.tuples(NAMES, TEXTS), max_size=3)))))
        # Member by member, because a name may come twice.
        line = ",".join(f"{json.dumps(n)}:{json.dumps(v, **spelled)}" for n, v in members)
        data = b"{" + line.encode("utf-8", "surrogatepass") + b"}"
        if draw(st.integers(0, 5)) == 0:
            at, odd = draw(st.integers(0, len(data))), draw(st.binary(max_size=3))
            data = data[:at] + odd + data[at + draw(st.integers(0, 2)) :]
        out.append(data)
    return draw(st.sampled_from([b"\n", b"\n", b"\r\n"])).join(out) + draw(
        st.sampled_from([b"", b"\n"])
    )


@settings(max_examples=400, deadline=None)
@given(logs())
def test_any_log_gives_the_rows_that_its_lines_give_one_by_one(data: bytes) -> None:
    together(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_among_lines_give_the_rows_that_they_give_one_by_one(a: bytes, b: bytes) -> None:
    line = b'{"ts":1773136800,"message":"m","x":"' + a + b'","n":1}\n'
    together(line + a + b"\n" + line.replace(a, b) + b + line)
