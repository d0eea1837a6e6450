"""Runs coroutines for threads, on an event loop in a thread of its own.

A call runs a coroutine on the loop, and its thread waits for the end. While the thread waits, it
runs the callbacks that the coroutine requests. So a caller's loader and transaction run in the
caller's own thread, where drivers that are tied to a thread work, and the loop never blocks.

All decisions are made in the loop's thread, and sent as messages. There is no lock that an
interrupted thread could leave locked. A callback request stays recorded until it is done, because a
signal may interrupt a thread between any two steps:

    get() takes a request from the queue; the signal handler raises; the request is lost

A fork copies one thread and the memory. The loop and its sockets belong to the parent process, so
the child never touches them: the sockets are shared, and a loop that closes one in the child
removes it from the parent's selector.

Rejected: `asyncio.run` for each call, which ends probes, feeds and shared loads between calls. Also
rejected: running callbacks in a thread pool, where a transaction would move between threads.
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

_LAST_SECONDS = 5.0  # that the exit of the interpreter waits for running calls


class _Forks:
    """Counts forks, which identifies a process; a process id may be used again."""

    def __init__(self) -> None:
        self.count = 0
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self.count += 1


forks = _Forks()
"""The number of forks between this process and the one that imported this module."""


@contextmanager
def _signals_later() -> Iterator[set[int] | None]:
    """Block signals in this thread, and yield the set that was blocked before; None: unsupported.

    For `Thread.start`: a signal handler that raises there may leave a lock locked, for which the
    new thread waits.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield None
        return
    mask: set[int] = {*signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())}
    try:
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class CallerLeft(Exception):  # noqa: N818 - it names an event; no user gets it
    """The thread that should run a callback does not wait any more."""


class _Presence(Enum):
    WAITING = auto()
    RETURNED = auto()
    """The call has ended, and its thread goes on."""
    LEFT = auto()
    """The thread was interrupted, and did not wait for the end."""


class _CallbackRequest(Generic[T]):
    """A callback that a coroutine wants a thread to run. Run at most once."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.value: T
        self.error: Exception | None = CallerLeft()

    def run(self) -> None:
        """Run the callback, in the thread. Only an `Exception` is passed on to the coroutine."""
        try:
            self.value = self._function()
        except Exception as error:  # noqa: BLE001 - the coroutine raises it
            self.error = error
        else:
            self.error = None

    def report(self) -> None:
        """Wake the coroutine, if it still waits. In the loop's thread."""
        if not self.done.done():
            self.done.set_result(None)


class CallingThread:
    """The thread of one call, as the coroutine of the call sees it."""

    def __init__(self, loop_thread: LoopThread[Any], work: Work[Any, Any]) -> None:
        self._loop_thread = loop_thread
        self._work = work
        self._context = contextvars.copy_context()
        self._presence = _Presence.WAITING
        self._task: asyncio.Task[None] | None = None
        self._requests: set[_CallbackRequest[Any]] = set()  # not reported yet
        self._inbox: Inbox[_CallbackRequest[Any] | None] = make_inbox()  # None: the call is over
        self.value: Any = None
        self.error: BaseException | None = CacheClosed("the cache was closed during the call")

    # --- in the loop's thread ---

    async def ask(self, function: Callable[[], T], *, afterwards: bool = False) -> T:
        """Call `function` in the caller's thread, and return its result.

        Args:
            function: the callback.
            afterwards: if the call has returned by then, call the function in a new thread.

        Raises:
            CallerLeft: the thread does not wait any more.
            Exception: any exception that `function` raised.
        """
        request = _CallbackRequest(function)
        if self._presence is _Presence.WAITING:
            self._requests.add(request)
            self._inbox.put(request)
        elif self._presence is _Presence.RETURNED and afterwards:
            # A daemon thread: the exit of the interpreter need not wait for it.
            make_thread(lambda: self._run(request), "jobcache comparison").start()
        else:
            raise CallerLeft
        try:
            await request.done
        finally:
            self._requests.discard(request)
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
                    # The thread of another caller left a shared load; this thread runs its own.
                else:
                    break
        except asyncio.CancelledError:
            pass  # the cache was closed, or nobody waits for the result
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            self.error = error
        else:
            self.error = None
        finally:
            # In the same step of the loop: later requests find that the call has returned.
            if self._presence is _Presence.WAITING:
                self._presence = _Presence.RETURNED

    def leave(self) -> None:
        """Note that the thread does not wait any more, and cancel the call."""
        self._presence = _Presence.LEFT
        if self._task is not None:
            self._task.cancel()
        for request in self._requests:
            request.report()  # its error is `CallerLeft` unless it was run

    def end(self) -> None:
        """Let the thread return from `wait`."""
        self._inbox.put(None)

    # --- in the caller's thread ---

    def wait(self) -> None:
        """Start the work on the loop, and run its callbacks until it has ended."""
        self._loop_thread.post(self.begin)
        while (request := self._inbox.get()) is not None:
            self._run(request)

    def _run(self, request: _CallbackRequest[Any]) -> None:
        try:
            request.run()
        finally:
            with suppress(CacheClosed):  # then no coroutine waits for it
                self._loop_thread.post(request.report)


