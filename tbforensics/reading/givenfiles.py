"""Files that a user names by a file, a folder or a glob, found and read without surprises."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import translate
from pathlib import Path

from tbforensics.model import Json, utc_text


@dataclass(frozen=True)
class Found:
    """A file below what the user named; `name` is relative to that, so no machine is named.

    why_not: why it is not read; "" when it is.
    """

    path: Path
    name: str
    why_not: str = ""
    length: int = 0
    modified: str = ""

    def to_json(self) -> dict[str, Json]:
        return {
            "file": self.name,
            "bytes": self.length,
            "modified": self.modified,
            "why_not_read": self.why_not,
        }


def find(path: str) -> list[Found]:
    """Regular files, in the order of their names. Links and devices below a folder are named
    and not followed: a pipe would never end, a link may lead anywhere."""
    root = Path(path).expanduser()
    if root.is_file():
        return [_look(root.resolve(), root.name)]
    if root.is_dir():
        return _below(root, re.compile(""))
    parts = root.parts
    fixed = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    if fixed is None:
        why = "not a regular file" if root.exists() else "there is no such file or folder"
        return [Found(root, _writable(root.name), why)]
    return _below(Path(*parts[:fixed]), _pattern(parts[fixed:]))


def _pattern(parts: Sequence[str]) -> re.Pattern[str]:
    """`**` stands for any folders, the other marks for anything within one name."""
    text = ""
    for place, part in enumerate(parts):
        if part == "**":
            text += ".*" if place == len(parts) - 1 else "(?:.*/)?"
        else:
            inner = translate(part).removeprefix("(?s:").removesuffix(r")\Z")
            text += inner.replace(".*", "[^/]*") + ("/" if place < len(parts) - 1 else "")
    return re.compile(text + r"\Z", re.DOTALL)


def _below(root: Path, pattern: re.Pattern[str]) -> list[Found]:
    found = []

    def unreadable(error: OSError) -> None:
        folder = Path(str(error.filename))
        name = str(folder.relative_to(root)) if folder != root else "."
        found.append(Found(folder, _writable(name), error.strerror or "cannot be read"))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*files, *links]):
            path = Path(folder) / name
            relative = str(path.relative_to(root))
            if pattern.match(relative):
                found.append(_look(path, relative))
    return sorted(found, key=lambda file: file.name)


def _look(path: Path, name: str) -> Found:
    name = _writable(name)
    try:
        status = path.lstat()
    except OSError as error:
        return Found(path, name, error.strerror or "cannot be read")
    modified = utc_text(datetime.fromtimestamp(int(status.st_mtime), UTC))
    if stat.S_ISLNK(status.st_mode):
        return Found(path, name, "a symbolic link; name its target to read it", 0, modified)
    if not stat.S_ISREG(status.st_mode):
        return Found(path, name, "not a regular file", 0, modified)
    return Found(path, name, "", status.st_size, modified)


def _writable(name: str) -> str:
    """A file name that UTF-8 can hold, whatever bytes it is made of."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file as it was when opened: what is appended meanwhile is left alone.

    Errors: OSError, without the path.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OSError(error.errno, error.strerror) from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file any more")
        left = status.st_size
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            left -= len(chunk)
            yield chunk
