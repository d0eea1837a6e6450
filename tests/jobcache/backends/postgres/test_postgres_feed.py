"""The change feed on a real server: its reports, and that it notices when reports are missing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any

import asyncpg
import pytest

from app.devservers import PgBouncerServer, PostgresServer
from app.devservers.programs import pgbouncer_program
from jobcache import Document, JobCache, SettingsError
from jobcache.backends.postgres import connection as connection_module
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.postgres.queue_usage import QueueUsage
from jobcache.backends.postgres.writers import OwnPool
from jobcache.errors import CacheUnavailable
from tests.installed import require_program
from tests.jobcache.backends.feed_events import Events, until
from tests.jobcache.backends.postgres.live_feed import (
    CHANNEL,
    connecting,
    dsn,
    following,
)
from tests.subjects import FakeClock


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return dsn(postgres)


@pytest.fixture
async def writer(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


class Address:
    """An address that can move to another server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self) -> Any:
        return connecting(self.url)()


async def notify(connection: Any, payload: str) -> None:
    await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payload)


async def terminate(connection: Any, feed: PostgresFeed) -> None:
    """Have the server end the connection on which a feed listens."""
    await connection.execute("SELECT pg_terminate_backend($1)", feed._connection.get_server_pid())


# --- reports ---


async def test_what_is_committed_is_reported_in_the_order_of_the_commits(
    url: str, writer: Any
) -> None:
    async with following(url) as (feed, events):
        for number in range(20):
            async with writer.transaction():
                await notify(writer, f"k{number}")
                with suppress(ZeroDivisionError):
                    async with writer.transaction():
                        await notify(writer, "of a savepoint that was rolled back")
                        raise ZeroDivisionError
                assert f"k{number}" not in events.keys
            with suppress(ZeroDivisionError):
                async with writer.transaction():
                    await notify(writer, "rolled back")
                    raise ZeroDivisionError
        await until(lambda: len(events.keys) == 20)
        assert events.keys == [f"k{number}" for number in range(20)]
        assert (events.gaps, events.resumptions) == (0, 1)
        await writer.execute(f'NOTIFY "{CHANNEL}"')  # by somebody in psql: anything
        await until(lambda: (events.gaps, events.resumptions) == (1, 2))
        assert feed.live
        assert feed.condition().interruptions == 0


async def test_keys_of_any_kind_and_number_are_reported(url: str) -> None:
    async with following(url) as (feed, events):
        keys = ["a\x1fb", "", "nul\0", "line\n", "ü" * 2048, "'\"\\"]
        for key in keys[3:]:
            await feed.notify([key])
        await until(lambda: events.keys == keys[3:])
        for key in keys[:3]:
            await feed.notify([key])
        await until(lambda: events.gaps == 3)
        many = [f"job:{number}:progress" for number in range(3000)]
        await feed.notify(many)
        await until(lambda: events.keys[3:] == many)


async def test_a_writer_recognises_its_own_report(url: str) -> None:
    async with following(url) as (feed, events):
        feed.expect("k", "w")
        await feed.notify(["k"], "w")
        assert await feed.arrived("k", "w")
        assert events.keys == ["k"]
        assert not await feed.arrived("k", "w"), "nobody waits for it any more"


async def test_two_namespaces_are_reported_apart(url: str, writer: Any) -> None:
    async with following(url) as (_, events):
        await writer.execute("SELECT pg_notify('jobcache:other', 'k')")
        await notify(writer, "end")
        await until(lambda: bool(events.keys))
        assert events.keys == ["end"]


# --- proof ---


class Withheld(OwnPool):
    """Writers that lose what they send while `loses` is set."""

    loses = True
    renewed = 0

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        if not self.loses:
            await super().notify(notifications)

    async def renew(self) -> None:
        self.renewed += 1
        await super().renew()


