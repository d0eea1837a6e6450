"""Several services on one Redis: emptying one namespace, and whose a namespace is."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis

from app.devservers import RedisServer
from app.devservers.cluster import RedisCluster
from jobcache import CacheOutcome, CacheSettings, CacheUnavailable, Document, JobCache
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.registry import make_backend
from jobcache.errors import NamespaceConflict
from jobcache.protocol.codec import encode_entry
from jobcache.testing.simulation import entry_of
from tests.subjects import REDIS_SERVERS, FakeClock

KEY = "job:1:progress"
MARKER = "jobcache:source"


@pytest.fixture(params=REDIS_SERVERS)
def program(request: pytest.FixtureRequest) -> Path:
    return REDIS_SERVERS[request.param]


@pytest.fixture
def url(program: Path) -> Iterator[str]:
    with RedisServer(program) as server:
        yield server.url


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        yield client


@pytest.fixture
def shared_url(program: Path, redis_urls: dict[str, str]) -> Iterator[str]:
    """The flushed server of the worker, for tests that change its keys only."""
    (url,) = (redis_urls[name] for name, known in REDIS_SERVERS.items() if known == program)
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield url
        client.flushall()


@asynccontextmanager
async def cached(
    url: str, *, backend: str = "redis", prefix: str = "", source_id: str = ""
) -> AsyncIterator[JobCache]:
    settings = CacheSettings(backend=backend, redis_url=url, prefix=prefix, source_id=source_id)
    cache = JobCache(make_backend(settings))
    try:
        yield cache
    finally:
        await cache.aclose()


def loader(owner: str) -> Callable[[], object]:
    async def load() -> Document:
        return Document(1, owner, owner.encode(), "moving", 2)

    return load


async def owner_of(cache: JobCache, owner: str, key: str = KEY) -> tuple[str, CacheOutcome]:
    answer = await cache.read(key, loader(owner))  # type: ignore[arg-type]
    return answer.entry.owner, answer.outcome


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# --- emptying a namespace ---


@pytest.mark.parametrize("backend", ["redis", "tiered"])
@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("app", ["app2:", "app:", "app:x:", "ap", ""]),
        ("app:", ["app:x:", "app:job:", "app2:", "App:", "app"]),
        ("", ["staging:", "job:", "j"]),
        ("a*b?[c]:", ["aXbYc:", "a1b2[c]:", "a*b?[c]:x:"]),
        ("a\\b:", ["ab:", "a\\b:c"]),
        ("a^:", ["ab:", "a:"]),
    ],
)
async def test_emptying_a_namespace_leaves_every_other_alone(
    prefix: str, others: list[str], backend: str, shared_url: str
) -> None:
    url = shared_url
    with redis.Redis.from_url(url) as raw:
        foreign: dict[str, bytes] = {
            "session:abc": b"E1|looks|like|ours",
            "celery-task-1": b"x",
            f"{prefix}foreign": b"F1|%b|0|,w," % b"0123456789abcdef",
            f"{prefix}notes": b"not ours",
        }
        for name, value in foreign.items():
            raw.set(name, value)
        raw.hset(f"{prefix}hash", "a", "1")
        for other in others:
            async with cached(url, prefix=other) as cache:
                await owner_of(cache, "them")
        async with cached(url, backend=backend, prefix=prefix) as cache:
            await asyncio.gather(
                *(owner_of(cache, "us", f"job:{number}:progress") for number in range(120))
            )
            held = {key for key, cell in cells(raw).items() if b"|us\n" in cell}
            assert len(held) == 120
            before = set(raw.keys("*")) - held
            assert await cache.invalidate_all() == 120
            after = {key for key in raw.keys("*") if b"jobcache:beat" not in key}
            assert after == {key for key in before if b"jobcache:beat" not in key}
            for name, value in foreign.items():
                assert raw.get(name) == value
            assert await owner_of(cache, "us") == ("us", CacheOutcome.MISS)
        for other in others:
            async with cached(url, prefix=other) as cache:
                assert await owner_of(cache, "them") == ("them", CacheOutcome.HIT)


def cells(raw: redis.Redis) -> dict[bytes, bytes]:
    """All strings that the server holds, by key."""
    keys = raw.keys("*")
    held = zip(keys, raw.mget(keys), strict=True)
    return {bytes(key): bytes(cell) for key, cell in held if cell is not None}


async def test_a_key_that_two_prefixes_can_make_is_never_read_as_the_others(url: str) -> None:
    """`app` with the key `2:1`, and `app2:` with the key `1`."""
    async with cached(url, prefix="app") as one, cached(url, prefix="app2:") as other:
        assert await owner_of(one, "one", "2:1") == ("one", CacheOutcome.MISS)
        assert (await owner_of(other, "other", "1"))[0] == "other"
        assert (await owner_of(one, "one", "2:1"))[0] == "one"


async def test_cells_without_a_prefix_are_as_before_the_upgrade(url: str, raw: redis.Redis) -> None:
    incarnation_id = raw.info("server")["run_id"][:8] + raw.info("replication")["master_replid"][:8]
    raw.set("k", encode_entry(entry_of(3), incarnation_id), px=60_000)
    backend = RedisBackend(url)
    assert await backend.get("k") == entry_of(3)
    assert await backend.purge_all() == 1
    await backend.aclose()


async def test_entries_of_the_first_version_under_a_prefix_are_not_served_and_reported_once(
    url: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """The first version put the same id into the cells of all prefixes."""
    incarnation_id = raw.info("server")["run_id"][:8] + raw.info("replication")["master_replid"][:8]
    async with cached(url, prefix="app:") as cache:
        for key in ("a", "b"):
            raw.set(f"app:{key}", encode_entry(entry_of(3), "0123456789abcdef"), px=60_000)
            assert (await owner_of(cache, "us", key))[0] == "us"
        assert "first version" not in caplog.text, "these are of another server"
        for key in ("c", "d"):
            raw.set(f"app:{key}", encode_entry(entry_of(3), incarnation_id), px=60_000)
            assert (await owner_of(cache, "us", key))[0] == "us"
        assert await owner_of(cache, "us", "d") == ("us", CacheOutcome.HIT)
    assert caplog.text.count("first version of jobcache has written entries") == 1
    assert "'app:'" in caplog.text


async def test_emptying_has_no_deadline_and_reports_its_progress(
    url: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that runs on by three seconds whenever it is asked stands for a large database."""
    pipeline = raw.pipeline()
    for number in range(5000):
        pipeline.set(f"p:theirs:{number}", "x")
    pipeline.execute()
    clock = FakeClock()

    def hurried() -> float:
        clock.now += 3
        return clock.now

    backend = RedisBackend(url, prefix="p:", clock=hurried)
    for number in range(50):
        await backend.lease(f"job:{number}", "r")
    with caplog.at_level(logging.INFO, "jobcache"):
        assert await backend.purge_all() == 50
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) > 2
    assert all("emptying the cache under the prefix 'p:'" in line for line in messages[:-1])
    assert "emptied the cache under the prefix 'p:': 50" in messages[-1]
    assert "50 entries dropped" in messages[-1]
    assert len(raw.keys("p:theirs:*")) == 5000
    await backend.aclose()


