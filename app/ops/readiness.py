"""Whether the service can answer, found out at most once a second, however often it is asked."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_EVERY = 1.0


class Readiness:
    """Shares the result of a check among all who ask while it runs, and for a while after.

    Args:
        check: raises if the service cannot answer.
        every: seconds from the beginning of one check to that of the next, at least.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[object]],
        every: float = _EVERY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._check = check
        self._every = every
        self._clock = clock
        self._began = 0.0
        self._running: asyncio.Task[Exception | None] | None = None

    async def check(self) -> None:
        """Return if the newest check passed; raise what it raised if not."""
        running = self._running
        if running is None or (running.done() and self._clock() - self._began >= self._every):
            self._began = self._clock()
            running = self._running = asyncio.create_task(self._run())
        # Shielded: who hangs up does not end it for the others.
        error = await asyncio.shield(running)
        if error is not None:
            raise error.with_traceback(None)  # it is raised again and again, and would grow

    async def _run(self) -> Exception | None:
        try:
            await self._check()
        except Exception as error:  # noqa: BLE001 - for those who ask
            return error
        return None
