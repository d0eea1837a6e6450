"""What the users of one run saw, added up."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

_MOST_ERRORS = 5  # told in words


class Record:
    """Counts of one run. Users are greenlets and change over only where they wait: no locks."""

    def __init__(self) -> None:
        self._requests: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._errors: list[str] = []
        self._poll_ms: list[float] = []
        self._versions: dict[int, int] = {}
        self._completed: set[int] = set()
        self._news = 0
        self._news_missed = 0

    def request(self, name: str, took_ms: float) -> None:
        """Count a request, which took so many milliseconds."""
        self._requests[name] += 1
        if name == "poll":
            self._poll_ms.append(took_ms)

    def failure(self, name: str, reason: object) -> None:
        """Count what went wrong, the first few times in words."""
        self._failures[name] += 1
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(f"{name}: {reason}")

    def job(self, number: int, version: int, status: str) -> None:
        """Note how far a job is."""
        self._versions[number] = max(version, self._versions.get(number, 0))
        if status == "completed":
            self._completed.add(number)

    def news(self, *, missed: bool) -> None:
        """Count a user's first poll after a change; `missed` if the cache lacked the new version.

        A poll that comes while the change is being committed is sent to the database on purpose,
        and has not missed.
        """
        self._news += 1
        self._news_missed += missed

    def report(self) -> dict[str, Any]:
        """All of it.

        `changes` are the committed versions of all jobs, `poll_ms` percentiles in milliseconds.
        """
        return {
            "requests": self._requests,
            "failures": self._failures,
            "errors": self._errors,
            "poll_ms": {
                "p50": percentile(self._poll_ms, 50),
                "p95": percentile(self._poll_ms, 95),
                "p99": percentile(self._poll_ms, 99),
                "max": percentile(self._poll_ms, 100),
            },
            "jobs": len(self._versions),
            "completed": len(self._completed),
            "changes": sum(self._versions.values()),
            "news": self._news,
            "news_missed": self._news_missed,
        }


def percentile(values: list[float], percent: int) -> float | None:
    """The smallest value that `percent` of them do not exceed (nearest rank); None of none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
