"""The address of Redis leads to a new primary; the old one lives on, and connections to it stay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from app.devservers import RedisServer
from jobcache import CacheSettings, Document, JobCache
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.redis.server import Server
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.backends.registry import make_backend
from jobcache.backends.tiered import TieredBackend
from jobcache.resilience.guarded_backend import GuardedBackend
from loadtests.freshness.proxy import Proxy
from tests.subjects import REDIS_SERVERS, by_the_pool

KEY = "job:1:progress"
BOUND = 2.0  # seconds; see docs/promises.md


@pytest.fixture(params=REDIS_SERVERS)
def program(request: pytest.FixtureRequest) -> Path:
    return REDIS_SERVERS[request.param]


@dataclass
class Primaries:
    """An address, the primary it leads to, and the one that it will lead to.

    Attributes:
        proxy: the address.
        old: the primary at first.
        new: empty.
    """

    proxy: Proxy
    old: RedisServer
    new: RedisServer

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.proxy.port}/0"

    def repoint(self, *, demoted: bool) -> None:
        """New connections lead to the new primary. A demoted one never copies the new data."""
        self.proxy.target = self.new.port
        if demoted:
            with connected(self.old) as raw:
                raw.replicaof("127.0.0.1", "1")  # nobody is there: it lags for ever


@contextmanager
def connected(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis(port=server.port) as raw:
        yield raw


@asynccontextmanager
async def primaries(program: Path) -> AsyncIterator[Primaries]:
    with RedisServer(program) as old, RedisServer(program) as new:
        proxy = Proxy(old.port)
        await proxy.start()
        try:
            yield Primaries(proxy, old, new)
        finally:
            await proxy.aclose()


class Table:
    """The source: one document, its versions, and when each was superseded."""

    def __init__(self) -> None:
        self.version = 1
        self.superseded: dict[int, float] = {}

    async def load(self) -> Document:
        return Document(self.version, "acme", b"v%d" % self.version, "moving", 2)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        yield
        self.version += 1

    async def change(self, cache: JobCache) -> None:
        """Commit the next version through a cache, until after it is acknowledged."""
        following = self.version + 1
        async with cache.write(self.transaction()) as write:
            await write.fence(KEY)
            write.publish(KEY, Document(following, "acme", b"v%d" % following, "moving", 2))
        self.superseded[following - 1] = time.monotonic()

    async def age_of(self, cache: JobCache) -> float:
        """How long ago what a read returns was superseded, when the read began; 0 if it was not."""
        began = time.monotonic()
        answer = await cache.read(KEY, self.load)
        at = self.superseded.get(answer.entry.version, began)
        return max(0.0, began - at)


def make(backend: str, url: str) -> JobCache:
    if backend == "redis by the pool":
        return JobCache(GuardedBackend(by_the_pool(RedisBackend(url))))
    return JobCache(make_backend(CacheSettings(backend=backend, redis_url=url)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def is_live(cache: JobCache) -> bool:
    feed = cache.info().feed
    return feed is not None and feed.state == "live"


def feed_of(cache: JobCache) -> TrackingFeed:
    backend = cache.backend
    assert isinstance(backend, TieredBackend)
    feed = backend.feed()
    assert isinstance(feed, TrackingFeed)
    return feed


def server_of(cache: JobCache) -> Server:
    """What the cache's connections lead to."""
    backend = cache.backend
    if isinstance(backend, TieredBackend):
        backend = backend._remote  # type: ignore[assignment]
    assert isinstance(backend, GuardedBackend)
    assert isinstance(backend._backend, RedisBackend)
    (server,) = backend._backend._topology.servers()
    assert isinstance(server, Server)
    return server


async def test_processes_that_only_read_leave_a_demoted_primary_within_two_seconds(
    program: Path,
) -> None:
    """None of their own writes is refused: their connections have to find out by themselves.

    One process of each kind, side by side: all of them wait for the same thing.
    """
    kinds = ["redis", "redis by the pool", "tiered"]
    async with primaries(program) as address:
        table = Table()
        writer = make("redis", address.url)
        readers = {kind: make(kind, address.url) for kind in kinds}
        caches = [writer, *readers.values()]
        await asyncio.gather(*(cache.start() for cache in caches))
        try:
            await until(lambda: is_live(readers["tiered"]))
            await table.change(writer)
            for reader in readers.values():
                await reader.read(KEY, table.load)
                assert (await reader.read(KEY, table.load)).outcome.value == "hit"
            address.repoint(demoted=True)
            moved = time.monotonic()
            worst = dict.fromkeys(kinds, 0.0)
            in_step = 0  # changes in a row that every reader had from the new primary
            while in_step < 5 and time.monotonic() < moved + BOUND + 1:
                await table.change(writer)
                for _ in range(10):
                    for kind, reader in readers.items():
                        worst[kind] = max(worst[kind], await table.age_of(reader))
                    await asyncio.sleep(0.005)
                answers = [await reader.read(KEY, table.load) for reader in readers.values()]
                # The old primary never has this version, so that who hits it reads the new one.
                moved_on = all(
                    answer.entry.version == table.version and answer.outcome.value == "hit"
                    for answer in answers
                )
                in_step = in_step + 1 if moved_on else 0
            assert max(worst.values()) <= BOUND, worst
            with connected(address.new) as raw:
                assert raw.get(KEY) is not None, "the new primary is used"
            for reader in readers.values():
                assert (await reader.read(KEY, table.load)).entry.version == table.version
        finally:
            for cache in caches:
                await cache.aclose()


