"""Heartbeats that the server refuses, and a feed that cannot connect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from app.devservers import PostgresServer
from jobcache.backends.heartbeat_feed import FeedLost
from jobcache.backends.postgres.connection import listen
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.postgres.queue_usage import QueueUsage
from jobcache.backends.postgres.writers import NotNow, OwnPool
from jobcache.errors import CacheUnavailable
from tests.jobcache.backends.feed_events import Events, until
from tests.jobcache.backends.postgres.live_feed import CHANNEL, dsn, following
from tests.subjects import FakeClock


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return dsn(postgres)


class Refusing(OwnPool):
    """Writers that raise an error while there is one."""

    error: Exception | None = None
    renewed = 0
    attempts = 0

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        await super().notify(notifications)

    async def renew(self) -> None:
        self.renewed += 1
        await super().renew()


async def test_a_full_queue_ends_the_proof_and_not_the_connection(url: str) -> None:
    """Reconnecting would empty the local tier, and help nobody."""
    writers = Refusing(url)
    async with following(url, writers=writers, silence=0.3) as (feed, events):
        gaps = events.gaps  # a busy machine may be silent for that long
        connection = feed._connection
        writers.error = NotNow("the queue is full")
        await until(lambda: not feed.live)
        assert feed.condition().reason == "the last heartbeat is late"
        with pytest.raises(NotNow):
            await feed.notify(["k"])
        attempts = writers.attempts
        await until(lambda: writers.attempts >= attempts + 3)
        writers.error = None
        await until(lambda: events.keys == ["k"])
        await until(lambda: feed.live)
        if events.gaps == gaps:
            assert feed._connection is connection
            assert writers.renewed == 0


@pytest.mark.parametrize(
    "error",
    [asyncpg.ProgramLimitExceededError("too many notifications"), asyncpg.DiskFullError("full")],
)
async def test_the_own_pool_knows_what_other_connections_would_not_help(
    url: str, error: asyncpg.PostgresError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(asyncpg.Connection, "fetch", refuse)
    pool = OwnPool(url)
    with pytest.raises(NotNow):
        await pool.notify([(CHANNEL, "k")])
    await pool.aclose()


class OnlyLatin(OwnPool):
    """Writers to a database whose encoding has no Chinese characters."""

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        if any("日本" in payload for _, payload in notifications):
            raise asyncpg.UntranslatableCharacterError("no equivalent in LATIN1")
        await super().notify(notifications)


async def test_a_key_that_the_database_cannot_encode_is_anything(url: str) -> None:
    async with following(url, writers=OnlyLatin(url)) as (feed, events):
        resumptions = events.resumptions
        with pytest.raises(CacheUnavailable, match="LATIN1"):
            await feed.notify(["日本"])
        await until(lambda: events.resumptions > resumptions and feed.live)
        await until(lambda: not len(feed._owed))


async def test_a_feed_that_never_connects_says_so_once(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused() -> Any:
        raise asyncpg.InvalidPasswordError("wrong password")

    clock = FakeClock()
    slept = 0

    async def sleep(_: float) -> None:
        nonlocal slept
        slept += 1
        clock.now += 1
        await asyncio.sleep(0)

    feed = PostgresFeed(refused, OwnPool(url), channel=CHANNEL, clock=clock, sleep=sleep)
    feed.listen(Events())
    with caplog.at_level(logging.WARNING):
        feed.start()
        await until(lambda: slept > 30)
        await feed.aclose()
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == (
        "the feed of changes in PostgreSQL cannot connect (InvalidPasswordError: wrong password)"
    )


async def test_no_primary_among_several_hosts_is_a_lost_feed(url: str) -> None:
    async def standby() -> Any:
        raise asyncpg.TargetServerAttributeNotMatched("no host is read-write")

    with pytest.raises(FeedLost, match="no host is read-write"):
        async with listen(standby, [CHANNEL], print, print):
            """It does not listen."""
    pool = OwnPool(url, connect=lambda *_, **__: standby())
    with pytest.raises(CacheUnavailable, match="no host is read-write"):
        await pool.notify([(CHANNEL, "k")])
    await pool.aclose()


class SlowOnce:
    """A connection whose first answer does not come in time."""

    def __init__(self) -> None:
        self.closed = False
        self.asked = 0

    async def fetchval(self, _: str) -> float:
        self.asked += 1
        if self.asked == 1:
            raise TimeoutError
        return 0.25

    def is_closed(self) -> bool:
        return self.closed


async def test_one_slow_answer_does_not_end_the_watch_of_the_queue() -> None:
    connection, usage = SlowOnce(), QueueUsage()

    async def sleep(_: float) -> None:
        if usage.share is not None:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await usage.poll(connection, sleep)
    assert usage.share == 0.25
    connection.asked, connection.closed = 0, True
    await usage.poll(connection, sleep)
    assert connection.asked == 1
