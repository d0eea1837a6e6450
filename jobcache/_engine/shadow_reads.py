"""Shadow reads: a sample of the hits is compared with the source, as a metric of staleness.

A newer version in the source does not yet prove a stale hit, because a writer may have committed
since. So the cache is read again. A commit that others can see has been fenced or published. If the
cache still serves an older entry, the entry hides the commit. Then it is read until it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from jobcache._engine.loading import be_independent
from jobcache.errors import CacheError
from jobcache.loaders import uses_session
from jobcache.observability.log_limit import LogLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobcache.observability.statistics import Statistics
    from jobcache.protocol.backend import CacheBackend
    from jobcache.protocol.document import Document
    from jobcache.protocol.entry import Entry

logger = logging.getLogger("jobcache")

_MOST_AT_ONCE = 4
_LINES = 20  # a minute
_PAUSE = 0.05  # seconds between two reads of an entry that hides a newer version


class Shadow:
    """Compares a sample of the hits of a `JobCache` with its source.

    Args:
        backend: the backend that served the hits.
        statistics: counted into.
        rate: the part of the hits that is compared, from 0 to 1.
        serves: returns whether an entry would be served now.
        load: calls a loader, within the time limit of loads.
        random: numbers in [0, 1).
        sleep: waits for the given seconds.

    Attributes:
        rate: as given.

    Raises:
        ValueError: the rate is outside its range.
    """

    def __init__(
        self,
        backend: CacheBackend,
        statistics: Statistics,
        rate: float,
        serves: Callable[[Entry], bool],
        *,
        load: Callable[[Callable[[], Awaitable[Document | None]]], Awaitable[Document | None]],
        random: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not 0 <= rate <= 1:
            raise ValueError("the rate of shadow reads is a part of the hits, from 0 to 1")
        self._backend = backend
        self._statistics = statistics
        self.rate = rate
        self._serves = serves
        self._load = load
        self._random = random
        self._sleep = sleep
        self._lines = LogLimit(_LINES)
        self._tasks: set[asyncio.Task[None]] = set()

    def hit(self, key: str, served: Entry, load: Callable[[], Awaitable[Document | None]]) -> None:
        """Compare a hit in the background, if it is in the sample."""
        if self.rate <= self._random() or len(self._tasks) >= _MOST_AT_ONCE:
            return
        if uses_session(load):
            return  # the caller closes its session as soon as the read returns
        task = asyncio.create_task(self._compare(key, served, load))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, key: str, served: Entry, load: Callable[[], Awaitable[Document | None]]
    ) -> None:
        be_independent()  # of a load that may have made this read
        try:
            document = await self._load(load)
            version = 0 if document is None else document.version
        except Exception:  # noqa: BLE001 - readers get it; the comparison is left out
            return
        self._statistics.shadow_reads += 1
        if version <= served.version:
            return
        found = time.perf_counter_ns()
        if not await self._hides(key, version):
            self._statistics.shadow_overtaken += 1
            return
        self._statistics.shadow_stale += 1
        omitted = self._lines.admit()
        if omitted is not None:
            logger.warning(
                "the %s cache serves version %d of %s, and hides version %d%s",
                *(self._backend.name, served.version, key, version, omitted),
            )
        try:
            while await self._hides(key, version):
                await self._sleep(_PAUSE)
        finally:
            self._statistics.staleness.record(time.perf_counter_ns() - found)

    async def _hides(self, key: str, version: int) -> bool:
        try:
            entry = await self._backend.get(key)
        except CacheError:
            return False  # nothing is served from there, either
        return entry is not None and entry.version < version and self._serves(entry)

    async def aclose(self) -> None:
        """Cancel all comparisons, and wait for their end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
