"""Finds a kind or a source by its file name. A broken file stops who asked for it, nobody else."""

from __future__ import annotations

import difflib
import pkgutil
from importlib import import_module
from typing import cast

import tbforensics.kinds
import tbforensics.sources
from tbforensics.errors import ParametersError
from tbforensics.model import Kind
from tbforensics.sources import Source


def kind_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tbforensics.kinds.__path__))


def source_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(tbforensics.sources.__path__))


def load_kind(name: str) -> Kind:
    """Errors: ParametersError for an unknown name, with the known ones."""
    _known(name, kind_names(), "kind")
    return cast(Kind, import_module(f"tbforensics.kinds.{name}").KIND)


def load_source(name: str) -> Source:
    """Errors: as `load_kind`."""
    _known(name, source_names(), "source type")
    return cast(Source, import_module(f"tbforensics.sources.{name}").SOURCE)


def did_you_mean(word: str, known: list[str]) -> str:
    """`; did you mean 'start'?` or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _known(name: str, known: list[str], what: str) -> None:
    if name not in known:
        raise ParametersError(
            f"unknown {what} {name!r}{did_you_mean(name, known)}",
            next_step=f"one of: {', '.join(known)}",
        )
