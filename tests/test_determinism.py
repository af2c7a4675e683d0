"""The same sealed case says the same, byte for byte, wherever it lies; no machine shows through."""

from __future__ import annotations

import getpass
import platform
import re
import shutil
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLE, ROOT

from tbforensics.case import open_case
from tbforensics.publish import publish

STAMP = re.compile(r"Printed at \S+Z\.")
OUTPUTS = ("findings.json", "report.ipynb", "report.html")


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The example, assessed and printed in two projects."""
    homes = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("another-one")]
    for home in homes:
        folder = home / "incidents" / EXAMPLE.name
        shutil.copytree(EXAMPLE, folder)
        (folder / "findings.json").unlink()
        case = open_case(folder)
        case.record_findings()
        assert publish(case, home) == ""
        case.evidence.close()
    return homes[0] / "incidents" / EXAMPLE.name, homes[1] / "incidents" / EXAMPLE.name


def test_findings_are_the_same_bytes(twice: tuple[Path, Path]) -> None:
    first, second = ((case / "findings.json").read_bytes() for case in twice)
    assert first == second


def test_the_executed_notebook_is_the_same_bytes(twice: tuple[Path, Path]) -> None:
    first, second = ((case / "report.ipynb").read_text() for case in twice)
    assert first == second


def test_the_report_is_the_same_bytes_but_for_its_stamp(twice: tuple[Path, Path]) -> None:
    first, second = ((case / "report.html").read_text() for case in twice)
    assert len(STAMP.findall(first)) == 1
    assert STAMP.sub("", first) == STAMP.sub("", second)


@pytest.mark.parametrize("name", [*OUTPUTS, "manifest.json", "parameters.yaml", "custody.jsonl"])
def test_no_machine_shows_through(twice: tuple[Path, Path], name: str) -> None:
    home = twice[0].parent.parent
    words = [str(home), home.name, str(ROOT), sys.prefix, f"/{getpass.getuser()}/"]
    words += [node for node in [platform.node()] if len(node) > 5]  # "vm" is a word of many
    words += ['"input_path":', '"output_path":', '"start_time":', '"end_time":', "/site-packages/"]
    text = (twice[0] / name).read_text()
    assert [word for word in words if word in text] == []