async def test_emptying_ends_when_the_server_does_not_answer(program: Path) -> None:
    with RedisServer(program) as server:
        async with cached(f"{server.url}?socket_timeout=0.2") as cache:
            await cache.start()
            await owner_of(cache, "us")
            server.pause()
            try:
                async with asyncio.timeout(20):
                    with pytest.raises(CacheUnavailable):
                        await cache.invalidate_all()
            finally:
                server.resume()
            await until(lambda: cache.info().health.available and cache.info().health.pending == 0)
            assert (await owner_of(cache, "us"))[1] is not CacheOutcome.HIT, "it was made good"


# --- whose a namespace is ---


@pytest.mark.parametrize("backend", ["redis", "tiered"])
async def test_a_service_with_another_database_is_refused_at_start(backend: str, url: str) -> None:
    async with (
        cached(url, source_id="first") as first,
        cached(url, backend=backend, source_id="second") as second,
    ):
        await first.start()
        with pytest.raises(NamespaceConflict, match="JOBCACHE_PREFIX") as refusal:
            await second.start()
        assert "\n" not in str(refusal.value)
        await owner_of(first, "first")
        assert await owner_of(first, "first") == ("first", CacheOutcome.HIT)
        for _ in range(5):  # even if it goes on all the same
            assert await owner_of(second, "second") == ("second", CacheOutcome.BYPASS)
    async with cached(url, backend=backend, prefix="second:", source_id="second") as second:
        await second.start()
        await owner_of(second, "second")
        assert (await owner_of(second, "second"))[0] == "second"


