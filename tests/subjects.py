"""Backends under test, with the interventions of tests: lost cells, and time that passes."""

from __future__ import annotations

import asyncio
import functools
import itertools
import sys
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.utils
from pymemcache.client.base import Client
from redis._parsers import _AsyncRESP3Parser
from sqlalchemy import delete, event

from app.devservers import redis_servers
from examples.sql_backend import SqlBackend, cells
from jobcache.backends.compare_and_set import CompareAndSetBackend
from jobcache.backends.memcached import MemcachedBackend
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.tiered import TieredBackend
from jobcache.protocol.backend import CacheBackend, LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing import conformance

# redis-py looks up on disk, for each client and connection, which version it is: here only once.
redis.utils.get_lib_version = functools.cache(redis.utils.get_lib_version)
if sys.version_info < (3, 12):
    # Each isinstance() of a protocol collects its attributes anew. A simulation makes thousands of
    # caches, and each of them asks a dozen times what its backend can do.
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)

REDIS_SERVERS = redis_servers()
BACKENDS = [
    "null",
    "memory",
    *(f"{kind} on {name}" for kind in ("redis", "tiered") for name in REDIS_SERVERS),
]
KEEPING = BACKENDS[1:]
COMPARE_AND_SET = ["a dictionary", "memcached", "sql on sqlite", "sql on postgres"]
"""Backends on stores that compare and set; `stores` makes their subjects."""
PATIENCE = 60.0
"""Seconds that a test waits for a backend: the machine may be busy."""
PAIRS = [f"two tiered on {name}" for name in REDIS_SERVERS]
"""Two instances that share a server, asked in turn, as two processes would be."""


@dataclass
class FakeClock:
    """Monotonic seconds that only a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def ms(self) -> int:
        """Return the same time in milliseconds, as a wall clock."""
        return round(self.now * 1000)


@dataclass
class NullSubject:
    backend: CacheBackend = field(default_factory=NullBackend)

    async def evict(self, key: str) -> None:
        """There is nothing to lose."""

    async def elapse(self, seconds: float) -> None:
        """There is nothing to expire."""


class MemorySubject:
    def __init__(self, kind: type[MemoryBackend] = MemoryBackend) -> None:
        self.clock = FakeClock()
        self.backend = kind(clock=self.clock)

    async def evict(self, key: str) -> None:
        if self.backend._cell(key) is not None:
            self.backend._remove(key)

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds


class RedisSubject:
    """A backend on a flushed server; time passes by shortening what every key has left."""

    def __init__(self, url: str) -> None:
        self.raw = redis.Redis.from_url(url)
        self.raw.flushall()
        self.backend = RedisBackend(url, prefix="test:", socket_limit=PATIENCE)

    async def evict(self, key: str) -> None:
        self.raw.delete(f"test:{key}")

    async def elapse(self, seconds: float) -> None:
        shorten(self.raw, seconds)

    async def aclose(self) -> None:
        await self.backend.aclose()
        self.raw.close()


class DictionaryBackend(CompareAndSetBackend[int]):
    """The smallest store there is; a test breaks it by overriding one method."""

    name = "a dictionary"

    def __init__(self, *, attempts: int = 100, clock: FakeClock | None = None) -> None:
        clock = FakeClock() if clock is None else clock
        super().__init__(attempts=attempts, clock_ms=clock.ms)
        self.stored: dict[str, tuple[bytes, int]] = {}
        self._numbers = itertools.count(1)

    def next_token(self, key: str) -> int:
        return next(self._numbers)

    async def read(self, key: str) -> tuple[bytes, int] | None:
        return self.stored.get(key)

    async def compare_and_set(self, key: str, cell: bytes, token: int | None, ttl: float) -> bool:
        assert cell
        assert ttl > 0
        if self.token_of(key) != token:
            return False
        self.stored[key] = cell, self.next_token(key)
        return True

    async def delete(self, key: str, token: int) -> bool:
        if self.token_of(key) != token:
            return False
        del self.stored[key]
        return True

    def token_of(self, key: str) -> int | None:
        found = self.stored.get(key)
        return None if found is None else found[1]


class DictionarySubject:
    def __init__(self, kind: type[DictionaryBackend] = DictionaryBackend) -> None:
        self.clock = FakeClock()
        self.backend = kind(clock=self.clock)

    async def evict(self, key: str) -> None:
        self.backend.stored.pop(key, None)

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds

    async def aclose(self) -> None:
        """There is nothing to close."""


class MemcachedSubject:
    """A backend on a flushed server."""

    def __init__(self, url: str, kind: type[MemcachedBackend] = MemcachedBackend) -> None:
        self.clock = FakeClock()
        host, _, port = url.removeprefix("memcached://").partition(":")
        self.raw = Client((host, int(port)), default_noreply=False)
        self.raw.flush_all()
        self.backend = kind(url, prefix="test:", socket_limit=PATIENCE, clock_ms=self.clock.ms)

    async def evict(self, key: str) -> None:
        self.raw.delete(f"test:{key}")

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds

    async def aclose(self) -> None:
        await self.backend.aclose()
        self.raw.close()


class SqlSubject:
    """A backend on a table of its own database, or on an emptied one."""

    def __init__(self, url: str, kind: type[SqlBackend] = SqlBackend) -> None:
        self.clock = FakeClock()
        self.backend = kind(url, clock_ms=self.clock.ms)
        if url.startswith("sqlite"):
            event.listen(self.backend._engine.sync_engine, "connect", never_sync)

    async def start(self) -> None:
        await self.backend.prepare()
        await self.backend._execute(delete(cells))

    async def evict(self, key: str) -> None:
        found = await self.backend.read(key)
        if found is not None:
            await self.backend.delete(key, found[1])

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds

    async def aclose(self) -> None:
        await self.backend.aclose()


def never_sync(connection: Any, _: object) -> None:
    """Spare SQLite the waits for the disk: nothing has to survive a crash."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA synchronous = OFF")
    cursor.execute("PRAGMA journal_mode = MEMORY")
    cursor.close()


