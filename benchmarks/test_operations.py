"""The cost of one operation of the cache, by backend.

A round is many operations in one coroutine, so that starting the loop does not count.
"""

from __future__ import annotations

import itertools
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from app.jobs.cache_keys import progress_key
from benchmarks.backends import NEEDS_REDIS, ready_backend
from benchmarks.document import DOCUMENT
from jobcache import CacheOutcome, JobCache, Lifetimes
from jobcache.protocol.backend import LeaseResult, PublishResult

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterator

    from benchmarks.conftest import Benchmark
    from jobcache import Document
    from jobcache.protocol.backend import CacheBackend

    Measure = Callable[[str, Callable[[], Coroutine[object, object, None]]], None]

OPERATIONS = 500  # in a round
ENTRY = Lifetimes().entry(DOCUMENT, time.time_ns() // 1_000_000)
TOKEN = "benchmark"  # noqa: S105 - names a lease

every_backend = pytest.mark.parametrize("backend", NEEDS_REDIS, indirect=True)
every_keeping_backend = pytest.mark.parametrize(
    "backend", [name for name in NEEDS_REDIS if name != "null"], indirect=True
)


async def load() -> Document:
    """Return a document at no cost."""
    return DOCUMENT


@pytest.fixture(scope="session")
def new_key() -> Callable[[], str]:
    """Makes keys that no benchmark has used before."""
    numbers = itertools.count(1)
    return lambda: progress_key(next(numbers))


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, runner: asyncio.Runner, redis_url: str
) -> Iterator[CacheBackend]:
    """A backend of the table, in the loop of `runner`."""
    stack = AsyncExitStack()
    yield runner.run(stack.enter_async_context(ready_backend(request.param, redis_url)))
    runner.run(stack.aclose())


@pytest.fixture
def measure(benchmark: Benchmark, runner: asyncio.Runner, backend: CacheBackend) -> Measure:
    """Runs a coroutine function of `OPERATIONS` operations as one round."""

    def measured(operation: str, round_of: Callable[[], Coroutine[object, object, None]]) -> None:
        benchmark.group = operation
        benchmark.extra_info |= {
            "operation": operation,
            "backend": backend.name,
            "operations_per_round": OPERATIONS,
        }
        benchmark(lambda: runner.run(round_of()))

    return measured


@every_keeping_backend
def test_get_hit(
    measure: Measure, backend: CacheBackend, runner: asyncio.Runner, new_key: Callable[[], str]
) -> None:
    """The backend alone, where it holds the entry."""
    key = new_key()

    async def store() -> None:
        assert await backend.lease(key, TOKEN) is LeaseResult.ACQUIRED
        assert await backend.publish(key, TOKEN, ENTRY) is PublishResult.STORED

    async def hits() -> None:
        for _ in range(OPERATIONS):
            found = await backend.get(key)
        assert found == ENTRY

    runner.run(store())
    measure("get, hit", hits)


@every_backend
def test_get_miss(measure: Measure, backend: CacheBackend, new_key: Callable[[], str]) -> None:
    """The backend alone, where it holds nothing."""
    key = new_key()

    async def misses() -> None:
        for _ in range(OPERATIONS):
            found = await backend.get(key)
        assert found is None

    measure("get, miss", misses)


@every_backend
def test_fence_and_publish(
    measure: Measure, backend: CacheBackend, new_key: Callable[[], str]
) -> None:
    """What a write does to the backend, before and after its commit."""
    expected = PublishResult.NOTHING if backend.name == "null" else PublishResult.STORED

    async def writes() -> None:
        for _ in range(OPERATIONS):
            key = new_key()
            await backend.fence(key, TOKEN)
            published = await backend.publish(key, TOKEN, ENTRY)
        assert published is expected

    measure("fence and publish", writes)


@every_keeping_backend
def test_read_hit(measure: Measure, backend: CacheBackend, new_key: Callable[[], str]) -> None:
    """A whole read that is answered from the cache."""
    cache = JobCache(backend)
    key = new_key()

    async def hits() -> None:
        await cache.read(key, load)  # stores it, and again once it is no longer fresh
        for _ in range(OPERATIONS):
            answer = await cache.read(key, load)
        assert answer.outcome is CacheOutcome.HIT

    measure("read, hit", hits)


@every_backend
def test_read_miss(measure: Measure, backend: CacheBackend, new_key: Callable[[], str]) -> None:
    """A whole read of a key that nobody has read before, with a source that costs nothing."""
    cache = JobCache(backend)

    async def misses() -> None:
        for _ in range(OPERATIONS):
            answer = await cache.read(new_key(), load)
        assert answer.outcome is CacheOutcome.MISS

    measure("read, miss", misses)
