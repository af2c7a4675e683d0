from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import START, at

from tbforensics.analysis.logmatch import match_logs, templates

STEP = 30


def counts(**columns: list[float]) -> pd.DataFrame:
    length = len(next(iter(columns.values())))
    index = pd.date_range(START, periods=length, freq=f"{STEP}s", name="ts")
    return pd.DataFrame(columns, index=index, dtype=float)


def lines(*rows: tuple[float | None, str | None, str]) -> pd.DataFrame:
    """(seconds after START, peer, message)"""
    return pd.DataFrame(
        {
            "ts": pd.to_datetime([None if s is None else at(s) for s, _, _ in rows], utc=True),
            "peer": pd.Series([peer for _, peer, _ in rows], dtype=object),
            "message": [message for _, _, message in rows],
            "correlation_id": pd.Series(["" for _ in rows], dtype=object),
        }
    )


def test_numbers_hex_and_base58_are_the_variable_part_of_a_message() -> None:
    texts = [
        "match #15 took 3.5 ms",
        "match #16 took 0.25 ms",
        "peer 25303b46515c67727d88939ea9b4bfca failed",
        "peer 949faab5c0cbd6e1ecf7020d18232e39 failed",
    ]
    found = templates(pd.Series(texts))
    assert found.iloc[0] == found.iloc[1] == "match #<*> took <*> ms"
    assert found.iloc[2] == found.iloc[3] == "peer <*> failed"


def test_words_that_differ_in_one_place_share_a_template() -> None:
    found = templates(pd.Series([f"receipt insert failed: disk {word}" for word in "abcdef"]))
    assert found.nunique() == 1


@given(st.lists(st.text(max_size=40) | st.none(), max_size=15), st.randoms())
def test_the_order_of_lines_does_not_change_a_template(texts: list[Any], random: Any) -> None:
    series = pd.Series(texts, dtype=object)
    shuffled = list(series.index)
    random.shuffle(shuffled)
    assert templates(series).equals(templates(series.loc[shuffled]).loc[series.index])


def test_a_line_explains_the_counts_of_its_own_key_only() -> None:
    found = match_logs(
        counts(p=[0, 8, 0, 0], q=[0, 0, 0, 2]), lines((40, "p", "bad"), (41, "r", "bad")),
        key="peer", step_s=STEP, near_s=0,
    )  # fmt: skip
    assert found.share == pytest.approx(0.8)
    assert found.matches[0].keys == 2


def test_near_reaches_from_a_step_to_a_line_beside_it() -> None:
    data = counts(p=[0, 5, 0, 0])
    late = lines((75, "p", "bad"))
    assert match_logs(data, late, key="peer", step_s=STEP, near_s=10).share == 0
    assert match_logs(data, late, key="peer", step_s=STEP, near_s=16).share == 1


def test_lines_without_a_key_explain_by_time_alone() -> None:
    found = match_logs(
        counts(p=[0, 5, 0]), lines((40, None, "bad")), key="peer", step_s=STEP, near_s=0
    )
    assert (found.share, found.share_by_time) == (0.0, 1.0)


def test_lines_without_a_time_match_nothing() -> None:
    found = match_logs(
        counts(p=[5.0]), lines((None, "p", "bad")), key="peer", step_s=STEP, near_s=60
    )
    assert found.share == 0 and found.matches == ()


def test_the_template_that_explains_most_comes_first() -> None:
    found = match_logs(
        counts(p=[1, 9, 0, 0]), lines((5, "p", "small"), (40, "p", "big thing")),
        key="peer", step_s=STEP, near_s=0,
    )  # fmt: skip
    assert [match.template for match in found.matches] == ["big thing", "small"]
    assert [match.share for match in found.matches] == pytest.approx([0.9, 0.1])


def test_a_message_that_comes_with_the_counts_correlates_and_leads() -> None:
    said = lines(*[(s, "p", "bad") for s in (95, 100, 125, 130, 131)])
    (match,) = match_logs(
        counts(p=[0, 0, 0, 2, 3, 0]), said, key="peer", step_s=STEP, near_s=0
    ).matches
    assert match.correlation > 0.9 and match.lead_s == -5


def test_nothing_counted_or_nothing_said_explains_nothing() -> None:
    assert (
        match_logs(
            counts(p=[0.0, 0.0]), lines((5, "p", "x")), key="peer", step_s=STEP, near_s=9
        ).share
        == 0
    )
    assert match_logs(counts(p=[1.0]), lines(), key="peer", step_s=STEP, near_s=9).matches == ()


def test_odd_messages_do_not_stop_it() -> None:
    odd = lines((1, "p", "\x1b[31m\u202e</script>" * 500), (2, "p", ""), (3, "p", "x" * 10**6))
    assert match_logs(counts(p=[3.0]), odd, key="peer", step_s=STEP, near_s=0).share == 1
