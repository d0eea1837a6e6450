"""Counts of what the users of one run saw."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

_MOST_ERRORS = 5  # kept as text


class Record:
    """Counts of one run. Users are greenlets, which switch only where they wait: no locks.

    Attributes:
        received_bytes: what came over all connections, headers included.
        sent_bytes: what went.
    """

    def __init__(self) -> None:
        self.received_bytes = 0
        self.sent_bytes = 0
        self._requests: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._errors: list[str] = []
        self._poll_ms: list[float] = []
        self._versions: dict[int, int] = {}
        self._completed: set[int] = set()
        self._first_polls = 0
        self._first_polls_missed = 0
        self._delays_ms: list[float] = []
        self._updates = 0
        self._update_polls = 0

    def request(self, name: str, took_ms: float) -> None:
        """Count a request and its duration in milliseconds."""
        self._requests[name] += 1
        if name == "poll":
            self._poll_ms.append(took_ms)

    def failure(self, name: str, reason: object) -> None:
        """Count a failure; keep the text of the first few."""
        self._failures[name] += 1
        if len(self._errors) < _MOST_ERRORS:
            self._errors.append(f"{name}: {reason}")

    def job(self, number: int, version: int, status: str) -> None:
        """Record the version of a job."""
        self._versions[number] = max(version, self._versions.get(number, 0))
        if status == "completed":
            self._completed.add(number)

    def first_poll(self, *, missed: bool) -> None:
        """Count a user's first poll after a change; `missed` if the cache lacked the new version.

        A poll that comes while the change is being committed is sent to the database on purpose,
        and has not missed.
        """
        self._first_polls += 1
        self._first_polls_missed += missed

    def delivery(self, delay_ms: float) -> None:
        """Record how many milliseconds after its commit a version reached a user."""
        self._delays_ms.append(delay_ms)

    def followed(self, *, polls: int, updates: int) -> None:
        """Record that a user has followed a rendering to its end, and its number of updates."""
        self._update_polls += polls
        self._updates += updates

    def report(self) -> dict[str, Any]:
        """Return all counts.

        `changes` are the committed versions of all jobs, `updates` those that came while a user
        followed one, added up over users, `update_polls` their polls for them; `poll_ms` and
        `delay_ms` are percentiles in milliseconds.
        """
        return {
            "requests": self._requests,
            "failures": self._failures,
            "errors": self._errors,
            "poll_ms": _percentiles(self._poll_ms),
            "delay_ms": _percentiles(self._delays_ms),
            "updates": self._updates,
            "update_polls": self._update_polls,
            "received_bytes": self.received_bytes,
            "sent_bytes": self.sent_bytes,
            "jobs": len(self._versions),
            "completed": len(self._completed),
            "changes": sum(self._versions.values()),
            "first_polls": self._first_polls,
            "first_polls_missed": self._first_polls_missed,
        }


def _percentiles(values: list[float]) -> dict[str, float | None]:
    named = {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: percentile(values, percent) for name, percent in named.items()}


def percentile(values: list[float], percent: int) -> float | None:
    """Return the percentile of the values (nearest rank), or None if there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
