"""Listening to a node: rows once, errors of both generations, and an end in time."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from handed import HOUR, NOW, POSTED, Handed
from http_fake import fake
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.server import ServerConnection, serve

from tbforensics.errors import ParametersError
from tbforensics.model import Window
from tbforensics.reading import logtail
from tbforensics.reading.logtail import listen, rows_in
from tbforensics.sources.logs import SOURCE, Options

Node = Callable[[ServerConnection], None]


def row(number: int) -> dict[str, Any]:
    return {
        **{"id": number, "timestamp": POSTED + number, "level": "WARN"},
        "message": f"match #{number}",
    }


@contextmanager
def node(speak: Node) -> Iterator[str]:
    with serve(speak, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join()


def saying(*frames: Any) -> Node:
    def speak(connection: ServerConnection) -> None:
        for frame in frames:
            connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))
        connection.recv()  # until the listener leaves

    return speak


def heard(speak: Node, for_s: float = 0.5, most_rows: int = 100) -> logtail.Heard:
    with node(speak) as url:
        return listen(url, {"limit": 9}, for_s=for_s, most_rows=most_rows)


def test_frames_are_kept_as_they_came_until_the_time_is_over() -> None:
    began = time.monotonic()
    found = heard(saying([], [row(2), row(1)], [row(2), row(1)], [row(3)]))
    assert [len(rows_in(frame)[0]) for frame in found.frames] == [0, 2, 2, 1]
    assert found.error == ""
    assert 0.4 < time.monotonic() - began < 5


def test_the_node_is_asked_by_the_name_that_it_allows() -> None:
    asked = []

    def note(connection: ServerConnection, request: Any) -> None:
        asked.append((request.path, request.headers["Host"]))

    with serve(saying(), "127.0.0.1", 0, process_request=note) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        url, params = f"http://127.0.0.1:{port}/node", {"limit": 9, "passphrase": "two & words"}
        listen(url, params, host="node.internal", for_s=0.1, most_rows=1)
        server.shutdown()
        thread.join()
    path = "/node/logs/tail?limit=9&passphrase=two+%26+words"
    assert asked == [(path, f"node.internal:{port}")]


def test_it_ends_when_so_many_different_rows_came() -> None:
    found = heard(saying([row(1)], [row(1)], [row(2)], [row(3)]), for_s=20, most_rows=2)
    assert len(found.frames) == 3


def test_an_error_of_generation_a_ends_it_and_one_of_b_does_not() -> None:
    def of_a(connection: ServerConnection) -> None:
        connection.send('{"error": "query failed"}')

    assert heard(of_a).error == "the node said: query failed"
    of_b = heard(saying({"status": 500, "body": "{}"}, [row(1)]))
    assert (of_b.error, len(of_b.frames)) == ("the node said: {}", 2)


def test_a_node_that_leaves_is_on_record() -> None:
    def leaves(connection: ServerConnection) -> None:
        connection.send(json.dumps([row(1)]))

    found = heard(leaves)
    assert (found.error, len(found.frames)) == ("the node ended it early", 1)


def test_nobody_there_and_a_refusal_are_said_without_the_address() -> None:
    for url in ("http://127.0.0.1:1", "http://no.such.host.invalid"):
        found = listen(url, {"passphrase": "canary"}, for_s=1, most_rows=1)
        assert found.error
        assert "canary" not in found.error
    with serve(saying(), "127.0.0.1", 0, process_request=lambda c, r: c.respond(403, "no")) as s:
        thread = threading.Thread(target=s.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{s.socket.getsockname()[1]}"
        assert listen(url, {}, for_s=1, most_rows=1).error == "HTTP 403"
        s.shutdown()
        thread.join()


def test_endless_frames_are_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logtail, "LONGEST_FRAME_BYTES", 1000)
    assert heard(saying("[" + " " * 5000)).error
    monkeypatch.setattr(logtail, "MOST_BYTES", 1500)
    assert "not listened to any longer" in heard(saying(*["[" + " " * 600 + "]"] * 9)).error


@given(st.text(max_size=60))
def test_no_frame_does_harm(text: str) -> None:
    for item in rows_in(text)[0]:
        logtail.identity(item)


# --- as a part of the logs source ------------------------------------------------------------


def collected(
    home: Path, monkeypatch: pytest.MonkeyPatch, frames: Sequence[Any], **options: Any
) -> tuple[Handed, list[dict[str, Any]]]:
    """The search has rows 1 and 2; the tail says `frames`. What was asked of the tail, too."""
    asked: list[dict[str, Any]] = []

    def listening(url: str, params: dict[str, Any], **how: Any) -> logtail.Heard:
        asked.append({**params, **how})
        return logtail.Heard([json.dumps(frame) for frame in frames])

    monkeypatch.setattr(logtail, "listen", listening)
    with fake(lambda handler, _: handler.reply(json.dumps([row(2), row(1)]))) as server:
        window = Window(HOUR.start, NOW + timedelta(hours=1))
        given_ = Handed(home, SOURCE, Options(**options), server.url, window=window)
    return given_, asked


def test_rows_after_the_search_are_lines_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [[], [row(4), row(3)], {"error": "x"}, [row(4), row(3)], [row(5)]]
    given_, asked = collected(tmp_path, monkeypatch, frames, tail=(60, 50))
    assert sorted(line["id"] for line in given_.lines) == [1, 2, 3, 4, 5]
    assert asked == [{"limit": 1000, "after_id": 2, "host": "", "for_s": 60, "most_rows": 50}]
    assert [c.role for c in given_.captures] == ["search", "tail"]


def test_nobody_listens_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert collected(tmp_path, monkeypatch, [])[1] == []
    with pytest.raises(ParametersError, match="tail"):
        Options(tail=(0,))


def test_a_passphrase_stands_in_no_record_of_the_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHRASE", "canary-4711")
    given_, asked = collected(tmp_path, monkeypatch, [[row(3)]], tail=(1,), passphrase_env="PHRASE")
    assert asked[0]["passphrase"] == "canary-4711"
    assert "canary" not in given_.everything()


def test_a_window_that_has_ended_is_not_listened_to(tmp_path: Path) -> None:
    with fake(lambda handler, _: handler.reply("[]")) as server:
        given_ = Handed(tmp_path / "case", SOURCE, Options(tail=(1,)), server.url)
    assert given_.errors == ["not listened: the window has ended already"]
