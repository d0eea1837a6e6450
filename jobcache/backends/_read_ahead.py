"""Read entries of the remote tier again when they change, so that the next poll is a local hit.

A report empties a local cell, and the next poll would wait for the remote tier. A job with one
poller changes about as often as it is polled, so most of its polls would wait. Instead the process
reads the cell in the background, as a reader does: it takes the local lease, and fills the cell.

    used       an entry that was read from the local tier after it was stored there
    wanted     the key of an entry that was used when a report emptied its cell
    due        a wanted key that was reported again: it is read soon

A write makes two reports, of its fence and of its publish. At the first one there is nothing to
read.

Price: an entry is read again once at most, and only if it was used. So an entry that nobody polls
any more costs one read. Keys that are polled much less often than they change cost hardly any, as
their entries are not used. With about one poll between two changes, at random times, a quarter more
reads are sent than without reading ahead; with many, as many as without.

Due keys wait for a moment, and are then read together. A long poll that the same report has woken
reads the cell meanwhile. And a writer in this process empties the local cell when its publish has
returned, often just after the report:

    W publishes v2; the report comes; the cell is read ahead, and v2 is stored; W's publish returns
    and empties the cell; the next poll waits for the remote tier

Rejected: reading again each entry that changes, used or not. Where many processes share the polls
of a job, most of its entries change before their process is polled again. That would double the
reads of the remote tier.

Rejected: keeping the entry that this process has published; `tiered` says why.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from jobcache.backends._closing import end_all
from jobcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

_WAIT = 0.002
"""Seconds that due keys wait. The reply to a publish is seldom so long behind its report."""
_MOST_DUE = 50
"""Keys of one read, as in `BatchedGets`. While so many are due, others are left to their polls."""
_MOST_WANTED = 1000
"""Most keys are wanted as long as a transaction takes. Some stay: both reports came as one, or the
second one never comes."""


class ReadAhead:
    """Read used entries again after they have changed.

    There is one read at a time. Nobody waits for it, and if it fails, the next poll reads.

    Args:
        read: reads keys from the remote tier into local cells that are empty.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        read: Callable[[Sequence[str]], Awaitable[object]],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._read = read
        self._sleep = sleep
        self._wanted: dict[str, None] = {}
        self._due: dict[str, None] = {}
        self._running: asyncio.Task[None] | None = None

    def changed(self, keys: Iterable[str], was_used: Callable[[str], bool]) -> None:
        """Note a report of changes, before the local cells are emptied.

        Args:
            keys: the keys that have changed.
            was_used: returns whether the local cell holds an entry that was used.
        """
        for key in keys:
            if key in self._wanted:
                del self._wanted[key]
                if len(self._due) < _MOST_DUE:
                    self._due[key] = None
            elif was_used(key):
                if len(self._wanted) == _MOST_WANTED:
                    del self._wanted[next(iter(self._wanted))]
                self._wanted[key] = None
        if self._due and self._running is None:
            self._running = asyncio.create_task(self._run())

    def filled(self, key: str) -> None:
        """Note that a reader has found the entry."""
        self._wanted.pop(key, None)
        self._due.pop(key, None)

    def clear(self) -> None:
        """Forget all keys."""
        self._wanted.clear()
        self._due.clear()

    def state(self) -> tuple[tuple[str, ...], ...]:
        """Return the keys that are wanted, and those that are due."""
        return tuple(self._wanted), tuple(self._due)

    async def _run(self) -> None:
        try:
            while self._due:
                await self._sleep(_WAIT)
                keys, self._due = tuple(self._due), {}
                with suppress(CacheError):
                    await self._read(keys)
        finally:
            self._running = None

    async def aclose(self) -> None:
        """Cancel the read."""
        self.clear()
        if self._running is not None:
            await end_all((self._running,))
