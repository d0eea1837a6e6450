"""How long a connection may be idle, without a timer made anew for every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable


class Idle:
    """One timer for a connection, which finds out when it goes off whether it has been idle.

    It stands in for the `TimerHandle` of uvicorn's protocol, which cancels that when bytes come in.

    Args:
        loop: whose time counts.
        limit: seconds without bytes.
        over: called when they are over.
    """

    __slots__ = ("_armed", "_limit", "_loop", "_over", "_since", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, limit: float, over: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._limit = limit
        self._over = over
        self._armed = False
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """It is idle from now on."""
        self._since = self._loop.time()
        self._armed = True
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit, self._look)

    def cancel(self) -> None:
        """It is not, or no more."""
        self._armed = False

    def close(self) -> None:
        """The connection is gone."""
        self._armed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self._armed:
            return
        left = self._since + self._limit - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._armed = False
            self._over()
