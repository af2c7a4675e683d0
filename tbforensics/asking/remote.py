"""Whether remote read gives what the query API gives, found out by asking both for the same.

A server adds its external labels to what it answers by remote read, and to nothing else. They
stand in its configuration, and so do secrets of others that it does not mask: user info in URLs,
parameters, headers. So its configuration is not asked; a small answer by either way tells them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from tbforensics.asking.slices import Question
from tbforensics.asking.wording import Matchers
from tbforensics.model import Capture, Json
from tbforensics.promql import parse as promparse
from tbforensics.reading import promjson, promrows, remoteread

_NAME = re.compile(r"[a-zA-Z_]\w*", re.ASCII)
_MOST_LABELS = 20


@dataclass(frozen=True)
class Remote:
    """A server that can be asked by remote read.

    without: labels that it adds to every series.
    """

    without: Mapping[str, str] = field(default_factory=dict)

    def matchers(self, question: Question) -> Matchers | None:
        """What remote read is asked for a question; None where only the query API answers it.

        A matcher of a label that the server adds is not put to its samples, so it finds others.
        """
        found = None if question.step_ms else matchers_of(question.text)
        return None if found is None or {name for name, *_ in found} & {*self.without} else found


def matchers_of(selector: str) -> Matchers | None:
    """The matchers of a plain selector; None for any other text."""
    try:
        node = promparse.read(selector)
    except promparse.Unsupported:
        return None
    if not isinstance(node, promparse.Select) or node.range_ms or node.offset_ms:
        return None
    matchers = [(match.name, match.op, match.value) for match in node.matchers]
    if node.name and all(name != "__name__" for name, *_ in matchers):
        matchers.insert(0, ("__name__", "=", node.name))
    return matchers or None


class Differs(Exception):
    """The two answers are not one."""


def added(read: Capture, chunks: bytes, query: Capture, reply: bytes) -> dict[str, str] | None:
    """What remote read adds to each series; None when there is no series to tell by.

    Errors: Differs, unless the rows of both answers are the same without it.
    """
    theirs = _rows(promrows.tables(query, promjson.read_reply(reply), samples=query.role))
    ours = _rows(remoteread.tables(read, io.BytesIO(chunks)))
    if not ours["series"] and not theirs["series"]:
        return None
    known = {name for row in theirs["series"] for name, _ in row["labels"]}
    shared = set.intersection(*({*row["labels"]} for row in ours["series"] or [{"labels": []}]))
    found = {name: value for name, value in sorted(shared) if name not in known}
    if _rows(remoteread.tables(read, io.BytesIO(chunks), without=found)) != theirs:
        raise Differs("remote read and the query API answer differently")
    if len(found) > _MOST_LABELS or not all(map(_NAME.fullmatch, found)):
        raise Differs("remote read adds labels that cannot be asked about")
    return found


def _rows(tables: Iterator[tuple[str, pa.Table]]) -> dict[str, list[dict[str, Json]]]:
    """Series and samples, in an order of their own, values as text so that NaN equals NaN."""
    found: dict[str, list[dict[str, Json]]] = {"series": [], "samples": []}
    for name, table in tables:
        if name in found:
            found[name] += table.to_pylist()
    found["series"].sort(key=lambda row: row["sid"])
    for row in found["samples"]:
        row["value"] = repr(row["value"])
    return found
