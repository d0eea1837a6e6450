"""Percentiles of lists of values."""

from __future__ import annotations

import math


def percentile(values: list[float], percent: int) -> float | None:
    """Return the percentile of the values (nearest rank), or None if there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
