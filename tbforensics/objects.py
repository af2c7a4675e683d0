"""The files of an object store: what it holds, or `Unseen`; never less because it did not say.

A library of a file system takes much for "nothing there": in a search it skips a folder that it
may not list, and what it cannot ask for is no file. So whether something is there is asked here, by
what tells the two apart, and all that goes wrong is told in one way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Self

from fsspec import AbstractFileSystem

from tbforensics.errors import Unseen

# On S3, that an object is not there is what a list without it says. A request that is itself "not
# found" met no bucket, no store, or an object that went away; the next run can tell.
_NOT_FOUND_BY = "when calling the"


class Objects(AbstractFileSystem):  # type: ignore[misc]
    """The file system of a store, for one who must not take silence for an answer.

    failure: the last one, in words; kept as an exception it would keep alive who met it.
    """

    cachable = False

    def __init__(self, url: str, inner: Any) -> None:
        super().__init__()
        self.url, self.inner = url, inner
        self.protocol, self._strip_protocol = inner.protocol, inner._strip_protocol
        self.failure = ""

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Errors: FileNotFoundError for what the store says is not there; else Unseen."""
        try:
            yield
        except Exception as error:  # what a file system raises is its own affair
            absent = isinstance(error, FileNotFoundError)
            if absent and _NOT_FOUND_BY not in str(error.__cause__):
                raise
            self.inner.invalidate_cache()  # what it said before is no answer now
            words = f"the store {self.url} cannot be used: {type(error).__name__}: {error}"
            self.failure = words[:500]
            raise self.unseen() from None

    def unseen(self) -> Unseen:
        return Unseen(
            self.failure,
            next_step="see that it is up and lets you in, and run this again; "
            "of the evidence this says nothing",
        )

    # --- what is there --------------------------------------------------------------------

    def info(self, path: str, **words: Any) -> Any:
        with self.asking():
            return self.inner.info(path, **words)

    def ls(self, path: str, detail: bool = True, **words: Any) -> Any:
        with self.asking():
            return self.inner.ls(path, detail=detail, **words)

    def modified(self, path: str) -> Any:
        with self.asking():
            return self.inner.modified(path)

    def exists(self, path: str, **words: Any) -> bool:
        return bool(self._type(path))

    def isfile(self, path: str) -> bool:
        return self._type(path) == "file"

    def isdir(self, path: str) -> bool:
        return self._type(path) == "directory"

    def _type(self, path: str) -> str:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return ""

    def find(
        self, path: str, maxdepth: Any = None, withdirs: Any = None, detail: bool = False, **_: Any
    ) -> Any:
        """The files below a folder; those in it, where it is searched one level deep.

        Object stores list what is below in one go; level by level, libraries skip what fails.
        """
        found = {}
        with suppress(FileNotFoundError), self.asking():
            if maxdepth == 1:
                listed = self.inner.ls(path, detail=True)
                found = {info["name"]: info for info in listed if info["type"] == "file"}
            else:
                found = self.inner.find(path, detail=True)
        return found if detail else sorted(found)

    # --- what is in it --------------------------------------------------------------------

    def open(self, path: str, mode: str = "rb", **words: Any) -> Any:
        with self.asking():
            return _File(self, self.inner.open(path, mode, **words))

    def put_file(self, lpath: str, rpath: str, **words: Any) -> None:
        with self.asking():
            self.inner.put_file(lpath, rpath, **words)

    def touch(self, path: str, **words: Any) -> None:
        with self.asking():
            self.inner.touch(path, **words)

    def rm(self, path: str, recursive: bool = False, **words: Any) -> None:
        with self.asking():
            self.inner.rm(path, recursive=recursive, **words)


class _File:
    """An open file. Who reads evidence takes what goes wrong for damage; so the end tells again."""

    def __init__(self, objects: Objects, inner: Any) -> None:
        self._objects, self._inner = objects, inner
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return partial(self._asked, value) if callable(value) else value

    def _asked(self, act: Callable[..., Any], *words: Any, **named: Any) -> Any:
        try:
            with self._objects.asking():
                return act(*words, **named)
        except Unseen:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._failed:
            raise self._objects.unseen()
