"""One call at a time per key, shared by everyone who asked before it began.

Go's singleflight lets a caller join a call that is already under way. For a cache that is wrong:

    A starts a load, and it reads version 1
    W commits version 2 and acknowledges it
    B asks, joins A's load, and is given version 1

So here nobody joins what has begun. While one call runs, everyone who asks waits for one further
call, which begins when the running one ends; a burst of any size costs two calls at most.

The calls of a key run in tasks of their own, one after the other. No caller's cancellation reaches
them, the first caller's included; a call whose callers have all left before it began is left out.
"""

from __future__ import annotations

import asyncio
import contextvars
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

T = TypeVar("T")


class _Flight(Generic[T]):
    __slots__ = ("call", "context", "landed", "passengers")

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self.call = call
        self.context = contextvars.copy_context()
        self.landed: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.passengers = 0


class _Lane(Generic[T]):
    __slots__ = ("boarding", "closing", "task")

    def __init__(self, first: _Flight[T]) -> None:
        self.boarding: _Flight[T] | None = first
        self.closing = False
        self.task: asyncio.Task[None]


class SingleFlight(Generic[T]):
    """Shares calls by key, within one event loop."""

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane[T]] = {}

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
        lane = self._lanes.get(key)
        joined = lane is not None and lane.boarding is not None
        if lane is None:
            flight = _Flight(call)
            lane = self._lanes[key] = _Lane(flight)
            self._start(key, lane, flight)
        elif lane.boarding is None:
            flight = lane.boarding = _Flight(call)
        else:
            flight = lane.boarding
        flight.passengers += 1
        try:
            # The future is everybody's: awaited bare, the first to be cancelled would cancel it.
            return await asyncio.shield(flight.landed), joined
        finally:
            flight.passengers -= 1

    def _start(self, key: Hashable, lane: _Lane[T], flight: _Flight[T]) -> None:
        # In the context of whoever asked first, so that traces lead to a request that wanted it.
        lane.task = asyncio.create_task(self._fly(key, lane, flight), context=flight.context)

    async def _fly(self, key: Hashable, lane: _Lane[T], flight: _Flight[T]) -> None:
        try:
            lane.boarding = None  # nobody joins what has begun
            if flight.passengers:
                await self._land(flight)
        finally:
            flight.landed.cancel()  # unless it has landed
            following = lane.boarding
            if following is None:
                del self._lanes[key]
            elif not lane.closing:
                self._start(key, lane, following)

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
        return len(self._lanes)

    async def aclose(self) -> None:
        """Cancel what is under way, and wait until it has ended. Those who wait are cancelled."""
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.closing = True
            lane.task.cancel()
        if lanes:
            await asyncio.wait([lane.task for lane in lanes])
        for lane in lanes:  # a task that is cancelled before its first step runs none of its own
            if lane.boarding is not None:
                lane.boarding.landed.cancel()
        self._lanes.clear()
