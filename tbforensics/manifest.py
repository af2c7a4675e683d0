"""What was asked, what came, with what, and the hashes that hold it together; seal and verify.

The manifest names every capture and every part of the evidence. The custody log names the
manifest, the parameters, the findings and the report, each act chained to the one before by hash.
"""

from __future__ import annotations

import fcntl
import getpass
import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tbforensics import store
from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Incident, Json, Query, utc_text

FORMAT = 1
_LIBRARIES = ("duckdb", "numpy", "pandas", "pyarrow", "requests", "zstandard")
_CHUNK_BYTES = 1 << 20
_SEALED = ("custody.jsonl", "manifest.json", "parameters.yaml")
_MADE = ("findings.json", "report.ipynb", "report.html")
_PART = ("path", "bytes", "sha256")


def tool_version() -> str:
    return metadata.version("tbforensics")


def canonical(value: Json) -> bytes:
    """JSON with sorted keys and one spelling: the same value gives the same bytes."""
    text = json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> str:
    """The file appears whole or stays as it was; its SHA-256."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return hashlib.sha256(content).hexdigest()


def _drop_leftovers(folder: Path) -> None:
    """What a process was writing when it died. Its id is the end of the file's name."""
    for path in folder.glob(".*.*"):
        number = path.name.rpartition(".")[2]
        if number.isdecimal() and not _is_alive(int(number)):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is none: it only asks
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


# --- the manifest --------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What a sealed case holds. `sha256` is that of `manifest.json` itself.

    earlier: captures of interrupted attempts, in whose place a later one of `captures` stands.
    """

    asked_sha256: str
    sealed_at: str
    tool: Mapping[str, Json]
    queries: tuple[Mapping[str, Json], ...]
    captures: tuple[Capture, ...]
    parts: tuple[Mapping[str, Json], ...]
    earlier: tuple[Capture, ...] = ()
    sha256: str = ""

    def captures_of(self, query: str) -> list[Capture]:
        return [capture for capture in self.captures if capture.query == query]


def ordered(captures: Iterable[Capture]) -> list[Capture]:
    """The one order of captures, whatever order they came in; the last answer to a question."""

    def place(capture: Capture) -> tuple[str, str, str, str, str]:
        window = utc_text(capture.window.start) if capture.window else ""
        request = json.dumps(dict(capture.request), sort_keys=True)
        return capture.source, capture.query, capture.role, window, request

    latest: dict[tuple[str, ...], Capture] = {}
    for capture in captures:
        latest[(*place(capture), str(capture.window))] = capture
    return [latest[key] for key in sorted(latest)]


def parts_of(folder: Path) -> list[dict[str, Json]]:
    """Every part of the evidence with its hash, in the order of their paths."""
    place = store.place_of(folder)
    return [
        {
            "path": path,
            "bytes": (place / path).stat().st_size,
            "sha256": sha256_of(place / path),
        }
        for path in part_paths(folder)
    ]


def part_paths(folder: Path) -> list[str]:
    """Where the parts of the evidence are, below the case's folder or its place in a store."""
    return [path for path in bulk_paths(folder, "evidence") if path.endswith(".parquet")]


def bulk_paths(folder: Path, tree: str) -> list[str]:
    """All files below `raw` or `evidence`, in the order of their paths."""
    place = store.place_of(folder)
    found = [path for path in (place / tree).rglob("*") if not path.is_dir()]
    return sorted(path.relative_to(place).as_posix() for path in found)


