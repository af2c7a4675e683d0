"""What may enter the page. Outputs and prose are hostile until they have passed here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import mistune
import nh3
from markupsafe import Markup, escape

from tbforensics.report_page.text import show_hidden, slug, visible

_TAGS = {
    "a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del",
    "details", "div", "dl", "dt", "em", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd",
    "li", "ol", "p", "pre", "s", "samp", "small", "span", "strong", "sub", "summary", "sup",
    "table", "tbody", "td", "tfoot", "th", "thead", "tr", "u", "ul", "var",
}  # fmt: skip
_GONE = {  # the element and all that is in it
    "script", "style", "template", "iframe", "object", "embed", "svg", "math", "noscript", "head",
    "title", "textarea", "select", "form", "button", "audio", "video", "canvas", "frameset",
}  # fmt: skip
_ATTRIBUTES = {
    "*": {"class", "id"},
    "a": {"href"},
    "img": {"src", "alt"},
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan", "scope"},
    "ol": {"start"},
}
_ANCHOR = re.compile(r"(?:finding|capture|query)-[A-Za-z0-9._-]{1,100}")
_SECTION = re.compile(r"section-[A-Za-z0-9._-]{1,100}")
_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=\s]+")
_CLASSES = re.compile(r"tbf(?:-[a-z]+)*|dataframe")
# Colours and cursor moves (CSI); all other escapes stay, to be seen.
_CSI = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]")
TEXT_LIMIT = 20_000


@dataclass
class Gate:
    """Lets HTML into one page. An id enters once; a link enters when its target will be there."""

    targets: frozenset[str] = frozenset()
    taken: set[str] = field(default_factory=set)
    sections: bool = False  # ids of headings too: for our own prose only

    def html(self, html: str) -> Markup:
        """The harmless part of a fragment, with hidden characters made visible."""
        cleaned = nh3.clean(
            show_hidden(html, lines=True),  # half of a surrogate pair is not even text
            tags=_TAGS,
            clean_content_tags=_GONE,
            attributes=_ATTRIBUTES,
            attribute_filter=self._attribute,
            url_schemes={"data"},
            link_rel=None,
        )
        return Markup(show_hidden(cleaned, lines=True))  # noqa: S704 (this is the gate)

    def _attribute(self, tag: str, name: str, value: str) -> str | None:
        if name == "id":
            return self._id(value)
        if name == "href":
            return value if value.startswith("#") and value[1:] in self.targets else None
        if name == "src":
            return value if _PICTURE.fullmatch(value) else None
        if name == "class":
            return " ".join(word for word in value.split() if _CLASSES.fullmatch(word)) or None
        return value

    def _id(self, value: str) -> str | None:
        known = _ANCHOR.fullmatch(value) or (self.sections and _SECTION.fullmatch(value))
        if not known or value in self.taken:
            return None
        self.taken.add(value)
        return value


def anchors_in(fragments: Iterable[str]) -> frozenset[str]:
    """Ids that the fragments may bring along; a few too many do no harm."""
    found = (re.findall(rf'id="({_ANCHOR.pattern})"', html) for html in fragments)
    return frozenset(anchor for anchors in found for anchor in anchors)


@dataclass(frozen=True)
class Heading:
    anchor: str
    level: int
    text: str


class _Prose(mistune.HTMLRenderer):
    """Markdown in which raw HTML is text, a link shows where it leads, and headings have ids."""

    def __init__(self, headings: list[Heading]) -> None:
        super().__init__(escape=True)
        self._headings = headings

    def heading(self, text: str, level: int, **attrs: object) -> str:
        words = visible(Markup(text).striptags(), limit=120)  # noqa: S704 (only read, not shown)
        anchor = f"section-{len(self._headings) + 1}-{slug(words.lower())[:60]}"
        depth = max(level, 2)  # the page has its own h1
        self._headings.append(Heading(anchor, depth, words))
        return f'<h{depth} id="{anchor}">{text}</h{depth}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.startswith("#"):
            return f'<a href="{escape(url)}">{text}</a>'
        return text if escape(url) == text else f"{text} (<code>{escape(url)}</code>)"

    def image(self, text: str, url: str, title: str | None = None) -> str:
        if _PICTURE.fullmatch(url):
            return f'<img src="{escape(url)}" alt="{text}">'
        return f"{text} (<code>{escape(visible(url, limit=200))}</code>)"


def prose(gate: Gate, source: str, headings: list[Heading] | None = None) -> Markup:
    """Markdown as HTML. With `headings` its headings get ids and are added to the list."""
    renderer = _Prose([] if headings is None else headings)
    rendered = mistune.create_markdown(renderer=renderer, plugins=["table", "strikethrough"])
    gate.sections = headings is not None
    try:
        return gate.html(str(rendered(show_hidden(source, lines=True))))
    finally:
        gate.sections = False


def plain(text: str, *, limit: int = TEXT_LIMIT) -> str:
    """Terminal output as text: no colours, no overwritten progress bars, nothing hidden."""
    if "\r" in text:
        text = "\n".join(
            line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")
        )
    return visible(_CSI.sub("", text), limit=limit, lines=True)
