"""The backend on notifications: every schedule of its module text, on a feed that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from jobcache import CacheOutcome, Document, JobCache, SourceUnavailable
from jobcache.backends.memory import MemoryBackend
from jobcache.backends.postgres.backend import PostgresBackend
from jobcache.backends.postgres.payloads import decode
from jobcache.errors import CacheUnavailable
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry
from jobcache.testing.scenarios import entry_of, unversioned_entry_of
from tests.jobcache.backends.postgres.hand_feed import HandFeed

KEY = "job:1:progress"


class Rig:
    """Two versions of a row, and what readers and writers do with it."""

    def __init__(self, own_report: float = 60.0) -> None:
        self.feed = HandFeed(own_report)
        self.backend = PostgresBackend(MemoryBackend(), self.feed)

    async def load(self, token: str, version: int) -> PublishResult:
        """A read that finds nothing, from its lease to its publish."""
        await self.backend.lease(KEY, token)
        return await self.backend.publish(KEY, token, entry_of(version))

    async def served(self) -> int | None:
        entry = self.backend.peek(KEY)
        if not self.feed.live:
            assert entry is None
            return None
        assert entry == await self.backend.get(KEY)
        assert ({} if entry is None else {KEY: entry}) == await self.backend.get_many([KEY, "x"])
        return None if entry is None else entry.version


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_load_that_began_before_a_report_is_not_stored(rig: Rig) -> None:
    await rig.backend.lease(KEY, "r0")
    rig.feed.deliver(KEY)
    assert await rig.backend.publish(KEY, "r0", entry_of(1)) is PublishResult.NOTHING
    assert await rig.load("r1", 2) is PublishResult.STORED
    assert await rig.served() == 2


async def test_a_report_empties_the_cell(rig: Rig) -> None:
    await rig.load("r0", 1)
    rig.feed.deliver("another key")
    assert await rig.served() == 1
    rig.feed.deliver(KEY)
    assert await rig.served() is None
    await rig.load("r1", 2)
    rig.feed.deliver("")
    assert await rig.served() is None


async def test_a_result_that_is_returned_removes_what_is_older(rig: Rig) -> None:
    """Its report has not come yet, and the next read must not go back."""
    await rig.backend.lease(KEY, "r0")
    assert await rig.backend.lease(KEY, "r1") is LeaseResult.HELD
    await rig.backend.publish(KEY, "r1", entry_of(2))
    await rig.backend.publish(KEY, "r0", entry_of(1))
    assert await rig.served() is None
    await rig.load("r2", 1)
    await rig.backend.publish(KEY, "r3", entry_of(2))
    assert await rig.served() is None


async def test_this_holds_while_the_feed_is_not_live(rig: Rig) -> None:
    await rig.load("r0", 1)
    rig.feed.lapse()
    assert await rig.served() is None
    assert await rig.load("r1", 2) is PublishResult.REMOVED
    rig.feed.up()
    assert await rig.served() is None


async def test_a_feed_that_breaks_takes_entries_and_leases_with_it(rig: Rig) -> None:
    await rig.load("r0", 1)
    await rig.backend.lease("other", "r1")
    rig.feed.cut()
    rig.feed.up()
    assert await rig.served() is None
    assert await rig.backend.publish("other", "r1", entry_of(1)) is PublishResult.NOTHING


async def test_while_the_source_is_away_an_entry_is_served_past_its_freshness(rig: Rig) -> None:
    """The database restarts: the feed is cut, and loads fail. Afterwards nothing of it is left."""

    async def load() -> Document:
        if not rig.feed.live:
            raise SourceUnavailable("restarting")
        return Document(version=7, owner="", body=b"{}")

    async with JobCache(rig.backend) as cache:
        await cache.read(KEY, load)
        for leave in (rig.feed.lapse, rig.feed.cut):
            leave()
            assert cache.peek(KEY, load) is None
            found = await cache.read(KEY, load)
            assert (found.version, found.outcome) == (7, CacheOutcome.STALE)
            assert (await cache.read_many([KEY], lambda _: load()))[KEY].version == 7  # type: ignore[arg-type, return-value]
            with pytest.raises(SourceUnavailable):
                await cache.read(KEY, load, min_version=8)
        rig.feed.up()
        assert (await cache.read(KEY, load)).outcome is CacheOutcome.MISS


async def test_a_load_that_began_before_the_feed_was_back_prolongs_nothing(rig: Rig) -> None:
    await rig.load("r0", 1)
    rig.feed.cut()
    found = await rig.backend.lease(KEY, "r1")
    assert isinstance(found, Entry)
    assert found.fresh_ms < 0
    rig.feed.up()
    assert await rig.backend.publish(KEY, "r1", entry_of(1)) is PublishResult.NOTHING
    assert await rig.served() is None


async def test_without_a_live_feed_nobody_waits_and_nothing_is_stored(rig: Rig) -> None:
    rig.feed.cut()
    assert await rig.backend.lease(KEY, "r0") is LeaseResult.ACQUIRED
    assert await rig.backend.lease(KEY, "r1") is LeaseResult.ACQUIRED
    rig.feed.up()
    assert await rig.backend.publish(KEY, "r0", entry_of(1)) is PublishResult.NOTHING
    assert await rig.served() is None


# --- writers ---


async def test_a_write_continues_when_its_own_report_has_come(rig: Rig) -> None:
    await rig.load("r0", 1)
    told = rig.backend.notification([KEY], "w")
    rig.backend.announce(KEY, "w")
    rig.feed.deliver(told.payload)  # committed
    assert await rig.backend.lease(KEY, "r1") is LeaseResult.HELD
    assert await rig.backend.publish(KEY, "w", entry_of(2)) is PublishResult.STORED
    assert await rig.served() == 2
    assert rig.feed.writers.sent == []


async def test_the_entry_of_a_write_is_not_kept_if_another_change_was_reported(rig: Rig) -> None:
    told = rig.backend.notification([KEY], "w")
    rig.backend.announce(KEY, "w")
    rig.feed.deliver(told.payload, KEY)
    assert await rig.backend.publish(KEY, "w", entry_of(2)) is PublishResult.NOTHING
    assert await rig.served() is None


async def test_the_entry_of_a_write_that_notifies_after_its_commit_is_not_kept(rig: Rig) -> None:
    """Another commit may have been reported before its notification."""
    rig.feed.writers.on_sent = rig.feed.deliver
    await rig.backend.fence(KEY, "w")
    assert await rig.backend.publish(KEY, "w", entry_of(2)) is PublishResult.KEPT
    assert await rig.served() is None


@pytest.mark.parametrize("end", ["withdraw", "abandon"])
async def test_the_lease_of_a_write_ends_with_it(rig: Rig, end: str) -> None:
    told = rig.backend.notification([KEY], "w")
    rig.backend.announce(KEY, "w")
    rig.feed.deliver(told.payload)
    if end == "withdraw":
        await rig.backend.publish(KEY, "w", None)
    else:
        await rig.backend.abandon(KEY, "w")
    assert await rig.backend.lease(KEY, "r") is LeaseResult.ACQUIRED


async def test_a_write_waits_for_its_own_report_and_not_for_another(rig: Rig) -> None:
    rig.backend.announce(KEY, "w1")
    rig.feed.deliver(rig.backend.notification([KEY], "w0").payload, KEY)
    publishing = asyncio.create_task(rig.backend.publish(KEY, "w1", entry_of(3)))
    await asyncio.sleep(0)
    await rig.load("r", 2)  # as W0 has left it
    assert not publishing.done()
    rig.feed.deliver(rig.backend.notification([KEY], "w1").payload)
    await publishing
    assert await rig.served() == 3


@pytest.mark.parametrize("how", ["late", "lapsed", "cut"])
async def test_a_write_whose_report_does_not_come_empties_the_cell_itself(how: str) -> None:
    rig = Rig(own_report=0.01)
    rig.backend.announce(KEY, "w")
    await rig.load("r0", 1)
    await rig.backend.lease("other", "r1")
    if how == "lapsed":
        rig.feed.lapse()
    publishing = asyncio.create_task(rig.backend.publish(KEY, "w", entry_of(2)))
    await asyncio.sleep(0)
    if how == "cut":
        rig.feed.cut()
    await publishing
    rig.feed.up()
    assert await rig.served() is None


async def test_a_write_that_did_not_notify_is_announced_late_and_loudly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig(own_report=0.01)
    rig.backend.announce(KEY, "w")
    await rig.backend.publish(KEY, "w", entry_of(2))
    assert rig.feed.writers.sent == []
    assert caplog.text == ""
    for _ in range(3):
        await rig.feed.send_heartbeat()
    assert [decode(each).keys for each in rig.feed.writers.sent] == [[KEY]]
    assert "does the statement call pg_notify?" in caplog.text


@pytest.mark.parametrize("how", ["slow", "cut"])
async def test_a_report_that_is_only_late_causes_no_second_one(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It would double the notifications while the server is slow."""
    rig = Rig(own_report=0.01)
    rig.backend.announce(KEY, "w")
    await rig.backend.publish(KEY, "w", entry_of(2))
    if how == "slow":
        rig.feed.deliver(rig.backend.notification([KEY], "w").payload)
    else:
        rig.feed.cut()  # the other processes are told by the server
    for _ in range(3):
        await rig.feed.send_heartbeat()
    assert rig.feed.writers.sent == []
    assert "pg_notify" not in caplog.text


