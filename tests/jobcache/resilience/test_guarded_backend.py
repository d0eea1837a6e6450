"""The guard: deadlines, the circuit breaker, and the replay of missed operations."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest

from jobcache import CacheOutcome, CacheUnavailable, JobCache
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.capabilities import (
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPing,
    SupportsPurgeAll,
)
from jobcache.protocol.entry import CLOCK_SKEW_MS, Entry
from jobcache.resilience.batched_gets import BatchedGets
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.simulation import entry_of
from tests.jobcache.bench import Source, Transaction, document
from tests.subjects import FakeClock, MemorySubject

pytestmark = pytest.mark.usual_limits

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


ABILITIES = [
    SupportsPurgeAll,
    SupportsChangeFeed,
    SupportsBodyCheck,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
]
"""What a guard passes on."""


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


@pytest.fixture(params=[Store, FutureStore])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig = Rig(request.param())
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


async def test_a_store_that_fails_without_a_message_opens_the_circuit(rig: Rig) -> None:
    async def get_many(keys: Sequence[str]) -> Mapping[str, Entry]:
        rig.store.calls += 1
        raise CacheUnavailable

    rig.store.get_many = get_many  # type: ignore[method-assign]
    for _ in range(5):
        with pytest.raises(CacheUnavailable):
            await rig.guard.get("k")
    assert rig.store.calls == 3


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
        assert await rig.guard.get("garbage") is None
        with pytest.raises(UnreadableCell):
            await rig.guard.lease("garbage", "r")
    assert rig.guard.condition().available


async def test_no_caller_waits_longer_than_the_deadline(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await rig.guard.get("k")
    running = rig.store.tasks | rig.guard._running
    assert len(running) == 1, "the operation itself is left to end by itself"
    rig.store.hangs.set()
    await rig.idle()


async def test_an_answer_after_the_deadline_is_dropped(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    reading = rig.guard.get_many_future(["k"])
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await reading
    rig.store.hangs.set()
    await asyncio.sleep(0.01)
    assert str(reading.exception()) == "no answer within 0.02 s"


async def test_a_cancelled_caller_does_not_cancel_others(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.hangs = asyncio.Event()
    gone = asyncio.create_task(rig.guard.get("k"))
    stays = asyncio.create_task(rig.guard.get("k"))
    await asyncio.sleep(0)
    gone.cancel()
    rig.store.hangs.set()
    assert await stays is None
    assert gone.cancelled()
    assert rig.guard.condition().available
    assert caplog.text == ""


async def test_a_read_that_cannot_be_begun_without_a_task_is_begun_with_one() -> None:
    class Refusing(FutureStore):
        def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
            raise ZeroDivisionError

    rig = Rig(Refusing())
    await rig.store.lease("k", "r")
    await rig.store.publish("k", "r", entry_of(3))
    assert await rig.guard.get("k") == entry_of(3)
    await rig.guard.aclose()


@pytest.mark.parametrize("ability", ABILITIES)
def test_an_optional_ability_is_the_backends(ability: type) -> None:
    """Also in `isinstance`, by which `JobCache` finds out."""

    class Able(Store):
        def feed(self) -> None: ...
        def set_body_check(self, check: object) -> None: ...
        def set_lease_time(self, seconds: float) -> None: ...
        def identify(self, source_id: str) -> None: ...

    assert isinstance(GuardedBackend(Able()), ability)
    assert not isinstance(GuardedBackend(Plain(Able())), ability)


async def test_a_waiter_is_answered_when_the_cache_closes(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    waiting = [asyncio.create_task(rig.guard.get("k"))]
    await asyncio.sleep(0.005)
    waiting.append(asyncio.create_task(rig.guard.get("k")))
    await asyncio.sleep(0)
    await rig.guard.aclose()
    await asyncio.wait(waiting, timeout=60)
    assert {type(task.exception()) for task in waiting} == {CacheUnavailable}
    rig.store.hangs.set()


async def test_a_caller_cancelled_as_its_fence_becomes_overdue_is_noted_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(Store())
    rig.store.hangs = asyncio.Event()
    given_up = rig.guard.overdue

    def and_cancelled(number: int, limit: float) -> CacheUnavailable:
        asyncio.get_running_loop().call_soon(fencing.cancel)  # before it learns of it
        return given_up(number, limit)

    rig.guard.overdue = and_cancelled  # type: ignore[method-assign]
    fencing = asyncio.create_task(rig.guard.fence("k", "w"))
    await asyncio.wait({fencing})
    assert fencing.cancelled()
    rig.store.hangs.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.guard._late_fences == {}
    assert await rig.store.lease("k", "r") is LeaseResult.FENCED, "which its writer withdraws"
    await rig.guard.aclose()
    assert "Error" not in caplog.text


async def test_gets_of_one_turn_are_one_get_many(rig: Rig) -> None:
    """Else each of many readers would cost a round trip, a deadline and a place at the breaker."""
    await rig.store.fence("a", "w")
    await rig.store.publish("a", "w", entry_of(1))
    before = rig.store.calls
    found = await asyncio.gather(*(rig.guard.get(key) for key in ("a", "b", "a")))
    assert [entry and entry.version for entry in found] == [1, None, 1]
    assert rig.store.calls == before + 1


async def test_a_get_that_is_not_sent_before_the_guard_is_closed_fails(rig: Rig) -> None:
    reading = asyncio.create_task(rig.guard.get("a"))
    closing = asyncio.create_task(rig.guard.aclose())  # before the turn ends that sends the get
    with pytest.raises(CacheUnavailable, match="closed"):
        await reading
    await closing
    assert rig.store.calls == 0


async def test_after_a_deadline_of_silence_reads_do_not_wait_and_one_probe_decides(
    rig: Rig,
) -> None:
    """Otherwise each of several polls in sequence would wait for a deadline of its own."""
    rig.store.hangs = hangs = asyncio.Event()
    gets = BatchedGets(rig.guard)
    waiting = [gets.get(f"k{number}") for number in range(5)]
    await asyncio.wait(waiting)
    assert {type(reading.exception()) for reading in waiting} == {CacheUnavailable}
    await asyncio.sleep(0)
    calls = rig.store.calls
    assert calls == 1 + 1
    for read in (rig.guard.get("k"), rig.guard.lease("k", "r"), rig.guard.get_many(["k"])):
        with pytest.raises(CacheUnavailable, match="overdue"):
            await read
    assert rig.store.calls == calls
    assert rig.guard.condition().available, "nothing is said before the probe has failed"
    await until_open(rig)
    assert rig.store.calls == calls, "and no more than the one probe, which followed at once"
    assert len(rig.pauses.asked) == 1
    hangs.set()


async def test_an_answer_to_an_earlier_operation_does_not_delay_the_probe(rig: Rig) -> None:
    """The store hangs between two answers, as it does where there is always something under way."""
    rig.store.hangs = first = asyncio.Event()
    answered = asyncio.create_task(rig.guard.get("k"))
    while rig.store.calls < 1:
        await asyncio.sleep(0)
    rig.store.hangs = rest = asyncio.Event()
    overdue = asyncio.create_task(rig.guard.get("k"))
    while rig.store.calls < 2:
        await asyncio.sleep(0)
    first.set()
    assert await answered is None
    with pytest.raises(CacheUnavailable):
        await overdue
    await until_open(rig)
    assert len(rig.pauses.asked) <= 1, "the probe that found it out did not pause before"
    rest.set()


async def test_a_silence_that_ends_before_the_probe_does_is_no_outage(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.hangs = hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    rig.store.hangs = None
    hangs.set()
    async with asyncio.timeout(60):
        while rig.guard._recovery.task is not None and not rig.guard._recovery.task.done():
            await asyncio.sleep(0)
    assert await rig.guard.get("k") is None
    assert caplog.records == []


async def until_open(rig: Rig) -> None:
    async with asyncio.timeout(60):
        while rig.guard.condition().available:
            await asyncio.sleep(0.001)


async def test_an_unresponsive_store_is_still_fenced_for_a_moment(rig: Rig) -> None:
    """So that others have noticed, too, before something is committed that they do not hear of."""
    rig.store.hangs = hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    await until_open(rig)
    calls = rig.store.calls
    with pytest.raises(CacheUnavailable, match="no answer within"):
        await rig.guard.fence("k", "w")
    assert rig.store.calls == calls + 1
    rig.clock.now += 0.03
    with pytest.raises(CacheUnavailable, match=r"no answer$"):
        await rig.guard.fence("k", "w")
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    assert rig.store.calls == calls + 1
    hangs.set()


async def test_a_full_store_receives_writes_although_its_circuit_is_open(rig: Rig) -> None:
    """It empties the cell; another process may still be reading there."""
    await rig.guard.lease("k", "r")
    await rig.guard.publish("k", "r", entry_of(1))
    await rig.break_it()
    assert rig.store.away

    async def full(key: str, token: str) -> None:
        await MemoryBackend.purge(rig.store, [key])
        raise CacheUnavailable("OOM")

    rig.store.fence = full  # type: ignore[method-assign]
    with pytest.raises(CacheUnavailable, match="OOM"):
        await rig.guard.fence("k", "w")
    assert rig.guard.condition().state == "open"
    rig.store.away = False
    assert await rig.store.get("k") is None


async def test_one_operation_that_hangs_while_others_are_answered_is_no_outage(rig: Rig) -> None:
    for attempt in range(5):
        rig.store.hangs = hangs = asyncio.Event()
        calls = rig.store.calls
        stuck = asyncio.create_task(rig.guard.get("k"))
        while rig.store.calls == calls:
            await asyncio.sleep(0)
        rig.store.hangs = None
        assert await rig.guard.get("other") is None
        with pytest.raises(CacheUnavailable):
            await stuck
        hangs.set()
        assert rig.guard.condition().available, attempt


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
    assert all(pause <= 0.5 for pause in pauses)
    assert all(pause >= 0.25 for pause in pauses[5:])
    assert len(set(pauses)) > 5, "they are jittered"


async def test_missed_operations_are_replayed_before_the_cache_is_read_again(rig: Rig) -> None:
    """Without that, the old version would be served until it expired."""
    await rig.guard.lease("k", "r")
    await rig.guard.publish("k", "r", entry_of(1))
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    assert rig.guard.condition().pending == 1
    rig.store.away = False
    await rig.probe()
    assert rig.guard.condition().available
    assert rig.guard.condition().pending == 0
    assert await rig.guard.get("k") is None


async def test_entries_from_before_an_outage_are_confirmed_before_they_are_served(rig: Rig) -> None:
    """Another process may have missed a publish, and comes back after this one."""
    cache, source = JobCache(rig.guard, clock_ms=lambda: rig.now_ms), Source()
    source.versions |= {"old": 1, "same": 7}

    async def read(key: str) -> tuple[int, CacheOutcome]:
        answer = await cache.read(key, lambda: source.load(key))
        return answer.entry.version, answer.outcome

    for key in source.versions:
        await read(key)
        assert (await read(key))[1] is CacheOutcome.HIT
    await rig.break_it()
    source.versions["old"] = 2  # by a process that could not publish it, and still cannot
    rig.store.away = False
    await rig.probe()
    rig.now_ms += 1
    assert await read("old") == (2, CacheOutcome.EXPIRED)
    assert await read("same") == (7, CacheOutcome.EXPIRED)
    batch = await cache.read_many(["same"], source.load_many)
    assert batch["same"].outcome is CacheOutcome.EXPIRED, "the clocks of hosts differ a little"
    rig.now_ms += CLOCK_SKEW_MS
    await read("same")
    assert await read("same") == (7, CacheOutcome.HIT)
    await read("old")
    assert await read("old") == (2, CacheOutcome.HIT)
    source.away = True
    assert await read("same") == (7, CacheOutcome.HIT)
    await cache.aclose()


async def test_an_entry_that_cannot_be_confirmed_is_served_as_stale(rig: Rig) -> None:
    cache, source = JobCache(rig.guard, clock_ms=lambda: rig.now_ms), Source()
    source.versions["k"] = 1
    await cache.read("k", lambda: source.load("k"))
    await rig.break_it()
    rig.store.away = False
    source.away = True
    await rig.probe()
    answer = await cache.read("k", lambda: source.load("k"))
    assert (answer.entry.version, answer.outcome) == (1, CacheOutcome.STALE)
    await cache.aclose()


async def test_polls_during_an_outage_add_one_operation_per_key(rig: Rig) -> None:
    """Or a busy job alone would be too much to remember, and cost everybody the whole cache."""
    cache, source = JobCache(rig.guard), Source()
    source.versions["k"] = 1
    await rig.break_it()
    for version in (*range(1, 40), 5):
        source.versions["k"] = version
        for _ in range(3):
            assert (await cache.read("k", lambda: source.load("k"))).outcome is CacheOutcome.BYPASS
    assert len(rig.guard._log) == 1
    rig.store.away = False
    await rig.store.lease("k", "elsewhere")
    await rig.store.publish("k", "elsewhere", entry_of(38))
    await rig.probe()
    assert await rig.store.get("k") is None, "39 was seen"
    await cache.aclose()


async def test_polls_during_the_replay_do_not_keep_the_circuit_open(rig: Rig) -> None:
    """A key noted anew while its note is repeated does not begin the round again."""
    cache, source = JobCache(rig.guard), Source()
    source.versions |= {f"k{number}": 1 for number in range(3)}
    await rig.break_it()
    publish = rig.store.publish

    async def polled_meanwhile(key: str, token: str, entry: Entry | None) -> PublishResult:
        for other in source.versions:
            await cache.read(other, partial(source.load, other))
        return await publish(key, token, entry)

    for key in source.versions:
        await cache.read(key, partial(source.load, key))
    rig.store.publish = polled_meanwhile  # type: ignore[method-assign]
    rig.store.away = False
    await rig.probe()
    assert rig.guard.condition().available
    assert rig.guard.condition().pending == 0
    await cache.aclose()


async def test_a_poll_during_the_replay_does_not_make_its_key_pending(
    rig: Rig,
) -> None:
    """Of a job that is polled all the time some poll always is, and no hit would ever come back."""
    await rig.break_it()
    rig.guard.remember("k", 2)
    rig.store.away = False
    await rig.probe()
    assert rig.guard.condition().pending == 0
    rig.guard.remember("k", 2)  # its look was refused before
    rig.guard.remember("k", 1)
    assert rig.guard.condition().pending == 0
    rig.guard.remember("k", 3)
    assert rig.guard.condition().pending == 1, "of this the store has not heard"


async def test_versions_received_before_a_failure_do_not_count(rig: Rig) -> None:
    await rig.break_it()
    rig.guard.remember("k", 2)
    rig.store.away = False
    await rig.probe()
    rig.store.away = True
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    rig.guard.remember("k", 2)
    assert rig.guard.condition().pending == 1


async def test_an_operation_that_was_given_up_was_not_received(rig: Rig) -> None:
    await rig.break_it()
    rig.guard.remember("k", 2)
    rig.store.away = False

    async def refuse(key: str, token: str, entry: Entry | None) -> PublishResult:
        raise UnreadableCell(key)

    rig.store.publish = refuse  # type: ignore[method-assign]
    while rig.guard.condition().pending:
        await rig.probe()
    rig.guard.remember("k", 2)
    assert rig.guard.condition().pending == 1


async def test_a_fence_of_another_writer_gets_the_missed_version(rig: Rig) -> None:
    """A purge would leave that fence, and its writer would bring the old version back."""
    await rig.store.fence("k", "other")  # commits v2 in another process
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")  # commits v3 here
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(3))
    rig.store.away = False
    await rig.probe()
    assert await rig.store.publish("k", "other", entry_of(2)) is PublishResult.REMOVED
    assert await rig.guard.get("k") is None


async def test_one_lost_publish_makes_only_its_key_pending_until_it_is_replayed(
    rig: Rig,
) -> None:
    for key in ("k", "other"):
        await rig.guard.lease(key, "r")
        await rig.guard.publish(key, "r", entry_of(1))
    rig.store.away = True
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    rig.store.away = False
    assert rig.guard.condition().available
    with pytest.raises(CacheUnavailable, match="an operation on k is still to be replayed"):
        await rig.guard.get("k")
    with pytest.raises(CacheUnavailable):
        await rig.guard.lease("k", "r2")
    assert await rig.guard.get_many(["k", "other"]) == {"other": entry_of(1)}
    await rig.probe()
    assert await rig.guard.get("k") is None
    assert await rig.guard.lease("k", "r2") is LeaseResult.ACQUIRED


async def test_a_lost_fence_makes_no_key_pending(rig: Rig) -> None:
    rig.store.away = True
    with pytest.raises(CacheUnavailable):
        await rig.guard.fence("k", "w")
    rig.store.away = False
    assert rig.guard.condition().pending == 0
    assert await rig.guard.get("k") is None


async def test_a_fence_that_arrives_after_its_writer_has_ended_is_withdrawn(rig: Rig) -> None:
    """Or it would hold up its key for as long as a fence lives."""
    rig.store.hangs = hangs = asyncio.Event()
    fencing = asyncio.create_task(rig.guard.fence("k", "w"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rig.store.hangs = None
    assert await rig.guard.get("other") is None  # the store is not silent
    with pytest.raises(CacheUnavailable):
        await fencing
    assert await rig.guard.publish("k", "w", entry_of(2)) is PublishResult.NOTHING
    hangs.set()
    await rig.idle()
    assert await rig.guard.lease("k", "r") is LeaseResult.ACQUIRED
    assert rig.guard._late_fences == {}


async def test_a_fence_whose_writer_was_cancelled_meanwhile_is_withdrawn(rig: Rig) -> None:
    """Its withdrawal overtakes it; it would then hold up its key for as long as a fence lives."""
    cache = JobCache(rig.guard)
    rig.store.hangs = hangs = asyncio.Event()

    async def write() -> None:
        async with cache.write(Transaction(Source(), "k"), "k"):
            raise AssertionError("the fence is not up yet")

    writing = asyncio.create_task(write())
    while rig.store.calls == 0:
        await asyncio.sleep(0)
    rig.store.hangs = None
    writing.cancel()
    await asyncio.wait({writing})
    hangs.set()
    await rig.idle()
    assert await rig.store.lease("k", "r") is LeaseResult.ACQUIRED
    await cache.aclose()


async def test_a_late_fence_followed_by_its_late_publish_brings_nothing_old_back(rig: Rig) -> None:
    """Nothing fails here but two deadlines; the entry of the second writer is evicted."""
    cache, source = JobCache(rig.guard), Source()

    async def write() -> None:
        async with cache.write(Transaction(source, "k"), "k") as write:
            write.publish("k", document(write.transaction.version))

    await write()
    rig.store.hangs = hangs = asyncio.Event()
    await write()  # its fence and its publish hang; it is acknowledged all the same
    await until_open(rig)
    rig.store.hangs = None
    await rig.probe()
    await write()
    await rig.store.purge(["k"])
    hangs.set()  # now the late fence lands, and then the late publish
    await rig.idle()
    for _ in range(3):
        assert (await cache.read("k", lambda: source.load("k"))).entry.version == 3
    await cache.aclose()


async def test_a_late_success_settles_an_operation_that_its_deadline_left_pending(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    assert rig.guard.condition().pending == 1
    rig.store.hangs.set()
    await rig.idle()
    assert rig.guard.condition().pending == 0


async def test_a_purge_that_failed_is_repeated(rig: Rig) -> None:
    await rig.guard.lease("k", "r")
    await rig.guard.publish("k", "r", entry_of(1))
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.purge(["k"])
    rig.store.away = False
    await rig.probe()
    assert await rig.guard.get("k") is None


async def test_too_much_to_remember_empties_the_namespace(rig: Rig) -> None:
    await rig.guard.lease("innocent", "r")
    await rig.guard.publish("innocent", "r", entry_of(1))
    await rig.break_it()
    for number in range(60):
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish(f"k{number}", "w", entry_of(2))
    assert rig.guard.condition().pending is None, "all of them"
    rig.store.away = False
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("innocent")
    await rig.probe()
    assert rig.guard.condition().available
    assert await rig.guard.get("innocent") is None


async def test_an_operation_missed_during_a_purge_of_everything_is_kept(rig: Rig) -> None:
    """Another process stores the old version behind the purge, and a write goes by it."""
    await rig.break_it()
    for number in range(60):
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish(f"k{number}", "w", entry_of(2))
    rig.store.away = False
    purge_all = rig.store.purge_all

    async def with_a_write_meanwhile() -> int:
        dropped = await purge_all()
        await rig.store.lease("k", "elsewhere")
        await rig.store.publish("k", "elsewhere", entry_of(1))
        rig.store.away = True
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish("k", "w", entry_of(2))
        rig.store.away = False
        return dropped

    rig.store.purge_all = with_a_write_meanwhile  # type: ignore[method-assign]
    await rig.probe()
    assert rig.guard.condition().available
    assert await rig.guard.get("k") is None


@pytest.mark.parametrize("kind", [Store, FutureStore])
async def test_a_store_that_cannot_empty_its_namespace_still_forgets_nothing(
    kind: type[Store],
) -> None:
    """Or the versions from before the outage would be served again."""
    store = kind()
    rig = Rig(store, Plain(store))
    keys = [f"k{number}" for number in range(60)]
    for key in [*keys, "purged"]:
        await rig.guard.lease(key, "r")
        await rig.guard.publish(key, "r", entry_of(1))
    await store.fence("fenced", "elsewhere")
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.purge(["purged"])
    for key in ["fenced", *keys]:
        for version in (2, 3):
            with pytest.raises(CacheUnavailable):
                await rig.guard.publish(key, f"w{version}", entry_of(version))
            rig.guard.remember("purged", version)
    assert rig.guard.condition().pending == len(keys) + 2
    for attempt in range(200):
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish("busy", f"w{attempt}", entry_of(attempt + 1))
    assert len(rig.guard._log) <= 2 * (len(keys) + 3), "what is kept of a key is bounded"
    store.away = False
    with pytest.raises(CacheUnavailable):
        await rig.guard.get(keys[0])
    await rig.probe()
    assert rig.guard.condition().available
    assert await rig.guard.get_many([*keys, "purged"]) == {}
    assert await store.publish("fenced", "elsewhere", entry_of(2)) is PublishResult.REMOVED, (
        "the fence knows of version 3"
    )
    await rig.guard.aclose()


async def test_steps_are_bounded_however_few_their_keys(rig: Rig) -> None:
    await rig.break_it()
    for number in range(1000):
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish("k", f"w{number}", entry_of(number + 1))
        assert len(rig.guard._log) <= 50
    assert rig.guard.condition().pending is None


async def test_the_circuit_stays_open_while_missed_operations_cannot_be_replayed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.break_it()
    for key in ("poison", "k"):
        with pytest.raises(CacheUnavailable):
            await rig.guard.publish(key, "w", entry_of(2))
    rig.store.away = False
    publish = rig.store.publish

    async def refused(key: str, token: str, entry: Entry | None) -> PublishResult:
        if key == "poison":
            raise CacheUnavailable("NOPERM")
        return await publish(key, token, entry)

    rig.store.publish = refused  # type: ignore[method-assign]
    for _ in range(4):
        await rig.probe()
        assert rig.guard.condition().state == "open"
    await rig.probe()
    assert rig.guard.condition().state == "closed", "one key is not worth the whole cache"
    assert "refuses an operation on 'poison' (NOPERM)" in caplog.text


async def test_a_sweep_may_take_longer_than_a_probe() -> None:
    rig = Rig(Store())
    rig.guard._recovery._probe_limit = 0.01
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.purge_all()
    rig.store.away = False
    sweeps = 0

    async def slow() -> int:
        nonlocal sweeps
        sweeps += 1
        await asyncio.sleep(0.05)
        return 0

    rig.store.purge_all = slow  # type: ignore[method-assign]
    rig.pauses.gate.release()
    async with asyncio.timeout(60):
        while not rig.guard.condition().available:
            await asyncio.sleep(0.001)
    assert sweeps == 1
    await rig.guard.aclose()


async def test_a_burst_that_fails_together_is_one_failure(rig: Rig) -> None:
    rig.store.away = True
    results = await asyncio.gather(
        *(rig.guard.get(f"k{number}") for number in range(100)), return_exceptions=True
    )
    assert {type(result) for result in results} == {CacheUnavailable}
    assert rig.guard.condition().available


async def test_a_store_that_is_always_late_is_away(rig: Rig) -> None:
    reach = rig.store._reach

    async def slowly() -> None:
        await asyncio.sleep(5)
        await reach()

    rig.store._reach = slowly  # type: ignore[method-assign]
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    await until_open(rig)


async def test_every_exception_of_a_backend_becomes_a_cache_error(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(keys: Sequence[str]) -> Mapping[str, Entry]:
        raise TypeError(*keys)

    rig.store.get_many = buggy  # type: ignore[method-assign]
    for number in range(2):
        with pytest.raises(CacheUnavailable, match="TypeError"):
            await rig.guard.get(f"k{number}")
    assert caplog.text.count("raised an unexpected error") == 1


async def test_a_bypass_reports_the_version_that_it_loaded(rig: Rig) -> None:
    """One get is lost; what its reader then loads and returns is not undercut by the next read."""
    cache, source = JobCache(rig.guard), Source()
    source.versions["k"] = 1
    await cache.read("k", lambda: source.load("k"))
    source.versions["k"] = 2  # committed by a writer whose fence was evicted; not published yet
    get_many = rig.store.get_many
    losses = iter([True])

    async def lost_once(keys: Sequence[str]) -> Mapping[str, Entry]:
        if next(losses, False):
            raise CacheUnavailable("reset")
        return await get_many(keys)

    rig.store.get_many = lost_once  # type: ignore[method-assign]
    first = await cache.read("k", lambda: source.load("k"))
    assert (first.entry.version, first.outcome) == (2, CacheOutcome.BYPASS)
    assert (await cache.read("k", lambda: source.load("k"))).entry.version == 2
    await cache.aclose()


async def test_a_closed_guard_starts_nothing_more(rig: Rig) -> None:
    await rig.break_it()
    await rig.guard.aclose()
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    recovery = rig.guard._recovery.task
    assert recovery is None or recovery.done()
    assert rig.guard._running == set()


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
    rig = Rig(Store())
    cache = JobCache(rig.guard)
    await rig.break_it()
    source = Source()
    async with cache.write(Transaction(source, "k"), "k") as write:
        write.publish("k", document(1))
    answer = await cache.read("k", lambda: source.load("k"))
    assert (answer.entry.version, answer.outcome) == (1, CacheOutcome.BYPASS)
    await cache.aclose()


def test_the_memory_backend_needs_no_guard() -> None:
    assert not isinstance(MemorySubject().backend, SupportsPing)
