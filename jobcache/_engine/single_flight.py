"""One call at a time per key, shared by everyone who asked before it began.

Go's singleflight lets a caller join a call that is already under way. For a cache that is wrong:

    A starts a load, and it reads version 1
    W commits version 2 and acknowledges it
    B asks, joins A's load, and is given version 1

So here nobody joins what has begun. While one call runs, everyone who asks waits for one further
call, which begins when the running one ends; a burst of any size costs two calls at most.

The calls of a key run in tasks of their own, one after the other. No caller's cancellation reaches
them, the first caller's included; a call whose callers have all left before it began is left out.

A call that goes on after all its callers have left is *abandoned*: it may hang, so whoever asks
now does not wait for it, and another call begins beside it. It is not cancelled at once, for what
it brings may still be of use to others. But each key has one abandoned call at most: another one
takes its place, and it is cancelled.

    the source is slow, and each caller gives up before it answers: one of the calls ends at last
    the source hangs: two calls wait for it, however many callers come and go
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("call", "context", "landed", "passengers", "task")

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self.call = call
        self.context = contextvars.copy_context()
        self.landed: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.passengers = 0
        self.task: asyncio.Task[None] | None = None


class _PipelinedConnection(Generic[T]):
    __slots__ = ("boarding", "flying")

    def __init__(self) -> None:
        self.boarding: _Flight[T] | None = None
        self.flying: _Flight[T] | None = None


class SingleFlight(Generic[T]):
    """Shares calls by key, within one event loop."""

    def __init__(self) -> None:
        self._connections: dict[Hashable, _PipelinedConnection[T]] = {}
        self._abandoned: dict[Hashable, _Flight[T]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    async def share(self, key: Hashable, call: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of `call`, or of an equal call for `key` that had not begun yet.

        Args:
            key: calls under one key must be interchangeable.
            call: begins in a later turn of the loop, after all who ask in this one have joined.

        Returns:
            The result, and whether it is another caller's.

        Raises:
            Exception: whatever the call raised, to everyone who shared it.
        """
        lane = self._connections.get(key)
        joined = lane is not None and lane.boarding is not None
        if lane is None:
            lane = self._connections[key] = _PipelinedConnection()
        flight = lane.boarding
        if flight is None:
            flight = lane.boarding = _Flight(call)
        flight.passengers += 1
        self._go_on(key, lane)
        try:
            # The future is everybody's: awaited bare, the first to be cancelled would cancel it.
            return await asyncio.shield(flight.landed), joined
        finally:
            flight.passengers -= 1
            if lane.flying is flight:
                self._go_on(key, lane)

    def _go_on(self, key: Hashable, lane: _PipelinedConnection[T]) -> None:
        """Start the flight that is boarding, unless somebody waits for the one under way."""
        flying, following = lane.flying, lane.boarding
        if self._closing or (flying is not None and flying.passengers):
            return
        if following is not None and following.task is not None:
            return  # it is about to begin
        if following is None or not following.passengers:
            if flying is None:
                del self._connections[key]
            return
        if flying is not None:
            self._abandon(key, flying)
            lane.flying = None
        # In the context of whoever asked first, so that traces lead to a request that wanted it.
        following.task = asyncio.create_task(
            self._fly(key, lane, following), context=following.context
        )
        self._tasks.add(following.task)
        following.task.add_done_callback(self._tasks.discard)

    def _abandon(self, key: Hashable, flight: _Flight[T]) -> None:
        before = self._abandoned.get(key)
        if before is not None and before.task is not None:
            before.task.cancel()
        self._abandoned[key] = flight

    async def _fly(self, key: Hashable, lane: _PipelinedConnection[T], flight: _Flight[T]) -> None:
        try:
            lane.flying = flight
            lane.boarding = None  # nobody joins what has begun
            if flight.passengers:
                await self._land(flight)
        finally:
            flight.landed.cancel()  # unless it has landed
            if lane.flying is flight:
                lane.flying = None
                self._go_on(key, lane)
            elif self._abandoned.get(key) is flight:
                del self._abandoned[key]

    async def _land(self, flight: _Flight[T]) -> None:
        try:
            result = await flight.call()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            error: Exception = RuntimeError("the shared call was cancelled by what it called")
        except Exception as raised:  # noqa: BLE001 - it is the passengers' to handle
            error = raised
        else:
            flight.landed.set_result(result)
            return
        if flight.passengers:
            flight.landed.set_exception(error)

    def __len__(self) -> int:
        """How many keys have a call under way."""
        return len(self._connections.keys() | self._abandoned.keys())

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it has ended. Those who wait are cancelled."""
        self._closing = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for lane in self._connections.values():  # cancelled before its first step, a task runs none
            if lane.boarding is not None:
                lane.boarding.landed.cancel()
        self._connections.clear()
        self._abandoned.clear()
        self._closing = False
