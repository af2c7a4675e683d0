"""A made history of scrapes, as OpenMetrics text that `promtool` can load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np


@dataclass
class History:
    """Scrapes every `every_s` seconds from `start` to `end`.

    Each target is scraped at its own moment of the interval, as Prometheus does.
    """

    start: datetime
    end: datetime
    every_s: float = 15.0
    _families: dict[str, list[str]] = field(default_factory=dict)

    def times(self, offset_s: float = 0.0) -> np.ndarray:
        """Unix seconds of the scrapes of a target."""
        first = self.start.timestamp() + offset_s
        return np.arange(first, self.end.timestamp(), self.every_s)

    def add(
        self, name: str, labels: Mapping[str, str], times: np.ndarray, values: np.ndarray
    ) -> None:
        """One series. NaN values are scrapes that did not happen."""
        spelled = ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items())
        series = f"{name}{{{spelled}}}"
        lines = self._families.setdefault(name, [])
        lines += [
            f"{series} {value:.10g} {time:.3f}"
            for time, value in zip(times, values, strict=True)
            if not np.isnan(value)
        ]

    def text(self) -> str:
        blocks = [
            f"# TYPE {name} unknown\n" + "\n".join(lines) for name, lines in self._families.items()
        ]
        return "\n".join([*blocks, "# EOF", ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def counter(
    times: np.ndarray, per_min: np.ndarray | float, rng: np.random.Generator, start: float = 0.0
) -> np.ndarray:
    """A counter that rises by chance, at a rate that may change from scrape to scrape."""
    seconds = np.diff(times, prepend=times[0])
    return start + np.cumsum(rng.poisson(np.asarray(per_min) / 60.0 * seconds)).astype(float)


def restarted(times: np.ndarray, values: np.ndarray, at: float) -> np.ndarray:
    """The same counter when its process began again at a moment (unix seconds)."""
    before = times < at
    base = values[before][-1] if before.any() else 0.0
    return np.where(before, values, values - base)


def born(values: np.ndarray) -> np.ndarray:
    """A counter that registers at first use: no sample before its first event."""
    return np.where(np.cumsum(values > 0) > 0, values, np.nan)


def unseen(times: np.ndarray, values: np.ndarray, start: float, end: float) -> np.ndarray:
    """The same series with no sample in a stretch (unix seconds)."""
    return np.where((times >= start) & (times < end), np.nan, values)
