"""Cells of an executed notebook as parts of the page."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tbforensics.report_page.chart_json import CHART_MIME
from tbforensics.report_page.quick import without_slow_grammar
from tbforensics.report_page.safe import Gate, Heading, plain, prose
from tbforensics.report_page.text import text_of, visible

with without_slow_grammar():
    from nbformat import NotebookNode

_FIGURE = Markup(
    '<figure class="chart">{picture}<div class="live" hidden></div>'
    '<script type="application/json">{blob}</script></figure>'
)
_PNG = Markup('<img alt="{alt}" src="data:image/png;base64,{data}">')
_JPEG = Markup('<img alt="" src="data:image/jpeg;base64,{data}">')
_TEXT = Markup('<pre class="text">{}</pre>')
_ERROR = Markup('<pre class="text error">{}</pre>')
_NOTE = Markup('<p class="note">{}</p>')
_BOX = Markup('<div class="box">{}</div>')


@dataclass(frozen=True)
class Part:
    """Prose, or outputs and how they were computed.

    code: of the cell that gave the outputs and of the silent ones before it, by cell number.
    """

    prose: str = ""
    outputs: tuple[Markup, ...] = ()
    code: tuple[tuple[int, str], ...] = ()
    skipped: bool = False
    chart: bool = False

    @property
    def cells(self) -> str:
        numbers = [number for number, _ in self.code]
        if len(numbers) == 1:
            return f"cell {numbers[0]}"
        return f"cells {numbers[0]} to {numbers[-1]}"


def parts_of(cells: Iterable[NotebookNode], gate: Gate, headings: list[Heading]) -> Iterator[Part]:
    """The cells in order; code cells are numbered as their execution counts would be."""
    number = 0
    silent: tuple[tuple[int, str], ...] = ()
    for cell in cells:
        source = text_of(cell.source)
        if not source.strip() or cell.cell_type not in ("markdown", "code"):
            continue
        if cell.cell_type == "code":
            number += 1
            part = _computed(cell, gate, (*silent, (number, plain(source))))
            silent = () if part.outputs or part.skipped else part.code
            if not silent:
                yield part
            continue
        if silent:
            yield Part(code=silent)
        silent = ()
        yield Part(prose=prose(gate, source, headings))
    if silent:
        yield Part(code=silent)


def _computed(cell: NotebookNode, gate: Gate, code: tuple[tuple[int, str], ...]) -> Part:
    outputs = tuple(html for output in cell.outputs if (html := shown(output, gate)))
    return Part(
        outputs=outputs,
        code=code,
        skipped=cell.get("execution_count") is None and not cell.outputs,
        chart=any('<figure class="chart">' in html for html in outputs),
    )


def html_in(cells: Iterable[NotebookNode]) -> Iterator[str]:
    """Every HTML output, as it came."""
    for cell in cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                yield text_of(output["data"]["text/html"])


def shown(output: Mapping[str, Any], gate: Gate) -> Markup:
    """One output as HTML; the richest form that is harmless."""
    kind = output.get("output_type")
    if kind == "stream":
        return _TEXT.format(plain(text_of(output.get("text", ""))))
    if kind == "error":
        lines = "\n".join(text_of(line) for line in output.get("traceback", ()))
        return _ERROR.format(plain(lines or f"{output.get('ename')}: {output.get('evalue')}"))
    return _rich(output.get("data", {}), gate)


def _rich(data: Mapping[str, Any], gate: Gate) -> Markup:
    chart = _figure(data)
    if chart:
        return chart
    if "text/html" in data:
        html = gate.html(text_of(data["text/html"]))
        if html.striptags().strip() or "<img" in html:
            return _BOX.format(html)
    if "image/png" in data:
        alt = visible(text_of(data.get("text/plain", "")), limit=200)
        return _PNG.format(alt=alt, data=_base64(data["image/png"]))
    if "image/jpeg" in data:
        return _JPEG.format(data=_base64(data["image/jpeg"]))
    if "text/markdown" in data:
        return _BOX.format(prose(gate, text_of(data["text/markdown"])))
    if "text/plain" in data:
        return _TEXT.format(plain(text_of(data["text/plain"])))
    if not data:
        return Markup("")
    kinds = ", ".join(visible(kind, limit=80) for kind in sorted(data))
    return _NOTE.format(f"An output was left out; this page does not show {kinds}.")


def _figure(data: Mapping[str, Any]) -> Markup:
    """The static picture, and beside it the live chart as inert base64."""
    chart = data.get(CHART_MIME)
    if not isinstance(chart, Mapping) or not isinstance(chart.get("spec"), Mapping):
        return Markup("")
    alt = visible(chart.get("alt", ""), limit=1000)
    spec = {key: value for key, value in chart["spec"].items() if key != "usermeta"}
    live = {"spec": spec, "data": chart.get("data", {})}
    packed = json.dumps(live, separators=(",", ":"), allow_nan=False, default=dict).encode()
    blob = base64.b64encode(gzip.compress(packed, 9, mtime=0)).decode()
    if "image/png" in data:
        picture = _PNG.format(alt=alt, data=_base64(data["image/png"]))
    else:
        picture = _NOTE.format(alt)
    return _FIGURE.format(picture=picture, blob=blob)


def _base64(value: object) -> str:
    """Base64 and nothing else, however it was folded."""
    text = "".join(text_of(value).split())
    return text if all(c.isascii() and (c.isalnum() or c in "+/=") for c in text) else ""
