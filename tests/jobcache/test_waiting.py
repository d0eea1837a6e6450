"""`JobCache.wait_for_newer`: waiters are woken, cost little, and miss no version."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from jobcache import Document, JobCache, ReadResult, SourceUnavailable
from jobcache._engine.watchers import PollIntervals
from jobcache.backends.memory import MemoryBackend
from jobcache.protocol.capabilities import Health
from jobcache.protocol.change_feed import ChangeListener, FeedStatus
from jobcache.protocol.entry import Entry
from tests.jobcache.bench import Bench, Source, document
from tests.subjects import BACKENDS, MemorySubject, make_subject

LONG = 60.0
EVEN = PollIntervals(random=lambda: 0.0)


class Timers:
    """`later`, by a clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Timer]] = []

    def __call__(self, seconds: float, call: Callable[[], object]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._heap, (self.now + seconds, next(self._numbers), timer))
        return timer

    @property
    def pending(self) -> list[float]:
        """Return the seconds until each timer that has not been cancelled."""
        return sorted(at - self.now for at, _, timer in self._heap if timer.call is not None)

    async def elapse(self, seconds: float) -> None:
        until = self.now + seconds
        while self._heap and self._heap[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._heap)
            if timer.call is not None:
                timer.call()
                await turns()
        self.now = until
        await turns()


@dataclass(slots=True)
class Timer:
    call: Callable[[], object] | None

    def cancel(self) -> None:
        self.call = None


async def turns(count: int = 20) -> None:
    """Let everything that needs no waiting happen."""
    for _ in range(count):
        await asyncio.sleep(0)


class HandFeed:
    """A feed that tells what the test says."""

    def __init__(self) -> None:
        self.live = True
        self.started = 0
        self._listeners: list[ChangeListener] = []

    def listen(self, listener: ChangeListener) -> None:
        self._listeners.append(listener)

    def start(self) -> None:
        self.started += 1

    def condition(self) -> FeedStatus:
        return FeedStatus("live" if self.live else "connecting", 0.0, "", 0, {})

    async def aclose(self) -> None:
        """Nothing runs."""

    def changed(self, *keys: str) -> None:
        for listener in self._listeners:
            listener.changed(keys)

    def interrupt(self) -> None:
        self.live = False
        for listener in self._listeners:
            listener.interrupted()

    def resume(self) -> None:
        self.live = True
        for listener in self._listeners:
            listener.resumed()


class Remote:
    """A process's way to cells that other processes share: no peek, a feed, and a breaker."""

    name = "remote"

    def __init__(self, cells: MemoryBackend, feed: HandFeed) -> None:
        self._cells = cells
        self._feed = feed
        self.available = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.gets = 0

    def __getattr__(self, name: str) -> Any:
        if name not in {"get_many", "lease", "fence", "publish", "purge", "purge_all", "aclose"}:
            raise AttributeError(name)
        return getattr(self._cells, name)

    async def get(self, key: str) -> Entry | None:
        self.gets += 1
        found = await self._cells.get(key)
        await self.gate.wait()
        return found

    def feed(self) -> HandFeed:
        return self._feed

    def condition(self) -> Health:
        state = "closed" if self.available else "open"
        return Health(self.available, state, 0.0, "", 0)  # type: ignore[arg-type]


@dataclass
class Two:
    """Two processes: one waits, the other writes."""

    feed: HandFeed = field(default_factory=HandFeed)
    timers: Timers = field(default_factory=Timers)
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        subject = MemorySubject()
        self.other = Bench(subject)
        self.source = self.other.source
        self.backend = Remote(subject.backend, self.feed)
        self.cache = JobCache(
            self.backend,  # type: ignore[arg-type]
            lifetimes=self.other.cache.lifetimes,
            clock_ms=lambda: self.other.now_ms,
            poll_intervals=EVEN,
            later=self.timers,
        )

    async def wait(self, version: int, key: str = "k", seconds: float = LONG) -> ReadResult | None:
        return await self.cache.wait_for_newer(key, lambda: self.source.load(key), version, seconds)

    async def waiter(self, version: int, key: str = "k") -> asyncio.Task[ReadResult | None]:
        task = asyncio.create_task(self.wait(version, key))
        await turns()
        assert not task.done()
        return task


