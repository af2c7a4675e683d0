"""A stand-in for a The-Block node: JSON-RPC, `/logs/search` and `/metrics` on one free port.

    with StandInNode(NodeState(balances={"prov-a": 35}), generation="A") as node:
        ...  # ask node.url; node.asked says what was asked

As a script it serves until it is stopped: `python tests/standin_node.py [--generation A]
[--port 3030] [state.json]`, where the file holds the fields of `NodeState`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from standin_replies import (
    ADMIN,
    ANSWERS,
    LOOPBACK,
    ONLY_B,
    BadParams,
    NodeState,
    in_base58,
    peer_key,
    root_of,
)

__all__ = ["NodeState", "StandInNode", "in_base58", "peer_key", "root_of"]

Json = Any
_LONGEST_QUESTION = 1 << 20


@dataclass
class StandInNode:
    """One node. Everything may be changed while it runs.

    allowed_hosts: what the Host header may say, without its port.
    admin_token:   opens the admin methods; "" for a node without one.
    far_away:      treat the asker as on another machine: loopback methods are unknown to it.
    tokens_per_s, ban_s: the rate limit of one address.
    replies:       JSON-RPC method -> exact body to send instead of the right one; None closes
                   the socket without a reply, as a node does whose worker panics.
    search_status: what `/logs/search` fails with: 404, 500; 0 for not at all.
    asked:         (path or method, parameters) in the order of arrival, refused ones too.
    """

    state: NodeState = field(default_factory=NodeState)
    generation: str = "B"
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost")
    admin_token: str = ""
    far_away: bool = False
    tokens_per_s: float = 100.0
    ban_s: float = 60.0
    replies: dict[str, bytes | None] = field(default_factory=dict)
    search_status: int = 0
    asked: list[tuple[str, Json]] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self._tokens, self._refilled, self._banned_until = self.tokens_per_s, time.monotonic(), 0.0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"standin": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    # --- rules of the door ------------------------------------------------------------

    def refusal(self) -> int:
        """0, or the code with which this address is refused now: the first refusal bans it."""
        with self._lock:
            now = time.monotonic()
            if now < self._banned_until:
                return -32002
            self._tokens = min(
                self.tokens_per_s, self._tokens + (now - self._refilled) * self.tokens_per_s
            )
            self._refilled = now
            if self._tokens < 1:
                self._banned_until = now + self.ban_s
                return -32001
            self._tokens -= 1
            return 0

    # --- JSON-RPC ---------------------------------------------------------------------

    def rpc(self, body: bytes, authorization: str) -> bytes | None:
        if len(body) > _LONGEST_QUESTION:
            return _error(None, -32600, "request too large")
        try:
            question = json.loads(body)
        except ValueError:
            question = None
        if not isinstance(question, dict) or not isinstance(question.get("method"), str):
            return _error(None, -32700, "parse error")  # a batch too
        number, method = question.get("id"), question["method"]
        params = question.get("params") or {}
        self.asked.append((method, params))
        if method in self.replies:
            return self.replies[method]
        if not self._permitted(method, authorization):
            return _error(number, -32601, "method not found")
        try:
            result = ANSWERS[method](params, self.state, self.generation)
        except BadParams as error:
            return _error(number, -32602, str(error))
        except (TypeError, ValueError, AttributeError):
            return _error(number, -32602, "invalid params")
        return _compact({"jsonrpc": "2.0", "id": number, "result": result})

    def _permitted(self, method: str, authorization: str) -> bool:
        if method not in ANSWERS or (method in ONLY_B and self.generation == "A"):
            return False
        if method in LOOPBACK:
            return not self.far_away
        if method in ADMIN:
            return bool(self.admin_token) and authorization == f"Bearer {self.admin_token}"
        return True

    # --- /logs/search -----------------------------------------------------------------

    def search(self, query: dict[str, str]) -> tuple[int, Json]:
        if self.search_status == 404 or self.state.logs is None:
            return 404, {"error": "log database unavailable"}
        if self.search_status:
            return self.search_status, {"error": "log query failed"}
        if "db" in query and self.generation == "B":
            return 200, []  # the store is made on the spot, and empty
        if "db" in query:
            return 404, {"error": "log database unavailable"}
        rows = [row for row in self._stored(query.get("passphrase")) if _wanted(row, query)]
        rows.sort(key=lambda row: (row["timestamp"], row["id"]), reverse=True)
        return 200, rows[: _number(query, "limit")]

    def _stored(self, passphrase: str | None) -> Iterator[dict[str, Json]]:
        first = 1 if self.generation == "A" else 0
        secret = self.state.log_passphrase
        missing = "" if self.generation == "B" else None
        for number, row in enumerate(self.state.logs or (), first):
            message = row["message"]
            if secret is not None and passphrase != secret:
                message = "<encrypted>" if passphrase is None else "<decrypt-failed>"
            yield {
                "id": number,
                "timestamp": row["timestamp"],
                "level": row["level"],
                "message": message,
                "correlation_id": row.get("correlation_id", missing),
                "peer": row.get("peer"),
                "tx": row.get("tx"),
                "block": row.get("block"),
            }


def _wanted(row: dict[str, Json], query: dict[str, str]) -> bool:
    fields = {"correlation": "correlation_id", "peer": "peer", "tx": "tx", "level": "level"}
    if any(name in query and row[key] != query[name] for name, key in fields.items()):
        return False
    block, since, until = (_number(query, name) for name in ("block", "since", "until"))
    after = _number(query, "after_id")
    after = _number(query, "after-id") if after is None else after
    return (
        (block is None or row["block"] == block)
        and (since is None or row["timestamp"] >= since)
        and (until is None or row["timestamp"] <= until)
        and (after is None or row["id"] > after)
    )


def _number(query: dict[str, str], name: str) -> int | None:
    """A number that cannot be read is as good as none."""
    text = query.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _compact(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _error(number: Json, code: int, message: str) -> bytes:
    error = {"code": code, "message": message}
    return _compact({"jsonrpc": "2.0", "id": number, "error": error})


class _Handler(BaseHTTPRequestHandler):
    standin: StandInNode
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if not self._let_in():
            return
        if urlsplit(self.path).path != "/":
            self._send(404, b"")
            return
        reply = self.standin.rpc(body, self.headers.get("Authorization", ""))
        if reply is None:
            self.close_connection = True
            return
        self._send(200, reply)

    def do_GET(self) -> None:
        if not self._let_in():
            return
        path = urlsplit(self.path)
        if path.path == "/logs/search":
            query = dict(parse_qsl(path.query, keep_blank_values=True))
            self.standin.asked.append(("/logs/search", query))
            status, rows = self.standin.search(query)
            self._send(status, _compact(rows))
        elif path.path == "/metrics" and self.standin.state.metrics:
            self._send(200, self.standin.state.metrics.encode(), "text/plain; version=0.0.4")
        else:
            self._send(404, b"")

    def _let_in(self) -> bool:
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in self.standin.allowed_hosts:
            self.close_connection = True
            self._send(403, b"")
            return False
        if code := self.standin.refusal():
            self.standin.asked.append(("refused", code))
            self.close_connection = True
            self._send(429, _error(None, code, "rate limited" if code == -32001 else "banned"))
            return False
        return True

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response_only(status)
        if body:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state", nargs="?", type=Path)
    parser.add_argument("--generation", choices=("A", "B"), default="B")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    state = NodeState(**json.loads(given.state.read_text())) if given.state else NodeState()
    with StandInNode(state, given.generation, port=given.port) as node:
        print(node.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
