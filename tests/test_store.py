"""The bulk of a case in an object store: the same case, proved, asked and handed over as any."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import object_store
import pytest
import s3fs
import time_machine
from click.testing import CliRunner
from collected import World, world
from dask_cluster import Cluster, rows_of
from test_signing import keygen

from tbforensics import build, cli, cluster, manifest, parameters, parcel, store
from tbforensics.case import open_case, prove
from tbforensics.collect import collect
from tbforensics.errors import EvidenceError, ParametersError, Unseen
from tbforensics.model import Capture, Incident

MAIN = "from tbforensics.cli import main; main()"
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def here() -> World:
    return world()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_store.serve() as url:
        yield url


@pytest.fixture(autouse=True)
def used(here: World, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of its own for each test, named in the environment."""
    url = f"{bucket}/{tmp_path.name}"
    monkeypatch.setenv(store.VARIABLE, url)
    return url


def named(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def failing(folder: Path, recompute: bool = True) -> list[str]:
    return [check.detail for check in prove(folder, recompute=recompute) if not check.holds]


def files(tmp_path: Path, **changed: Any) -> tuple[Incident, Path]:
    """An incident that asks a folder of logs only, and its project."""
    home = tmp_path / "home"
    for name in ("incidents", "dumps"):
        (home / name).mkdir(parents=True)
    line = {"timestamp": "2026-11-20T10:05:00Z", "level": "WARN", "message": "handshake failed"}
    (home / "dumps" / "node.jsonl").write_text(json.dumps(line) + "\n")
    given = {
        "incident_id": "files-1",
        "kind": "quic_failure",
        "start": "2026-11-20T10:00:00Z",
        "end": "2026-11-20T11:00:00Z",
        "sources": {"dumps": {"type": "logs", "path": "dumps"}},
    }
    return parameters.incident_from(given | changed), home


def object_of(folder: Path, path: str) -> Path:
    return store.place_of(folder) / path


# --- a case whose bulk is elsewhere ----------------------------------------------------------


def test_a_case_in_a_store_is_proved_printed_and_handed_over_like_any(
    tmp_path: Path, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident, home = files(tmp_path)
    given = home / "parameters" / "given.yaml"
    given.parent.mkdir()
    given.write_bytes(parameters.to_yaml(incident))
    run = [sys.executable, "-c", MAIN, "run", given]
    said = subprocess.run(run, capture_output=True, text=True, env=os.environ.copy())
    assert said.returncode == 3, said.stderr
    folder = home / "incidents" / incident.id
    assert named(folder) == [
        "custody.jsonl", "evidence.duckdb", "findings.json", "manifest.json", "parameters.yaml",
        "report.html", "report.ipynb", "store.json",
    ]  # fmt: skip
    assert str(store.place_of(folder)) == f"{used}/{folder.name}"
    assert failing(folder) == []
    for path in named(folder):
        for canary in object_store.KEYS.values():
            assert canary == "us-east-1" or canary.encode() not in (folder / path).read_bytes()

    case = open_case(folder)
    assert case.sql("SELECT message FROM log_lines")["message"].tolist() == ["handshake failed"]
    for path in (f"{used}/{folder.name}/raw/*", "/etc/passwd"):
        with pytest.raises(EvidenceError, match="file system operations are disabled"):
            case.sql("SELECT * FROM read_blob(?)", [path])
    case.evidence.close()

    parcel_file = tmp_path / "case.zip"
    parcel.export(folder, parcel_file)
    monkeypatch.delenv(store.VARIABLE)
    brought = parcel.unpack(parcel_file, tmp_path / "elsewhere")
    assert failing(brought) == [] and not (brought / store.FILE).exists()


def test_workers_that_share_a_store_give_the_rows_of_one_process_though_one_dies(
    here: World, tmp_path: Path
) -> None:
    dask = Cluster(tmp_path)
    try:
        dask.start(2)
        home = here.project(tmp_path / "home", case=False)
        with cluster.workers(dask.address, home) as pool:
            folder = collect(here.incident(), home, dask.losing_one([]), pool)
            assert not (folder / "raw").exists() and not (folder / "evidence").exists()
            case, alone = open_case(folder), open_case(here.case)
            each = "SELECT sid, count(*) AS n FROM part GROUP BY sid"
            whole = "SELECT sid, sum(n)::BIGINT AS n FROM parts GROUP BY sid ORDER BY sid"
            asked = [
                c.sql_by_part("samples", each, whole, p) for c, p in ((case, pool), (alone, None))
            ]
            assert asked[0].equals(asked[1])
        assert manifest.raw_replies(folder, case.manifest).holds
        assert rows_of(folder) == rows_of(here.case)
    finally:
        dask.stop()


def test_workers_that_do_not_see_the_store_are_refused(
    here: World, tmp_path: Path, used: str
) -> None:
    dask = Cluster(tmp_path)
    try:
        dask.start(1, AWS_ENDPOINT_URL=NOBODY)
        with pytest.raises(ParametersError) as caught:
            cluster.workers(dask.address, tmp_path).__enter__()
        with object_store.leading_to(NOBODY), pytest.raises(Unseen, match=f"store {used} cannot"):
            cluster.workers(dask.address, tmp_path).__enter__()
        assert any(f"does not see {used}" in problem for problem in caught.value.problems)
    finally:
        dask.stop()


# --- what is changed, lost or missing --------------------------------------------------------


def test_a_changed_and_a_lost_object_are_found(tmp_path: Path) -> None:
    incident, home = files(tmp_path)
    folder = collect(incident, home)
    (part, *_) = [path for path in manifest.part_paths(folder) if "log_lines" in path]
    reply, *_ = manifest.bulk_paths(folder, "raw")
    whole = object_of(folder, part).read_bytes()
    object_of(folder, part).write_bytes(whole[:-1] + b"x")
    assert any(f"{part} has SHA-256" in said for said in failing(folder))
    object_of(folder, part).write_bytes(whole)
    assert failing(folder) == []
    object_of(folder, "raw/stranger").write_bytes(b"x")
    assert any("raw/stranger is in no capture" in said for said in failing(folder))
    object_of(folder, "raw/stranger").unlink()
    body = object_of(folder, reply).read_bytes()
    object_of(folder, reply).unlink()
    assert any("is missing" in said for said in failing(folder))
    object_of(folder, reply).write_bytes(body)
    object_of(folder, part).unlink()
    build.rebuild(folder, incident)
    assert failing(folder) == []


def test_without_the_store_a_case_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident, home = files(tmp_path)
    folder = collect(incident, home)
    monkeypatch.delenv(store.VARIABLE)
    with pytest.raises(EvidenceError, match="in an object store, as files-1/") as caught:
        open_case(folder)
    assert f"export {store.VARIABLE}=" in caught.value.next_step


@pytest.mark.parametrize(
    "content",
    ['{"name": "../other"}', '{"name": "s3://theirs/x"}', '{"name": ""}', '{"name": 7}', "[]", "{",
     "[" * 100_000],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_a_case_cannot_lead_out_of_the_store(tmp_path: Path, content: str) -> None:
    incident, home = files(tmp_path)
    folder = collect(incident, home)
    (folder / store.FILE).write_text(content)
    with pytest.raises(EvidenceError, match=r"store.json of files-1 cannot be read"):
        open_case(folder)


@pytest.mark.parametrize("url", ["nothing://x", "evidence", "nothing::s3://x"])
def test_a_store_that_is_none_is_refused_in_words(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.VARIABLE, url)
    incident, home = files(tmp_path)
    with pytest.raises(ParametersError, match="names no store"):
        collect(incident, home)


def test_a_place_that_is_taken_is_not_written_to(tmp_path: Path) -> None:
    incident, home = files(tmp_path)
    collect(incident, home)
    shutil.rmtree(home / "incidents" / "files-1")
    with pytest.raises(EvidenceError, match="holds something already"):
        collect(incident, home)


def test_an_interrupted_collection_is_taken_up_where_it_was(tmp_path: Path) -> None:
    incident, home = files(tmp_path)

    def stop(capture: Capture) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(incident, home, stop)
    partial = home / "incidents" / ".files-1.collecting"
    kept = manifest.bulk_paths(partial, "raw")
    assert len(kept) == 1 and (partial / store.FILE).exists()
    folder = collect(incident, home)
    assert set(kept) < set(manifest.bulk_paths(folder, "raw")) and failing(folder) == []


def test_a_case_of_a_folder_stays_there(here: World, tmp_path: Path) -> None:
    home = here.project(tmp_path / "home")
    folder = home / "incidents" / here.case.name
    assert store.place_of(folder) == folder
    assert failing(folder, recompute=False) == []


# --- a store that does not answer, or refuses ------------------------------------------------


def ends(*words: object) -> tuple[int, str]:
    """The code of a command, and what it said at its end."""
    s3fs.S3FileSystem.clear_instance_cache()  # as in a process of its own
    said = CliRunner().invoke(cli.main, [str(word) for word in words])
    assert said.exception is None or isinstance(said.exception, SystemExit), said.exception
    assert not re.search("BROKEN|missing|changed|does not hold|Traceback", said.output)
    return said.exit_code, said.stderr


def test_a_command_says_that_the_store_cannot_be_used(tmp_path: Path, used: str) -> None:
    incident, home = files(tmp_path)
    folder, parcel_file = collect(incident, home), tmp_path / "case.zip"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    key = keygen(tmp_path, "alice")
    with object_store.leading_to(NOBODY):
        for words in (
            ("verify", folder),
            ("rebuild", folder),
            ("export", folder, parcel_file),
            ("sign", folder, "--key", key),
        ):
            code, said = ends(*words)
            assert code == 1 and said.startswith(f"the store {used} cannot be used: Endpoint"), said
            assert said.endswith("run this again; of the evidence this says nothing\n")
    assert kept == {path: path.read_bytes() for path in folder.iterdir()}
    assert not parcel_file.exists() and failing(folder) == []


def test_a_store_that_refuses_is_no_evidence_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incident, home = files(tmp_path)
    folder = collect(incident, home)
    with object_store.door() as door:
        door.left = 0
        for door.status in (403, 404, 503):
            assert ends("verify", folder)[0] == 1
            with pytest.raises(Unseen, match=r"Forbidden|Not Found|Service Unavailable"):
                open_case(folder)
    monkeypatch.setenv(store.VARIABLE, "s3://nobody/cases")
    assert "s3://nobody/cases cannot be used" in ends("verify", folder)[1]
    with pytest.raises(Unseen, match="The specified bucket does not exist"):
        open_case(folder)


def test_a_store_that_dies_on_the_way_leaves_no_word_about_the_evidence(tmp_path: Path) -> None:
    incident, home = files(tmp_path)
    folder = collect(incident, home)
    with object_store.door() as door:
        for command, left in (
            *(("verify", left) for left in (3, 15, 20)),  # replies, parts, views
            *(("rebuild", left) for left in (8, 20, 28)),  # replies, the old parts, the new ones
        ):
            door.left = left
            code, said = ends(command, folder)
            assert code == 1 and "cannot be used: PermissionError: Forbidden\n" in said
        door.left = float("inf")
        assert ends("rebuild", folder)[0] == 0
    assert failing(folder) == []


def test_a_store_that_dies_under_an_open_case_is_told_as_that(tmp_path: Path, used: str) -> None:
    incident, home = files(tmp_path)
    with time_machine.travel(2**31):  # what DuckDB read of an older file it does not ask for again
        folder = collect(incident, home)
    each, whole = "SELECT count(*) AS n FROM part", "SELECT sum(n)::BIGINT AS n FROM parts"
    with object_store.door() as door:
        case = open_case(folder)
        for left in (0, 1):  # DuckDB asks what there is, and then for it
            for ask in (
                lambda: case.sql("SELECT * FROM log_lines"),
                lambda: case.evidence.records("SELECT * FROM log_lines"),
                lambda: case.sql_by_part("log_lines", each, whole),
                lambda: case.body(case.manifest.captures[0]),
            ):
                door.left = left
                with pytest.raises(Unseen, match=f"^the store {used} cannot be used: Perm") as told:
                    ask()
                assert "Traceback" not in str(told.value)
        door.left = 99
        assert case.sql_by_part("log_lines", each, whole)["n"].tolist() == [1]
        with pytest.raises(EvidenceError, match="the evidence cannot answer that") as other:
            case.sql("SELECT nothing FROM log_lines")
        assert not isinstance(other.value, Unseen)
        case.evidence.close()


def test_a_reader_that_takes_a_dead_store_for_damage_is_not_believed(tmp_path: Path) -> None:
    incident, home = files(tmp_path)
    case = open_case(collect(incident, home))
    with object_store.door() as door:
        archive = open_case(case.folder).archive
        with pytest.raises(Unseen), archive.open(case.manifest.captures[0]) as body:
            door.left = 0
            with suppress(Exception):
                body.read()
    case.evidence.close()


def test_a_store_that_dies_under_a_collection_costs_nothing_and_the_next_run_goes_on(
    tmp_path: Path,
) -> None:
    incident, home = files(tmp_path)
    with object_store.door() as door:
        for left in (0, 3, 6, 9):
            door.left = left
            with pytest.raises(Unseen, match="cannot be used: PermissionError"):
                collect(incident, home)
            assert not (home / "incidents" / "files-1").exists()
    assert failing(collect(incident, home)) == []
