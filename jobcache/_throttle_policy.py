"""When a throttle commits what; see `throttle` for what is promised. Waits for nothing, no I/O."""

from __future__ import annotations

import logging
import math
from typing import Generic, TypeVar

R = TypeVar("R")
logger = logging.getLogger("jobcache")


class ThrottlePolicy(Generic[R]):
    """Decides what is committed when. For one thread at a time.

    Args:
        interval: seconds.

    Attributes:
        concluded: every report up to this number has been tried, or has made way for a newer one.

    Raises:
        ValueError: the interval is not above 0.
    """

    def __init__(self, interval: float) -> None:
        if not interval > 0:
            raise ValueError("the interval is a number of seconds above 0")
        self.concluded = 0
        self._interval = interval
        self._pending: list[R] = []  # one at most: any value is a report, None too
        self._number = 0  # of the newest report, or newest attempt to repeat it
        self._under_way = 0  # the number of what is being committed; 0: nothing is
        self._not_before = -math.inf
        self._urgent = False
        self._terminal = False
        self._closed = False
        self._last_try = False  # what is under way began after the close
        self._error: BaseException | None = None  # of the last commit
        self._told = True

    def report(self, report: R, *, terminal: bool = False) -> int:
        """Take a report. Returns its number."""
        if self._closed:
            raise RuntimeError("the throttle is closed, and would not commit this")
        if terminal or not self._terminal:
            self._terminal = terminal
            self._take(report, urgent=terminal or self._urgent)
        return self._number

    def flush(self) -> int:
        """What waits is to be committed at once. Returns its number."""
        self._urgent = bool(self._pending)
        return self._number

    def close(self) -> None:
        """What waits, or fails now, is to be tried at once, and for the last time."""
        self._closed = True
        self.flush()

    @property
    def busy(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._pending or self._under_way)

    def due_in(self, now: float) -> float | None:
        """While none is under way: seconds until a commit is to begin; None if nothing waits."""
        if not self._pending:
            return None
        return 0.0 if self._urgent else max(0.0, self._not_before - now)

    def begin(self) -> R:
        """A commit of what is returned begins."""
        self._under_way = self._number
        self._urgent = False
        self._last_try = self._closed
        return self._pending.pop()

    def ended(self, report: R, error: BaseException | None, now: float) -> None:
        """That commit has ended, with an error or none."""
        if not self._told:
            logger.warning("a progress report could not be committed at first: %r", self._error)
        self.concluded, self._under_way = self._under_way, 0
        self._not_before = now + self._interval
        self._error, self._told = error, error is None
        if error is not None and self.concluded == self._number and not self._last_try:
            self._take(report, urgent=self._closed)

    def raise_error(self, *, waited: bool = False) -> None:
        """Raise the last commit's error, if nobody has been told, or if it was waited for."""
        if self._error is not None and (waited or not self._told):
            self._told = True
            raise self._error

    def _take(self, report: R, *, urgent: bool) -> None:
        self._pending = [report]
        self._number += 1
        self._urgent = urgent
