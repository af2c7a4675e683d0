"""The stand-in keeps the rules of a real node, down to the bytes of its refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from standin_node import NodeState, StandInNode

FIXTURES = Path(__file__).parent / "fixtures" / "the-block"
LOGS = [
    {"timestamp": 100, "level": "WARN", "message": "a", "correlation_id": "c1", "block": 7},
    {"timestamp": 101, "level": "INFO", "message": "b"},
    {"timestamp": 101, "level": "WARN", "message": "c"},
]


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def recorded(name: str) -> str:
    for line in (FIXTURES / "replies-b.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["name"] == name:
            return str(record["reply"])
    raise KeyError(name)


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("error-batch", '[{"jsonrpc":"2.0","id":1,"method":"inflation.params"}]'),
        ("error-parse", "{not json"),
        ("error-unknown-method", '{"id":24,"method":"settle.nothing"}'),
        ("error-not-permitted-gov_list", '{"id":25,"method":"gov_list"}'),
        ("error-dead-method", '{"id":26,"method":"scheduler.stats"}'),
        ("error-bad-params", '{"id":27,"method":"stake.role","params":{"role":"x"}}'),
        ("error-bad-peer-id", '{"id":28,"method":"net.peer_stats","params":{"peer_id":"!!"}}'),
        ("inflation.params", '{"id":8,"method":"inflation.params"}'),
    ],
)
def test_replies_are_those_of_a_real_node(
    session: requests.Session, name: str, question: str
) -> None:
    with StandInNode() as node:
        reply = session.post(node.url, data=question)
    assert (reply.status_code, reply.text) == (200, recorded(name))


def test_refusals_are_those_of_a_real_node(session: requests.Session) -> None:
    with StandInNode(tokens_per_s=2.0) as node:
        wrong_host = session.get(node.url, headers={"Host": "node.example:3030"})
        nothing = session.get(f"{node.url}/nothing")
        replies = [session.post(node.url, data="{}") for _ in range(3)]
    assert (wrong_host.status_code, wrong_host.content) == (403, b"")
    assert (nothing.status_code, nothing.content) == (404, b"")
    assert [reply.status_code for reply in replies[1:]] == [429, 429]
    assert [reply.json()["error"] for reply in replies[1:]] == [
        {"code": -32001, "message": "rate limited"},
        {"code": -32002, "message": "banned"},
    ]


@pytest.mark.parametrize(
    ("query", "messages"),
    [
        ({}, "cba"),
        ({"since": "bad", "limit": "x"}, "cba"),
        ({"since": "101"}, "cb"),
        ({"until": "100"}, "a"),
        ({"limit": "1"}, "c"),
        ({"level": "warn"}, ""),
        ({"level": "WARN"}, "ca"),
        ({"correlation": "c1"}, "a"),
        ({"correlation_id": "c1"}, "cba"),
        ({"after_id": "1"}, "c"),
        ({"after-id": "1"}, "c"),
        ({"block": "7"}, "a"),
    ],
)
def test_a_search_follows_the_rules_of_the_store(
    session: requests.Session, query: dict[str, Any], messages: str
) -> None:
    with StandInNode(NodeState(logs=LOGS)) as node:
        rows = session.get(f"{node.url}/logs/search", params=query).json()
    assert "".join(row["message"] for row in rows) == messages


def test_metrics_are_served_where_there_are_any(session: requests.Session) -> None:
    with StandInNode(NodeState(metrics="up 1\n")) as node:
        assert session.get(f"{node.url}/metrics").text == "up 1\n"
        reply = session.post(node.url, json={"method": "metrics"}).json()
    assert reply == {"id": None, "jsonrpc": "2.0", "result": "up 1\n"}
