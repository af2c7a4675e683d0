"""The JSON-RPC source against a stand-in node that keeps The-Block's rules."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from standin_node import NodeState, StandInNode, peer_key
from standin_replies import ANSWERS

from tbforensics.archive import Archive
from tbforensics.credentials import Credentials
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.sources.jsonrpc import SOURCE, Options
from tbforensics.wire import Client

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = Window(datetime(2026, 3, 10, 10, tzinfo=UTC), datetime(2026, 3, 10, 11, tzinfo=UTC))
CALM = Window(datetime(2026, 3, 10, 9, tzinfo=UTC), HOUR.start)
INCIDENT = Incident("x", "k", "", HOUR, CALM, 30.0, (), {}, (), "", "")
HASTY = replace(SOURCE.manners, requests_per_s=1000.0, ban_s=0.01, backoff_s=0.01, retries=1)
FIXTURES = Path(__file__).parent / "fixtures" / "the-block"


def asks(*methods: str, **params: Any) -> list[Query]:
    return [Query(name, "jsonrpc", name, params=params) for name in methods]


Ask = Callable[..., list[tuple[Capture, list[dict[str, Any]]]]]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Fetch and parse; each capture with its rows of all tables."""

    def asking(
        url: str,
        queries: Sequence[Query],
        options: Options = Options(),
        credentials: Credentials = Credentials(),
        **manners: Any,
    ) -> list[tuple[Capture, list[dict[str, Any]]]]:
        config = SourceConfig("node", "jsonrpc", url)
        client = Client(
            config, Archive(tmp_path), credentials, replace(HASTY, **manners), lambda: NOW
        )
        opened.append(client)
        found = []
        for capture in SOURCE.fetch(queries, INCIDENT, options, client):
            rows: list[dict[str, Any]] = []
            if capture.usable:
                with client.archive.open(capture) as body:
                    for table, part in SOURCE.parse(capture, body):
                        rows += [{"table": table, **row} for row in part.to_pylist()]
            found.append((capture, rows))
        return found

    opened: list[Client] = []
    yield asking
    for client in opened:
        client.session.close()


def snapshot(rows: list[dict[str, Any]]) -> tuple[str, str, Any]:
    (row,) = [row for row in rows if row["table"] == "snapshots"]
    assert row["ts"] == NOW
    return row["state"], row["generation"], json.loads(row["value"])


# --- what is asked -----------------------------------------------------------------------


def test_only_the_named_methods_are_asked_and_in_the_order_of_the_catalogue(ask: Ask) -> None:
    queries = [
        Query("roots_before", "jsonrpc", "compute_market.recent_roots", params={"n": 32}),
        Query("balances", "jsonrpc", "compute_market.provider_balances"),
        Query("failures", "prometheus", "settle_failed_total"),
        Query("roots_after", "jsonrpc", "compute_market.recent_roots", params={"n": 32}),
    ]
    with StandInNode(NodeState(balances={"prov-a": 35})) as node:
        captures = [capture for capture, _ in ask(node.url, queries)]
    assert [c.query for c in captures] == ["roots_before", "balances", "roots_after"]
    assert node.asked == [
        ("compute_market.recent_roots", {"n": 32}),
        ("compute_market.provider_balances", {}),
        ("compute_market.recent_roots", {"n": 32}),
    ]


def test_no_question_at_all_asks_nothing(ask: Ask) -> None:
    with StandInNode() as node:
        assert ask(node.url, []) == []
    assert node.asked == []


@pytest.mark.parametrize("generation", ["A", "B"])
def test_both_generations_give_one_value(ask: Ask, generation: str) -> None:
    with StandInNode(NodeState(), generation) as node:
        ((_, rows),) = ask(node.url, asks("inflation.params"))
    state, said, value = snapshot(rows)
    assert (state, said) == ("ok", generation)
    assert value["beta_storage_sub"] == 50


def test_parameters_that_only_the_deployment_knows_come_from_the_options(ask: Ask) -> None:
    options = Options(params={"stake.role": [{"id": "ab12"}, {"id": "cd34"}]})
    with StandInNode(NodeState(stakes={("cd34", "validator"): 9})) as node:
        found = ask(node.url, asks("stake.role"), options)
    assert [snapshot(rows)[2]["stake"] for _, rows in found] == [0, 9]


def test_a_method_without_the_id_that_it_needs_is_not_asked(ask: Ask) -> None:
    with StandInNode() as node:
        ((capture, rows),) = ask(node.url, asks("stake.role"))
    assert "stake.role needs id" in capture.error
    assert (rows, node.asked) == ([], [])


def test_an_answer_says_what_was_asked_where_it_would_not_say_itself(ask: Ask) -> None:
    with StandInNode(NodeState(escrow={"e1": 7})) as node:
        ((_, rows),) = ask(node.url, asks("rent.escrow.balance", id="e1"))
    assert snapshot(rows)[2] == {"id": "e1", "balance": 7}


