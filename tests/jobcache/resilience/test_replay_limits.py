"""More missed operations than the guard remembers: the namespace is emptied."""

from __future__ import annotations

import asyncio

import pytest

from jobcache import CacheUnavailable
from jobcache.protocol.backend import PublishResult
from jobcache.testing.simulation import entry_of
from tests.jobcache.resilience.rig import FutureStore, Plain, Rig, Store

pytestmark = pytest.mark.usual_limits


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
