"""Replies as columns: exact, and safe on whatever a server sends."""

from __future__ import annotations

import json
import math
import struct
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tbforensics.evidence import SCHEMAS, series_id
from tbforensics.model import Capture, Window
from tbforensics.reading import promjson
from tbforensics.sources.prometheus import SOURCE

T0 = 1_773_136_800_000  # 2026-03-10T10:00:00Z in ms
ASKED = datetime(2026, 3, 11, tzinfo=UTC)


def bits(value: float) -> int:
    """What tells any two doubles apart; JSON knows one NaN only."""
    value = math.nan if math.isnan(value) else value
    return struct.unpack("<q", struct.pack("<d", value))[0]


def go_text(value: float) -> str:
    """As Prometheus writes a value."""
    if math.isnan(value):
        return "NaN"
    return ("+Inf" if value > 0 else "-Inf") if math.isinf(value) else repr(value)


def go_time(ms: int) -> str:
    sign, ms = ("-", -ms) if ms < 0 else ("", ms)
    return f"{sign}{ms // 1000}" + (f".{ms % 1000:03d}" if ms % 1000 else "")


def item(labels: dict[str, str], samples: list[tuple[int, float]]) -> str:
    values = ",".join(f'[{go_time(ms)},"{go_text(value)}"]' for ms, value in samples)
    return f'{{"metric":{json.dumps(labels, separators=(",", ":"))},"values":[{values}]}}'


def matrix(*items: str) -> bytes:
    text = f'{{"status":"success","data":{{"resultType":"matrix","result":[{",".join(items)}]}}}}'
    return text.encode("utf-8", "surrogatepass")


