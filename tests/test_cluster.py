"""A real Dask scheduler with worker processes does what one process does, and outlives a worker."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from collected import World, world
from dask_cluster import Cluster, rows_of

from tbforensics import cluster, parameters
from tbforensics.case import open_case, prove
from tbforensics.collect import collect
from tbforensics.errors import ParametersError
from tbforensics.model import Capture


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        yield made
    finally:
        made.stop()


def home_of(folder: Path, here: World) -> Path:
    (folder / "incidents").mkdir(parents=True)
    shutil.copytree(here.home / "dumps", folder / "dumps")
    return folder


def test_a_cluster_that_cannot_do_the_work_is_told_before_anything_is_asked(
    dask: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(ParametersError, match="no Dask scheduler answers"):
        cluster.workers("tcp://127.0.0.1:1", tmp_path, 0.5).__enter__()
    with pytest.raises(ParametersError, match="has no workers"):
        cluster.workers(dask.address, tmp_path, 0.5).__enter__()


def test_workers_give_the_rows_of_one_process_though_one_of_them_dies(
    dask: Cluster, tmp_path: Path
) -> None:
    here = world()
    dask.start(2)
    home, seen = home_of(tmp_path / "home", here), list[Capture]()
    with cluster.workers(dask.address, home) as pool:
        folder = collect(here.incident(), home, dask.losing_one(seen), pool)
        assert dask.workers[0].wait(10) == -signal.SIGKILL
        assert [check for check in prove(folder, recompute=True) if not check.holds] == []
        assert rows_of(folder) == rows_of(here.case)
        case, alone = open_case(folder), open_case(here.case)
        assert len(seen) == len(case.manifest.captures) == len(alone.manifest.captures)
        assert not [c for c in case.manifest.captures if c.error and c.query == "up"]
        assert case.assessment.verdict is alone.assessment.verdict
        each = "SELECT sid, count(*) AS n FROM part GROUP BY sid"
        whole = "SELECT sid, sum(n)::BIGINT AS n FROM parts GROUP BY sid ORDER BY sid"
        found = case.sql_by_part("samples", each, whole, pool)
        assert found.equals(
            case.sql("SELECT sid, count(*) AS n FROM samples GROUP BY 1 ORDER BY 1")
        )
    left = [path.name for path in (home / "incidents").iterdir() if path != folder]
    assert left == [] and not (folder / ".making").exists()


def test_the_command_line_finds_the_scheduler_and_says_when_it_is_not_there(
    dask: Cluster, tmp_path: Path
) -> None:
    here = world()
    home = here.project(tmp_path / "home", case=False)
    given = home / "parameters" / "given.yaml"
    given.write_bytes(parameters.to_yaml(here.incident()))
    said = cli("collect", given, "--scheduler", "tcp://127.0.0.1:1x")
    assert said.returncode == 1 and "no Dask scheduler answers at" in said.stderr, said.stderr
    assert "Traceback" not in said.stderr
    assert list((home / "incidents").iterdir()) == []
    said = cli("collect", given, "--scheduler", dask.address)
    assert said.returncode == 0 and "confirmed" in said.stdout, said.stderr
    assert rows_of(home / "incidents" / here.case.name) == rows_of(here.case)


def cli(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from tbforensics.cli import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
