"""The event loop that a `JobCache` belongs to: the first one that uses it."""

from __future__ import annotations

import asyncio
from threading import get_ident

from jobcache.errors import CacheClosed, WrongLoop


class OwnerLoop:
    """Binds a cache to one event loop.

    Attributes:
        loop: the loop; None before the first use, and once the cache is closed.
        closed: True once `close` was called.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.closed = False
        self._thread = 0

    def runs_here(self) -> bool:
        """Return True if the cache is bound to the running loop; if not, `bind` knows why.

        A thread runs one loop at a time, so it is the running one if it runs in this thread. To ask
        asyncio for the running loop takes longer: on Python 3.11 that is a system call.
        """
        loop = self.loop
        return loop is not None and self._thread == get_ident() and loop.is_running()

    def bind(self) -> None:
        """Bind the cache to the running loop, or check that it is bound to it.

        Raises:
            WrongLoop: the cache belongs to another loop.
            CacheClosed: the cache is closed.
        """
        loop = asyncio.get_running_loop()
        if self.closed:
            raise CacheClosed("the cache is closed; make a new one")
        if self.loop is None:
            self.loop = loop
        elif self.loop is not loop:
            raise WrongLoop(
                "this JobCache belongs to another event loop, which used it first: make one for"
                " each loop, or use jobcache.sync.JobCache where there is no lasting loop"
            )
        self._thread = get_ident()

    def close(self) -> None:
        """Refuse every later use."""
        self.closed = True
        self.loop = None
