"""The log indexer's stores, read from a copy: what rows they hold, and what about them is odd.

generation A   one SQLite file: table `logs`, and how far each input was read
generation B   a folder of JSON: for each column family a `wal.log` and the tables flushed from it

    wal.log       {"key": [bytes], "sequence": n, "kind": {"Put": {"value": [bytes]}}}  or "Delete"
    sst-<n>.bin   u64 count, then per entry: u64 length and key, u64 sequence, u32 0 and u64 length
                  and value, or u32 1 for a deleted key; all little-endian

Of one key the highest sequence counts, whichever file holds it: a store that was copied while it
flushed may hold a record twice. A folder travels as one tar, because its files mean something only
together; `packed` makes the same tar of the same files, on any machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import struct
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from tbforensics.model import Json
from tbforensics.reading import logsqlite
from tbforensics.reading.logrows import LineError, parse
from tbforensics.reading.logsqlite import LONGEST_VALUE_BYTES, PUBLIC, Batch, Stored

SQLITE_MAGIC = b"SQLite format 3\0"
LONGEST_RECORD_BYTES = 5 * LONGEST_VALUE_BYTES  # a byte takes up to four characters in the log
_LONGEST_KEY_BYTES = 4_096
_MOST_FILES = 10_000
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Unreadable:
    file: str
    line: int
    offset: int
    reason: str
    data: bytes = b""


@dataclass
class About:
    """What a store is, beside its rows.

    next_id:     of generation B; what the store says that its next row will be.
    offsets:     how far each input was read.
    overwritten: records that another record of the same key came after: a change of passphrase
                 writes every row again.
    deleted:     keys whose last record deletes them.
    torn:        the log ends in the middle of a record.
    stopped:     why the rest of it was not read.
    files:       SHA-256 of each file of a folder, to compare with the node's own.
    unlisted, missing: tables that are there and not in the manifest; and the other way round.
    """

    generation: str = ""
    next_id: int | None = None
    offsets: dict[str, Json] = field(default_factory=dict)
    overwritten: int = 0
    deleted: int = 0
    torn: bool = False
    stopped: str = ""
    files: dict[str, str] = field(default_factory=dict)
    unlisted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read(
    body: BinaryIO, about: About, *, in_batches: bool = False
) -> Iterator[Stored | Batch | Unreadable]:
    """Rows in the order of their ids, and what cannot be read; fills `about` until it ends.

    in_batches: give many rows as one `Batch` where that is possible, which is much faster.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "store"
        with whole.open("wb") as file:
            shutil.copyfileobj(body, file)
        with whole.open("rb") as file:
            head = file.read(len(SQLITE_MAGIC))
        if head == SQLITE_MAGIC:
            about.generation = "A"
            yield from _of_sqlite(whole, about, immutable=True, in_batches=in_batches)
        else:
            yield from _of_tar(whole, about, in_batches)


# --- a folder as one body ------------------------------------------------------------------


