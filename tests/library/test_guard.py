"""The guard: deadlines, the breaker, and telling the store what it missed before it is used."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from jobcache import CacheUnavailable, JobCache, Outcome, UnreadableCell
from jobcache.backends.memory import MemoryBackend
from jobcache.guard import Guard
from jobcache.protocol import Entry, Offered, Ping, Standing
from jobcache.testing.schedules import entry_of
from tests.library.bench import Source, Transaction, document
from tests.subjects import FakeClock, MemorySubject


class Store(MemoryBackend):
    """A store that can be away, hang, or answer late, as the test says."""

    def __init__(self) -> None:
        super().__init__(clock=FakeClock())
        self.away = False
        self.hangs: asyncio.Event | None = None
        self.calls = 0

    async def _reach(self) -> None:
        self.calls += 1
        if self.hangs is not None:
            await self.hangs.wait()
        if self.away:
            raise CacheUnavailable("connection refused")

    async def get(self, key: str) -> Entry | None:
        await self._reach()
        if key == "garbage":
            raise UnreadableCell("garbage")
        return await super().get(key)

    async def lease(self, key: str, ticket: str) -> Entry | Standing:
        await self._reach()
        return await super().lease(key, ticket)

    async def fence(self, key: str, ticket: str) -> None:
        await self._reach()
        await super().fence(key, ticket)

    async def offer(self, key: str, ticket: str, entry: Entry | None) -> Offered:
        await self._reach()
        return await super().offer(key, ticket, entry)

    async def ping(self) -> None:
        await self._reach()


class Pauses:
    """Stands in for sleep: the recovery waits until the test lets it go on."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.gate = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.gate.acquire()


class Rig:
    def __init__(self) -> None:
        self.store = Store()
        self.pauses = Pauses()
        self.clock = FakeClock()
        self.guard = Guard(
            self.store, deadline=0.02, clock=self.clock, sleep=self.pauses, most_missed=50
        )

    async def probe(self) -> None:
        """Let the recovery make its next attempt, and wait until it has."""
        before = len(self.pauses.asked)
        self.pauses.gate.release()
        for _ in range(200):
            await asyncio.sleep(0)
            recovery = self.guard._recovery
            if len(self.pauses.asked) > before or recovery is None or recovery.done():
                return
        raise AssertionError("the recovery makes no attempt")

    async def break_it(self) -> None:
        self.store.away = True
        for _ in range(3):
            with pytest.raises(CacheUnavailable):
                await self.guard.get("k")
        assert self.guard.condition().state == "open"


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    rig = Rig()
    yield rig
    await rig.guard.aclose()


async def test_a_few_failures_in_a_row_open_the_breaker(rig: Rig) -> None:
    rig.store.away = True
    for _ in range(2):
        with pytest.raises(CacheUnavailable):
            await rig.guard.get("k")
    assert rig.guard.condition().available
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    condition = rig.guard.condition()
    assert (condition.available, condition.state) == (False, "open")
    assert condition.reason == "connection refused"
    calls = rig.store.calls
    for _ in range(100):
        with pytest.raises(CacheUnavailable):
            await rig.guard.get("k")
    assert rig.store.calls == calls, "an open breaker asks the store nothing"


async def test_a_success_in_between_starts_the_count_anew(rig: Rig) -> None:
    for _ in range(5):
        rig.store.away = True
        for _ in range(2):
            with pytest.raises(CacheUnavailable):
                await rig.guard.get("k")
        rig.store.away = False
        assert await rig.guard.get("k") is None
    assert rig.guard.condition().available


async def test_an_unreadable_cell_is_no_failure_of_the_store(rig: Rig) -> None:
    for _ in range(10):
        with pytest.raises(UnreadableCell):
            await rig.guard.get("garbage")
    assert rig.guard.condition().available


