"""An event loop whose timers are not rounded up to whole milliseconds."""

from __future__ import annotations

import asyncio
import select
import selectors


class _PreciseSelector(selectors.EpollSelector):
    """A selector that waits with `select`, which counts in microseconds.

    `epoll_wait` counts in milliseconds, so a timer would fire up to one too late: longer than a
    fast service takes for a response.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return the files that are ready; wait for the given seconds if there are none."""
        if timeout is None or timeout > 0:
            # Of one file only, the one of epoll itself: `select` takes no more than a thousand.
            select.select((self.fileno(),), (), (), timeout)
        return super().select(0)


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a plain event loop of asyncio, with precise timers.

    Rejected: uvloop. It counts in milliseconds too, and computes while it waits for less than one.
    """
    return asyncio.SelectorEventLoop(_PreciseSelector())
