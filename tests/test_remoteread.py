"""Remote read: the same rows as the JSON reply for the same time, and safe on any bytes."""

from __future__ import annotations

import io
import math
import random
import urllib.parse
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import prometheus_server
import pyarrow as pa
import pytest
from prometheus_server import openmetrics
from xor_encoder import bits_of

from tbforensics.evidence import SCHEMAS
from tbforensics.model import Capture, Window
from tbforensics.promql import text as promql
from tbforensics.reading import promjson, promrows, remoteread

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
