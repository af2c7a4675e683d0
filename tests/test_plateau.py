"""What was due and did not come: spells found by Page's sum, and their edges."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.analysis.plateau import plateaus

NAN = float("nan")


def flat(*parts: tuple[float, int]) -> np.ndarray:
    return np.concatenate([np.full(length, value) for value, length in parts])


def test_a_plateau_is_found_with_its_first_and_last_row() -> None:
    (spell,) = plateaus(flat((2, 30), (0, 20), (2, 30)), flat((2, 80)))
    assert (spell.first, spell.last) == (30, 49)
    assert (spell.due, spell.came, spell.missing) == (40, 0, 40)


def test_a_spell_began_after_the_last_that_came_and_before_three_were_due() -> None:
    came = flat((1, 9), (0, 31))
    (spell,) = plateaus(came, flat((1, 40)), missing=10)
    assert (spell.before, spell.first, spell.after) == (8, 9, None)
    assert spell.sure == 11  # the third that was due and did not come


def test_nothing_due_is_no_plateau_however_long() -> None:
    assert plateaus(flat((2, 30), (0, 500)), flat((2, 30), (0, 500))) == []


def test_a_near_miss_is_none_and_one_more_missing_is_one() -> None:
    due = flat((1, 60))
    assert plateaus(flat((1, 30), (0, 9), (1, 21)), due, missing=10) == []
    assert len(plateaus(flat((1, 30), (0, 10), (1, 20)), due, missing=10)) == 1


def test_a_trickle_below_the_share_is_a_plateau_and_above_it_is_not() -> None:
    trickle = flat((4, 30), (0, 60), (4, 30))
    trickle[35:90:14] = 4  # 16 of 240
    (spell,) = plateaus(trickle, flat((4, 120)))
    assert spell.came == 16
    assert plateaus(flat((4, 30), (1, 60), (4, 30)), flat((4, 120))) == []


def test_two_plateaus_are_two() -> None:
    came = flat((3, 20), (0, 15), (3, 40), (0, 15), (3, 20))
    spells = plateaus(came, flat((3, 110)))
    assert [(spell.first, spell.last) for spell in spells] == [(20, 34), (75, 89)]


def test_unseen_rows_neither_end_a_spell_nor_count() -> None:
    came = flat((2, 20), (0, 10), (NAN, 10), (0, 10), (2, 20))
    due = flat((2, 70))
    (spell,) = plateaus(came, due)
    assert (spell.first, spell.last, spell.due) == (20, 49, 40)


def test_what_was_never_seen_is_no_plateau() -> None:
    assert plateaus(flat((NAN, 50)), flat((2, 50))) == []
    assert plateaus(np.array([]), np.array([])) == []


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        plateaus(flat((1, 3)), flat((1, 4)))
    with pytest.raises(ValueError, match="share"):
        plateaus(flat((1, 3)), flat((1, 3)), share=1.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=80))
def test_every_spell_misses_what_it_says_and_spells_do_not_overlap(
    rows: list[tuple[int, int]],
) -> None:
    came, due = (np.array([row[i] for row in rows], dtype=float) for i in (0, 1))
    spells = plateaus(came, due, missing=5)
    for spell in spells:
        inside = slice(spell.first, spell.last + 1)
        assert spell.due == due[inside].sum() and spell.came == came[inside].sum()
        assert spell.missing >= 5 and spell.came <= 0.1 * spell.due
        assert spell.before <= spell.first <= spell.sure <= spell.last
    assert all(one.last < two.first for one, two in pairwise(spells))


def test_chance_makes_no_plateau_of_what_comes_as_due() -> None:
    rng = np.random.default_rng(1)
    found = [plateaus(rng.poisson(0.5, 2000).astype(float), np.full(2000, 0.5)) for _ in range(50)]
    assert sum(map(len, found)) <= 5  # of 50,000 due; about two and a half are to be expected
