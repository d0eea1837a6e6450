"""Backends under test, and what a test does to them that no caller can."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import redis

from app.devservers import redis_servers
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.backends.redis import RedisBackend
from jobcache.protocol import CacheBackend
from jobcache.testing import conformance

REDIS_SERVERS = redis_servers()
BACKENDS = ["null", "memory", *(f"redis on {name}" for name in REDIS_SERVERS)]
KEEPING = BACKENDS[1:]


@dataclass
class FakeClock:
    """Monotonic seconds that only a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


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
        self.backend._slots.pop(key, None)

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds


class RedisSubject:
    """A backend on a flushed server; time passes by shortening what every key has left."""

    def __init__(self, url: str) -> None:
        self.raw = redis.Redis.from_url(url)
        self.raw.flushall()
        self.backend = RedisBackend(url, prefix="test:")

    async def evict(self, key: str) -> None:
        self.raw.delete(f"test:{key}")

    async def elapse(self, seconds: float) -> None:
        for key in self.raw.keys("*"):
            left = self.raw.pttl(key)
            assert left > 0, f"{key!r} would never expire"
            self.raw.pexpire(key, left - round(seconds * 1000))

    async def aclose(self) -> None:
        await self.backend.aclose()
        self.raw.close()


async def make_subject(name: str, redis_urls: dict[str, str]) -> AsyncIterator[conformance.Subject]:
    if name == "null":
        yield NullSubject()
    elif name == "memory":
        yield MemorySubject()
    else:
        subject = RedisSubject(redis_urls[name.removeprefix("redis on ")])
        yield subject
        await subject.aclose()