def test_peers_are_asked_page_by_page_until_a_page_is_short(ask: Ask) -> None:
    peers = {peer_key(f"peer-{i}"): {"requests": i} for i in range(250)}
    with StandInNode(NodeState(peer_stats=peers)) as node:
        found = ask(node.url, asks("net.peer_stats_all"))
    seen = [row["peer_id"] for _, rows in found for row in snapshot(rows)[2]]
    assert [params["offset"] for _, params in node.asked] == [0, 100, 200]
    assert sorted(seen) == sorted(peers)


def test_a_node_that_gives_the_same_page_for_ever_is_left_alone(ask: Ask) -> None:
    # The id differs from question to question, so the same page never has the same bytes.
    page = [{"peer_id": "p", "metrics": {}}] * 2
    with StandInNode() as node:
        node.replies["net.peer_stats_all"] = json.dumps({"id": 1, "result": page}).encode()
        found = ask(node.url, asks("net.peer_stats_all", limit=2))
    assert len(found) <= 4
    assert "same page" in found[-1][0].error


# --- what comes back ---------------------------------------------------------------------


def test_an_error_inside_http_200_is_read_first(ask: Ask) -> None:
    with StandInNode() as node:
        ((capture, rows),) = ask(node.url, asks("stake.role", id=7))
    assert (capture.status, capture.usable) == (200, True)
    state, _, value = snapshot(rows)
    assert (state, value["code"]) == ("error", -32602)


@pytest.mark.parametrize("method", ["scheduler.stats", "gov_list", "compute_market.sla_history"])
def test_unknown_and_not_permitted_look_the_same_and_are_called_unsupported(
    ask: Ask, method: str
) -> None:
    with StandInNode(NodeState(), "A") as node:
        ((_, rows),) = ask(node.url, asks(method))
    state, _, value = snapshot(rows)
    assert (state, value["code"]) == ("unsupported", -32601)
    assert "not permitted from here" in value["meaning"]


def test_loopback_methods_are_unknown_from_another_machine(ask: Ask) -> None:
    with StandInNode(far_away=True) as node:
        ((_, rows),) = ask(node.url, asks("net.peer_stats_all"))
    assert snapshot(rows)[0] == "unsupported"


def test_a_token_opens_the_admin_methods(ask: Ask) -> None:
    token = Credentials(headers={"Authorization": "Bearer s3cret"}, secrets=("s3cret",))
    with StandInNode(admin_token="s3cret") as node:
        ((capture, rows),) = ask(node.url, asks("gov_list"), credentials=token)
    assert snapshot(rows)[0] == "ok"
    assert "s3cret" not in json.dumps(capture.to_json())


def test_a_refused_host_says_what_to_do_and_is_asked_once(ask: Ask) -> None:
    with StandInNode(allowed_hosts=("node.internal",)) as node:
        found = ask(node.url, asks("inflation.params", "net.quic_stats"))
        assert [capture.status for capture, _ in found] == [403, None]
        assert "set `host`" in found[1][0].error
        ((_, rows),) = ask(node.url, asks("inflation.params"), Options(host="node.internal:3030"))
    assert snapshot(rows)[0] == "ok"


def test_the_rate_of_asking_stays_far_below_the_limit() -> None:
    assert SOURCE.manners.requests_per_s <= 10
    assert SOURCE.manners.ban_s > 60
    assert SOURCE.manners.longest_wait_s >= SOURCE.manners.ban_s


def test_a_ban_is_waited_for_and_the_question_asked_again(ask: Ask) -> None:
    with StandInNode(tokens_per_s=1.0, ban_s=1.0) as node:
        queries = asks("inflation.params", "net.quic_stats")
        found = ask(node.url, queries, ban_s=2.1, retries=2)
    assert [snapshot(rows)[0] for _, rows in found] == ["ok", "ok"]
    assert ("refused", -32001) in node.asked
    assert any("429" in note for note in found[1][0].notes)


def test_a_ban_that_does_not_end_stops_the_asking(ask: Ask) -> None:
    with StandInNode(tokens_per_s=1.0) as node:
        methods = ["inflation.params", "net.quic_stats", "net.overlay_status", "mempool.stats"]
        found = ask(node.url, asks(*methods), retries=0)
    assert [capture.status for capture, _ in found] == [200, 429, None, None]
    assert "still bans" in found[2][0].error
    assert [code for name, code in node.asked if name == "refused"] == [-32001]


def test_another_path_is_not_json_rpc(ask: Ask) -> None:
    with StandInNode() as node:
        found = ask(f"{node.url}/rpc", asks("inflation.params", "net.quic_stats"))
    assert [capture.status for capture, _ in found] == [404, None]
    assert "root" in found[1][0].error


