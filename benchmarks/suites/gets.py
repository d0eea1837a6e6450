"""Gets from Redis, by 64 concurrent tasks and by one."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import Redis

from app.jobs.cache_keys import progress_key
from benchmarks.backends import ready_backend
from benchmarks.document import DOCUMENT
from benchmarks.interleaving import Subject, take_turns
from benchmarks.peers.table import absent
from benchmarks.results import Missing, Section
from benchmarks.suites.lookups import BODY
from jobcache import Document, JobCache, Lifetimes
from jobcache.protocol.backend import LeaseResult, PublishResult

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from benchmarks.results import Kind

    Get = Callable[[str], Awaitable[Any]]

OURS = "redis backend, get"
READ = "JobCache on redis, read"
ALONE = "redis-py alone"
GLIDE = "valkey-glide"
TASKS = 64

_KEYS_OF_A_TASK = 10
_KEEP = 3600.0  # seconds


async def gets(
    redis_url: str, *, peers: bool, operations: int, turns: int
) -> tuple[list[Section], list[Missing]]:
    """Both sections, and who could not be asked. `operations` are those of a turn."""
    keys = [progress_key(number) for number in range(1, TASKS * _KEYS_OF_A_TASK + 1)]
    document = Document(7, "acme", BODY, "rendering", 6)
    found: dict[str, tuple[Kind, str, Get]] = {}
    missing: list[Missing] = []
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(ready_backend("redis", redis_url=redis_url))
        cache = JobCache(backend, lifetimes=Lifetimes(default=_KEEP))
        entry = cache.lifetimes.entry(document, time.time_ns() // 1_000_000)
        for key in keys:
            assert await backend.lease(key, "t") is LeaseResult.ACQUIRED
            assert await backend.publish(key, "t", entry) is PublishResult.STORED
        client = Redis.from_url(redis_url)
        stack.push_async_callback(client.aclose)
        found[OURS] = "ours", "deadline and breaker included", backend.get
        found[READ] = "ours", "statistics and single flight included", _reader(cache)
        found[ALONE] = "limit", "await client.get(key), hiredis, its pool as it comes", client.get
        if peers:
            without = {one.subject for one in absent()}
            for package, attach in _PEERS.items():
                if package not in without:
                    try:
                        await attach(stack, redis_url, keys, found)
                    except Exception as error:  # noqa: BLE001 - named, not dropped
                        missing.append(Missing(f"{package} on Redis", repr(error)[:200]))
        shares = [keys[task::TASKS] for task in range(TASKS)]
        at_once = [
            Subject(name, kind, how, _at_once(get, shares, operations))
            for name, (kind, how, get) in found.items()
        ]
        alone = [
            Subject(name, kind, how, _one_by_one(get, keys, max(1, operations // 8)))
            for name, (kind, how, get) in found.items()
        ]
        many, single = await take_turns(at_once, turns), await take_turns(alone, turns)
    cells = "the same cells" if not peers else "cells of the same size"
    return [
        Section(
            "gets-at-once",
            f"Gets from Redis by {TASKS} tasks at once",
            f"{operations} gets by {TASKS} tasks, {len(keys)} distinct keys, {cells}",
            "gets/s",
            more_is_better=True,
            reference=ALONE,
            series=many,
            driver="64 tasks of the same process",
        ),
        Section(
            "gets-alone",
            "Gets from Redis, one after the other",
            f"{max(1, operations // 8)} gets in one coroutine, {len(keys)} distinct keys, {cells}",
            "µs",
            more_is_better=False,
            reference=ALONE,
            series=single,
        ),
    ], missing


def _reader(cache: JobCache) -> Get:
    async def load() -> Document:
        return DOCUMENT

    return lambda key: cache.read(key, load)


def _at_once(
    get: Get, shares: Sequence[Sequence[str]], operations: int
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    each = max(1, operations // len(shares))

    async def work(keys: Sequence[str]) -> None:
        count = len(keys)
        for number in range(each):
            assert await get(keys[number % count]) is not None

    async def once() -> tuple[float, dict[str, Any]]:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for keys in shares:
                tasks.create_task(work(keys))
        return each * len(shares) / (time.perf_counter() - began), {}

    return once


def _one_by_one(
    get: Get, keys: Sequence[str], operations: int
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    async def once() -> tuple[float, dict[str, Any]]:
        count = len(keys)
        began = time.perf_counter()
        for number in range(operations):
            assert await get(keys[number % count]) is not None
        return 1e6 * (time.perf_counter() - began) / operations, {}

    return once


if TYPE_CHECKING:
    _Found = dict[str, tuple[Kind, str, Get]]


async def _glide(stack: AsyncExitStack, redis_url: str, _: Sequence[str], found: _Found) -> None:
    from glide import (  # noqa: PLC0415 - each peer may be missing
        GlideClient,
        GlideClientConfiguration,
        NodeAddress,
    )

    where = urlsplit(redis_url)
    configuration = GlideClientConfiguration([NodeAddress(where.hostname, where.port)])
    client = await GlideClient.create(configuration)
    stack.push_async_callback(client.close)
    found[GLIDE] = "limit", "await client.get(key)", client.get


async def _cashews(
    stack: AsyncExitStack, redis_url: str, keys: Sequence[str], found: _Found
) -> None:
    from cashews import Cache  # noqa: PLC0415

    cache = Cache()
    cache.setup(redis_url)
    stack.push_async_callback(cache.close)
    get = await _stored("cashews", keys, cache.get, lambda key: cache.set(key, BODY, expire=_KEEP))
    found["cashews, Redis"] = "peer", "await cache.get(key)", get


async def _aiocache(
    stack: AsyncExitStack, redis_url: str, keys: Sequence[str], found: _Found
) -> None:
    from aiocache import Cache  # noqa: PLC0415
    from aiocache.serializers import NullSerializer  # noqa: PLC0415

    where = urlsplit(redis_url)
    serializer = NullSerializer(encoding=None)
    cache = Cache(Cache.REDIS, endpoint=where.hostname, port=where.port, serializer=serializer)
    stack.push_async_callback(cache.close)
    get = await _stored(
        "aiocache", keys, cache.get, lambda key: cache.set(key, BODY, ttl=int(_KEEP))
    )
    found["aiocache, Redis"] = "peer", "await cache.get(key), bytes", get


async def _fastapi(
    stack: AsyncExitStack, redis_url: str, keys: Sequence[str], found: _Found
) -> None:
    from fastapi_cache.backends.redis import RedisBackend  # noqa: PLC0415

    client = Redis.from_url(redis_url)
    stack.push_async_callback(client.aclose)
    cache = RedisBackend(client)
    get = await _stored("fastapi", keys, cache.get, lambda key: cache.set(key, BODY, int(_KEEP)))
    found["fastapi-cache2, Redis"] = "peer", "await backend.get(key)", get


async def _stored(
    name: str, keys: Sequence[str], get: Get, put: Callable[[str], Awaitable[Any]]
) -> Get:
    """Store values under keys of one's own. Returns what gets them by the common keys."""
    own = {key: f"{name}:{key}" for key in keys}
    for key in own.values():
        await put(key)
    return lambda key: get(own[key])


_PEERS = {
    "valkey-glide": _glide,
    "cashews": _cashews,
    "aiocache": _aiocache,
    "fastapi-cache2": _fastapi,
}