@pytest.fixture
async def two() -> AsyncIterator[Two]:
    """Whatever a test does, nothing is left of it."""
    made = Two()
    yield made
    await made.cache.aclose()
    assert made.cache.info().waiting == (0, 0)
    assert made.timers.pending == []
    assert asyncio.all_tasks() == {asyncio.current_task()}


def version(answer: ReadResult | None) -> int | None:
    return None if answer is None else answer.entry.version


# --- on every backend ---


@pytest.fixture
async def bench(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> AsyncIterator[Bench]:
    async for subject in make_subject(request.param, redis_urls):
        yield Bench(subject, poll_intervals=PollIntervals(with_feed=0.3, without_feed=0.05))


async def wait(bench: Bench, key: str, version: int, seconds: float = LONG) -> ReadResult | None:
    return await bench.cache.wait_for_newer(key, lambda: bench.source.load(key), version, seconds)


@pytest.mark.parametrize("bench", BACKENDS, indirect=True)
async def test_a_write_of_this_process_wakes_waiters_with_older_versions(bench: Bench) -> None:
    await bench.write("k")
    # who has less already is answered at once; with no time, so is everybody
    assert version(await wait(bench, "k", 0)) == 1
    assert await wait(bench, "k", 1, 0) is None
    assert await wait(bench, "k", 1, 0.001) is None
    async with asyncio.timeout(60):
        early = [asyncio.create_task(wait(bench, "k", 1)) for _ in range(50)]
        ahead = asyncio.create_task(wait(bench, "k", 2))
        unmade = asyncio.create_task(wait(bench, "new", 0))
        while bench.cache.info().waiting != (52, 2):
            await asyncio.sleep(0.001)
        await bench.write("k")
        assert {version(answer) for answer in await asyncio.gather(*early)} == {2}
        await bench.write("new")
        assert version(await unmade) == 1
        assert not ahead.done()
        await bench.write("k")
        assert version(await ahead) == 3
    assert bench.cache.info().waiting == (0, 0)


@pytest.mark.parametrize("bench", BACKENDS, indirect=True)
async def test_a_commit_that_nobody_can_be_sure_of_is_found_all_the_same(bench: Bench) -> None:
    await bench.write("k")
    async with asyncio.timeout(60):
        waiter = asyncio.create_task(wait(bench, "k", 1))
        while bench.cache.info().waiting != (1, 1):
            await asyncio.sleep(0.001)
        with pytest.raises(ConnectionError):
            await bench.write("k", fails="after")
        assert version(await waiter) == 2


async def test_on_memory_a_waiter_is_answered_before_the_writer() -> None:
    """In the writer's own turn, and without a load, a task or a look at a store."""
    bench = Bench(MemorySubject(), later=Timers())
    await bench.write("k")
    waiter = asyncio.create_task(wait(bench, "k", 1))
    await turns()
    order: list[str] = []
    waiter.add_done_callback(lambda _: order.append("waiter"))
    writer = asyncio.create_task(bench.write("k"))
    writer.add_done_callback(lambda _: order.append("writer"))
    assert version(await waiter) == 2
    await writer
    await turns()
    assert sorted(order) == ["waiter", "writer"]
    assert bench.cache._watchers.checks == bench.source.loads == 0


async def test_an_invalidation_makes_the_watcher_read() -> None:
    timers = Timers()
    bench = Bench(MemorySubject(), later=timers, poll_intervals=EVEN)
    await bench.write("k")
    for forget in (lambda: bench.cache.invalidate("k"), bench.cache.invalidate_all):
        held = bench.source.versions["k"]
        waiter = asyncio.create_task(wait(bench, "k", held))
        await turns()
        bench.source.versions["k"] += 1  # behind the cache's back
        await forget()
        await timers.elapse(0.01)
        assert version(await waiter) == held + 1
    assert timers.pending == []


# --- woken by a feed ---


async def test_a_report_of_an_entry_answers_every_waiter_with_one_read(two: Two) -> None:
    await two.other.write("k")
    waiters = [await two.waiter(1) for _ in range(30)]
    assert two.feed.started  # by the first wait, not before
    await two.other.write("k")
    gets = two.backend.gets
    two.feed.changed("other", "k")
    answers = await asyncio.gather(*waiters)
    assert {version(answer) for answer in answers} == {2}
    assert two.backend.gets == gets + 1
    assert two.source.loads == 0


async def test_a_report_of_a_fence_is_followed_by_a_report_or_by_a_read(two: Two) -> None:
    await two.other.write("k")
    waiter = await two.waiter(1)
    async with two.other.cache.write(_Nothing(), "k") as write:
        two.feed.changed("k")
        await turns()
        assert two.source.loads == 0, "the fence says that the entry is on its way"
        two.source.versions["k"] = 2
        write.publish("k", document(2))
    two.feed.changed("k")
    assert version(await waiter) == 2
    assert two.source.loads == 0

    # And a writer that dies after its commit leaves the fence, and no further report.
    waiter = await two.waiter(2)
    two.source.versions["k"] = 3
    await two.backend.fence("k", "dead")
    two.feed.changed("k")
    await turns()
    await two.timers.elapse(EVEN.after_report)
    assert version(await waiter) == 3


async def test_a_report_during_a_check_asks_for_another(two: Two) -> None:
    """Or: the check reads v1; W stores v2, and tells; the check ends, and nobody looks again."""
    await two.other.write("k")
    waiter = await two.waiter(1)
    two.backend.gate.clear()
    two.feed.changed("k")
    await turns()
    await two.other.write("k")
    two.feed.changed("k")
    two.backend.gate.set()
    assert version(await waiter) == 2


async def test_a_version_that_comes_before_the_waiter_is_registered_is_found(two: Two) -> None:
    await two.other.write("k")
    await two.other.write("k")
    assert version(await two.wait(1)) == 2


# --- not woken at all ---


async def test_a_report_that_is_lost_costs_five_seconds(two: Two) -> None:
    await two.other.write("k")
    for held in (1, 2, 3):
        waiter = await two.waiter(held)
        await two.other.write("k")  # and nobody tells
        await two.timers.elapse(EVEN.with_feed)
        assert version(await waiter) == held + 1


async def test_without_a_live_feed_or_with_the_breaker_open_it_is_a_second(two: Two) -> None:
    await two.other.write("k")
    for held, (live, available) in enumerate([(False, True), (True, False)], 1):
        two.feed.live, two.backend.available = live, available
        waiter = await two.waiter(held)
        await two.other.write("k")
        await two.timers.elapse(EVEN.without_feed)
        assert version(await waiter) == held + 1


async def test_after_an_interruption_waiters_read_soon_but_not_all_at_once() -> None:
    parts = iter([0.0] * 100 + [n / 100 for n in range(100)] * 2)
    two = Two()
    two.cache = JobCache(
        two.backend,  # type: ignore[arg-type]
        lifetimes=two.other.cache.lifetimes,
        clock_ms=lambda: two.other.now_ms,
        poll_intervals=PollIntervals(random=lambda: next(parts)),
        later=two.timers,
    )
    keys = [f"k{n}" for n in range(100)]
    for key in keys:
        await two.other.write(key)
    waiters = [await two.waiter(1, key) for key in keys]
    for happens in (two.feed.interrupt, two.feed.resume):
        happens()
        soon = [seconds for seconds in two.timers.pending if seconds < LONG]
        assert len(soon) == 100
        assert 0 <= soon[0] < soon[50] < soon[99] <= 1
    for key in keys:
        await two.other.write(key)
    parts = itertools.repeat(0.0)
    await two.timers.elapse(1)
    assert {version(answer) for answer in await asyncio.gather(*waiters)} == {2}
    await two.cache.aclose()


async def test_the_more_keys_the_less_often_each_is_polled() -> None:
    """A poll may be a load: a thousand keys are not a thousand queries a second."""
    two = Two()
    two.feed.live = False
    for n in range(1500):
        await two.other.write(f"k{n}")
    waiters = [asyncio.create_task(two.wait(1, f"k{n}")) for n in range(1500)]
    await turns()
    before = two.backend.gets
    await two.timers.elapse(15)
    # the first of each comes as if it were alone; then 200 a second, or every 5 s
    assert two.backend.gets - before <= 1500 * 4
    two.cache.cancel_waiters()
    assert await asyncio.gather(*waiters) == [None] * 1500
    await two.cache.aclose()


# --- what fails ---


async def test_while_the_source_is_away_waiters_wait(two: Two) -> None:
    two.source.away = True
    with pytest.raises(SourceUnavailable):
        await two.wait(1)  # its own read, which nothing in the cache can answer
    two.source.away = False
    await two.other.write("k")
    waiter = await two.waiter(1)
    await two.other.subject.evict("k")
    two.source.away = True
    two.feed.changed("k")
    await two.timers.elapse(10)
    assert not waiter.done()
    two.source.away, two.source.versions["k"] = False, 2
    await two.timers.elapse(EVEN.with_feed)
    assert version(await waiter) == 2


async def test_any_other_error_of_a_load_is_raised_to_the_waiter(two: Two) -> None:
    async def broken() -> Document | None:
        raise ZeroDivisionError

    await two.other.write("k")
    waiters = [await two.waiter(1)]
    waiters.append(asyncio.create_task(two.cache.wait_for_newer("k", broken, 1, LONG)))
    await turns()
    await two.other.subject.evict("k")
    await two.timers.elapse(EVEN.with_feed)
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError] * 2


