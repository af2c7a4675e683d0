"""A TSDB that was handed over: asked on a copy, the same as a live server, and nothing escapes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import prometheus_server
import pytest
from handed import Handed
from prometheus_server import openmetrics
from test_promjson import bits

from tbforensics.errors import ParametersError
from tbforensics.model import Query, Shape, Window
from tbforensics.reading import tsdbcopies
from tbforensics.reading.tsdbcopies import NoCopy, copy
from tbforensics.sources.tsdb import SOURCE, Options

T0 = 1_757_498_400_000  # months ago: a server with its usual retention would drop it
WINDOW = Window(
    datetime.fromtimestamp(T0 / 1000, UTC), datetime.fromtimestamp(T0 / 1000 + 3600, UTC)
)
SAMPLES = [(T0 + 15_000 * n + 7, 1.1 * n) for n in range(200)]
HISTORY = {
    "up": {'job="node",instance="a"': [(ms, 1.0) for ms, _ in SAMPLES]},
    "settled_total": {'job="node",instance="a"': SAMPLES},
}
QUERY = Query("settled", "prometheus", "settled_total", shape=Shape.COUNTER)
ULID = "01HZX3QWJ5Q2C4V7T8N9M0KRSB"

real = pytest.mark.skipif(not prometheus_server.installed(), reason="no prometheus here")


@pytest.fixture(scope="module")
def handed_over(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "history.om").write_text(openmetrics(HISTORY))
    subprocess.run(
        ["promtool", "tsdb", "create-blocks-from", "openmetrics", "history.om", "data"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    (folder / "data" / "lock").touch()
    with tarfile.open(folder / "data.tar.gz", "w:gz") as tar:
        tar.add(folder / "data", "backup/data")
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def children() -> set[tuple[str, str]]:
    """Number and name of each process that this one started; other tests may keep a server."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "stat").read_text()
            if text.rpartition(")")[2].split()[1] == str(os.getpid()):
                found.add((process.name, text.partition("(")[2].partition(")")[0]))
        except OSError:
            continue
    return found


@real
@pytest.mark.parametrize("name", ["data", "data.tar.gz"])
def test_it_gives_what_was_loaded_and_stays_as_it_is(
    handed_over: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before, running = hashes(handed_over), children()
    given_ = Handed(
        tmp_path / "case",
        SOURCE,
        Options(str(handed_over / name)),
        window=WINDOW,
        queries=[QUERY],
    )
    assert given_.errors == []
    (series,) = [r for r in given_.tables["series"] if r["query"] == "settled"]
    rows = [r for r in given_.tables["samples"] if r["sid"] == series["sid"]]
    got = [(round(r["ts"].timestamp() * 1000), bits(r["value"])) for r in rows]
    assert sorted(got) == [(ms, bits(value)) for ms, value in SAMPLES]
    assert hashes(handed_over) == before
    assert list((tmp_path / "scratch").iterdir()) == []
    assert not {name for _, name in children() - running} & {"prometheus"}
    (origin,) = given_.said("origin")
    if name == "data":
        told = {file["file"]: file["sha256"] for file in origin["files"]}
        assert told == {n: h for n, h in hashes(handed_over / "data").items() if n != "lock"}
    else:
        assert origin["sha256"] == before[name]
    assert {c.query for c in given_.captures} >= {"origin", "buildinfo", "settled", "up"}
    assert not {c.query for c in given_.captures} & {"flags", "rules", "alerts", "targets"}
    urls = {str(c.request.get("url", "")) for c in given_.captures}
    assert all(url.startswith("http://tsdb/") for url in urls - {""})
    assert str(tmp_path) not in given_.everything()


@real
def test_a_second_collection_asks_the_same_and_is_given_the_same(
    handed_over: Path, tmp_path: Path
) -> None:
    first, again = (
        Handed(
            tmp_path / f"case-{n}",
            SOURCE,
            Options(str(handed_over / "data")),
            window=WINDOW,
            queries=[QUERY],
        )
        for n in range(2)
    )
    one, two = ([c.to_json() for c in given_.captures] for given_ in (first, again))
    assert one == two


@real
def test_a_damaged_block_is_said(handed_over: Path, tmp_path: Path) -> None:
    shutil.copytree(handed_over / "data", tmp_path / "data")
    for meta in (tmp_path / "data").rglob("meta.json"):
        meta.write_text("{")
    for index in (tmp_path / "data").rglob("index"):
        index.write_bytes(b"\0" * 40)
    given_ = Handed(
        tmp_path / "case",
        SOURCE,
        Options(str(tmp_path / "data")),
        window=WINDOW,
        queries=[QUERY],
    )
    settled = [c for c in given_.captures if c.query == "settled"]
    assert not given_.tables.get("samples")
    assert settled
    assert str(tmp_path) not in given_.everything()


@real
def test_a_server_that_does_not_start_is_said_for_every_query(
    handed_over: Path, tmp_path: Path
) -> None:
    binary = tmp_path / "not-prometheus"
    binary.write_text("#!/bin/sh\necho 'err: no such flag' $PWD; exit 2\n")
    binary.chmod(0o755)
    options = Options(str(handed_over / "data"), binary=str(binary))
    given_ = Handed(tmp_path / "case", SOURCE, options, window=WINDOW, queries=[QUERY])
    assert "Prometheus does not start: err: no such flag ." in given_.errors[0]
    assert given_.errors[1].startswith("not asked: Prometheus does not start")
    assert [c.query for c in given_.captures] == ["origin", "origin", "settled"]


def test_no_prometheus_here_is_said(tmp_path: Path) -> None:
    (tmp_path / "data" / "wal").mkdir(parents=True)
    (tmp_path / "data" / "wal" / "00000000").touch()
    options = Options(str(tmp_path / "data"), binary="no-such-prometheus")
    given_ = Handed(tmp_path / "case", SOURCE, options, window=WINDOW, queries=[QUERY])
    assert "no Prometheus here" in given_.errors[0]


def test_options_are_those_of_prometheus() -> None:
    with pytest.raises(ParametersError, match="slice_hours"):
        Options("data", slice_hours=0)


# --- what is handed over -------------------------------------------------------------------


def tarball(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def plain(name: str, data: bytes = b"{}") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, b""


BLOCK = plain(f"data/{ULID}/meta.json")


def test_nothing_leaves_the_copy(tmp_path: Path) -> None:
    path = tarball(
        tmp_path / "x.tar.gz",
        BLOCK,
        plain("../slip"),
        plain("data/../../slip"),
        special("data/link", tarfile.SYMTYPE, "/etc"),
        plain("data/link/slip"),
        special("data/hard", tarfile.LNKTYPE, "/etc/passwd"),
        special("data/device", tarfile.CHRTYPE),
        special("data/pipe", tarfile.FIFOTYPE),
        plain("data/lock"),
        plain(f"data/{ULID}/meta.json/deeper"),
    )
    to = tmp_path / "deep" / "copy"
    to.mkdir(parents=True)
    root, origin = copy(str(path), to)
    assert root == to / "data"
    there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if not p.is_dir()}
    assert there == {
        "x.tar.gz",
        f"deep/copy/data/{ULID}/meta.json",
        "deep/copy/data/link/slip",
    }
    assert not (to / "data" / "link").is_symlink()
    assert {item["file"] for item in origin.left_out} == {
        *("../slip", "data/../../slip", "data/link", "data/hard", "data/device", "data/pipe"),
        f"data/{ULID}/meta.json/deeper",
    }
    assert origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    json.dumps(origin.left_out)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ((), "no TSDB"),
        ((plain("readme.txt"),), "no TSDB"),
        ((plain(f"a/{ULID}/meta.json"), plain(f"b/{ULID}/meta.json")), "more than one"),
    ],
)
def test_a_tarball_without_one_tsdb_is_said(tmp_path: Path, members: tuple, why: str) -> None:  # type: ignore[type-arg]
    (tmp_path / "copy").mkdir()
    with pytest.raises(NoCopy, match=why):
        copy(str(tarball(tmp_path / "x.tar.gz", *members)), tmp_path / "copy")


