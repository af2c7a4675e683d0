"""A chart as a notebook keeps it, and as the page of a report carries it."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import vl_convert

from tbforensics.model import Json
from tbforensics.report_page.text import visible

CHART_MIME = "application/vnd.tbforensics.chart+json"
POINTER = "pointer"  # the name of a layer that is there for the pointer only
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def mimebundle(spec: Mapping[str, Json], **_: object) -> dict[str, Json]:
    """Spec and columns as JSON, a picture for print and JupyterLab, and a sentence.

    Nothing in it is random, and nothing but the picture differs between machines.
    """
    chart = chart_of(spec)
    bundle: dict[str, Json] = {CHART_MIME: chart, "text/plain": chart["alt"]}
    try:
        picture = vl_convert.vegalite_to_png(_still(spec), scale=1.5, allowed_base_urls=[])
    except ValueError:  # a chart without its picture is still a chart
        return bundle
    return {**bundle, "image/png": base64.b64encode(squeezed(picture)).decode()}


def chart_of(spec: Mapping[str, Json]) -> dict[str, Json]:
    """`spec` without data, `data` by name and column, and `alt`, the chart as a sentence."""
    kept = {key: value for key, value in spec.items() if key not in ("$schema", "datasets")}
    data = {name: _columns(records) for name, records in spec.get("datasets", {}).items()}
    return {"spec": kept, "data": data, "alt": str(spec.get("description") or _title_of(spec))}


def _columns(records: Sequence[Mapping[str, Json]]) -> dict[str, list[Json]]:
    keys = list(dict.fromkeys(key for record in records for key in record))
    return {key: [record.get(key) for record in records] for key in keys}


def _still(spec: Mapping[str, Json]) -> dict[str, Json]:
    """The chart without what only a pointer would find; it takes most of the time to draw."""
    layers = [layer for layer in spec.get("layer", []) if layer.get("name") != POINTER]
    if len(layers) == len(spec.get("layer", [])):
        return dict(spec)
    return {key: v for key, v in spec.items() if key != "params"} | {"layer": layers}


def _title_of(spec: Mapping[str, Json]) -> str:
    title: Any = spec.get("title", "")
    text = title.get("text", "") if isinstance(title, Mapping) else title
    return visible(text, limit=200) or "a chart without a title"


def squeezed(png: bytes) -> bytes:
    """The same picture, packed harder: vl-convert prefers speed and leaves three quarters air."""
    parts = list(_chunks(png))
    pixels = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    packed = [(b"IDAT", zlib.compress(pixels, 9))]
    first = [part for part in parts if part[0] not in (b"IDAT", b"IEND")]
    return _PNG_HEAD + b"".join(_chunk(*part) for part in [*first, *packed, (b"IEND", b"")])


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_PNG_HEAD)
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        yield png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        at += 12 + length


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