def seal(
    folder: Path,
    incident: Incident,
    queries: Sequence[Query],
    captures: Iterable[Capture],
    earlier: Iterable[Capture] = (),
) -> Manifest:
    """Write `manifest.json`, the last file of a collection.

    earlier: captures of attempts that were interrupted, where a later one stands in their place.
    """
    content = {
        "format": FORMAT,
        "asked_sha256": incident.digest,
        "incident": incident.id,
        "kind": incident.kind,
        "window": incident.window.to_json(),
        "baseline": incident.baseline.to_json(),
        "sealed_at": utc_text(datetime.now(UTC)),
        "tool": {
            "name": "tbforensics",
            "version": tool_version(),
            "python": platform.python_version(),
            "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        },
        "queries": [
            {
                "name": q.name,
                "source": q.source,
                "text": q.text,
                "unit": q.unit,
                "params": dict(q.params),
            }
            for q in queries
        ],
        "captures": [capture.to_json() for capture in ordered(captures)],
        "earlier": [capture.to_json() for capture in earlier],
        "evidence": parts_of(folder),
    }
    write_atomically(folder / "manifest.json", canonical(content))
    return read_manifest(folder)


def read_manifest(folder: Path) -> Manifest:
    """Errors: EvidenceError when there is none, or it is not one that this version can read."""
    path = folder / "manifest.json"
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
        if value["format"] != FORMAT:
            raise EvidenceError(
                f"{folder.name} is sealed in format {value['format']}; this version reads {FORMAT}",
                next_step=f"open it with tbforensics {value.get('tool', {}).get('version', '')}",
            )
        return Manifest(
            asked_sha256=value["asked_sha256"],
            sealed_at=value["sealed_at"],
            tool=dict(value["tool"]),
            queries=tuple(value["queries"]),
            captures=tuple(_capture(capture) for capture in value["captures"]),
            earlier=tuple(_capture(capture) for capture in value.get("earlier", ())),
            parts=tuple({name: part[name] for name in _PART} for part in value["evidence"]),
            sha256=hashlib.sha256(raw).hexdigest(),
        )
    except FileNotFoundError:
        raise EvidenceError(
            f"{folder.name} is no sealed case: it has no manifest.json",
            next_step="collect it first: tbforensics collect PARAMETERS",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvidenceError(
            f"manifest.json of {folder.name} cannot be read: {type(error).__name__}: {error}",
            next_step="restore it from a copy of the case",
        ) from None


def _capture(value: Mapping[str, Json]) -> Capture:
    capture = Capture.from_json(value)
    if capture.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", capture.sha256):
        raise ValueError(f"a capture of {capture.query} has a hash that is none")
    return capture


# --- the custody log -----------------------------------------------------------------------


def note_act(folder: Path, act: str, **facts: Json) -> None:
    """Append one act to `custody.jsonl`, chained to the one before."""
    path = folder / "custody.jsonl"
    with _alone(folder):
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        entry = {
            "n": len(lines) + 1,
            "time": utc_text(datetime.now(UTC)),
            "act": act,
            "by": os.environ.get("TBFORENSICS_USER") or _user(),
            "tool": tool_version(),
            "before": hashlib.sha256(lines[-1]).hexdigest() if lines else "",
            **facts,
        }
        line = json.dumps(entry, sort_keys=True, ensure_ascii=False) + "\n"
        write_atomically(path, b"".join([*lines, line.encode("utf-8")]))


def keep_on_record(folder: Path, name: str, content: bytes, act: str) -> None:
    """Write a file of a case where it differs, and note it; also where a run died in between."""
    _drop_leftovers(folder)
    path, sha256 = folder / name, hashlib.sha256(content).hexdigest()
    try:
        noted = last_known(custody(folder), name)
    except EvidenceError:
        noted = sha256  # the log does not hold, which `verify` says and no further act can mend
    if noted != sha256 or not path.exists() or path.read_bytes() != content:
        write_atomically(path, content)
        note_act(folder, act, files={name: sha256})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two acts at once wait for each other: the log is read and written as one."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""


def custody(folder: Path) -> list[Mapping[str, Json]]:
    """The acts in order.

    Errors: EvidenceError naming the first act that does not follow from the one before it.
    """
    path = folder / "custody.jsonl"
    if not path.exists():
        raise EvidenceError("custody.jsonl is missing", next_step="restore it from a copy")
    acts: list[Mapping[str, Json]] = []
    before = ""
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        try:
            entry = json.loads(line)
            sound = entry["n"] == number and entry["before"] == before and line.endswith(b"\n")
            sound = sound and isinstance(entry.get("files", {}), dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise EvidenceError(
                f"custody.jsonl: act {number} does not follow from the one before it",
                next_step="the log was edited, cut or reordered; compare it with a copy",
            )
        acts.append(entry)
        before = hashlib.sha256(line).hexdigest()
    return acts


def last_known(acts: Sequence[Mapping[str, Json]], name: str) -> str | None:
    """The newest hash that the custody log gives for a file of the case."""
    for entry in reversed(acts):
        if name in entry.get("files", {}):
            return str(entry["files"][name])
    return None


# --- the proof -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One thing that `verify` proved, or the first reason why it does not hold."""

    name: str
    holds: bool
    detail: str


def checks(folder: Path) -> Iterator[Check]:
    """Everything about a sealed case that hashes can prove, cheapest first, offline."""
    yield _no_links(folder)
    try:
        acts = custody(folder)
    except EvidenceError as error:
        yield Check("custody log", False, error.what)
        return
    yield Check("custody log", True, f"{len(acts)} acts, each chained to the one before")
    try:
        manifest = read_manifest(folder)
    except EvidenceError as error:
        yield Check("manifest", False, error.what)
        return
    yield _same("manifest", folder / "manifest.json", last_known(acts, "manifest.json"))
    yield _same("parameters", folder / "parameters.yaml", last_known(acts, "parameters.yaml"))
    yield raw_replies(folder, manifest)
    yield _parts(folder, manifest)
    for name in _MADE:
        if expected := last_known(acts, name):
            yield _same(name, folder / name, expected)
        elif (folder / name).exists():
            yield Check(name, False, f"{name} is there, but the custody log does not know it")


def _no_links(folder: Path) -> Check:
    """A link leads to bytes that nobody sealed, and that may be others tomorrow."""
    sealed = [folder / name for name in (*_SEALED, *_MADE, "raw", "evidence")]
    found = [*sealed, *(p for tree in sealed[-2:] if tree.is_dir() for p in tree.rglob("*"))]
    for path in sorted(path for path in found if path.is_symlink()):
        name = path.relative_to(folder).as_posix()
        return Check("files", False, f"{name} is a link; what it leads to was never sealed")
    return Check("files", True, "no links")


def _same(name: str, path: Path, expected: str | None) -> Check:
    if not path.is_file():
        return Check(name, False, f"{path.name} is missing")
    if expected is None:
        return Check(name, False, f"the custody log has no hash for {path.name}")
    found = sha256_of(path)
    if found != expected:
        return Check(name, False, f"{path.name} has SHA-256 {found}, sealed as {expected}")
    return Check(name, True, f"SHA-256 {found}")


def raw_replies(folder: Path, manifest: Manifest) -> Check:
    """Whether every body that a capture names is here and is what came."""
    archive = Archive(folder)
    kept = (*manifest.captures, *manifest.earlier)
    named = {capture.sha256: capture for capture in kept if capture.sha256}
    for sha256, capture in sorted(named.items()):
        what = f"raw/{sha256}.zst ({capture.source}, {capture.query})"
        if not archive.path_of(sha256).exists():
            return Check("raw replies", False, f"{what} is missing")
        if not archive.holds(sha256):
            return Check("raw replies", False, f"{what} does not give its hash: bytes were changed")
    strangers = {*bulk_paths(folder, "raw")} - {f"raw/{name}.zst" for name in named}
    if strangers:
        return Check("raw replies", False, f"{min(strangers)} is in no capture")
    return Check("raw replies", True, f"{len(named)} bodies of {len(manifest.captures)} captures")


def _parts(folder: Path, manifest: Manifest) -> Check:
    sealed = {part["path"]: part["sha256"] for part in manifest.parts}
    found = {part["path"]: part["sha256"] for part in parts_of(folder)}
    found = {**dict.fromkeys(bulk_paths(folder, "evidence"), ""), **found}
    for path in sorted(sealed.keys() | found.keys()):
        if path not in found:
            return Check("evidence", False, f"{path} is missing")
        if path not in sealed:
            return Check("evidence", False, f"{path} is not in the manifest")
        if sealed[path] != found[path]:
            return Check("evidence", False, f"{path} has SHA-256 {found[path]}, not as sealed")
    return Check("evidence", True, f"{len(sealed)} parts")