async def test_it_is_live_only_after_a_heartbeat_that_was_sent_while_it_listened(
    url: str, writer: Any
) -> None:
    writers = Withheld(url)
    feed = PostgresFeed(connecting(url), writers, channel=CHANNEL, heartbeat=0.02, silence=30)
    events = Events()
    feed.listen(events)
    feed.start()
    try:
        await until(lambda: feed._awaited is not None)
        await notify(writer, "k")
        await until(lambda: events.keys == ["k"])
        assert not feed.live, "it listens, and nothing proves that it gets everything"
        for proof in ("0", "k", ""):
            await writer.execute("SELECT pg_notify($1, $2)", feed._own_channel, proof)
        await notify(writer, "end")
        await until(lambda: "end" in events.keys)
        assert not feed.live, "that was not its own heartbeat"
        await writer.execute("SELECT pg_notify($1, $2)", feed._own_channel, feed._awaited)
        await until(lambda: feed.live)
        assert (events.gaps, events.resumptions) == (0, 1)
    finally:
        await feed.aclose()


async def test_its_life_is_counted_from_the_sending_of_the_heartbeat(url: str) -> None:
    clock = FakeClock()
    async with following(url, silence=2.0, clock=clock) as (feed, events):
        clock.now += 1.99
        assert feed.live
        clock.now += 0.02
        assert not feed.live, "at once, whatever the task does"
        assert feed.condition().state == "connecting"
        assert feed.condition().reason == "the last heartbeat is late"
        await until(lambda: feed.live)
        assert feed.condition().state == "live"
        assert (events.gaps, events.resumptions) == (0, 1), "the connection is whole"


async def test_a_busy_pool_ends_its_life_and_loses_nothing(url: str) -> None:
    """Otherwise the loads that follow a break would cause the next one."""
    busy, clock = asyncio.Event(), FakeClock()

    class Busy(OwnPool):
        async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
            await busy.wait()
            await super().notify(notifications)

    async with following(url, silence=2.0, clock=clock) as (feed, events):
        before, feed._writers = feed._writers, Busy(url)
        clock.now += 1
        await until(lambda: feed._awaited is not None)
        clock.now += 5
        assert not feed.live
        busy.set()
        await until(lambda: feed._awaited is None)
        clock.now += 1
        await until(lambda: feed.live)
        assert events.gaps == 0
        assert feed.condition().interruptions == 0
        await before.aclose()


async def test_what_could_not_be_sent_is_sent_with_the_next_heartbeat(url: str) -> None:
    async with following(url) as (feed, events):
        pool = feed._writers
        broken = OwnPool("postgresql://postgres@/postgres?host=/nowhere")
        feed._writers = broken
        with pytest.raises(CacheUnavailable):
            await feed.notify(["a", "b"])
        await until(lambda: events.gaps == 1)  # a heartbeat met it, too
        feed._writers = pool
        await until(lambda: events.keys == ["a", "b"])
        await until(lambda: feed.live)


class MixedPool(OwnPool):
    """One connection leads to another server than the others. Writers have it, heartbeats do not.

    Args:
        url: of the others.
        other: of that server.
    """

    def __init__(self, url: str, other: str) -> None:
        super().__init__(url)
        self._other: OwnPool | None = OwnPool(other)

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        if self._other is None or notifications[-1][0] != CHANNEL:
            await super().notify(notifications)
        else:
            await self._other.notify(notifications)
            await self._close_other()  # the pool gives it up some time

    async def renew(self) -> None:
        await self._close_other()
        await super().renew()

    async def aclose(self) -> None:
        await self._close_other()
        await super().aclose()

    async def _close_other(self) -> None:
        other, self._other = self._other, None
        if other is not None:
            await other.aclose()


async def test_what_only_a_former_primary_has_accepted_is_sent_again(
    url: str, own_server: PostgresServer
) -> None:
    async with following(url) as (feed, events):
        before, feed._writers = feed._writers, MixedPool(url, dsn(own_server))
        await feed.notify(["k"])
        await until(lambda: events.keys == ["k"])
        await before.aclose()
        assert events.gaps == 0, "nothing else was wrong"