StoreSubject = DictionarySubject | MemcachedSubject | SqlSubject


@dataclass(frozen=True)
class Stores:
    """Where the stores of `COMPARE_AND_SET` are."""

    memcached: Callable[[], str]
    sqlite: str
    postgres: str

    async def subject(self, name: str) -> StoreSubject:
        """Return a subject of `COMPARE_AND_SET`, empty. Its owner closes it."""
        if name == "a dictionary":
            return DictionarySubject()
        if name == "memcached":
            return MemcachedSubject(self.memcached())
        subject = SqlSubject(self.sqlite if name.endswith("sqlite") else self.postgres)
        await subject.start()
        return subject


class TieredSubject:
    """Instances on a flushed server. Changes by the test are reported to them first.

    The guard has a long deadline, because a busy machine would miss a short one. On a cluster,
    `tags` has a hash tag of each primary.
    """

    def __init__(
        self,
        url: str,
        instances: int = 1,
        *,
        raw: redis.Redis | redis.RedisCluster | None = None,
        tags: Sequence[str] = ("",),
    ) -> None:
        self.clock = FakeClock()
        self.raw = redis.Redis.from_url(url) if raw is None else raw
        self.raw.flushall()
        self._tags = tags
        self.instances = [self._instance(url) for _ in range(instances)]
        self.backend: CacheBackend = self.instances[0] if instances == 1 else InTurn(self)
        self._reported: list[set[str]] = []
        self._marks = itertools.count()

    def _instance(self, url: str) -> TieredBackend:
        remote = RedisBackend(url, prefix="test:", socket_limit=PATIENCE)
        local = MemoryBackend(clock=self.clock)
        return TieredBackend(
            local, GuardedBackend(remote, deadline=PATIENCE, fence_deadline=PATIENCE), remote.feed()
        )

    async def start(self) -> None:
        """Return once the feed of every instance is live."""
        for instance in self.instances:
            reported: set[str] = set()
            self._reported.append(reported)
            instance.feed().listen(_Reported(reported))
            await instance.start()
        async with asyncio.timeout(PATIENCE):
            while not all(instance.feed().live for instance in self.instances):
                await asyncio.sleep(0.001)

    async def in_step(self) -> None:
        """Return once all changes until now have been reported to every instance."""
        number = next(self._marks)
        marks = {f"mark:{number}{tag}" for tag in self._tags}
        for mark in marks:
            self.raw.set(f"test:{mark}", "", px=60_000)
        async with asyncio.timeout(PATIENCE):
            while not all(marks <= reported for reported in self._reported):
                await asyncio.sleep(0)

    async def evict(self, key: str) -> None:
        self.raw.delete(f"test:{key}")
        await self.in_step()

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds
        shorten(self.raw, seconds)
        await self.in_step()

    async def aclose(self) -> None:
        for instance in self.instances:
            await instance.aclose()
        self.raw.close()


class _Reported:
    def __init__(self, keys: set[str]) -> None:
        self._keys = keys

    def changed(self, keys: Sequence[str]) -> None:
        self._keys.update(keys)

    def interrupted(self) -> None:
        """Nothing to forget."""

    def resumed(self) -> None:
        """Nothing to learn."""


class InTurn:
    """A backend that passes each operation to another instance, in turn.

    Before that, the changes of the other instances are reported to it. So the reports and their
    effect are tested here; other tests measure their delay.
    """

    name = "tiered"

    def __init__(self, subject: TieredSubject) -> None:
        self._subject = subject
        self._turns = itertools.cycle(subject.instances)

    async def _next(self) -> TieredBackend:
        await self._subject.in_step()
        return next(self._turns)

    async def get(self, key: str) -> Entry | None:
        return await (await self._next()).get(key)

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        return await (await self._next()).get_many(keys)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        return await (await self._next()).lease(key, token)

    async def fence(self, key: str, token: str) -> None:
        await (await self._next()).fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        return await (await self._next()).publish(key, token, entry)

    async def purge(self, keys: Sequence[str]) -> int:
        return await (await self._next()).purge(keys)

    async def purge_all(self) -> int:
        return await (await self._next()).purge_all()

    async def aclose(self) -> None:
        for instance in self._subject.instances:
            await instance.aclose()


def by_the_pool(backend: RedisBackend) -> RedisBackend:
    """Make a new `backend` use redis-py's own pool for all commands, as without hiredis."""
    for server in backend._topology.servers():
        server._pool.connection_kwargs["parser_class"] = _AsyncRESP3Parser
    return backend


def shorten(raw: redis.Redis | redis.RedisCluster, seconds: float) -> None:
    """Let time pass for every key of a server, or of a cluster."""
    for key in list(raw.scan_iter()):
        left = raw.pttl(key)
        assert left > 0, f"{key!r} would never expire"
        raw.pexpire(key, left - round(seconds * 1000))


async def make_subject(name: str, redis_urls: dict[str, str]) -> AsyncIterator[conformance.Subject]:
    kind, _, server = name.partition(" on ")
    if kind == "null":
        yield NullSubject()
    elif kind == "memory":
        yield MemorySubject()
    elif kind == "redis":
        redis_subject = RedisSubject(redis_urls[server])
        yield redis_subject
        await redis_subject.aclose()
    else:
        tiered = TieredSubject(redis_urls[server], 2 if kind == "two tiered" else 1)
        await tiered.start()
        yield tiered
        await tiered.aclose()
