"""A frame's columns node by node, each node counted once however often it was told."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import pandas as pd

from tbforensics.frames import labelled
from tbforensics.model import Frames, Json, Window
from tbforensics.theblock import without_seeds

Cell = tuple[str, str]  # a node, and the value of one label


def by_node(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Columns (node, value of a label), added up over all other labels.

    A node that exposes one family in both generations' names, or that two servers or jobs
    scrape, is counted once: names may replace each other, scrapers fill each other's gaps.
    """
    told: dict[Cell, dict[Cell, dict[tuple[str, ...], list[pd.Series]]]] = {}
    for labels, column in labelled(without_seeds(table)):
        node = labels.get("instance") or labels.get("job") or labels["source"]
        scraper = labels["source"], labels.get("job", "")
        rest = tuple(v for name, v in sorted(labels.items()) if name not in ("source", "job"))
        cell = told.setdefault((node, labels.get(label, "") if label else ""), {})
        cell.setdefault(scraper, {}).setdefault(rest, []).append(column)
    columns: dict[Cell, pd.Series] = {}
    for name, scrapers in sorted(told.items()):
        totals = [
            pd.concat(
                [pd.concat(alike, axis=1).max(axis=1) for alike in series.values()], axis=1
            ).sum(axis=1, min_count=1)
            for _, series in sorted(scrapers.items())
        ]
        totals.sort(key=lambda series: -int(series.notna().sum()))
        columns[name] = reduce(pd.Series.combine_first, totals)
    return named_cells(
        pd.DataFrame(dict(enumerate(columns.values())), index=table.index), [*columns]
    )


def one_of(table: pd.DataFrame, value: str = "") -> pd.DataFrame:
    """The columns of `by_node` for one value of its label, by node alone."""
    cells = [cell for cell in table.columns if cell[1] == value]
    return table[cells].set_axis([node for node, _ in cells], axis=1)


def named_cells(table: pd.DataFrame, cells: Sequence[Cell]) -> pd.DataFrame:
    """The same columns under the names of cells, also when there are none."""
    names = pd.MultiIndex.from_tuples(cells, names=["node", "of"])
    return table.set_axis(names, axis=1)


def answers(frames: Frames, query: str) -> list[dict[str, Json]]:
    return [row for row in frames[query].to_dict("records") if row["state"] == "ok"]


def between(table: pd.DataFrame | pd.Series, window: Window) -> pd.DataFrame | pd.Series:
    return table[(table.index >= window.start) & (table.index < window.end)]
