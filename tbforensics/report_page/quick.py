"""Importing without what takes seconds and is not used."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import cast

_SLOW = "rfc3987_syntax"


@contextmanager
def without_slow_grammar() -> Iterator[None]:
    """Import jsonschema without its checker of international addresses.

    JupyterLab brings `rfc3987_syntax`, which builds a grammar for 1-2 s in every process that
    imports jsonschema: altair, nbformat, papermill. jsonschema does without when it is missing.
    """
    hide = _SLOW not in sys.modules and "jsonschema" not in sys.modules
    if hide:
        sys.modules[_SLOW] = cast(ModuleType, None)  # the documented way to make an import fail
    try:
        yield
    finally:
        if hide:
            del sys.modules[_SLOW]
