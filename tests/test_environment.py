"""One list of what is needed, told in three places that agree; and nothing that is used unnamed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
CONDA_NAMES = {"python-duckdb": "duckdb"}
FOR_CONDA = {"python", "pip", "nbval"}  # nbval: `make test` is pip's; conda users check notebooks


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def split(text: str) -> tuple[str, str]:
    """`pandas >=3.0` as ("pandas", ">=3.0")."""
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([<>=!~].*)?", text.strip())
    assert found, text
    return normal(found[1]), (found[2] or "").replace(" ", "")


NEEDED = dict(map(split, PROJECT["dependencies"]))
EXTRAS = PROJECT["optional-dependencies"]
FOR_CLUSTERS = dict(map(split, [*EXTRAS["cluster"], *EXTRAS["s3"]]))
FOR_TESTS = {**dict(map(split, EXTRAS["test"])), **FOR_CLUSTERS}


def conda() -> dict[str, str]:
    flat = [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict)]
    both = dict(split(line) for line in [*flat, *pip] if not line.startswith("--"))
    return {CONDA_NAMES.get(name, name): bound for name, bound in both.items()}


def pinned() -> dict[str, str]:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    return {normal(line.partition("==")[0]): line.partition("==")[2] for line in lines}


def test_conda_installs_what_pip_installs_with_the_same_bounds() -> None:
    found = conda()
    assert {n: b for n, b in found.items() if n not in FOR_CONDA} == NEEDED
    assert found["python"] == PROJECT["requires-python"]


def test_conda_installs_the_project_itself_from_where_it_lies() -> None:
    (pip,) = [line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict)]
    assert "--editable ." in pip


def test_the_lock_pins_every_dependency_within_its_bounds() -> None:
    found = pinned()
    for name, bound in {**NEEDED, **FOR_TESTS}.items():
        assert name in found, f"{name} is not locked: make lock"
        version = re.match(r"[0-9.]+", found[name])
        least = re.match(r">=([0-9.]+)", bound)
        if least:
            assert version and numbers(version[0]) >= numbers(least[1]), f"{name}: make lock"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.strip(".").split("."))


def test_every_line_of_the_lock_is_one_exact_version() -> None:
    for line in LOCK.splitlines():
        if line and not line.lstrip().startswith("#"):
            assert re.match(r"[a-z0-9._-]+(\[[a-z,]+\])?==[0-9][^\s;]*( ; .+)?$", line), line


@pytest.mark.parametrize("name", ["environment.yml", "requirements.lock", "pyproject.toml"])
def test_no_registry_is_named(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "://" not in text and "index-url" not in text and "find-links" not in text


def imported(folder: Path) -> set[str]:
    """Top names of everything that is imported below a folder."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize(("folder", "declared"), [
    ("tbforensics", {**NEEDED, **FOR_CLUSTERS}), ("tests", {**NEEDED, **FOR_TESTS}),
    ("examples", {**NEEDED, **FOR_TESTS}),
])  # fmt: skip
def test_whatever_is_imported_is_declared(folder: str, declared: dict[str, str]) -> None:
    own = {path.stem for path in (ROOT / "tests").rglob("*.py")}
    own |= {path.name for path in ROOT.iterdir() if path.is_dir()}
    own |= {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()}
    packages = metadata.packages_distributions()
    for name in sorted(imported(ROOT / folder) - own - set(sys.stdlib_module_names)):
        homes = {normal(home) for home in packages.get(name, [])}
        assert homes & set(declared), f"{folder} imports {name} from {homes or 'nowhere'}"


def test_whatever_is_declared_is_used() -> None:
    packages = metadata.packages_distributions()
    used = {
        normal(home) for name in imported(ROOT / "tbforensics") for home in packages.get(name, [])
    }
    unused = set(NEEDED) - used
    # Programs and back ends that others load by name; each is here for a reason in pyproject.toml.
    assert unused <= {"jupyterlab", "ipykernel", "pytz", "bcrypt", "anywidget",
                      "vl-convert-python", "platformdirs"}  # fmt: skip


def test_the_python_that_runs_this_is_one_that_is_supported() -> None:
    least = numbers(PROJECT["requires-python"].removeprefix(">="))
    assert sys.version_info[: len(least)] >= least
    assert 'target-version = "py311"' in (ROOT / "pyproject.toml").read_text()
