"""Histograms of durations, in microseconds, that can be added up over processes."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EXACT_BELOW = 10_000
"""Durations below this are kept to the microsecond, longer ones to four digits."""

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
"""The percentiles of a summary."""


class Histogram:
    """Counts of durations.

    Each duration that occurs has a count of its own. Long ones are rounded to four digits, which
    bounds the memory of a long run.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    @property
    def count(self) -> int:
        """The number of durations."""
        return self._counts.total()

    def record(self, milliseconds: float) -> None:
        """Add a duration."""
        microseconds = max(0, round(1000 * milliseconds))
        step = 1
        while microseconds >= _EXACT_BELOW * step:
            step *= 10
        self._counts[round(microseconds / step) * step] += 1

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """Return the durations of these ranks, which ascend, in milliseconds; empty without any.

        They are durations that occurred (nearest rank), not values between two.
        """
        whole = self.count
        found: list[float] = []
        seen = 0
        for microseconds in sorted(self._counts):
            seen += self._counts[microseconds]
            while len(found) < len(percents):
                if seen < max(1, math.ceil(whole * percents[len(found)] / 100)):
                    break
                found.append(microseconds / 1000)
        return found

    def summary(self) -> dict[str, float | None]:
        """Return the percentiles of `PERCENTILES` in milliseconds."""
        found = self.percentiles(list(PERCENTILES.values()))
        return dict(zip(PERCENTILES, found, strict=True)) if found else dict.fromkeys(PERCENTILES)

    def pairs(self) -> list[list[int]]:
        """Return the microseconds and counts, for another process to add."""
        return [[microseconds, count] for microseconds, count in sorted(self._counts.items())]

    def add(self, pairs: Iterable[list[int]]) -> None:
        """Add the counts of another histogram."""
        for microseconds, count in pairs:
            self._counts[microseconds] += count
