"""The sealed replies of a Prometheus, asked again with prometheus-pandas.

What came by remote read answers the question that the query API would have been asked for it, in
the words of that API.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import orjson
import pandas as pd
import pyarrow as pa
import requests
from prometheus_pandas.query import Prometheus as Prometheus

from tbforensics.archive import Archive
from tbforensics.asking.server import ROLE
from tbforensics.asking.slices import Question, Slice
from tbforensics.asking.wording import READ, of_query
from tbforensics.model import Capture, Json
from tbforensics.reading import remoteread
from tbforensics.replay import Answer, replay_session


def prometheus_client(url: str, session: requests.Session) -> Prometheus:
    """prometheus-pandas on a session of ours: live (`open_session`) or sealed (`sealed_session`).

    On a sealed one, `questions` lists what can be asked.
    """
    return Prometheus(url, http=session)


def sealed_session(captures: Iterable[Capture], archive: Archive) -> requests.Session:
    """A session that answers from the archive and never touches the network.

    Errors: EvidenceError for a question that was never asked; it lists those that were.
    """
    return replay_session(captures, archive, (in_words(c, archive) for c in captures))


def questions(captures: Iterable[Capture]) -> pd.DataFrame:
    """What a sealed case can answer: one row for each call of prometheus-pandas.

    Shape:  query, call ("query" or "query_range"), then that call's arguments as columns.
    """
    columns = ("query", "call", "expression", "time", "start", "end", "step")
    records = []
    for capture in captures:
        url, asked = _asked(capture)
        if capture.role == ROLE and capture.usable and "query" in asked:
            times = {name: float(asked[name]) for name in columns[3:] if name in asked}
            call = url.rpartition("/")[2]
            records.append(
                {"query": capture.query, "call": call, "expression": asked["query"], **times}
            )
    return pd.DataFrame.from_records(records, columns=list(columns))


def _asked(capture: Capture) -> tuple[str, Mapping[str, Json]]:
    """URL and parameters of the query API for a capture, however it was asked."""
    request = capture.request
    if READ not in request:
        return str(request.get("url", "")), {**request.get("params", {}), **request.get("form", {})}
    told = request[READ]
    start_ms, last_ms = (round(float(told[name]) * 1000) for name in ("start", "end"))
    part = Slice(0, Question(capture.query, str(told["query"])), start_ms, last_ms + 1)
    asks = of_query(part)
    return f"{str(request['url']).removesuffix('/read')}/query", asks.params or asks.form or {}


def in_words(capture: Capture, archive: Archive) -> Answer | None:
    """What came by remote read as an answer of the query API; None for any other capture."""
    if READ not in capture.request or not capture.usable:
        return None
    url, params = _asked(capture)
    return Answer(url, params, lambda: as_json(capture, archive))


def as_json(capture: Capture, archive: Archive) -> bytes:
    """The reply that the query API would have given for what came by remote read."""
    without = capture.request[READ]["without"]
    with archive.open(capture) as body:
        result = list(_matrix(remoteread.tables(capture, body, without=without)))
    data = {"resultType": "matrix", "result": result}
    return orjson.dumps({"status": "success", "data": data})


def _matrix(tables: Iterable[tuple[str, pa.Table]]) -> Iterator[dict[str, Json]]:
    """Series by their labels, as the server orders them; each with its samples."""
    labels: dict[int, dict[str, str]] = {}
    values: dict[int, list[tuple[float, str]]] = {}
    for name, table in tables:
        if name == "series":
            for row in table.to_pylist():
                named = {"__name__": row["metric"]} if row["metric"] else {}
                labels[row["sid"]] = {**named, **dict(row["labels"])}
        elif name == "samples":
            times = table.column("ts").cast(pa.int64()).to_pylist()
            sids, numbers = table.column("sid").to_pylist(), table.column("value").to_pylist()
            for sid, ms, value in zip(sids, times, numbers, strict=True):
                values.setdefault(sid, []).append((ms / 1000, _number(value)))
    for sid in sorted(values, key=lambda sid: sorted(labels[sid].items())):
        yield {"metric": labels[sid], "values": values[sid]}


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(value).removesuffix(".0")
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
