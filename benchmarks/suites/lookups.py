"""Hits inside one coroutine: `JobCache` beside other caches and a dictionary."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachetools import LRUCache, TTLCache

from app.jobs.cache_keys import progress_key
from benchmarks.backends import ready_backend
from benchmarks.document import DOCUMENT
from benchmarks.interleaving import Subject, cost, take_turns
from benchmarks.peers.table import absent
from benchmarks.results import Section
from jobcache import CacheOutcome, JobCache, Lifetimes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.results import Kind
    from jobcache import Document

READ = "JobCache on {}, read"
OURS = READ.format("memory")
BACKEND = "memory backend, get"
DICTIONARY = "dictionary"
BARE = "cachetools.TTLCache"
EMPTY = "a coroutine that does nothing"
SYNCHRONOUS = " (not awaited)"
"""In the words on how one is set up whose get is no coroutine."""

K = TypeVar("K")

_KEYS = 100
_FIRST = 1_000_001  # no other section uses these keys on the same Redis
_KEEP = 3600.0  # seconds
_ENTRIES = 10_000
BODY = DOCUMENT.body + b" " * (700 - len(DOCUMENT.body))


async def _nothing(key: str) -> str:
    return key


async def load() -> Document:
    """Return a document at no cost."""
    return DOCUMENT


class Subjects(Generic[K]):
    """The measured subjects: each reads the same keys in the same loop.

    Args:
        asked: the keys, in order.
    """

    def __init__(self, asked: list[K]) -> None:
        self._asked = asked
        self.all: list[Subject] = []

    def awaited(self, name: str, kind: Kind, how: str, get: Callable[[K], Awaitable[Any]]) -> None:
        """Add one whose get is a coroutine."""

        async def work() -> None:
            for key in self._asked:
                found = await get(key)
            assert found is not None, name

        self.all.append(Subject(name, kind, how, cost(len(self._asked), work)))

    def called(self, name: str, kind: Kind, how: str, get: Callable[[K], Any]) -> None:
        """Add one whose get is not."""

        async def work() -> None:
            for key in self._asked:
                found = get(key)
            assert found is not None, name

        self.all.append(Subject(name, kind, how, cost(len(self._asked), work)))

    def read(self: Subjects[str], name: str, how: str, cache: JobCache) -> None:
        """Add a `JobCache`."""

        async def work() -> None:
            for key in self._asked:
                answer = await cache.read(key, load)
            assert answer.outcome is CacheOutcome.HIT

        self.all.append(Subject(name, "ours", how, cost(len(self._asked), work)))


async def lookups(
    redis_url: str, postgres_url: str, *, peers: bool, operations: int, turns: int
) -> Section:
    """The section. `operations` are those of a turn."""
    keys = [progress_key(number) for number in range(_FIRST, _FIRST + _KEYS)]
    values: dict[str, bytes] = {key: bytes(bytearray(BODY)) for key in keys}
    subjects = Subjects(list(islice(cycle(keys), operations)))
    async with AsyncExitStack() as stack:
        for name in ("memory", "tiered", "postgres"):
            ready = ready_backend(name, redis_url=redis_url, postgres_url=postgres_url)
            backend = await stack.enter_async_context(ready)
            cache = JobCache(backend, lifetimes=Lifetimes(default=_KEEP))
            for key in keys:
                await cache.read(key, load)
            how = "statistics, single flight and freshness included"
            subjects.read(READ.format(name), how, cache)
            if name == "memory":
                subjects.awaited(BACKEND, "ours", "what is below it", backend.get)
        _limits(values, subjects)
        missing = {one.subject for one in absent()} if peers else set(_PEERS)
        for package, attach in _PEERS.items():
            if package not in missing:
                await attach(stack, values, subjects)
        series = await take_turns(subjects.all, turns)
    return Section(
        "lookups",
        "A hit inside a coroutine",
        f"{operations} hits in one coroutine, {_KEYS} keys in turn, values of {len(BODY)} bytes",
        "µs",
        more_is_better=False,
        reference=BARE,
        series=series,
    )


def _limits(values: dict[str, bytes], subjects: Subjects[str]) -> None:
    timed: TTLCache[str, bytes] = TTLCache(_ENTRIES, _KEEP)
    least: LRUCache[str, bytes] = LRUCache(_ENTRIES)
    for key, value in values.items():
        timed[key] = least[key] = value
    subjects.called(DICTIONARY, "limit", "get", values.get)
    subjects.awaited(EMPTY, "limit", "await function(key)", _nothing)
    subjects.called(BARE, "limit", f"get{SYNCHRONOUS}", timed.get)
    subjects.called("cachetools.LRUCache", "limit", f"get{SYNCHRONOUS}", least.get)


async def _cashews(
    stack: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]
) -> None:
    from cashews import Cache  # noqa: PLC0415 - each peer may be missing

    cache = Cache()
    cache.setup("mem://", size=_ENTRIES)
    stack.push_async_callback(cache.close)
    for key, value in values.items():
        await cache.set(key, value, expire=_KEEP)
    subjects.awaited("cashews, memory", "peer", "await cache.get(key)", cache.get)


async def _aiocache(_: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]) -> None:
    from aiocache import Cache  # noqa: PLC0415

    cache = Cache(Cache.MEMORY)
    for key, value in values.items():
        await cache.set(key, value, ttl=_KEEP)
    subjects.awaited("aiocache, memory", "peer", "await cache.get(key)", cache.get)


async def _fastapi(_: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]) -> None:
    from fastapi_cache.backends.inmemory import InMemoryBackend  # noqa: PLC0415

    cache = InMemoryBackend()
    for key, value in values.items():
        await cache.set(key, value, int(_KEEP))
    subjects.awaited("fastapi-cache2, memory", "peer", "await backend.get(key)", cache.get)


async def _cachebox(_: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]) -> None:
    from cachebox import TTLCache as Fast  # noqa: PLC0415
    from cachebox import cached  # noqa: PLC0415

    cache = Fast(_ENTRIES, _KEEP)
    for key, value in values.items():
        cache[key] = value

    async def value_of(key: str) -> bytes:
        return values[key]

    decorated = cached(Fast(_ENTRIES, _KEEP))(value_of)
    subjects.called("cachebox.TTLCache", "peer", f"get{SYNCHRONOUS}", cache.get)
    subjects.awaited("cachebox, decorated coroutine", "peer", "await function(key)", decorated)


async def _dogpile(_: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]) -> None:
    from dogpile.cache import make_region  # noqa: PLC0415

    region = make_region().configure("dogpile.cache.memory", expiration_time=int(_KEEP))
    for key, value in values.items():
        region.set(key, value)
    subjects.called("dogpile.cache, memory", "peer", f"region.get{SYNCHRONOUS}", region.get)


async def _diskcache(
    stack: AsyncExitStack, values: dict[str, bytes], subjects: Subjects[str]
) -> None:
    from diskcache import Cache  # noqa: PLC0415

    cache = Cache(stack.enter_context(tempfile.TemporaryDirectory(prefix="jobcache-")))
    stack.callback(cache.close)
    for key, value in values.items():
        cache.set(key, value, expire=_KEEP)
    subjects.called("diskcache", "peer", f"get{SYNCHRONOUS}, blocks the loop", cache.get)


_PEERS = {
    "cashews": _cashews,
    "aiocache": _aiocache,
    "fastapi-cache2": _fastapi,
    "cachebox": _cachebox,
    "dogpile.cache": _dogpile,
    "diskcache": _diskcache,
}
