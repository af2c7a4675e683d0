"""The logs source: a node's log search swept page by page, and files of whatever kind."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from standin_node import NodeState, StandInNode

from tbforensics.archive import Archive
from tbforensics.errors import ParametersError
from tbforensics.model import Capture, Incident, SourceConfig, Window
from tbforensics.sources import logs
from tbforensics.sources.logs import SOURCE, Options
from tbforensics.wire import Client

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
TEN = 1_773_136_800  # 2026-03-10T10:00:00Z
HOUR = Window(datetime.fromtimestamp(TEN, UTC), datetime.fromtimestamp(TEN + 3600, UTC))
CALM = Window(HOUR.start - timedelta(hours=1), HOUR.start)
INCIDENT = Incident("x", "k", "", HOUR, CALM, 30.0, (), {}, (), "", "")
FIRST, LAST = TEN - 3600 - 300, TEN + 3600 - 1  # with the lead of five minutes
HASTY = replace(SOURCE.manners, requests_per_s=1000.0, ban_s=0.01, backoff_s=0.01, retries=1)
FIXTURES = Path(__file__).parent / "fixtures" / "the-block"


class Swept:
    """Captures of one collection and the rows that they gave."""

    def __init__(self, home: Path, options: Options, url: str | None = None) -> None:
        home.mkdir(exist_ok=True)
        config = SourceConfig("logs", "logs", url)
        self.client = Client(config, Archive(home), manners=HASTY, clock=lambda: NOW)
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.captures: list[Capture] = []
        for capture in SOURCE.fetch((), INCIDENT, options, self.client):
            self.captures.append(capture)
            if capture.usable:
                with self.client.archive.open(capture) as body:
                    for name, table in SOURCE.parse(capture, body):
                        self.tables.setdefault(name, []).extend(table.to_pylist())
        self.client.session.close()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.tables.get("log_lines", [])

    @property
    def bad(self) -> list[dict[str, Any]]:
        return self.tables.get("quarantine", [])

    @property
    def errors(self) -> list[str]:
        return [capture.error for capture in self.captures if capture.error]

    @property
    def summaries(self) -> list[dict[str, Any]]:
        rows = [r for r in self.tables.get("snapshots", []) if r["role"] == "summary"]
        return [json.loads(row["value"]) for row in rows]

    def journal(self) -> str:
        return json.dumps([capture.to_json() for capture in self.captures])


Sweep = Callable[..., Swept]


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    count = iter(range(100))

    def sweeping(url: str | None = None, **options: Any) -> Swept:
        return Swept(tmp_path / f"case-{next(count)}", Options(**options), url)

    yield sweeping


def stored(*seconds: int, message: str = "quic_connect_fail") -> list[dict[str, Any]]:
    return [{"timestamp": s, "level": "ERROR", "message": f"{message} {s}"} for s in seconds]


# --- a node ------------------------------------------------------------------------------


def test_the_sweep_asks_by_time_alone(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN))) as node:
        swept = sweep(node.url)
    ((path, query),) = node.asked
    assert path == "/logs/search"
    assert query == {"since": str(FIRST), "until": str(LAST), "limit": "5000"}
    assert [line["message"] for line in swept.lines] == [f"quic_connect_fail {TEN}"]
    assert {capture.query for capture in swept.captures} == {"log_lines"}
    assert "log_lines" in [query.name for query in SOURCE.always]


@pytest.mark.parametrize("generation", ["A", "B"])
def test_every_row_of_the_span_is_seen_once(sweep: Sweep, generation: str) -> None:
    seconds = [FIRST - 1, *range(FIRST, LAST + 1, 7), LAST, LAST + 1]
    with StandInNode(NodeState(logs=stored(*seconds)), generation) as node:
        swept = sweep(node.url, rows_per_page=100)
    wanted = [s for s in seconds if FIRST <= s <= LAST]
    got = [round(line["ts"].timestamp()) for line in swept.lines]
    assert sorted(got) == sorted(wanted)
    assert len({line["id"] for line in swept.lines}) == len(wanted)
    assert len(swept.captures) > 10
    first = min(line["id"] for line in swept.lines)
    assert first == (2 if generation == "A" else 1)  # the row before it is out of the span


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(FIRST, FIRST + 12), min_size=0, max_size=60),
    st.integers(1, 9),
    st.sampled_from("AB"),
)
def test_bursts_and_page_edges_lose_nothing_and_repeat_nothing(
    tmp_path_factory: pytest.TempPathFactory, seconds: list[int], page: int, generation: str
) -> None:
    with StandInNode(NodeState(logs=stored(*seconds)), generation, tokens_per_s=1e6) as node:
        swept = Swept(tmp_path_factory.mktemp("case"), Options(rows_per_page=page), node.url)
    got = [round(line["ts"].timestamp()) for line in swept.lines]
    assert sorted(got) == sorted(seconds)
    assert len({line["id"] for line in swept.lines}) == len(seconds)


def test_more_rows_in_a_second_than_a_page_are_asked_for_with_a_longer_page(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN - 1, *[TEN] * 50, TEN + 1))) as node:
        swept = sweep(node.url, rows_per_page=10)
    limits = [int(query["limit"]) for _, query in node.asked]
    assert max(limits) > 50
    assert len(swept.lines) == 52


def test_a_second_that_no_page_can_hold_is_kept_as_far_as_it_came(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_MOST_ROWS", 8)
    with StandInNode(NodeState(logs=stored(TEN - 1, *[TEN] * 50))) as node:
        swept = sweep(node.url, rows_per_page=4)
    assert len(swept.lines) == 8 + 1


def test_a_node_that_does_not_keep_to_the_bounds_is_left_alone(sweep: Sweep) -> None:
    class Deaf(StandInNode):
        def search(self, query: dict[str, str]) -> tuple[int, Any]:
            return super().search({"limit": query["limit"]})

    with Deaf(NodeState(logs=stored(*range(TEN + 3600, TEN + 9999)))) as node:
        swept = sweep(node.url, rows_per_page=10)
    assert len(node.asked) == 1
    assert "does not keep to" in swept.errors[0]


def test_an_empty_store_is_an_answer(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=[])) as node:
        swept = sweep(node.url)
    assert (swept.lines, swept.bad, swept.errors) == ([], [], [])
    assert swept.summaries[0]["rows"] == 0


@pytest.mark.parametrize("status", [404, 500])
def test_a_failing_search_is_on_record(sweep: Sweep, status: int) -> None:
    with StandInNode(NodeState(logs=[]), search_status=status) as node:
        swept = sweep(node.url)
    (capture,) = swept.captures
    assert (capture.status, capture.usable, capture.sha256 is not None) == (status, False, True)


def test_a_refused_host_is_on_record_until_the_option_names_it(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=stored(TEN)), allowed_hosts=("node.internal",)) as node:
        assert sweep(node.url).captures[0].status == 403
        assert len(sweep(node.url, host="node.internal").lines) == 1


def test_a_ban_is_on_record(sweep: Sweep) -> None:
    with StandInNode(NodeState(logs=[]), tokens_per_s=0.0) as node:
        swept = sweep(node.url)
    assert swept.captures[0].status == 429


@pytest.mark.parametrize("generation", ["A", "B"])
def test_another_store_is_asked_only_when_told_and_may_be_made_on_the_spot(
    sweep: Sweep, generation: str
) -> None:
    with StandInNode(NodeState(logs=stored(TEN)), generation) as node:
        swept = sweep(node.url, db="/var/lib/elsewhere")
    assert node.asked[0][1]["db"] == "/var/lib/elsewhere"
    assert swept.lines == []
    assert swept.captures[0].status == (404 if generation == "A" else 200)


# --- encrypted stores --------------------------------------------------------------------

PASSPHRASE = "correct horse & 12"


@pytest.mark.parametrize("way", ["file", "environment"])
def test_a_passphrase_opens_the_messages_and_is_written_nowhere(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "file":
        (tmp_path / "phrase").write_text(PASSPHRASE + "\n")
        option = {"passphrase_file": str(tmp_path / "phrase")}
    else:
        monkeypatch.setenv("LOG_PASSPHRASE", PASSPHRASE)
        option = {"passphrase_env": "LOG_PASSPHRASE"}
    with StandInNode(NodeState(logs=stored(TEN), log_passphrase=PASSPHRASE)) as node:
        swept = sweep(node.url, **option)
    assert [line["message"] for line in swept.lines] == [f"quic_connect_fail {TEN}"]
    kept = swept.journal() + "".join(
        path.read_text(errors="replace") for path in tmp_path.glob("case-*/captures.jsonl")
    )
    assert "***" in kept
    assert not {"correct horse", "correct+horse", "correct%20horse"} & {
        text for text in ("correct horse", "correct+horse", "correct%20horse") if text in kept
    }


def test_rows_that_stay_shut_are_counted(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_PASSPHRASE", "wrong")
    with StandInNode(NodeState(logs=stored(TEN, TEN + 1), log_passphrase=PASSPHRASE)) as node:
        none, wrong = sweep(node.url), sweep(node.url, passphrase_env="LOG_PASSPHRASE")
    assert (none.summaries[0]["encrypted"], none.summaries[0]["decrypt_failed"]) == (2, 0)
    assert (wrong.summaries[0]["encrypted"], wrong.summaries[0]["decrypt_failed"]) == (0, 2)
    assert [line["message"] for line in wrong.lines] == ["<decrypt-failed>"] * 2


@pytest.mark.parametrize(
    "option", [{"passphrase_file": "/no/such/file"}, {"passphrase_env": "NOT_SET_ANYWHERE"}]
)
def test_a_passphrase_that_is_missing_is_on_record_and_the_sweep_goes_on(
    sweep: Sweep, option: dict[str, str]
) -> None:
    with StandInNode(NodeState(logs=stored(TEN), log_passphrase=PASSPHRASE)) as node:
        swept = sweep(node.url, **option)
    assert "asked without" in swept.errors[0]
    assert [line["message"] for line in swept.lines] == ["<encrypted>"]


# --- recorded replies --------------------------------------------------------------------


def parsed(body: bytes, limit: int = 5000) -> dict[str, list[dict[str, Any]]]:
    capture = Capture(
        "logs", "log_lines", "search", {"params": {"limit": limit}}, NOW, status=200, sha256="0"
    )
    out: dict[str, list[dict[str, Any]]] = {}
    for name, table in SOURCE.parse(capture, io.BytesIO(body)):
        out.setdefault(name, []).extend(table.to_pylist())
    return out


def test_a_recorded_reply_is_read() -> None:
    lines = parsed((FIXTURES / "search.json").read_bytes())["log_lines"]
    assert [line["id"] for line in lines] == list(range(15, 4, -1))
    assert lines[1]["correlation_id"] is None  # the store writes "" for none
    assert lines[0]["peer"] == "07" * 32
    assert lines[0]["block"] == 115
    assert [line["line"] for line in lines] == list(range(1, 12))


def test_a_recorded_reply_of_an_encrypted_store_is_counted() -> None:
    (row,) = parsed((FIXTURES / "search-encrypted.json").read_bytes())["snapshots"]
    told = json.loads(row["value"])
    assert (told["rows"], told["encrypted"], told["decrypt_failed"]) == (5, 3, 2)


@pytest.mark.parametrize(
    "body", [b"", b"<html>502</html>", b'{"error":"log query failed"}', b"null", b"\xff\xfe"]
)
def test_a_reply_that_is_no_array_is_quarantined_whole(body: bytes) -> None:
    found = parsed(body)
    assert [row["bytes"] for row in found["quarantine"]] == [body]
    assert "log_lines" not in found


def test_one_bad_row_in_a_reply_is_alone() -> None:
    body = b'[{"id":2,"timestamp":1773136801,"level":"WARN","message":"a"},7,' + (
        b'{"id":1,"timestamp":"soon","message":"b"},{"id":0,"timestamp":1773136800,"message":"c"}]'
    )
    found = parsed(body)
    assert [line["message"] for line in found["log_lines"]] == ["a", "c"]
    assert [row["line"] for row in found["quarantine"]] == [2, 3]


def test_a_reply_that_was_cut_keeps_its_whole_rows() -> None:
    body = (FIXTURES / "search.json").read_bytes()
    found = parsed(body[:1000])
    assert len(found["log_lines"]) == 5
    assert len(found["quarantine"]) == 1


@given(st.binary(max_size=200))
def test_no_reply_at_all_raises(body: bytes) -> None:
    parsed(body)
    parsed(b'[{"id":1},' + body)


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