@pytest.mark.parametrize("backend", ["redis", "redis by the pool", "tiered"])
async def test_a_refused_write_leaves_no_connection_on_the_old_primary(
    backend: str, program: Path
) -> None:
    async with primaries(program) as address:
        table = Table()
        cache = make(backend, address.url)
        await cache.start()
        try:
            if backend == "tiered":
                await until(lambda: is_live(cache))
            await table.change(cache)
            await cache.read(KEY, table.load)
            address.repoint(demoted=True)
            await table.change(cache)
            assert await table.age_of(cache) == 0
            if backend == "tiered":
                await until(lambda: is_live(cache))
            await table.change(cache)
            await cache.read(KEY, table.load)

            def left() -> int:
                with connected(address.old) as raw:
                    own = raw.client_id()
                    return sum(int(each["id"]) != own for each in raw.client_list(_type="normal"))

            if backend != "redis by the pool":  # idle connections are remade before they are used
                await until(lambda: left() == 0)
            with connected(address.new) as raw:
                assert b"|%d|" % table.version in (raw.get(KEY) or b"")
        finally:
            await cache.aclose()


@pytest.mark.parametrize("moved", ["_reads", "_scripted"])
async def test_one_connection_to_another_server_makes_all_others_suspect(
    moved: str, program: Path
) -> None:
    """The old primary goes on as a master of its own, and takes writes and beats."""
    async with primaries(program) as address:
        table = Table()
        cache = make("tiered", address.url)
        await cache.start()
        try:
            await until(lambda: is_live(cache))
            await table.change(cache)
            await cache.read(KEY, table.load)
            await cache.read(KEY, table.load)
            interruptions = cache.info().feed.interruptions  # type: ignore[union-attr]
            address.repoint(demoted=False)
            pipelined = getattr(server_of(cache), moved)._connection
            pipelined.close(redis.exceptions.ConnectionError("reset"))
            await until(lambda: cache.info().feed.interruptions > interruptions)  # type: ignore[union-attr]
            await until(lambda: is_live(cache))
            with connected(address.old) as raw:
                await until(lambda: len(raw.client_list(_type="normal")) == 1)  # this one
                assert all("t" not in each["flags"] for each in raw.client_list())
            await table.change(cache)
            assert await table.age_of(cache) == 0
        finally:
            await cache.aclose()


async def test_a_feed_that_leads_elsewhere_takes_reads_and_writes_along(program: Path) -> None:
    async with primaries(program) as address:
        table = Table()
        cache = make("tiered", address.url)
        await cache.start()
        try:
            await until(lambda: is_live(cache))
            await table.change(cache)
            await cache.read(KEY, table.load)
            address.repoint(demoted=False)
            with connected(address.old) as raw:
                (feed,) = (each for each in raw.client_list() if "t" in each["flags"])
                raw.client_kill_filter(_id=feed["id"])
                await until(lambda: len(raw.client_list(_type="normal")) == 1)
            await until(lambda: is_live(cache))
            await table.change(cache)
            assert await table.age_of(cache) == 0
        finally:
            await cache.aclose()


async def test_without_info_the_feed_still_finds_out_that_reads_go_elsewhere(
    program: Path,
) -> None:
    """Connections cannot tell the servers apart; only the missing heartbeat shows it."""
    async with primaries(program) as address:
        for server in (address.old, address.new):
            with connected(server) as raw:
                raw.acl_setuser(
                    "app",
                    enabled=True,
                    nopass=True,
                    keys=["*"],
                    channels=["*"],
                    commands=["+@all", "-info"],
                )
        table = Table()
        url = address.url.replace("redis://", "redis://app:@")
        cache = make("tiered", url)
        feed = feed_of(cache)
        feed._heartbeat, feed._silence = feed._heartbeat / 5, feed._silence / 5
        await cache.start()
        try:
            await until(lambda: is_live(cache))
            await table.change(cache)
            await cache.read(KEY, table.load)
            address.repoint(demoted=False)
            pipelined = server_of(cache)._reads._connection
            assert pipelined is not None
            pipelined.close(redis.exceptions.ConnectionError("reset"))
            with connected(address.old) as raw:
                await until(lambda: len(raw.client_list(_type="normal")) == 1)
            await until(lambda: is_live(cache))
        finally:
            await cache.aclose()


async def test_a_master_that_takes_no_writes_is_not_read_from(program: Path) -> None:
    """One that misses its replicas may have been replaced."""
    with RedisServer(program) as server, connected(server) as raw:
        table = Table()
        cache = make("redis", server.url)
        await cache.start()
        await cache.read(KEY, table.load)
        assert (await cache.read(KEY, table.load)).outcome.value == "hit"
        raw.config_set("min-replicas-to-write", 1)
        table.version += 1  # by a process whose publish did not reach Redis
        async with asyncio.timeout(10):
            while (await cache.read(KEY, table.load)).entry.version < table.version:
                await asyncio.sleep(0.01)
        await until(lambda: not cache.info().health.available)
        raw.config_set("min-replicas-to-write", 0)
        await until(lambda: cache.info().health.available)
        await cache.aclose()
