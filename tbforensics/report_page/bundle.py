"""The one copy of the chart scripts that all charts of a page share."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import platformdirs
import vl_convert


def vega_bundle(folder: Path | None = None) -> str:
    """Vega, Vega-Lite and vega-embed as one script, 0.9 MB.

    Building it takes seconds, so it is kept in the user's cache folder (or `folder`) under the
    version of vl-convert and with its own SHA-256 as first line. A broken copy is built again; a
    folder that cannot be written only costs those seconds.
    """
    folder = folder or Path(platformdirs.user_cache_path("tbforensics"))
    path = folder / f"vega-{version('vl-convert-python')}.js"
    kept = _kept(path)
    if kept is not None:
        return kept
    bundle = vl_convert.javascript_bundle(snippet="window.vegaEmbed = vegaEmbed;").replace(
        "</script", "<\\/script"
    )
    with suppress(OSError):
        _keep(path, bundle)
    return bundle


def _kept(path: Path) -> str | None:
    try:
        digest, _, bundle = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return bundle if digest == _digest(bundle) else None


def _keep(path: Path, bundle: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".vega-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as partial:
            partial.write(f"{_digest(bundle)}\n{bundle}")
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def page_file(name: str) -> str:
    """A file of the page: its style or its script."""
    return (files("tbforensics") / "report_page" / name).read_text(encoding="utf-8").strip()
