from __future__ import annotations

import numpy as np
from made import frames_of, steps

from tbforensics.model import Finding, Frames, Kind, Query, Shape
from tbforensics.ordering import moved_first

QUERIES = tuple(
    Query(name, "prometheus", name, shape=Shape.GAUGE, required=True, why="test")
    for name in ("early", "late", "calm", "spike", "absent")
)
KIND = Kind("Test", "?", QUERIES, object, lambda frames, thresholds: [])
CALM, STEPS = 60, 120


def level(seed: int, at: int | None = None, factor: float = 3.0) -> list[float]:
    values = 100 + np.random.default_rng(seed).normal(0, 2, STEPS)
    if at is not None:
        values[at:] *= factor
    return list(values)


def found(**seen: list[float]) -> Finding | None:
    return moved_first(frames(**seen), KIND)


def frames(**seen: list[float]) -> Frames:
    tables = {name: steps({("a",): values}, 30, "instance") for name, values in seen.items()}
    return frames_of(QUERIES, tables, 30, CALM)


def test_the_first_mover_comes_first_and_calm_metrics_do_not_come() -> None:
    finding = found(late=level(1, 90), early=level(2, 75), calm=level(3))
    assert finding is not None
    assert [row["metric"] for row in finding.rows] == ["early", "late"]
    assert finding.cites == ("early", "late") and not finding.decides


def test_a_lone_spike_is_no_move() -> None:
    spiky = level(4)
    spiky[80] *= 4
    assert found(spike=spiky, calm=level(5)) is None


def test_what_moved_in_the_baseline_is_not_told_of_the_window() -> None:
    assert found(early=level(6, 20)) is None


def test_nothing_asked_of_metrics_gives_nothing() -> None:
    assert found(calm=[float("nan")] * STEPS) is None


def test_series_of_one_metric_are_one_mover() -> None:
    table = steps({("a",): level(7, 80), ("b",): level(8)}, 30, "instance")
    finding = moved_first(frames_of(QUERIES, {"early": table}, 30, CALM), KIND)
    assert finding is not None and finding.value == 1
