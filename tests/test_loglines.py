"""What one line says: JSON of several makers, times, plain text."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_replies import in_base58

from tbforensics.reading.loglines import rows_of_line
from tbforensics.reading.logrows import Clock, LineError, Row, time_ms

TEN = 1_773_136_800_000  # 2026-03-10T10:00:00Z in ms
UTC_CLOCK = Clock(UTC, datetime(2026, 3, 10, tzinfo=UTC))
PEER = "07" * 32


def row(line: str | bytes, clock: Clock = UTC_CLOCK) -> Row:
    (found,) = rows_of_line(line if isinstance(line, bytes) else line.encode(), clock)
    assert isinstance(found, Row)
    return found


# --- JSON of several makers --------------------------------------------------------------


def test_a_row_of_the_log_store() -> None:
    said = row(
        '{"id":41,"timestamp":1773136800,"level":"WARN","message":"QUIC certificate validation '
        f'failed","correlation_id":"deadbeef00112233","peer":"{PEER}","tx":null,"block":12}}'
    )
    assert said == Row(
        id=41,
        ts_ms=TEN,
        level="WARN",
        message="QUIC certificate validation failed",
        correlation_id="deadbeef00112233",
        peer=PEER,
        tx=None,
        block=12,
        target=None,
        fields="{}",
    )


def test_a_line_of_tracing_subscriber() -> None:
    said = row(
        '{"timestamp":"2026-03-10T10:00:00.123456Z","level":"WARN","fields":{"message":"QUIC '
        f'fingerprint mismatch","peer":"{in_base58(PEER)}","expected":"5f"}},"target":"p2p"}}'
    )
    assert (said.ts_ms, said.target, said.peer) == (TEN + 123, "p2p", PEER)
    assert (said.message, said.fields) == ("QUIC fingerprint mismatch", '{"expected":"5f"}')


def test_a_line_of_the_node_itself_has_no_time() -> None:
    said = row(
        '{"level":"error","target":"node::net","module":"net","file":"mod.rs","line":7,'
        '"message":"quic_connect_fail","fields":{"reason":"tls"}}'
    )
    assert (said.ts_ms, said.level, said.target) == (None, "ERROR", "node::net")
    assert json.loads(said.fields) == {
        "module": "net",
        "file": "mod.rs",
        "line": 7,
        "reason": "tls",
    }


def test_a_line_of_structlog() -> None:
    said = row(
        '{"intent_id":"a","event":"live_halted","timestamp":"2026-03-10T10:00:00.5Z",'
        '"level":"warning","logger":"broker"}'
    )
    assert (said.ts_ms, said.level, said.message) == (TEN + 500, "WARN", "live_halted")
    assert (said.target, said.fields) == ("broker", '{"intent_id":"a"}')


def test_a_journal_row_has_no_message_and_keeps_everything() -> None:
    said = row('{"symbol":"ATOM/USDT","qty":-3.0,"ts_ns":1773136800000000000}')
    assert (said.ts_ms, said.message) == (TEN, None)
    assert json.loads(said.fields) == {"symbol": "ATOM/USDT", "qty": -3.0}


def test_an_array_is_one_row_for_each_element_and_a_bad_one_is_alone() -> None:
    rows = rows_of_line(b'[{"asset":"USDT","ts_ns":1773136800000},3,{"asset":"ATOM"}]')
    assert [isinstance(r, Row) for r in rows] == [True, False, True]
    assert str(rows[1]) == "it is a number, not an object"


def test_the_last_of_a_name_given_twice_counts() -> None:
    assert row('{"message":"first","message":"last"}').message == "last"
    assert row('{"message":"first","x":NaN,"message":"last"}').message == "last"


def test_a_name_at_the_top_and_under_fields_keeps_both() -> None:
    said = row('{"message":"top","fields":{"message":"inner","peer":"x"}}')
    assert (said.message, said.peer, said.fields) == ("top", "x", '{"fields":{"message":"inner"}}')


def test_values_of_unexpected_types_stay_in_fields() -> None:
    said = row('{"level":[3],"peer":7,"block":"n/a","id":"55","message":{"a":1},"tx":"","n":null}')
    assert (said.level, said.peer, said.block, said.tx) == (None, None, None, None)
    assert said.message == '{"a":1}'
    assert json.loads(said.fields) == {"level": [3], "peer": 7, "block": "n/a"}
    assert said.id == 55


def test_a_field_called_time_may_be_a_duration() -> None:
    said = row('{"level":"warn","message":"slow","time":"12ms","ts_ns":1773136800000000000}')
    assert (said.ts_ms, said.fields) == (TEN, '{"time":"12ms"}')


def test_numbers_beyond_64_bits_keep_every_digit() -> None:
    said = row('{"id":99999999999999999999,"a":123456789012345678901234567890}')
    assert said.id is None
    assert said.fields == '{"id":99999999999999999999,"a":123456789012345678901234567890}'


def test_what_python_and_javascript_write_beyond_json_is_kept_as_text() -> None:
    said = row(rb'{"message":"cut \ud83d","a":NaN,"b":-Infinity,"c":1e999}')
    assert said.message == "cut ?"
    assert json.loads(said.fields) == {"a": "NaN", "b": "-Infinity", "c": "1e999"}


def test_hostile_text_stays_as_it_came() -> None:
    text = "\x1b[31m</script>\u202e\u0000\u2028|`x`"
    assert row(json.dumps({"message": text})).message == text


@pytest.mark.parametrize("depth", [200, 300, 900])
def test_a_deeply_nested_line_is_still_a_line(depth: int) -> None:
    said = row('{"message":"m","a":' + "[" * depth + "]" * depth + "}")
    assert said.message == "m"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"message":"torn', "not JSON"),
        (b'{"message":"x"} trailing', "not JSON"),
        (b'{"message":"raw \x1b control"}', "not JSON"),
        (b'{"message":"\xff"}', "invalid UTF-8"),
        (b"caf\xe9", "invalid UTF-8"),
        (b'{"message":"\0"}', "NUL"),
        (b"\0\0\0", "NUL"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested too deep"),
        (b'[{"a":1}', "not JSON"),
        (b'{"timestamp":"yesterday"}', "time cannot be read"),
        (b'{"timestamp":true}', "time cannot be read"),
        (b'{"timestamp":[1]}', "time cannot be read"),
        (b'{"timestamp":-5}', "time cannot be read"),
        (b'{"timestamp":NaN}', "time cannot be read"),
        (b'{"timestamp_ns":' + b"9" * 40 + b"}", "time cannot be read"),
        (b'{"n":' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(line: bytes, reason: str) -> None:
    with pytest.raises(LineError, match=reason):
        rows_of_line(line)


# --- times -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        1773136800,
        1773136800000,
        1773136800000000,
        1773136800000000000,
        1773136800.0,
        "1773136800",
        "2026-03-10T10:00:00Z",
        "2026-03-10 10:00:00.000000000+00:00",
        "2026-03-10T11:00:00+01:00",
        "2026-03-10T10:00:00 UTC",
        "20260310T100000Z",
    ],
)
def test_a_time_is_told_by_its_size_and_not_by_its_name(value: Any) -> None:
    assert time_ms(value) == TEN


def test_nanoseconds_never_pass_through_a_float() -> None:
    assert time_ms(1773136800123999999) == TEN + 123
    assert time_ms("2026-03-10T10:00:00.123999999Z") == TEN + 123
    assert time_ms(1773136800.123) == TEN + 123


def test_a_time_without_a_zone_is_no_time_until_somebody_names_the_zone() -> None:
    line = '{"timestamp":"2026-03-10 11:00:00","message":"m"}'
    said = row(line, Clock())
    assert (said.ts_ms, said.fields) == (None, '{"timestamp":"2026-03-10 11:00:00"}')
    assert row(line, Clock(ZoneInfo("Europe/Berlin"))).ts_ms == TEN


# --- plain text --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "level", "target", "message"),
    [
        ("2026-03-10T10:00:00Z  WARN p2p::net: it failed", "WARN", "p2p::net", "it failed"),
        ("[2026-03-10T10:00:00Z ERROR node] it failed", "ERROR", "node", "it failed"),
        ("2026-03-10T11:00:00+01:00 [error] it failed", "ERROR", None, "it failed"),
        ("2026-03-10 10:00:00,000 - app.x - WARNING - it failed", "WARN", "app.x", "it failed"),
        ("I0310 10:00:00.000000   123 file.go:12] it failed", "INFO", "file.go:12", "it failed"),
        ("2026-03-10T10:00:00Z error paths: none", None, None, "error paths: none"),
        ("1773136800000000000\tinitial\tab12", None, None, "initial\tab12"),
        ("[1773136800.000] it failed", None, None, "it failed"),
        (
            "time=2026-03-10T10:00:00Z level=info msg=it-failed",
            "INFO",
            None,
            "it-failed",
        ),
    ],
)
def test_the_usual_styles_of_plain_text(
    line: str, level: str | None, target: str | None, message: str
) -> None:
    said = row(line)
    assert (said.ts_ms, said.level, said.target, said.message) == (TEN, level, target, message)


def test_pairs_in_plain_text_are_fields_and_stay_in_the_message() -> None:
    said = row(f'2026-03-10T10:00:00Z WARN p2p: no peer={in_base58(PEER)} block=9 error="a b"')
    assert (said.peer, said.block, said.fields) == (PEER, 9, '{"error":"a b"}')
    assert said.message is not None
    assert said.message.endswith('block=9 error="a b"')


def test_a_coloured_line_is_read_and_kept_whole() -> None:
    line = "\x1b[2m2026-03-10T10:00:00Z\x1b[0m \x1b[33m WARN\x1b[0m p2p: it failed"
    said = row(line)
    assert (said.ts_ms, said.level, said.target, said.message) == (TEN, "WARN", "p2p", line)


@pytest.mark.parametrize(
    "line", ["just text", "123", "null", "[x", "1773136800 bytes", "2026-13-77T10:00:00Z x"]
)
def test_a_line_of_no_known_style_is_all_message(line: str) -> None:
    assert row(line)[:5] == (None, None, None, line, None)


def test_a_klog_line_of_december_belongs_to_the_year_before() -> None:
    said = row("I1231 23:59:59.000000 1 x.go:1] m", Clock(UTC, datetime(2026, 1, 1, tzinfo=UTC)))
    assert said.ts_ms == time_ms("2025-12-31T23:59:59Z")


# --- whatever comes ---


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=10,
    )
)
def test_any_json_is_a_row_or_a_reason(value: Any) -> None:
    line = json.dumps({"message": "m", "x": value, "level": value, "peer": value}).encode()
    said = row(line)
    assert said.message == "m"
    json.loads(said.fields)
