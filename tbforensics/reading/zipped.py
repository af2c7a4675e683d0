"""The entries of a ZIP that may be anything: too many, too large, damaged, cut short, or hostile.

Nothing is ever written to disk, so no name can lead anywhere; an entry with a name that tries to
is refused all the same, because its writer was no aggregator. Times are not read: The-Block dates
entries to a month 0.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

MOST_ENTRIES = 4_096  # an aggregator exports a thousand peers at most
LONGEST_ENTRY_BYTES = 64 << 20
MOST_BYTES = 4 << 30
FREELY_EXPANDED_BYTES = 1 << 20
MOST_EXPANSION = 200
_LONGEST_DIRECTORY_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 18
_ENCRYPTED, _SIZES_BEHIND = 0x1, 0x8
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError),
    *(EOFError, OSError, ValueError, OverflowError, LookupError),
)


@dataclass(frozen=True)
class Entry:
    """One entry, whole and with the checksum that it should have. `offset` is of its header."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True)
class Refusal:
    """What is not read, and why. `name` is "" where it is the archive itself."""

    name: str
    offset: int
    reason: str


def entries(file: IO[bytes]) -> Iterator[Entry | Refusal]:
    """Entries in the order in which they stand, one in memory at a time.

    An archive without its directory (cut short, or damaged there) is read from its start for as
    long as whole entries follow each other.
    """
    total = count = 0
    for found in _listed(file):
        if isinstance(found, Entry):
            total, count = total + len(found.data), count + 1
            if total > MOST_BYTES or count > MOST_ENTRIES:
                most = f"{MOST_ENTRIES} entries or {MOST_BYTES} bytes"
                yield Refusal("", found.offset, f"more than {most}: the rest is not read")
                return
        yield found


def _listed(file: IO[bytes]) -> Iterator[Entry | Refusal]:
    try:
        _check_directory(file)
        archive = zipfile.ZipFile(file)
    except _BROKEN as error:
        yield Refusal("", 0, f"its directory cannot be read: {_words(error)}")
        yield from _in_sequence(file)
        return
    with archive:
        infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
        overlapping = _overlapping(infos)
        seen: Counter[str] = Counter()
        for place, info in enumerate(infos):
            name, at = _shown(info.filename), info.header_offset
            if place >= MOST_ENTRIES:
                yield Refusal("", at, f"{len(infos)} entries: the rest is not read")
                return
            seen[info.filename] += 1
            reason = _why_not(info.filename, info.flag_bits, seen[info.filename])
            if not reason and place in overlapping:
                reason = "it shares bytes with the next entry"
            if reason:
                yield Refusal(name, at, reason)
                continue
            if info.is_dir():
                continue
            try:
                with archive.open(info) as stream:
                    data = _read(stream, info.compress_size)
            except _BROKEN as error:
                yield Refusal(name, at, _words(error))
            else:
                yield Entry(name, at, data)


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a directory so long that reading it is an attack. Errors: ValueError."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - 22))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < 22:
        raise ValueError("it is missing")
    if tail[max(0, at - 20) : at].startswith(b"PK\6\7"):
        raise ValueError("it is a ZIP64, which no export is")
    length = struct.unpack_from("<I", tail, at + 12)[0]
    if length > _LONGEST_DIRECTORY_BYTES:
        raise ValueError(f"it has {length} bytes")
    file.seek(0)


def _overlapping(infos: list[zipfile.ZipInfo]) -> set[int]:
    """Places of entries that reach into the next one, as in a bomb that shares its content."""
    return {
        place
        for place, (info, after) in enumerate(pairwise(infos))
        if info.header_offset + 30 + info.compress_size > after.header_offset
    }


def _why_not(name: str, flags: int, times: int) -> str:
    if times > 1:
        return "another entry had this name already"
    if flags & _ENCRYPTED:
        return "it is encrypted with a ZIP password"
    parts = name.replace("\\", "/").split("/")
    if not name or name[:1] in "/\\" or ".." in parts or ":" in parts[0] or "\0" in name:
        return "its name leads out of the archive"
    return ""


def _read(stream: IO[bytes], packed: int) -> bytes:
    gathered: list[bytes] = []
    length = 0
    while chunk := stream.read(_CHUNK_BYTES):
        gathered.append(chunk)
        length += len(chunk)
        if length > LONGEST_ENTRY_BYTES:
            raise ValueError(f"it is longer than {LONGEST_ENTRY_BYTES} bytes")
        if length > max(FREELY_EXPANDED_BYTES, MOST_EXPANSION * packed):
            raise ValueError(f"{packed} compressed bytes give {length} and more")
    return b"".join(gathered)


def _words(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:200]


def _shown(name: str) -> str:
    """A name that UTF-8 can hold and that is no longer than a line."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")[:300]


# --- without a directory -------------------------------------------------------------------

_LOCAL = struct.Struct("<4sHHHHHIIIHH")


def _in_sequence(file: IO[bytes]) -> Iterator[Entry | Refusal]:
    at = place = 0
    seen: Counter[str] = Counter()
    while place < MOST_ENTRIES:
        file.seek(at)
        head = file.read(_LOCAL.size)
        if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
            return
        _, _, flags, method, _, _, checksum, packed, length, *name_and_extra = _LOCAL.unpack(head)
        spelled = file.read(name_and_extra[0])
        name = spelled.decode("utf-8", "backslashreplace")
        seen[name] += 1
        place += 1
        reason = _why_not(name, flags, seen[name])
        if method != zipfile.ZIP_STORED or flags & _SIZES_BEHIND or packed != length:
            yield Refusal(_shown(name), at, "without a directory only stored entries can be read")
            return
        if length > LONGEST_ENTRY_BYTES:
            reason = f"it is longer than {LONGEST_ENTRY_BYTES} bytes"
        file.seek(name_and_extra[1], 1)
        data = b"" if reason else file.read(length)
        if not reason and len(data) < length:
            reason = f"it is cut short: {len(data)} of {length} bytes"
        if not reason and zlib.crc32(data) != checksum:
            reason = "its checksum does not fit"
        yield Refusal(_shown(name), at, reason) if reason else Entry(_shown(name), at, data)
        at += _LOCAL.size + sum(name_and_extra) + length
