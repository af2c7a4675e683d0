"""A The-Block node's JSON-RPC: the methods that a kind names, each asked once.

Nothing else is ever asked: some methods panic on an empty chain and take the node with them.
Questions go in the order of the kind's catalogue, one at a time, never as a batch (the node
refuses batches). A kind that must see a value before and after another lists it twice, under two
names: `roots_before`, `balances`, `roots_after`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import pyarrow as pa

from tbforensics import theblock
from tbforensics.evidence import QUARANTINED_BYTES, rows
from tbforensics.model import Capture, Incident, Json, Query
from tbforensics.wire import Client, Manners

ROLE = "snapshot"
_MOST_PAGES = 1_000
_MEANINGS = {
    -32700: "the node could not read the question",
    -32600: "the question was too long",
    -32601: "unknown to this node, or not permitted from here (loopback or admin only)",
    -32602: "the node refused the parameters",
    -32603: "the node failed inside",
    -33000: "the node has no price data",
    -32001: "the node limits the rate of this address and has banned it for a minute",
    -32002: "the node has banned this address for a minute",
}
_UNSUPPORTED = -32601


@dataclass(frozen=True)
class Options:
    """host: the Host header, where a tunnel or a proxy hides the name that the node allows.
    params: for a method, the sets of parameters to ask it with, where only the deployment knows
            them: {"stake.role": [{"id": "ab12"}], "rent.escrow.balance": [{"id": "e1"}]}.
    """

    host: str = ""
    params: Mapping[str, Sequence[Mapping[str, Json]]] = field(default_factory=dict)


class JsonRpc:
    about = "A The-Block node's JSON-RPC: state at the moment of asking"
    options = Options
    needs_url = True
    always: tuple[Query, ...] = ()  # nothing that no kind names
    # The node takes 100 requests a second and bans for 60 s the first address that sends more.
    # A method that gives no reply may have cost the node a worker: it is not asked many times.
    manners = Manners(
        read_s=30.0,
        whole_reply_s=120.0,
        retries=2,
        ban_s=61.0,
        requests_per_s=5.0,
        longest_body_bytes=256 << 20,
    )

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        ask = _Asking(client, options)
        for query in queries:
            if query.source == "jsonrpc":
                for params in options.params.get(query.text, ({},)):
                    yield from ask.method(query, {**query.params, **params})

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        text = body.read()
        try:
            state, generation, answer = _answer(capture, _loads(text))
            value = _dumps(answer)
        except (ValueError, RecursionError) as error:
            state, generation = "error", ""
            value = _dumps({"message": f"not a JSON-RPC reply: {error}"})
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


class _Asking:
    """One node being asked; gives up on it when going on would be useless or harmful."""

    def __init__(self, client: Client, options: Options) -> None:
        self._client = client
        self._headers = {"Host": options.host} if options.host else {}
        self._asked = self._silences = 0
        self._given_up = ""

    def method(self, query: Query, params: Mapping[str, Json]) -> Iterator[Capture]:
        needs = theblock.NEEDS.get(query.text, ())
        if needs and not any(name in params for name in needs):
            yield self._not_asked(
                query,
                params,
                f"{query.text} needs {' or '.join(needs)}: name it under `params` of this source",
            )
            return
        page_length = theblock.PAGED.get(query.text)
        if page_length is None:
            yield self._once(query, params)
            return
        yield from self._pages(query, {"offset": 0, "limit": page_length, **params})

    def _pages(self, query: Query, params: dict[str, Json]) -> Iterator[Capture]:
        last: list[Json] = []
        for _ in range(_MOST_PAGES):
            capture = self._once(query, params)
            yield capture
            page = self._list(capture)
            if len(page) < params["limit"]:
                return
            if page == last:
                yield self._not_asked(query, params, "the node gives the same page again and again")
                return
            last = page
            params = {**params, "offset": params["offset"] + params["limit"]}
        yield self._not_asked(query, params, f"more than {_MOST_PAGES} pages: the rest is missing")

    def _once(self, query: Query, params: Mapping[str, Json]) -> Capture:
        if self._given_up:
            return self._not_asked(query, params, self._given_up)
        self._asked += 1
        capture = self._client.ask(
            query=query.name,
            role=ROLE,
            method="POST",
            json=_question(query, params, self._asked),
            headers=self._headers,
        )
        self._silences = self._silences + 1 if capture.status is None and capture.error else 0
        if capture.status == 403:
            self._given_up = "not asked: the node refuses this Host; set `host` to an allowed one"
        elif capture.status == 404:
            self._given_up = "not asked: no JSON-RPC here; `url` must be the node's root"
        elif capture.status == 429:
            self._given_up = "not asked: the node still bans this address"
        elif self._silences == 2:
            self._given_up = "not asked: two questions in a row got no reply"
        return capture

    def _not_asked(self, query: Query, params: Mapping[str, Json], why: str) -> Capture:
        request = {"method": "POST", "json": _question(query, params, None)}
        return self._client.fail(query=query.name, role=ROLE, request=request, error=why)

    def _list(self, capture: Capture) -> list[Json]:
        if not capture.usable:
            return []
        try:
            result = _loads(self._client.body(capture)).get("result")
        except (ValueError, RecursionError, AttributeError):
            return []
        return result if isinstance(result, list) else []


def _question(query: Query, params: Mapping[str, Json], number: int | None) -> dict[str, Json]:
    return {"jsonrpc": "2.0", "id": number, "method": query.text, "params": dict(params)}


def _answer(capture: Capture, reply: Json) -> tuple[str, str, Json]:
    """State, generation and value. `error` is read first: it comes inside HTTP 200."""
    if not isinstance(reply, dict):
        raise ValueError("not an object")
    if (error := reply.get("error")) is not None:
        code = error.get("code") if isinstance(error, dict) else None
        meaning = _MEANINGS.get(code, "") if isinstance(code, int) else ""
        value = {**error, "meaning": meaning} if isinstance(error, dict) else {"message": error}
        return ("unsupported" if code == _UNSUPPORTED else "error"), "", value
    if "result" not in reply:
        raise ValueError("neither result nor error")
    question = capture.request.get("json") or {}
    if reply.get("id") != question.get("id"):
        raise ValueError(f"it answers question {reply.get('id')!r}, not {question.get('id')!r}")
    value, generation = theblock.normalise(str(question.get("method")), reply["result"])
    if isinstance(value, dict):  # a balance does not say whose it is; the question did
        value = {**question.get("params", {}), **value}
    return "ok", generation, value


def _unreadable(capture: Capture, text: bytes, reason: str) -> dict[str, Json]:
    return {
        "source": capture.source,
        "query": capture.query,
        "file": str((capture.request.get("json") or {}).get("method", "")),
        "line": 1,
        "offset": 0,
        "reason": reason,
        "bytes": text[:QUARANTINED_BYTES],
    }


def _loads(text: bytes) -> Json:
    # Money is whole numbers of up to 64 bits and more: the standard parser keeps every digit.
    return json.loads(text, parse_constant=_refuse)


def _dumps(value: Json) -> str:
    # Half a surrogate pair cannot be written as UTF-8, so no file and no report could hold it.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is not JSON")


SOURCE = JsonRpc()
