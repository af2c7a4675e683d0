"""A case in one file, to hand on: an RO-Crate in a ZIP, and the way back.

The same case gives the same bytes: entries in order, one time, nothing compressed (what is large
is compressed already, and another zlib writes other bytes). A parcel is hostile until its case
was verified: every entry must have a name that a case can have, which leaves nothing to escape.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tbforensics import evidence, manifest, signing, store
from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Json
from tbforensics.parameters import read_parameters

if TYPE_CHECKING:
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

CRATE = "ro-crate-metadata.json"
_TOP = (
    *("manifest.json", "parameters.yaml", "custody.jsonl", "findings.json"),
    *("report.ipynb", "report.html", signing.NAME),
)
_NAME = re.compile(
    "|".join(re.escape(name) for name in (*_TOP, CRATE)) + r"|raw/[0-9a-f]{64}\.zst"
    r"|evidence/[a-z_]{1,40}/[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,199}\.parquet"
)
_FOLDER = re.compile(r"raw/|evidence/|evidence/[a-z_]{1,40}/")
_LEAVES_NO_TRACE = ("exported", "verified")  # acts that change nothing in the case
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a ZIP can say
_CHUNK_BYTES = 1 << 20

MOST_ENTRIES = 200_000
MOST_BYTES = 256 << 30
FREELY_EXPANDED_BYTES = 64 << 20
MOST_EXPANSION = 100
# A reply of zeros compresses further than text does, but not without end.
MOST_EXPANSION_OF_A_REPLY = 2_000
_LONGEST_DIRECTORY_BYTES = 64 << 20
_END, _END_BYTES = b"PK\x05\x06", 22
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, RuntimeError),
    *(EOFError, ValueError, OverflowError, LookupError),
)


# --- out -----------------------------------------------------------------------------------


def export(folder: Path, parcel: Path) -> tuple[str, bool]:
    """Write a case to `parcel`; its SHA-256, and whether the act could be put on record.

    A case on read-only media can be handed on too; its log then does not say so. Acts at the end
    of the log that changed nothing stay behind, so that a second parcel is the same as the first.

    Errors: EvidenceError when the case does not hold, or the parcel is there already.
    """
    for check in (*manifest.checks(folder), *signing.checks(folder)):
        if not check.holds:
            raise EvidenceError(
                f"{folder.name} is not exported: {check.detail}",
                next_step=f"see tbforensics verify {folder}",
            )
    if parcel.exists():
        raise EvidenceError(f"{parcel.name} is there already", next_step="name another file")
    log = _log(folder)
    bulk = store.place_of(folder)  # in a parcel it is with the rest
    named = {name: (bulk if "/" in name else folder) / name for name in _names(folder)}
    temporary = parcel.with_name(f".{parcel.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            small = {"custody.jsonl": log, CRATE: _crate(folder, named, log)}
            for name in sorted({*named, *small}):
                _put(archive, name, small.get(name), named.get(name))
        temporary.replace(parcel)
    finally:
        temporary.unlink(missing_ok=True)
    sha256 = manifest.sha256_of(parcel)
    return sha256, _noted(folder, sha256)


def _names(folder: Path) -> list[str]:
    found = [path for tree in ("raw", "evidence") for path in manifest.bulk_paths(folder, tree)]
    found += [name for name in _TOP if (folder / name).exists()]
    if strange := [name for name in found if not _NAME.fullmatch(name)]:
        raise EvidenceError(
            f"{folder.name} is not exported: a parcel has no place for {strange[0]}",
            next_step="this is a bug of ours; please report it",
        )
    return found


def _log(folder: Path) -> bytes:
    """The custody log without the acts at its end that changed nothing and that nobody signed."""
    acts = manifest.custody(folder)
    signed = max((item.acts for item in signing.read(folder)), default=0)
    while len(acts) > signed and acts[-1].get("act") in _LEAVES_NO_TRACE:
        acts.pop()
    lines = (folder / "custody.jsonl").read_bytes().splitlines(keepends=True)
    return b"".join(lines[: len(acts)])


def _put(archive: zipfile.ZipFile, name: str, content: bytes | None, path: Path | None) -> None:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    if content is not None:
        archive.writestr(info, content)
        return
    assert path is not None
    info.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(info, "w") as target:
        shutil.copyfileobj(source, target, _CHUNK_BYTES)


def _noted(folder: Path, sha256: str) -> bool:
    try:
        manifest.note_act(folder, "exported", parcel_sha256=sha256)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return False
    return True


# --- what the parcel says about itself -----------------------------------------------------


def _crate(folder: Path, named: Mapping[str, Path], log: bytes) -> bytes:
    """RO-Crate 1.1 with the Process Run Crate profile: which act made which files, with what."""
    names = sorted(named)
    sealed = json.loads((folder / "manifest.json").read_bytes())
    incident = read_parameters(folder / "parameters.yaml")
    acts = [json.loads(line) for line in log.splitlines()]
    latest = {entry["act"]: entry for entry in acts}
    made = {
        "sealed": [n for n in names if n.startswith(("raw/", "evidence/")) or n == _TOP[0]],
        "redacted": [n for n in names if n.startswith(("raw/", "evidence/")) or n == _TOP[0]],
        "assessed": ["findings.json"],
        "rendered": ["report.ipynb", "report.html"],
    }
    told = {act: entry for act, entry in latest.items() if act in made}
    runs = [_action(entry, [n for n in made[act] if n in names]) for act, entry in told.items()]
    people = {f"#{_slug(entry['by'])}": entry["by"] for entry in told.values()}
    tools = {entry["tool"] for entry in told.values()}
    graph: list[dict[str, Json]] = [
        {
            "@id": CRATE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": "https://w3id.org/ro/crate/1.1"},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": incident.title,
            "description": f"Sealed evidence, findings and report of {incident.id}",
            "identifier": incident.id,
            "datePublished": sealed["sealed_at"],
            "license": {"@id": "#licence"},
            "conformsTo": {"@id": _PROFILE},
            "hasPart": [{"@id": name} for name in names],
            "mentions": [{"@id": run["@id"]} for run in runs],
        },
        {
            "@id": _PROFILE,
            "@type": "CreativeWork",
            "name": "Process Run Crate",
            "version": "0.5",
        },
        {
            "@id": "#licence",
            "@type": "CreativeWork",
            "name": "No licence",
            "description": "Evidence of an incident; its owner decides who may have it",
        },
        *(
            {
                "@id": f"#tbforensics-{tool}",
                "@type": "SoftwareApplication",
                "name": "tbforensics",
                "softwareVersion": tool,
                "url": "https://pypi.org/project/tbforensics/",
            }
            for tool in sorted(tools)
        ),
        *({"@id": i, "@type": "Person", "name": name} for i, name in sorted(people.items())),
        *runs,
        *(_file(name, named[name], log) for name in names),
    ]
    context = ["https://w3id.org/ro/crate/1.1/context", {"sha256": "https://schema.org/sha256"}]
    return manifest.canonical({"@context": context, "@graph": graph})


_PROFILE = "https://w3id.org/ro/wfrun/process/0.5"
_FORMATS = {
    ".json": "application/json",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".ipynb": "application/x-ipynb+json",
    ".html": "text/html",
    ".zst": "application/zstd",
    ".parquet": "application/vnd.apache.parquet",
}


def _action(entry: Mapping[str, Json], results: Sequence[str]) -> dict[str, Json]:
    given = "parameters.yaml" if entry["act"] in ("sealed", "redacted") else "manifest.json"
    return {
        "@id": f"#act-{entry['n']}",
        "@type": "CreateAction",
        "name": f"act {entry['n']}: {entry['act']}",
        "instrument": {"@id": f"#tbforensics-{entry['tool']}"},
        "agent": {"@id": f"#{_slug(entry['by'])}"},
        "endTime": entry["time"],
        "object": [{"@id": given}],
        "result": [{"@id": name} for name in results],
    }


def _slug(name: str) -> str:
    return "by-" + (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "somebody")


def _file(name: str, path: Path, log: bytes) -> dict[str, Json]:
    own = name == "custody.jsonl"
    return {
        "@id": name,
        "@type": "File",
        "name": name,
        "encodingFormat": _FORMATS[path.suffix],
        "contentSize": str(len(log) if own else path.stat().st_size),
        "sha256": hashlib.sha256(log).hexdigest() if own else manifest.sha256_of(path),
    }


# --- in ------------------------------------------------------------------------------------


def unpack(parcel: Path, home: Path, keys: Sequence[SSlibKey] = ()) -> Path:
    """The case of a parcel, verified, in `incidents/` of a project; nothing else is left there.

    keys: must have signed the case as it is.

    Errors: EvidenceError for a parcel that is none, that tries anything, whose case does not
            hold, or whose case is there already.
    """
    incidents = home / "incidents"
    incidents.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=incidents, prefix=".importing-"))
    try:
        _unpack(parcel, folder)
        sha256 = manifest.sha256_of(parcel)
        target = incidents / _proven(folder, parcel, keys)
        if target.exists():
            raise EvidenceError(
                f"incidents/{target.name} is there already; nothing was imported",
                next_step="compare it with this one in another project: "
                f"tbforensics import {parcel} --to ANOTHER-FOLDER",
            )
        evidence.write_views(folder)
        manifest.note_act(folder, "imported", parcel_sha256=sha256)
        folder.chmod(0o755)
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def _unpack(parcel: Path, folder: Path) -> None:
    try:
        with parcel.open("rb") as file:
            _refuse_odd_end(file.seek(0, os.SEEK_END), file.fileno(), parcel)
            with zipfile.ZipFile(file) as archive:
                entries = _entries(archive, parcel)
                _refuse_too_much(entries, parcel, folder)
                for info in entries:
                    if info.filename != CRATE:  # made anew whenever it is handed on
                        _extract(archive, info, folder / info.filename)
    except _BROKEN as error:
        raise _refused(parcel, f"it is damaged: {error or type(error).__name__}"[:300]) from None


def _refused(parcel: Path, why: str) -> EvidenceError:
    return EvidenceError(
        f"{parcel.name} is not imported: {why}", next_step="ask for it again where it came from"
    )


def _refuse_odd_end(length: int, handle: int, parcel: Path) -> None:
    """The directory's end must be the file's end, and the directory must fit into memory."""
    end = os.pread(handle, _END_BYTES, max(0, length - _END_BYTES))
    if len(end) < _END_BYTES or end[:4] != _END or end[-2:] != b"\0\0":
        raise _refused(parcel, "it is no ZIP, was cut short, or something was appended")
    size = int(struct.unpack("<L", end[12:16])[0])
    if size == 0xFFFFFFFF:  # the long form stands before it, with a locator in between
        record = os.pread(handle, 56, max(0, length - _END_BYTES - 20 - 56))
        size = int(struct.unpack("<Q", record[40:48])[0])
    if size > _LONGEST_DIRECTORY_BYTES:
        raise _refused(parcel, f"its directory has {size} bytes")


def _entries(archive: zipfile.ZipFile, parcel: Path) -> list[zipfile.ZipInfo]:
    """The files of the case, each with a name that a case can have.

    Errors: EvidenceError naming the first entry that is anything else.
    """
    infos = archive.infolist()
    if len(infos) > MOST_ENTRIES:
        raise _refused(parcel, f"it has {len(infos)} entries")
    kept, seen = [], set[str]()
    for info in infos:
        if why := _why_not(info):
            raise _refused(parcel, f"entry {info.orig_filename[:200]!r} {why}")
        if info.filename.casefold() in seen:
            raise _refused(parcel, f"entry {info.filename!r} is there twice")
        seen.add(info.filename.casefold())
        if not info.is_dir():
            kept.append(info)
    placed = sorted(infos, key=lambda info: info.header_offset)
    if placed and placed[0].header_offset != 0:
        raise _refused(parcel, "something stands before its first entry")
    ends = [_end_of(info) for info in placed]
    starts = [info.header_offset for info in placed[1:]] + [archive.start_dir]
    if any(end > start for end, start in zip(ends, starts, strict=True)):
        raise _refused(parcel, "its entries overlap")
    return kept


def _end_of(info: zipfile.ZipInfo) -> int:
    return info.header_offset + 30 + len(info.orig_filename.encode()) + info.compress_size


def _why_not(info: zipfile.ZipInfo) -> str:
    """Why an entry is refused, in words; "" when it may be unpacked."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.filename != info.orig_filename:
        return "has a name with a zero byte"
    if info.is_dir():
        if not _FOLDER.fullmatch(info.filename) or info.file_size or kind not in (0, stat.S_IFDIR):
            return "is no folder of a case"
        return ""
    if kind not in (0, stat.S_IFREG):
        return "is a link, a device or the like"
    if not _NAME.fullmatch(info.filename):
        return "is no file of a case"
    if info.flag_bits & _ENCRYPTED:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in a way that is not read"
    return ""


