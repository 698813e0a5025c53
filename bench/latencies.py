"""Latencies of many messages: an HdrHistogram, its quantiles, and the power of who carried them.

HdrHistogram (Gil Tene) counts into buckets whose width is a fixed share of the value, here 1/1000, from a
nanosecond to an hour, so that the tail is as exact as the middle and histograms of several runs add up.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

_HIGHEST_NS = 3600 * 10**9
_DIGITS = 3
_PERCENTILES = (0, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999, 100)
_SHOWN = {"p90": 90, "p99": 99, "p99.9": 99.9}


def missing() -> str | None:
    found = importlib.util.find_spec("hdrh")
    return None if found else "hdrhistogram is not installed (pip install hdrhistogram)"


def power(messages_per_s: float, mean_ns: float) -> float:
    """Kleinrock's power of a system, throughput / latency, in 1/s^2: messages per second, per second."""
    return messages_per_s / (mean_ns / 1e9)


class Latencies:
    """In nanoseconds."""

    def __init__(self, ns: Sequence[int] = ()) -> None:
        histogram: Any = importlib.import_module("hdrh.histogram").HdrHistogram
        self._counts: Any = histogram(1, _HIGHEST_NS, _DIGITS)
        self._sum = sum(ns)  # exact, and at once: the histogram's own mean walks all its buckets
        for value, count in zip(*np.unique(np.asarray(ns, np.int64), return_counts=True), strict=True):
            # What is below or above the histogram's range counts at its end: nothing is left out.
            self._counts.record_value(int(min(max(value, 1), _HIGHEST_NS)), int(count))

    def __len__(self) -> int:
        return int(self._counts.get_total_count())

    def add(self, other: Latencies) -> None:
        self._counts.add(other._counts)
        self._sum += other._sum

    @property
    def mean(self) -> float:
        return self._sum / len(self)

    @property
    def max(self) -> float:
        return float(self._counts.get_max_value())

    def at(self, percentile: float) -> float:
        return float(self._counts.get_value_at_percentile(percentile))

    def extras(self, scale: float) -> dict[str, float]:
        """p90, p99 and p99.9 where there are messages enough for them, max and mean, each / `scale`."""
        named = {name: self.at(at) for name, at in _SHOWN.items() if self._enough(at)}
        return {name: value / scale for name, value in {**named, "max": self.max, "mean": self.mean}.items()}

    def distribution(self, scale: float) -> list[tuple[float, float]]:
        """(percentile, value / `scale`), rising, as far out as there are messages."""
        wanted = [p for p in _PERCENTILES if p == 100 or self._enough(p)]
        found = self._counts.get_percentile_to_value_dict(wanted)
        return [(float(p), found[p] / scale) for p in wanted if p in found]

    def _enough(self, percentile: float) -> bool:
        return len(self) * (100 - percentile) >= 99.99  # one message beyond it; 100 - 99.9 is no 0.1
