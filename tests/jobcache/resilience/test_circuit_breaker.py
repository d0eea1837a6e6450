"""The guard's circuit breaker: what opens it, the probes, and what closes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from jobcache import CacheOutcome, CacheUnavailable, JobCache
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import UnreadableCell
from jobcache.protocol.entry import Entry
from jobcache.resilience.batched_gets import BatchedGets
from jobcache.resilience.circuit_breaker import Breaker
from jobcache.testing.simulation import entry_of
from tests.jobcache.bench import Source, Transaction, document
from tests.jobcache.resilience.rig import Rig, Store, until_open
from tests.subjects import FakeClock

pytestmark = pytest.mark.usual_limits


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


async def test_an_unresponsive_store_is_fenced_before_anything_is_committed(rig: Rig) -> None:
    """So that others have noticed, too, before something is committed that they do not hear of."""
    rig.store.hangs = hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    await until_open(rig)
    calls = rig.store.calls
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await rig.guard.fence("k", "w")
    rig.clock.now += 0.03
    with pytest.raises(CacheUnavailable, match="no answer within 0 s"):
        await rig.guard.fence("k", "w")
    assert rig.store.calls == calls + 2
    hangs.set()


async def test_a_store_receives_writes_before_this_process_knows_that_it_is_back(rig: Rig) -> None:
    """Others may have noticed it earlier, and read there."""
    await rig.store.lease("k", "r")
    await rig.store.publish("k", "r", entry_of(1))
    rig.store.hangs = hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable):
        await rig.guard.get("k")
    await until_open(rig)
    rig.clock.now += 0.03
    rig.store.hangs = None
    hangs.set()
    with suppress(CacheUnavailable):
        await rig.guard.fence("k", "w")
    assert await rig.guard.publish("k", "w", entry_of(2))
    assert rig.guard.condition().state == "open"
    held = await rig.store.get("k")
    assert held is None or held.version == 2


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


def test_each_opening_of_the_circuit_is_counted() -> None:
    breaker = Breaker("redis", failures=3, clock=FakeClock())
    for _ in range(2):
        breaker.trip("away")
        breaker.trip("still away")
        assert breaker.condition(0).state == "open"
        breaker.close()
    assert breaker.condition(0).openings == 2