async def test_a_write_of_a_statement_that_does_not_notify_is_notified_after_the_commit(
    rig: Rig,
) -> None:
    await rig.backend.fence(KEY, "w")
    assert rig.feed.writers.sent == []
    await rig.load("r0", 1)
    publishing = asyncio.create_task(rig.backend.publish(KEY, "w", entry_of(2)))
    await asyncio.sleep(0)
    assert not publishing.done()
    rig.feed.deliver(*rig.feed.writers.sent)
    await publishing
    assert await rig.served() is None


async def test_a_notification_that_cannot_be_sent_empties_the_cell_and_is_owed(rig: Rig) -> None:
    await rig.backend.fence(KEY, "w")
    await rig.load("r0", 1)
    rig.feed.writers.error = CacheUnavailable("away")
    with pytest.raises(CacheUnavailable):
        await rig.backend.publish(KEY, "w", entry_of(2))
    assert await rig.served() is None
    rig.feed.writers.error = None
    for _ in range(3):
        await rig.feed.send_heartbeat()
    assert [decode(each).keys for each in rig.feed.writers.sent] == [[KEY]]


async def test_a_write_that_was_rolled_back_changes_nothing(rig: Rig) -> None:
    await rig.load("r0", 1)
    await rig.backend.fence(KEY, "w0")
    rig.backend.announce(KEY, "w1")
    for writer in ("w0", "w1"):
        await rig.backend.publish(KEY, writer, None)
    assert await rig.served() == 1
    assert rig.feed.writers.sent == []
    assert not rig.feed._expected