async def test_what_was_heard_from_a_former_primary_is_sent_again(
    url: str, own_server: PostgresServer
) -> None:
    """The address moves, and the former primary lives on. P1 follows the new one already."""
    former = dsn(own_server)
    address = Address(former)
    async with (
        following(url) as (_, events),
        following(former, connect=address, silence=0.3) as (feed, own_events),
    ):
        address.url = url
        before, feed._writers = feed._writers, MixedPool(url, former)
        await feed.notify(["k"])
        await until(lambda: "k" in own_events.keys)
        await until(lambda: "k" in events.keys)
        await before.aclose()


async def test_in_calm_each_notification_is_sent_once(url: str) -> None:
    async with following(url) as (feed, events):
        await feed.notify(["a", "b"])
        await feed.notify(["c"], "w")
        await asyncio.gather(feed.notify(["d"], "w"), feed.notify(["e"]))
        number = feed._number
        await until(lambda: feed._number >= number + 5)
        assert sorted(events.keys) == ["a", "b", "c", "d", "e"]
        assert len(feed._owed) == 0


# --- faults ---


async def test_a_connection_that_the_server_ends_is_noticed_at_once(
    url: str, writer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="jobcache")
    async with following(url) as (feed, events):
        feed.expect("k", "w")
        await terminate(writer, feed)
        await until(lambda: events.gaps == 1)
        assert not await feed.arrived("k", "w")
        await until(lambda: feed.live)
        assert events.resumptions == 2
        assert "is interrupted" in caplog.text
        assert "is back after" in caplog.text
        await notify(writer, "k")
        await until(lambda: events.keys == ["k"])


async def test_a_server_that_restarts_is_followed_again(own_server: PostgresServer) -> None:
    url = dsn(own_server)
    async with following(url) as (feed, events):
        own_server.stop()
        await until(lambda: events.gaps == 1)
        assert not feed.live
        own_server.start()
        await until(lambda: feed.live)
        await feed.notify(["k"])
        await until(lambda: events.keys == ["k"])


