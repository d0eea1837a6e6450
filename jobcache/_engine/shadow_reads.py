"""Staleness as a metric: after some of the hits the source is asked what it would have said.

A newer version there is not yet a stale hit: a writer may have committed since. So the cache is
looked at again. A commit that others can see has been fenced, or published; an entry that is older
and still served hides it, and is watched until it has gone.
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
    from jobcache.protocol.backend import CacheBackend, Document, Entry

logger = logging.getLogger("jobcache")

_MOST_AT_ONCE = 4
_LINES = 20  # a minute
_PAUSE = 0.05  # seconds between two looks at an entry that hides a newer version


class Shadow:
    """Compares a sample of what a `JobCache` serves with its source.

    Args:
        backend: what served it.
        statistics: counted into.
        rate: the part of the hits that is compared, from 0 (none) to 1.
        serves: whether an entry would be served now.
        load: calls a loader, within the limits of loads.
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
        """A hit has been served; perhaps compare it, in the background."""
        if self.rate <= self._random() or len(self._tasks) >= _MOST_AT_ONCE:
            return
        if uses_session(load):
            return  # the reader closes it as soon as it has its answer
        task = asyncio.create_task(self._compare(key, served, load))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, key: str, served: Entry, load: Callable[[], Awaitable[Document | None]]
    ) -> None:
        be_independent()  # of a load that has read what was served
        try:
            document = await self._load(load)
            version = 0 if document is None else document.version
        except Exception:  # noqa: BLE001 - its readers are told; a comparison is just left out
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
            return False  # it is not served from there, either
        return entry is not None and entry.version < version and self._serves(entry)

    async def aclose(self) -> None:
        """Stop comparing."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
