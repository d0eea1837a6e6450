"""A cache, its event loop and its end."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from jobcache import (
    CacheOutcome,
    CacheSettings,
    Document,
    JobCache,
    JobCacheError,
    SourceUnavailable,
)
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.registry import make_backend
from jobcache.errors import CacheClosed, CacheError, WrongLoop
from tests.jobcache.bench import document
from tests.subjects import DictionaryBackend

Use = Callable[[JobCache], Coroutine[Any, Any, object]]


async def load() -> Document:
    return document(1)


@asynccontextmanager
async def transaction() -> Any:
    yield None


async def _write(cache: JobCache) -> None:
    async with cache.write(transaction(), "k") as write:
        write.publish("k", document(1))


async def _load_many(_: object) -> dict[str, Document]:
    return {"k": document(1)}


USES: dict[str, Use] = {
    "read": lambda cache: cache.read("k", load),
    "read_many": lambda cache: cache.read_many(["k"], _load_many),
    "wait_for_newer": lambda cache: cache.wait_for_newer("k", load, 0, 1),
    "write": _write,
    "invalidate": lambda cache: cache.invalidate("k"),
    "invalidate_all": lambda cache: cache.invalidate_all(),
    "start": lambda cache: cache.start(),
}


@pytest.fixture(params=["null", "memory", "redis", "tiered"])
def cache(request: pytest.FixtureRequest) -> JobCache:
    url = request.getfixturevalue("redis_url") if request.param in {"redis", "tiered"} else ""
    prefix = f"{uuid.uuid4().hex}:"
    settings = CacheSettings(backend=request.param, redis_url=url or "redis://", prefix=prefix)
    return JobCache(make_backend(settings))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("closed", ["", "closed"])
def test_in_another_event_loop_it_raises_wrong_loop(cache: JobCache, use: str, closed: str) -> None:
    async def first() -> None:
        assert (await cache.read("k", load)).entry.version == 1
        if closed:
            await cache.aclose()

    expected: type[JobCacheError] = CacheClosed if closed else WrongLoop
    with asyncio.Runner() as runner:
        runner.run(first())
        for _ in range(2):
            with pytest.raises(expected) as caught:
                asyncio.run(_used(cache, use))
            assert isinstance(caught.value, JobCacheError)
        if not closed:
            with pytest.raises(WrongLoop, match=r"jobcache\.sync"):
                asyncio.run(cache.aclose())
            assert runner.run(cache.read("k", load)).entry.version == 1, "here it is as it was"
            runner.run(cache.aclose())


@pytest.mark.parametrize("use", USES)
async def test_in_a_loop_of_another_thread_it_raises_wrong_loop(cache: JobCache, use: str) -> None:
    await cache.read("k", load)
    with pytest.raises(WrongLoop):  # while its own loop runs
        await asyncio.to_thread(asyncio.run, _used(cache, use))
    await cache.aclose()


@pytest.mark.parametrize("use", USES)
def test_its_loop_may_go_on_in_another_thread(cache: JobCache, use: str) -> None:
    async def all_of_it() -> None:
        await USES[use](cache)
        await cache.aclose()

    with asyncio.Runner() as runner, ThreadPoolExecutor(1) as other:
        runner.run(cache.read("k", load))
        other.submit(runner.get_loop().run_until_complete, all_of_it()).result()


async def _used(cache: JobCache, use: str) -> None:
    assert cache.reads.read_future("k", load) is None
    await USES[use](cache)


def test_it_belongs_to_the_loop_that_uses_it_first(cache: JobCache) -> None:
    async def make_and_do_nothing() -> None:
        assert cache.info().health is not None

    async def use() -> None:
        await cache.start()
        for each in USES.values():
            await each(cache)
        await cache.aclose()

    asyncio.run(make_and_do_nothing())
    asyncio.run(use())


@pytest.mark.parametrize("use", USES)
async def test_once_it_is_closed_it_says_so(cache: JobCache, use: str) -> None:
    await cache.read("k", load)
    await cache.aclose()
    await cache.aclose()
    with pytest.raises(CacheClosed):
        await USES[use](cache)
    assert cache.peek("k", load) is None
    assert cache.reads.read_future("k", load) is None


class SlowToClose(MemoryBackend):
    """A backend that closes once the test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.closing, self.gate, self.closed = asyncio.Event(), asyncio.Event(), 0

    async def aclose(self) -> None:
        self.closing.set()
        await self.gate.wait()
        self.closed += 1


async def test_a_cancelled_close_goes_on_and_the_next_one_waits_for_it() -> None:
    backend = SlowToClose()
    cache = JobCache(backend)
    await cache.read("k", load)
    first = asyncio.create_task(cache.aclose())
    await backend.closing.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(cache.aclose())
    backend.gate.set()
    await second
    assert backend.closed == 1
    await cache.aclose()


def test_a_close_that_ended_with_its_loop_is_no_error() -> None:
    cache = JobCache(SlowToClose())

    async def close_in_vain() -> None:
        await cache.read("k", load)
        asyncio.create_task(cache.aclose())  # noqa: RUF006 - the end of the loop cancels it
        await cache.backend.closing.wait()  # type: ignore[attr-defined]

    asyncio.run(close_in_vain())
    asyncio.run(cache.aclose())


async def test_a_read_that_raises_is_counted(cache: JobCache) -> None:
    async def away(*_: object) -> Any:
        raise SourceUnavailable("away")

    async def broken(*_: object) -> Any:
        raise ZeroDivisionError

    statistics = cache.statistics
    for number, each in enumerate((away, broken, away), start=1):
        with pytest.raises((SourceUnavailable, ZeroDivisionError)):
            await cache.read("k", each)
        assert statistics.read_errors == number
    with pytest.raises(SourceUnavailable):
        await cache.read_many(["k", "l", "k"], away)
    with pytest.raises(ZeroDivisionError):
        await cache.wait_for_newer("k", broken, 0, 1)
    assert statistics.read_errors == 6
    # Each of several callers who share a load that fails has made a read.
    results = await asyncio.gather(
        *(cache.read("k", away) for _ in range(3)), return_exceptions=True
    )
    assert [type(each) for each in results] == [SourceUnavailable] * 3
    assert statistics.read_errors == 9
    assert statistics.counters().read_errors == 9
    assert statistics.counters().total_requests == 0, "which counts answers, as it always has"
    assert (await cache.read("k", load)).outcome is CacheOutcome.MISS
    with suppress(SourceUnavailable):
        await cache.read("k", load)
    assert statistics.read_errors == 9
    await cache.aclose()


async def test_a_backend_that_cannot_list_its_keys_says_so() -> None:
    async with JobCache(DictionaryBackend()) as cache:
        with pytest.raises(CacheError, match="a dictionary backend cannot list its keys"):
            await cache.invalidate_all()
