"""An event loop that has callbacks and virtual time, and nothing else.

It never waits: `run_ready` runs every callback that is ready, and time stands still until
`pass_time`. So the same things happen between two choices of the explorer in every run.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    _Call = tuple[asyncio.Handle, Callable[..., object], tuple[Any, ...], contextvars.Context]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def at_once(operation: Coroutine[Any, Any, T], /) -> T:
    """Run an operation that never waits, such as those of the memory backend.

    Raises:
        RuntimeError: it does wait.
    """
    try:
        operation.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    operation.close()
    raise RuntimeError("this operation waits for something")


class VirtualLoop(asyncio.AbstractEventLoop):
    """The parts of a loop that tasks, futures and timeouts need; no files, threads or signals."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ready: deque[_Call] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle, _Call]] = []
        self._order = count()
        self.tasks: dict[asyncio.Task[Any], contextvars.Context] = {}
        """Tasks that were not found to be done yet, with the context that each began in."""
        self.errors: list[BaseException] = []
        """Errors that callbacks raised."""

    # --- for the explorer ---

    def run_ready(self) -> None:
        """Run callbacks until none is ready."""
        asyncio._set_running_loop(self)  # noqa: SLF001 - asyncio keeps it for event loops
        try:
            while self._ready:
                handle, callback, arguments, context = self._ready.popleft()
                if not handle.cancelled():
                    try:
                        context.run(callback, *arguments)
                    except Exception as error:  # noqa: BLE001 - a finding, not ours to handle
                        self.errors.append(error)
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001
        for task in [task for task in self.tasks if task.done()]:
            del self.tasks[task]

    def waits_for_time(self) -> bool:
        """Return whether there is a timer that has not been cancelled."""
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return bool(self._timers)

    def pass_time(self) -> None:
        """Go to the next timer, and let it fire."""
        if self.waits_for_time():
            self._now = max(self._now, self._timers[0][0])
        while self.waits_for_time() and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[3])

    def has_timer(self, concerns: Callable[[contextvars.Context], bool]) -> bool:
        """Return whether a timer was set in such a context, and not cancelled."""
        return any(
            concerns(call[3]) and not handle.cancelled() for _, _, handle, call in self._timers
        )

    def fire(self, concerns: Callable[[contextvars.Context], bool]) -> None:
        """Let the timers fire that were set in such a context, while time stands still."""
        firing = sorted(timer for timer in self._timers if concerns(timer[3][3]))
        self._timers = [timer for timer in self._timers if not concerns(timer[3][3])]
        heapq.heapify(self._timers)
        self._ready.extend(call for *_, call in firing)

    # --- for asyncio ---

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run a callback in this call of `run_ready`, or in the next one."""
        within = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, within)
        self._ready.append((handle, callback, args, within))
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a virtual time."""
        within = contextvars.copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, within)
        call = (handle, callback, args, within)
        heapq.heappush(self._timers, (when, next(self._order), handle, call))
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback after some virtual seconds."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],  # type: ignore[override]
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        """Start a task, and note its context."""
        within = contextvars.copy_context() if context is None else context
        task = asyncio.Task(coro, loop=self, name=name, context=within)
        self.tasks[task] = within
        return task

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Do nothing: an error that nobody awaits shows in its consequences."""

    def get_debug(self) -> bool:
        """Return False: nothing is debugged."""
        return False

    def is_running(self) -> bool:
        """Return whether `run_ready` is running."""
        return asyncio._get_running_loop() is self  # noqa: SLF001

    def is_closed(self) -> bool:
        """Return False: there is nothing to close."""
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Do nothing: a cancelled timer is dropped when its time comes."""
