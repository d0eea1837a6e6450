"""A bridge between threads that wait and an event loop in a thread of its own.

A call sends a coroutine over to the loop and waits for its end. While it waits, its thread does
what the coroutine asks of it: a caller's load and transaction run in the caller's own thread, where
drivers that are tied to a thread work, and the loop never blocks.

What both sides have to agree on is decided in the loop's thread, and told by messages; there is no
lock that an interrupted thread could leave held. Errands stay in the caller's sight until they are
done, since a signal may strike between any two steps of a thread:

    get() takes an errand from the queue; the signal's handler raises; the errand is lost

A fork copies one thread and the memory. What the loop had in its hands belongs to the process that
was forked, and so the child leaves all of it alone, for good: its sockets are shared, and the loop
that is told to drop one drops it from the parent's selector.

Rejected: `asyncio.run` for each call, which ends what goes on between calls (probes, feeds, shared
loads); running a caller's functions in a pool, where a transaction would wander between threads.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import signal
from contextlib import contextmanager, suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from jobcache._threads import make_event_loop, make_inbox, make_lock, make_thread, refuse_eventlet
from jobcache.errors import CacheClosed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from threading import Lock

    from jobcache._threads import Inbox, NativeThread

    Work = Callable[["R", "CallingThread"], Awaitable["T"]]

R = TypeVar("R")
T = TypeVar("T")

_LAST_SECONDS = 5.0  # that an interpreter waits at its exit for what is under way


class _Forks:
    """Tells a process from those it was forked from, whose numbers may have been given anew."""

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


forks = _Forks()
"""How many forks lie between this process and the one that imported this module."""


@contextmanager
def _signals_later() -> Iterator[set[int] | None]:
    """Keep signals from this thread; yields which were kept from it before. None: it cannot be.

    For `Thread.start`, which may leave a lock held that the new thread waits for.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield None
        return
    mask: set[int] = {*signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())}
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class CallerLeft(Exception):  # noqa: N818 - what has happened, and nobody's error
    """The thread that was to do something does not wait any more."""


class _Presence(Enum):
    WAITING = auto()
    RETURNED = auto()
    """The call has ended; its thread goes on."""
    LEFT = auto()
    """Its thread was interrupted, and did not wait for the end."""


class _CallbackRequest(Generic[T]):
    """What a coroutine asks of a thread. Done at most once."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.value: T
        self.error: Exception | None = CallerLeft()

    def run(self) -> None:
        """Do it, in the thread. What is no `Exception` goes up there, and ends its call."""
        try:
            self.value = self._function()
        except Exception as error:  # noqa: BLE001 - it is for whoever asked
            self.error = error
        else:
            self.error = None

    def report(self) -> None:
        """Tell whoever asked, if it still waits. In the loop's thread."""
        if not self.done.done():
            self.done.set_result(None)


class CallingThread:
    """One call's thread, as its coroutine sees it."""

    def __init__(self, loop_thread: LoopThread[Any], work: Work[Any, Any]) -> None:
        self._loop_thread = loop_thread
        self._work = work
        self._context = contextvars.copy_context()
        self._presence = _Presence.WAITING
        self._task: asyncio.Task[None] | None = None
        self._errands: set[_CallbackRequest[Any]] = set()  # that have not been reported
        self._inbox: Inbox[_CallbackRequest[Any] | None] = make_inbox()  # None: the call is over
        self.value: Any = None
        self.error: BaseException | None = CacheClosed("the cache was closed meanwhile")

    # --- in the loop's thread ---

    async def ask(self, function: Callable[[], T], *, afterwards: bool = False) -> T:
        """Have the caller's thread call `function`.

        Args:
            function: what to call.
            afterwards: once the call has returned, call it in a thread of its own.

        Raises:
            CallerLeft: the thread does not wait any more.
            Exception: whatever `function` raised.
        """
        request = _CallbackRequest(function)
        if self._presence is _Presence.WAITING:
            self._errands.add(request)
            self._inbox.put(request)
        elif self._presence is _Presence.RETURNED and afterwards:
            # A daemon: whatever it waits for, nobody waits for it.
            make_thread(lambda: self._run(request), "jobcache comparison").start()
        else:
            raise CallerLeft
        try:
            await request.done
        finally:
            self._errands.discard(request)
        if request.error is not None:
            raise request.error
        return request.value

    def begin(self) -> None:
        """Start the call."""
        self._task = asyncio.create_task(self._attend(), context=self._context)
        self._loop_thread.began(self._task)
        self._task.add_done_callback(lambda _: self.end())

    async def _attend(self) -> None:
        try:
            target = self._loop_thread.target()
            while True:
                try:
                    self.value = await self._work(target, self)
                except CallerLeft:
                    if self._presence is not _Presence.WAITING:
                        raise
                    # What was shared was another's to do, who has left; now it is ours.
                else:
                    break
        except asyncio.CancelledError:
            pass  # closed, or nobody waits for it
        except BaseException as error:  # noqa: BLE001 - it is the caller's, whatever it is
            self.error = error
        else:
            self.error = None
        finally:
            # In the same step: whoever asks from now on asks too late.
            if self._presence is _Presence.WAITING:
                self._presence = _Presence.RETURNED

    def leave(self) -> None:
        """The thread waits no longer."""
        self._presence = _Presence.LEFT
        if self._task is not None:
            self._task.cancel()
        for request in self._errands:
            request.report()  # not done, as it has it unless told otherwise

    def end(self) -> None:
        """The call is over."""
        self._inbox.put(None)

    # --- in the caller's thread ---

    def wait(self) -> None:
        """Send the work over and do what it asks, until it has ended."""
        self._loop_thread.post(self.begin)
        while (request := self._inbox.get()) is not None:
            self._run(request)

    def _run(self, request: _CallbackRequest[Any]) -> None:
        try:
            request.run()
        finally:
            with suppress(CacheClosed):  # then nobody waits for it
                self._loop_thread.post(request.report)


