"""A stand-in for The-Block's explorer: what it answers by GET, and how it fails.

    with StandInExplorer({"/subsidy/history": [...]}) as explorer:
        ...  # ask explorer.url; explorer.asked says what was asked

Errors inside become empty lists with HTTP 200, a page of no rows is the error answer, and a page
number that cannot be read closes the socket without a reply.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Json = Any


@dataclass
class StandInExplorer:
    """replies: path -> what it answers; a list under `/releases` is given page by page.
    broken:  paths whose store cannot be read: an empty list, or a page of no rows.
    bodies:  path -> exact body to send instead.
    asked:   (path, parameters) in the order of arrival.
    """

    replies: dict[str, Json] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    bodies: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"explorer": self})
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

    def answer(self, path: str, params: dict[str, str]) -> bytes | None:
        self.asked.append((path, params))
        if path in self.bodies:
            return self.bodies[path]
        if path == "/releases":
            return self._page(params)
        found = [] if path in self.broken else self.replies.get(path, [])
        return json.dumps(found, sort_keys=True).encode()

    def _page(self, params: dict[str, str]) -> bytes | None:
        if not params.get("page", "0").isdigit():
            return None
        page, size = int(params.get("page", 0)), int(params.get("page_size", 25))
        if "/releases" in self.broken:
            page, size = 0, 0
        entries = self.replies.get("/releases", [])
        shown = entries[page * size : (page + 1) * size]
        total = 0 if "/releases" in self.broken else len(entries)
        body = {"total": total, "page": page, "page_size": size, "entries": shown}
        return json.dumps(body, sort_keys=True).encode()


class _Handler(BaseHTTPRequestHandler):
    explorer: StandInExplorer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.explorer.answer(parts.path, dict(parse_qsl(parts.query)))
        if body is None:
            self.close_connection = True
            return
        self.send_response_only(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""
