"""Matchers put into selectors, slices on an absolute grid, and exact times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.promql import text as promql

JOB = 'job="x"'
RESTRICTED = {
    "m": 'm{job="x"}',
    "m{}": 'm{job="x"}',
    'm{a="b"}': 'm{a="b",job="x"}',
    'm{ a="b" , }': 'm{a="b",job="x"}',
    '{__name__=~"a|b"}': '{__name__=~"a|b",job="x"}',
    "m {a='}'}": "m{a='}',job=\"x\"}",
    'm{a="{\\"}"}': 'm{a="{\\"}",job="x"}',
    "a:b:rate5m[5m] offset 1h": 'a:b:rate5m{job="x"}[5m] offset 1h',
    "m @ start()": 'm{job="x"} @ start()',
    "rate(m[1m])": 'rate(m{job="x"}[1m])',
    "sum by (m) (m)": 'sum by (m) (m{job="x"})',
    "sum(m) without(a, b)": 'sum(m{job="x"}) without(a, b)',
    "a / on(b) group_left(c) d": 'a{job="x"} / on(b) group_left(c) d{job="x"}',
    "a * ignoring (b) group_right d": 'a{job="x"} * ignoring (b) group_right d{job="x"}',
    "a and b or c unless d": 'a{job="x"} and b{job="x"} or c{job="x"} unless d{job="x"}',
    "a > bool 1e3 + 0x1F": 'a{job="x"} > bool 1e3 + 0x1F',
    "a % Inf - NaN": 'a{job="x"} % Inf - NaN',
    "and_total + by_total": 'and_total{job="x"} + by_total{job="x"}',
    "max_over_time(rate(m[5m])[1h:1m])": 'max_over_time(rate(m{job="x"}[5m])[1h:1m])',
    'label_replace(m, "a", "$1", "b", "(.*)")': (
        'label_replace(m{job="x"}, "a", "$1", "b", "(.*)")'
    ),
    'quantile(0.9, m{a="`"})': 'quantile(0.9, m{a="`",job="x"})',
    "histogram_quantile(.5, sum by (le) (rate(b_bucket[1m])))": (
        'histogram_quantile(.5, sum by (le) (rate(b_bucket{job="x"}[1m])))'
    ),
}


@pytest.mark.parametrize("text", RESTRICTED)
def test_every_selector_and_nothing_else_is_restricted(text):
    assert promql.with_matchers(text, JOB) == RESTRICTED[text]


@pytest.mark.parametrize("text", ['job="x"', ' a =~ "b|c" , d!=`e`,', "a!~'x'", 'a="}"'])
def test_label_matchers(text):
    assert promql.is_matchers(text)


@pytest.mark.parametrize("text", ["", "job", "job=x", 'job="x"}', '{job="x"}', 'a="b" or c="d"'])
def test_what_is_no_list_of_label_matchers(text):
    assert not promql.is_matchers(text)


@given(st.integers(-(10**13), 10**13), st.integers(1, 10**7), st.integers(1, 10**6))
def test_slices_leave_no_gap_and_overlap_nowhere(start, size, length):
    end = start + min(size, 200 * length)
    at = start
    while at < end:
        edge = promql.next_edge(at, end, length)
        assert at < edge <= end
        assert edge - at <= length
        assert edge == end or edge % length == 0  # on one grid for every incident
        at = edge
    assert at == end


@given(st.datetimes(timezones=st.just(UTC)))
def test_milliseconds_are_exact_both_ways(moment):
    low, high = promql.floor_ms(moment), promql.ceil_ms(moment)
    assert promql.moment_of(low) <= moment
    assert moment - promql.moment_of(low) < timedelta(milliseconds=1)
    assert high - low == (moment.microsecond % 1000 > 0)


@given(st.integers(0, 10**14))
def test_seconds_are_written_exactly(ms):
    text = promql.seconds_text(ms)
    whole, _, rest = text.partition(".")
    assert int(whole) * 1000 + int(rest.ljust(3, "0")) == ms
    assert round(float(text) * 1000) == ms


def test_seconds_of_the_issue_that_floats_get_wrong():
    moment = datetime(2026, 3, 10, 11, 29, 59, 999_000, UTC)
    assert promql.seconds_text(promql.floor_ms(moment)) == "1773142199.999"


@given(st.integers(1, 10**10))
def test_durations_are_read_back(ms):
    assert promql.duration_s(promql.duration_text(ms)) == ms / 1000


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172_800)]
)
def test_durations(text, seconds):
    assert promql.duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "5mm", "-5m"])
def test_what_is_no_duration(text):
    assert promql.duration_s(text) is None
