from __future__ import annotations

import pytest

from tbforensics import plainyaml


def test_what_people_write_is_read() -> None:
    found = plainyaml.read("a: {b: [1, two, 3.5]}\nc: null")
    assert found == {"a": {"b": [1, "two", 3.5]}, "c": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: 1\na: 2", "stands twice"),
        ("[a]: 1", "not a word"),
        ("a: " + "[" * 5000, "nested deeper than 64"),
        ("{a: " * 65 + "1" + "}" * 65, "nested deeper than 64"),
        ("- " * 5000, "recursion"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: 2026-99-99", "month must be"),
        (b"\xff\xff", "unacceptable character"),
    ],
)
def test_what_nobody_writes_is_refused_in_words(text: str | bytes, said: str) -> None:
    with pytest.raises(plainyaml.NotPlain, match=said):
        plainyaml.read(text)