class Proxy:
    """Forwards a TCP port to a server's socket, until it becomes a black hole."""

    def __init__(self, server: PostgresServer) -> None:
        self._path = f"{server.socket_directory}/.s.PGSQL.5432"
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(self._path)
        self._writers += [writer, upstream_writer]
        for source, target in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65536):
                await self._open.wait()
                target.write(data)
        target.close()

    def swallow(self) -> None:
        """Take everything and pass nothing on; close no connection."""
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def test_a_black_hole_is_noticed_by_the_missing_heartbeat(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE", 0.2)
    proxy = Proxy(postgres)
    async with proxy as proxied:
        feed_through = following(url, connect=connecting(proxied), silence=0.3)
        async with feed_through as (feed, events):
            gaps = events.gaps  # a busy machine may be silent for that long
            proxy.swallow()
            await until(lambda: events.gaps == gaps + 1)
            assert not feed.live
            assert "heartbeat" in feed.condition().reason
            proxy.heal()
            await until(lambda: feed.live)


async def test_writers_that_lead_to_another_server_are_found_out(
    url: str, own_server: PostgresServer
) -> None:
    """The address has moved: the feed listens on one server, and the pool writes on another."""
    writers = Withheld(url)
    writers.loses = False
    address = Address(dsn(own_server))
    feed = PostgresFeed(address, writers, heartbeat=0.02, silence=0.3)
    feed.start()
    try:
        await until(lambda: writers.renewed >= 1)
        assert not feed.live
        address.url = url
        await until(lambda: feed.live)
    finally:
        await feed.aclose()


async def test_another_server_has_the_writers_connections_replaced_before_the_feed_is_live(
    url: str, writer: Any, own_server: PostgresServer
) -> None:
    """After a failover: a load on an old connection would read the old server."""
    renewed: list[bool] = []
    address = Address(dsn(own_server))

    class Moved(OwnPool):
        async def renew(self) -> None:
            renewed.append(feed.live)
            self._pool.terminate()
            self._pool, self._url = None, address.url

    feed = PostgresFeed(address, Moved(address.url), heartbeat=0.02, silence=30)
    events = Events()
    feed.listen(events)
    feed.start()
    try:
        await until(lambda: feed.live)
        assert renewed == []
        connection = await asyncpg.connect(address.url)
        address.url = url
        await terminate(connection, feed)
        await connection.close()
        await until(lambda: events.gaps == 1)
        await until(lambda: feed.live)
        assert renewed == [False]
        await terminate(writer, feed)
        await until(lambda: events.gaps == 2)
        await until(lambda: feed.live)
        assert renewed == [False], "the same server"
    finally:
        await feed.aclose()


async def test_a_listener_that_raises_has_the_feed_start_again(
    url: str, writer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Listeners after it have missed the report."""

    class Faulty(Events):
        def changed(self, keys: Sequence[str]) -> None:
            if keys == ["bad"]:
                raise ZeroDivisionError

    async with following(url) as (feed, events):
        feed._listeners.insert(0, Faulty())
        await notify(writer, "bad")
        await until(lambda: events.gaps == 1)
        await until(lambda: feed.live)
        assert "ZeroDivisionError" in caplog.text


async def test_a_standby_or_a_missing_server_is_tried_again() -> None:
    feed = PostgresFeed(
        connecting("postgresql://postgres@/postgres?host=/nowhere"),
        OwnPool("postgresql://postgres@/postgres?host=/nowhere"),
    )
    await feed.connected()
    assert feed.condition().state == "connecting"
    assert "Error" in feed.condition().reason
    assert not feed.live
    await feed.aclose()
    await feed.aclose()


# --- poolers ---


@pytest.fixture(scope="module")
def bouncer(postgres: PostgresServer) -> Iterator[PgBouncerServer]:
    require_program(pgbouncer_program)
    with PgBouncerServer(postgres) as server:
        yield server


async def test_a_pooler_is_refused_in_one_line(
    bouncer: PgBouncerServer, caplog: pytest.LogCaptureFixture
) -> None:
    cache = JobCache.from_url(dsn(bouncer))
    with pytest.raises(SettingsError, match="DATABASE_DIRECT_URL") as refused:
        await cache.start()
    assert "\n" not in str(refused.value)
    assert len([each for each in caplog.records if each.name == "jobcache"]) == 1
    await cache.aclose()


async def test_a_pooler_and_a_direct_url_work_together(bouncer: PgBouncerServer, url: str) -> None:
    async def load() -> Document:
        return Document(version=1, owner="", body=b"{}")

    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(
                JobCache.from_url(dsn(bouncer), postgres_direct_url=url)
            )
            for _ in range(2)
        ]
        for cache in (first, second):
            await until(lambda: cache.info().health.available)  # noqa: B023 - called here
            await cache.read("k", load)
            assert cache.peek("k", load) is not None
        await first.invalidate("k")
        assert first.peek("k", load) is None
        await until(lambda: second.peek("k", load) is None)


# --- the queue of notifications ---


async def test_the_usage_of_the_queue_is_reported(url: str) -> None:
    async with following(url) as (feed, _):
        await until(lambda: feed.condition().queue_usage is not None)
        assert feed.condition().queue_usage == pytest.approx(0.0, abs=0.01)


def test_a_queue_that_grows_is_logged_each_time_it_has_doubled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="jobcache")
    usage = QueueUsage()
    for share in (0.0, 0.04, 0.12, 0.13, 0.2, 0.25, 0.5, 0.4, 0.01, 0.0, 0.2):
        usage.note(share)
    found = [record.getMessage().partition(":")[0] for record in caplog.records]
    full = [line for line in found if "% full" in line]
    assert [line.split(" is ")[1] for line in full] == [
        "12 % full",
        "25 % full",
        "50 % full",
        "20 % full",
    ]
    assert len(found) == len(full) + 1
    assert usage.share == 0.2