def test_bombs_are_refused_before_they_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copy").mkdir()
    big = tarball(tmp_path / "big.tar.gz", BLOCK, plain("data/big", bytes(3 << 20)))
    header = tarball(tmp_path / "header.tar.gz", plain("x" * 3_000_000))
    many = tarball(tmp_path / "many.tar.gz", BLOCK, *(plain(f"{n}") for n in range(20)))
    with pytest.raises(NoCopy, match="a header of"):
        copy(str(header), tmp_path / "copy")
    monkeypatch.setattr(tsdbcopies, "MOST_FILES", 10)
    with pytest.raises(NoCopy, match="more than 10 entries"):
        copy(str(many), tmp_path / "copy")
    monkeypatch.setattr(tsdbcopies, "_room", lambda to: 1 << 20)
    with pytest.raises(NoCopy, match="no room"):
        copy(str(big), tmp_path / "copy")


def test_what_is_cut_short_or_no_tarball_is_said(tmp_path: Path) -> None:
    body = tarball(tmp_path / "x.tar.gz", BLOCK, plain("data/big", os.urandom(9_000))).read_bytes()
    for number, text in enumerate((body[: len(body) // 2], b"", b"plain words", body[:-4])):
        (tmp_path / f"copy-{number}").mkdir()
        (tmp_path / "cut").write_bytes(text)
        if number < 3:
            with pytest.raises(NoCopy, match=r"cannot be read|no TSDB"):
                copy(str(tmp_path / "cut"), tmp_path / f"copy-{number}")
    with pytest.raises(NoCopy, match="no such file"):
        copy(str(tmp_path / "missing"), tmp_path)


def test_links_in_a_folder_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "data" / ULID).mkdir(parents=True)
    (tmp_path / "data" / ULID / "meta.json").write_text("{}")
    (tmp_path / "data" / "link").symlink_to("/etc/passwd")
    (tmp_path / "copy").mkdir()
    root, origin = copy(str(tmp_path / "data"), tmp_path / "copy")
    assert [p.name for p in root.iterdir()] == [ULID]
    assert origin.left_out[0]["file"] == "link"