# --- who leaves ---


async def test_a_cancelled_waiter_does_not_affect_others_and_leaves_nothing(two: Two) -> None:
    await two.other.write("k")
    leaving, staying = await two.waiter(1), await two.waiter(1)
    two.backend.gate.clear()
    two.feed.changed("k")
    await turns()
    leaving.cancel()
    await two.other.write("k")
    two.feed.changed("k")
    two.backend.gate.set()
    assert version(await staying) == 2
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert two.cache.info().waiting == (0, 0)

    last = await two.waiter(2)
    two.backend.gate.clear()
    two.feed.changed("k")
    await turns()
    last.cancel()
    await turns()
    assert two.cache.info().waiting == (0, 0)
    assert two.timers.pending == []
    two.backend.gate.set()


async def test_thousands_of_waiters_time_out_together(two: Two, *, long: bool) -> None:
    count = 5000 if long else 1000
    await two.other.write("k")
    waiters = [asyncio.create_task(two.wait(1)) for _ in range(count)]
    await turns()
    assert two.cache.info().waiting == (count, 1)
    gets = two.backend.gets
    await two.timers.elapse(LONG)
    assert await asyncio.gather(*waiters) == [None] * count
    assert two.backend.gets - gets <= LONG / EVEN.with_feed + 1


async def test_cancel_waiters_answers_all_and_holds_no_later_caller(two: Two) -> None:
    await two.other.write("k")
    waiters = [await two.waiter(1) for _ in range(3)]
    two.backend.gate.clear()
    two.feed.changed("k")
    await turns()
    two.cache.cancel_waiters()
    assert await asyncio.gather(*waiters) == [None] * 3
    two.backend.gate.set()
    assert await two.wait(1) is None
    assert version(await two.wait(0)) == 1
    two.feed.changed("k")
    two.feed.resume()
    await two.other.write("k")
    assert two.cache.info().waiting == (0, 0)


class _Nothing:
    """A transaction of nothing."""

    async def __aenter__(self) -> None:
        """Begin."""

    async def __aexit__(self, *_: object) -> None:
        """End."""
