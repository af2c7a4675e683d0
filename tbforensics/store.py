"""Where the bulk of a case lies, its replies and its evidence: in its folder or an object store.

    TBFORENSICS_STORE=s3://bucket/forensics     replies and evidence of new cases go below it
    <case>/store.json                           {"name": "<id>"}: where below it they are

The manifest, the custody log, findings and reports always lie in the folder: a few megabytes that
have the hash of all the rest in them. A case that is handed over can name a place in the store, but
never the store: which one is asked, whoever opens the case says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, cast

from tbforensics.errors import EvidenceError, ParametersError, Unseen

VARIABLE = "TBFORENSICS_STORE"
FILE = "store.json"


def store() -> Path | None:
    """The root of the object store that the environment names, as a path like any other; or None.

    Errors: ParametersError when it is no URL of a file system that is installed.
    """
    url = os.environ.get(VARIABLE, "").rstrip("/")
    if not url:
        return None
    try:
        from upath import UPath

        if "://" not in url:
            raise ValueError(f"{url!r} is no URL")
        root = answering(cast(Path, UPath(url)))
    except Exception as error:  # what a file system raises is its own affair
        raise ParametersError(
            f"{VARIABLE} names no store: {type(error).__name__}: {error}"[:500],
            next_step="s3://BUCKET/FOLDER, with pip install 'tbforensics[s3]'; or leave it unset",
        ) from None
    return root


def answering(path: Path) -> Path:
    """The same path, of which all that is asked is answered, or is Unseen; see `objects`.

    What a store hands out is one already; one that came from another process is none yet.
    """
    if is_remote(path):
        from tbforensics.objects import Objects

        remote = cast(Any, path)
        if not isinstance(remote.fs, Objects):
            remote._fs_cached = Objects(str(path), remote.fs)
    return path


def place_of(folder: Path) -> Path:
    """Below which `raw/` and `evidence/` of a case are: its folder, or a path in the store that
    is `answering`.

    Errors: EvidenceError when they are in a store and the environment does not say which.
    """
    if is_remote(folder) or not (mark := folder / FILE).exists():
        return answering(folder)
    try:
        name = json.loads(mark.read_bytes())["name"]
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
            raise ValueError(f"{name!r} is no name")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvidenceError(
            f"{FILE} of {folder.name} cannot be read: {error}"[:500],
            next_step='it is {"name": "..."}: the folder in the store that holds the evidence',
        ) from None
    if (root := store()) is None:
        raise EvidenceError(
            f"the evidence of {folder.name} is not here but in an object store, as {name}/",
            next_step=f"say which: export {VARIABLE}=s3://BUCKET/FOLDER",
        )
    return root / str(name)


def begin(folder: Path, name: str) -> None:
    """Give a collection that begins in `folder` its place in the store, where there is a store.

    Errors: EvidenceError when something is there already.
    """
    begun = (folder / FILE).exists() or (folder / "captures.jsonl").exists()
    if begun or (root := store()) is None:
        return
    if (root / name).is_dir() and any((root / name).iterdir()):
        raise EvidenceError(
            f"{root / name} holds something already",
            next_step="give the incident another incident_id, or remove what is there",
        )
    (folder / FILE).write_text(json.dumps({"name": name}) + "\n")


def is_remote(path: Path) -> bool:
    return not isinstance(path, Path)


def temporary(folder: Path, prefix: str, *, parents: bool = False) -> tuple[int, Path]:
    """An open file of this machine, for what is to be `put` below a folder; beside it on a disk.

    parents: make the folders above it, too, where they are missing.
    """
    if is_remote(folder):
        handle, path = tempfile.mkstemp(prefix=prefix)
    else:
        folder.mkdir(parents=parents, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=prefix, dir=folder)
    return handle, Path(path)


def unseen(path: Path, words: str) -> Unseen | None:
    """What a store failed with, where a library made these words of it."""
    if not is_remote(path):
        return None
    objects = cast(Any, path).fs
    return objects.unseen() if objects.failure and objects.failure in words else None


def put(file: Path, target: Path) -> None:
    """Give a local file that is whole its name. An object, too, is there whole or not at all."""
    if not is_remote(target):
        file.replace(target)
        return
    cast(Any, target).fs.put_file(str(file), cast(Any, target).path)
    file.unlink()


def remove(tree: Path) -> None:
    """A folder with all that is in it, if it is there."""
    if not is_remote(tree):
        shutil.rmtree(tree, ignore_errors=True)
    elif tree.is_dir():
        cast(Any, tree).fs.rm(cast(Any, tree).path, recursive=True)