async def test_a_commit_that_failed_empties_the_cell_and_notifies_if_its_statement_did_not(
    rig: Rig,
) -> None:
    for announced, sent in ((True, []), (False, [[KEY]])):
        await rig.load("r0", 1)
        if announced:
            rig.backend.announce(KEY, "w")
        else:
            await rig.backend.fence(KEY, "w")
        await rig.backend.abandon(KEY, "w")
        assert await rig.served() is None
        assert [decode(each).keys for each in rig.feed.writers.sent] == sent
    assert not rig.feed._expected


async def test_writes_that_nobody_ends_are_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobcache.backends.postgres.backend._MOST_WRITES", 10)
    for number in range(30):
        rig.backend.announce(KEY, f"w{number}")
    assert len(rig.backend._writing) == len(rig.feed._expected) == 10


# --- documents without a version ---


async def test_a_purge_notifies_and_returns_when_it_has_been_reported(rig: Rig) -> None:
    await rig.backend.lease(KEY, "r0")
    await rig.backend.publish(KEY, "r0", unversioned_entry_of("r0"))
    await rig.backend.lease("other", "r1")
    purging = asyncio.create_task(rig.backend.purge([KEY, "other", KEY]))
    await asyncio.sleep(0)
    assert not purging.done()
    assert await rig.backend.get(KEY) is None
    rig.feed.deliver(*rig.feed.writers.sent)
    assert await purging == 2
    assert await rig.backend.publish("other", "r1", entry_of(1)) is PublishResult.NOTHING
    assert await rig.backend.purge([]) == 0


async def test_a_purge_that_cannot_notify_fails_and_is_repeated(rig: Rig) -> None:
    await rig.load("r0", 1)
    rig.feed.writers.error = CacheUnavailable("away")
    with pytest.raises(CacheUnavailable):
        await rig.backend.purge([KEY])
    with pytest.raises(CacheUnavailable):
        await rig.backend.purge_all()
    assert await rig.served() is None
    rig.feed.writers.error = None
    await rig.feed.send_heartbeat()
    assert decode(rig.feed.writers.sent[0]).keys is None


# --- the cache on it ---


@asynccontextmanager
async def transaction(*, fails: bool = False) -> AsyncIterator[None]:
    yield None
    if fails:
        raise ConnectionError("lost at the commit")


async def test_a_cache_settles_a_write_whose_commit_failed(rig: Rig) -> None:
    versions = [1, 2]

    async def load() -> Document:
        return Document(version=versions.pop(0), owner="", body=b"{}")

    async with JobCache(rig.backend) as cache:
        await cache.read(KEY, load)
        with suppress(ConnectionError):
            async with cache.write(transaction(fails=True)) as write:
                assert write.notification(KEY) is not None
                await write.fence(KEY, notified=True)
                write.outdate(KEY, 2)
        assert (await cache.read(KEY, load)).version == 2
        assert rig.feed.writers.sent == []


async def test_waiters_are_answered_by_one_load_after_a_report(rig: Rig) -> None:
    """Nothing is on its way after a commit, so nobody waits for an entry of somebody else."""
    version = 1

    async def load() -> Document:
        return Document(version=version, owner="", body=b"{}")

    async with JobCache(rig.backend) as cache:
        await cache.read(KEY, load)
        waiting = [
            asyncio.create_task(cache.wait_for_newer(KEY, load, 1, timeout=60)) for _ in range(50)
        ]
        await asyncio.sleep(0.01)
        version = 2
        rig.feed.deliver(KEY)
        results = await asyncio.gather(*waiting)
        assert {each.version for each in results if each is not None} == {2}
        assert cache.statistics.database_loads == 2
