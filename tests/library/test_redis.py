"""What only the Redis backend does: bad cells, bad servers, many callers, its keys and its URL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis

from app.devservers import RedisServer
from jobcache import CacheUnavailable, Document, JobCache, Outcome, SettingsError, UnreadableCell
from jobcache.backends.redis import RedisBackend, from_settings
from jobcache.protocol import Offered, Standing
from jobcache.registry import make_backend
from jobcache.settings import CacheSettings
from jobcache.testing.schedules import entry_of
from tests.subjects import REDIS_SERVERS


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
            "another format": b"E2|9|whatever\n{}",
            "a cut header": b"E1|9|17",
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
    "json",
    "a fence of another format",
]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_cell_is_a_bypass_and_heals(
    url: str, raw: redis.Redis, kind: str
) -> None:
    cache = JobCache(RedisBackend(url))
    garbage(raw, kind)
    with pytest.raises(UnreadableCell):
        await cache.backend.get("job:1:progress")
    answer = await cache.read("job:1:progress", load)
    assert (answer.entry.version, answer.outcome) == (3, Outcome.BYPASS)
    outcomes = [(await cache.read("job:1:progress", load)).outcome for _ in range(2)]
    assert outcomes == [Outcome.MISS, Outcome.HIT]
    await cache.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unreadable_cell_among_many_spoils_only_itself(
    url: str, raw: redis.Redis, kind: str
) -> None:
    cache = JobCache(RedisBackend(url))
    await cache.read("job:2:progress", load)
    garbage(raw, kind)

    async def load_many(keys: object) -> dict[str, Document]:
        assert keys == ("job:1:progress",)
        return {"job:1:progress": await load()}

    answers = await cache.read_many(["job:1:progress", "job:2:progress"], load_many)
    assert [answer.outcome for answer in answers.values()] == [Outcome.BYPASS, Outcome.HIT]
    await cache.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_writer_replaces_an_unreadable_cell(url: str, raw: redis.Redis, kind: str) -> None:
    backend = RedisBackend(url)
    garbage(raw, kind)
    await backend.fence("job:1:progress", "w")
    assert await backend.lease("job:1:progress", "r") is Standing.FENCE
    assert await backend.offer("job:1:progress", "w", entry_of(2)) is Offered.STORED
    await backend.aclose()


async def test_cells_are_where_people_look_for_them(url: str, raw: redis.Redis) -> None:
    backend = RedisBackend(url, prefix="video:")
    await backend.lease("job:7:progress", "r")
    assert raw.get("video:job:7:progress") == b"L1|r"
    await backend.offer("job:7:progress", "r", entry_of(2, body=b'{"id":7}'))
    cell = raw.get("video:job:7:progress")
    assert cell is not None
    assert cell.startswith(b"E1|2|1700000000000|30000|330000|identity|2|moving|acme\n")
    assert cell.endswith(b'{"id":7}')
    assert 329_000 < raw.pttl("video:job:7:progress") <= 330_000
    await backend.fence("job:7:progress", "w")
    assert raw.get("video:job:7:progress") == b"F1|2|,w,"
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
    everything = RedisBackend(url)
    assert await everything.purge_all() == 1400
    await everything.aclose()
    assert sorted(raw.keys("*")) == sorted([b"theirs", b"their list", b"\xff\xfe"])


async def test_a_burst_waits_for_the_pool_instead_of_failing(url: str, raw: redis.Redis) -> None:
    backend = RedisBackend(url)
    await asyncio.gather(*(backend.get(f"k{n}") for n in range(500)))
    assert raw.info("clients")["connected_clients"] <= 10 + 1
    await backend.aclose()


async def test_scripts_survive_a_restart_of_the_server() -> None:
    with RedisServer() as server:
        backend = RedisBackend(server.url)
        await backend.lease("k", "r")
        server.kill()
        with pytest.raises(CacheUnavailable):
            await backend.get("k")
        server.start()
        assert await backend.lease("k", "r") is Standing.NOTHING
        await backend.aclose()


async def test_without_memory_nothing_old_is_served() -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as raw:
        backend = RedisBackend(server.url)
        await backend.lease("k", "r")
        await backend.offer("k", "r", entry_of(1))
        raw.config_set("maxmemory-policy", "noeviction")
        raw.config_set("maxmemory", 1)
        with pytest.raises(CacheUnavailable):
            await backend.fence("k", "w")
        with pytest.raises(CacheUnavailable):
            await backend.lease("other", "r")
        raw.config_set("maxmemory", 0)
        await backend.aclose()


@pytest.mark.parametrize("protocol", ["2", "3"])
async def test_the_protocol_can_be_chosen_in_the_url(url: str, protocol: str) -> None:
    backend = RedisBackend(f"{url}?protocol={protocol}")
    await backend.ping()
    assert await backend.lease("protocol", "r") in {Standing.NOTHING, Standing.LEASE}
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
    ],
)
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL") as failure:
        from_settings(CacheSettings(backend="redis", redis_url=url))
    assert "s3cret" not in str(failure.value)


async def test_what_the_settings_make_is_guarded(url: str) -> None:
    backend = make_backend(CacheSettings(backend="redis", redis_url=url))
    assert type(backend).__name__ == "Guard"
    assert backend.name == "redis"
    await backend.aclose()
