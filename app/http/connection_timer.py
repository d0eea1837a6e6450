"""The deadline of what a connection waits for: one timer, which is not created for each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class ConnectionTimer:
    """A deadline that is moved often and reached rarely.

    To move it later only changes a number: when the timer fires, it compares that number with the
    time. Only an earlier deadline needs a new timer. A deadline is not cancelled: its owner ignores
    one that it no longer cares for.

    Args:
        loop: its clock counts.
        limit: seconds, unless `begin` is given others.
        over: called when the deadline is reached.
    """

    __slots__ = ("_due", "_goes_off", "_limit", "_loop", "_over", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, over: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._over = over
        self._due = 0.0
        self._goes_off = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, limit: float | None = None) -> None:
        """Set the deadline: `limit` seconds from now."""
        if limit is None:
            limit = self._limit
        due = self._due = self._loop.time() + limit
        if self._timer is None:
            self._set(limit)
        elif due < self._goes_off:
            self._timer.cancel()
            self._set(limit)

    def close(self) -> None:
        """Cancel the timer for good, and drop the reference to the connection."""
        self._over = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, delay: float) -> None:
        self._goes_off = self._loop.time() + delay
        self._timer = self._loop.call_later(delay, self._check)

    def _check(self) -> None:
        self._timer = None
        left = self._due - self._loop.time()
        if left > 0:
            self._set(left)
        else:
            self._over()


def _nothing() -> None:
    pass
