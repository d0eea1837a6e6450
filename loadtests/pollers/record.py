"""Counts of what the users of one run saw, added up over processes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from loadtests.pollers import rows
from loadtests.pollers.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadtests.pollers.rows import PollOutcome

_MOST_ERRORS = 5  # kept as text


class Record:
    """Counts of one run. Users are greenlets, which switch only where they wait: no locks.

    Attributes:
        errors: the text of the first failures.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._counts: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._durations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._delays = Histogram()

    # --- what happens ---

    def request(self, row: str, took_ms: float) -> None:
        """Count a request and its duration."""
        self._durations[row].record(took_ms)

    def failure(self, row: str, reason: object) -> None:
        """Count a failure; keep the text of the first few."""
        self._failures[row] += 1
        if len(self.errors) < _MOST_ERRORS:
            self.errors.append(f"{row}: {reason}")

    def poll(self, outcome: PollOutcome) -> None:
        """Count an answered poll by the service's counter for it.

        Polls that were held are counted apart: the service reads the cache more than once for each.
        """
        self._counts["not_modified"] += outcome.not_modified
        if outcome.held:
            self._outcomes["held"] += 1
            return
        if outcome.counter is not None:
            self._outcomes[outcome.counter] += 1
        self._outcomes["coalesced"] += outcome.coalesced

    def held(self) -> None:
        """Count a stream of events: the service reads the cache several times for it."""
        self._outcomes["held"] += 1

    def reads_without_outcome(self, number: int) -> None:
        """Count reads of the cache by a request whose response does not say how they ended."""
        self._counts["reads_without_outcome"] += number

    def cut_off(self) -> None:
        """Count a poll that was sent, and whose answer was not waited for: the test ended."""
        self._counts["cut_off"] += 1

    def traffic(self, *, received: int = 0, sent: int = 0) -> None:
        """Count bytes of all connections, headers included."""
        self._counts["received_bytes"] += received
        self._counts["sent_bytes"] += sent

    def job_created(self) -> None:
        """Count a new job."""
        self._counts["jobs"] += 1

    def job_completed(self, version: int) -> None:
        """Count a job that has ended with this version."""
        self._counts["completed"] += 1
        self._counts["changes"] += version

    def first_poll(self, *, missed: bool) -> None:
        """Count a user's first poll after a change; `missed` if the cache lacked the new version.

        A poll that comes while the change is being committed is sent to the database on purpose,
        and has not missed.
        """
        self._counts["first_polls"] += 1
        self._counts["first_polls_missed"] += missed

    def delivery(self, delay_ms: float) -> None:
        """Record how many milliseconds after its commit a version reached a user."""
        self._delays.record(delay_ms)

    def followed(self, *, polls: int, updates: int) -> None:
        """Record that a user has followed a rendering to its end, and its number of updates."""
        self._counts["ends_seen"] += 1
        self._counts["update_polls"] += polls
        self._counts["updates"] += updates

    # --- results ---

    @property
    def answered(self) -> int:
        """The number of polls that were answered."""
        return sum(
            self._durations[row].count
            for row in rows.POLLS
            if row != rows.NO_ANSWER and row in self._durations
        )

    def durations(self) -> dict[str, Histogram]:
        """Return the durations by row."""
        return dict(sorted(self._durations.items()))

    def polls(self) -> Histogram:
        """Return the durations of all polls."""
        every = Histogram()
        for row in rows.POLLS:
            if row in self._durations:
                every.add(self._durations[row].pairs())
        return every

    def report(self) -> dict[str, Any]:
        """Return all counts.

        `changes` are the committed versions of all jobs that ended, `updates` those that came while
        a user followed one, added up over users, `update_polls` their polls for them; `outcomes`
        are the polls by the service's counters; `poll_ms` and `delay_ms` are percentiles in
        milliseconds; `poll_us` are all durations of polls in microseconds, with their counts.
        """
        named = (
            *("jobs", "completed", "changes", "ends_seen", "updates", "update_polls"),
            *("first_polls", "first_polls_missed", "received_bytes", "sent_bytes", "cut_off"),
            *("not_modified", "reads_without_outcome"),
        )
        return {
            "requests": {row: each.count for row, each in self.durations().items()},
            "failures": dict(self._failures),
            "errors": self.errors,
            "polls": self.polls().count,
            "outcomes": {name: self._outcomes[name] for name in (*rows.COUNTERS, "held")},
            "poll_ms": self.polls().summary(),
            "poll_us": self.polls().pairs(),
            "row_ms": {row: each.summary() for row, each in self.durations().items()},
            "delay_ms": self._delays.summary(),
            **{name: self._counts[name] for name in named},
        }

    # --- several processes ---

    def message(self) -> dict[str, Any]:
        """Return everything, for another process to add."""
        return {
            "errors": self.errors,
            "counts": dict(self._counts),
            "outcomes": dict(self._outcomes),
            "failures": dict(self._failures),
            "durations": {row: each.pairs() for row, each in self._durations.items()},
            "delays": self._delays.pairs(),
        }

    def add(self, message: Mapping[str, Any]) -> None:
        """Add what another process has recorded."""
        self.errors = (self.errors + message["errors"])[:_MOST_ERRORS]
        self._counts.update(message["counts"])
        self._outcomes.update(message["outcomes"])
        self._failures.update(message["failures"])
        for row, pairs in message["durations"].items():
            self._durations[row].add(pairs)
        self._delays.add(message["delays"])
