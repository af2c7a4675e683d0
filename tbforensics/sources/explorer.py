"""An explorer's or aggregator's GET endpoints: the paths that a kind names, each asked once.

A query's text is a path such as `/subsidy/history`; a part that begins with a colon, as in
`/metrics/:name`, is filled from the parameters. An explorer answers most of its own errors with
an empty list and HTTP 200, so an empty answer is kept in the state "empty": weak evidence that
there was nothing. A page of zero rows (`page_size: 0`) is its way to answer an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa

from tbforensics import theblock
from tbforensics.evidence import QUARANTINED_BYTES, rows
from tbforensics.model import Capture, Incident, Json, Query
from tbforensics.wire import Client, Manners

ROLE = "snapshot"
PAGED = {"/releases": {"page": 0, "page_size": 20}}  # answered page by page, the first is 0
_MOST_PAGES = 200
_PLACE = re.compile(r":([a-z_]+)")
# Endpoints that answer with what a JSON-RPC method answers, in either generation's names.
_LIKE_METHODS = {"/compute/sla/history": "compute_market.sla_history"}
_EMPTY = "an empty answer, which is also how an explorer answers its own errors"


@dataclass(frozen=True)
class Options:
    """host: the Host header, where a tunnel or a proxy hides the name that the server expects.
    params: for a path, the sets of parameters to ask it with, where only the deployment knows
            them: {"/metrics/:name": [{"name": "quic_handshake_fail_total"}]}.
    """

    host: str = ""
    params: Mapping[str, Sequence[Mapping[str, Json]]] = field(default_factory=dict)


class Explorer:
    about = "An explorer or aggregator: named GET endpoints, as they answer when asked"
    options = Options
    needs_url = True
    always: tuple[Query, ...] = ()
    manners = Manners(
        read_s=30.0,
        whole_reply_s=120.0,
        retries=2,
        requests_per_s=5.0,
        longest_body_bytes=256 << 20,
    )

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        for query in queries:
            if query.source == "explorer":
                for given in options.params.get(query.text, ({},)):
                    params = {**PAGED.get(query.text, {}), **query.params, **given}
                    yield from _asked(client, options, query, params)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        text = body.read()
        generation = ""
        try:
            answer = json.loads(text, parse_constant=_refuse)
            state, answer, generation = _read(str(capture.request.get("url", "")), answer)
            value = _dumps(answer)
        except (ValueError, RecursionError) as error:
            state, value = "error", _dumps({"message": f"not a JSON reply: {error}"})
            yield "quarantine", rows("quarantine", [_unreadable(capture, text, str(error))])
        snapshot = {
            "source": capture.source,
            "query": capture.query,
            "role": capture.role,
            "ts": capture.asked_at,
            "generation": generation,
            "state": state,
            "value": value,
        }
        yield "snapshots", rows("snapshots", [snapshot])


def _asked(
    client: Client, options: Options, query: Query, params: dict[str, Json]
) -> Iterator[Capture]:
    missing = [name for name in _PLACE.findall(query.text) if name not in params]
    if missing:
        request: dict[str, Json] = {"method": "GET", "path": query.text, "params": params}
        why = f"{query.text} needs {', '.join(missing)}: name it under `params` of this source"
        yield client.fail(query=query.name, role=ROLE, request=request, error=why)
        return
    seen = 0
    for _ in range(_MOST_PAGES):
        capture = _once(client, options, query, params)
        yield capture
        if query.text not in PAGED:
            return
        shown, total = _page(client.body(capture) if capture.usable else b"")
        seen += shown
        if shown == 0 or seen >= total:
            return
        params = {**params, "page": params["page"] + 1}
    why = f"more than {_MOST_PAGES} pages: the rest is missing"
    request = {"method": "GET", "path": query.text, "params": params}
    yield client.fail(query=query.name, role=ROLE, request=request, error=why)


def _once(client: Client, options: Options, query: Query, params: Mapping[str, Json]) -> Capture:
    path = _PLACE.sub(lambda place: quote(str(params[place[1]]), safe=""), query.text)
    rest = {name: value for name, value in params.items() if f":{name}" not in query.text}
    return client.ask(
        query=query.name,
        role=ROLE,
        path=path,
        params=rest,
        headers={"Host": options.host} if options.host else {},
    )


def _page(body: bytes) -> tuple[int, int]:
    """Rows on a page, and rows on all pages."""
    try:
        page = json.loads(body)
        return len(page["entries"]), int(page["total"])
    except (ValueError, TypeError, LookupError, RecursionError):
        return 0, 0


def _read(url: str, answer: Json) -> tuple[str, Json, str]:
    """State, value and generation of a reply."""
    if isinstance(answer, dict) and "error" in answer and len(answer) <= 2:
        return "error", {"message": answer["error"]}, ""
    if isinstance(answer, dict) and "page_size" in answer:
        if answer["page_size"] == 0:
            return "error", {"message": "page_size 0: the explorer failed inside"}, ""
        if not answer.get("total") and not answer.get("entries"):
            return "empty", {"message": _EMPTY, "answer": answer}, ""
    if answer in ([], {}, None):
        return "empty", {"message": _EMPTY, "answer": answer}, ""
    method = next((method for path, method in _LIKE_METHODS.items() if url.endswith(path)), "")
    value, generation = theblock.normalise(method, answer) if method else (answer, "")
    return "ok", value, generation


def _unreadable(capture: Capture, text: bytes, reason: str) -> dict[str, Json]:
    return {
        "source": capture.source,
        "query": capture.query,
        "file": str(capture.request.get("url", "")),
        "line": 1,
        "offset": 0,
        "reason": reason,
        "bytes": text[:QUARANTINED_BYTES],
    }


def _dumps(value: Json) -> str:
    # Half a surrogate pair cannot be written as UTF-8, so no file and no report could hold it.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is not JSON")


SOURCE = Explorer()
