"""Fences and publishes that reach the store after their deadline."""

from __future__ import annotations

import asyncio

import pytest

from jobcache import CacheUnavailable, JobCache
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.testing.simulation import entry_of
from tests.jobcache.bench import Source, Transaction, document
from tests.jobcache.resilience.rig import Rig, Store, until_open

pytestmark = pytest.mark.usual_limits


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


async def test_entries_are_confirmed_after_a_silence_that_no_timer_has_noticed(rig: Rig) -> None:
    """The store answers after a fence would have been given up, but before the late timer."""
    await rig.store.lease("k", "r")
    await rig.store.publish("k", "r", entry_of(1))
    before = await rig.guard.get("k")
    assert before is not None
    assert before.fresh_ms > 0
    rig.store.hangs = hangs = asyncio.Event()
    calls = rig.store.calls
    reading = asyncio.create_task(rig.guard.get("k"))
    while rig.store.calls == calls:
        await asyncio.sleep(0)
    rig.clock.now += 0.02  # without any time for the loop's timers
    rig.store.hangs = None
    hangs.set()
    for after in (await reading, await rig.guard.get("k")):
        assert after is not None
        assert after.fresh_ms <= 0
    assert rig.guard.condition().available
