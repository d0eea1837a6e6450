"""Decides which report a throttle commits, and when. No I/O, no waiting; for both throttles."""

from __future__ import annotations

import logging
import math
from typing import Generic, TypeVar

R = TypeVar("R")
logger = logging.getLogger("jobcache")


class ThrottlePolicy(Generic[R]):
    """The decisions of one throttle. One thread at a time may call it.

    Args:
        interval: seconds between the end of a commit and the beginning of the next.

    Attributes:
        concluded: every report up to this number was committed, failed, or was replaced by a newer
            one.

    Raises:
        ValueError: the interval is not above 0.
    """

    def __init__(self, interval: float) -> None:
        if not interval > 0:
            raise ValueError("the interval is a number of seconds above 0")
        self.concluded = 0
        self._interval = interval
        self._pending: list[R] = []  # at most one; a list, because None is a report, too
        self._number = 0  # of the newest report, or of the newest attempt to repeat it
        self._committing = 0  # the number of the report that is being committed; 0: none
        self._not_before = -math.inf
        self._urgent = False
        self._terminal = False
        self._closed = False
        self._last_try = False  # the running commit began after the close
        self._error: BaseException | None = None  # of the last commit
        self._raised = True

    def report(self, report: R, *, terminal: bool = False) -> int:
        """Accept a report. Return its number."""
        if self._closed:
            raise RuntimeError("the throttle is closed and does not accept this report")
        if terminal or not self._terminal:
            self._terminal = terminal
            self._take(report, urgent=terminal or self._urgent)
        return self._number

    def flush(self) -> int:
        """Have the report that waits committed at once. Return its number."""
        self._urgent = bool(self._pending)
        return self._number

    def close(self) -> None:
        """Have the report that waits, or fails now, committed at once, for the last time."""
        self._closed = True
        self.flush()

    @property
    def busy(self) -> bool:
        """Whether a report waits or is being committed."""
        return bool(self._pending or self._committing)

    def due_in(self, now: float) -> float | None:
        """Return the seconds until the next commit; None if no report waits.

        Call it while no commit runs.
        """
        if not self._pending:
            return None
        return 0.0 if self._urgent else max(0.0, self._not_before - now)

    def begin(self) -> R:
        """Begin a commit. Return the report to commit."""
        self._committing = self._number
        self._urgent = False
        self._last_try = self._closed
        return self._pending.pop()

    def ended(self, report: R, error: BaseException | None, now: float) -> None:
        """End the commit, with an error or without."""
        if not self._raised:
            logger.warning("a progress report could not be committed at first: %r", self._error)
        self.concluded, self._committing = self._committing, 0
        self._not_before = now + self._interval
        self._error, self._raised = error, error is None
        if error is not None and self.concluded == self._number and not self._last_try:
            self._take(report, urgent=self._closed)

    def raise_error(self, *, waited: bool = False) -> None:
        """Raise the error of the last commit, once; to callers that waited, always."""
        if self._error is not None and (waited or not self._raised):
            self._raised = True
            raise self._error

    def _take(self, report: R, *, urgent: bool) -> None:
        self._pending = [report]
        self._number += 1
        self._urgent = urgent
