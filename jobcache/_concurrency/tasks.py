"""Work that is carried to its end once it has begun, whatever becomes of its caller."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_shielded_by: ContextVar[asyncio.Task[Any] | None] = ContextVar("jobcache_shielded", default=None)
"""The shielded task that the running code is called by, if it still runs in that task."""


class ShieldedTasks:
    """Keep cancellation away from work that must not be cut off half way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` in a task of its own, which goes on if the caller is cancelled meanwhile.

        Within other shielded work it needs no task: nobody cancels the one that it runs in.

        Raises:
            Exception: whatever `work` raised; unseen if the caller has gone by then.
        """
        if _shielded_by.get() is asyncio.current_task():
            return await work
        task = asyncio.create_task(_run_shielded(work))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the caller may have gone

    async def join(self) -> None:
        """Wait until all work that has begun has ended."""
        while self._tasks:
            await asyncio.wait(self._tasks)


async def _run_shielded(work: Coroutine[Any, Any, T]) -> T:
    _shielded_by.set(asyncio.current_task())
    return await work
