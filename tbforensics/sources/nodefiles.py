"""Files that a node leaves beside its governance history, copied from its folders.

peer_key_history.log                one JSON object a line: {"old": hex, "new": hex, "ts": seconds};
                                    each rotation is a record, and the old key stays valid for 300 s
util_history.json, kalman_state.json  state of the estimator, true when the file was copied

A rotation may matter after it: it is kept when it lies up to ten minutes before the baseline or
the window, whichever starts first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO

import pyarrow as pa

from tbforensics import theblock
from tbforensics.evidence import QUARANTINED_BYTES, SCHEMAS, rows
from tbforensics.model import Capture, Incident, Json, Query, Shape
from tbforensics.reading import givenfiles, logstream
from tbforensics.reading.logrows import LineError, parse, time_ms
from tbforensics.reading.logtables import MOST_QUARANTINED
from tbforensics.reading.peersamples import too_deep
from tbforensics.wire import Client, Manners

ROTATIONS, STATE = "key_rotations", "estimator_state"
OLD_KEY_VALID_S = 300
LEAD_S = 600.0
_HISTORY = "peer_key_history"  # a deployment may add an ending of its own
_STATES = ("util_history.json", "kalman_state.json")
_LONGEST_STATE_BYTES = 16 << 20


@dataclass(frozen=True)
class Options:
    """path: a file, a folder (all files below it) or a glob (`*`, `?`, `[...]`, `**`)."""

    path: str


class NodeFiles:
    about = "Files of a node: peer_key_history.log, util_history.json, kalman_state.json"
    options = Options
    needs_url = False
    always = (
        Query(
            name=ROTATIONS,
            source="nodefiles",
            text="peer_key_history.log",
            unit="rotations",
            shape=Shape.RECORDS,
            why="which peer became which; a peer's series ends and another begins",
        ),
        Query(STATE, "nodefiles", "", "files", Shape.ROWS, why="what the estimator had seen"),
    )
    manners = Manners()

    def fetch(
        self, queries: Sequence[Query], incident: Incident, options: object, client: Client
    ) -> Iterator[Capture]:
        assert isinstance(options, Options)
        found = givenfiles.find(options.path)
        names = {file.path: PurePath(file.name).name for file in found}
        for query, wanted in (
            (ROTATIONS, [f for f in found if names[f.path].startswith(_HISTORY)]),
            (STATE, [f for f in found if names[f.path] in _STATES]),
        ):
            for file in wanted:
                request: dict[str, Json] = {"file": file.name, "modified": file.modified}
                if file.why_not:
                    yield client.fail(query=query, role=query, request=request, error=file.why_not)
                    continue
                yield client.keep_file(
                    givenfiles.chunks(file.path),
                    query=query,
                    role=query,
                    request=request,
                    window=incident.span.widened(before_s=LEAD_S) if query == ROTATIONS else None,
                )
            if not wanted:
                name = f"{_HISTORY}.log" if query == ROTATIONS else " or ".join(_STATES)
                why = f"no {name} under `path`"
                yield client.fail(query=query, role=query, request={}, error=why)

    def parse(self, capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
        if capture.role == ROTATIONS:
            yield from _rotations(capture, body)
        else:
            yield from _state(capture, body)


SOURCE = NodeFiles()


# --- rotations -----------------------------------------------------------------------------


def _rotations(capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
    kept: list[dict[str, Json]] = []
    refused = outside = 0
    for line, offset, data, error in _lines(body):
        try:
            if error:
                raise LineError(error)
            ts_ms, value = _rotation(data)
        except LineError as why:
            refused += 1
            if refused <= MOST_QUARANTINED:
                bad = _unreadable(capture, line, offset, str(why), data)
                yield "quarantine", rows("quarantine", [bad])
            continue
        window = capture.window
        if window and not window.start.timestamp() * 1e3 <= ts_ms < window.end.timestamp() * 1e3:
            outside += 1
            continue
        kept.append(
            {
                "source": capture.source,
                "query": capture.query,
                "file": str(capture.request["file"]),
                "line": line,
                "offset": offset,
                "place": 0,
                "ts": ts_ms * 1_000_000,
                "value": json.dumps(value, sort_keys=True),
            }
        )
    if kept:
        yield "records", pa.Table.from_pylist(kept, schema=SCHEMAS["records"])
    told = {"kept": len(kept), "outside_window": outside, "unreadable": refused}
    yield _snapshot(capture, "summary", {"file": capture.request["file"], **told})


def _lines(body: BinaryIO) -> Iterator[tuple[int, int, bytes, str]]:
    """Line number, offset and bytes of each line that is not blank, and why it is no line."""
    line = offset = 0
    try:
        for piece in logstream.read(body):
            if isinstance(piece, logstream.Element):
                line, offset = piece.place, piece.offset
                yield line, offset, piece.data, ""
                continue
            line, offset = piece.first_line, piece.offset
            if piece.too_long:
                yield line, offset, piece.data, f"a line of {piece.too_long} bytes"
                continue
            for data in piece.data.split(b"\n"):
                if data.strip():
                    yield line, offset, data, ""
                line, offset = line + 1, offset + len(data) + 1
    except logstream.StreamError as error:
        yield line + 1, offset, b"", str(error)


def _rotation(line: bytes) -> tuple[int, dict[str, Json]]:
    """Errors: LineError."""
    found = parse(line)
    if not isinstance(found, dict):
        raise LineError("it is no object")
    keys = {name: theblock.peer_hex(str(found.get(name))) for name in ("old", "new")}
    if not all(keys.values()):
        raise LineError("`old` and `new` are not both keys of peers")
    moment = found.get("ts")
    ts_ms = None if isinstance(moment, str) else time_ms(moment)
    if ts_ms is None:
        raise LineError("it has no time that can be read")
    return ts_ms, {**keys, "ts": ts_ms // 1000, "old_valid_until": ts_ms // 1000 + OLD_KEY_VALID_S}


# --- state ---------------------------------------------------------------------------------


def _state(capture: Capture, body: BinaryIO) -> Iterator[tuple[str, pa.Table]]:
    file, text = str(capture.request["file"]), body.read(_LONGEST_STATE_BYTES + 1)
    try:
        if len(text) > _LONGEST_STATE_BYTES:
            raise LineError(f"longer than {_LONGEST_STATE_BYTES} bytes")
        found = parse(text)
        if too_deep(found):
            raise LineError("it is nested too deep")
    except LineError as error:
        yield "quarantine", rows("quarantine", [_unreadable(capture, 1, 0, str(error), text)])
        yield _snapshot(capture, STATE, {"message": f"{file} cannot be read: {error}"}, "error")
    else:
        yield _snapshot(capture, STATE, {"file": file, "state": found})


# --- rows ----------------------------------------------------------------------------------


def _unreadable(
    capture: Capture, line: int, offset: int, reason: str, data: bytes
) -> dict[str, Json]:
    return {
        "source": capture.source,
        "query": capture.query,
        "file": str(capture.request["file"]),
        "line": line,
        "offset": offset,
        "reason": reason,
        "bytes": data[:QUARANTINED_BYTES],
    }


def _snapshot(
    capture: Capture, role: str, value: dict[str, Json], state: str = "ok"
) -> tuple[str, pa.Table]:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    snapshot = {
        "source": capture.source,
        "query": capture.query,
        "role": role,
        "ts": capture.asked_at,
        "generation": "",
        "state": state,
        "value": text.encode("utf-8", "replace").decode("utf-8"),
    }
    return "snapshots", rows("snapshots", [snapshot])
