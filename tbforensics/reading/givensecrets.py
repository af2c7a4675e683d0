"""Passphrases and keys that a user keeps in a file or in the environment.

A parameters file names where they are and never holds them. They open what was encrypted while
evidence is collected; no capture, error or record ever shows one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_LONGEST_BYTES = 1 << 16


class NoSecret(Exception):
    """Why there is none, in words; without its value and without a path of the machine."""


def secret(file: str, variable: str, environment: Mapping[str, str] | None = None) -> str:
    """What the file holds, without the end of its last line, or else the variable.

    "" when neither is named. Errors: NoSecret.
    """
    environment = os.environ if environment is None else environment
    if file:
        try:
            with Path(file).expanduser().open("rb") as handle:
                held = handle.read(_LONGEST_BYTES + 1)
        except OSError as error:
            raise NoSecret(f"its file cannot be read: {error.strerror}") from None
        if len(held) > _LONGEST_BYTES:
            raise NoSecret(f"its file is longer than {_LONGEST_BYTES} bytes")
        try:
            text = held.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise NoSecret("its file is not text in UTF-8") from None
        if not text:
            raise NoSecret("its file is empty")
        return text
    if variable:
        if not (text := environment.get(variable, "")):
            raise NoSecret(f"{variable} is not set")
        return text
    return ""
