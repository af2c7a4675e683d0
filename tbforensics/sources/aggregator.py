"""A The-Block metrics aggregator: what it answers, and what was handed over of it.

`/export/all` is asked only when `export` says so: each answer raises `bulk_export_total`, and an
export holds every peer. It comes as a ZIP or in one of four envelopes. An envelope is kept as it
came and opened while evidence is collected, with keys that no record ever holds; the ZIP from
inside it is kept too, so that the evidence can be made anew without any key.

Samples are kept from five minutes before the baseline or the window, whichever starts first, to
the end of the later one, with those that have no time; the rest is counted.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote

import pyarrow as pa

from tbforensics import theblock
from tbforensics.errors import ParametersError
from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows
from tbforensics.model import Capture, Incident, Json, Query, Shape, Window
from tbforensics.reading import givenfiles, logstream, zipped
from tbforensics.reading.envelopes import Form, Keys, Shut, form_of, identities_in, unseal
from tbforensics.reading.givensecrets import NoSecret, secret
from tbforensics.reading.logrows import LineError, parse
from tbforensics.reading.logtables import MOST_QUARANTINED
from tbforensics.reading.peersamples import Sample, posts_of, samples_of, text_of
from tbforensics.wire import Client, Manners

SAID, SAMPLES, POSTS = "aggregator", "peer_samples", "peer_posts"
EXPORT, PEER, ARCHIVE, LISTING = "export", "peer", "posts", "listing"
LEAD_S = 300.0
_MOST_PEERS = 64  # asked one by one; an export holds them all
_IN_MEMORY_BYTES = 32 << 20
_RECORDS_PER_TABLE, _CHARS_PER_TABLE = 10_000, 16 << 20
_SIBLINGS = ("treasury", "energy")  # of generation B, beside the nodes under /wrappers
_ARRAY_OF_OBJECTS = re.compile(rb"\s*\[\s*[{\]]")
_PLAIN = (("healthz", "healthz"), ("cluster", "cluster"), ("telemetry", "telemetry"))


@dataclass(frozen=True)
class Options:
    """url and path may both be given; either is enough.

    export: ask for `/export/all` too, which the aggregator counts in `bulk_export_total`.
    recipient: have that export encrypted for `age1...` (generation A) or `tbx1...` (B).
    metrics: whose `/correlations/<metric>` to ask.
    peers: ids, hex or base58, whose `/peer/<id>` to ask; those that correlations name are asked
           too.
    path: exports and files of `TB_METRICS_ARCHIVE` that were handed over: a file, folder or glob.
    passphrase_file, passphrase_env: where the passphrase of an encrypted export is.
    identity_file, identity_env: where age identities (`AGE-SECRET-KEY-1...`) and X25519 keys (64
           hex digits) are, one a line.
    """

    export: bool = False
    recipient: str = ""
    metrics: tuple[str, ...] = ("quic_handshake_fail_total", "quic_retransmit_total")
    peers: tuple[str, ...] = ()
    path: str = ""
    passphrase_file: str = ""
    passphrase_env: str = ""
    identity_file: str = ""
    identity_env: str = ""

    def __post_init__(self) -> None:
        if self.recipient and not self.recipient.startswith(("age1", "tbx1")):
            raise ParametersError(
                "recipient: it starts with neither age1 nor tbx1",
                next_step="name the public half; the key that opens it goes into identity_file",
            )


class Aggregator:
    about = "A The-Block metrics aggregator: peers, correlations, exports, archived posts"
    options = Options
    needs_url = False
    always = (
        Query(SAID, "aggregator", "", "answers", Shape.ROWS, why="what it knows of the cluster"),
        Query(
            SAMPLES,
            "aggregator",
            "",
            "samples",
            Shape.RECORDS,
            why="each peer's counters as they were added to; summed samples are flagged",
        ),
        Query(
            POSTS,
            "aggregator",
            "",
            "posts",
            Shape.RECORDS,
            why="each post as a node sent it, where the aggregator archived them",
        ),
    )
    manners = Manners(read_s=60.0, retries=2, requests_per_s=5.0, longest_body_bytes=1 << 30)

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        window = incident.span.widened(before_s=LEAD_S)
        if not client.source.url and not options.path:
            why = "neither `url` nor `path` says where the aggregator's data are"
            yield client.fail(query=SAID, role=LISTING, request={}, error=why)
        if client.source.url:
            yield from _ask(client, options, window, queries)
        yield from _files(client, options, window)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        reading = _Reading(capture)
        if capture.role == EXPORT:
            yield from reading.export(body)
        elif capture.role == ARCHIVE:
            yield from reading.posts(body)
        elif capture.role == PEER:
            yield from reading.peer(body)
        else:
            yield from reading.answer(body)


# --- asking --------------------------------------------------------------------------------


def _ask(
    client: Client, options: Options, window: Window, queries: Sequence[Query]
) -> Iterator[Capture]:
    # Captures of one query come in one group, so what is asked last is gathered first.
    peers = [theblock.peer_hex(peer) or peer for peer in options.peers]
    for role, path in _PLAIN:
        yield client.ask(query=SAID, role=role, path=path)
    yield client.ask(query=SAID, role="wrappers", path="wrappers")
    for metric in options.metrics:
        path = f"correlations/{quote(metric, safe='')}"
        capture = client.ask(query=SAID, role="correlations", path=path)
        yield capture
        peers += _named(client.body(capture)) if capture.usable else []
    for query in queries:
        if query.source == "aggregator" and query.name not in (SAID, SAMPLES, POSTS):
            path = query.text.strip("/")
            role = path.partition("/")[0]
            if role == EXPORT:  # that takes more than a kind's wish
                why = "not asked: exports are asked only where `export` says so"
                yield client.fail(query=query.name, role=role, request={"path": path}, error=why)
                continue
            yield client.ask(query=query.name, role=role, path=path, window=window)
    asked = list(dict.fromkeys(peers))
    for peer in asked[:_MOST_PEERS]:
        spelled = theblock.peer_base58(peer) if theblock.peer_hex(peer) else peer
        path = f"peer/{quote(spelled, safe='')}"
        yield client.ask(query=SAMPLES, role=PEER, path=path, window=window)
    if len(asked) > _MOST_PEERS:
        why = f"not asked: {len(asked) - _MOST_PEERS} more peers; set `export` for all of them"
        yield client.fail(query=SAMPLES, role=PEER, request={}, error=why)
    if options.export:
        params = {"recipient": options.recipient} if options.recipient else {}
        sent = client.ask(
            query=SAMPLES, role=EXPORT, path="export/all", params=params, window=window
        )
        yield sent
        yield from _opened(client, sent, options)


def _named(body: bytes) -> list[str]:
    try:
        found = parse(body)
    except LineError:
        return []
    items = found if isinstance(found, list) else []
    peers = [item.get("peer_id") for item in items if isinstance(item, dict)]
    return [theblock.peer_hex(peer) or peer for peer in peers if isinstance(peer, str) and peer]


def _files(client: Client, options: Options, window: Window) -> Iterator[Capture]:
    found = givenfiles.find(options.path) if options.path else []
    wanted = [file for file in found if not file.why_not]
    posts = [file for file in wanted if _is_posts(file)]
    for query, family in ((SAMPLES, [f for f in wanted if f not in posts]), (POSTS, posts)):
        listing = json.dumps({"files": [file.to_json() for file in family]}).encode()
        yield client.keep_file([listing], query=query, role=LISTING, request={"files": "all found"})
        for file in family:
            kept = client.keep_file(
                givenfiles.chunks(file.path),
                query=query,
                role=ARCHIVE if query == POSTS else EXPORT,
                request={"file": file.name},
                window=window,
            )
            yield kept
            if query == SAMPLES:
                yield from _opened(client, kept, options)
    for file in found:
        if file.why_not:
            yield client.fail(
                query=POSTS, role=LISTING, request={"file": file.name}, error=file.why_not
            )


def _is_posts(file: givenfiles.Found) -> bool:
    """Lines of JSON, and no export in any of its forms."""
    try:
        head = next(givenfiles.chunks(file.path), b"")
    except OSError:
        return False
    packed = head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd"
    return packed or bool(_ARRAY_OF_OBJECTS.match(head))


def _opened(client: Client, kept: Capture, options: Options) -> Iterator[Capture]:
    """What an encrypted export holds, as a capture of its own; none where it is a plain ZIP."""
    if not kept.usable:
        return
    with client.archive.open(kept) as body:
        form = form_of(body.read(24))
    if form is Form.ZIP:
        return
    request = {**_of(kept), "opened_from": kept.sha256, "form": str(form)}
    with tempfile.TemporaryFile(dir=client.archive.folder) as plain:
        try:
            keys = _keys(options)
            unseal(lambda: client.archive.open(kept), kept.bytes, keys, plain)
        except (NoSecret, Shut) as error:
            yield client.fail(query=kept.query, role=EXPORT, request=request, error=f"{error}")
            return
        plain.seek(0)
        yield client.keep_file(
            iter(lambda: plain.read(1 << 20), b""),
            query=kept.query,
            role=EXPORT,
            request=request,
            window=kept.window,
        )


def _of(kept: Capture) -> dict[str, Json]:
    return {name: kept.request[name] for name in ("file", "url") if name in kept.request}


def _keys(options: Options) -> Keys:
    """Errors: NoSecret."""
    try:
        passphrase = secret(options.passphrase_file, options.passphrase_env)
    except NoSecret as error:
        raise NoSecret(f"the passphrase: {error}") from None
    try:
        identities = identities_in(secret(options.identity_file, options.identity_env))
    except NoSecret as error:
        raise NoSecret(f"the identities: {error}") from None
    return Keys(passphrase, identities)


# --- reading -------------------------------------------------------------------------------


class _Reading:
    """One capture being read."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        url = str(capture.request.get("url", ""))
        self._file = str(capture.request.get("file") or _path_of(url))
        window = capture.window
        self._range_ms = range(_ms(window.start), _ms(window.end)) if window else None
        self._told: Counter[str] = Counter()
        self._waiting: list[dict[str, Json]] = []  # records of many posts: few make a poor table
        self._waiting_chars = 0

    # --- bodies ----------------------------------------------------------------------------

    def export(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as whole:
            shutil.copyfileobj(body, whole)
            whole.seek(0)
            form = form_of(whole.read(24))
            if form is not Form.ZIP:  # what it holds is a capture of its own, if it opened
                yield self._snapshot("summary", {"file": self._file, "form": str(form)})
                return
            warnings: dict[str, Json] = {}
            for found in zipped.entries(whole):
                if isinstance(found, zipped.Refusal):
                    yield self._refused(found.name, found.offset, found.reason)
                elif found.name.startswith("tls_warnings/"):
                    yield from self._warning(found, warnings)
                elif found.name.endswith(".json"):
                    self._told["peers"] += 1
                    peer = PurePosixPath(found.name).stem
                    yield from self._samples(found.data, peer, found.name, found.offset)
                else:
                    yield self._refused(found.name, found.offset, "no entry of an export")
        yield from self._table()
        yield self._snapshot("summary", {**self._tally(), "form": str(form)})
        if warnings:
            yield self._snapshot("tls_warnings", warnings)

    def peer(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        yield from self._samples(body.read(), PurePosixPath(self._file).name, self._file, 0)
        yield from self._table()
        yield self._snapshot("summary", self._tally())

    def posts(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        line = offset = 0
        try:
            for piece in logstream.read(body):
                if isinstance(piece, logstream.Element):
                    # A file of one line is one array: its elements are those of one post.
                    line, offset, place = 1, piece.offset, piece.place - 1
                    yield from self._post(b"[" + piece.data + b"]", line, offset, place)
                    continue
                if piece.too_long:
                    why = f"longer than {logstream.LONGEST_LINE_BYTES} bytes: {piece.too_long}"
                    yield self._refused(self._file, piece.offset, why, piece.first_line)
                    continue
                line, offset = piece.first_line, piece.offset
                for text in piece.data.split(b"\n"):
                    yield from self._post(text, line, offset)
                    line, offset = line + 1, offset + len(text) + 1
        except logstream.StreamError as error:
            yield self._refused(self._file, offset, str(error), line + 1)
        yield from self._table()
        yield self._snapshot("summary", self._tally())

    def answer(self, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        role, text = self._capture.role, body.read()
        if role == "healthz":
            yield self._snapshot(role, {"healthy": True})
            return
        try:
            value, generation = _ANSWERS.get(role, _as_it_came)(parse(text))
            yield self._snapshot(role, {"path": self._file, **value}, generation)
        except (LineError, ValueError, TypeError, RecursionError) as error:
            yield self._refused(self._file, 0, str(error)[:200], 1, text)
            yield self._snapshot(
                role, {"message": f"it cannot be read: {error}"[:300]}, "", "error"
            )

    # --- pieces ----------------------------------------------------------------------------

    def _samples(
        self, text: bytes, peer: str, file: str, offset: int
    ) -> Iterator[tuple[str, pa.Table]]:
        try:
            found = samples_of(text, peer)
        except LineError as error:
            yield self._refused(file, offset, str(error), 1, text)
            return
        yield from self._records(found, file, 1, offset)

    def _post(
        self, text: bytes, line: int, offset: int, place: int = 0
    ) -> Iterator[tuple[str, pa.Table]]:
        if not text.strip():
            return
        self._told["posts"] += place == 0
        try:
            found = posts_of(text, place)
        except LineError as error:
            yield self._refused(self._file, offset, str(error), line, text)
            return
        yield from self._records(found, self._file, line, offset)

    def _records(
        self, found: Iterable[Sample | LineError], file: str, line: int, offset: int
    ) -> Iterator[tuple[str, pa.Table]]:
        for sample in found:
            if isinstance(sample, LineError):
                yield self._refused(file, offset, str(sample), line)
                continue
            self._told["samples"] += 1
            self._told["summed"] += sample.value["summed"] is True
            self._told["rotations"] += sample.value["what"] == "rotation"
            if sample.ts_ms is None:
                self._told["without_time"] += 1
            elif self._range_ms is not None and sample.ts_ms not in self._range_ms:
                self._told["outside_window"] += 1
                continue
            value = text_of(sample.value)
            self._waiting_chars += len(value)
            self._waiting.append(
                {
                    "source": self._capture.source,
                    "query": self._capture.query,
                    "file": file,
                    "line": line,
                    "offset": offset,
                    "place": sample.place,
                    "ts": None if sample.ts_ms is None else sample.ts_ms * 1_000_000,
                    "value": value,
                }
            )
        if len(self._waiting) >= _RECORDS_PER_TABLE or self._waiting_chars >= _CHARS_PER_TABLE:
            yield from self._table()

    def _table(self) -> Iterator[tuple[str, pa.Table]]:
        if self._waiting:
            yield "records", rows("records", self._waiting)
            self._waiting, self._waiting_chars = [], 0

    def _warning(
        self, entry: zipped.Entry, warnings: dict[str, Json]
    ) -> Iterator[tuple[str, pa.Table]]:
        try:
            warnings[PurePosixPath(entry.name).stem] = parse(entry.data)
        except LineError as error:
            yield self._refused(entry.name, entry.offset, str(error), 1, entry.data)

    def _tally(self) -> dict[str, Json]:
        return {"file": self._file, **dict(self._told)}

    def _refused(
        self, file: str, offset: int, reason: str, line: int = 1, data: bytes = b""
    ) -> tuple[str, pa.Table]:
        self._told["refused"] += 1
        if self._told["refused"] > MOST_QUARANTINED:
            return "quarantine", SCHEMAS["quarantine"].empty_table()
        row = {
            "source": self._capture.source,
            "query": self._capture.query,
            "file": file or self._file,
            "line": line,
            "offset": offset,
            "reason": reason,
            "bytes": data[:QUARANTINED_BYTES],
        }
        return "quarantine", rows("quarantine", [row])

    def _snapshot(
        self, role: str, value: Mapping[str, Json], generation: str = "", state: str = "ok"
    ) -> tuple[str, pa.Table]:
        snapshot = {
            "source": self._capture.source,
            "query": self._capture.query,
            "role": role,
            "ts": self._capture.asked_at,
            "generation": generation,
            "state": state,
            "value": text_of(dict(value)),
        }
        return "snapshots", rows("snapshots", [snapshot])


def _path_of(url: str) -> str:
    return "/".join(url.split("?")[0].split("/")[3:])


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


# --- answers -------------------------------------------------------------------------------


def _cluster(found: Json) -> tuple[dict[str, Json], str]:
    if isinstance(found, bool) or not isinstance(found, int):
        raise ValueError("no number of peers")
    return {"peers": found}, ""


def _correlations(found: Json) -> tuple[dict[str, Json], str]:
    """Nodes never send a correlation by themselves: none means no link, not no failure."""
    if not isinstance(found, list):
        raise ValueError("no array")
    linked = []
    for item in found:
        if isinstance(item, dict) and isinstance(item.get("peer_id"), str):
            item = {**item, "peer_id": theblock.peer_hex(item["peer_id"]) or item["peer_id"]}
        linked.append(item)
    return {"correlations": linked}, ""


def _telemetry(found: Json) -> tuple[dict[str, Json], str]:
    """Below a sample rate of a million ppm, counts of sampled metrics are estimates."""
    if not isinstance(found, dict):
        raise ValueError("no object")
    rates = [s.get("sample_rate_ppm") for s in found.values() if isinstance(s, dict)]
    sampled = any(isinstance(rate, int) and rate < 1_000_000 for rate in rates)
    return {"nodes": found, "sampled": sampled}, ""


def _wrappers(found: Json) -> tuple[dict[str, Json], str]:
    if not isinstance(found, dict):
        raise ValueError("no object")
    beside = {
        name: value
        for name, value in found.items()
        if name in _SIBLINGS and not (isinstance(value, dict) and "metrics" in value)
    }
    nodes = {name: value for name, value in found.items() if name not in beside}
    return {"nodes": nodes, **beside}, "B" if beside else ""


def _as_it_came(found: Json) -> tuple[dict[str, Json], str]:
    return (found if isinstance(found, dict) else {"answer": found}), ""


_ANSWERS = {
    "cluster": _cluster,
    "correlations": _correlations,
    "telemetry": _telemetry,
    "wrappers": _wrappers,
    LISTING: _as_it_came,
}
SOURCE = Aggregator()
