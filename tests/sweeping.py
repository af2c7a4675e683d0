"""One collection of the logs source, with what it gave, for its tests."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tbforensics.archive import Archive
from tbforensics.model import Capture, Incident, SourceConfig, Window
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
