"""The conformance suite on a real server: one process, and two whose reports have come."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from app.devservers import PostgresServer
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.postgres.backend import PostgresBackend
from jobcache.backends.postgres.factory import from_url
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from jobcache.testing import conformance
from jobcache.testing.conformance import Check
from tests.subjects import FakeClock


class Processes:
    """Backends on one database; each reader and writer has its own of them.

    Before each operation, everything that was committed is reported to all of them. Reads get what
    any of them serves: the oldest that there is.
    """

    name = "postgres"

    def __init__(self, url: str, number: int) -> None:
        self.clock = FakeClock()
        self.locals = [MemoryBackend(clock=self.clock) for _ in range(number)]
        self.instances = [from_url(local, url, "", "conformance:") for local in self.locals]
        self._reported: list[set[str]] = [set() for _ in self.instances]
        self._marks = itertools.count()
        self.backend = self if number > 1 else self.instances[0]

    def _of(self, token: str) -> PostgresBackend:
        return self.instances[sum(token.encode()) % len(self.instances)]

    async def start(self) -> None:
        for instance, reported in zip(self.instances, self._reported, strict=True):
            instance.feed().listen(Reported(reported))
        await asyncio.gather(*(instance.start() for instance in self.instances))
        began = time.monotonic()
        while not all(instance.feed().live for instance in self.instances):
            assert time.monotonic() < began + 60
            await asyncio.sleep(0.001)

    async def in_step(self) -> None:
        mark = f"mark:{next(self._marks)}"
        await self.instances[0]._feed.notify([mark])
        async with asyncio.timeout(60):
            while not all(mark in reported for reported in self._reported):
                await asyncio.sleep(0)

    async def committed(self, key: str, writer: str) -> None:
        """Notify as the statement of the writer does."""
        backend = self._of(writer)
        told = backend.notification([key], writer)
        await backend._feed._writers.notify([(told.channel, told.payload)])
        await self.in_step()

    async def evict(self, key: str) -> None:
        for local in self.locals:
            if local._cell(key) is not None:
                local._remove(key)

    async def elapse(self, seconds: float) -> None:
        self.clock.now += seconds

    # --- the operations ---

    async def get(self, key: str) -> Entry | None:
        return (await self.get_many([key])).get(key)

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, Entry]:
        await self.in_step()
        found: dict[str, Entry] = {}
        for instance in self.instances:
            for key, entry in (await instance.get_many(keys)).items():
                held = found.get(key)
                if held is None or entry.version < held.version:
                    found[key] = entry
        return found

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        await self.in_step()
        return await self._of(token).lease(key, token)

    async def fence(self, key: str, token: str) -> None:
        await self._of(token).fence(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        await self.in_step()
        return await self._of(token).publish(key, token, entry)

    async def purge(self, keys: Sequence[str]) -> int:
        await self.in_step()
        return await self.instances[0].purge(keys)

    async def aclose(self) -> None:
        for instance in self.instances:
            await instance.aclose()


class Reported:
    def __init__(self, keys: set[str]) -> None:
        self._keys = keys

    def changed(self, keys: Sequence[str]) -> None:
        self._keys.update(keys)

    def interrupted(self) -> None:
        """Nothing to forget."""

    def resumed(self) -> None:
        """Nothing to learn."""


@pytest.fixture
async def subject(
    request: pytest.FixtureRequest, postgres: PostgresServer
) -> AsyncIterator[Processes]:
    made = Processes(postgres.url(), request.param)
    await made.start()
    yield made
    await made.aclose()


@pytest.mark.parametrize("subject", [1], indirect=True)
@pytest.mark.parametrize("check", conformance.NOTIFIED, ids=lambda each: each.__name__)
async def test_the_backend_keeps_the_contract(subject: Processes, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("subject", [2], indirect=True)
@pytest.mark.parametrize("check", conformance.SAFETY, ids=lambda each: each.__name__)
async def test_two_processes_serve_no_wrong_entry(subject: Processes, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("subject", [1], indirect=True)
async def test_the_suite_finds_commits_that_are_not_reported(subject: Processes) -> None:
    subject.committed = lambda *_: asyncio.sleep(0)  # type: ignore[assignment, method-assign]
    failed = []
    for check in conformance.SCHEDULES:
        try:
            await check(subject)
        except AssertionError:
            failed.append(check.__name__)
        await subject.backend.purge_all()
    assert "writers_fence_before_they_commit" in failed
