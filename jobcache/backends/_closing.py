"""The end of tasks that talk to a server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection

_AGAIN = 0.05  # seconds


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and return once they have ended; what they raise is nobody's.

    Before Python 3.12 `asyncio.wait_for`, which redis-py sends with, may lose a cancellation. A
    task that goes on for ever would then never end, so it is cancelled again until it has.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # seen: nobody waits for it any more
