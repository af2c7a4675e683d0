"""A small HTTP server that answers as a function says, and remembers what it was asked."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Fake:
    url: str
    seen: list[Seen] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each reply waits 40 ms for an acknowledgement

    def reply(self, body: bytes | str, status: int = 200, **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


Answer = Callable[[Handler, int], None]  # (request, how many came before it)


@contextmanager
def fake(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Fake]:
    lock = threading.Lock()

    class _Handler(Handler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                before = len(server.seen)
                server.seen.append(Seen(self.command, self.path, dict(self.headers), body))
            try:
                answer(self, before)
            except OSError:
                self.close_connection = True  # the client went away

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    class _Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *args: object) -> None:
            pass

    http = _Server(("127.0.0.1", 0), _Handler)
    server = Fake(f"http{'s' if tls else ''}://127.0.0.1:{http.server_address[1]}")
    if tls:
        http.socket = tls.wrap_socket(http.socket, server_side=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        http.shutdown()
        http.server_close()
        thread.join()
