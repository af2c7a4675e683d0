"""Each node is counted once, however often it was told."""

from __future__ import annotations

import numpy as np
import pandas as pd
from made import START

from tbforensics.chain.nodes import by_node, one_of


def frame(*columns: tuple[dict[str, str], list[float]]) -> pd.DataFrame:
    """Columns with labels, several of which may be equal, as two spellings of one name are."""
    names = sorted({name for labels, _ in columns for name in labels})
    index = pd.date_range(START, periods=len(columns[0][1]), freq="15s", name="ts")
    keys = [tuple(labels.get(name, "") for name in names) for labels, _ in columns]
    table = pd.DataFrame(dict(enumerate(values for _, values in columns)), index=index)
    return table.set_axis(pd.MultiIndex.from_tuples(keys, names=names), axis=1)


A = {"source": "p", "job": "the_block", "instance": "node-a"}
B = {**A, "instance": "node-b"}


def test_values_of_one_label_stay_apart_and_other_labels_are_added() -> None:
    table = by_node(
        frame(
            ({**A, "reason": "limit", "lane": "x"}, [1.0, 2.0]),
            ({**A, "reason": "limit", "lane": "y"}, [10.0, 20.0]),
            ({**A, "reason": "other", "lane": "x"}, [5.0, 5.0]),
        ),
        "reason",
    )
    assert table["node-a", "limit"].tolist() == [11.0, 22.0]
    assert table["node-a", "other"].tolist() == [5.0, 5.0]


def test_a_node_that_exposes_both_generations_names_is_counted_once() -> None:
    table = by_node(frame((A, [1.0, 2.0]), (A, [1.0, 2.0])), "")
    assert table["node-a", ""].tolist() == [1.0, 2.0]


def test_a_name_that_changes_in_an_upgrade_goes_on_where_the_old_one_ended() -> None:
    table = by_node(frame((A, [1.0, np.nan]), (A, [np.nan, 2.0])), "")
    assert table["node-a", ""].tolist() == [1.0, 2.0]


def test_two_servers_that_scrape_one_node_fill_each_others_gaps() -> None:
    other = {**A, "source": "q"}
    table = by_node(frame((A, [1.0, np.nan, 3.0]), (other, [1.0, 2.0, np.nan])), "")
    assert table["node-a", ""].tolist() == [1.0, 2.0, 3.0]


def test_two_jobs_that_scrape_one_node_count_it_once() -> None:
    other = {**A, "job": "also"}
    table = by_node(frame((A, [1.0, 1.0]), (other, [1.0, 1.0])), "")
    assert table["node-a", ""].tolist() == [1.0, 1.0]


def test_seed_series_are_dropped() -> None:
    table = by_node(
        frame(({**A, "reason": "__"}, [0.0]), ({**A, "reason": "limit"}, [1.0])), "reason"
    )
    assert list(table.columns) == [("node-a", "limit")]


def test_nothing_seen_is_missing_and_not_zero() -> None:
    table = by_node(frame(({**A, "x": "1"}, [np.nan, 1.0]), ({**A, "x": "2"}, [np.nan, 1.0])), "")
    assert np.isnan(table["node-a", ""].iloc[0])
    assert table["node-a", ""].iloc[1] == 2.0


def test_one_value_of_a_label_by_node() -> None:
    table = by_node(frame(({**A, "type": "read"}, [1.0]), ({**B, "type": "cpu"}, [2.0])), "type")
    assert list(one_of(table, "read").columns) == ["node-a"]
    assert one_of(table, "storage").empty


def test_no_series_at_all_is_an_empty_table() -> None:
    none = frame((A, [1.0])).iloc[:, :0]
    assert by_node(none, "type").shape == (1, 0)
