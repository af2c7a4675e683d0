"""The log indexer's store itself, copied from a node: an SQLite file, or a folder of JSON.

A file is kept as it is; a folder, or a database with its write-ahead log, as one tar, because
its files mean something only together and one capture is what a parser is given. Messages that
are encrypted are opened while evidence is collected and kept as a capture of their own, so that
the evidence can be made anew without the passphrase, which no record ever holds.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.evidence import QUARANTINED_BYTES, rows
from tbforensics.model import Capture, Incident, Json, Query, Window
from tbforensics.reading import givenfiles, logcolumns, logstores
from tbforensics.reading.givenfiles import Found
from tbforensics.reading.givensecrets import NoSecret, secret
from tbforensics.reading.logcipher import Shut, key_of, opened
from tbforensics.reading.logcolumns import flags
from tbforensics.reading.logsqlite import Batch, Stored
from tbforensics.reading.logstores import About, Unreadable
from tbforensics.reading.logstream import Element
from tbforensics.reading.logtables import MOST_QUARANTINED, Reading
from tbforensics.wire import Client, Manners

QUERY = "log_lines"  # the name under which kinds look at log lines, wherever they come from
STORE, OPENED, LISTING = "store", "opened", "listing"
LEAD_S = 300.0
ENCRYPTED, DECRYPT_FAILED = "<encrypted>", "<decrypt-failed>"  # as a node itself shows them
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Options:
    """path: a copy of the store: an SQLite file, its folder of JSON, or a folder or glob above.
    passphrase_file, passphrase_env: where the passphrase of an encrypted store is.
    """

    path: str
    passphrase_file: str = ""
    passphrase_env: str = ""


class LogStore:
    about = "A node's log store on disk: the SQLite file of generation A, the folder of B"
    options = Options
    needs_url = False
    always: tuple[Query, ...] = ()  # `log_lines` is asked by the kinds
    manners = Manners()

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        window = incident.span.widened(before_s=LEAD_S)
        found = givenfiles.find(options.path)
        listing = json.dumps([file.to_json() for file in found]).encode()
        yield client.keep_file([listing], query=QUERY, role=LISTING, request={"files": "all found"})
        passphrase = ""
        try:
            passphrase = secret(options.passphrase_file, options.passphrase_env)
        except NoSecret as error:
            why = f"no passphrase, so messages stay shut: {error}"
            yield client.fail(query=QUERY, role=OPENED, request={}, error=why)
        stores = _stores(found)
        if not stores:
            why = "no log store under `path`: see the listing"
            yield client.fail(query=QUERY, role=STORE, request={}, error=why)
        for name, files in stores.items():
            request: dict[str, Json] = {"file": name}
            if passphrase:
                request["messages"] = "opened apart"
            kept = _kept(client, files, request, window)
            yield kept
            if passphrase and kept.usable:
                yield from _opened_apart(client, kept, passphrase)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        name = str(capture.request.get("file", ""))
        reading = Reading(capture.source, capture.query, name, capture.window)
        if capture.role == LISTING:
            yield reading.summary(LISTING, capture.asked_at, {"files": json.load(body)})
        elif capture.role == OPENED:
            yield from reading.tables(body)
            yield reading.summary("summary", capture.asked_at, {"messages": "opened"})
        else:
            yield from _tables(capture, reading, body)


SOURCE = LogStore()


# --- keeping -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """The files of one store. root: of a folder, to see which tables it has by and by."""

    files: tuple[Found, ...]
    root: Path | None = None


def _stores(found: Sequence[Found]) -> dict[str, _Given]:
    """Stores by their names. A folder is known by a log or a table in a folder of its own."""
    stores: dict[str, _Given] = {}
    for file in found:
        path = file.path
        if file.why_not:
            continue
        if _is_sqlite(file):
            log = _read(givenfiles.find(str(path.with_name(f"{path.name}-wal"))))
            stores[file.name] = _Given((file, *(f for f in log if f.length)))
        elif path.name == "wal.log" or (path.name.startswith("sst-") and path.suffix == ".bin"):
            root, name = path.parent.parent, str(Path(file.name).parent.parent)
            files = tuple(_read(givenfiles.find(str(root))))
            stores.setdefault(root.name if name == "." else name, _Given(files, root))
    return stores


def _read(found: Sequence[Found]) -> list[Found]:
    return [file for file in found if not file.why_not]


def _is_sqlite(file: Found) -> bool:
    try:
        return next(givenfiles.chunks(file.path), b"").startswith(logstores.SQLITE_MAGIC)
    except OSError:
        return False


def _kept(client: Client, store: _Given, request: dict[str, Json], window: Window) -> Capture:
    if store.root is None and len(store.files) == 1:
        chunks = givenfiles.chunks(store.files[0].path)
    else:
        chunks = logstores.packed(_copied(store, client.archive.folder))
        request = {**request, "form": "tar"}
    return client.keep_file(chunks, query=QUERY, role=STORE, request=request, window=window)


def _copied(store: _Given, near: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Each file as it was when it was read, so that its length is known before its bytes.

    Logs come first, and only then it is looked which tables there are: a node that still runs
    may empty its log into a new one meanwhile, and a record that is read twice counts once.
    Errors: OSError.
    """
    logs = [file for file in store.files if file.path.name == "wal.log"]
    for file in logs:
        yield from _copy(file, near)
    there = store.files if store.root is None else _read(givenfiles.find(str(store.root)))
    for file in there:
        if file.path.name != "wal.log":
            yield from _copy(file, near)


