"""What other caches do with a load that a change has overtaken, and with callers at once.

    make slow-reader

A reader loads a value, the value changes, its key is invalidated, and only then the reader's load
ends. A cache that stores its result serves the old value until it expires. `docs/comparison.md`
shows the results.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Load = Callable[[], Awaitable[str]]
    Operations = tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]
    """A read, which loads on a miss, and the invalidation of the same key."""
    Maker = Callable[[Load], Operations]

CALLERS = 20
_KEEP = 60  # seconds, longer than all of this takes


async def serves_the_old_value(make: Maker) -> bool:
    """Return whether a read after an invalidation returns what was there before it."""
    value, began, goes_on = "old", asyncio.Event(), asyncio.Event()

    async def load() -> str:
        loaded = value
        if not began.is_set():
            began.set()
            await goes_on.wait()
        return loaded

    read, invalidate = make(load)
    slow = asyncio.create_task(_awaited(read))
    await began.wait()
    value = "new"
    await invalidate()
    goes_on.set()
    await slow
    return bool(await read() == "old")


async def loads_at_once(make: Maker) -> int:
    """Return how many loads callers cause that ask for the same missing key at the same time."""
    loads = 0

    async def load() -> str:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.2)
        return "value"

    read, _ = make(load)
    await asyncio.gather(*(read() for _ in range(CALLERS)))
    return loads


async def _awaited(read: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - of any cache
    return await read()


def _in_thread(load: Load) -> Callable[[], str]:
    """Return a load for threads, which waits for the load in the event loop."""
    loop = asyncio.get_running_loop()

    async def awaited() -> str:
        return await load()

    return lambda: asyncio.run_coroutine_threadsafe(awaited(), loop).result()


def _jobcache(load: Load) -> Operations:
    from jobcache import JobCache  # noqa: PLC0415 - each needs its own cache only

    cached = JobCache.from_url("memory://").cached("key", ttl=_KEEP)(_function(load))
    return cached, cached.invalidate


def _function(load: Load) -> Callable[[], Any]:
    async def function() -> str:
        return await load()

    return function


def _dogpile(load: Load) -> Operations:
    from dogpile.cache import make_region  # noqa: PLC0415

    region = make_region().configure("dogpile.cache.memory", expiration_time=_KEEP)
    loaded = _in_thread(load)
    return (
        lambda: asyncio.to_thread(region.get_or_create, "key", loaded),
        lambda: asyncio.to_thread(region.delete, "key"),
    )


def _cachetools(**options: Callable[[], Any]) -> Maker:
    def make(load: Load) -> Operations:
        import cachetools  # noqa: PLC0415

        cache: Any = cachetools.TTLCache(10, _KEEP)
        decorator: Any = cachetools.cached
        made = {name: option() for name, option in options.items()}
        cached = decorator(cache, key=lambda: "key", **made)(_in_thread(load))

        async def invalidate() -> None:
            cache.pop("key", None)

        return lambda: asyncio.to_thread(cached), invalidate

    return make


def _cashews(load: Load) -> Operations:
    from cashews import Cache  # noqa: PLC0415

    cache = Cache()
    cache.setup("mem://")
    return cache(ttl=_KEEP, key="key")(_function(load)), lambda: cache.delete("key")


def _aiocache(decorator: str, **options: Any) -> Maker:  # noqa: ANN401 - of any type
    def make(load: Load) -> Operations:
        import aiocache  # noqa: PLC0415

        cached = getattr(aiocache, decorator)(ttl=_KEEP, key="key", **options)(_function(load))
        cached.cache._cache.clear()  # noqa: SLF001 - all caches in memory are one
        return cached, lambda: cached.cache.delete("key")

    return make


def _fastapi_cache(load: Load) -> Operations:
    from fastapi_cache import FastAPICache  # noqa: PLC0415
    from fastapi_cache.backends.inmemory import InMemoryBackend  # noqa: PLC0415
    from fastapi_cache.decorator import cache  # noqa: PLC0415

    InMemoryBackend._store.clear()  # noqa: SLF001 - all caches in memory are one
    FastAPICache.reset()
    FastAPICache.init(InMemoryBackend(), prefix="slow-reader")
    return cache(expire=_KEEP)(_function(load)), lambda: FastAPICache.clear(namespace="")


SUBJECTS: dict[str, tuple[str, Maker]] = {
    "dogpile.cache": ("dogpile.cache", _dogpile),
    "cachetools": ("cachetools", _cachetools()),
    "cachetools, condition": ("cachetools", _cachetools(condition=threading.Condition)),
    "cashews": ("cashews", _cashews),
    "aiocache": ("aiocache", _aiocache("cached")),
    "aiocache, cached_stampede": ("aiocache", _aiocache("cached_stampede", lease=10)),
    "fastapi-cache2": ("fastapi-cache2", _fastapi_cache),
    "jobcache": ("jobcache", _jobcache),
}
"""The name of each row, the distribution that it needs, and the cache in it."""


async def row(name: str) -> str:
    """Return a row of the table in Markdown."""
    distribution, make = SUBJECTS[name]
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        return f"| {name} | not installed | | |"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(CALLERS))
    old = await serves_the_old_value(make)
    loads = await loads_at_once(make)
    return f"| {name} | {installed} | {'the old value' if old else 'the new value'} | {loads} |"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    say = sys.stdout.write
    say(f"| cache | version | read after the invalidation | loads for {CALLERS} callers |\n")
    say("| --- | --- | --- | --- |\n")
    for name in SUBJECTS:
        say(f"{asyncio.run(row(name))}\n")


if __name__ == "__main__":
    main()
