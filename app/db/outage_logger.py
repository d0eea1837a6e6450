"""Logs the beginning and the end of an outage of the database, and few lines in between."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("app")


class OutageLogger:
    """Logs an outage of the database: at its beginning, at intervals, and at its end.

    A single reply does not end an outage. The database may have sent it before the outage, and a
    full database answers reads while every write fails.

    Args:
        quiet: seconds in which further failures are only counted.
        settled: seconds without a failure after which a reply ends the outage.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        quiet: float = 10.0,
        settled: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._quiet = quiet
        self._settled = settled
        self._clock = clock
        self._began: float | None = None
        self._failed = 0.0
        self._said = 0.0
        self._unsaid = 0

    def note(self, reason: object) -> None:
        """Record a failure of the database."""
        now = self._failed = self._clock()
        self._unsaid += 1
        if self._began is None:
            self._began = now
        elif now - self._said < self._quiet:
            return
        logger.warning(
            "the database is away (%s); calls that failed since the last such line: %d",
            reason,
            self._unsaid,
        )
        self._said, self._unsaid = now, 0

    def answered(self) -> None:
        """Record a success of the database."""
        if self._began is None:
            return
        now = self._clock()
        if now - self._failed < self._settled:
            return
        logger.warning("the database is back after %.1f s", now - self._began)
        self._began, self._unsaid = None, 0
