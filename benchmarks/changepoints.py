"""Score `change_points`, with its defaults, on a folder of series that people annotated.

    python benchmarks/changepoints.py FOLDER      # *.json in the format of the Turing Change Point
                                                  # Dataset, with annotations.json beside them
    python benchmarks/changepoints.py --example   # a few made-up series, no files needed
    ... --repeat 3                                # every value three times, as from a rule that is
                                                  # evaluated three times per scrape

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tbforensics.changes import change_points

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
        if data.get("name") in annotations and len(data["series"]) == 1:
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


def repeated(
    cases: Iterable[tuple[str, pd.Series, Annotations]], times: int
) -> Iterator[tuple[str, pd.Series, Annotations]]:
    """The same cases with every value `times` in a row."""
    for name, series, people in cases:
        scaled = {who: [times * at for at in points] for who, points in people.items()}
        yield name, pd.Series(np.repeat(series.to_numpy(), times)), scaled


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--example", action="store_true", help="score the built-in series")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="every value N times")
    args = parser.parse_args()
    if args.example == (args.folder is not None):
        parser.error("give either a folder or --example")
    cases = example() if args.example else read_folder(args.folder)
    scores = []
    for name, series, people in repeated(cases, args.repeat):
        began = time.perf_counter()
        found = [point.position for point in change_points(series)]
        took = time.perf_counter() - began
        scores.append((f1(people, found), covering(people, found, len(series)), took))
        print(f"{name:24s} n {len(series):6d}  F1 {scores[-1][0]:.3f}  covering", end=" ")
        print(f"{scores[-1][1]:.3f}  {took:.2f} s  {found}")
    means = np.mean(scores, axis=0)
    print(f"{'mean':24s} {len(scores):8d}  F1 {means[0]:.3f}  covering {means[1]:.3f}")


if __name__ == "__main__":
    main()