class LoopThread(Generic[R]):
    """A loop in a daemon thread, started when it is first needed, and what lives on it.

    Args:
        name: the thread's.
        resolve_future: makes the resident, in the loop's thread, at the first call. If it raises,
            that
            call does, and the next one tries again.
        close: closes the resident.

    Attributes:
        abandoned: kept, and left alone, in processes forked from this one: it is this one's.
    """

    def __init__(
        self, name: str, resolve_future: Callable[[], R], close: Callable[[R], Awaitable[None]]
    ) -> None:
        self._name = name
        self._settle = resolve_future
        self._close = close
        self._forks = forks.count
        self._starting = make_lock()  # of this process alone: a child has a bridge of its own
        self._thread: NativeThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: Exception | None = None  # why there is no loop
        self._target: R | None = None
        self._closing = False
        self._may_end = asyncio.Event()
        self._callers: set[CallingThread] = set()
        self.abandoned: list[object] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def here(self) -> bool:
        """True in the process that made it; false in those forked from it."""
        return self._forks == forks.count

    def call(self, work: Work[R, T]) -> T:
        """Run `work` on the loop, and wait for it.

        What a signal's handler raises meanwhile ends the wait, and cancels `work`.

        Args:
            work: given the resident and this caller. Begun anew if a `CallerLeft` that is not this
                caller's reaches it.

        Raises:
            CacheClosed: the bridge is closed, or was closed meanwhile.
            RuntimeError: this process was forked from the bridge's.
            UnsupportedRuntime: eventlet has patched this process.
            BaseException: what `work` raised, or a signal's handler.
        """
        refuse_eventlet()
        caller = CallingThread(self, work)
        # Whoever is in this set is told of the end, and whoever comes too late for that finds the
        # loop closed: nobody waits for a loop that has ended.
        self._callers.add(caller)
        try:
            self._start()
            caller.wait()
        except BaseException:
            self._post_leave(caller)
            raise
        finally:
            self._callers.discard(caller)
        if caller.error is None:
            value: T = caller.value
            return value
        try:
            raise caller.error
        finally:
            del caller  # which would keep the error, which keeps this frame

    def _post_leave(self, caller: CallingThread) -> None:
        """However thick the signals come: a coroutine that is not told waits for this thread."""
        while True:
            try:
                self.post(caller.leave)
            except (CacheClosed, RuntimeError):
                return  # nobody is left to be told
            except BaseException:  # noqa: BLE001, S112 - one is on its way already
                continue
            return

    def post(self, function: Callable[[], object]) -> None:
        """Have `function` called in the loop's thread.

        Raises:
            CacheClosed: the loop has ended.
            RuntimeError: this process was forked from the bridge's.
        """
        if not self.here:
            raise RuntimeError("this was begun before a fork, and belongs to the process before it")
        if self._loop is None:
            raise CacheClosed("the cache has not been opened")
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError as error:
            raise CacheClosed("the cache is closed") from error

    def _start(self) -> None:
        if self._thread is not None:
            return
        with self._starting:
            if self._closing:
                raise CacheClosed("the cache is closed")
            if self._thread is None:
                with _signals_later() as mask:
                    made = make_lock()
                    made.acquire()  # the thread releases it, once its loop has been made
                    thread = make_thread(lambda: self._main(mask, made), self._name)
                    thread.start()
                    made.acquire()
                    if self._broken is not None:
                        raise self._broken
                    atexit.register(self._at_exit)
                    self._thread = thread

    def close(self, limit: float | None = None) -> None:
        """Close the resident, end the thread.

        Other calls under way raise `CacheClosed`. Safe to call twice.

        Args:
            limit: the most seconds to wait for that; None: as long as it takes.
        """
        with self._starting:
            self._closing = True
        if self._thread is not None:
            atexit.unregister(self._at_exit)
            with suppress(CacheClosed):
                self.post(self._may_end.set)
            self._thread.join(limit)

    def _at_exit(self) -> None:
        if self.here:
            self.close(_LAST_SECONDS)

    # --- in the loop's thread ---

    def target(self) -> R:
        """What lives here. Raises `CacheClosed` once it is on its way out."""
        if self._may_end.is_set():
            raise CacheClosed("the cache is closed")
        if self._target is None:
            self._target = self._settle()
        return self._target

    def began(self, task: asyncio.Task[None]) -> None:
        """A call's task has been made."""
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _main(self, mask: set[int] | None, made: Lock) -> None:
        try:
            loop = make_event_loop()
        except Exception as error:  # noqa: BLE001 - the caller raises it
            self._broken = error
            return
        else:
            self._loop, self._broken = loop, None
        finally:
            made.release()
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._live())
        finally:
            for caller in list(self._callers):
                caller.end()

    async def _live(self) -> None:
        await self._may_end.wait()
        if self._target is not None:
            await self._close(self._target)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
