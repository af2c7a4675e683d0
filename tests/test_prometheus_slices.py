"""However long a window is and whatever a server refuses, each moment is asked once."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.asking.slices import Portion, spans
from tbforensics.model import Capture, Incident, Query, Window
from tbforensics.promql import text as promql
from tbforensics.sources.prometheus import SOURCE, Options

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


class Limited:
    """Stands in for a Client whose server refuses to answer for more than so long at once."""

    def __init__(self, most_ms: int) -> None:
        self.most_ms = most_ms
        self.stopped = threading.Event()

    def stop(self) -> None:
        self.stopped.set()

    def now(self) -> datetime:
        return NOON

    def ask(self, *, query, role, path, params, window, notes, **more) -> Capture:
        request = {"path": path, "params": params}
        done = Capture("main", query, role, request, NOON, window, 200, "0" * 64, notes=notes)
        if path == "api/v1/read":
            return replace(done, status=404, error="HTTP 404")
        if window and window.seconds * 1000 > self.most_ms:
            error = "HTTP 422: execution: too many samples"
            done = Capture("main", query, role, request, NOON, window, 422, "0" * 64, error=error)
        return done

    def body(self, capture: Capture) -> bytes:
        return b""

    def fail(self, *, query, role, request, error) -> Capture:
        return Capture("main", query, role, request, NOON, error=error)


moments = st.integers(-(10**10), 10**10).map(lambda us: NOON + timedelta(microseconds=us))
lengths = st.integers(1_000_000, 3 * 10**10).map(lambda us: timedelta(microseconds=us))
windows = st.builds(lambda start, length: Window(start, start + length), moments, lengths)
slicings = st.sampled_from([1 / 60, 0.1, 1 / 3, 2.0, 24.0])


def fetched(window, baseline, options, query, most_ms) -> tuple[Incident, list[Capture]]:
    incident = Incident("i", "k", "t", window, baseline, 30.0, (), {}, (), "", "d")
    captures = SOURCE.fetch([query], incident, options, Limited(most_ms))
    mine = [c for c in captures if c.query == query.name and c.role == "samples"]
    return incident, sorted(mine, key=lambda capture: capture.window)


def without_seams(edges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in edges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


@settings(max_examples=20, deadline=None)
@given(windows, windows, slicings, st.sampled_from([1.0, 0.4, 0.05]))
def test_the_windows_of_raw_samples_fit_together(window, baseline, slice_hours, share):
    slice_ms = round(slice_hours * 3_600_000)
    query = Query("m", "prometheus", "m")
    options = Options(slice_hours=slice_hours)
    incident, captures = fetched(window, baseline, options, query, slice_ms * share)
    usable = [capture for capture in captures if capture.usable]
    edges = [(promql.floor_ms(c.window.start), promql.ceil_ms(c.window.end)) for c in usable]
    joined = without_seams(edges)
    assert joined == without_seams(spans(incident))
    for start, end in spans(incident):
        assert any(
            start <= promql.floor_ms(w.start) and promql.ceil_ms(w.end) <= end
            for w in (window, baseline)
        )
    for capture, (start, end) in zip(usable, edges, strict=True):
        text, time = capture.request["params"]["query"], capture.request["params"]["time"]
        length_ms = round(
            (promql.duration_s(text.removeprefix("m[").removesuffix("]")) or 0) * 1000
        )
        # Closed on both sides it is [start - 1, end - 1], left-open it is (start - 1, end - 1].
        assert round(float(time) * 1000) == end - 1
        assert length_ms == end - start


@settings(max_examples=40, deadline=None)
@given(windows, windows, slicings, st.sampled_from([1.0, 0.3]), st.integers(50, 10**6))
def test_the_steps_of_an_expression_are_asked_once_each(
    window, baseline, slice_hours, share, step_ms
):
    query = Query("e", "prometheus", "e", params={"derived": True})
    options = Options(slice_hours=slice_hours, step_s=step_ms / 1000)
    slice_ms = max(step_ms, min(round(slice_hours * 3_600_000), 11_000 * step_ms))
    most_ms = max(2 * step_ms, slice_ms * share)
    incident, captures = fetched(window, baseline, options, query, most_ms)
    asked: list[int] = []
    for capture in captures:
        if capture.usable:
            first, last, step = (
                round(float(capture.request["params"][name]) * 1000)
                for name in ("start", "end", "step")
            )
            steps = range(first, last + 1, step)
            assert step == step_ms
            assert 0 < len(steps) <= 11_000
            assert all(promql.moment_of(ms) in capture.window for ms in (first, last))
            asked += steps
    assert asked == [
        ms
        for start, end in spans(incident)
        for ms in range(-(-start // step_ms) * step_ms, end, step_ms)
    ]


@pytest.mark.parametrize(
    ("reply_bytes", "slices"),
    [(100, 12), (1 << 20, 12), (3 << 20, 4), (20 << 20, 1), (0, 6)],
)
def test_the_first_answer_by_remote_read_tells_how_much_is_asked_at_once(reply_bytes, slices):
    """One that is empty tells little: the window may begin before anything was scraped."""
    portion = Portion(7_200_000)
    first = Capture("main", "q", "samples", {}, NOON, None, 200, "0" * 64, reply_bytes)
    assert not portion.heard(first, 7_200_000, 7_200_000, streamed=True)
    assert portion.length_ms == slices * 7_200_000
