"""The cost of one operation of the cache, by backend.

    pytest benchmarks --benchmark-group-by=group

Every figure is for one operation. `null` keeps nothing: in the groups of hits, its row is what the
same call costs where nothing is found, and a read loads its document again.
"""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import pytest

from app.jobs.cache_keys import progress_key
from benchmarks.backends import EVERY_BACKEND, NEEDS_REDIS, ready_backend
from benchmarks.document import DOCUMENT
from jobcache import CacheOutcome, JobCache, Lifetimes
from jobcache.protocol.backend import LeaseResult, PublishResult

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Iterator

    from benchmarks.one_operation import OneOperation
    from jobcache import Document
    from jobcache.protocol.backend import CacheBackend

    T = TypeVar("T")

MANY = 20  # keys of one get_many
ENTRY = Lifetimes().entry(DOCUMENT, time.time_ns() // 1_000_000)
TOKEN = "benchmark"  # noqa: S105 - names a lease

# A round of the default length would be a few operations only.
pytestmark = pytest.mark.benchmark(min_time=0.001)


async def load() -> Document:
    """Return a document at no cost."""
    return DOCUMENT


class Measured:
    """Measures operations of one backend, in the group of the operation.

    Args:
        one_operation: what measures.
        backend: the backend.
        runner: its event loop.
        numbers: of keys that no other benchmark has used on the server.
    """

    def __init__(
        self,
        one_operation: OneOperation,
        backend: CacheBackend,
        runner: asyncio.Runner,
        numbers: Iterator[int],
    ) -> None:
        self.backend = backend
        self.runner = runner
        self._one_operation = one_operation
        self._numbers = numbers

    @property
    def keeps(self) -> bool:
        """Return False for the backend that stores nothing."""
        return self.backend.name != "null"

    @property
    def keeps_writes(self) -> bool:
        """Return whether the entry of a write is stored, and not only that of a load."""
        return self.backend.name not in {"null", "postgres"}

    def new_key(self) -> str:
        """Return a key that was not used before."""
        return progress_key(next(self._numbers))

    def stored(self, count: int) -> list[str]:
        """Return the keys of so many new entries."""
        keys = [self.new_key() for _ in range(count)]

        async def store() -> None:
            for key in keys:
                await self.load(key)

        self.runner.run(store())
        return keys

    async def load(self, key: str) -> PublishResult:
        """Do what a read does that finds nothing: take a lease, and publish what was loaded."""
        assert await self.backend.lease(key, TOKEN) is LeaseResult.ACQUIRED
        return await self.backend.publish(key, TOKEN, ENTRY)

    def __call__(self, group: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Measure the operation, and return the result of one."""
        return self._one_operation(group, operation, backend=self.backend.name)


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Count up from 1, through all benchmarks."""
    return itertools.count(1)


@pytest.fixture(params=EVERY_BACKEND)
def backend(request: pytest.FixtureRequest, runner: asyncio.Runner) -> Iterator[CacheBackend]:
    """Each backend as the service creates it, in the loop of `runner`."""
    name: str = request.param
    servers: dict[str, str] = {}
    if name == "memcached":
        servers["memcached_url"] = request.getfixturevalue("memcached_url")
    elif name == "postgres":
        servers["postgres_url"] = request.getfixturevalue("postgres").url()
    elif NEEDS_REDIS[name]:
        servers["redis_url"] = request.getfixturevalue("redis_url")
    stack = AsyncExitStack()
    yield runner.run(stack.enter_async_context(ready_backend(name, **servers)))
    runner.run(stack.aclose())


@pytest.fixture
def measured(
    one_operation: OneOperation,
    backend: CacheBackend,
    runner: asyncio.Runner,
    numbers: Iterator[int],
) -> Measured:
    """Measure operations of the backend."""
    return Measured(one_operation, backend, runner, numbers)


def test_get_hit(measured: Measured) -> None:
    """The backend alone, where it holds the entry."""
    (key,) = measured.stored(1)
    found = measured("get, hit", partial(measured.backend.get, key))
    assert found == (ENTRY if measured.keeps else None)


def test_get_miss(measured: Measured) -> None:
    """The backend alone, where it holds nothing."""
    key = measured.new_key()
    assert measured("get, miss", partial(measured.backend.get, key)) is None


def test_get_many(measured: Measured) -> None:
    """The backend alone, where it holds all of the entries."""
    keys = measured.stored(MANY)
    found = measured(f"get_many, {MANY} hits", partial(measured.backend.get_many, keys))
    assert len(found) == (MANY if measured.keeps else 0)


def test_lease_and_publish(measured: Measured) -> None:
    """What a miss does to the backend, before and after it loads; each time with a new key."""
    result = measured("lease and publish", lambda: measured.load(measured.new_key()))
    assert result is (PublishResult.STORED if measured.keeps else PublishResult.NOTHING)


def test_fence_and_publish(measured: Measured) -> None:
    """What a write does to the backend, before and after its commit; each time with a new key."""

    async def write() -> PublishResult:
        key = measured.new_key()
        await measured.backend.fence(key, TOKEN)
        return await measured.backend.publish(key, TOKEN, ENTRY)

    result = measured("fence and publish", write)
    assert (result is PublishResult.STORED) == measured.keeps_writes


def test_read_hit(measured: Measured) -> None:
    """A whole read that is answered from the cache."""
    cache = JobCache(measured.backend)
    key = measured.new_key()
    measured.runner.run(cache.read(key, load))  # a later read stores it again, if it has expired
    outcome = CacheOutcome.HIT if measured.keeps else CacheOutcome.MISS
    assert measured("read, hit", partial(cache.read, key, load)).outcome is outcome


def test_read_miss(measured: Measured) -> None:
    """A whole read of a key that nobody has read before, with a source that costs nothing."""
    cache = JobCache(measured.backend)
    result = measured("read, miss", lambda: cache.read(measured.new_key(), load))
    assert result.outcome is CacheOutcome.MISS


def test_write(measured: Measured) -> None:
    """A whole write of a new key, with a transaction that costs nothing."""
    cache = JobCache(measured.backend)

    async def write() -> str:
        key = measured.new_key()
        async with cache.write(key) as change:
            change.publish(key, DOCUMENT)
        return key

    key = measured("write", write)
    found = measured.runner.run(measured.backend.get_many([key]))
    assert bool(found) == measured.keeps_writes
