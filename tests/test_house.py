"""The order of the rooms is the architecture: a room imports only rooms named before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tbforensics import plugins

PACKAGE = Path(__file__).parent.parent / "tbforensics"
ROOMS = [
    # words
    *("errors", "plainyaml", "model"),
    # instruments: arithmetic, and the protocol of The-Block
    *("analysis", "theblock", "pseudonyms"),
    # instruments: keeping and asking
    *("objects", "store", "archive", "credentials", "replay", "incoming", "wire", "manifest"),
    "evidence",
    # instruments: from samples to frames, from expressions to values, from bytes to rows
    *("frames", "quality", "promql", "reading"),
    # instruments: what frames mean to those who know the deployment, and what its alerts said
    *("chain", "trading", "alerts"),
    # instruments: showing
    *("report_page", "charts", "display"),
    # plugs, and what they ask with
    *("asking", "sources", "kinds"),
    # desk
    *("plugins", "parameters", "scaffold"),
    # work
    *("ordering", "assess", "cluster", "build", "collect", "case", "signing", "parcel"),
    # front
    *("kernel", "report", "publish", "redact", "batch", "cli"),
]
DOORS = {  # each outside library enters by one door, or by the few that are named
    "adbc_driver_manager": {"reading"},
    "adbc_driver_sqlite": {"reading"},
    "duckdb": {"evidence"},
    "requests": {"wire", "incoming", "credentials", "replay", "asking"},
    "prometheus_pandas": {"asking"},
    "yaml": {"plainyaml", "parameters", "scaffold"},
    "promql_parser": {"promql"},
    "pydantic": {"redact", "parameters", "credentials", "scaffold"},
    "altair": {"charts", "report_page"},
    "papermill": {"report"},
    "nbconvert": {"report", "report_page"},
    "click": {"cli"},
    "distributed": {"cluster"},
    "zstandard": {"archive", "reading", "redact"},
    "cryptography": {"reading", "signing"},
    "securesystemslib": {"signing", "parcel"},
    "websockets": {"reading"},
    "pyrage": {"reading", "redact"},
    "google": {"reading"},
    "google_crc32c": {"reading"},
    "cramjam": {"reading"},
    "upath": {"store"},
    "fsspec": {"objects"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    inside = path.relative_to(PACKAGE).parts
    return inside[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms_of(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names if name.startswith("tbforensics.")]
    return {part[1] for part in parts} & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_named_before_it(path: Path) -> None:
    if path == PACKAGE / "__init__.py":
        return  # the front door shows what lies behind it
    own = room(path)
    assert own in ROOMS, f"give the room {own} a place in the order"
    late = rooms_of(imported(path)) - {*ROOMS[: ROOMS.index(own)], own}
    assert not late, f"{own} may not import {sorted(late)}"


@pytest.mark.parametrize("folder", ["kinds", "sources"])
def test_no_plug_imports_a_sibling(folder: str) -> None:
    for path in (PACKAGE / folder).glob("*.py"):
        siblings = {n for n in imported(path) if n.startswith(f"tbforensics.{folder}.")}
        siblings -= {n for n in siblings if n.split(".")[2][:1].isupper()}  # names, not files
        if path.name == "tsdb.py":  # it starts a Prometheus, and asks it as any other is asked
            siblings.discard("tbforensics.sources.prometheus")
        assert not siblings, f"{path.name} imports {sorted(siblings)}"


@pytest.mark.parametrize("library", sorted(DOORS))
def test_an_outside_library_enters_by_its_door(library: str) -> None:
    users = {
        room(path)
        for path in FILES
        if any(name.split(".")[0] == library for name in imported(path))
    }
    assert users <= DOORS[library], f"{library} is used in {sorted(users - DOORS[library])}"


def test_kinds_meet_no_store_no_network_and_no_plots() -> None:
    shut = {"duckdb", "requests", "altair", "pyarrow", "nbformat"}
    for path in (PACKAGE / "kinds").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & shut, path.name
        assert not rooms_of(imported(path)) & {"evidence", "wire", "charts", "archive"}, path.name


@pytest.mark.parametrize("kind", plugins.kind_names())
def test_a_kind_has_its_notebook_its_example_and_its_tests(kind: str) -> None:
    root = PACKAGE.parent
    dashed = kind.replace("_", "-")
    for path in (
        root / "notebooks" / f"{kind}.ipynb",
        root / "parameters" / f"{kind}.example.yaml",
        root / "incidents" / f"example-{dashed}" / "manifest.json",
        root / "examples" / f"{kind}.py",
        root / "tests" / f"test_{kind}.py",
    ):
        assert path.exists(), f"{kind} lacks {path.relative_to(root)}"


@pytest.mark.parametrize("kind", plugins.kind_names())
def test_a_kind_says_what_it_asks_and_what_it_needs(kind: str) -> None:
    loaded = plugins.load_kind(kind)
    names = [query.name for query in loaded.queries]
    assert len(names) == len(set(names))
    assert any(query.required for query in loaded.queries)
    for query in loaded.queries:
        assert query.why, f"{query.name} does not say why it is asked"
        assert set(query.witnesses) <= set(names)
        assert query.source in plugins.source_names()


def test_no_path_of_a_machine_and_nothing_outside_the_project_is_named() -> None:
    root = PACKAGE.parent
    words = ("/work/", "/root/", "../shared", "/home/")
    folders = ("tbforensics", "tests", "examples", "benchmarks", "notebooks", "parameters", "docs")
    for folder in (*folders, "deploy"):
        for path in {*(root / folder).rglob("*")} - {Path(__file__)}:
            if path.is_file() and path.suffix in (".py", ".md", ".ipynb", ".yaml", ".sh", ".json"):
                text = path.read_text(encoding="utf-8", errors="replace")
                assert not [word for word in words if word in text], path.relative_to(root)
