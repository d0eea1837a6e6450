"""The event loop that a `JobCache` belongs to: the first one that uses it."""

from __future__ import annotations

import asyncio

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

    def close(self) -> None:
        """Refuse every later use."""
        self.closed = True
        self.loop = None
