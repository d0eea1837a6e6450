"""One operation of a store under a deadline.

An overdue operation is not cancelled. It runs on until its socket's own limit, because cancelling
it would close the connection, and a burst of deadlines would become a burst of reconnects. Neither
its success nor its failure counts any more. But the time that it took counts, in time or not: on a
busy machine the timer of a deadline can be later than the answer.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from jobcache.resilience.deadline import Deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.errors import CacheError
    from jobcache.resilience.circuit_breaker import Breaker
    from jobcache.resilience.confirmation import Confirmation

T = TypeVar("T")


class FailureObserver(Protocol):
    """Is notified of operations that do not succeed in time.

    Attributes:
        long_silence: seconds after which other processes may have given up the store.
    """

    long_silence: float

    def failed(self, number: int, error: BaseException) -> CacheError:
        """Note an operation that has failed in time. Returns the error to raise."""

    def overdue(self, number: int, limit: float) -> CacheError:
        """Note an operation that is overdue. Returns the error to raise."""

    def silence_ended(self) -> None:
        """Note that an operation has run for a long silence, before its result is used."""


class GuardedOperation(Generic[T]):
    """Give the result of a running operation to its caller, or an error at the deadline.

    Args:
        running: the operation.
        limit: its deadline in seconds.
        breaker: counts the operation, and its success.
        observer: is notified if it does not succeed in time, or takes very long.
        clock: monotonic time in seconds.
        confirmation: decides which of the entries that it reads have to be confirmed.
        on_late: called with the operation once it is overdue.

    Attributes:
        result: what the caller awaits, or adds a callback to.
    """

    __slots__ = (
        "_began",
        "_breaker",
        "_clock",
        "_confirmation",
        "_deadline",
        "_limit",
        "_number",
        "_observer",
        "_on_late",
        "_running",
        "result",
    )

    def __init__(
        self,
        running: asyncio.Future[T],
        limit: float,
        breaker: Breaker,
        observer: FailureObserver,
        clock: Callable[[], float],
        *,
        confirmation: Confirmation | None = None,
        on_late: Callable[[asyncio.Future[T]], None] | None = None,
    ) -> None:
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._running = running
        self._limit = limit
        self._breaker = breaker
        self._observer = observer
        self._confirmation = confirmation
        self._on_late = on_late
        self._clock = clock
        self._began = clock()
        breaker.begun += 1
        self._number = breaker.begun
        self._deadline = Deadline(limit, self._give_up)
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Future[T]) -> None:
        self._deadline.timer.cancel()
        if self._clock() - self._began >= self._observer.long_silence:
            self._observer.silence_ended()
        error = asyncio.CancelledError() if running.cancelled() else running.exception()
        result = self.result
        if result.done():
            return  # it was overdue, or its caller has gone
        if error is not None:
            result.set_exception(self._observer.failed(self._number, error))
            return
        self._breaker.succeeded()
        found: Any = running.result()
        if self._confirmation is not None and self._confirmation.active:
            found = self._confirmation.apply(found)
        result.set_result(found)

    def _give_up(self) -> None:
        if self._running.done() or self.result.done():
            return  # its callback will run next, or its caller has gone
        if self._on_late is not None:
            self._on_late(self._running)
        self.result.set_exception(self._observer.overdue(self._number, self._limit))