async def test_processes_with_the_same_database_agree(url: str, raw: redis.Redis) -> None:
    async with cached(url, source_id="one") as first, cached(url, source_id="one") as second:
        await asyncio.gather(first.start(), second.start())
        await owner_of(first, "us")
        assert await owner_of(second, "us") == ("us", CacheOutcome.HIT)
    assert raw.get(MARKER) == b"one"
    assert raw.pttl(MARKER) == -1, "it does not expire"


async def test_the_identity_can_be_given_at_the_start(url: str, raw: redis.Redis) -> None:
    async with cached(url) as cache:
        await cache.start("known later")
        assert raw.get(MARKER) == b"known later"


@pytest.mark.parametrize("loss", ["flush", "eviction"])
async def test_a_marker_that_was_lost_is_set_anew(loss: str, url: str, raw: redis.Redis) -> None:
    async with cached(url, source_id="one") as cache:
        await cache.start()
        raw.flushall() if loss == "flush" else raw.delete(MARKER)
        async with asyncio.timeout(20):
            while raw.get(MARKER) != b"one":
                await owner_of(cache, "us")
                await asyncio.sleep(0.01)
        assert cache.info().health.available


@pytest.mark.parametrize("backend", ["redis", "tiered"])
async def test_a_process_that_loses_its_namespace_stops_using_the_cache(
    backend: str, url: str, raw: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """After a flush another service was first."""
    async with cached(url, backend=backend, source_id="one") as cache:
        await cache.start()
        await owner_of(cache, "us")
        raw.flushall()
        raw.set(MARKER, "another")
        async with cached(url, source_id="another") as other:
            await other.start()
            await owner_of(other, "them")

            async def set_aside() -> None:
                while cache.info().health.available:
                    await owner_of(cache, "us", f"job:{asyncio.get_running_loop().time()}:progress")
                    await asyncio.sleep(0.01)

            await asyncio.wait_for(set_aside(), 20)
            assert "JOBCACHE_PREFIX" in cache.info().health.reason
            for _ in range(5):
                assert await owner_of(cache, "us") == ("us", CacheOutcome.BYPASS)
            assert await owner_of(other, "them") == ("them", CacheOutcome.HIT)
        away = [r for r in caplog.records if "cache is away" in r.getMessage()]
        assert len(away) == 1
        raw.delete(MARKER)
        await until(lambda: cache.info().health.available)


async def test_a_redis_that_belongs_to_another_database_is_not_used(program: Path) -> None:
    """It was away at the start."""
    with RedisServer(program) as server:
        server.kill()
        async with cached(server.url, source_id="one") as cache:
            await cache.start()
            server.start()
            with redis.Redis.from_url(server.url) as raw:
                raw.set(MARKER, "another")
                for _ in range(20):
                    assert (await owner_of(cache, "us"))[1] is CacheOutcome.BYPASS
                assert raw.keys("job:*") == []


async def test_a_full_redis_is_no_conflict(url: str, raw: redis.Redis) -> None:
    raw.config_set("maxmemory", 1)
    async with cached(url, source_id="one") as cache:
        await cache.start()
        assert re.search("OOM|OutOfMemory", cache.info().health.reason)
        raw.config_set("maxmemory", 0)
        await until(lambda: cache.info().health.available)
        assert raw.get(MARKER) == b"one"


FIRST, *OTHERS = REDIS_SERVERS


@pytest.mark.parametrize(
    "program",
    [FIRST, *(pytest.param(other, marks=pytest.mark.long) for other in OTHERS)],
    indirect=True,
)
async def test_in_a_cluster_one_marker_is_enough(program: Path) -> None:
    with RedisCluster(program) as cluster:
        async with (
            cached(cluster.url, source_id="one") as one,
            cached(cluster.url, source_id="one") as two,
            cached(cluster.url, source_id="another") as another,
        ):
            await asyncio.gather(one.start(), two.start())
            for number in range(30):
                await owner_of(one, "us", f"job:{number}:progress")
                assert (await owner_of(two, "us", f"job:{number}:progress"))[1] is CacheOutcome.HIT
            with pytest.raises(NamespaceConflict):
                await another.start()
            for number in range(30):
                assert (await owner_of(another, "them", f"job:{number}:progress"))[0] == "them"
            async with cached(cluster.url, prefix="x:") as other:
                await owner_of(other, "others")
                assert await one.invalidate_all() == 30
                assert await owner_of(other, "others") == ("others", CacheOutcome.HIT)
