"""A proxy between the kit and a real server, which breaks replies as a plan says.

A plan looks at each question and names the fault that its reply gets, or None for none. The
proxy remembers every question, and the hash of every reply that it handed over whole.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import cramjam
from http_fake import Handler, Seen, fake

_KEPT = ("Content-Type", "Retry-After", "Location")
_HOP = {"host", "connection", "content-length", "accept-encoding", "transfer-encoding"}


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Asked:
    """One question.

    n: how many came before it. times: how often the same came. at: on a steady clock.
    """

    n: int
    times: int
    method: str
    path: str
    params: Mapping[str, str]
    json: Any
    authorization: str
    at: float

    @property
    def key(self) -> str:
        return question_key(self.method, self.path, self.params, self.json)

    @property
    def selector(self) -> str:
        return str(self.params.get("query", ""))


def question_key(method: str, path: str, params: Mapping[str, Any], body: Any) -> str:
    """What makes two questions the same question."""
    texts = {name: str(value) for name, value in params.items()}
    return json.dumps([method, path.rstrip("/"), texts, body], sort_keys=True)


Upstream = Callable[[], Reply]
Fault = Callable[[Handler, Upstream], "bytes | None"]  # the body, where it was sent whole
Plan = Callable[[Asked], "Fault | None"]


@dataclass
class Proxy:
    """url: where the kit is sent. sent: SHA-256 and length of whole replies with status 200."""

    url: str
    plan: Plan
    asked: list[Asked] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)


@contextmanager
def proxy(
    upstream: str, plan: Plan = lambda asked: None, tls: ssl.SSLContext | None = None
) -> Iterator[Proxy]:
    """Stand between the kit and a server until the block ends."""
    lock = threading.Lock()
    asked_before: dict[str, int] = {}

    def answer(to: Handler, before: int) -> None:
        with lock:
            asked = _asked(here.seen[before], len(between.asked), asked_before)
            between.asked.append(asked)
        seen = here.seen[before]
        fault = between.plan(asked) or passed
        body = fault(to, lambda: _forwarded(upstream, seen))
        if body is not None:
            between.sent[hashlib.sha256(body).hexdigest()] = len(body)

    with fake(answer, tls) as here:
        between = Proxy(here.url, plan)
        yield between


def _asked(seen: Seen, n: int, before: dict[str, int]) -> Asked:
    parts = urlsplit(seen.path)
    params = dict(parse_qsl(parts.query, keep_blank_values=True))
    body = None
    if seen.headers.get("Content-Type", "").startswith("application/json"):
        body = json.loads(seen.body)
    elif seen.headers.get("Content-Type") == "application/x-protobuf":
        params["query"] = in_text(seen.body)
    elif seen.body:
        params |= dict(parse_qsl(seen.body.decode(), keep_blank_values=True))
    key = question_key(seen.method, parts.path, params, body)
    before[key] = before.get(key, 0) + 1
    authorization, at = seen.headers.get("Authorization", ""), time.monotonic()
    return Asked(n, before[key], seen.method, parts.path, params, body, authorization, at)


def in_text(read: bytes) -> str:
    """A question of remote read; names and values stand in it as they are."""
    return bytes(cramjam.snappy.decompress_raw(read)).decode("latin-1")


def _forwarded(upstream: str, seen: Seen) -> Reply:
    """Ask the real server. One that is not there is a 502, as gateways say it."""
    headers = {k: v for k, v in seen.headers.items() if k.lower() not in _HOP}
    connection = http.client.HTTPConnection(urlsplit(upstream).netloc, timeout=60)
    try:
        connection.request(seen.method, seen.path, seen.body or None, headers)
        reply = connection.getresponse()
        kept = {name: reply.headers[name] for name in _KEPT if name in reply.headers}
        return Reply(reply.status, kept, reply.read())
    except (OSError, http.client.HTTPException):
        return Reply(502, {}, b"Bad Gateway")
    finally:
        connection.close()


# --- faults ----------------------------------------------------------------------------------


def passed(to: Handler, upstream: Upstream) -> bytes | None:
    """No fault."""
    reply = upstream()
    headers = {name.replace("-", "_"): value for name, value in reply.headers.items()}
    to.reply(reply.body, reply.status, **headers)
    return reply.body if reply.status == 200 else None


def hang(seconds: float) -> Fault:
    """Take the question and say nothing."""

    def fault(to: Handler, upstream: Upstream) -> None:
        time.sleep(seconds)
        to.close_connection = True

    return fault


def late(seconds: float) -> Fault:
    """The right answer, after a while."""

    def fault(to: Handler, upstream: Upstream) -> bytes | None:
        time.sleep(seconds)
        return passed(to, upstream)

    return fault


def drip(bytes_per_s: float) -> Fault:
    """The right answer, a byte at a time."""

    def fault(to: Handler, upstream: Upstream) -> None:
        body = upstream().body
        _begin(to, 200, len(body))
        for place in range(len(body)):
            to.wfile.write(body[place : place + 1])
            to.wfile.flush()
            time.sleep(1 / bytes_per_s)

    return fault


def reset(to: Handler, upstream: Upstream) -> None:
    """Half the body, then RST."""
    body = upstream().body
    _begin(to, 200, len(body))
    to.wfile.write(body[: len(body) // 2])
    to.wfile.flush()
    time.sleep(0.05)
    drop(to, upstream)


def drop(to: Handler, upstream: Upstream) -> None:
    """RST before any reply, as when the network is lost."""
    to.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    to.connection.shutdown(socket.SHUT_RD)
    to.close_connection = True
    to.connection.close()


def says(body: bytes | str, status: int = 200, **headers: str) -> Fault:
    """Another answer than the server's."""
    content = body.encode() if isinstance(body, str) else body

    def fault(to: Handler, upstream: Upstream) -> bytes | None:
        to.reply(content, status, **headers)
        return content if status == 200 and "Content_Encoding" not in headers else None

    return fault


