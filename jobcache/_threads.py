"""Native threads, and messages to threads and greenlets that wait.

gevent's monkey patching turns `threading.Thread` into a greenlet. An event loop in a greenlet is
the running loop of all other greenlets of its thread, too. So an event loop needs a native thread:

    the loop's thread        a native thread with a gevent hub of its own; asyncio waits through
                             gevent's selector, so patched modules work there as well
    a greenlet that calls    waits in its own hub, so the other greenlets of its thread run on

All decisions are made when a thread starts or waits, not at import: a program may patch later.

Rejected: an unpatched selector in the loop's thread. It never runs the thread's hub, so a host name
that asyncio resolves in a (patched) thread pool would never be resolved.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from jobcache.errors import UnsupportedRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_GEVENT_MODULES = ("threading", "socket", "select", "queue", "time")
_EVENTLET_MODULES = ("thread", "socket", "select", "time", "os")
_KEEPALIVE_SECONDS = 60.0


class NativeThread(Protocol):
    """The methods of `threading.Thread` that are needed here."""

    def start(self) -> None:
        """Start the thread."""

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""


class Inbox(Protocol[T]):
    """A queue whose messages one thread or greenlet waits for."""

    def put(self, message: T, /) -> None:
        """Add a message. Callable from any thread."""

    def get(self, block: bool = True, timeout: float | None = None) -> T:  # noqa: FBT001, FBT002
        """Remove and return the oldest message. Raises `queue.Empty` after `timeout` seconds."""


def refuse_eventlet() -> None:
    """Raise an error if eventlet has patched the modules that threads and event loops need.

    Raises:
        UnsupportedRuntime: says what to do instead.
    """
    patcher = sys.modules.get("eventlet.patcher")
    if patcher is not None and any(map(patcher.is_monkey_patched, _EVENTLET_MODULES)):
        raise UnsupportedRuntime(
            "jobcache.sync does not work under eventlet.monkey_patch(), which leaves no thread for"
            " its event loop; use threads, processes or gevent instead"
        )


def _monkey() -> Any:  # noqa: ANN401 - a module that may be missing
    """Return `gevent.monkey` if it has patched this process, else None."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and any(map(monkey.is_module_patched, _GEVENT_MODULES)):
        return monkey
    return None


def make_lock() -> threading.Lock:
    """Return a native lock. A greenlet must not switch to another one while it holds it."""
    monkey = _monkey()
    if monkey is None:
        return threading.Lock()
    lock: threading.Lock = monkey.get_original("_thread", "allocate_lock")()
    return lock


def make_thread(target: Callable[[], object], name: str) -> NativeThread:
    """Return a native daemon thread, not started yet."""
    if _monkey() is None:
        return threading.Thread(target=target, name=name, daemon=True)
    return _ThreadWithHub(target)


def make_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop for the current native thread, whatever the program's policy is."""
    if _monkey() is None:
        return asyncio.SelectorEventLoop()
    from gevent.selectors import GeventSelector  # noqa: PLC0415 - not a dependency

    return _GeventEventLoop(GeventSelector())


def make_inbox() -> Inbox[T]:
    """Return an inbox for the current thread or greenlet."""
    monkey = _monkey()
    if monkey is None:
        return SimpleQueue()
    from gevent._hub_local import get_hub_if_exists  # noqa: PLC0415 - not a dependency

    hub = get_hub_if_exists()
    if hub is None:
        # No greenlet waits for its turn in this thread, and a hub costs file descriptors.
        inbox: Inbox[T] = monkey.get_original("queue", "SimpleQueue")()
        return inbox
    return _GreenletInbox(hub)


class _GreenletInbox(Generic[T]):
    """An inbox of a greenlet: while it waits, the other greenlets of its thread run.

    gevent's own queues and events are for a single thread; only `run_callback_threadsafe` is not.
    """

    def __init__(self, hub: Any) -> None:  # noqa: ANN401 - gevent has no complete types
        from gevent.event import Event  # noqa: PLC0415 - not a dependency

        self._loop = hub.loop
        self._messages: deque[T] = deque()
        self._arrived = Event()

    def put(self, message: T, /) -> None:
        """Add a message. Callable from any thread."""
        self._messages.append(message)
        self._loop.run_callback_threadsafe(self._arrived.set)

    def get(self, block: bool = True, timeout: float | None = None) -> T:  # noqa: FBT001, FBT002, ARG002
        """Remove and return the oldest message. Raises `queue.Empty` after `timeout` seconds."""
        while not self._messages:
            # The timer keeps the hub from giving up ("would block forever") where nothing else is
            # scheduled in this thread.
            woken = self._arrived.wait(_KEEPALIVE_SECONDS if timeout is None else timeout)
            self._arrived.clear()
            if not woken and timeout is not None:
                break
        if not self._messages:
            raise Empty
        return self._messages.popleft()


class _GeventEventLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves host names in native threads.

    asyncio does it in a `ThreadPoolExecutor`, which blocks or fails where only some of `threading`
    and `queue` are patched.
    """

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name is given
        proto: int = 0,
        flags: int = 0,
    ) -> Any:  # noqa: ANN401 - as in the base class, at greater length
        monkey = _monkey()
        resolve = partial(monkey.get_original("socket", "getaddrinfo"), host, port)
        resolved: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            try:
                addresses = resolve(family, type, proto, flags)
            except Exception as error:  # noqa: BLE001 - the coroutine raises it
                join = partial(resolved.set_exception, error)
            else:
                join = partial(resolved.set_result, addresses)
            with suppress(RuntimeError):  # the loop has been closed
                self.call_soon_threadsafe(lambda: resolved.done() or join())

        monkey.get_original("_thread", "start_new_thread")(work, ())
        return await resolved


class _ThreadWithHub:
    """A native daemon thread in a process that gevent has patched."""

    def __init__(self, target: Callable[[], object]) -> None:
        self._target = target
        self._ended = False
        self._joining: list[Inbox[None]] = []

    def start(self) -> None:
        """Start the thread."""
        monkey = _monkey()
        monkey.get_original("_thread", "start_new_thread")(self._run, ())

    def join(self, timeout: float | None = None) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        inbox: Inbox[None] = make_inbox()
        self._joining.append(inbox)
        if not self._ended:
            try:
                inbox.get(timeout=timeout)
            except Empty:
                return

    def _run(self) -> None:
        from gevent.hub import get_hub  # noqa: PLC0415 - not a dependency

        hub = get_hub()
        try:
            self._target()
        finally:
            # Set before the list is read; `join` reads it after it has extended the list.
            self._ended = True
            hub.destroy(destroy_loop=True)
            for inbox in self._joining:
                inbox.put(None)
