"""Listening to a node's `/logs/tail`: frames as they come, for a while, and then no more.

A frame is an array of rows, newest first, or an error in words. Generation B sends rows again and
again, so they are told apart by their ids; A closes after an error, B goes on.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import connect

from tbforensics.model import Json
from tbforensics.reading.logrows import LineError, parse

LONGEST_FRAME_BYTES = 16 << 20
MOST_BYTES = 64 << 20
_CONNECT_S = 5.0


@dataclass
class Heard:
    """Frames in the order in which they came. `error`: why it ended early; "" when it did not."""

    frames: list[str] = field(default_factory=list)
    error: str = ""

    def body(self) -> bytes:
        """The frames as one JSON array of texts, for the archive."""
        return json.dumps(self.frames, ensure_ascii=False).encode("utf-8", "replace")


def listen(
    url: str, params: Mapping[str, Json], *, host: str = "", for_s: float, most_rows: int
) -> Heard:
    """Listen until the time is over, or until so many different rows came. Never raises.

    host: what to call the node in the Host header.
    """
    parts, heard, known, length = urlsplit(url), Heard(), set[str](), 0
    port = parts.port or (443 if parts.scheme == "https" else 80)
    scheme = "wss" if parts.scheme == "https" else "ws"
    query = urlencode({name: str(value) for name, value in params.items()})
    address = f"{scheme}://{host or parts.hostname}:{port}{parts.path}/logs/tail?{query}"
    until = time.monotonic() + for_s
    try:
        with connect(
            address,
            sock=socket.create_connection((parts.hostname, port), _CONNECT_S),
            server_hostname=parts.hostname if scheme == "wss" else None,
            proxy=None,
            compression=None,
            ping_interval=None,
            open_timeout=_CONNECT_S,
            close_timeout=_CONNECT_S,
            max_size=LONGEST_FRAME_BYTES,
        ) as node:
            while (left := until - time.monotonic()) > 0 and len(known) < most_rows:
                try:
                    frame = node.recv(timeout=left)
                except TimeoutError:
                    break
                text = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
                length += len(text)
                if length > MOST_BYTES:
                    heard.error = f"more than {MOST_BYTES} bytes: not listened to any longer"
                    break
                heard.frames.append(text)
                rows, error = rows_in(text)
                known |= {identity(row) for row in rows}
                heard.error = error or heard.error
    except InvalidStatus as error:
        heard.error = f"HTTP {error.response.status_code}"
    except ConnectionClosed:
        heard.error = heard.error or "the node ended it early"
    except OSError as error:
        heard.error = error.strerror or type(error).__name__
    except (WebSocketException, ValueError) as error:
        heard.error = type(error).__name__  # its words would quote the address with the passphrase
    return heard


def rows_in(frame: str) -> tuple[list[Json], str]:
    """The rows of a frame, and what the node says went wrong."""
    try:
        found = parse(frame.encode("utf-8", "replace"))
    except LineError as error:
        return [], f"a frame cannot be read: {error}"
    if isinstance(found, list):
        return found, ""
    said = found.get("error") or found.get("body") if isinstance(found, dict) else found
    return [], f"the node said: {str(said)[:200]}"


def identity(row: Json) -> str:
    """What makes a row the same as another: its id, or all of it where it has none."""
    named = row.get("id") if isinstance(row, dict) else None
    return repr(named) if named is not None else json.dumps(row, sort_keys=True)
