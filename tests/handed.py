"""One collection of any source on what a deployment handed over, with the rows that it gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tbforensics.archive import Archive
from tbforensics.model import Capture, Incident, Query, SourceConfig, Window
from tbforensics.wire import Client

FIXTURES = Path(__file__).parent / "fixtures" / "the-block" / "handed-over"
POSTED = 1_795_226_260  # when the recorded peers were last updated
HOUR = Window(datetime.fromtimestamp(POSTED - 600, UTC), datetime.fromtimestamp(POSTED + 600, UTC))
NOW = HOUR.end + timedelta(hours=1)
EXPORT_PASSPHRASE = "export pass 1"
EXPORT_KEY = "b09c362c4de1cf448a7713fd2d6fd5bccd6d66c043461ba082389a7e89988a69"
LOG_PASSPHRASE = "correct horse 12"


def incident(window: Window = HOUR) -> Incident:
    calm = Window(window.start - timedelta(hours=1), window.start)
    return Incident("x", "k", "", window, calm, 30.0, (), {}, (), "", "")


class Handed:
    """Captures of one collection and their rows, as `collect` would make them."""

    def __init__(
        self,
        home: Path,
        source: Any,
        options: Any,
        url: str | None = None,
        window: Window = HOUR,
        queries: Sequence[Query] = (),
    ) -> None:
        home.mkdir(exist_ok=True)
        self.home = home
        manners = replace(
            source.manners, requests_per_s=1000.0, ban_s=0.01, backoff_s=0.01, retries=1
        )
        self.client = Client(
            SourceConfig("it", "it", url), Archive(home), manners=manners, clock=lambda: NOW
        )
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.captures: list[Capture] = list(
            source.fetch(queries, incident(window), options, self.client)
        )
        for capture in self.captures:
            if capture.usable:
                with self.client.archive.open(capture) as body:
                    for name, table in source.parse(capture, body):
                        self.tables.setdefault(name, []).extend(table.to_pylist())
        self.client.session.close()

    @property
    def errors(self) -> list[str]:
        return [capture.error for capture in self.captures if capture.error]

    @property
    def bad(self) -> list[dict[str, Any]]:
        return self.tables.get("quarantine", [])

    @property
    def lines(self) -> list[dict[str, Any]]:
        return self.tables.get("log_lines", [])

    @property
    def records(self) -> list[dict[str, Any]]:
        rows = self.tables.get("records", [])
        return [{**row, "value": json.loads(row["value"])} for row in rows]

    def said(self, role: str) -> list[dict[str, Any]]:
        rows = [row for row in self.tables.get("snapshots", []) if row["role"] == role]
        return [json.loads(row["value"]) for row in rows]

    def everything(self) -> str:
        """All that is written down of it: the journal, and every row."""
        journal = "".join(p.read_text() for p in self.home.glob("captures.jsonl"))
        captures = json.dumps([capture.to_json() for capture in self.captures])
        return journal + captures + json.dumps(self.tables, default=str)