async def test_nobody_waits_longer_than_the_deadline(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await rig.guard.get("k")
    assert len(rig.guard._running) == 1, "the operation itself is left to end by itself"
    rig.store.hangs.set()
    while rig.guard._running:
        await asyncio.sleep(0)


async def test_each_change_of_state_is_one_line_in_the_log(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jobcache")
    await rig.break_it()
    for _ in range(50):
        with pytest.raises(CacheUnavailable):
            await rig.guard.get("k")
    await rig.probe()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "the memory cache is away (connection refused): polls are answered from the source until"
        " it is back"
    )
    rig.store.away = False
    rig.clock.now += 12.5
    await rig.probe()
    assert caplog.records[-1].getMessage() == "the memory cache is back after 12.5 s"
    assert len(caplog.records) == 2


async def test_probes_come_from_one_task_with_growing_jittered_pauses(rig: Rig) -> None:
    await rig.break_it()
    for _ in range(8):
        await rig.probe()
    pauses = rig.pauses.asked
    assert 0.05 <= pauses[0] <= 0.1
    assert all(pause <= 1 for pause in pauses)
    assert all(0.5 <= pause <= 1 for pause in pauses[5:])
    assert len(set(pauses)) > 5, "they are jittered"


async def test_what_was_missed_is_repeated_before_the_cache_is_read_again(rig: Rig) -> None:
    """Without that, the old version would be served until it expired."""
    await rig.guard.lease("k", "r")
    await rig.guard.offer("k", "r", entry_of(1))
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")
    with pytest.raises(CacheUnavailable):
        await rig.guard.offer("k", "w", entry_of(2))
    assert rig.guard.condition().unsettled == 1
    rig.store.away = False
    await rig.probe()
    assert rig.guard.condition().available
    assert rig.guard.condition().unsettled == 0
    assert await rig.guard.get("k") is None


async def test_a_fence_another_writer_left_hears_of_the_missed_version(rig: Rig) -> None:
    """A purge would leave that fence as it is, and its writer would bring the old version back."""
    await rig.store.fence("k", "other")  # commits v2 in another process
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")  # commits v3 here
    with pytest.raises(CacheUnavailable):
        await rig.guard.offer("k", "w", entry_of(3))
    rig.store.away = False
    await rig.probe()
    assert await rig.store.offer("k", "other", entry_of(2)) is Offered.REMOVED
    assert await rig.guard.get("k") is None


async def test_one_lost_offer_unsettles_its_key_only_and_only_until_it_is_repeated(
    rig: Rig,
) -> None:
    for key in ("k", "other"):
        await rig.guard.lease(key, "r")
        await rig.guard.offer(key, "r", entry_of(1))
    rig.store.away = True
    with pytest.raises(CacheUnavailable):
        await rig.guard.offer("k", "w", entry_of(2))
    rig.store.away = False
    assert rig.guard.condition().available
    with pytest.raises(CacheUnavailable, match="yet to be told of k"):
        await rig.guard.get("k")
    with pytest.raises(CacheUnavailable):
        await rig.guard.lease("k", "r2")
    assert await rig.guard.get_many(["k", "other"]) == {"other": entry_of(1)}
    await rig.probe()
    assert await rig.guard.get("k") is None
    assert await rig.guard.lease("k", "r2") is Standing.NOTHING


async def test_a_lost_fence_is_forgotten_once_its_writer_has_offered(rig: Rig) -> None:
    rig.store.away = True
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")
    rig.store.away = False
    await rig.guard.offer("k", "w", entry_of(2))
    assert rig.guard.condition().unsettled == 0


async def test_a_late_success_settles_what_its_deadline_unsettled(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.offer("k", "w", entry_of(2))
    assert rig.guard.condition().unsettled == 1
    rig.store.hangs.set()
    while rig.guard._running:
        await asyncio.sleep(0)
    assert rig.guard.condition().unsettled == 0


async def test_an_operators_purge_is_made_good(rig: Rig) -> None:
    await rig.guard.lease("k", "r")
    await rig.guard.offer("k", "r", entry_of(1))
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.purge(["k"])
    rig.store.away = False
    await rig.probe()
    assert await rig.guard.get("k") is None


async def test_too_much_to_remember_empties_the_namespace(rig: Rig) -> None:
    await rig.guard.lease("innocent", "r")
    await rig.guard.offer("innocent", "r", entry_of(1))
    await rig.break_it()
    for number in range(60):
        with pytest.raises(CacheUnavailable):
            await rig.guard.offer(f"k{number}", "w", entry_of(2))
    assert rig.guard.condition().unsettled == 0
    rig.store.away = False
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("innocent")
    await rig.probe()
    assert rig.guard.condition().available
    assert await rig.guard.get("innocent") is None


async def test_the_breaker_stays_open_while_the_missed_cannot_be_repeated(rig: Rig) -> None:
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.offer("k", "w", entry_of(2))
    rig.store.away = False
    offer = rig.store.offer

    async def refused(key: str, ticket: str, entry: Entry | None) -> Offered:
        raise CacheUnavailable("READONLY")

    rig.store.offer = refused  # type: ignore[method-assign]
    await rig.probe()
    assert rig.guard.condition().state == "open"
    rig.store.offer = offer  # type: ignore[method-assign]
    await rig.probe()
    assert rig.guard.condition().state == "closed"


async def test_a_store_that_is_away_at_the_start_is_known_at_once(rig: Rig) -> None:
    rig.store.away = True
    await rig.guard.start()
    assert rig.guard.condition().state == "open"


async def test_a_bug_in_the_backend_does_not_end_the_recovery(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.break_it()
    ping = rig.store.ping

    async def buggy() -> None:
        raise ZeroDivisionError

    rig.store.ping = buggy  # type: ignore[method-assign]
    rig.store.away = False
    await rig.probe()
    rig.store.ping = ping  # type: ignore[method-assign]
    await rig.probe()
    assert rig.guard.condition().state == "closed"
    assert "probing the memory cache failed" in caplog.text


async def test_behind_an_open_breaker_reads_and_writes_go_on() -> None:
    rig = Rig()
    cache = JobCache(rig.guard)
    await rig.break_it()
    source = Source()
    async with cache.write(Transaction(source, "k"), "k") as write:
        write.offer("k", document(1))
    answer = await cache.read("k", lambda: source.load("k"))
    assert (answer.entry.version, answer.outcome) == (1, Outcome.BYPASS)
    await cache.aclose()


def test_the_memory_backend_needs_no_guard() -> None:
    assert not isinstance(MemorySubject().backend, Ping)
