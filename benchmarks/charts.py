"""Charts of very many points in a report: its size, and how soon it can be read and pointed at.

    python -m benchmarks.charts --size B --rounds 5

`made` is what it takes to draw the charts in the notebook, pictures included. `first` and `all` are
from the navigation until the first chart, and every one, is live in a real Chromium, by its own
clock; until then a picture stands in its place. `pointed at` is from the pointer's move over the
first chart to the tooltip. `every point` is a chart without any thinning; ten points are what a
page costs at least.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

from benchmarks.sidebyside import table
from tbforensics import charts, report
from tbforensics.model import Window
from tbforensics.report_page import rows
from tbforensics.report_page.quick import without_slow_grammar

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import Page, chromium

with without_slow_grammar():
    from nbformat.v4 import new_code_cell, new_notebook, new_output

START = datetime(2026, 3, 10, 10, tzinfo=UTC)
HEAD = ("charts", "made s", "report MB", "first s", "all s", "pointed at s")
LIMITS = ("POINTS_LIMIT", "ROWS_LIMIT", "POINTED_LIMIT")
WATCH = """
new MutationObserver(() => {
  if (document.querySelector("canvas")) window.firstAt ??= performance.now();
  if (document.documentElement?.dataset.charts) window.allAt ??= performance.now();
}).observe(document, {
  childList: true, subtree: true, attributes: true, attributeFilter: ["data-charts"],
});
"""


@dataclass(frozen=True)
class Shape:
    """A report of `charts` charts, each of `series` times `points`."""

    series: int
    points: int
    charts: int = 1
    thinned: bool = True

    def __str__(self) -> str:
        plain = "" if self.thinned else ", every point"
        many = f"{self.charts} charts of " if self.charts > 1 else ""
        return f"{many}{self.series} x {self.points:,}{plain}"


SIZES = {
    "S": [Shape(1, 10), Shape(1, 20_000), Shape(1, 20_000, thinned=False)],
    "B": [
        *(Shape(1, 10), Shape(1, 120_000), Shape(12, 10_000), Shape(100, 1_200)),
        *(Shape(12, 120_000), Shape(1, 15_000, charts=8), Shape(1, 20_000, thinned=False)),
    ],
}


def frame(shape: Shape) -> pd.DataFrame:
    random = np.random.default_rng(shape.series)
    walks = random.normal(size=(shape.points, shape.series)).cumsum(axis=0)
    index = pd.date_range(START, periods=shape.points, freq="1s")
    return pd.DataFrame(walks, index=index, columns=[f"s{n:03}" for n in range(shape.series)])


def written(shape: Shape, path: Path) -> float:
    """Write the report; the seconds that its charts took."""
    charts.enable()
    drawn = frame(shape)
    begun = time.perf_counter()
    limits = {name: getattr(rows, name) for name in LIMITS}
    with patch.multiple(rows, **(limits if shape.thinned else dict.fromkeys(LIMITS, sys.maxsize))):
        bundles = [
            charts.line(drawn, unit="s", title=str(shape))._repr_mimebundle_()
            for _ in range(shape.charts)
        ]
    made_s = time.perf_counter() - begun
    outputs = [new_output("display_data", data=bundle) for bundle in bundles]
    cells = [new_code_cell("show()", outputs=[output], execution_count=1) for output in outputs]
    window = Window(START, START + timedelta(days=1))
    header = report.Header(
        "Charts", "charts", "none", window, None, None, (), "", "", "0", rendered_at=START
    )
    path.write_text(report.render(new_notebook(cells=cells), header), encoding="utf-8")
    return made_s


def opened(page: Page, path: Path) -> tuple[float, float, float]:
    """Seconds until the first chart is live, until all are, and from the pointer to the tooltip."""
    page.forget()
    page.open(path)
    page.wait("!!window.allAt", timeout_s=120)
    first_s, all_s = page.run("[window.firstAt / 1000, window.allAt / 1000]")
    page.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    box = page.run("(({x, y, width, height}) => ({x, y, width, height}))"
                   "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
    begun = time.perf_counter()
    for step in range(2):
        page.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    page.wait("!!document.querySelector('#vg-tooltip-element.visible')", timeout_s=120)
    pointed_s = time.perf_counter() - begun
    assert page.complaints == [], page.complaints
    return first_s, all_s, pointed_s


def row(shape: Shape, path: Path, made_s: float, times: Sequence[tuple[float, ...]]) -> list:
    medians = (statistics.median(column) for column in zip(*times, strict=True))
    return [str(shape), made_s, path.stat().st_size / 1e6, *medians]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="charts-") as temporary, chromium() as page:
        page.look()
        page.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        paths = {shape: Path(temporary, f"{n}.html") for n, shape in enumerate(SIZES[given.size])}
        made = {shape: written(shape, path) for shape, path in paths.items()}
        times: dict[Shape, list[tuple[float, ...]]] = {shape: [] for shape in paths}
        for _ in range(given.rounds):
            for shape, path in paths.items():
                times[shape].append(opened(page, path))
        lines = [row(shape, path, made[shape], times[shape]) for shape, path in paths.items()]
        print(table(HEAD, lines))


if __name__ == "__main__":
    main()
