"""A Redis that refuses what the cache needs: one line in the log, and a way round or none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis

from app.devservers import RedisServer
from app.devservers.cluster import RedisCluster
from jobcache import CacheOutcome, CacheSettings, CacheUnavailable, Document, JobCache
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.registry import make_backend
from jobcache.backends.tiered import TieredBackend
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.simulation import entry_of
from tests.subjects import REDIS_SERVERS

KEYS = [f"job:{number}:progress" for number in range(60)]


@pytest.fixture(params=REDIS_SERVERS)
def program(request: pytest.FixtureRequest) -> Path:
    return REDIS_SERVERS[request.param]


@contextmanager
def serving(program: Path, *arguments: str) -> Iterator[tuple[RedisServer, redis.Redis]]:
    with (
        RedisServer(program, arguments=arguments) as server,
        redis.Redis.from_url(server.url, protocol=2) as raw,
    ):
        yield server, raw


def permit(raw: redis.Redis, *rules: str) -> None:
    """Let the user of the cache do everything, but for these rules."""
    raw.execute_command(
        *("ACL", "SETUSER", "app", "reset", "on", "nopass", "~*", "&*", "+@all", *rules)
    )


def as_user(server: RedisServer) -> str:
    return server.url.replace("redis://", "redis://app:@")


async def load() -> Document:
    return Document(1, "acme", b"{}", "moving", 2)


@asynccontextmanager
async def cached(backend: str, url: str) -> AsyncIterator[JobCache]:
    """A cache whose guard asks a Redis that was away, or has refused something, soon again."""
    made = make_backend(CacheSettings(backend=backend, redis_url=url))
    guard = made._remote if isinstance(made, TieredBackend) else made
    assert isinstance(guard, GuardedBackend)
    guard._recovery._sleep = lambda seconds: asyncio.sleep(seconds / 20)
    cache = JobCache(made)
    try:
        yield cache
    finally:
        await cache.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def poll(cache: JobCache) -> list[CacheOutcome]:
    """What becomes of polls of many keys, each of which is answered."""
    answers = [await cache.read(key, load) for key in KEYS]
    assert all(answer.entry.version == 1 for answer in answers)
    return [answer.outcome for answer in answers]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


REFUSALS = {
    "scripts": (("-evalsha", "-eval"), "EVALSHA and EVAL"),
    "reads": (("-mget",), "MGET"),
    "writes of scripts": (("-set",), "SET"),
}


@pytest.mark.parametrize(
    ("backend", "refusal"),
    [
        *(("redis", refusal) for refusal in REFUSALS),
        ("tiered", "scripts"),
        *(
            pytest.param("tiered", refusal, marks=pytest.mark.long)
            for refusal in REFUSALS
            if refusal != "scripts"
        ),
    ],
)
async def test_a_refused_required_command_is_unavailable_and_named_in_one_line(
    backend: str, refusal: str, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules, command = REFUSALS[refusal]
    with serving(program) as (server, raw):
        permit(raw, *rules)
        async with cached(backend, as_user(server)) as cache:
            await cache.start()
            assert not cache.info().health.available
            for _ in range(3):
                assert set(await poll(cache)) == {CacheOutcome.BYPASS}
            assert command in cache.info().health.reason
            refused = [line for line in lines(caplog) if "feed" not in line]
            assert len(refused) == 1
            assert command in refused[0]
            assert "answered from the source" in refused[0]
            permit(raw)
            await until(lambda: cache.info().health.available)
            if refusal != "scripts":
                return  # it goes on as after any other
            async with asyncio.timeout(20):  # what is stored now is to be confirmed, for a second
                while set(await poll(cache)) != {CacheOutcome.HIT}:
                    await asyncio.sleep(0.1)


async def test_scripts_that_are_refused_later_are_noticed_as_well(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(program) as (server, raw):
        permit(raw)
        async with cached("redis", as_user(server)) as cache:
            await cache.start()
            await poll(cache)
            assert set(await poll(cache)) == {CacheOutcome.HIT}
            permit(raw, "-evalsha", "-eval")
            raw.flushall()
            while cache.info().health.available:
                await poll(cache)
                await asyncio.sleep(0)
            for _ in range(3):
                await poll(cache)
            assert len(lines(caplog)) == 1
            assert "EVALSHA" in lines(caplog)[0]


@pytest.mark.parametrize("backend", ["redis", "tiered"])
async def test_without_script_load_nothing_is_missed(
    backend: str, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(program) as (server, raw):
        permit(raw, "-script")
        async with cached(backend, as_user(server)) as cache:
            await cache.start()
            await poll(cache)
            assert set(await poll(cache)) == {CacheOutcome.HIT}
            assert cache.info().health.available
            assert lines(caplog) == []


@pytest.mark.parametrize("how", ["acl", "renamed"])
async def test_without_evalsha_scripts_are_sent_whole(
    how: str, program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed = ("--rename-command", "EVALSHA", "") if how == "renamed" else ()
    with serving(program, *renamed) as (server, raw):
        url = server.url
        if how == "acl":
            permit(raw, "-evalsha", "-script")
            url = as_user(server)
        async with cached("redis", url) as cache:
            await cache.start()
            await poll(cache)
            assert set(await poll(cache)) == {CacheOutcome.HIT}
            assert len(lines(caplog)) == 1
            assert "refuses EVALSHA" in lines(caplog)[0]
            assert "with EVAL" in lines(caplog)[0]


async def test_info_alone_may_be_refused_with_one_line(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(program, "--rename-command", "INFO", "") as (server, _):
        async with cached("redis", server.url) as cache:
            await cache.start()
            await poll(cache)
            assert set(await poll(cache)) == {CacheOutcome.HIT}
            assert len(lines(caplog)) == 1
            assert "does not report its run_id" in lines(caplog)[0]


async def test_a_proxy_that_hides_the_server_is_not_used(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server behind it can be replaced by one with old data, and no connection is lost."""
    hidden = ("--rename-command", "INFO", "", "--rename-command", "SCRIPT", "")
    with serving(program, *hidden) as (server, _):
        async with cached("redis", server.url) as cache:
            await cache.start()
            assert set(await poll(cache)) == {CacheOutcome.BYPASS}
            assert not cache.info().health.available
            assert len(lines(caplog)) == 1
            assert "refuses INFO and SCRIPT" in lines(caplog)[0]


