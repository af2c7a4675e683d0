"""Log lines: a The-Block node's `/logs/search`, and files of logs, dumps and journals.

Lines are kept from five minutes before the baseline or the window, whichever starts first, to
the end of the later one, with lines that have no time of their own; the rest is counted. The
bytes that they were read from are kept whole.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, tzinfo
from pathlib import Path
from typing import BinaryIO
from zoneinfo import ZoneInfo

import pyarrow as pa

from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Incident, Json, Query, Shape, Window
from tbforensics.reading import givenfiles, logstream, logtail
from tbforensics.reading.logrows import Clock, LineError, time_ms
from tbforensics.reading.logtables import Reading
from tbforensics.wire import Client, Manners, without_secrets

QUERY = "log_lines"  # one sweep answers whatever a kind may ask of the logs
SEARCH, FILE, LISTING, TAIL = "search", "file", "listing", "tail"
LEAD_S = 300.0
_TAIL_LIMIT = 1_000  # rows a tick
_TAIL_ROWS = 10_000
_MOST_ROWS = 1_000_000  # asked for one second before the rest of that second is given up
_DUMPED_AT = re.compile(r"_(\d{9,11})\.json")


@dataclass(frozen=True)
class Options:
    """url and path may both be given; either is enough.

    path: a file, a folder (all files below it) or a glob (`*`, `?`, `[...]`, `**`).
    time_zone: how to read times without a zone: `UTC` or a name like `Europe/Berlin`. Without
               it such lines keep no time.
    host: the Host header, where a tunnel hides the name that the node allows.
    db: the store on the node, where it is not the default one. A node of generation B creates
        a store that is missing, so a wrong name is answered with "no lines".
    rows_per_page: how many rows to ask a node for at once.
    passphrase_file, passphrase_env: where to find the passphrase of an encrypted store.
    tail: seconds, and most rows if not 10,000, to listen to `/logs/tail` after the search while the
          window has not ended; without it, nobody listens. A node of generation B was seen to hang
          when its listener left.
    """

    path: str = ""
    time_zone: str = ""
    host: str = ""
    db: str = ""
    rows_per_page: int = 5_000
    passphrase_file: str = ""
    passphrase_env: str = ""
    tail: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.tail) > 2 or not all(0 < number <= 100_000 for number in self.tail):
            raise ParametersError(
                "tail: not seconds, or seconds and rows, of 1 to 100,000",
                next_step="write it like [60] or [60, 5000]",
            )
        if self.rows_per_page < 1:
            raise ParametersError(f"rows_per_page: {self.rows_per_page} is less than one row")
        try:
            _zone(self.time_zone)
        except (OSError, ValueError, LookupError):
            raise ParametersError(
                f"time_zone: {self.time_zone!r} is no time zone",
                next_step="use UTC or a name like Europe/Berlin",
            ) from None


class Logs:
    about = "Log lines of a The-Block node (/logs/search) or of files: JSON lines, dumps, text"
    options = Options
    needs_url = False
    always = (Query(QUERY, "logs", "", "lines", Shape.ROWS, why="what was logged"),)
    manners = Manners(
        read_s=60.0, retries=2, ban_s=61.0, requests_per_s=5.0, longest_body_bytes=1 << 30
    )

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        window = incident.span.widened(before_s=LEAD_S)
        if not client.source.url and not options.path:
            yield _failed(client, SEARCH, {}, "neither `url` nor `path` says where the logs are")
        if client.source.url:
            pages = []
            for capture in _sweep(client, options, window):
                pages.append(capture)
                yield capture
            if options.tail:
                yield from _tail(client, options, window, pages)
        if options.path:
            yield from _files(client, options, window)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        name = str(capture.request.get("file", "logs/search"))
        reading = Reading(capture.source, capture.query, name, capture.window, _clock(capture))
        if capture.role == LISTING:
            yield reading.summary(LISTING, capture.asked_at, {"files": json.load(body)})
            return
        extra: dict[str, Json] = {}
        if capture.role == TAIL:
            yield from reading.of_elements(_heard(body))
            yield reading.summary("summary", capture.asked_at, extra)
            return
        if capture.role == SEARCH:
            page = body.read()
            if page.lstrip()[:1] != b"[":
                yield reading.refusal("the reply is not an array", page)
                return
            reading.left_ms = _left_to_next_page(capture, page)
            body = io.BytesIO(page)
        elif dumped := _DUMPED_AT.search(name):
            # A dump without rows still says that its trigger fired.
            extra["dumped_at"] = int(dumped[1])
        yield from reading.tables(body)
        yield reading.summary("summary", capture.asked_at, extra)


def _failed(client: Client, role: str, request: dict[str, Json], error: str) -> Capture:
    return client.fail(query=QUERY, role=role, request=request, error=error)


def _clock(capture: Capture) -> Clock:
    zone = str(capture.request.get("time_zone", ""))
    return Clock(_zone(zone), capture.window.start if capture.window else None)


def _zone(name: str) -> tzinfo | None:
    if not name or name == "UTC":
        return UTC if name else None
    return ZoneInfo(name)


# --- a node ------------------------------------------------------------------------------
#
# `/logs/search` answers newest first, both ends included, in whole seconds, and has no offset.
# So `until` moves down: a full page may have cut its oldest second, which is asked for again
# from there and read from the next page alone. A second with more rows than a page is asked for
# with a longer page. The id would do as a cursor only upwards, and starts at 0 or at 1.


def _sweep(client: Client, options: Options, window: Window) -> Iterator[Capture]:
    params: dict[str, Json] = {"since": math.floor(window.start.timestamp())}
    if options.db:
        params["db"] = options.db
    if options.passphrase_file or options.passphrase_env:
        try:
            params["passphrase"] = _passphrase(options)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            yield _failed(client, SEARCH, {}, f"no passphrase, so asked without one: {reason}")
    page_rows = min(options.rows_per_page, _MOST_ROWS)
    until, limit = math.ceil(window.end.timestamp()) - 1, page_rows
    while until >= params["since"]:
        asked = {**params, "until": until, "limit": limit}
        capture = client.ask(
            query=QUERY,
            role=SEARCH,
            path="logs/search",
            params=asked,
            headers={"Host": options.host} if options.host else {},
            window=window,
        )
        yield capture
        seconds = _seconds(client.body(capture)) if capture.usable else []
        if len(seconds) < limit:
            return
        if not all(params["since"] <= second <= until for second in seconds):
            request: dict[str, Json] = {"params": {**asked, "passphrase": "***"}}
            yield _failed(client, SEARCH, request, "the node does not keep to `since` and `until`")
            return
        if (oldest := min(seconds)) < until:
            until, limit = oldest, page_rows
        elif limit < _MOST_ROWS:
            limit = min(4 * limit, _MOST_ROWS)
        else:
            until, limit = until - 1, page_rows


def _passphrase(options: Options) -> str:
    if options.passphrase_file:
        return Path(options.passphrase_file).read_text(encoding="utf-8").rstrip("\r\n")
    if passphrase := os.environ.get(options.passphrase_env):
        return passphrase
    raise ValueError(f"{options.passphrase_env} is not set")


def _seconds(page: bytes) -> list[int]:
    """The second of each row; -1 of one whose time cannot be read. Empty for no array."""
    try:
        found = json.loads(page)
    except (ValueError, RecursionError):
        return []
    return [_second(item) for item in found] if isinstance(found, list) else []


def _second(item: Json) -> int:
    try:
        ts_ms = time_ms(item["timestamp"])
    except (LineError, LookupError, TypeError):
        return -1
    return -1 if ts_ms is None else ts_ms // 1000


def _left_to_next_page(capture: Capture, page: bytes) -> range | None:
    """The milliseconds whose rows the next page gives whole; None when this is the last page.

    Were that page to fail, its capture says so from this second on.
    """
    limit = capture.request.get("params", {}).get("limit", math.inf)
    seconds = _seconds(page)
    if len(seconds) < limit or (limit >= _MOST_ROWS and min(seconds) == max(seconds)):
        return None
    return range(min(seconds) * 1000, min(seconds) * 1000 + 1000)


# --- a node, as it goes on -----------------------------------------------------------------


def _tail(
    client: Client, options: Options, window: Window, pages: Sequence[Capture]
) -> Iterator[Capture]:
    """What comes after the rows that the search gave; its first page holds the newest."""
    asked: dict[str, Json] = {"limit": _TAIL_LIMIT}
    if options.db:
        asked["db"] = options.db
    first = next((page for page in pages if page.usable), None)
    rows = logtail.rows_in(client.body(first).decode("utf-8", "replace"))[0] if first else []
    ids = [row.get("id") for row in rows if isinstance(row, dict)]
    if newest := max((number for number in ids if type(number) is int), default=None):
        asked["after_id"] = newest
    request: dict[str, Json] = {"url": f"{without_secrets(str(client.source.url))}/logs/tail"}
    if window.end <= client.now():
        yield _failed(client, TAIL, request, "not listened: the window has ended already")
        return
    session = client.session
    if session.auth or session.cert or session.verify is not True:
        why = "not listened: that is done without credentials and certificates of one's own"
        yield _failed(client, TAIL, request, why)
        return
    secret: dict[str, Json] = {}
    if options.passphrase_file or options.passphrase_env:
        with suppress(OSError, ValueError):  # the sweep said so
            secret["passphrase"] = _passphrase(options)
    heard = logtail.listen(
        str(client.source.url),
        {**asked, **secret},
        host=options.host,
        for_s=options.tail[0],
        most_rows=options.tail[1] if len(options.tail) == 2 else _TAIL_ROWS,
    )
    request["params"] = {**asked, **dict.fromkeys(secret, "***")}
    if heard.frames:
        yield client.keep_file(
            [heard.body()], query=QUERY, role=TAIL, request=request, window=window
        )
    if heard.error:
        error = heard.error
        for value in secret.values():
            error = error.replace(str(value), "***")
        yield _failed(client, TAIL, request, error)


def _heard(body: BinaryIO) -> list[logstream.Element]:
    """Every row once, in the order in which it first came."""
    rows: dict[str, Json] = {}
    for frame in json.load(body):
        for row in logtail.rows_in(frame)[0]:
            rows.setdefault(logtail.identity(row), row)
    return [
        logstream.Element(json.dumps(row).encode(), place, -1)
        for place, row in enumerate(rows.values(), start=1)
    ]


# --- files -------------------------------------------------------------------------------


def _files(client: Client, options: Options, window: Window) -> Iterator[Capture]:
    zone = {"time_zone": options.time_zone} if options.time_zone else {}
    found = givenfiles.find(options.path)
    listing = json.dumps([file.to_json() for file in found]).encode()
    yield client.keep_file([listing], query=QUERY, role=LISTING, request={"files": "all found"})
    wanted = [file for file in found if not file.why_not]
    if not wanted:
        yield _failed(client, FILE, {}, "no file to read under `path`: see the listing")
    for file in wanted:
        yield client.keep_file(
            givenfiles.chunks(file.path),
            query=QUERY,
            role=FILE,
            request={"file": file.name, **zone},
            window=window,
        )


SOURCE = Logs()