def _copy(file: Found, near: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tempfile.TemporaryFile(dir=near) as copy:
        for chunk in givenfiles.chunks(file.path):
            copy.write(chunk)
        yield file.name, copy


def _opened_apart(client: Client, kept: Capture, passphrase: str) -> Iterator[Capture]:
    """Rows whose messages are encrypted, with what they say, as `/logs/search` would give them."""
    key, told, why = key_of(passphrase.encode("utf-8")), Counter[str](), ""
    request = {"file": kept.request["file"], "opened_from": kept.sha256}
    with tempfile.TemporaryFile(dir=client.archive.folder) as lines:
        with client.archive.open(kept) as body:
            for row in logstores.read(body, About()):
                if isinstance(row, Stored) and row.encrypted:
                    try:
                        message = opened(key, str(row.value.get("message")), row.nonce or b"")
                        text, how = message.text, f"tag: {message.tag}"
                    except Shut as shut:
                        text, how, why = DECRYPT_FAILED, "shut", why or str(shut)
                    told[how] += 1
                    lines.write(logstores.json_line({**row.value, "message": text}) + b"\n")
        lines.seek(0)
        yield client.keep_file(
            iter(lambda: lines.read(1 << 20), b""),
            query=QUERY,
            role=OPENED,
            request=request,
            window=kept.window,
            notes=tuple(f"{how}, {count} messages" for how, count in sorted(told.items())),
        )
    if told["shut"]:
        error = f"{told['shut']} of {told.total()} messages stay shut: {why}"
        yield client.fail(query=QUERY, role=OPENED, request=request, error=error)


# --- reading -------------------------------------------------------------------------------


def _tables(capture: Capture, reading: Reading, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
    about, elements, refused, apart = About(), list[Element](), 0, 0
    opened_apart = "messages" in capture.request  # then they are lines of a capture of their own
    for piece in logstores.read(body, about, in_batches=True):
        if isinstance(piece, Unreadable):
            refused += 1
            if refused <= MOST_QUARANTINED:
                yield "quarantine", rows("quarantine", [_unreadable(capture, piece)])
            continue
        if isinstance(piece, Batch):
            found = _together(reading, piece, opened_apart)
            if found is not None:
                apart += len(piece.values) - len(found)
                yield from reading.told(found)
                continue
        for row in piece.rows() if isinstance(piece, Batch) else [piece]:
            if row.encrypted and opened_apart:
                apart += 1
                continue
            value = {**row.value, "message": ENCRYPTED} if row.encrypted else row.value
            elements.append(Element(logstores.json_line(value), row.place, -1))
        if len(elements) >= _ROWS_AT_ONCE or isinstance(piece, Batch):
            yield from reading.of_elements(elements)
            elements = []
    yield from reading.of_elements(elements)
    extra = {"store": asdict(about), "opened_apart": apart, "unreadable_records": refused}
    yield reading.summary("summary", capture.asked_at, extra)


def _together(reading: Reading, batch: Batch, opened_apart: bool) -> pa.Table | None:
    """The rows of a batch, if all of them are plain."""
    values = dict(zip(batch.values.schema.names, batch.values.columns, strict=True))
    line = np.arange(batch.place, batch.place + len(batch.values))
    if "encrypted" in values:
        encrypted = pc.not_equal(values["encrypted"], 0).fill_null(False)
        if opened_apart:
            shown = pc.invert(encrypted)
            values = {name: column.filter(shown) for name, column in values.items()}
            line = line[flags(shown)]
        else:
            values["message"] = pc.if_else(encrypted, ENCRYPTED, values["message"])
    said = logcolumns.of_store(values)
    return None if said is None else reading.table(line, np.full(len(line), -1), said)


def _unreadable(capture: Capture, row: Unreadable) -> dict[str, Json]:
    return {
        "source": capture.source,
        "query": capture.query,
        "file": row.file or str(capture.request.get("file", "")),
        "line": row.line,
        "offset": row.offset,
        "reason": row.reason,
        "bytes": row.data[:QUARANTINED_BYTES],
    }
