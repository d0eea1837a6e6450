"""Loads that hang, take long, or wait for themselves."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

import jobcache.sync
from jobcache import (
    CacheOutcome,
    CacheSettings,
    Document,
    JobCache,
    ReadResult,
    SettingsError,
    SourceUnavailable,
)
from jobcache._engine.watchers import PollIntervals
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import LoadTimeout, RecursiveLoad
from jobcache.protocol.backend import LeaseResult
from jobcache.testing import conformance
from tests.jobcache.bench import Bench, document
from tests.subjects import BACKENDS, KEEPING, MemorySubject

QUICK = 0.05  # seconds, of a load timeout that a test waits for

everywhere = pytest.mark.parametrize("subject", BACKENDS, indirect=True)
where_kept = pytest.mark.parametrize("subject", KEEPING, indirect=True)


@pytest.fixture
async def bench(subject: conformance.Subject) -> AsyncIterator[Bench]:
    bench = Bench(subject, sleep=short_pause)
    bench.source.versions["k"] = 1
    yield bench
    await bench.cache.aclose()


async def short_pause(seconds: float) -> None:
    """Wait a tenth of the pause that a reader makes while another holds the lease."""
    await asyncio.sleep(seconds / 10)


@pytest.fixture
async def quick(subject: conformance.Subject) -> AsyncIterator[Bench]:
    """A bench whose loads time out quickly."""
    bench = Bench(subject, load_timeout=QUICK, sleep=short_pause)
    bench.source.versions["k"] = 1
    yield bench
    await bench.cache.aclose()


@dataclass
class Hanging:
    """A load that hangs, and counts."""

    stubborn: bool = False
    calls: int = 0
    cancelled: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, *_: object) -> None:
        self.calls += 1
        self.begun.set()
        while not self.gate.is_set():
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                if not self.stubborn:
                    raise

    async def many(self, _: Sequence[str]) -> Mapping[str, Document]:
        await self()
        return {}


# --- a load that hangs ---


@everywhere
@pytest.mark.parametrize("stubborn", ["", "ignores its cancellation"])
async def test_a_load_whose_callers_have_left_blocks_no_reader(bench: Bench, stubborn: str) -> None:
    load = Hanging(stubborn=stubborn != "")
    callers = [asyncio.create_task(bench.cache.read("k", load)) for _ in range(3)]
    await load.begun.wait()
    waiting = asyncio.create_task(bench.read("k"))  # for the next call, while somebody waits
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    async with asyncio.timeout(10):
        assert (await waiting)[0] == 1
        assert (await bench.read("k"))[0] == 1
    load.gate.set()


@everywhere
async def test_at_most_two_loads_run_however_many_callers_come_and_go(bench: Bench) -> None:
    loads = [Hanging() for _ in range(5)]
    for load in loads:
        caller = asyncio.create_task(bench.cache.read("k", load))
        async with asyncio.timeout(10):
            await load.begun.wait()
        caller.cancel()
        await asyncio.wait([caller])
    async with asyncio.timeout(10):
        while sum(load.cancelled for load in loads) < len(loads) - 2:
            await asyncio.sleep(0)
    assert [load.cancelled for load in loads] == [1, 1, 1, 0, 0]
    assert (await bench.read("k"))[0] == 1


@where_kept
async def test_the_document_of_an_abandoned_load_is_stored(bench: Bench) -> None:
    bench.source.gate.clear()
    caller = asyncio.create_task(bench.read("k"))
    while not bench.source.loads:
        await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller])
    bench.source.gate.set()
    async with asyncio.timeout(10):
        while bench.cache.reads.in_flight():
            await asyncio.sleep(0)
    assert await bench.read("k") == (1, CacheOutcome.HIT)


@where_kept
async def test_an_abandoned_load_brings_nothing_old_back(bench: Bench) -> None:
    bench.source.gate.clear()
    slow = asyncio.create_task(bench.read("k"))
    while not bench.source.loads:
        await asyncio.sleep(0)
    slow.cancel()
    await asyncio.wait([slow])
    bench.source.versions["k"] = 2  # by a writer whose change was not reported

    async def load() -> Document:
        return document(2)

    assert (await bench.cache.read("k", load)).entry.version == 2
    bench.source.gate.set()  # the abandoned one returns version 1 now
    async with asyncio.timeout(10):
        while bench.cache.reads.in_flight():
            await asyncio.sleep(0)
    assert (await bench.read("k"))[0] == 2


# --- the load timeout ---


@everywhere
@pytest.mark.parametrize("stubborn", ["", "ignores its cancellation"])
async def test_a_load_that_takes_too_long_fails_and_the_next_one_begins(
    quick: Bench, stubborn: str
) -> None:
    load = Hanging(stubborn=stubborn != "")
    first = asyncio.create_task(quick.cache.read("k", load))
    await load.begun.wait()
    second = asyncio.create_task(quick.read("k"))  # waits for the first to end
    async with asyncio.timeout(10):
        with pytest.raises(LoadTimeout, match=r"'k' took longer than 0\.05 s"):
            await first
        assert (await second)[0] == 1
        with pytest.raises(LoadTimeout, match=r"2 keys, 'a' among them"):
            await quick.cache.read_many(["a", "b"], load.many)
    assert load.cancelled == 2
    assert quick.cache.statistics.read_errors == 3
    load.gate.set()


@where_kept
async def test_past_its_freshness_an_entry_is_served_when_the_load_takes_too_long(
    quick: Bench,
) -> None:
    await quick.read("k")
    await quick.elapse(31)
    load = Hanging()
    async with asyncio.timeout(10):
        answer = await quick.cache.read("k", load)
        many = await quick.cache.read_many(["k"], load.many)
    assert (answer.entry.version, answer.outcome) == (1, CacheOutcome.STALE)
    assert many["k"].outcome is CacheOutcome.STALE


@where_kept
async def test_a_load_that_takes_too_long_leaves_no_lease(quick: Bench) -> None:
    with pytest.raises(LoadTimeout):
        await quick.cache.read("k", Hanging())
    assert await quick.subject.backend.lease("k", "other") is LeaseResult.ACQUIRED


@everywhere
async def test_a_wait_for_a_newer_version_outlasts_a_load_that_hangs(
    subject: conformance.Subject,
) -> None:
    often = PollIntervals(with_feed=0.01, without_feed=0.01, after_report=0.01)
    bench = Bench(subject, load_timeout=QUICK, poll_intervals=often)
    hanging, away, loaded = Hanging(), False, asyncio.Event()

    async def load() -> Document:
        if away:
            await hanging()
        loaded.set()
        return document(bench.source.versions["k"])

    bench.source.versions["k"] = 1
    async with asyncio.timeout(10):
        with pytest.raises(LoadTimeout):
            await bench.cache.wait_for_newer("k", hanging, 0, 30)
        waiting = asyncio.create_task(bench.cache.wait_for_newer("k", load, 1, 30))
        await loaded.wait()
        away = True
        await bench.elapse(31)
        while hanging.cancelled < 3:
            await asyncio.sleep(0.01)
        bench.source.versions["k"] = 2
        away = False
        answer = await waiting
    assert answer is not None
    assert answer.entry.version == 2
    await bench.cache.aclose()


async def test_a_comparison_with_the_source_does_not_hang() -> None:
    bench = Bench(MemorySubject(), load_timeout=QUICK, shadow_rate=1.0)
    bench.source.versions["k"] = 1
    await bench.read("k")
    load = Hanging()
    for _ in range(4):  # as many as are made at once
        assert (await bench.cache.read("k", load)).outcome is CacheOutcome.HIT
    async with asyncio.timeout(10):
        while load.cancelled < 4:
            await asyncio.sleep(0.01)
        while bench.cache.statistics.shadow_reads == 0:
            await bench.read("k")
            await asyncio.sleep(0)
    await bench.cache.aclose()


async def test_closing_does_not_wait_for_a_load_that_ignores_its_cancellation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("jobcache._engine.loading._LAST_SECONDS", 0.01)
    bench = Bench(MemorySubject())
    load = Hanging(stubborn=True)
    reading = asyncio.create_task(bench.cache.read("k", load))
    await load.begun.wait()
    async with asyncio.timeout(10):
        await bench.cache.aclose()
        await asyncio.wait([reading])
    assert "1 loads go on" in caplog.text
    load.gate.set()


def test_a_timeout_that_is_none_is_refused() -> None:
    for wrong in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="load timeout"):
            JobCache(MemoryBackend(), load_timeout=wrong)


@pytest.mark.parametrize("text", ["0", "0.0", "-1", "1e3", "nan", "inf", "3601", "5 s", "\uff11"])
def test_a_setting_that_is_no_timeout_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"JOBCACHE_LOAD_TIMEOUT=.*seconds above 0"):
        CacheSettings.from_environment({"JOBCACHE_LOAD_TIMEOUT": text})


@pytest.mark.parametrize(("text", "seconds"), [("", 30), ("0.5", 0.5), (".5", 0.5), ("3600", 3600)])
def test_the_setting_is_a_number_of_seconds(text: str, seconds: float) -> None:
    read = CacheSettings.from_environment({"JOBCACHE_LOAD_TIMEOUT": text})
    assert read.load_timeout == seconds


# --- a load that takes long ---


@where_kept
@pytest.mark.parametrize("seconds", [6, 29], ids=["6 s", "29 s"])
async def test_the_document_of_a_slow_load_is_stored(bench: Bench, seconds: float) -> None:
    async def load() -> Document:
        await bench.subject.elapse(seconds)
        return document(1)

    async def load_many(keys: Sequence[str]) -> Mapping[str, Document]:
        await bench.subject.elapse(seconds)
        return dict.fromkeys(keys, document(1))

    await bench.cache.read("k", load)
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    await bench.cache.read_many(["a", "b"], load_many)
    assert await bench.read("a") == (1, CacheOutcome.HIT)
    assert await bench.read("b") == (1, CacheOutcome.HIT)
    assert bench.cache.statistics.not_stored == 0


@where_kept
async def test_a_reader_that_died_costs_one_load_more(bench: Bench) -> None:
    await bench.subject.backend.lease("k", "dead")
    assert (await bench.read("k"))[1] is CacheOutcome.MISS
    assert bench.cache.statistics.not_stored == 1
    assert (await bench.read("k"))[1] is CacheOutcome.MISS
    assert (await bench.read("k"))[1] is CacheOutcome.HIT


@where_kept
async def test_a_document_that_was_not_stored_is_counted(bench: Bench) -> None:
    async def load() -> Document:
        await bench.subject.evict("k")
        return document(1)

    await bench.cache.read("k", load)
    assert bench.cache.statistics.not_stored == 1
    assert bench.cache.statistics.counters().not_stored == 1


# --- a load that waits for itself ---


@everywhere
async def test_a_load_that_reads_its_own_key_is_recursive(bench: Bench) -> None:
    cache, source = bench.cache, bench.source

    async def inner() -> Document | None:
        return await source.load("k")

    async def alone() -> Document:
        await cache.read("k", inner)
        raise AssertionError

    async def in_tasks() -> Document:
        await asyncio.gather(cache.read("other", inner), cache.read("k", inner))
        raise AssertionError

    async def among_many() -> Document:
        await cache.read_many(["other", "k"], source.load_many)
        raise AssertionError

    async def waits() -> Document:
        await cache.wait_for_newer("k", inner, 0, 30)
        raise AssertionError

    async with asyncio.timeout(10):
        for load in (alone, in_tasks, among_many, waits):
            with pytest.raises(RecursiveLoad, match="'k' -> 'k'"):
                await cache.read("k", load)
        assert (await cache.read("k", inner)).entry.version == 1, "nothing is left of it"


@everywhere
async def test_a_load_of_many_that_reads_one_of_them_is_recursive(bench: Bench) -> None:
    cache, source = bench.cache, bench.source

    async def one(keys: Sequence[str]) -> Mapping[str, Document]:
        await cache.read(keys[-1], lambda: source.load("k"))
        raise AssertionError

    async def again(keys: Sequence[str]) -> Mapping[str, Document]:
        await cache.read_many(keys, again)
        raise AssertionError

    async with asyncio.timeout(10):
        for load in (one, again):
            with pytest.raises(RecursiveLoad):
                await cache.read_many(["a", "k"], load)
        assert (await bench.read("k"))[0] == 1


@everywhere
async def test_loads_that_read_each_others_keys_are_recursive(bench: Bench) -> None:
    async def load(key: str) -> Document:
        following = {"a": "b", "b": "c", "c": "a"}[key]
        await bench.cache.read(following, lambda: load(following))
        raise AssertionError

    async with asyncio.timeout(10):
        with pytest.raises(RecursiveLoad, match="'a' -> 'b' -> 'c' -> 'a'") as caught:
            await bench.cache.read("a", lambda: load("a"))
    assert caught.value.keys == ("a", "b", "c")
    assert isinstance(caught.value, RuntimeError)


@everywhere
@pytest.mark.parametrize("caches", ["one cache", "two caches"])
async def test_loads_of_two_callers_that_wait_for_each_other_are_recursive(
    bench: Bench, caches: str
) -> None:
    other = Bench(bench.subject).cache if caches == "two caches" else bench.cache
    begun = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def both(key: str) -> None:
        begun[key].set()
        for each in begun.values():
            await each.wait()

    async def load_a() -> Document:
        await both("a")
        await other.read("b", load_b)
        return document(1)

    async def load_b() -> Document:
        await both("b")
        await bench.cache.read("a", load_a)
        return document(1)

    async with asyncio.timeout(10):
        raised = await asyncio.gather(
            bench.cache.read("a", load_a), other.read("b", load_b), return_exceptions=True
        )
    assert any(isinstance(each, RecursiveLoad) for each in raised), raised


@everywhere
async def test_a_load_may_read_other_keys(bench: Bench) -> None:
    cache, source = bench.cache, bench.source
    source.versions |= {"part": 5, "c": 1}

    async def whole() -> Document:
        parts = [cache.read("part", lambda: source.load("part")) for _ in range(3)]
        versions = {answer.entry.version for answer in await asyncio.gather(*parts)}
        many = await cache.read_many(["part", "c"], source.load_many)
        return document(*versions | {many["part"].entry.version})

    keys = ["k", "a", "b", "k"]
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(cache.read(key, whole) for key in keys))
    assert [answer.entry.version for answer in answers] == [5, 5, 5, 5]


@everywhere
async def test_a_task_that_outlives_its_load_may_read_the_key(bench: Bench) -> None:
    tasks: list[asyncio.Task[ReadResult]] = []
    ended = asyncio.Event()

    async def later() -> ReadResult:
        await ended.wait()
        return await bench.cache.read("k", lambda: bench.source.load("k"))

    async def load() -> Document | None:
        tasks.append(asyncio.create_task(later()))
        # Of no load at all, and so it may read at once.
        reading = bench.cache.read("k", lambda: bench.source.load("k"))
        tasks.append(asyncio.create_task(reading, context=contextvars.Context()))
        await asyncio.sleep(0)
        return await bench.source.load("k")

    async with asyncio.timeout(10):
        await bench.cache.read("k", load)
        ended.set()
        assert [(await task).entry.version for task in tasks] == [1, 1]


@everywhere
async def test_a_reader_woken_by_a_write_in_a_load_is_no_part_of_the_load(bench: Bench) -> None:
    bench.source.versions |= {"w": 1}
    waiting = asyncio.create_task(
        bench.cache.wait_for_newer("w", lambda: bench.source.load("w"), 1, 30)
    )
    while bench.cache.info().waiting != (1, 1):
        await asyncio.sleep(0)

    async def load() -> Document | None:
        await bench.write("w")
        await asyncio.sleep(0)
        return await bench.source.load("k")

    async with asyncio.timeout(10):
        assert (await bench.cache.read("k", load)).entry.version == 1
        answer = await waiting
    assert answer is not None
    assert answer.entry.version == 2


# --- in threads ---


@pytest.fixture(params=["memory", "redis", "tiered", "null"])
def synchronous(request: pytest.FixtureRequest) -> Callable[..., jobcache.sync.JobCache]:
    """Makes a synchronous cache that is closed at the end."""
    url = request.getfixturevalue("redis_url") if request.param in {"redis", "tiered"} else ""
    prefix = f"{uuid.uuid4().hex}:"
    settings = CacheSettings(backend=request.param, redis_url=url or "redis://", prefix=prefix)

    def make(**options: float) -> jobcache.sync.JobCache:
        cache = jobcache.sync.JobCache(settings, **options)  # type: ignore[arg-type]
        request.addfinalizer(cache.close)
        return cache

    return make


def test_a_synchronous_load_that_reads_its_own_key_is_recursive(
    synchronous: Callable[..., jobcache.sync.JobCache],
) -> None:
    cache = synchronous()

    def inner() -> Document:
        return document(1)

    def same() -> Document:
        cache.read("k", inner)
        raise AssertionError

    def through_another() -> Document:
        cache.read("other", same)
        raise AssertionError

    def many(keys: Sequence[str]) -> Mapping[str, Document]:
        cache.read_many(keys, many)
        raise AssertionError

    def waits() -> Document:
        cache.wait_for_newer("k", inner, 0, 30)
        raise AssertionError

    for load in (same, through_another, waits):
        with pytest.raises(RecursiveLoad):
            cache.read("k", load)
    with pytest.raises(RecursiveLoad):
        cache.read_many(["k"], many)
    assert cache.read("k", inner).entry.version == 1
    outer = cache.read("whole", lambda: document(cache.read("part", inner).entry.version + 1))
    assert outer.entry.version == 2


def test_a_synchronous_load_that_hangs_holds_up_no_other_thread(
    synchronous: Callable[..., jobcache.sync.JobCache],
) -> None:
    cache = synchronous(load_timeout=QUICK)
    begun, gate = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def hang() -> Document:
        begun.set()
        gate.wait(60)
        return document(1)

    def first() -> None:
        try:
            cache.read("k", hang)
        except SourceUnavailable as error:
            raised.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(10)
    assert cache.read("k", lambda: document(2)).entry.version == 2
    gate.set()
    thread.join(10)
    assert [type(error) for error in raised] == [LoadTimeout]
