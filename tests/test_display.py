"""Fragments: nothing in them hides, nothing in them runs, every number leads to its bytes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pandas as pd
import pytest

from tbforensics import display
from tbforensics.model import (
    Assessment,
    Capture,
    Coverage,
    Doubt,
    Finding,
    Moment,
    Query,
    Verdict,
    Window,
)

START = datetime(2026, 3, 10, 10, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
SHA = "0123456789abcdef" * 4
HOSTILE = "</td><script>alert(1)</script>\x1b[31m\u202egnp.exe\x00"


def capture(**changed: object) -> Capture:
    known = {
        "source": "prometheus",
        "query": "settlements",
        "role": "samples",
        "request": {"method": "GET", "params": {"query": "settlements_total"}},
        "asked_at": START,
        "window": WINDOW,
        "status": 200,
        "sha256": SHA,
        "bytes": 12345,
    }
    return Capture(**{**known, **changed})


def finding(**changed: object) -> Finding:
    known = {
        "id": "stall",
        "claim": "No settlement landed",
        "value": 300.0,
        "unit": "s",
        "window": WINDOW,
        "threshold": 120.0,
        "cites": ("settlements",),
        "decides": True,
    }
    return Finding(**{**known, **changed})


def assessment(verdict: Verdict, *findings: Finding, reasons: tuple[str, ...] = ()) -> Assessment:
    return Assessment(verdict, reasons, findings, (), ())


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def every_fragment(text: str) -> list[display.Shown]:
    """Each fragment with `text` wherever text can come from outside."""
    query = Query(text, "prometheus", text, why=text)
    moment = Moment(START, text, text, text, 2.0)
    bad = finding(id=text, claim=text, cites=(text,), caution=text, unit=text, rows=({text: text},))
    reply = capture(source=text, query=text, request={text: text}, error=text, sha256=text)
    lines = pd.DataFrame({"ts": [START], "level": [text], "message": [text], "fields": [{}]})
    return [
        display.verdict(assessment(Verdict.CONFIRMED, reasons=(text,))),
        display.coverage(
            [Coverage(text, text, 0.5, text, True, text)], [Doubt(text, text, WINDOW, "", (text,))]
        ),
        display.findings([bad], {text: [reply]}, {text: query}),
        display.timeline([moment]),
        display.timing([{text: text, "after_onset_s": 125.0}]),
        display.unknowns([text]),
        display.provenance([reply]),
        display.log_lines(lines),
    ]


@pytest.mark.parametrize("i", range(8))
def test_hostile_text_is_shown_and_never_obeyed(i):
    shown = every_fragment(HOSTILE)[i]
    assert "script" not in Tags(shown.html).names
    for output in (shown.html, repr(shown)):
        assert not set("\x1b\x00\u202e") & set(output)
        assert "\\x1b[31m\\u202egnp.exe\\x00" in output


@pytest.mark.parametrize("i", range(8))
def test_every_fragment_is_well_formed_and_the_same_twice(i):
    once, again = every_fragment("a & b")[i], every_fragment("a & b")[i]
    tags = Tags(once.html)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert (once.html, once.text) == (again.html, again.text)


def test_a_megabyte_is_cut_and_says_by_how_much():
    cut = display.visible("x" * 1_000_000, limit=80)
    assert cut == "x" * 80 + "… (999,920 more characters)"
    assert all(len(shown.html) < 40_000 for shown in every_fragment("x" * 1_000_000))


def test_a_lone_surrogate_can_be_written_to_a_file():
    assert display.visible("a\ud800b").encode() == b"a\\ud800b"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain ünïcode 漢字 🐝", "plain ünïcode 漢字 🐝"),
        ("line\nbreak\tand\r", "line\\nbreak\\tand\\r"),
        ("\u200bzero\ufeffwidth", "\\u200bzero\\ufeffwidth"),
        ("\U000e0041tag", "\\U000e0041tag"),
        ("\u2066iso\u2069", "\\u2066iso\\u2069"),
        ("\x9b31m", "\\x9b31m"),
    ],
)
def test_what_hides_is_shown_and_the_rest_is_left_alone(text, seen):
    assert display.visible(text) == seen


def test_a_finding_leads_to_its_query_its_window_and_the_hash_of_its_capture():
    query = Query("settlements", "prometheus", "settlements_total{pool='b'}")
    shown = display.findings(
        assessment(Verdict.CONFIRMED, finding(rows=({"node": "bee-0", "settled": 0},))),
        {"settlements": [capture()]},
        {"settlements": query},
    )
    assert 'id="finding-stall"' in shown.html
    assert f'href="#capture-{SHA}"' in shown.html
    for part in (SHA, "settlements_total{pool=&#39;b&#39;}", "bee-0", "300 s", "threshold 120 s"):
        assert part in shown.html
    assert "decides" in repr(shown) and "bee-0" in repr(shown)


def test_the_same_bytes_twice_have_one_anchor():
    shown = display.provenance([capture(), capture(query="again")])
    assert Tags(shown.html).ids == [f"capture-{SHA}"]


@pytest.mark.parametrize("verdict", Verdict)
def test_a_verdict_is_said_in_a_word_and_not_by_colour_alone(verdict):
    shown = display.verdict(assessment(verdict))
    assert str(verdict).capitalize() in shown.html
    assert str(verdict).capitalize() in repr(shown)
    assert f"tbf-{verdict}" in shown.html


def test_a_share_that_is_not_whole_is_never_shown_as_a_hundred():
    shown = display.coverage([Coverage("q", "s", 0.9999, "partial")])
    assert "99.9 %" in shown.html
    assert "0.1 %" in display.coverage([Coverage("q", "s", 0.0001, "partial")]).html
    assert "100 %" in display.coverage([Coverage("q", "s", 1.0, "covered")]).html


def test_nothing_to_show_is_said_in_words():
    empty = [
        display.coverage([]),
        display.findings([]),
        display.timeline([]),
        display.timing([]),
        display.unknowns([]),
        display.provenance([]),
        display.log_lines(pd.DataFrame({"ts": [], "message": []})),
    ]
    assert all(shown.text.strip() and "<p" in shown.html for shown in empty)


def test_long_logs_are_cut_and_the_rest_is_counted():
    frame = pd.DataFrame({"ts": [START] * 500, "message": ["m"] * 500, "line": [3.0] * 500})
    shown = display.log_lines(frame, limit=10)
    assert shown.html.count("<tr>") == 11
    assert "490 more" in shown.html and "490 more" in shown.text
    assert "3.0" not in shown.text


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (1234567.0, "bytes", "1,234,567 bytes"),
        (0.1234567, "1", "0.1235"),
        (0.99176, "share of the rise", "99.2 % of the rise"),
        (1234.5678, "s", "1,234.57 s"),
        (float("nan"), "s", "not a number s"),
        (10**18, "wei", "1,000,000,000,000,000,000 wei"),
        (-0.5, "", "-0.5"),
    ],
)
def test_numbers_read_well(value, unit, words):
    assert display.number(value, unit) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (59.9999, "1 min 00 s"), (125, "2 min 05 s"), (3720, "1 h 02 min"),
     (-12, "-12 s"), (float("nan"), "unknown")],
)  # fmt: skip
def test_durations_read_well(seconds, words):
    assert display.duration(seconds) == words


def test_ten_thousand_captures_are_counted_and_not_all_shown():
    many = [capture(sha256=f"{i:064x}") for i in range(10_000)]
    shown = display.provenance(many)
    assert "9,500 more" in shown.html and "9,500 more" in shown.text
    found = display.findings([finding()], {"settlements": many})
    assert found.html.count('class="tbf-sha"') == display.CITED_LIMIT and "9,980 more" in found.html
