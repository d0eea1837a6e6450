"""Readers and writers at work on some jobs while something happens to the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from jobcache import CacheOutcome, JobCache
from tests.jobcache.bench import Source, Transaction, document


class Jobs:
    """Jobs that are read and changed through one cache or several, as by several processes.

    No read returns less than was acknowledged before it began.
    """

    def __init__(self, keys: Sequence[str], *caches: JobCache) -> None:
        self.keys = keys
        self.caches = caches
        self.source = Source()
        self.source.versions = dict.fromkeys(keys, 1)
        self.acknowledged = dict(self.source.versions)

    @property
    def errors(self) -> int:
        """Return how many operations of a store have failed."""
        return sum(cache.statistics.errors for cache in self.caches)

    async def read(self, cache: JobCache, key: str) -> CacheOutcome:
        min_version = self.acknowledged[key]
        answer = await cache.read(key, lambda: self.source.load(key))
        assert answer.entry.version >= min_version, f"{key}: {answer} after {min_version}"
        return answer.outcome

    async def write(self, cache: JobCache, key: str) -> None:
        transaction = Transaction(self.source, key)
        async with cache.write(transaction, key) as write:
            write.publish(key, document(transaction.version))
        self.acknowledged[key] = transaction.version

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Read each job through every cache, and change it through one at a time, meanwhile."""
        over = False

        async def keep_reading(cache: JobCache, key: str) -> None:
            while not over:
                await self.read(cache, key)
                await asyncio.sleep(0.001)

        async def keep_writing(key: str) -> None:
            while not over:
                for cache in self.caches:
                    await self.write(cache, key)
                    await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for key in self.keys:
                group.create_task(keep_writing(key))
                for cache in self.caches:
                    group.create_task(keep_reading(cache, key))
            try:
                yield
            finally:
                over = True

    async def until_all_are_hits(self) -> None:
        """Read through every cache, and check that no earlier read was stale."""
        async with asyncio.timeout(60):
            for cache in self.caches:
                while {await self.read(cache, key) for key in self.keys} != {CacheOutcome.HIT}:
                    await asyncio.sleep(0.01)
