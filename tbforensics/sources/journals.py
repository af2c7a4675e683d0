"""Journals: files with one JSON value per line (`.ndjson`), rotated ones (`.gz`) beside them.

A query names a family of files by the pattern of its stem: `portfolio`, `positions.*`, `fills*`.
Records are kept from five minutes before the baseline or the window, whichever starts first, to
the end of the later one, with those that have no time of their own; the rest is counted. The
bytes that they were read from are kept whole, and each record as its writer spelled it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import BinaryIO

import pyarrow as pa

from tbforensics.evidence import rows
from tbforensics.model import Capture, Incident, Json, Query, Shape
from tbforensics.reading import givenfiles
from tbforensics.reading.journalrows import Journal
from tbforensics.wire import Client, Manners

FILES = "journal_files"
FILE, LISTING = "file", "listing"
LEAD_S = 300.0
# `portfolio.ndjson`, `ohlcv.1m.ATOMUSDT.20261119.2.ndjson.gz`: the stem is what names the family.
_JOURNAL = re.compile(
    r"(?P<stem>.+?)(?:\.\d{8}(?:\.\d{1,6})?)?\.(?:ndjson|jsonl|log)(?:\.(?:gz|zst))?"
)


@dataclass(frozen=True)
class Options:
    """path: a file, a folder (all files below it) or a glob (`*`, `?`, `[...]`, `**`).
    halt_file: a file whose mere being there says something; when it was made is noted.
    """

    path: str
    halt_file: str = ""


class Journals:
    about = "Journals in files: one JSON value per line (.ndjson), rotated and compressed ones too"
    options = Options
    needs_url = False
    always = (
        Query(FILES, "journals", "", "files", Shape.ROWS, why="which files, from when to when"),
    )
    manners = Manners()

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        found = givenfiles.find(options.path)
        listing: dict[str, Json] = {"files": [file.to_json() for file in found]}
        if options.halt_file:
            marks = givenfiles.find(options.halt_file)
            listing["halt_file"] = {
                **marks[0].to_json(),
                "there": not marks[0].why_not,
            }
        yield _listed(client, FILES, listing)
        readable = [file for file in found if not file.why_not]
        for query in queries:
            if query.name == FILES:
                continue
            if not readable:
                why = "no file to read under `path`: see the listing"
                yield client.fail(query=query.name, role=FILE, request={}, error=why)
                continue
            family = [file for file in found if is_of(query.text, file.name)]
            # Asked, and nothing there: that is an answer, and not a failure.
            yield _listed(client, query.name, {"files": [file.to_json() for file in family]})
            for file in family:
                request = {"file": file.name, "family": query.text, "modified": file.modified}
                if file.why_not:
                    yield client.fail(
                        query=query.name, role=FILE, request=request, error=file.why_not
                    )
                    continue
                yield client.keep_file(
                    givenfiles.chunks(file.path),
                    query=query.name,
                    role=FILE,
                    request=request,
                    window=incident.span.widened(before_s=LEAD_S),
                )

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        if capture.role == LISTING:
            if capture.query == FILES:
                yield _noted(capture, LISTING, json.load(body))
            return
        journal = Journal(
            capture.source, capture.query, str(capture.request["file"]), capture.window
        )
        yield from journal.tables(body)
        about = {
            "family": capture.request["family"],
            "stem": stem(journal.file),
            "modified": capture.request["modified"],
        }
        yield _noted(capture, "summary", {**journal.tally.to_json(), **about, "file": journal.file})


def stem(name: str) -> str:
    """`portfolio` of `old/portfolio.20261119.ndjson.gz`; "" of a file that is no journal."""
    found = _JOURNAL.fullmatch(PurePosixPath(name).name)
    return found["stem"] if found else ""


def is_of(family: str, name: str) -> bool:
    """Whether a file belongs to the family that a query names by a pattern of its stem."""
    return bool(stem(name)) and fnmatchcase(stem(name), family)


def _listed(client: Client, query: str, listing: Json) -> Capture:
    content = json.dumps(listing, sort_keys=True).encode()
    return client.keep_file([content], query=query, role=LISTING, request={"files": "all found"})


def _noted(capture: Capture, role: str, value: Json) -> tuple[str, pa.Table]:
    """A row of `snapshots` under the query that tells of files."""
    row = {
        "source": capture.source,
        "query": FILES,
        "role": role,
        "ts": capture.asked_at,
        "generation": "",
        "state": "ok",
        "value": json.dumps(value, sort_keys=True),
    }
    return "snapshots", rows("snapshots", [row])


SOURCE = Journals()
