"""The time limit of a connection: one timer, which is not made anew for every request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class KeepAliveTimer:
    """A deadline that is moved often and met rarely.

    Moving it later only changes a number: the timer looks, when it goes off, whether the deadline
    has been met. Only an earlier deadline needs a new timer.

    Args:
        loop: whose time counts.
        limit: seconds, unless `begin` says otherwise.
        over: called when the deadline is met.
    """

    __slots__ = ("_armed", "_due", "_goes_off", "_limit", "_loop", "_over", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, over: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._over = over
        self._armed = False
        self._due = 0.0
        self._goes_off = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, limit: float | None = None) -> None:
        """Set the deadline: `limit` seconds from now."""
        if limit is None:
            limit = self._limit
        due = self._due = self._loop.time() + limit
        self._armed = True
        if self._timer is None:
            self._set(limit)
        elif due < self._goes_off:
            self._timer.cancel()
            self._set(limit)

    def cancel(self) -> None:
        """Set no deadline."""
        self._armed = False

    def close(self) -> None:
        """Give the timer back: the connection is gone, and is not referred to any more."""
        self._armed = False
        self._over = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, delay: float) -> None:
        self._goes_off = self._loop.time() + delay
        self._timer = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._armed:
            return
        left = self._due - self._loop.time()
        if left > 0:
            self._set(left)
        else:
            self._armed = False
            self._over()


def _nothing() -> None:
    pass
