"""Where replies are kept: each body under its own hash, each capture in a journal.

    <case>/raw/<sha256>.zst     the body, compressed; `zstdcat F | sha256sum` gives its name back
    <case>/captures.jsonl       one capture a line, while a collection goes on

`raw/` may be in an object store: see `store`.

The same body is stored once. A body appears under its name only when all of it is on disk, so a
process that dies leaves temporary files and whole bodies, never a half one under a whole name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import zstandard

from tbforensics import store
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture

_LEVEL = 1  # on text that is mostly digits, higher ones cost time and save next to nothing
_CHUNK_BYTES = 1 << 20


class Archive:
    """The replies of one case, and the journal of a collection that is not sealed yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = store.place_of(folder)
        self.raw = self.place / "raw"
        self._journal = folder / "captures.jsonl"
        self._lock = threading.Lock()

    # --- bodies ---------------------------------------------------------------------------

    def path_of(self, sha256: str) -> Path:
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise EvidenceError(f"not a SHA-256: {sha256[:80]!r}", next_step="run verify")
        return self.raw / f"{sha256}.zst"

    def keep(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        """Store a body as it streams in; its SHA-256 and its length in bytes.

        What raises while the chunks arrive leaves nothing behind.

        Errors: EvidenceError when it cannot be written: that is our disk and not the source.
        """
        digest, length = hashlib.sha256(), 0
        try:
            handle, temporary = store.temporary(self.raw, ".arriving-", parents=True)
        except OSError as error:
            raise _unwritable(error) from None
        try:
            with os.fdopen(handle, "wb") as file:
                with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(
                    file, closefd=False
                ) as compressed:
                    for chunk in _arriving(chunks):
                        digest.update(chunk)
                        length += len(chunk)
                        compressed.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            store.put(temporary, self.path_of(digest.hexdigest()))
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, _NotArrived):
                raise error.reason from None
            if isinstance(error, OSError):
                raise _unwritable(error) from None
            raise
        return digest.hexdigest(), length

    @contextmanager
    def open(self, capture: Capture) -> Iterator[BinaryIO]:
        """The body of a capture as a stream of the bytes that came."""
        if capture.sha256 is None:
            raise EvidenceError(
                f"{capture.source} gave no body for {capture.query}: {capture.error}",
                next_step="see the manifest for what was asked",
            )
        path = self.path_of(capture.sha256)
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise EvidenceError(
                f"raw/{path.name} is missing ({capture.source}, {capture.query})",
                next_step="restore it from a copy of the case; it cannot be asked for again",
            ) from None
        try:
            with file, zstandard.ZstdDecompressor().stream_reader(file) as body:
                yield io.BufferedReader(body, _CHUNK_BYTES)
        except zstandard.ZstdError:
            raise _damaged(path, capture) from None

    def read(self, capture: Capture) -> bytes:
        """The whole body of a capture, for replies known to be small.

        Errors: EvidenceError when its bytes do not give its hash.
        """
        with self.open(capture) as stream:
            body = stream.read()
        if hashlib.sha256(body).hexdigest() != capture.sha256:
            raise _damaged(self.path_of(str(capture.sha256)), capture)
        return body

    def holds(self, sha256: str) -> bool:
        """Whether the body is here and its bytes still give its hash."""
        path = self.path_of(sha256)
        if not path.is_file():
            return False
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as body:
                while chunk := body.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except zstandard.ZstdError:
            return False
        return digest.hexdigest() == sha256

    # --- the journal of a collection ------------------------------------------------------

    def record(self, capture: Capture) -> Capture:
        """Append to the journal, on disk before this returns. Errors: as `keep`."""
        line = json.dumps(capture.to_json(), sort_keys=True).encode() + b"\n"
        try:
            with self._lock, self._journal.open("a+b") as journal:
                if journal.seek(0, os.SEEK_END):
                    journal.seek(-1, os.SEEK_END)
                    if journal.read(1) != b"\n":  # torn by a crash: it must not take this along
                        line = b"\n" + line
                journal.write(line)
                journal.flush()
                os.fsync(journal.fileno())
        except OSError as error:
            raise _unwritable(error) from None
        return capture

    def recorded(self) -> list[Capture]:
        """What the journal holds; a line torn by a crash is dropped."""
        if not self._journal.exists():
            return []
        captures = []
        for line in self._journal.read_bytes().split(b"\n"):
            try:
                captures.append(Capture.from_json(json.loads(line)))
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        return captures

    def close_journal(self) -> None:
        """The manifest says it all from here on."""
        if self._journal.exists():  # else it would be asked of a disk that may not be written
            self._journal.unlink(missing_ok=True)
        self.drop_leftovers()

    def drop_leftovers(self) -> None:
        """What was arriving when a process died."""
        for leftover in self.raw.glob(".arriving-*"):
            leftover.unlink(missing_ok=True)

    def drop_unnamed(self, captures: Iterable[Capture]) -> None:
        """Bodies that a run kept which died before it could record them, or whose question was
        asked again since. No capture says what they are, so they are no evidence.
        """
        named = {f"{capture.sha256}.zst" for capture in captures}
        for stranger in self.raw.glob("*.zst"):
            if stranger.name not in named:
                stranger.unlink()


class _NotArrived(Exception):
    """What the sender did; kept apart from what the disk does."""

    def __init__(self, reason: OSError) -> None:
        self.reason = reason


def _arriving(chunks: Iterable[bytes]) -> Iterator[bytes]:
    try:
        yield from chunks
    except OSError as error:
        raise _NotArrived(error) from None


def _unwritable(error: OSError) -> EvidenceError:
    return EvidenceError(
        f"a reply cannot be kept: {error.strerror or error}",
        next_step="make room, or allow writing there, and run again: what was captured is kept",
    )


def _damaged(path: Path, capture: Capture) -> EvidenceError:
    return EvidenceError(
        f"raw/{path.name} is damaged ({capture.source}, {capture.query})",
        next_step="restore it from a copy of the case; it cannot be asked for again",
    )
