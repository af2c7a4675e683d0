"""The logs source: a node's log search swept page by page, and files of whatever kind."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_node import NodeState, StandInNode
from sweeping import FIRST, FIXTURES, LAST, NOW, TEN, Swept

from tbforensics.model import Capture
from tbforensics.sources import logs
from tbforensics.sources.logs import SOURCE, Options

Sweep = Callable[..., Swept]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    count = iter(range(100))

    def sweeping(url: str | None = None, **options: Any) -> Swept:
        return Swept(tmp_path / f"case-{next(count)}", Options(**options), url)

    yield sweeping


def stored(*seconds: int, message: str = "quic_connect_fail") -> list[dict[str, Any]]:
    return [{"timestamp": s, "level": "ERROR", "message": f"{message} {s}"} for s in seconds]


# --- a node ------------------------------------------------------------------------------


def test_the_sweep_asks_by_time_alone(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN))) as node:
        swept = sweep(node.url)
    ((path, query),) = node.asked
    assert path == "/logs/search"
    assert query == {"since": str(FIRST), "until": str(LAST), "limit": "5000"}
    assert [line["message"] for line in swept.lines] == [f"quic_connect_fail {TEN}"]
    assert {capture.query for capture in swept.captures} == {"log_lines"}
    assert "log_lines" in [query.name for query in SOURCE.always]


@pytest.mark.parametrize("generation", ["A", "B"])
def test_every_row_of_the_span_is_seen_once(sweep: Sweep, generation: str) -> None:
    seconds = [FIRST - 1, *range(FIRST, LAST + 1, 7), LAST, LAST + 1]
    with StandInNode(NodeState(logs=stored(*seconds)), generation) as node:
        swept = sweep(node.url, rows_per_page=100)
    wanted = [s for s in seconds if FIRST <= s <= LAST]
    got = [round(line["ts"].timestamp()) for line in swept.lines]
    assert sorted(got) == sorted(wanted)
    assert len({line["id"] for line in swept.lines}) == len(wanted)
    assert len(swept.captures) > 10
    first = min(line["id"] for line in swept.lines)
    assert first == (2 if generation == "A" else 1)  # the row before it is out of the span


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(FIRST, FIRST + 12), min_size=0, max_size=60),
    st.integers(1, 9),
    st.sampled_from("AB"),
)
def test_bursts_and_page_edges_lose_nothing_and_repeat_nothing(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[int], page: int, generation: str
) -> None:
    with StandInNode(NodeState(logs=stored(*seconds)), generation, tokens_per_s=1e6) as node:
        swept = Swept(tmp_path_factory.mktemp("case"), Options(rows_per_page=page), node.url)
    got = [round(line["ts"].timestamp()) for line in swept.lines]
    assert sorted(got) == sorted(seconds)
    assert len({line["id"] for line in swept.lines}) == len(seconds)


def test_more_rows_in_a_second_than_a_page_are_asked_for_with_a_longer_page(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN - 1, *[TEN] * 50, TEN + 1))) as node:
        swept = sweep(node.url, rows_per_page=10)
    limits = [int(query["limit"]) for _, query in node.asked]
    assert max(limits) > 50
    assert len(swept.lines) == 52


def test_a_second_that_no_page_can_hold_is_kept_as_far_as_it_came(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MOST_ROWS", 8)
    with StandInNode(NodeState(logs=stored(TEN - 1, *[TEN] * 50))) as node:
        swept = sweep(node.url, rows_per_page=4)
    assert len(swept.lines) == 8 + 1


def test_a_node_that_does_not_keep_to_the_bounds_is_left_alone(sweep: Sweep) -> None:
    class Deaf(StandInNode):
        def search(self, query: dict[str, str]) -> tuple[int, Any]:
            return super().search({"limit": query["limit"]})

    with Deaf(NodeState(logs=stored(*range(TEN + 3600, TEN + 9999)))) as node:
        swept = sweep(node.url, rows_per_page=10)
    assert len(node.asked) == 1
    assert "does not keep to" in swept.errors[0]


def test_an_empty_store_is_an_answer(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=[])) as node:
        swept = sweep(node.url)
    assert (swept.lines, swept.bad, swept.errors) == ([], [], [])
    assert swept.summaries[0]["rows"] == 0


@pytest.mark.parametrize("status", [404, 500])
def test_a_failing_search_is_on_record(sweep: Sweep, status: int) -> None:
    with StandInNode(NodeState(logs=[]), search_status=status) as node:
        swept = sweep(node.url)
    (capture,) = swept.captures
    assert (capture.status, capture.usable, capture.sha256 is not None) == (status, False, True)


def test_a_refused_host_is_on_record_until_the_option_names_it(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN)), allowed_hosts=("node.internal",)) as node:
        assert sweep(node.url).captures[0].status == 403
        assert len(sweep(node.url, host="node.internal").lines) == 1


def test_a_ban_is_on_record(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=[]), tokens_per_s=0.0) as node:
        swept = sweep(node.url)
    assert swept.captures[0].status == 429


@pytest.mark.parametrize("generation", ["A", "B"])
def test_another_store_is_asked_only_when_told_and_may_be_made_on_the_spot(
    sweep: Sweep, generation: str
) -> None:
    with StandInNode(NodeState(logs=stored(TEN)), generation) as node:
        swept = sweep(node.url, db="/var/lib/elsewhere")
    assert node.asked[0][1]["db"] == "/var/lib/elsewhere"
    assert swept.lines == []
    assert swept.captures[0].status == (404 if generation == "A" else 200)


# --- encrypted stores --------------------------------------------------------------------

PASSPHRASE = "correct horse & 12"


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_passphrase_opens_the_messages_and_is_written_nowhere(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "file":
        (tmp_path / "phrase").write_text(PASSPHRASE + "\n")
        option = {"passphrase_file": str(tmp_path / "phrase")}
    else:
        monkeypatch.setenv("LOG_PASSPHRASE", PASSPHRASE)
        option = {"passphrase_env": "LOG_PASSPHRASE"}
    with StandInNode(NodeState(logs=stored(TEN), log_passphrase=PASSPHRASE)) as node:
        swept = sweep(node.url, **option)
    assert [line["message"] for line in swept.lines] == [f"quic_connect_fail {TEN}"]
    kept = swept.journal() + "".join(
        path.read_text(errors="replace") for path in tmp_path.glob("case-*/captures.jsonl")
    )
    assert "***" in kept
    assert not {"correct horse", "correct+horse", "correct%20horse"} & {
        text for text in ("correct horse", "correct+horse", "correct%20horse") if text in kept
    }


def test_rows_that_stay_shut_are_counted(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_PASSPHRASE", "wrong")
    with StandInNode(NodeState(logs=stored(TEN, TEN + 1), log_passphrase=PASSPHRASE)) as node:
        none, wrong = sweep(node.url), sweep(node.url, passphrase_env="LOG_PASSPHRASE")
    assert (none.summaries[0]["encrypted"], none.summaries[0]["decrypt_failed"]) == (2, 0)
    assert (wrong.summaries[0]["encrypted"], wrong.summaries[0]["decrypt_failed"]) == (0, 2)
    assert [line["message"] for line in wrong.lines] == ["<decrypt-failed>"] * 2


@pytest.mark.parametrize(
    "option", [{"passphrase_file": "/no/such/file"}, {"passphrase_env": "NOT_SET_ANYWHERE"}]
)
def test_a_passphrase_that_is_missing_is_on_record_and_the_sweep_goes_on(
    sweep: Sweep, option: dict[str, str]
) -> None:
    with StandInNode(NodeState(logs=stored(TEN), log_passphrase=PASSPHRASE)) as node:
        swept = sweep(node.url, **option)
    assert "asked without" in swept.errors[0]
    assert [line["message"] for line in swept.lines] == ["<encrypted>"]


# --- recorded replies --------------------------------------------------------------------


def parsed(body: bytes, limit: int = 5000) -> dict[str, list[dict[str, Any]]]:
    capture = Capture(
        "logs", "log_lines", "search", {"params": {"limit": limit}}, NOW, status=200, sha256="0"
    )
    out: dict[str, list[dict[str, Any]]] = {}
    for name, table in SOURCE.parse(capture, io.BytesIO(body)):
        out.setdefault(name, []).extend(table.to_pylist())
    return out


def test_a_recorded_reply_is_read() -> None:
    lines = parsed((FIXTURES / "search.json").read_bytes())["log_lines"]
    assert [line["id"] for line in lines] == list(range(15, 4, -1))
    assert lines[1]["correlation_id"] is None  # the store writes "" for none
    assert lines[0]["peer"] == "07" * 32
    assert lines[0]["block"] == 115
    assert [line["line"] for line in lines] == list(range(1, 12))


def test_a_recorded_reply_of_an_encrypted_store_is_counted() -> None:
    (row,) = parsed((FIXTURES / "search-encrypted.json").read_bytes())["snapshots"]
    told = json.loads(row["value"])
    assert (told["rows"], told["encrypted"], told["decrypt_failed"]) == (5, 3, 2)


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"error":"log query failed"}', b"null", b"\xff\xfe"]
)
def test_a_reply_that_is_no_array_is_quarantined_whole(body: bytes) -> None:
    found = parsed(body)
    assert [row["bytes"] for row in found["quarantine"]] == [body]
    assert "log_lines" not in found


def test_one_bad_row_in_a_reply_is_alone() -> None:
    body = b'[{"id":2,"timestamp":1773136801,"level":"WARN","message":"a"},7,' + (
        b'{"id":1,"timestamp":"soon","message":"b"},{"id":0,"timestamp":1773136800,"message":"c"}]'
    )
    found = parsed(body)
    assert [line["message"] for line in found["log_lines"]] == ["a", "c"]
    assert [row["line"] for row in found["quarantine"]] == [2, 3]


def test_a_reply_that_was_cut_keeps_its_whole_rows() -> None:
    body = (FIXTURES / "search.json").read_bytes()
    found = parsed(body[:1000])
    assert len(found["log_lines"]) == 5
    assert len(found["quarantine"]) == 1


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_reply_at_all_raises(body: bytes) -> None:
    parsed(body)
    parsed(b'[{"id":1},' + body)
