"""The readiness check of the service, run at most once a second, however many requests ask."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_INTERVAL = 1.0


class Readiness:
    """Share the result of a check among all requests that come while it runs, and shortly after.

    Args:
        check: raises an error if the service cannot answer.
        interval: the least number of seconds from the start of one check to that of the next.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[object]],
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._interval = interval
        self._clock = clock
        self._started_at = 0.0
        self._running: asyncio.Task[Exception | None] | None = None

    async def check(self) -> None:
        """Return if the newest check passed; otherwise raise its error."""
        running = self._running
        if running is None or (
            running.done() and self._clock() - self._started_at >= self._interval
        ):
            self._started_at = self._clock()
            running = self._running = asyncio.create_task(self._run())
        # Shielded: a client that disconnects must not cancel the check for the others.
        error = await asyncio.shield(running)
        if error is not None:
            raise error.with_traceback(None)  # each raise would make the traceback longer

    async def _run(self) -> Exception | None:
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001 - `check` raises it
            return error
        return None