class LoopThread(Generic[R]):
    """An event loop in a daemon thread, started at the first call, and an object that lives on it.

    Args:
        name: the name of the thread.
        make_target: makes the object, in the loop's thread, at the first call. If it raises an
            error, that call raises it, and the next call tries again.
        close: closes the object.

    Attributes:
        abandoned: objects of the parent process that a forked child keeps and never touches.
    """

    def __init__(
        self, name: str, make_target: Callable[[], R], close: Callable[[R], Awaitable[None]]
    ) -> None:
        self._name = name
        self._make_target = make_target
        self._close = close
        self._forks = forks.count
        self._starting = (
            make_lock()
        )  # used by this process only: a child has a loop thread of its own
        self._thread: NativeThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._broken: Exception | None = None  # why the loop could not be made
        self._target: R | None = None
        self._closing = False
        self._may_end = asyncio.Event()
        self._callers: set[CallingThread] = set()
        self.abandoned: list[object] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def here(self) -> bool:
        """True in the process that made this object, False in its forked children."""
        return self._forks == forks.count

    def call(self, work: Work[R, T]) -> T:
        """Run `work` on the loop, and wait for it.

        An exception that a signal handler raises meanwhile ends the wait and cancels `work`.

        Args:
            work: called with the object and this thread. It is called again if it raises a
                `CallerLeft` of another caller.

        Raises:
            CacheClosed: the loop thread is closed, or was closed meanwhile.
            RuntimeError: this process was forked from the one that made the loop thread.
            UnsupportedRuntime: eventlet has patched this process.
            BaseException: any exception that `work` or a signal handler raised.
        """
        refuse_eventlet()
        caller = CallingThread(self, work)
        # When the loop ends, it ends all callers in this set. A caller that is added later finds
        # the loop closed. So nobody waits for a loop that has ended.
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
            del caller  # it refers to the error, and the error to this frame

    def _post_leave(self, caller: CallingThread) -> None:
        """Cancel the call, however many signals arrive; its coroutine waits for this thread."""
        while True:
            try:
                self.post(caller.leave)
            except (CacheClosed, RuntimeError):
                return  # the loop has ended
            except BaseException:  # noqa: BLE001, S112 - another exception is being raised already
                continue
            return

    def post(self, function: Callable[[], object]) -> None:
        """Schedule a call of `function` in the loop's thread.

        Raises:
            CacheClosed: the loop has ended.
            RuntimeError: this process was forked from the one that made the loop thread.
        """
        if not self.here:
            raise RuntimeError("this call began before a fork, and belongs to the parent process")
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
        """Close the object, and end the thread. Safe to call twice.

        Other running calls raise `CacheClosed`.

        Args:
            limit: the most seconds to wait for the end; None: no limit.
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
        """Return the object that lives on the loop. Raises `CacheClosed` once closing began."""
        if self._may_end.is_set():
            raise CacheClosed("the cache is closed")
        if self._target is None:
            self._target = self._make_target()
        return self._target

    def began(self, task: asyncio.Task[None]) -> None:
        """Record the task of a call, to be cancelled at the end."""
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
