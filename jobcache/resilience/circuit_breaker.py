"""A circuit breaker: decides whether a store is used, and logs each change. It never waits.

    closed         the store is used
    unresponsive   the store is used, but a whole deadline has passed without any answer: reads
                   do not wait for it until it has answered
    open           the store is not used

A few failures in a row open the circuit, and so does a probe that fails. An operation that is late
while others are answered shows that the store is busy, not that it is away.

Rejected: the published breakers for asyncio. With them the call of some caller finds out whether
the service is back. Here a probe in the background does that, so no poll has to wait for it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

from jobcache.observability.log_limit import LogLimit
from jobcache.protocol.capabilities import Health

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("jobcache")

_LINES = 20  # a minute: a store can come and go many times


class Breaker:
    """Count the answers of a store, and decide whether it is used.

    Operations are numbered as they begin. An operation that began before the last answer of the
    store, be it a success or a counted failure, shows nothing new when it fails: a burst that waits
    for our own connection is no outage.

    Args:
        name: the name of the cache, for the log.
        failures: how many failures in a row open the circuit.
        clock: monotonic time in seconds.

    Attributes:
        open: True while the store is not used.
        unresponsive: True while an answer is overdue, and no other has arrived since.
        reason: why the circuit is open, for people; empty while it is closed.
        begun: the number of the operation that began last.
    """

    def __init__(self, name: str, *, failures: int, clock: Callable[[], float]) -> None:
        self.open = False
        self.unresponsive = False
        self.reason = ""
        self.begun = 0
        self._openings = 0
        self._name = name
        self._allowed = failures
        self._clock = clock
        self._since = clock()
        self._lines = LogLimit(_LINES, clock)
        self._failures = 0
        self._last_answer = 0
        self._last_success = 0

    def succeeded(self) -> None:
        """Note that the store has answered."""
        self.unresponsive = False
        self._failures = 0
        self._last_answer = self._last_success = self.begun

    def failed(self, number: int, reason: str) -> None:
        """Note that the store, or the connection to it, has answered an operation with an error."""
        if number > self._last_answer:
            self._last_answer = self.begun
            self._failures += 1
            if self._failures >= self._allowed:
                self.trip(reason)

    def went_unanswered(self, number: int) -> None:
        """Note that an operation has run out of its deadline."""
        if number > self._last_success:
            self.unresponsive = True

    def open_for(self) -> float:
        """Return the seconds since the circuit opened; 0 while it is closed."""
        return self._clock() - self._since if self.open else 0.0

    def trip(self, reason: str) -> None:
        """Open the circuit: stop using the store."""
        if not self.open:
            self.open, self._since, self.reason = True, self._clock(), reason
            self._openings += 1
            self._log(
                "the %s cache is away (%s): polls are answered from the source until it is back",
                self._name,
                reason,
            )

    def close(self) -> None:
        """Close the circuit: use the store again."""
        self.unresponsive = False
        self._failures = 0
        if self.open:
            away = self._clock() - self._since
            self.open, self._since, self.reason = False, self._clock(), ""
            self._log("the %s cache is back after %.1f s", self._name, away)

    def _log(self, words: str, *values: object) -> None:
        omitted = self._lines.admit()
        if omitted is not None:
            logger.warning("%s%s", words % values, omitted)

    def condition(self, pending: int | None) -> Health:
        """Return the health of the store, with `pending` as its number of pending keys."""
        state: Literal["closed", "open"] = "open" if self.open else "closed"
        age = self._clock() - self._since
        return Health(not self.open, state, age, self.reason, pending, self._openings)