def _refuse_too_much(entries: Sequence[zipfile.ZipInfo], parcel: Path, folder: Path) -> None:
    total = sum(info.file_size for info in entries)
    most = max(FREELY_EXPANDED_BYTES, MOST_EXPANSION * parcel.stat().st_size)
    if total > min(most, MOST_BYTES):
        raise _refused(parcel, f"it would expand to {total} bytes")
    if total > shutil.disk_usage(folder).free:
        raise EvidenceError(
            f"{parcel.name} is not imported: it needs {total} bytes", next_step="make room"
        )


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    left = info.file_size
    with archive.open(info) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                raise zipfile.BadZipFile(f"{info.filename} is longer than it says")
            target.write(chunk)
    if left:
        raise zipfile.BadZipFile(f"{info.filename} is shorter than it says")


def _proven(folder: Path, parcel: Path, keys: Sequence[SSlibKey]) -> str:
    """The id of an unpacked case that holds."""
    sealed = manifest.read_manifest(folder)
    _refuse_endless_replies(folder, sealed, parcel)
    for check in (*manifest.checks(folder), *signing.checks(folder, keys)):
        if not check.holds:
            raise _refused(parcel, f"its case does not hold: {check.detail}")
    incident = read_parameters(folder / "parameters.yaml")
    if incident.digest != sealed.asked_sha256:
        raise _refused(parcel, "its parameters ask something else than what was sealed")
    return incident.id


def _refuse_endless_replies(folder: Path, sealed: manifest.Manifest, parcel: Path) -> None:
    """A reply must not be longer than sealed, nor so long that reading it would never end."""
    archive = Archive(folder)
    lengths = {c.sha256: c for c in sealed.captures if c.sha256}
    if sum(capture.bytes for capture in lengths.values()) > MOST_BYTES:
        raise _refused(parcel, "its replies are longer than any case's")
    for sha256, capture in lengths.items():
        path = archive.path_of(sha256)
        if not path.is_file():
            continue  # told by the checks
        most = max(FREELY_EXPANDED_BYTES, MOST_EXPANSION_OF_A_REPLY * path.stat().st_size)
        if capture.bytes > most:
            raise _refused(parcel, f"raw/{path.name} would expand to {capture.bytes} bytes")
        left = capture.bytes
        with archive.open(capture) as body:
            while left >= 0 and (chunk := body.read(_CHUNK_BYTES)):
                left -= len(chunk)
        if left < 0:
            raise _refused(parcel, f"raw/{path.name} is longer than sealed")


__all__ = ["export", "unpack"]