def shortened(to: Handler, upstream: Upstream) -> bytes | None:
    """A reply that stops in the middle, with a length that fits."""
    reply = upstream()
    body, kind = reply.body, reply.headers.get("Content-Type", "")
    to.reply(body[: len(body) * 2 // 3], 200, Content_Type=kind)
    return body[: len(body) * 2 // 3]


def gzip_damaged(to: Handler, upstream: Upstream) -> None:
    """The right answer compressed, with one byte changed in the middle."""
    packed = bytearray(gzip.compress(upstream().body))
    packed[len(packed) // 2] ^= 0xFF
    to.reply(bytes(packed), 200, Content_Encoding="gzip")


def gzip_bomb(megabytes: int) -> Fault:
    """Zeros that compress a thousandfold, asked for or not."""
    content = gzip.compress(bytes(1 << 20) * megabytes, 6)

    def fault(to: Handler, upstream: Upstream) -> None:
        to.reply(content, 200, Content_Encoding="gzip")

    return fault


def endless(length: int) -> Fault:
    """So many zeros."""
    chunk = bytes(1 << 20)

    def fault(to: Handler, upstream: Upstream) -> None:
        _begin(to, 200, length)
        for _ in range(length // len(chunk)):
            to.wfile.write(chunk)

    return fault


def _begin(to: Handler, status: int, length: int) -> None:
    to.send_response(status)
    to.send_header("Content-Type", "application/json")
    to.send_header("Content-Length", str(length))
    to.end_headers()


# --- plans -----------------------------------------------------------------------------------


def always(fault: Fault) -> Plan:
    return lambda asked: fault


def on(words: str, fault: Fault, times: int = 1 << 30) -> Plan:
    """Only questions that hold these words, and only the first times that each is asked."""
    return lambda asked: fault if words in asked.selector and asked.times <= times else None
