"""Governance files of a node, copied from `<data>/governance/history`: what was decided and set.

events.log             one line per act of the estimator: `<epoch> inflation_guard <f>`,
                       `<epoch> kill_switch <percent>`, `<epoch> retune <beta> <gamma> <kappa>
                       <lambda>`; the first two come before the retune of their epoch
param_changes.json     the last 512 changes by governance
inflation_<epoch>.json all parameters after the retune of that epoch

None of them tells a time, only epochs: events become records without a time, and each of the
other files one snapshot, true when it was copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import BinaryIO

import pyarrow as pa

from tbforensics import theblock
from tbforensics.evidence import QUARANTINED_BYTES, rows
from tbforensics.model import Capture, Incident, Json, Query
from tbforensics.reading import givenfiles
from tbforensics.wire import Client, Manners

EVENTS, CHANGES, PARAMETERS = "events.log", "param_changes.json", "inflation_*.json"
_MOST_FILES = 2_000  # one a epoch: a node that ran for weeks has thousands
_MOST_QUARANTINED = 100
_WHOLE = re.compile(r"[+-]?\d{1,18}")
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{1,18})?")
_EPOCH_OF_FILE = re.compile(r"inflation_(\d{1,18})\.json")


@dataclass(frozen=True)
class Options:
    """path: `governance/history` of a node's data folder, or any folder, file or glob above it."""

    path: str = ""


class Governance:
    about = "A node's governance files: events.log, param_changes.json, inflation_<epoch>.json"
    options = Options
    needs_url = False
    always: tuple[Query, ...] = ()
    manners = Manners()

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        found = givenfiles.find(options.path) if options.path else []
        for query in queries:
            if query.source != "governance":
                continue
            named = [f for f in found if fnmatchcase(PurePath(f.name).name, query.text)]
            wanted = sorted((f for f in named if not f.why_not), key=lambda f: _order(f.name))
            for file in wanted[-_MOST_FILES:]:
                yield client.keep_file(
                    givenfiles.chunks(file.path),
                    query=query.name,
                    role=query.text,
                    request={"file": file.name, "modified": file.modified},
                )
            if len(wanted) > _MOST_FILES:
                skipped = len(wanted) - _MOST_FILES
                why = f"the {skipped} oldest of {len(wanted)} files were left alone"
                yield _failed(client, query, why)
            if not wanted:
                here = f"; not read: {named[0].why_not}" if named else ""
                yield _failed(client, query, f"no {query.text} under `path`{here}")

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        text = body.read()
        name = str(capture.request.get("file", ""))
        if capture.role == EVENTS:
            yield from _journal(capture, name, text)
            return
        state = "ok"
        try:
            found = json.loads(text, parse_constant=_refuse)
            read = _changes(found) if capture.role == CHANGES else _parameters(name, found)
            value = _dumps({"file": name, **read})
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            state, value = "error", _dumps({"message": f"{name} cannot be read: {error}"[:300]})
            bad = _unreadable(capture, name, 1, 0, text, str(error))
            yield "quarantine", rows("quarantine", [bad])
        snapshot = {
            "source": capture.source,
            "query": capture.query,
            "role": capture.role,
            "ts": capture.asked_at,
            "generation": "",
            "state": state,
            "value": value,
        }
        yield "snapshots", rows("snapshots", [snapshot])


def _failed(client: Client, query: Query, why: str) -> Capture:
    request: dict[str, Json] = {"file": query.text}
    return client.fail(query=query.name, role=query.text, request=request, error=why)


def _order(name: str) -> tuple[int, str]:
    """By epoch where a name has one, so that the newest come last."""
    found = _EPOCH_OF_FILE.search(name)
    return int(found[1]) if found else 0, name


# --- the files -----------------------------------------------------------------------------


def _journal(capture: Capture, name: str, text: bytes) -> Iterator[tuple[str, pa.Table]]:
    """Events as records without a time, in the order of the file."""
    records, bad = [], []
    offset = 0
    lines = text.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place: dict[str, Json] = {"source": capture.source, "query": capture.query}
            place |= {"file": name, "line": number, "offset": offset}
            try:
                event = _dumps(_event(line.decode("utf-8")))
                records.append({**place, "place": 0, "ts": None, "value": event})
            except ValueError as error:
                # The last line is still being written while nothing ends it.
                if number < len(lines):
                    bad.append({**place, "reason": str(error), "bytes": line[:QUARANTINED_BYTES]})
        offset += len(line) + 1
    yield "records", rows("records", records)
    if bad:
        yield "quarantine", rows("quarantine", bad[:_MOST_QUARANTINED])


def _event(line: str) -> dict[str, Json]:
    epoch, *rest = line.split()[:8]
    word, values = "".join(rest[:1]), rest[1:]
    if not _WHOLE.fullmatch(epoch):
        raise ValueError(f"no epoch: {epoch[:40]!r}")
    if word == "retune" and len(values) == 4 and all(map(_WHOLE.fullmatch, values)):
        names = ("beta", "gamma", "kappa", "lambda")
        named: dict[str, Json] = dict(zip(names, map(int, values), strict=True))
    elif word == "inflation_guard" and len(values) == 1 and _NUMBER.fullmatch(values[0]):
        named = {"rolling_inflation": float(values[0])}
    elif word == "kill_switch" and len(values) == 1 and _WHOLE.fullmatch(values[0]):
        named = {"reduction_percent": int(values[0])}
    else:
        raise ValueError(f"no event that is known: {line[:80]!r}")
    return {"epoch": int(epoch), "event": word, **named}


def _changes(found: Json) -> dict[str, Json]:
    """Changes with the parameter's name as metrics spell it: `gamma_read_sub`."""
    return {"changes": [{**row, "key": theblock.param_key(str(row["key"]))} for row in found]}


def _parameters(name: str, found: Mapping[str, Json]) -> dict[str, Json]:
    epoch = _EPOCH_OF_FILE.search(name)
    spelled = {theblock.without_ct(key): value for key, value in found.items()}
    return {"epoch": int(epoch[1]) if epoch else None, "params": spelled}


def _unreadable(
    capture: Capture, name: str, line: int, offset: int, text: bytes, reason: str
) -> dict[str, Json]:
    return {
        "source": capture.source,
        "query": capture.query,
        "file": name,
        "line": line,
        "offset": offset,
        "reason": reason,
        "bytes": text[:QUARANTINED_BYTES],
    }


def _dumps(value: Json) -> str:
    # Half a surrogate pair cannot be written as UTF-8, so no file and no report could hold it.
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def _refuse(constant: str) -> Json:
    raise ValueError(f"{constant} is not JSON")


SOURCE = Governance()