def packed(files: Iterable[tuple[str, IO[bytes]]]) -> Iterator[bytes]:
    """A tar of (name, open file), in that order; owners, modes and times are left out."""
    for name, file in files:
        about = tarfile.TarInfo(name)
        about.size = file.seek(0, 2)
        file.seek(0)
        # GNU and not POSIX: it holds names of any length without a header that varies.
        yield about.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
        yield bytes(-about.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _of_tar(path: Path, about: About, in_batches: bool) -> Iterator[Stored | Batch | Unreadable]:
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = [member for member in islice(tar, _MOST_FILES) if _is_plain(member)]
            for member in members:
                about.files[member.name] = _sha256(_content(tar, member))
            names = [member.name for member in members]
            databases = [m for m in members if _content(tar, m).read(16) == SQLITE_MAGIC]
            if databases:
                about.generation = "A"
                yield from _of_sqlite_beside_its_log(tar, databases[0], names, about, in_batches)
            else:
                about.generation = "B"
                yield from _of_folder(tar, members, about)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        about.stopped = f"neither SQLite nor the tar of a store: {error}"[:200]
        yield Unreadable("", 1, 0, about.stopped)


def _is_plain(member: tarfile.TarInfo) -> bool:
    """A file whose bytes are there; a sparse one may claim to have any number of them."""
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None  # it is a regular file
    return content


def _sha256(content: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := content.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


# --- generation B --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    key: bytes
    sequence: int
    value: bytes | None  # None deletes


def _of_folder(
    tar: tarfile.TarFile, members: list[tarfile.TarInfo], about: About
) -> Iterator[Stored | Unreadable]:
    families: dict[str, list[tarfile.TarInfo]] = {}
    for member in members:
        path = PurePosixPath(member.name)
        if path.name == "wal.log" or (path.name.startswith("sst-") and path.suffix == ".bin"):
            families.setdefault(path.parent.name, []).append(member)
        elif path.name == "manifest.json":
            yield from _manifest(_content(tar, member), member.name, members, about)
    with tempfile.TemporaryDirectory() as folder, closing(_merge_in(Path(folder))) as merged:
        for family in ("meta", "entries"):
            merged.execute("DELETE FROM latest")
            # Tables hold what was in the log before it was emptied, so they come first.
            for member in sorted(families.get(family, []), key=_tables_first):
                for found in _records(_content(tar, member), member):
                    if isinstance(found, Unreadable):
                        about.torn = about.torn or found.reason.startswith(_TORN)
                        yield found
                    else:
                        about.overwritten += _merge(merged, found)
            if family == "meta":
                _meta(merged, about)
        (about.deleted,) = merged.execute(
            "SELECT count(*) FROM latest WHERE value IS NULL"
        ).fetchone()
        live = "SELECT key, value FROM latest WHERE value IS NOT NULL ORDER BY key"
        for place, (key, value) in enumerate(merged.execute(live), start=1):
            yield _entry(place, key, value)


def _tables_first(member: tarfile.TarInfo) -> tuple[bool, str]:
    return member.name.endswith("wal.log"), member.name


def _merge_in(folder: Path) -> sqlite3.Connection:
    """On disk, so that memory does not grow with the store."""
    merged = sqlite3.connect(folder / "merged", isolation_level=None)
    merged.execute("PRAGMA journal_mode = OFF")
    merged.execute("PRAGMA synchronous = OFF")
    merged.execute("CREATE TABLE latest (key BLOB PRIMARY KEY, sequence INTEGER, value BLOB)")
    merged.execute("BEGIN")
    return merged


def _merge(merged: sqlite3.Connection, record: _Record) -> bool:
    """Whether another record of this key was there already."""
    known = merged.execute("SELECT sequence FROM latest WHERE key = ?", [record.key]).fetchone()
    if known is None or known[0] <= record.sequence:
        values = [record.key, record.sequence, record.value]
        merged.execute("INSERT OR REPLACE INTO latest VALUES (?, ?, ?)", values)
    # The same record in the log and in a table is one that was being flushed.
    return known is not None and known[0] != record.sequence


def _records(content: IO[bytes], member: tarfile.TarInfo) -> Iterator[_Record | Unreadable]:
    if member.name.endswith("wal.log"):
        return _log_records(content, member.name)
    return _table_records(content, member)


_TORN = "the log ends in the middle of it"


def _log_records(content: IO[bytes], file: str) -> Iterator[_Record | Unreadable]:
    offset = number = 0
    while line := content.readline(LONGEST_RECORD_BYTES):
        number += 1
        if line.strip():
            try:
                yield _log_record(line)
            except (LineError, ValueError, TypeError, LookupError) as error:
                why = f"{_TORN}: {error}" if not line.endswith(b"\n") else str(error)
                yield Unreadable(file, number, offset, why[:200], line)
        offset += len(line)


def _log_record(line: bytes) -> _Record:
    record = parse(line)
    if not isinstance(record, dict):
        raise ValueError("it is no record")
    key, sequence, kind = _bytes_of(record["key"]), record["sequence"], record["kind"]
    if type(sequence) is not int or not 0 <= sequence < 1 << 63:
        raise ValueError("its sequence is no number of 63 bits")
    if len(key) > _LONGEST_KEY_BYTES:
        raise ValueError(f"its key has {len(key)} bytes")
    if kind == "Delete" or (isinstance(kind, dict) and "Delete" in kind):
        return _Record(key, sequence, None)
    return _Record(key, sequence, _bytes_of(kind["Put"]["value"]))


def _bytes_of(numbers: Json) -> bytes:
    if not isinstance(numbers, list):  # of a number, `bytes` would make as many zeros
        raise ValueError("a key or a value is no array of bytes")
    return bytes(numbers)


def _table_records(content: IO[bytes], member: tarfile.TarInfo) -> Iterator[_Record | Unreadable]:
    reader = _Table(content, member.size)
    try:
        if member.size:
            for _ in range(reader.number("<Q")):
                yield reader.record()
            if reader.left:
                raise ValueError(f"{reader.left} bytes follow the last record")
    except ValueError as error:
        at = member.size - reader.left
        yield Unreadable(member.name, 1, at, f"the table is damaged: {error}")


class _Table:
    def __init__(self, content: IO[bytes], length: int) -> None:
        self._content, self.left = content, length

    def record(self) -> _Record:
        """Errors: ValueError."""
        key = self._bytes(_LONGEST_KEY_BYTES)
        sequence, deleted = self.number("<Q"), self.number("<I")
        if deleted > 1 or sequence >= 1 << 63:
            raise ValueError("a record is neither a value nor a deletion")
        return _Record(key, sequence, None if deleted else self._bytes(LONGEST_VALUE_BYTES))

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _bytes(self, longest: int) -> bytes:
        length = self.number("<Q")
        if length > longest:
            raise ValueError(f"a part of {length} bytes")
        return self._take(length)

    def _take(self, length: int) -> bytes:
        if length > self.left:
            raise ValueError("it ends early")
        self.left -= length
        return self._content.read(length)


def _manifest(
    content: IO[bytes], name: str, members: list[tarfile.TarInfo], about: About
) -> Iterator[Unreadable]:
    try:
        families = parse(content.read(LONGEST_VALUE_BYTES))["cfs"]
        listed = {
            f"{PurePosixPath(name).parent / family / table['file']}"
            for family, told in families.items()
            for table in told.get("sstables") or []
        }
    except (LineError, LookupError, TypeError, AttributeError) as error:
        yield Unreadable(name, 1, 0, f"the manifest cannot be read: {error}"[:200])
        return
    there = {member.name for member in members if member.name.endswith(".bin")}
    about.unlisted, about.missing = sorted(there - listed), sorted(listed - there)


def _meta(merged: sqlite3.Connection, about: About) -> None:
    for key, value in merged.execute("SELECT key, value FROM latest WHERE value IS NOT NULL"):
        name = key.decode("utf-8", "replace")
        if name == "next_id" and len(value) == 8:
            about.next_id = int.from_bytes(value, "big")
        elif name.startswith("offset:"):
            try:
                about.offsets[name.removeprefix("offset:")] = parse(value)
            except LineError:
                about.offsets[name.removeprefix("offset:")] = None


def _entry(place: int, key: bytes, value: bytes) -> Stored | Unreadable:
    try:
        found = parse(value)
        if not isinstance(found, dict):
            raise LineError("it is no object")
        nonce = found.get("nonce")
        held = bytes(nonce) if isinstance(nonce, list) else None
    except (LineError, ValueError, TypeError) as error:
        name = key.decode("utf-8", "backslashreplace")[:80]
        return Unreadable("entries", place, -1, f"{name}: {error}"[:200], value)
    return Stored(place, _public(found), bool(found.get("encrypted")), held)


def _public(found: dict[str, Json]) -> dict[str, Json]:
    return {name: found[name] for name in PUBLIC if found.get(name) is not None}


# --- generation A --------------------------------------------------------------------------


def _of_sqlite_beside_its_log(
    tar: tarfile.TarFile,
    database: tarfile.TarInfo,
    names: list[str],
    about: About,
    in_batches: bool,
) -> Iterator[Stored | Batch | Unreadable]:
    """A database whose last commits still are in its write-ahead log, which SQLite plays back."""
    with tempfile.TemporaryDirectory() as folder:
        for name, to in ((database.name, "store"), (f"{database.name}-wal", "store-wal")):
            if name in names:
                with (Path(folder) / to).open("wb") as file:
                    shutil.copyfileobj(_content(tar, tar.getmember(name)), file)
        path = Path(folder) / "store"
        yield from _of_sqlite(path, about, immutable=False, in_batches=in_batches)


def _of_sqlite(
    path: Path, about: About, *, immutable: bool, in_batches: bool
) -> Iterator[Stored | Batch | Unreadable]:
    """Rows of a database that may be damaged, or made to do harm by being read."""
    try:
        yield from logsqlite.read(
            path, immutable=immutable, inputs=about.offsets, in_batches=in_batches
        )
    except logsqlite.Unread as error:
        about.stopped = str(error)
        yield Unreadable("logs", error.place, -1, f"not read further: {about.stopped}")


def json_line(value: dict[str, Json]) -> bytes:
    """A row as `/logs/search` would give it, on one line."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
