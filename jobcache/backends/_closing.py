"""Cancel tasks that talk to a server, until they have ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_AGAIN = 0.05  # seconds


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and return once they have ended. Their errors are ignored.

    Before Python 3.12 `asyncio.wait_for`, which redis-py uses to send, may lose a cancellation. So
    a task that has not ended is cancelled again.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not report it
