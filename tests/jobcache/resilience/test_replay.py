"""Operations that an outage prevented are replayed before the cache is read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pytest

from jobcache import CacheOutcome, CacheUnavailable, JobCache
from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import CLOCK_SKEW_MS, Entry
from jobcache.testing.simulation import entry_of
from tests.jobcache.bench import Source
from tests.jobcache.resilience.rig import Rig

pytestmark = pytest.mark.usual_limits


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


async def test_a_purge_that_failed_is_repeated(rig: Rig) -> None:
    await rig.guard.lease("k", "r")
    await rig.guard.publish("k", "r", entry_of(1))
    await rig.break_it()
    with pytest.raises(CacheUnavailable):
        await rig.guard.purge(["k"])
    rig.store.away = False
    await rig.probe()
    assert await rig.guard.get("k") is None


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
