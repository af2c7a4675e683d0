"""The logs source on files: whatever a folder holds, and nothing of the machine on record."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from standin_node import NodeState, StandInNode
from sweeping import FIRST, HOUR, LAST, TEN, Swept

from tbforensics.errors import ParametersError
from tbforensics.sources.logs import SOURCE, Options

Sweep = Callable[..., Swept]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    count = iter(range(100))

    def sweeping(url: str | None = None, **options: Any) -> Swept:
        return Swept(tmp_path / f"case-{next(count)}", Options(**options), url)

    yield sweeping


def stored(*seconds: int, message: str = "quic_connect_fail") -> list[dict[str, Any]]:
    return [{"timestamp": s, "level": "ERROR", "message": f"{message} {s}"} for s in seconds]


# --- files -------------------------------------------------------------------------------

LINE = b'{"timestamp":1773136800,"level":"warn","message":"%s"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "given" / "logs"
    folder.mkdir(parents=True)
    return folder


def test_a_file_is_archived_as_it_is_on_disk(sweep: Sweep, folder: Path) -> None:
    packed = gzip.compress(LINE % b"a")
    (folder / "app.log").write_bytes(packed)
    swept = sweep(path=str(folder / "app.log"))
    (kept,) = [c for c in swept.captures if c.role == "file"]
    assert swept.client.body(kept) == packed
    assert kept.request == {"file": "app.log"}
    assert [(r["file"], r["line"], r["message"]) for r in swept.lines] == [("app.log", 1, "a")]


def test_no_path_of_the_machine_is_on_record(sweep: Sweep, folder: Path) -> None:
    (folder / "a.log").write_bytes(LINE % b"a")
    (folder / "shut.log").write_bytes(LINE % b"b")
    (folder / "shut.log").chmod(0)
    for path in (folder, folder / "a.log", folder / "*.log", folder / "missing"):
        swept = sweep(path=str(path))
        assert str(folder.parent) not in swept.journal()
        assert str(folder.parent) not in json.dumps(swept.tables, default=str)


def test_a_hostile_folder_is_read_as_far_as_it_is_files(sweep: Sweep, folder: Path) -> None:
    (folder / "x.json").mkdir()
    (folder / "x.json" / "inner.jsonl").write_bytes(LINE % b"inner")
    (folder / "app.ndjson").write_bytes(LINE % b"app")
    (folder / "empty.log").touch()
    (folder / "bomb.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    (folder / "passwd.log").symlink_to("/etc/passwd")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.log")
    (folder / "new\nline <b>.log").write_bytes(LINE % b"odd name")
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.log")).write_bytes(LINE % b"latin name")
    swept = sweep(path=str(folder))
    assert {(r["file"], r["message"]) for r in swept.lines} == {
        ("app.ndjson", "app"),
        ("x.json/inner.jsonl", "inner"),
        ("new\nline <b>.log", "odd name"),
        (r"caf\xe9.log", "latin name"),
    }
    (listing,) = [r for r in swept.tables["snapshots"] if r["role"] == "listing"]
    why = {f["file"]: f["why_not_read"] for f in json.loads(listing["value"])["files"]}
    assert "symbolic link" in why["passwd.log"]
    assert "symbolic link" in why["loop"]
    assert why["pipe.log"] == "not a regular file"
    assert why["empty.log"] == ""
    assert {row["file"] for row in swept.bad} == {"bomb.gz"}
    assert swept.errors == []
    assert "root:" not in json.dumps(swept.tables, default=str)
    swept.journal().encode("utf-8")


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("*.log", {"a.log", "b.log"}),
        ("?.log", {"a.log", "b.log"}),
        ("[b-z].log", {"b.log"}),
        ("**/*.log", {"a.log", "b.log", "deep/er/c.log"}),
        ("deep/**", {"deep/er/c.log", "deep/er/d.txt"}),
        ("*/*/c.*", {"deep/er/c.log"}),
        ("*", {"a.log", "b.log", "app[1].txt"}),
    ],
)
def test_a_glob_chooses_files_and_names_them_from_where_it_starts(
    sweep: Sweep, folder: Path, glob: str, names: set[str]
) -> None:
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("a.log", "b.log", "deep/er/c.log", "deep/er/d.txt", "app[1].txt"):
        (folder / name).write_bytes(LINE % name.encode())
    swept = sweep(path=f"{folder}/{glob}")
    if glob.startswith("deep"):
        names = {name.removeprefix("deep/") for name in names}
    assert {line["file"] for line in swept.lines} == names


def test_a_name_that_looks_like_a_glob_and_exists_is_that_file(sweep: Sweep, folder: Path) -> None:
    (folder / "app[1].log").write_bytes(LINE % b"a")
    assert [r["file"] for r in sweep(path=f"{folder}/app[1].log").lines] == ["app[1].log"]


@pytest.mark.parametrize("what", ["missing", "*.nothing", "pipe", "empty"])
def test_nothing_to_read_is_on_record(sweep: Sweep, folder: Path, what: str) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    swept = sweep(path=str(folder / what))
    assert swept.errors == ["no file to read under `path`: see the listing"]


def test_neither_url_nor_path_is_on_record(sweep: Sweep) -> None:
    assert "neither" in sweep().errors[0]


def test_a_link_that_the_user_names_is_followed(sweep: Sweep, folder: Path) -> None:
    (folder / "2026.log").write_bytes(LINE % b"a")
    (folder / "current").symlink_to(folder / "2026.log")
    assert [r["file"] for r in sweep(path=str(folder / "current")).lines] == ["current"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is shut to root")
def test_a_file_that_may_not_be_read_does_not_stop_the_others(sweep: Sweep, folder: Path) -> None:
    (folder / "a.log").write_bytes(LINE % b"a")
    (folder / "b.log").write_bytes(LINE % b"b")
    (folder / "a.log").chmod(0)
    swept = sweep(path=str(folder))
    assert [r["message"] for r in swept.lines] == ["b"]
    assert "Permission denied" in swept.errors[0]


def test_a_file_that_grows_while_it_is_read_ends(sweep: Sweep, folder: Path) -> None:
    path = folder / "app.log"
    path.write_bytes(LINE % b"a" * 20_000)
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not stop.is_set():
                file.write(LINE % b"later" * 10)
                file.flush()
                stop.wait(0.001)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        swept = sweep(path=str(path))
    finally:
        stop.set()
        writer.join()
    numbers = [r["line"] for r in swept.lines]
    assert len(numbers) >= 20_000
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(swept.bad) <= 1  # a line that was being written


def test_dumps_of_the_aggregator_are_read_and_an_empty_one_still_says_when(
    sweep: Sweep, folder: Path
) -> None:
    row = {"id": 41, "timestamp": TEN, "level": "WARN", "message": "m", "correlation_id": "de"}
    name = "quic_handshake_fail_total_46WP_tS_deadbeef_1773136801.json"
    (folder / name).write_text(json.dumps([row, {**row, "id": 40}]))
    (folder / "quic_handshake_fail_total_p_c_1773136900.json").write_text("[]")
    swept = sweep(path=str(folder))
    assert [(r["id"], r["line"]) for r in swept.lines] == [(41, 1), (40, 2)]
    assert [told["dumped_at"] for told in swept.summaries] == [1773136801, 1773136900]


def test_times_without_a_zone_need_one_to_be_named(sweep: Sweep, folder: Path) -> None:
    (folder / "app.log").write_text("2026-03-10 11:30:00,000 - app - INFO - m\n")
    (bare,) = sweep(path=str(folder)).lines
    (named,) = sweep(path=str(folder), time_zone="Europe/Berlin").lines
    assert bare["ts"] is None
    assert named["ts"] == HOUR.start + timedelta(minutes=30)


@pytest.mark.parametrize(
    "wrong",
    [{"time_zone": "Mars/Olympus"}, {"time_zone": "../../etc/passwd"}, {"rows_per_page": 0}],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_asked(
    wrong: dict[str, Any],
) -> None:
    with pytest.raises(ParametersError, match=next(iter(wrong))):
        Options(**wrong)


def test_a_month_of_logs_gives_only_the_lines_of_the_incident(sweep: Sweep, folder: Path) -> None:
    days = range(TEN - 15 * 86400, TEN + 15 * 86400, 600)
    (folder / "app.log").write_bytes(
        b"".join(b'{"timestamp":%d,"message":"m"}\n' % second for second in days)
    )
    swept = sweep(path=str(folder))
    assert [round(r["ts"].timestamp()) for r in swept.lines] == [
        second for second in days if FIRST <= second <= LAST
    ]
    (told,) = swept.summaries
    assert told["rows"] == len(days)
    assert told["outside_window"] == len(days) - len(swept.lines)
    assert swept.bad == []


def test_url_and_path_are_both_read(sweep: Sweep, folder: Path) -> None:
    (folder / "a.log").write_bytes(LINE % b"of the file")
    with StandInNode(NodeState(logs=stored(TEN, message="of the node"))) as node:
        swept = sweep(node.url, path=str(folder))
    assert {r["file"] for r in swept.lines} == {"logs/search", "a.log"}


def test_the_same_bytes_give_the_same_rows(sweep: Sweep, folder: Path) -> None:
    (folder / "a.log").write_bytes(LINE % b"a" + b"\xff\n" + LINE % b"b")
    swept = sweep(path=str(folder))
    (capture,) = [c for c in swept.captures if c.role == "file"]
    body = swept.client.body(capture)
    once, twice = (list(SOURCE.parse(capture, io.BytesIO(body))) for _ in range(2))
    assert [(n, t.to_pylist()) for n, t in once] == [(n, t.to_pylist()) for n, t in twice]
