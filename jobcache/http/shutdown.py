"""The end of held requests when their process begins to shut down, under any ASGI server.

A server that stops closes its listening sockets. Then it waits for the responses under way, and
only then ends the lifespan of the application. So long polls and event streams keep it waiting
until they end by themselves, or until it cuts them off. ASGI does not tell an application that the
server is stopping. Two signs do, and `Shutdown` watches both while requests are held:

- The process closes the socket on which it accepted the request. This also shows a stop without a
  signal: at a limit on requests, or by a parent process that uses a pipe or an event.
- The process received a signal, but still listens a moment later. This is the only sign if the
  server was given its socket and leaves it open, and on Windows.

The socket counts first, because servers mark their connections when they close it: responses that
are sent afterwards tell their clients that the connection ends. A response that is sent before the
server has stopped listening invites its client to send a request that is lost.

Rejected: a server class. The workers of uvicorn and gunicorn create their servers themselves.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobcache.http.listening_sockets import ListeningSockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from jobcache.http.listening_sockets import Server

_INTERVAL = 0.1  # seconds between two looks at the sockets
_LOOKS_AFTER_SIGNAL = 3
"""The number of looks after a signal at which a socket that is still open no longer counts.

uvicorn looks for a signal every 0.1 s. Its look lies between the first look here and the third one,
also in an event loop that was blocked for a long time.
"""


class Shutdown:
    """Calls functions once when this process begins to shut down.

    It watches only while requests are held (`watched`), and belongs to one event loop.

    Args:
        callbacks: called in the event loop, in this order. They end the held requests, and must not
            raise.

    Attributes:
        begun: True once the process has begun to shut down. No request should be held any more.
    """

    def __init__(self, *callbacks: Callable[[], None]) -> None:
        self.begun = False
        self._callbacks = callbacks
        self._held = 0
        self._looks_left = _LOOKS_AFTER_SIGNAL
        self._sockets: ListeningSockets | None = None
        self._handlers: dict[signal.Signals, _ChainedHandler] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watched(self, server: Server) -> Iterator[None]:
        """Watch for the shutdown while the block holds a request.

        The first block finds the listening sockets and chains the signal handlers. Its cost grows
        with the number of open connections, so hold the first request early.

        Args:
            server: `scope["server"]` of the request.
        """
        if self._sockets is None:
            self._sockets = ListeningSockets(server)
            self._handlers = _chain_handlers()
        self._held += 1
        if self._held == 1:
            self._look(self._sockets)
        try:
            yield
        finally:
            self._held -= 1
            if not self._held:
                self._stop_looking()

    def begin(self) -> None:
        """Call the callbacks now. Safe to call again."""
        if not self.begun:
            self.begun = True
            self._stop_looking()
            for callback in self._callbacks:
                callback()

    def close(self) -> None:
        """Begin the shutdown if it has not begun, and restore the signal handlers."""
        self.begin()
        for number, handler in self._handlers.items():
            previous = handler.previous
            # Another handler may have been chained since. It keeps this one, which does no harm.
            if signal.getsignal(number) is handler:
                signal.signal(number, previous)

    def _look(self, sockets: ListeningSockets) -> None:
        if self.begun:
            return
        if self._looks_left > 0 and sockets.are_open():
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_INTERVAL, self._look_again, sockets)
        else:
            self.begin()

    def _look_again(self, sockets: ListeningSockets) -> None:
        if any(handler.received for handler in self._handlers.values()):
            self._looks_left -= 1
        self._look(sockets)

    def _stop_looking(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ChainedHandler:
    """A signal handler that records the signal and calls the handler before it.

    It has all attributes of that handler: libraries read the server from its `__self__`. It touches
    no event loop, because Python calls it between any two instructions of one.

    Attributes:
        previous: the handler before it.
        received: whether the signal came.
    """

    def __init__(self, previous: Callable[[int, FrameType | None], Any]) -> None:
        self.previous = previous
        self.received = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        self.received = True
        self.previous(number, frame)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever that handler has
        """Return an attribute of the handler before it."""
        return getattr(self.previous, name)


def _chain_handlers() -> dict[signal.Signals, _ChainedHandler]:
    """Put a handler before that of each signal that ends a server; none outside the main thread."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)
    else:
        numbers.append(signal.SIGQUIT)  # gunicorn sends it to its workers
    chained = {}
    for number in numbers:
        previous = signal.getsignal(number)
        if not callable(previous):  # the signal is ignored, or ends the process at once
            continue
        handler = _ChainedHandler(previous)
        try:
            signal.signal(number, handler)
        except ValueError:  # this is not the main thread
            break
        chained[number] = handler
    return chained
