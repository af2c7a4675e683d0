"""A working copy of a Prometheus TSDB that somebody handed over, from a folder or a tarball.

Prometheus rewrites what it opens, so it is only ever given a copy. A tarball is of unknown origin:
only plain files and folders are taken out of it, none outside the copy, and no more than there is
room for.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from tbforensics.model import Json
from tbforensics.reading import givenfiles

MOST_FILES = 200_000
KEPT_FREE_BYTES = 1 << 30  # of the disk that the copy is made on
_LONGEST_HEADER_BYTES = 1 << 20
_MOST_NOTED = 100
_CHUNK_BYTES = 1 << 20
_BLOCK = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")  # a ULID
_LIVE = {"lock", "queries.active"}  # of the process that wrote it; they mean nothing to ours


class NoCopy(Exception):
    """Why there is no copy to ask, in words."""


@dataclass
class Origin:
    """What was handed over. `sha256` and `length` of a tarball; of a folder, of each file."""

    name: str
    sha256: str = ""
    length: int = 0
    files: list[dict[str, Json]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, name: str, why: str) -> None:
        if len(self.left_out) < _MOST_NOTED:
            self.left_out.append({"file": shown(name), "why": why})


def copy(path: str, to: Path) -> tuple[Path, Origin]:
    """Copy or unpack; the folder that holds the TSDB, and what it came from. Errors: NoCopy."""
    given = Path(path).expanduser()
    origin = Origin(shown(given.name))
    try:
        if given.is_dir():
            _copy_folder(given, to, origin)
        elif given.is_file():
            _unpack(given, to, origin)
        else:
            raise NoCopy("there is no such file or folder")
    except (tarfile.TarError, EOFError) as error:
        raise NoCopy(f"the tarball cannot be read: {error}"[:200]) from None
    except OSError as error:
        raise NoCopy(error.strerror or type(error).__name__) from None
    return _root(to), origin


def shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")[:300]


def _copy_folder(given: Path, to: Path, origin: Origin) -> None:
    found = givenfiles.find(str(given))
    room = _room(to)
    for file in found[:MOST_FILES]:
        if file.why_not:
            origin.leave_out(file.name, file.why_not)
            continue
        if PurePath(file.name).name in _LIVE:
            continue
        target = to / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, length = hashlib.sha256(), 0
        with target.open("wb") as out:
            for chunk in givenfiles.chunks(file.path):
                room -= len(chunk)
                if room < 0:
                    raise NoCopy("the disk has no room for a copy")
                digest.update(chunk)
                length += out.write(chunk)
        origin.length += length
        told = {"file": file.name, "bytes": length, "sha256": digest.hexdigest()}
        origin.files.append(told)


# --- tarballs ------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """An entry whose header does not ask for gigabytes of memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        of_a_header = member.type in (
            *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
            *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        )
        if of_a_header and member.size > _LONGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def _unpack(given: Path, to: Path, origin: Origin) -> None:
    digest = hashlib.sha256()
    for chunk in givenfiles.chunks(given):
        digest.update(chunk)
        origin.length += len(chunk)
    origin.sha256 = digest.hexdigest()
    room = _room(to)
    # As a stream: nothing is sought, so nothing is expanded that is not looked at.
    with tarfile.open(given, "r|*", tarinfo=_Member) as tar:
        for place, member in enumerate(tar):
            if place >= MOST_FILES:
                raise NoCopy(f"the tarball holds more than {MOST_FILES} entries")
            plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
            if not (plain or member.isdir()):
                origin.leave_out(member.name, "neither a plain file nor a folder")
                continue
            if PurePath(member.name).name in _LIVE:
                continue
            room -= member.size if plain else 0
            if room < 0:
                raise NoCopy("the disk has no room for what the tarball holds")
            try:
                tarfile.data_filter(member, str(to))
                tar.extract(member, to, filter="data")
            except tarfile.FilterError as error:
                origin.leave_out(member.name, f"it leads out of the copy: {type(error).__name__}")
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                origin.leave_out(member.name, "another entry had this name already")


def _room(to: Path) -> int:
    return shutil.disk_usage(to).free - KEPT_FREE_BYTES


# --- where in the copy ---------------------------------------------------------------------


def _root(copied: Path) -> Path:
    """The one folder that holds blocks or a log. Errors: NoCopy."""
    roots = sorted(set(_roots(copied)))
    outer = [root for root in roots if not any(other in root.parents for other in roots)]
    if not outer:
        raise NoCopy("no TSDB: neither a block (`<ulid>/meta.json`) nor a `wal` in it")
    if len(outer) > 1:
        names = ", ".join(str(root.relative_to(copied)) for root in outer[:5])
        raise NoCopy(f"more than one TSDB, name one of them: {shown(names)}")
    return outer[0]


def _roots(copied: Path) -> Iterator[Path]:
    for meta in copied.rglob("meta.json"):
        if _BLOCK.fullmatch(meta.parent.name):
            yield meta.parent.parent
    for log in copied.rglob("wal"):
        if log.is_dir():
            yield log.parent
