"""Score `change_points`, with its defaults, on a folder of series that people annotated.

    python benchmarks/changepoints.py FOLDER      # *.json in the format of the Turing Change Point
                                                  # Dataset, with annotations.json beside them
    python benchmarks/changepoints.py --example   # a few made-up series, no files needed
    python benchmarks/changepoints.py --made-up 5 # five draws of thirty look-alikes of that dataset
    ... --repeat 3                                # every value three times, as from a rule that is
                                                  # evaluated three times per scrape
    ... --detector window                         # a ruptures detector instead, penalty 2 log n

A series file holds {"name", "n_obs", "time": {...}, "series": [{"label", "raw": [...]}]};
annotations.json holds {name: {annotator: [0-based first sample of each new segment]}}. Series with
several variables are skipped. F1 (margin of 5 samples) and covering are those of van den Burg and
Williams, "An evaluation of change point detection algorithms", arXiv:2003.06222: a detection is
right when any annotator agrees, recall and covering are means over the annotators.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import ruptures
from scipy.signal import lfilter

from tbforensics.analysis.changes import change_points

Annotations = Mapping[str, Sequence[int]]
MARGIN = 5


def matched(truth: Iterable[int], found: Iterable[int], margin: int = MARGIN) -> set[int]:
    """The true points that a detection lies close to; each detection serves one."""
    left, hits = set(found), set()
    for point in sorted(truth):
        near = [(abs(point - x), x) for x in left if abs(point - x) <= margin]
        if near:
            left.remove(min(near)[1])
            hits.add(point)
    return hits


def f1(annotations: Annotations, found: Sequence[int]) -> float:
    """Harmonic mean of precision against all annotators and mean recall; 0 counts as known."""
    truths = [{0, *points} for points in annotations.values()]
    detections = {0, *found}
    precision = len(matched(set().union(*truths), detections)) / len(detections)
    recall = float(np.mean([len(matched(t, detections)) / len(t) for t in truths]))
    return 2 * precision * recall / (precision + recall)


def covering(annotations: Annotations, found: Sequence[int], n: int) -> float:
    """Mean over annotators of how well their segments are covered by the detected ones."""

    def segments(points: Iterable[int]) -> list[range]:
        edges = [0, *sorted({p for p in points if 0 < p < n}), n]
        return [range(a, b) for a, b in itertools.pairwise(edges)]

    def overlap(a: range, b: range) -> float:
        shared = max(0, min(a.stop, b.stop) - max(a.start, b.start))
        return shared / (len(a) + len(b) - shared)

    ours = segments(found)
    return float(
        np.mean(
            [
                sum(len(a) * max(overlap(a, b) for b in ours) for a in segments(points)) / n
                for points in annotations.values()
            ]
        )
    )


def read_folder(folder: Path) -> Iterator[tuple[str, pd.Series, Annotations]]:
    """Name, values and annotations of every annotated univariate series below `folder`."""
    (notes,) = folder.rglob("annotations.json")
    annotations = json.loads(notes.read_text())
    for path in sorted(folder.rglob("*.json")):
        data = json.loads(path.read_text()) if path != notes else {}
        known = isinstance(data, dict) and data.get("name") in annotations
        if known and len(data["series"]) == 1:
            raw = pd.Series(data["series"][0]["raw"], dtype=float)
            yield data["name"], raw, annotations[data["name"]]


def example() -> Iterator[tuple[str, pd.Series, Annotations]]:
    """Shapes that people meet: steps, a kink, a season with a drop, a calm series."""
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 1, 300)
    rows = np.arange(300)
    yield "one step", pd.Series(noise + 4 * (rows >= 120)), {"1": [120], "2": [121]}
    yield "two steps", pd.Series(noise + 5 * (rows >= 90) - 3 * (rows >= 200)), {"1": [90, 200]}
    yield "kink", pd.Series(noise + 0.3 * np.maximum(rows - 150, 0)), {"1": [150], "2": []}
    season = 6 * np.sin(rows * 2 * np.pi / 12)
    yield "season", pd.Series(noise + season - 9 * (rows >= 180)), {"1": [180]}
    yield "calm", pd.Series(noise), {"1": [], "2": []}
    yield "short trend", pd.Series(rows[:30] * 2 + noise[:30]), {"1": [], "2": [14]}


def annotated(
    rng: np.random.Generator, n: int, cuts: Sequence[tuple[int, float]], extra: float, miss: float
) -> Annotations:
    """Five people who see a change the better the larger it is, and sometimes one that is not."""
    people = {}
    for who in "abcde":
        care = rng.uniform(0.5, 1.3)
        points = {
            int(np.clip(at + round(rng.normal(0, 1.5)), 1, n - 1))
            for at, size in cuts
            if rng.random() < (1 - miss) * care * (0.45 + 0.75 * size)
        }
        if rng.random() < extra:
            points.add(int(rng.integers(n // 10 + 1, n - n // 10)))
        people[who] = sorted(points)
    return people


def places(rng: np.random.Generator, n: int, k: int, apart: int) -> np.ndarray:
    """k rows in the middle of n, no two closer than `apart`."""
    while True:
        rows = np.sort(rng.integers(n // 8, 7 * n // 8, k))
        if k < 2 or np.diff(rows).min() >= apart:
            return rows


def slow_noise(rng: np.random.Generator, n: int, phi: float, sd: float) -> np.ndarray:
    steps = rng.normal(0, sd * np.sqrt(1 - phi * phi), n)
    return np.asarray(lfilter([1.0], [1.0, -phi], steps))


def steps(
    rng: np.random.Generator, n: int, k: int, low: float, high: float, phi: float = 0.0
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Levels in noise of standard deviation one; cuts with their size, 0 to 1."""
    values, cuts = slow_noise(rng, n, phi, 1.0), []
    for at in places(rng, n, k, max(6, n // 20)):
        height = rng.uniform(low, high)
        values[at:] += height * rng.choice([-1, 1])
        cuts.append((int(at), height / high))
    return values, cuts


def kinks(
    rng: np.random.Generator, n: int, k: int, noise: float
) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """A broken line scaled to variance one, in slow noise."""
    slope, cuts = np.full(n, rng.normal(1, 1)), []
    for at in places(rng, n, k, max(4, n // 8)):
        turn = rng.choice([-1, 1]) * rng.uniform(0.7, 2.5)
        slope[at:] += turn
        cuts.append((int(at), abs(turn) / 2.5))
    line = np.cumsum(slope)
    return (line - line.mean()) / line.std() + slow_noise(rng, n, 0.7, noise), cuts


def made_up(seed: int) -> Iterator[tuple[str, pd.Series, Annotations]]:
    """Thirty series shaped like those that people annotated: none of the real ones is here."""
    rng = np.random.default_rng(seed)

    def case(
        name: str, values: np.ndarray, cuts: list[tuple[int, float]], extra: float, miss: float
    ) -> tuple[str, pd.Series, Annotations]:
        return name, pd.Series(values), annotated(rng, len(values), cuts, extra, miss)

    for _ in range(3):
        yield case("quality", *steps(rng, int(rng.integers(300, 400)), 1, 1.2, 4), 0.05, 0.1)
    yield case("calm", *steps(rng, 325, 0, 1, 2), 0.05, 0.25)
    yield case("river", *steps(rng, 100, 1, 1.2, 2.2), 0.15, 0.25)
    values, cuts = steps(rng, 675, int(rng.integers(5, 10)), 2, 7)
    values[rng.integers(0, 675, 8)] += rng.normal(0, 10, 8)
    yield case("well", values, cuts, 0.15, 0.15)
    for _ in range(2):
        values, cuts = steps(rng, 481, int(rng.integers(4, 10)), 3, 11, 0.6)
        yield case("scanline", np.round(2 * values), cuts, 0.15, 0.25)
    for _ in range(9):
        n = int(rng.choice([15, 21, 37, 53, 54, 58, 58, 58, 60, 105]))
        k = int(rng.choice([0, 1, 1, 2]))
        yield case("yearly", *kinks(rng, n, k, rng.uniform(0.02, 0.08)), 0.25, 0.25)
    for _ in range(3):
        n = int(rng.choice([104, 215, 301, 816]))
        growth = np.exp(rng.uniform(0.5, 4) * np.arange(n) / n)
        growth = growth / growth.std() + slow_noise(rng, n, 0.8, 0.01)
        yield case("growth", growth, [(int(n * rng.uniform(0.4, 0.7)), 0.1)], 0.15, 0.25)
    for _ in range(5):
        n = int(rng.choice([192, 199, 330, 331, 468, 468]))
        values, cuts = kinks(rng, n, int(rng.integers(0, 3)), 0.06)
        month = rng.normal(0, rng.uniform(0.15, 0.6), 12)[np.arange(n) % 12]
        values = values + month * (1 + rng.uniform(0, 1) * np.arange(n) / n)
        at = int(rng.integers(n // 4, 3 * n // 4))
        healing = rng.choice([np.inf, rng.uniform(10, 60)])
        values[at:] -= rng.uniform(0.7, 1.6) * np.exp(-np.arange(n - at) / healing)
        yield case("monthly", values, [*cuts, (at, 1.0)], 0.2, 0.25)
    for _ in range(4):
        n = int(rng.choice([205, 247, 500, 600, 774]))
        values, cuts = 0.6 * np.cumsum(rng.standard_t(4, n)), []
        for at in places(rng, n, int(rng.integers(0, 4)), n // 40):
            height = rng.uniform(8, 25)
            rise = np.minimum(1, np.arange(1, n - at + 1) / rng.integers(1, n // 40))
            values[at:] += rng.choice([-1, 1]) * height * rise
            cuts.append((int(at), height / 25))
        yield case("market", values, cuts, 0.4, 0.15)
    rows = np.arange(991)
    waves = np.maximum(0, np.sin(rows * 2 * np.pi / 50)) ** 4 * rng.lognormal(0, 0.4, 991)
    waves = waves * np.where(rows < 550, 10, 1.5) + rng.normal(0, 0.3, 991)
    yield case("outbreaks", waves, [(550, 0.6)], 0.15, 0.25)


def repeated(
    cases: Iterable[tuple[str, pd.Series, Annotations]], times: int
) -> Iterator[tuple[str, pd.Series, Annotations]]:
    """The same cases with every value `times` in a row."""
    for name, series, people in cases:
        scaled = {who: [times * at for at in points] for who, points in people.items()}
        yield name, pd.Series(np.repeat(series.to_numpy(), times)), scaled


def ours(series: pd.Series) -> list[int]:
    return [point.position for point in change_points(series)]


def library(name: str) -> Callable[[pd.Series], list[int]]:
    """A ruptures detector on the standardised series, or no detector at all for "zero"."""
    makers = {
        "window": lambda: ruptures.Window(width=100, model="l2"),
        "binseg": lambda: ruptures.Binseg(model="l2"),
        "pelt": lambda: ruptures.Pelt(model="l2"),
        "kernel": lambda: ruptures.KernelCPD(kernel="rbf"),
    }

    def detect(series: pd.Series) -> list[int]:
        values = series.interpolate(limit_direction="both").to_numpy()
        if name == "zero" or np.ptp(values) == 0:
            return []
        values = (values - values.mean()) / values.std()
        try:
            found = makers[name]().fit(values).predict(pen=2 * np.log(len(values)))
        except ruptures.exceptions.BadSegmentationParameters:
            return []  # too short for this detector
        return [at for at in found if at < len(values)]

    return detect


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--example", action="store_true", help="score the built-in series")
    parser.add_argument("--made-up", type=int, default=0, metavar="N", help="draws of look-alikes")
    parser.add_argument("--seed", type=int, default=20, help="of the first draw")
    parser.add_argument("--detector", choices=["zero", "window", "binseg", "pelt", "kernel"])
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="every value N times")
    args = parser.parse_args()
    if [bool(args.folder), args.example, bool(args.made_up)].count(True) != 1:
        parser.error("give one of: a folder, --example, --made-up N")
    draws = range(args.seed, args.seed + args.made_up)
    cases = (
        example()
        if args.example
        else chain.from_iterable(map(made_up, draws))
        if args.made_up
        else read_folder(args.folder)
    )
    detect = library(args.detector) if args.detector else ours
    scores = []
    for name, series, people in repeated(cases, args.repeat):
        began = time.perf_counter()
        found = detect(series)
        took = time.perf_counter() - began
        scores.append((f1(people, found), covering(people, found, len(series)), took))
        print(f"{name:24s} n {len(series):6d}  F1 {scores[-1][0]:.3f}  covering", end=" ")
        print(f"{scores[-1][1]:.3f}  {took:.2f} s  {found}")
    means = np.mean(scores, axis=0)
    print(f"{'mean':24s} {len(scores):8d}  F1 {means[0]:.3f}  covering {means[1]:.3f}")


if __name__ == "__main__":
    main()
