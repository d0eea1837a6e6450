"""Wakes reads that wait behind a fence or a lease, as soon as the cell has changed.

A read that waits is woken by a publish of this process, and by the change feed of the backend. Both
say only that the cell may hold something else now. So the read takes the lease again. Rejected: to
give it the published entry, because nobody compares that with the cell:

    W1 fences and commits v2; its fence is evicted; W2 commits, publishes and acknowledges v3
    W3 fences; R waits behind this fence; W1 publishes v2; R, given v2, would return it

A report can be lost, and there are stores without a feed. So these reads also look from time to
time, as if there were no reports.

The waiters of `watchers.py` are not used for this. They are answered by reads, and this is a part
of a read: it would wait for itself.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobcache.protocol.capabilities import SupportsChangeFeed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jobcache.protocol.backend import CacheBackend


class CellChanges:
    """Wake the reads of one `JobCache` that wait for changes of cells.

    Args:
        backend: its change feed reports changes, if it has one.
    """

    def __init__(self, backend: CacheBackend) -> None:
        self._noticing: dict[str, set[asyncio.Event]] = {}
        feed = backend.feed() if isinstance(backend, SupportsChangeFeed) else None
        if feed is not None:
            feed.listen(self)

    @contextmanager
    def noticed(self, key: str) -> Iterator[asyncio.Event]:
        """Set an event at each change of a cell while the block runs.

        Enter the block before you look at the cell. Otherwise a change may come in between.
        """
        event = asyncio.Event()
        self._noticing.setdefault(key, set()).add(event)
        try:
            yield event
        finally:
            events = self._noticing[key]
            events.discard(event)
            if not events:
                del self._noticing[key]

    def changed(self, keys: Sequence[str]) -> None:
        """Wake the reads of these keys."""
        if self._noticing:
            for key in keys:
                for event in self._noticing.get(key, ()):
                    event.set()

    def interrupted(self) -> None:
        """Do nothing: the reads look from time to time."""

    def resumed(self) -> None:
        """Do nothing: the reads look from time to time."""
