"""Two tiers and a feed of which a test moves everything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from jobcache.backends.memory import MemoryBackend
from jobcache.backends.tiered import TieredBackend
from jobcache.errors import CacheUnavailable
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.capabilities import Health
from jobcache.protocol.change_feed import ChangeListener, FeedStatus
from jobcache.protocol.entry import Entry
from jobcache.testing.simulation import entry_of
from tests.subjects import FakeClock


async def turns() -> None:
    """Let everything run that does not wait for the test."""
    for _ in range(30):
        await asyncio.sleep(0)


class HandFeed:
    """A feed that tells what a test says, and is live until the hour a test sets."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.live_until = clock.now + 2
        self.starts = self.closed = 0
        self.listeners: list[ChangeListener] = []

    @property
    def live(self) -> bool:
        return self.clock.now < self.live_until

    def listen(self, listener: ChangeListener) -> None:
        self.listeners.append(listener)

    def start(self) -> None:
        self.starts += 1

    def condition(self) -> FeedStatus:
        return FeedStatus("live" if self.live else "connecting", 0, "", 0, {})

    async def aclose(self) -> None:
        self.closed += 1

    def tell(self, *keys: str) -> None:
        for listener in self.listeners:
            listener.changed(keys)

    def cut(self) -> None:
        self.live_until = 0
        for listener in self.listeners:
            listener.interrupted()

    def resume(self) -> None:
        self.live_until = self.clock.now + 2
        for listener in self.listeners:
            listener.resumed()


class GatedRemote:
    """A remote tier whose answers wait at a gate once they are found, and that can be away."""

    name = "far"

    def __init__(self) -> None:
        self.cells = MemoryBackend()
        self.away = False
        self.asked = 0
        self.starts = self.closed = 0
        self.remembered: list[tuple[str, int]] = []
        self.at_gate = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[MemoryBackend]:
        self.asked += 1
        yield self.cells
        self.at_gate.set()
        await self.gate.wait()
        if self.away:
            raise CacheUnavailable("the store is away")

    async def get(self, key: str) -> Entry | None:
        async with self._asked() as cells:
            return await cells.get(key)

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        async with self._asked() as cells:
            return await cells.get_many(keys)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        async with self._asked() as cells:
            return await cells.lease(key, token)

    async def fence(self, key: str, token: str) -> None:
        async with self._asked() as cells:
            await cells.fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        async with self._asked() as cells:
            return await cells.publish(key, token, entry)

    async def purge(self, keys: Sequence[str]) -> int:
        async with self._asked() as cells:
            return await cells.purge(keys)

    async def purge_all(self) -> int:
        async with self._asked() as cells:
            return await cells.purge_all()

    def remember(self, key: str, version: int) -> None:
        self.remembered.append((key, version))

    def condition(self) -> Health:
        return Health(not self.away, "open" if self.away else "closed", 0, "", 0)

    async def start(self) -> None:
        self.starts += 1

    async def aclose(self) -> None:
        self.closed += 1

    async def hold(self, key: str, entry: Entry) -> None:
        """Another process has stored it; the feed has not reported it yet."""
        await self.cells.purge([key])
        await self.cells.lease(key, "other")
        await self.cells.publish(key, "other", entry)


class Tiered:
    """Two tiers of which a test moves everything."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.feed = HandFeed(self.clock)
        self.local = MemoryBackend(clock=self.clock)
        self.remote = GatedRemote()
        self.awake = asyncio.Event()
        self.awake.set()
        self.backend = TieredBackend(self.local, self.remote, self.feed, sleep=self._sleep)

    async def _sleep(self, seconds: float) -> None:
        assert 0 < seconds < 0.1
        await self.awake.wait()

    async def evict(self, key: str) -> None:
        await self.remote.purge([key])

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds

    async def fill(self, key: str = "k", version: int = 1) -> None:
        await self.remote.hold(key, entry_of(version))
        assert await self.backend.get(key) is not None
        assert self.version(key) == version

    async def poll(self, key: str = "k") -> int | None:
        """Read as a cache does, and return the version."""
        version = self.version(key)
        if version is not None:
            return version
        entry = await self.backend.get(key)
        return None if entry is None else entry.version

    async def fill_and_use(self, key: str = "k", version: int = 1) -> None:
        """Poll an entry twice: the second poll is a hit of the local tier."""
        await self.remote.hold(key, entry_of(version))
        assert [await self.poll(key) for _ in range(2)] == [version, version]

    async def change(self, *keys: str, version: int) -> None:
        """Have another process write these keys; the feed reports each fence and each publish."""
        for key in keys:
            await self.remote.cells.fence(key, "writer")
        self.feed.tell(*keys)
        await turns()
        for key in keys:
            await self.remote.cells.publish(key, "writer", entry_of(version))
        self.feed.tell(*keys)
        await turns()

    def version(self, key: str = "k") -> int | None:
        entry = self.backend.peek(key)
        return None if entry is None else entry.version

    async def holds_nothing_local(self, key: str = "k") -> bool:
        """Neither an entry nor somebody's lease."""
        free = await self.local.lease(key, "probe") is LeaseResult.ACQUIRED
        await self.local.publish(key, "probe", None)
        return free