async def test_without_hello_the_older_protocol_is_used(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(program, "--rename-command", "HELLO", "") as (server, _):
        async with cached("redis", server.url) as cache:
            await cache.start()
            await poll(cache)
            assert set(await poll(cache)) == {CacheOutcome.HIT}
            assert len(lines(caplog)) == 1
            assert "refuses HELLO" in lines(caplog)[0]


async def test_a_cluster_node_behind_a_plain_url_is_unavailable_with_one_line(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Even one that owns every slot: a read of many keys crosses slots."""
    with RedisCluster(program, primaries=1) as cluster:
        async with cached("redis", cluster.nodes[0].url) as cache:
            await cache.start()
            for _ in range(3):
                await poll(cache)
            assert not cache.info().health.available
            assert len(lines(caplog)) == 1
            assert "redis+cluster://" in lines(caplog)[0]


async def test_keys_that_are_given_up_are_logged_together(
    program: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of these keys is refused, and nothing else."""
    with serving(program) as (server, raw):
        raw.execute_command(
            *("ACL", "SETUSER", "app", "reset", "on", "nopass", "+@all", "&*"),
            *("~jobcache:*", "~allowed:*"),
        )
        async with cached("redis", as_user(server)) as cache:
            await cache.start()
            assert cache.info().health.available
            for key in KEYS:
                with pytest.raises(CacheUnavailable):
                    await cache.backend.publish(key, "w", entry_of(2))
            await until(lambda: cache.info().health.pending == 0)
            refused = [line for line in lines(caplog) if "refuses an operation" in line]
            assert len(refused) == 1
            assert len(lines(caplog)) <= 3, "it was set aside, and is back"


async def test_a_ping_leaves_nothing_behind(program: Path) -> None:
    with serving(program) as (server, raw):
        backend = RedisBackend(server.url, prefix="p:")
        await backend.ping()
        assert raw.keys("*") == []
        await backend.aclose()
