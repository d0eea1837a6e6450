"""Work that is carried to its end once it has begun, whatever becomes of whoever began it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class ShieldedTasks:
    """Keeps cancellation away from work that must not be cut off half way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` in a task of its own, which goes on if the caller is cancelled meanwhile.

        Raises:
            Exception: whatever `work` raised; unseen if the caller has gone by then.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever awaited it may have gone

    async def join(self) -> None:
        """Wait until all that has begun has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)
