"""How a question goes over the wire: by the query API as JSON, or by remote read as chunks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tbforensics.asking.slices import Slice
from tbforensics.model import Json
from tbforensics.promql import text as promql
from tbforensics.reading import promjson, remoteread
from tbforensics.wire import Explain

READ = "remote_read"  # what a capture's request calls it
_STREAMED = "application/x-streamed-protobuf"
_LONGEST_URL_TEXT = 1_500
_LONGEST_WORDS = 500

Matchers = Sequence[tuple[str, str, str]]  # (label, operator, value)


def explain_api(body: bytes) -> tuple[str, tuple[str, ...]]:
    """As `promjson.explain`, with the words of a refusal that is plain text."""
    why, notes = promjson.explain(body)
    words = _plain_words(body) if why else ""
    return (f"not JSON: {words}" if words else why), notes


def explain_read(body: bytes) -> tuple[str, tuple[str, ...]]:
    """As `remoteread.explain`; a refusal is no frame but text, whoever refuses."""
    why, notes = remoteread.explain(body)
    if not why:
        return (remoteread.HISTOGRAMS if remoteread.HISTOGRAMS in notes else ""), ()
    if body.lstrip()[:1] in (b"{", b"<"):
        return promjson.explain(body)[0].replace("JSON", "frames") or why, ()
    return _plain_words(body) or why, ()


def _plain_words(body: bytes) -> str:
    """The beginning of a text; nothing for what is none, or is JSON or HTML."""
    if body.lstrip()[:1] in (b"{", b"[", b"<"):
        return ""
    words = " ".join(body[: 4 * _LONGEST_WORDS].decode("utf-8", "replace").split())
    return words[:_LONGEST_WORDS] if words.isprintable() and "\ufffd" not in words else ""


@dataclass(frozen=True)
class Wording:
    """What `Client.ask` needs beside the names of a question."""

    path: str
    method: str = "GET"
    params: Mapping[str, Json] | None = None
    form: Mapping[str, Json] | None = None
    data: bytes | None = None
    told: Mapping[str, Json] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    expects: str = ""
    explain: Explain = explain_api

    @property
    def asks(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def shown(self) -> dict[str, Json]:
        """For the record of a question that was not put."""
        return {
            "path": self.path,
            **({"params": dict(self.params or self.form or {})}),
            **self.told,
        }


def of_api(path: str, params: Mapping[str, Json]) -> Wording:
    """One too long for a URL goes as a form."""
    if len(str(params.get("query", ""))) > _LONGEST_URL_TEXT:
        return Wording(path, "POST", form=params)
    return Wording(path, params=params)


def of_query(part: Slice) -> Wording:
    """The samples of a slice as JSON, or an expression's values at the steps that begin in it."""
    question = part.question
    if question.step_ms and part.steps:
        first, last = part.steps
        return of_api(
            "api/v1/query_range",
            {
                "query": question.text,
                "start": promql.seconds_text(first),
                "end": promql.seconds_text(last),
                "step": promql.seconds_text(question.step_ms),
            },
        )
    # A range holds both its ends in Prometheus 2 and only the later one in Prometheus 3. This one
    # holds [start, end) in either, plus a millisecond that `parse` drops.
    length = promql.duration_text(part.end_ms - part.start_ms)
    return of_api(
        "api/v1/query",
        {"query": f"{question.text}[{length}]", "time": promql.seconds_text(part.end_ms - 1)},
    )


def of_read(part: Slice, matchers: Matchers, without: Mapping[str, str]) -> Wording:
    """The samples of a slice as the chunks that the server keeps.

    without: labels that the server adds to what it answers so; for `parse` to leave out.
    """
    last_ms = part.end_ms - 1  # remote read holds both ends
    told = {
        "query": part.question.text,
        "matchers": [list(matcher) for matcher in matchers],
        "start": promql.seconds_text(part.start_ms),
        "end": promql.seconds_text(last_ms),
        "without": dict(without),
    }
    return Wording(
        "api/v1/read",
        "POST",
        data=remoteread.question(matchers, part.start_ms, last_ms),
        told={READ: told},
        headers=remoteread.HEADERS,
        expects=_STREAMED,
        explain=explain_read,
    )
