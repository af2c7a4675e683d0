"""A sealed case in place of a server: the questions that were asked, answered from the archive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import requests
from requests.adapters import HTTPAdapter

from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture, Json

_LISTED = 20
_TIMES = {"time", "start", "end"}
_ASKED_BY = {
    "method",
    "url",
    "params",
    "form",
}  # what was asked by anything else is no such question

_Question = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Answer:
    """What a case answers to a question that was put in other words, or by another protocol."""

    url: str
    params: Mapping[str, Json]
    body: Callable[[], bytes]
    status: int = 200


def replay_session(
    captures: Iterable[Capture], archive: Archive, more: Iterable[Answer | None] = ()
) -> requests.Session:
    """A session that answers from the archive and never touches the network.

    A question is matched by path and parameters, whether they went in the URL or in a form. One
    that was never asked is an EvidenceError that lists those that were, the nearest first.

    more: what the case answers beside what it was asked.
    """
    session = requests.Session()
    asked = [_answer(c, archive) for c in sorted(captures, key=lambda c: c.usable)]
    adapter = _Replay(answer for answer in (*asked, *more) if answer)
    session.trust_env = False
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _answer(capture: Capture, archive: Archive) -> Answer | None:
    request = capture.request
    if not capture.sha256 or "url" not in request or request.keys() - _ASKED_BY:
        return None
    params = {**request.get("params", {}), **request.get("form", {})}
    return Answer(request["url"], params, lambda: archive.read(capture), capture.status or 200)


class _Replay(HTTPAdapter):
    def __init__(self, answers: Iterable[Answer]) -> None:
        super().__init__()
        self._kept = {_question(answer.url, answer.params): answer for answer in answers}

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        answer = self._kept.get(_question(str(request.url), _form(request)))
        if answer is None:
            raise EvidenceError(
                f"this was never asked, so the sealed case cannot answer it: {request.url}",
                problems=self._nearest(request),
                next_step="ask one of these, or collect a new case that asks it",
            )
        response = requests.Response()
        response.status_code = answer.status
        response.url = str(request.url)
        response.request = request
        response.headers["Content-Type"] = "application/json"
        response._content = answer.body()
        return response

    def _nearest(self, request: Any) -> list[str]:
        wanted = _in_words(str(request.url), _form(request))
        listed = []
        for (path, _), answer in self._kept.items():
            words = _in_words(answer.url, answer.params)
            alike = SequenceMatcher(None, wanted, words, autojunk=False).ratio()
            listed.append((path != urlsplit(str(request.url)).path, -alike, words))
        listed.sort()
        more = len(listed) - _LISTED
        return [words for *_, words in listed[:_LISTED]] + [f"and {more} more"] * (more > 0)


def _form(request: Any) -> dict[str, str]:
    body = request.body
    if isinstance(body, bytes):
        body = body.decode("utf-8", "replace")
    return dict(parse_qsl(body)) if isinstance(body, str) else {}


def _in_words(url: str, params: Mapping[str, Json]) -> str:
    parts = urlsplit(url)
    both = [*parse_qsl(parts.query), *params.items()]
    return " ".join([parts.path, *(f"{name}={value}" for name, value in sorted(both))])


def _question(url: str, params: Mapping[str, Json]) -> _Question:
    parts = urlsplit(url)
    both = [*parse_qsl(parts.query), *((name, str(value)) for name, value in params.items())]
    return parts.path, frozenset((name, _plain(name, value)) for name, value in both)


def _plain(name: str, text: str) -> str:
    """`60`, `60.0` and `6e1` are one number to the API, and a time has several spellings."""
    try:
        return repr(float(text))
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text) if name in _TIMES else None
    except ValueError:
        moment = None
    return repr(moment.timestamp()) if moment and moment.tzinfo else text
