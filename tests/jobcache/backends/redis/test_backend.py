"""What only the Redis backend does: bad cells, bad servers, many callers, its keys and its URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha1

import pytest
import redis
from redis.asyncio.connection import SSLConnection

from app.devservers import RedisServer
from jobcache import CacheOutcome, CacheUnavailable, Document, JobCache, SettingsError
from jobcache.backends.redis.backend import RedisBackend, from_settings
from jobcache.backends.redis.url import read_url
from jobcache.backends.registry import make_backend
from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.codec import encode_entry
from jobcache.settings import CacheSettings
from jobcache.testing.simulation import entry_of
from tests.subjects import REDIS_SERVERS, by_the_pool


@pytest.fixture(params=REDIS_SERVERS)
def url(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> str:
    return redis_urls[request.param]


@pytest.fixture
def raw(url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(url) as client:
        client.flushall()
        yield client


async def load() -> Document:
    return Document(3, "acme", b"{}", "moving", 2)


def incarnation_id(raw: redis.Redis) -> str:
    """Of the life the server is in."""
    return str(raw.info("server")["run_id"][:8] + raw.info("replication")["master_replid"][:8])


def garbage(raw: redis.Redis, kind: str) -> None:
    key = "job:1:progress"
    if kind == "list":
        raw.rpush(key, "a", "b")
    elif kind == "hash":
        raw.hset(key, "field", "value")
    else:
        cells = {
            "noise": b"\x80\x04\x95pickle?",
            "empty": b"",
            "another format": b"E3|9|whatever\n{}",
            "a cut header": b"E1|%b|9|17" % incarnation_id(raw).encode(),
            "a cut incarnation id": b"E1|9",
            "a changed body": encode_entry(entry_of(9), incarnation_id(raw)) + b"x",
            "json": b'{"status": "completed"}',
            "a fence of another format": b"F2|x",
        }
        raw.set(key, cells[kind])


KINDS = [
    "list",
    "hash",
    "noise",
    "empty",
    "another format",
    "a cut header",
    "a cut incarnation id",
    "a changed body",
    "json",
    "a fence of another format",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_cell_is_a_bypass_and_heals(
    url: str, raw: redis.Redis, kind: str
) -> None:
    cache = JobCache(RedisBackend(url))
    garbage(raw, kind)
    with suppress(UnreadableCell):  # or a lease raises it
        assert await cache.backend.get("job:1:progress") is None
    answer = await cache.read("job:1:progress", load)
    assert (answer.entry.version, answer.outcome) == (3, CacheOutcome.BYPASS)
    outcomes = [(await cache.read("job:1:progress", load)).outcome for _ in range(2)]
    assert outcomes == [CacheOutcome.MISS, CacheOutcome.HIT]
    await cache.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_cell_among_many_affects_no_other(
    url: str, raw: redis.Redis, kind: str
) -> None:
    cache = JobCache(RedisBackend(url))
    await cache.read("job:2:progress", load)
    garbage(raw, kind)

    async def load_many(keys: object) -> dict[str, Document]:
        assert keys == ("job:1:progress",)
        return {"job:1:progress": await load()}

    answers = await cache.read_many(["job:1:progress", "job:2:progress"], load_many)
    assert [answer.outcome for answer in answers.values()] == [
        CacheOutcome.BYPASS,
        CacheOutcome.HIT,
    ]
    await cache.aclose()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "a changed body"])
async def test_a_writer_replaces_an_unreadable_cell(url: str, raw: redis.Redis, kind: str) -> None:
    backend = RedisBackend(url)
    garbage(raw, kind)
    await backend.fence("job:1:progress", "w")
    assert await backend.lease("job:1:progress", "r") is LeaseResult.FENCED
    assert await backend.publish("job:1:progress", "w", entry_of(2)) is PublishResult.STORED
    await backend.aclose()


async def test_a_fence_without_an_end_is_none_of_ours_and_can_be_purged(
    url: str, raw: redis.Redis
) -> None:
    backend = RedisBackend(url)
    raw.set("k", f"F1|{incarnation_id(raw)}|0|,w,")
    assert await backend.purge(["k"]) == 1
    assert await backend.lease("k", "r") is LeaseResult.ACQUIRED
    await backend.aclose()


async def test_cells_are_where_people_look_for_them(url: str, raw: redis.Redis) -> None:
    backend = RedisBackend(url, prefix="video:")
    await backend.lease("job:7:progress", "r")
    # The cell tells the namespace, too: another prefix can make the same key.
    incarnation = (
        incarnation_id(raw).encode()
        + sha1(b"video:", usedforsecurity=False).hexdigest()[:8].encode()
    )
    assert raw.get("video:job:7:progress") == b"L1|%b|r" % incarnation
    await backend.publish("job:7:progress", "r", entry_of(2, body=b'{"id":7}'))
    cell = raw.get("video:job:7:progress")
    assert cell is not None
    header = b"E1|%b|2|1700000000000|30000|330000|identity|12075f43|2|moving|acme\n"
    assert cell.startswith(header % incarnation)
    assert cell.endswith(b'{"id":7}')
    assert 329_000 < raw.pttl("video:job:7:progress") <= 330_000
    await backend.fence("job:7:progress", "w")
    assert raw.get("video:job:7:progress") == b"F1|%b|2|,w," % incarnation
    assert 29_000 < raw.pttl("video:job:7:progress") <= 30_000
    await backend.aclose()


async def test_emptying_the_namespace_leaves_others_data_alone(url: str, raw: redis.Redis) -> None:
    raw.set("theirs", "value")
    raw.rpush("their list", "a")
    raw.set(b"\xff\xfe", b"binary key")
    for prefix in ("", "a*b:", "ab:"):
        backend = RedisBackend(url, prefix=prefix)
        for number in range(700):
            await backend.lease(f"job:{number}", "r")
        await backend.fence("job:0", "w")
        await backend.aclose()
    for prefix, count in (("a?b:", 0), ("a*b:", 700)):  # a prefix is no pattern
        backend = RedisBackend(url, prefix=prefix)
        assert await backend.purge_all() == count
        await backend.aclose()
    without_prefix = RedisBackend(url)
    assert await without_prefix.purge_all() == 700
    await without_prefix.aclose()
    left = [key for key in raw.keys("*") if not key.startswith(b"ab:")]
    assert sorted(left) == sorted([b"theirs", b"their list", b"\xff\xfe"])
    assert len(raw.keys("ab:*")) == 700, "of another prefix"


@pytest.mark.parametrize(
    ("prepared", "connections"),
    [(RedisBackend, 1), (lambda url: by_the_pool(RedisBackend(url)), 10)],
)
async def test_a_burst_waits_instead_of_failing(
    prepared: Callable[[str], RedisBackend], connections: int, url: str, raw: redis.Redis
) -> None:
    backend = prepared(url)
    before = {client["id"] for client in raw.client_list()}
    await asyncio.gather(*(backend.lease(f"k{n}", "t") for n in range(1500)))
    made = {client["id"] for client in raw.client_list()} - before
    assert 1 <= len(made) <= connections
    await backend.aclose()


async def test_many_gets_are_one_command(url: str, raw: redis.Redis) -> None:
    backend = RedisBackend(url)
    for number in range(20):
        await backend.lease(f"k{number}", "r")
        await backend.publish(f"k{number}", "r", entry_of(number + 1))
    raw.rpush("k list", "x")
    raw.set("k garbage", "x")

    def calls() -> dict[str, int]:
        stats = raw.info("commandstats")
        return {name: stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("get", "mget")}

    before = calls()
    found = await backend.get_many([f"k{number}" for number in range(20)])
    assert [entry.version for entry in found.values()] == list(range(1, 21))
    assert calls() == {"get": before["get"], "mget": before["mget"] + 1}
    assert await backend.get("k1") == entry_of(2)
    odd = await asyncio.gather(
        *(backend.get(key) for key in ("k list", "k garbage", "k2", "nothing")),
        return_exceptions=True,
    )
    assert isinstance(odd[1], UnreadableCell), "which spoils only its own caller's answer"
    assert [odd[0], *odd[2:]] == [None, entry_of(3), None]
    await backend.aclose()


async def test_a_caller_that_leaves_takes_no_result_of_another_caller(url: str) -> None:
    backend = RedisBackend(url)
    await backend.lease("k", "r")
    await backend.publish("k", "r", entry_of(1))
    callers = [asyncio.create_task(backend.get("k")) for _ in range(10)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert results[1::2] == [entry_of(1)] * 5
    await backend.aclose()


async def test_a_lost_batch_is_an_error_for_each_of_its_callers() -> None:
    with RedisServer() as server:
        backend = RedisBackend(server.url)
        await backend.ping()
        server.kill()
        results = await asyncio.gather(
            *(backend.get(f"k{number}") for number in range(10)), return_exceptions=True
        )
        assert {type(result) for result in results} == {CacheUnavailable}
        await backend.aclose()


@pytest.mark.parametrize("prepare", [by_the_pool, lambda backend: backend])
async def test_no_caller_starves_for_a_connection(
    prepare: Callable[[RedisBackend], RedisBackend], url: str
) -> None:
    """Many who ask without a pause, and fewer connections than they are."""
    backend = prepare(RedisBackend(url, connections=2))

    async def ask(name: str) -> None:
        for _ in range(300):
            await backend.lease(name, "t")

    await asyncio.gather(*(ask(f"k{number}") for number in range(40)))
    await backend.aclose()


async def test_scripts_survive_a_restart_of_the_server() -> None:
    with RedisServer() as server:
        backend = RedisBackend(server.url)
        await backend.lease("k", "r")
        server.kill()
        with pytest.raises(CacheUnavailable):
            await backend.get("k")
        server.start()
        assert await backend.lease("k", "r") is LeaseResult.ACQUIRED
        await backend.aclose()


async def test_without_memory_nothing_old_is_served() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as raw:
        backend = RedisBackend(server.url)
        await backend.lease("k", "r")
        await backend.publish("k", "r", entry_of(1))
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", 1)
        with pytest.raises(CacheUnavailable):
            await backend.fence("k", "w")
        with pytest.raises(CacheUnavailable):
            await backend.lease("other", "r")
        assert await backend.get("k") is None, "what cannot be fenced is dropped"
        with pytest.raises(CacheUnavailable):
            await backend.ping()
        raw.config_set("maxmemory", 0)
        await backend.fence("k", "w")
        raw.config_set("maxmemory", 1)
        with pytest.raises(CacheUnavailable):
            await backend.publish("k", "w", entry_of(2))
        assert raw.exists("k") == 0, "and so is a fence whose entry cannot be stored"
        await backend.aclose()


async def test_a_full_redis_opens_the_circuit_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as raw:
        cache = JobCache(make_backend(CacheSettings(backend="redis", redis_url=server.url)))
        raw.config_set("maxmemory", 1)
        reads = 0
        async with asyncio.timeout(60):
            while cache.info().health.available or reads < 200:
                answer = await cache.read(f"job:{reads}:progress", load)
                assert answer.outcome is CacheOutcome.BYPASS
                reads += 1
        assert len(caplog.records) == 1
        assert "OutOfMemory" in caplog.text
        raw.config_set("maxmemory", 0)
        async with asyncio.timeout(60):
            while not cache.info().health.available:
                await asyncio.sleep(0.01)
        await cache.aclose()


async def test_a_burst_of_cold_keys_is_no_outage(url: str, raw: redis.Redis) -> None:
    cache = JobCache(make_backend(CacheSettings(backend="redis", redis_url=url)))
    await asyncio.gather(*(cache.read(f"job:{number}:progress", load) for number in range(1000)))
    assert cache.info().health.available
    await cache.aclose()


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_the_protocol_can_be_chosen_in_the_url(url: str, protocol: str) -> None:
    backend = RedisBackend(f"{url}?protocol={protocol}")
    await backend.ping()
    assert await backend.lease("protocol", "r") in {LeaseResult.ACQUIRED, LeaseResult.HELD}
    await backend.aclose()


async def test_a_password_is_used_and_never_shown() -> None:
    with RedisServer() as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.config_set("requirepass", "s3cret")
        url = server.url.replace("redis://", "redis://:s3cret@")
        backend = RedisBackend(url)
        await backend.ping()
        await backend.aclose()
        wrong = RedisBackend(server.url.replace("redis://", "redis://:wr0ng@"))
        with pytest.raises(CacheUnavailable) as failure:
            await wrong.ping()
        assert "wr0ng" not in str(failure.value)
        await wrong.aclose()
        assert "s3cret" not in repr(CacheSettings(redis_url=url))
        with redis.Redis.from_url(url) as raw:
            raw.config_set("requirepass", "")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:s3cret@localhost:port/0",
        "redis://:s3cret@localhost/0?nonsense=1",
        "redis://:s3cret@localhost/0?decode_responses=True",
        "redis://:s3cret@localhost/0?db=x",
        "http://:s3cret@localhost",
        "redis://:s3cret/more@localhost/0",
        "redis://:s3cret#more@localhost/0",
        "redis://:s3cret?more@localhost:x/0",
        "redis+sentinel://:s3cret@localhost",
        "redis+sentinel://:s3cret@localhost/jobs/first",
        "redis+sentinel://:s3cret@localhost,/jobs",
        "redis+sentinel://:s3cret/more@localhost/jobs",
        "redis+sentinel://:s3cret@localhost/jobs?nonsense=1",
        "redis+cluster://:s3cret@localhost/1",
        "redis+cluster://:s3cret@localhost:port",
        "redis+cluster://:s3cret@",
        "rediss+cluster://:s3cret@localhost?decode_responses=True",
        "redis+elsewhere://:s3cret@localhost",
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    settings = CacheSettings(backend="redis", redis_url=url)
    with pytest.raises(SettingsError, match="REDIS_URL") as failure:
        from_settings(settings)
    assert "s3cret" not in str(failure.value)
    assert "s3cret" not in repr(settings)


def test_many_hosts_are_read_with_what_is_meant_for_all_of_them() -> None:
    location = read_url(
        "rediss+sentinel://me:p%40ss@one,[::1]:7,three:26380/my%20jobs/3"
        "?protocol=2&sentinel_password=theirs&ssl_check_hostname=false"
    )
    assert (location.kind, location.service) == ("sentinel", "my jobs")
    assert location.hosts == (("one", 26379), ("::1", 7), ("three", 26380))
    assert [str(host) for host in location.hosts] == ["one:26379", "[::1]:7", "three:26380"]
    assert location.sentinel_options == {"password": "theirs"}
    assert location.options == {
        "connection_class": SSLConnection,
        "db": 3,
        "password": "p@ss",
        "protocol": 2,
        "ssl_check_hostname": False,
        "username": "me",
    }
    location = read_url("redis+cluster://one,two:7/0?max_connections=3")
    assert (location.kind, location.hosts) == ("cluster", (("one", 6379), ("two", 7)))
    assert location.options == {"db": 0, "max_connections": 3}
    with pytest.raises(ValueError, match="hash tag"):
        RedisBackend("redis+cluster://one", prefix="{app}:")


async def test_what_the_settings_make_is_guarded(url: str) -> None:
    backend = make_backend(CacheSettings(backend="redis", redis_url=url))
    assert type(backend).__name__ == "GuardedBackend"
    assert backend.name == "redis"
    await backend.aclose()
