"""What many tests share: a clean environment, a copy of the sealed example, a made-up case."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tbforensics.case import Case, open_case

ROOT = Path(__file__).parent.parent
# A file is tested by one process; what takes longest goes first, so that none ends alone.
LONGEST = (
    "test_torture", "test_notebooks", "test_redact", "test_publish", "test_batch", "test_kernel",
    "test_subsidy_spike", "test_collect", "test_cluster", "test_store", "test_case",
)  # fmt: skip
EXAMPLE = ROOT / "incidents" / "example-quic-failure"

# Whoever starts the tests in the background has them, and what they start, deaf to Ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy, token or kit variable of the machine decides a test."""
    for name in list(os.environ):
        if name.startswith("TBFORENSICS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A copy of the bundled example that a test may spoil."""
    folder = tmp_path / "incidents" / EXAMPLE.name
    shutil.copytree(EXAMPLE, folder)
    return folder


@pytest.fixture(scope="session")
def example() -> Iterator[Case]:
    """The bundled example itself, read-only."""
    case = open_case(EXAMPLE)
    yield case
    case.evidence.close()
