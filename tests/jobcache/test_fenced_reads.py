"""Reads that meet a fence or a lease: what wakes them, and what does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest

import jobcache.sync
from jobcache import CacheOutcome, Document, JobCache
from jobcache._engine.cell_changes import CellChanges
from jobcache._engine.fetching import ATTEMPTS, PAUSES
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.null import NullBackend
from jobcache.protocol.backend import LeaseResult
from jobcache.protocol.entry import Entry
from tests.jobcache.bench import Bench, Source, Transaction, document
from tests.jobcache.test_waiting import HandFeed, Remote, turns
from tests.subjects import PAIRS, PATIENCE, MemorySubject, TieredSubject

HIT, MISS, BYPASS = CacheOutcome.HIT, CacheOutcome.MISS, CacheOutcome.BYPASS


class Pauses:
    """`sleep`, by a test: a pause ends when the test says so, and not before."""

    def __init__(self) -> None:
        self.begun: list[float] = []
        self._under_way: list[asyncio.Future[None]] = []

    async def __call__(self, seconds: float) -> None:
        self.begun.append(seconds)
        pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.append(pause)
        try:
            await pause
        finally:
            self._under_way.remove(pause)

    def __len__(self) -> int:
        return len(self._under_way)

    async def end(self) -> None:
        """End the pauses that are under way, and run all tasks until they wait."""
        for pause in list(self._under_way):
            pause.set_result(None)
        await turns()


class Writer:
    """A write of "k" that has fenced, and commits when the test says so."""

    def __init__(self, source: Source, cache: JobCache) -> None:
        self.transaction = Transaction(source, "k")
        self.fenced = asyncio.Event()
        self._cache = cache
        self._commits = asyncio.Event()
        self._task = asyncio.create_task(self._write())

    async def _write(self) -> None:
        async with self._cache.write(self.transaction, "k") as write:
            self.fenced.set()
            await self._commits.wait()
            write.publish("k", document(self.transaction.version))

    async def commit(self) -> None:
        self._commits.set()
        await self._task

    async def give_up(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def die(self) -> None:
        """Leave without another word."""
        publisher = self._cache.writes.publisher
        backend, publisher._backend = publisher._backend, NullBackend()
        await self.give_up()
        publisher._backend = backend


class OneProcess:
    """Readers and writers in one process, on memory."""

    def __init__(self) -> None:
        self.pauses = Pauses()
        self.bench = Bench(MemorySubject(), sleep=self.pauses)
        self.source, self.cache = self.bench.source, self.bench.cache

    async def writer(self) -> Writer:
        writer = Writer(self.source, self.cache)
        await writer.fenced.wait()
        return writer

    async def reader(self) -> asyncio.Task[tuple[int, CacheOutcome]]:
        reader = asyncio.create_task(self.bench.read("k"))
        await turns()
        assert not reader.done()
        return reader


def waiting(cache: JobCache) -> CellChanges:
    return cache.reads._fetcher._changes


@pytest.fixture
async def process() -> AsyncIterator[OneProcess]:
    """Yield one process, and check that nothing is left of it afterwards."""
    made = OneProcess()
    yield made
    assert waiting(made.cache)._noticing == {}
    await turns()
    assert len(made.pauses) == 0
    await made.cache.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def answer(reader: asyncio.Task[Any]) -> Any:
    async with asyncio.timeout(PATIENCE):
        return await reader


# --- in the process of the writer ---


async def test_a_read_behind_a_fence_is_answered_when_the_writer_publishes(
    process: OneProcess,
) -> None:
    writer = await process.writer()
    readers = [await process.reader() for _ in range(3)]
    await writer.commit()
    assert [await answer(reader) for reader in readers] == [(1, HIT)] * 3
    assert process.source.loads == 0
    assert process.pauses.begun == [PAUSES[0]], "it waited for a pause to end"


async def test_a_read_waits_for_the_last_writer_of_the_fence(process: OneProcess) -> None:
    first = await process.writer()
    second = await process.writer()
    second.transaction.version = 2
    reader = await process.reader()
    await first.commit()
    await turns()
    assert not reader.done()
    await second.commit()
    assert await answer(reader) == (2, HIT)
    assert process.pauses.begun == [PAUSES[0]], "what the first writer has published took a pause"


async def test_a_read_behind_a_withdrawn_fence_loads_at_once(process: OneProcess) -> None:
    process.source.versions["k"] = 1
    writer = await process.writer()
    reader = await process.reader()
    await writer.give_up()
    assert await answer(reader) == (1, MISS)
    assert await process.bench.read("k") == (1, HIT), "it was not stored"


async def test_a_read_behind_a_lease_is_answered_when_the_load_is_published(
    process: OneProcess,
) -> None:
    process.source.versions["k"] = 1
    process.source.gate.clear()
    gate = process.source.gate

    async def load_many(keys: Any) -> Mapping[str, Document]:
        await gate.wait()
        return await process.source.load_many(keys)

    batch = asyncio.create_task(process.cache.read_many(["k"], load_many))
    await turns()
    reader = await process.reader()
    gate.set()
    await batch
    assert await answer(reader) == (1, HIT)
    assert process.source.loads == 1


async def test_a_fence_whose_writer_has_died_is_waited_for_as_long_as_the_pauses_take(
    process: OneProcess,
) -> None:
    process.source.versions["k"] = 1
    writer = await process.writer()
    await writer.die()
    reader = await process.reader()
    for number in range(ATTEMPTS[LeaseResult.FENCED]):
        assert process.pauses.begun == list(PAUSES[: number + 1])
        waiting(process.cache).changed(["k", "another"])  # wakes it, and changes nothing else
        await turns()
        assert not reader.done()
        await process.pauses.end()
    assert await answer(reader) == (1, BYPASS)


async def test_a_change_without_a_report_is_found_after_the_pause(process: OneProcess) -> None:
    writer = await process.writer()
    reader = await process.reader()
    await process.bench.subject.evict("k")
    process.source.versions["k"] = 1
    await process.pauses.end()
    assert await answer(reader) == (1, MISS)
    assert process.pauses.begun == [PAUSES[0]]
    await writer.give_up()


async def test_a_cancelled_read_leaves_nothing(process: OneProcess) -> None:
    writer = await process.writer()
    readers = [await process.reader() for _ in range(2)]
    assert len(waiting(process.cache)._noticing) == 1
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)
    await writer.commit()  # what the two shared goes on until now
    await turns()
    assert waiting(process.cache)._noticing == {}


async def test_closing_leaves_nothing(process: OneProcess) -> None:
    writer = await process.writer()
    reader = await process.reader()
    await writer.die()
    await process.cache.aclose()
    await asyncio.wait([reader])
    assert reader.cancelled()


async def test_a_read_that_meets_nobody_starts_no_pause(process: OneProcess) -> None:
    process.source.versions["k"] = 1
    assert await process.bench.read("k") == (1, MISS)
    assert await process.bench.read("k") == (1, HIT)
    assert process.pauses.begun == []


def test_a_read_of_the_synchronous_library_is_woken_as_well() -> None:
    pausing, pauses, versions = threading.Event(), list[float](), {"k": 0}

    async def for_ever(seconds: float) -> None:
        pauses.append(seconds)
        pausing.set()
        await asyncio.get_running_loop().create_future()

    def read(cache: jobcache.sync.JobCache) -> tuple[int, CacheOutcome]:
        result = cache.read("k", lambda: document(versions["k"]))
        return result.entry.version, result.outcome

    with (
        jobcache.sync.JobCache(MemoryBackend, sleep=for_ever) as cache,
        ThreadPoolExecutor(1) as thread,
    ):
        with cache.write(nullcontext(), "k") as write:
            reader = thread.submit(read, cache)
            assert pausing.wait(PATIENCE)
            versions["k"] = 1
            write.publish("k", document(1))
        assert reader.result(PATIENCE) == (1, HIT)
    assert pauses == [PAUSES[0]]


# --- in another process ---


async def test_a_report_of_the_feed_wakes_a_read() -> None:
    pauses, feed, subject = Pauses(), HandFeed(), MemorySubject()
    other = Bench(subject)
    cache = JobCache(
        Remote(subject.backend, feed),
        lifetimes=other.cache.lifetimes,
        clock_ms=lambda: other.now_ms,
        sleep=pauses,
    )
    writer = Writer(other.source, other.cache)
    await writer.fenced.wait()
    reader = asyncio.create_task(cache.read("k", lambda: other.source.load("k")))
    await turns()
    feed.changed("k")  # the fence, which came before the reader
    await turns()
    await writer.commit()
    await turns()
    assert not reader.done(), "the feed has not reported the publish"
    feed.changed("another")
    feed.changed("k")
    result = await answer(reader)
    assert (result.entry.version, result.outcome, other.source.loads) == (1, HIT, 0)
    assert pauses.begun == [PAUSES[0]]
    await cache.aclose()
    await other.cache.aclose()


async def test_a_report_that_overtakes_the_reply_of_a_lease_is_not_missed() -> None:
    """The reply says that there is a fence, which is no longer true when it arrives."""
    pauses, feed, cells = Pauses(), HandFeed(), MemorySubject().backend
    remote, source = SlowReplies(cells, feed), Source()
    cache, other = JobCache(remote, sleep=pauses), JobCache(cells)
    writer = Writer(source, other)
    await writer.fenced.wait()
    remote.gate.clear()
    reader = asyncio.create_task(cache.read("k", lambda: source.load("k")))
    await remote.leased.wait()
    await writer.commit()
    feed.changed("k")
    remote.gate.set()
    result = await answer(reader)
    assert (result.entry.version, result.outcome, source.loads) == (1, HIT, 0)
    await cache.aclose()


class SlowReplies(Remote):
    """A store whose replies to leases arrive when the test says so."""

    def __init__(self, cells: MemoryBackend, feed: HandFeed) -> None:
        super().__init__(cells, feed)
        self.leased = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        return await self._cells.get(key)

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        found = await self._cells.lease(key, token)
        self.leased.set()
        await self.gate.wait()
        return found


@pytest.mark.parametrize("subject", PAIRS, indirect=True)
async def test_on_tiered_a_writer_in_another_process_wakes_a_read(subject: TieredSubject) -> None:
    pauses, source = Pauses(), Source()
    cache, other = (JobCache(instance, sleep=pauses) for instance in subject.instances)
    writer = Writer(source, other)
    await writer.fenced.wait()
    reader = asyncio.create_task(cache.read("k", lambda: source.load("k")))
    async with asyncio.timeout(PATIENCE):
        while not pauses.begun:
            await asyncio.sleep(0)
    await writer.commit()
    result = await answer(reader)
    assert (result.entry.version, result.outcome, source.loads) == (1, HIT, 0)