def parsed(body: bytes, *, role: str = "samples", **more: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table, with times in ms."""
    capture = Capture("main", "q", role, {}, ASKED, **{"status": 200, "sha256": "0" * 64, **more})
    tables: dict[str, list[dict[str, Any]]] = {}
    for name, table in SOURCE.parse(capture, BytesIO(body)):
        assert table.schema == SCHEMAS[name]
        if "ts" in table.column_names:
            ts = table.column("ts").cast(pa.int64())
            table = table.set_column(table.column_names.index("ts"), "ts", ts)
        assert name not in tables
        tables[name] = table.to_pylist()
    return tables


def samples(body: bytes, **more: Any) -> list[tuple[int, int, float]]:
    return [(r["sid"], r["ts"], r["value"]) for r in parsed(body, **more).get("samples", [])]


def sid(**labels: str) -> int:
    return series_id("main", "q", labels)


# --- exact -------------------------------------------------------------------------------

LABELS = st.dictionaries(st.text(max_size=8), st.text(max_size=20), max_size=3)
TIMES = st.integers(-62_135_596_800_000, 253_402_300_799_999) | st.integers(T0, T0 + 9_999_999)
SERIES = st.tuples(LABELS, st.dictionaries(TIMES, st.floats(), min_size=1, max_size=6))
NASTY = '"values":[[1,"2"]],{"metric":{}} ]]}\\"'


@settings(max_examples=300, deadline=None)
@given(st.lists(SERIES, max_size=6, unique_by=lambda pair: tuple(sorted(pair[0].items()))))
@example([({"a": NASTY, NASTY: "b"}, {T0: 5e-324, T0 + 1: -0.0, T0 + 999: math.nan})])
@example([({"values": '"values":[['}, {T0: math.inf, T0 + 1: -math.inf, T0 - 1: 0.1 + 0.2})])
def test_what_a_server_writes_is_read_back_to_the_millisecond_and_bit(series):
    tables = parsed(matrix(*(item(labels, [*found.items()]) for labels, found in series)))
    expected = sorted(
        (sid(**labels), ms, bits(value)) for labels, found in series for ms, value in found.items()
    )
    assert [(r["sid"], r["ts"], bits(r["value"])) for r in tables["samples"]] == expected
    assert "quarantine" not in tables
    named = {sid(**labels): labels for labels, _ in series}
    for row in tables["series"]:
        labels = dict(named.pop(row["sid"]))
        assert (row["metric"], row["source"], row["query"]) == (
            labels.pop("__name__", ""),
            "main",
            "q",
        )
        assert row["labels"] == sorted(labels.items())
    assert not named


@settings(max_examples=200, deadline=None)
@given(st.from_regex(r"\A[+-]?([0-9]{1,25}\.?[0-9]{0,25}|\.[0-9]{1,9})([eE][+-]?[0-9]{1,3})?\Z"))
def test_any_decimal_becomes_its_nearest_double(text):
    body = matrix(f'{{"metric":{{}},"values":[[1,"{text}"]]}}')
    ((_, _, value),) = samples(body)
    assert bits(value) == bits(float(text))


def test_the_fast_and_the_slow_way_agree():
    found = [(T0 + 15_001 * n, n * 0.1) for n in range(1000)]
    tight = matrix(item({"a": "1"}, found), item({"a": "2"}, found))
    loose = json.dumps(json.loads(tight), indent=1).encode()
    assert samples(loose) == samples(tight)
    spaced = tight.replace(b',"', b', "')
    assert samples(spaced) == samples(tight)


WRONG = st.sampled_from(
    ["", *'[],"', "][", '""', ",,", "1", "-", " ", "infinity", "nan(1)", "\u0661"]
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["1", "22.5", "1e3", "NaN"]), min_size=1), min_size=1),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), WRONG), max_size=2),
)
@example([["1"]], [(0.01, 4, ""), (0.5, 0, '"')])  # one mark serves two, another stands elsewhere
@example([["1"]], [(0.5, 0, '",1,"')])
def test_the_fast_way_reads_what_the_slow_way_reads_whole_and_nothing_else(found, wrong):
    texts = [",".join(f'[{n},"{value}"]' for n, value in enumerate(one)) for one in found]
    for place, (at, gone, put) in enumerate(wrong):
        text = texts[place % len(texts)]
        start = round(at * len(text))
        texts[place % len(texts)] = text[:start] + put + text[start + gone :]
    items = [promjson.Item({}, text.encode()) for text in texts if text]
    broken: list[promjson.Broken] = []
    slow = [promjson._slow(item, broken) for item in items]
    fast = promjson._fast([item.text for item in items]) if items else None
    assert fast is None or (
        not broken
        and fast[0].tolist() == [n for one in slow for n in one[0]]
        and fast[1].tolist() == [ms for one in slow for ms in one[1]]
        and [bits(v) for v in fast[2]] == [bits(v) for one in slow for v in one[2]]
    )
    assert fast is not None or wrong


def test_halves_of_a_sample_in_two_series_are_no_sample():
    body = matrix('{"metric":{"a":"1"},"values":[[1]]}', '{"metric":{"a":"2"},"values":[["2"]]}')
    assert not parsed(body)["samples"]
    assert promjson._fast([b"[1", b'"2"]']) is None


def test_the_same_bytes_give_the_same_rows():
    body = matrix(*(item({"i": str(n)}, [(T0 + n, n)]) for n in range(50)))
    assert parsed(body) == parsed(body)
    assert samples(matrix(*reversed([item({"i": str(n)}, [(T0 + n, n)]) for n in range(50)]))) == (
        samples(body)
    )


def test_batches_do_not_show(monkeypatch):
    items = [item({"i": str(n)}, [(T0 + m, n * m) for m in range(n % 5)]) for n in range(60)]
    whole = samples(matrix(*items))
    monkeypatch.setattr(promjson, "_BATCH_BYTES", 50)
    assert samples(matrix(*items)) == whole


# --- order, doubles and windows ----------------------------------------------------------


def test_rows_are_ordered_and_the_first_of_two_at_one_moment_stays():
    body = matrix(
        item({"a": "1"}, [(T0 + 2, 2.0), (T0, 0.0), (T0 + 1, 1.0)]),
        item({"a": "1"}, [(T0 + 1, 7.0), (T0 + 2, 2.0), (T0 + 3, 3.0)]),
    )
    tables = parsed(body)
    assert samples(body) == [(sid(a="1"), T0 + n, float(n)) for n in range(4)]
    assert len(tables["series"]) == 1
    (doubt,) = tables["quarantine"]
    assert doubt["reason"] == "1 samples give a second value for a moment; the first stays"


def test_samples_outside_the_captures_window_are_dropped_and_so_are_series_without_any():
    body = matrix(
        item({"a": "in"}, [(T0 - 1, 1), (T0, 2), (T0 + 59_999, 3), (T0 + 60_000, 4)]),
        item({"a": "out"}, [(T0 - 1, 1)]),
    )
    start = datetime.fromtimestamp(T0 / 1000, UTC)
    tables = parsed(body, window=Window(start, start.replace(minute=1)))
    assert [(r["ts"], r["value"]) for r in tables["samples"]] == [(T0, 2), (T0 + 59_999, 3)]
    assert [row["labels"] for row in tables["series"]] == [[("a", "in")]]


# --- other shapes ------------------------------------------------------------------------


def reply(kind: str, result: Any, **more: Any) -> bytes:
    return orjson.dumps(
        {"status": "success", "data": {"resultType": kind, "result": result}, **more}
    )


def test_vectors_scalars_and_strings():
    vector = reply("vector", [{"metric": {"a": "1"}, "value": [T0 / 1000, "1.5"]}])
    assert samples(vector) == [(sid(a="1"), T0, 1.5)]
    assert samples(reply("scalar", [T0 / 1000, "+Inf"])) == [(sid(), T0, math.inf)]
    (row,) = parsed(reply("string", [T0 / 1000, "text"]))["snapshots"]
    assert json.loads(row["value"])["result"][1] == "text"


def test_an_empty_answer_is_no_rows():
    assert parsed(matrix()) == {"series": [], "samples": []}


def test_native_histograms_have_a_table_of_their_own():
    histogram = {"count": "3", "sum": "4.5", "buckets": [[0, "0.5", "1", "3"]]}
    entries = [[T0 / 1000, histogram], ["x", {}], [T0 / 1000, histogram], 7]
    tables = parsed(
        reply(
            "matrix",
            [{"metric": {"a": "h"}, "values": [[1, "2"]], "histograms": entries}],
        )
    )
    assert tables["histograms"] == [
        {"sid": sid(a="h"), "ts": T0, "count": 3, "sum": 4.5, "buckets": '[[0,"0.5","1","3"]]'}
    ]
    assert [row["bytes"] for row in tables["quarantine"]] == [b'["x",{}]', b"7"]
    assert len(tables["samples"]) == 1
    single = reply("vector", [{"metric": {}, "histogram": [T0 / 1000, histogram]}])
    assert len(parsed(single)["histograms"]) == 1


def test_snapshots_are_canonical_json():
    body = b'{"status":"success","data":{"b":{"values":[[1,"2"]]},"a":"\\u00e9"}}'
    (row,) = parsed(body, role="rules")["snapshots"]
    assert (row["role"], row["state"]) == ("rules", "ok")
    assert row["value"] == '{"a":"é","b":{"values":[[1,"2"]]}}'
    (row,) = parsed(b"not found", role="rules", status=404, error="HTTP 404")["snapshots"]
    assert (row["state"], row["value"]) == ("unsupported", '{"message":"HTTP 404"}')
    (row,) = parsed(b'{"status":"error","error":"x"}', role="rules")["snapshots"]
    assert row["state"] == "error"


# --- hostile -----------------------------------------------------------------------------

GOOD = item({"a": "good"}, [(T0, 1.0), (T0 + 1, 2.0)])
GOOD_ROWS = [(sid(a="good"), T0, 1.0), (sid(a="good"), T0 + 1, 2.0)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('{"metric":{"a":"b"},"values":[[1,"x"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1,"2","3"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1,"2"3]]}', ""),
        ('{"metric":{"a":"b"},"values":[["1","2"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1,2]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1e300,"2"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[999999999999,"2"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1,"]]"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[1,"]]}"]]}', ""),
        ('{"metric":{"a":"b"},"values":[[1,"{"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":[[[[1]]]]}', "not a sample"),
        ('{"metric":{"a":"b"},"values":7}', "samples are not a list"),
        ('{"metric":{"a":"b"},"values":true}', "samples are not a list"),
        ('{"metric":{"a":"b"},"values":"x"}', "samples are not a list"),
        ('{"metric":{"a":1},"values":[[1,"2"]]}', "not a series with labels"),
        ('{"metric":null,"values":[[1,"2"]]}', "not a series with labels"),
        ('{"metric":{"a":"\\ud800"},"values":[[1,"2"]]}', "not a series with labels"),
        ('{"values":[[1,"2"]]}', "not a series with labels"),
        ("[1,2]", "not a series with labels"),
        ("null", "not a series with labels"),
        ('{"metric":{"values":[[1,"2"]]},"values":[[3,"4"]]}', "not a series with labels"),
        ('{"metric":{"a":"b"},"values":[[1,"2"]],"values":[[3,"x"]]}', "not a sample"),
        ('{"metric":{"a":"b"},"histograms":7}', "native histograms are not a list"),
    ],
)
def test_one_bad_series_costs_the_others_nothing(bad, reason):
    tables = parsed(matrix(bad, GOOD, bad))
    rows = [(r["sid"], r["ts"], r["value"]) for r in tables["samples"]]
    assert [row for row in rows if row[0] == sid(a="good")] == GOOD_ROWS
    assert [row for row in rows if row[0] != sid(a="good")] == []
    assert any(reason in row["reason"] for row in tables["quarantine"])
    assert all(row["file"] == f"raw/{'0' * 64}.zst" for row in tables["quarantine"])


def test_one_bad_sample_costs_its_series_nothing_else():
    values = '[[1,"1"],[2,"0x2"],[3,"3"],["4","4"],[5,"1_0"],[6,"6"]]'
    body = matrix(f'{{"metric":{{"a":"b"}},"values":{values}}}', GOOD)
    tables = parsed(body)
    assert [r["value"] for r in tables["samples"] if r["sid"] == sid(a="b")] == [1, 3, 6]
    for row in tables["quarantine"]:
        assert body[row["offset"] :].lstrip(b",").startswith(row["bytes"])
    assert [r["bytes"] for r in tables["quarantine"]] == [b'[2,"0x2"]', b'["4","4"],[5,"1_0"]']


@pytest.mark.parametrize("escaped", [True, False])
def test_labels_that_look_like_samples_are_labels(escaped):
    nasty = 'x","values":[[1,"2"],[3,"4"]]},{"metric":{"a":"forged"},"values":[[5,"6"]]}'
    labels = {"a": nasty if escaped else "\x00" + nasty * 50}
    assert samples(matrix(item(labels, [(T0, 1.0)]), GOOD)) == sorted(
        [(sid(**labels), T0, 1.0), *GOOD_ROWS]
    )


def test_a_series_with_bytes_that_are_not_text_is_set_aside():
    bad = item({"a": "XX"}, [(T0, 1.0)]).encode().replace(b"XX", b"\xff\xfe").decode("latin-1")
    body = matrix(bad, GOOD).replace("\xff\xfe".encode(), b"\xff\xfe")
    tables = parsed(body)
    assert [(r["sid"], r["ts"], r["value"]) for r in tables["samples"]] == GOOD_ROWS
    (row,) = tables["quarantine"]
    assert b"\xff\xfe" in row["bytes"]


def test_a_number_in_place_of_samples_never_borrows_those_of_another_series():
    thief = '{"metric":{"a":"thief"},"values":0}'
    tables = parsed(matrix(thief, GOOD))
    assert [(r["sid"], r["ts"], r["value"]) for r in tables["samples"]] == GOOD_ROWS
    assert len(tables["quarantine"]) == 1


def test_samples_torn_apart_between_two_series_do_not_grow_together():
    halves = (
        '{"metric":{"a":"1"},"values":[[1,"2"],[3]]}',
        '{"metric":{"a":"2"},"values":[["4"]]}',
    )
    tables = parsed(matrix(*halves))
    assert [(r["ts"], r["value"]) for r in tables["samples"]] == [(1000, 2)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_of_a_body_cut_anywhere_whole_samples_stay_and_the_rest_is_on_record(data):
    body = matrix(GOOD, item({"a": "x]]}"}, [(T0, 7.25), (T0 + 1, 8.5)]))
    cut = body[: data.draw(st.integers(0, len(body) - 1))]
    tables = parsed(cut)
    assert {(r["sid"], r["ts"], r["value"]) for r in tables.get("samples", [])} <= {*samples(body)}
    assert tables["quarantine"]
    assert promjson.explain(cut)[0]


@settings(max_examples=300, deadline=None)
@given(st.binary(), st.integers(0, 400), st.binary(max_size=6))
def test_nothing_that_a_server_sends_raises(noise, at, patch):
    parsed(noise)
    good = matrix(GOOD, item({"b": "c"}, [(T0, math.nan)]))
    parsed(good[:at] + patch + good[at + len(patch) :])
    parsed(good[:at] + patch + good[at:], role="rules")
    promjson.explain(noise)


@pytest.mark.parametrize("depth", [100, 300, 1000, 5000, 200_000])
def test_deep_nesting_is_set_aside(depth):
    deep = "[" * depth + "]" * depth
    body = matrix(f'{{"metric":{{"a":"b"}},"values":{deep}}}', GOOD)
    tables = parsed(body)
    rows = [(r["sid"], r["ts"], r["value"]) for r in tables["samples"] if r["sid"] == sid(a="good")]
    assert rows == GOOD_ROWS
    assert tables["quarantine"]
    parsed(f'{{"status":"success","data":{deep}}}'.encode(), role="rules")
    parsed(reply("matrix", [{"metric": {}, "histograms": [[1, {"buckets": []}]]}]))


def test_a_huge_label_is_kept_and_what_is_quarantined_is_short():
    big = "x" * 3_000_000
    tables = parsed(matrix(item({"a": big}, [(T0, 1.0)]), f'{{"metric":{{"a":1}},"b":"{big}"}}'))
    assert len(tables["samples"]) == 1
    assert [len(row["bytes"]) for row in tables["quarantine"]] == [4096]


# --- what a reply says about itself ------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"status":"error","errorType":"bad_data","error":"parse error"}', "bad_data: parse"),
        (b'{"status":"error"}', "error: "),
        (b"", "the reply is empty"),
        (b"  <!doctype html>", "HTML in place of JSON"),
        (b"[]", "not a reply of the Prometheus API"),
        (b"null", "not a reply of the Prometheus API"),
        (b'{"status":"success"}', "the reply has no data"),
        (matrix(GOOD)[:-1], "not JSON, or cut short"),
        (matrix(GOOD), ""),
    ],
)
def test_why_a_reply_cannot_be_used(body, words):
    why, notes = promjson.explain(body)
    assert why.startswith(words)
    assert bool(why) == bool(words)
    assert notes == ()
    if words:
        assert parsed(body)["quarantine"]


def test_what_a_reply_says_beside_its_answer():
    body = reply("vector", [], warnings=["slow store"], infos=["not a counter"], isPartial=True)
    assert promjson.explain(body) == (
        "",
        (
            "warning: slow store",
            "info: not a counter",
            "warning: the server calls its answer partial",
        ),
    )
    assert promjson.explain(reply("vector", [], warnings=7)) == ("", ())
