"""A guarded store that is away, hangs or answers late, as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import pytest

from jobcache import CacheUnavailable
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from tests.subjects import FakeClock

T = TypeVar("T")


class Store(MemoryBackend):
    """A store that can be away, hang, or answer late, as the test says."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.away = False
        self.hangs: asyncio.Event | None = None
        self.calls = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    async def _reach(self) -> None:
        self.calls += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.away:
            raise CacheUnavailable("connection refused")

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        await self._reach()
        return await super().get_many([key for key in keys if key != "garbage"])

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        await self._reach()
        if key == "garbage":
            raise UnreadableCell(key)
        return await super().lease(key, token)

    async def fence(self, key: str, token: str) -> None:
        await self._reach()
        await super().fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        await self._reach()
        return await super().publish(key, token, entry)

    async def purge(self, keys: Sequence[str]) -> int:
        await self._reach()
        return await super().purge(keys)

    async def purge_all(self) -> int:
        await self._reach()
        return await super().purge_all()

    async def ping(self) -> None:
        await self._reach()


class Plain:
    """A store without any optional ability but to be pinged."""

    def __init__(self, store: Store) -> None:
        self.name = store.name
        for ability in ("get", "get_many", "lease", "fence", "publish", "purge", "ping", "aclose"):
            setattr(self, ability, getattr(store, ability))


class Pauses:
    """Stands in for sleep: the recovery waits until the test lets it go on."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.gate = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.gate.acquire()


class FutureStore(Store):
    """The same, whose operations need no task of the guard's."""

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        return self._start(self.get_many(keys))

    def fence_future(self, key: str, token: str) -> asyncio.Future[None]:
        return self._start(self.fence(key, token))

    def publish_future(
        self, key: str, token: str, entry: Entry | None
    ) -> asyncio.Future[PublishResult]:
        return self._start(self.publish(key, token, entry))

    def _start(self, operation: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(operation)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def aclose(self) -> None:
        for task in self.tasks:
            task.cancel()
        await super().aclose()


class Rig:
    def __init__(self, store: Store, guarded: Any = None) -> None:
        self.store = store
        self.pauses = Pauses()
        self.clock = FakeClock()
        self.now_ms = 1_700_000_000_000
        self.guard = GuardedBackend(
            self.store if guarded is None else guarded,
            deadline=0.02,
            fence_deadline=0.02,
            clock=self.clock,
            clock_ms=lambda: self.now_ms,
            sleep=self.pauses,
            most_missed=50,
        )

    async def probe(self) -> None:
        """Let the recovery make its next attempt, and wait until it has."""
        before = len(self.pauses.asked)
        self.pauses.gate.release()
        for _ in range(200):
            await asyncio.sleep(0)
            recovery = self.guard._recovery.task
            if len(self.pauses.asked) > before or recovery is None or recovery.done():
                return
        raise AssertionError("the recovery makes no attempt")

    async def idle(self) -> None:
        """Wait until no operation of the store runs any more, not even an overdue one."""
        while self.guard._running or self.store.tasks:
            await asyncio.sleep(0)

    async def break_it(self) -> None:
        self.store.away = True
        for _ in range(3):
            with pytest.raises(CacheUnavailable):
                await self.guard.get("k")
        assert self.guard.condition().state == "open"


async def until_open(rig: Rig) -> None:
    async with asyncio.timeout(60):
        while rig.guard.condition().available:
            await asyncio.sleep(0.001)