def test_a_socket_closed_without_a_reply_is_asked_little_and_named(ask: Ask) -> None:
    with StandInNode(replies={"light.latest_header": None}) as node:
        methods = ["light.latest_header", "inflation.params"]
        found = ask(node.url, asks(*methods))
    assert found[0][0].error
    assert snapshot(found[1][1])[0] == "ok"
    assert len(node.asked) <= 3 + 1


def test_a_node_that_is_gone_is_given_up_after_two_questions(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    found = ask(f"http://127.0.0.1:{port}", asks("inflation.params", "net.quic_stats", "metrics"))
    errors = [capture.error for capture, _ in found]
    assert errors[0] and errors[1]
    assert "two questions in a row" in errors[2]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>proxy</html>",
        b"[]",
        b"7",
        b'{"id": 1}',
        b'{"id": 1, "result": NaN}',
        b'{"id": 1, "result": 1e999}',
        b'{"id": 1, "result": {"a": 1}',
        b'{"id": 1, "result": "\xff"}',
        b'{"id": 99, "result": []}',
        b'{"id": 1, "result": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_reply_that_cannot_be_read_is_quarantined(ask: Ask, body: bytes) -> None:
    with StandInNode(replies={"inflation.params": body}) as node:
        ((_, rows),) = ask(node.url, asks("inflation.params"))
    (bad,) = [row for row in rows if row["table"] == "quarantine"]
    assert bad["bytes"] == body[:4096]
    assert snapshot(rows)[0] == "error"


def test_money_keeps_every_digit(ask: Ask) -> None:
    most = 2**64 - 1
    with StandInNode(NodeState(balances={"prov-a": most})) as node:
        ((_, rows),) = ask(node.url, asks("compute_market.provider_balances"))
    assert snapshot(rows)[2]["providers"] == [{"provider": "prov-a", "balance": most}]


def test_half_a_surrogate_pair_does_not_break_the_evidence(ask: Ask) -> None:
    with StandInNode(replies={"metrics": b'{"id": 1, "result": "\\ud83d"}'}) as node:
        ((_, rows),) = ask(node.url, asks("metrics"))
    assert snapshot(rows) == ("ok", "", "?")


def recorded(*names: str) -> list[dict[str, Any]]:
    return [
        json.loads(line) for name in names for line in (FIXTURES / name).read_text().splitlines()
    ]


REAL = recorded("replies-b.jsonl")


@pytest.mark.parametrize(
    "record", [*REAL, *recorded("replies-a.jsonl")], ids=lambda record: record["name"]
)
def test_recorded_replies_are_read(record: dict[str, Any]) -> None:
    question = {"id": record["id"], "method": record["method"], "params": record["params"] or {}}
    capture = Capture("node", "q", "snapshot", {"json": question}, NOW, status=200, sha256="0" * 64)
    body = record["reply"].encode()
    ((table, rows),) = SOURCE.parse(capture, io.BytesIO(body))
    expected = "ok" if '"result"' in record["reply"] else "error"
    if "-32601" in record["reply"]:
        expected = "unsupported"
    assert (table, rows.column("state").to_pylist()) == ("snapshots", [expected])


PEER = peer_key("a")
BEHIND_THE_RECORDS = NodeState(
    handshake_failures=[(1, PEER, "tls")],
    peer_stats={PEER: {}},
    overlay={"backend": "inhouse", "active_peers": 0, "persisted_peers": 0, "database_path": "x"},
    balances={"prov-a": 1},
    release_signers={"signers": [PEER], "threshold": 1},
    audit=[
        {"sequence": 1, "timestamp": 1, "entity": "e", "memo": "accrue", "delta": 1, "balance": 1}
    ],
)


@pytest.mark.parametrize(
    "record",
    # Peers and service records are data of whoever feeds the stand-in.
    [r for r in REAL if '"result"' in r["reply"] and "sla_history" not in r["name"]],
    ids=lambda record: record["name"],
)
def test_the_stand_in_uses_the_names_of_the_recorded_replies(record: dict[str, Any]) -> None:
    params = {"peer_id": PEER} if "peer_id" in record["params"] else record["params"]
    ours = ANSWERS[record["method"]](params, BEHIND_THE_RECORDS, "B")
    assert names(ours) == names(json.loads(record["reply"])["result"])


def names(value: Any) -> Any:
    """Field names of the first of everything; ids and reasons as keys stand for one another."""
    if isinstance(value, list):
        return [names(value[0])] if value else []
    if not isinstance(value, dict):
        return type(value).__name__ if not isinstance(value, float) else "int"
    if any(len(name) > 40 for name in value):
        return names(list(value.values())[:1])
    return {
        name: names(item) if name not in ("handshake_fail", "drops") else "counts"
        for name, item in value.items()
    }
