"""Parts made while more is asked for are the parts made of everything at the end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from collected import World, world

from tbforensics import build, manifest
from tbforensics.case import Case, open_case
from tbforensics.model import Capture


@pytest.fixture(scope="module")
def sealed() -> Case:
    here: World = world()
    return open_case(here.case)


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "JOB_BYTES", 1)


def parts(folder: Path) -> dict[str, str]:
    return {path: manifest.sha256_of(folder / path) for path in manifest.part_paths(folder)}


def at_once(folder: Path, sealed: Case) -> dict[str, str]:
    folder.mkdir()
    build.build(folder, sealed.incident, sealed.manifest.captures, replies_of=sealed.folder)
    return parts(folder)


def mixed(captures: list[Capture]) -> list[Capture]:
    random.Random(7).shuffle(captures)
    return captures


def answered_twice(captures: list[Capture]) -> list[Capture]:
    """First what is no answer to what was asked, as of an attempt that was not the last."""
    other = next(c for c in captures if c.source == "dumps").sha256
    return [*(replace(c, sha256=other) for c in captures if c.source == "prometheus"), *captures]


@pytest.mark.parametrize("come", [list, mixed, answered_twice])
def test_whatever_order_answers_come_in_the_parts_are_those_of_all_together(
    sealed: Case, tmp_path: Path, come: Callable[[list[Capture]], list[Capture]]
) -> None:
    wanted = at_once(tmp_path / "wanted", sealed)
    assert any(".0002.parquet" in name for name in wanted), "nothing is cut: the test shows nothing"
    folder = tmp_path / "found"
    folder.mkdir()
    captures = [*sealed.manifest.captures]
    with build.making(folder, sealed.incident, replies_of=sealed.folder) as making:
        for capture in come([*captures]):
            making.add(capture)
        making.finish(captures)
    assert parts(folder) == wanted
    assert not (folder / ".making").exists()


def test_a_part_is_there_before_the_last_answer_comes(sealed: Case, tmp_path: Path) -> None:
    captures = [*sealed.manifest.captures]
    with build.making(tmp_path, sealed.incident, replies_of=sealed.folder) as making:
        for capture in captures[:-1]:
            making.add(capture)
        soon = time.monotonic() + 20
        while not [*tmp_path.glob("evidence/samples/*.parquet")]:
            assert time.monotonic() < soon, "no part before the end"
            time.sleep(0.02)
        making.finish(captures)


def test_who_gives_up_leaves_no_part_in_the_making(sealed: Case, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: SIM117
        with build.making(tmp_path, sealed.incident, replies_of=sealed.folder) as making:
            for capture in sealed.manifest.captures:
                making.add(capture)
            raise KeyboardInterrupt
    assert [*(tmp_path / ".making").glob("*")] == []
