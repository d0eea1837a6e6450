"""Single flight: one call at a time per key, shared by all callers that asked before it began.

Go's singleflight lets a caller join a call that already runs. For a cache that is wrong:

    A starts a load, and it reads version 1
    W commits version 2 and acknowledges it
    B asks, joins A's load, and gets version 1

So here nobody joins a call that runs. While one call runs, all new callers share one further call,
which begins when the running one ends. A burst of any size costs at most two calls.

Each call runs in a task of its own, so the cancellation of a caller does not reach it. A call whose
callers have all left before it began is not made.

A call that goes on after all its callers have left is *abandoned*. It may hang, so later callers do
not wait for it: another call begins beside it. It is not cancelled at once, because its result may
still be useful. But a key has at most one abandoned call: the next one replaces it, and it is
cancelled.

    the source is slow, and every caller gives up before it answers: one of the calls ends at last
    the source hangs: two calls wait for it, however many callers come and go
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")


class _Call(Generic[T]):
    """One shared call."""

    __slots__ = ("callers", "context", "function", "result", "task")

    def __init__(self, function: Callable[[], Awaitable[T]]) -> None:
        self.function = function
        self.context = contextvars.copy_context()
        self.result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.callers = 0
        self.task: asyncio.Task[None] | None = None


class _Slot(Generic[T]):
    """The calls of one key: the one that runs, and the one that callers can still join."""

    __slots__ = ("pending", "running")

    def __init__(self) -> None:
        self.pending: _Call[T] | None = None
        self.running: _Call[T] | None = None


class SingleFlight(Generic[T]):
    """Shares calls by key, within one event loop."""

    def __init__(self) -> None:
        self._slots: dict[Hashable, _Slot[T]] = {}
        self._abandoned: dict[Hashable, _Call[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def share(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return the result of `call`, or of a call for the same key that has not begun yet.

        Args:
            key: calls for one key must be interchangeable.
            call: begins in a later turn of the loop, after all callers of this turn have joined.

        Returns:
            The result, and whether the call was another caller's.

        Raises:
            Exception: any exception that the call raised; all callers who share it get it.
        """
        slot = self._slots.get(key)
        joined = slot is not None and slot.pending is not None
        if slot is None:
            slot = self._slots[key] = _Slot()
        shared = slot.pending
        if shared is None:
            shared = slot.pending = _Call(call)
        shared.callers += 1
        self._start_pending(key, slot)
        try:
            # Shielded: else the first caller that is cancelled would cancel the future of all.
            return await asyncio.shield(shared.result), joined
        finally:
            shared.callers -= 1
            if slot.running is shared:
                self._start_pending(key, slot)

    def _start_pending(self, key: Hashable, slot: _Slot[T]) -> None:
        """Start the pending call, unless the running call has callers."""
        running, following = slot.running, slot.pending
        if self._closing or (running is not None and running.callers):
            return
        if following is not None and following.task is not None:
            return  # its task has been created
        if following is None or not following.callers:
            if running is None:
                del self._slots[key]
            return
        if running is not None:
            self._abandon(key, running)
            slot.running = None
        # In the context of the first caller, so that traces lead to a request that needed it.
        following.task = asyncio.create_task(
            self._run_pending(key, slot, following), context=following.context
        )
        self._tasks.add(following.task)
        following.task.add_done_callback(self._tasks.discard)

    def _abandon(self, key: Hashable, shared: _Call[T]) -> None:
        before = self._abandoned.get(key)
        if before is not None and before.task is not None:
            before.task.cancel()
        self._abandoned[key] = shared

    async def _run_pending(self, key: Hashable, slot: _Slot[T], shared: _Call[T]) -> None:
        try:
            slot.running = shared
            slot.pending = None  # nobody joins what has begun
            if shared.callers:
                await self._run(shared)
        finally:
            shared.result.cancel()  # no effect if it is done
            if slot.running is shared:
                slot.running = None
                self._start_pending(key, slot)
            elif self._abandoned.get(key) is shared:
                del self._abandoned[key]

    async def _run(self, shared: _Call[T]) -> None:
        try:
            result = await shared.function()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            error: Exception = RuntimeError("the shared call was cancelled by what it called")
        except Exception as raised:  # noqa: BLE001 - the callers handle it
            error = raised
        else:
            shared.result.set_result(result)
            return
        if shared.callers:
            shared.result.set_exception(error)

    def __len__(self) -> int:
        """Return the number of keys that have a call."""
        return len(self._slots.keys() | self._abandoned.keys())

    async def aclose(self) -> None:
        """Cancel all calls and their callers, and wait until the calls have ended."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        # A task that is cancelled before its first step runs no `finally`.
        for slot in self._slots.values():
            if slot.pending is not None:
                slot.pending.result.cancel()
        self._slots.clear()
        self._abandoned.clear()
        self._closing = False
