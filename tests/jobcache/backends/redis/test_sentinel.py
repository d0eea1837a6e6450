"""Redis behind sentinels: the present master is used, and no earlier one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from app.devservers import RedisServer, free_port
from app.devservers.redis import order
from app.devservers.sentinel import RedisSentinels
from jobcache import CacheUnavailable
from jobcache.backends.redis.backend import RedisBackend
from jobcache.protocol.backend import PublishResult
from jobcache.testing.simulation import entry_of
from tests.subjects import REDIS_SERVERS


@pytest.fixture(scope="module")
def sentinels() -> Iterator[RedisSentinels]:
    """Of the first program; those of the last are the service's tests'."""
    program = next(iter(REDIS_SERVERS.values()))
    with RedisSentinels(program, replicas=2, down_after=0.4) as sentinels:
        yield sentinels


async def store(backend: RedisBackend, key: str, version: int) -> None:
    await backend.fence(key, f"w{version}")
    assert await backend.publish(key, f"w{version}", entry_of(version)) is PublishResult.STORED


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


def name_of(server: RedisServer) -> str:
    return f"127.0.0.1:{server.port}"


async def test_one_sentinel_that_is_up_is_enough(sentinels: RedisSentinels) -> None:
    """One hangs, and one is not there."""
    hanging, living, _ = sentinels.sentinels
    endpoints = f"127.0.0.1:{hanging.port},127.0.0.1:{free_port()},127.0.0.1:{living.port}"
    backend = RedisBackend(f"redis+sentinel://{endpoints}/{sentinels.service}", socket_limit=60)
    master = sentinels.master()
    hanging.pause()
    try:
        async with asyncio.timeout(30):  # half of its own patience with one that hangs
            await backend.ping()
        await store(backend, "one", 1)
        assert await backend.get("one") == entry_of(1)
        [endpoint] = await backend.primaries()
        assert endpoint.name == name_of(master)
        connection = endpoint.connect(protocol=3, socket_timeout=5.0)
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("SET", endpoint.heartbeat_key("here"), "1", "PX", 1000)
        assert await connection.read_response() == b"OK"
        await connection.disconnect()
    finally:
        hanging.resume()
        await backend.aclose()


async def test_a_service_or_sentinels_that_are_not_there_are_unavailable(
    sentinels: RedisSentinels,
) -> None:
    for url in (
        f"redis+sentinel://127.0.0.1:{free_port()}/{sentinels.service}",
        sentinels.url.replace(f"/{sentinels.service}/", "/nobody/"),
    ):
        backend = RedisBackend(url)
        for operation in (backend.get("k"), backend.ping(), backend.primaries()):
            with pytest.raises(CacheUnavailable):
                await operation
        await backend.aclose()


async def test_a_replica_that_the_sentinels_name_is_refused(
    sentinels: RedisSentinels, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = RedisBackend(sentinels.url)
    with RedisServer() as replica:
        order(replica.port, "REPLICAOF", "127.0.0.1", 1)  # of nobody: the sentinels are not to know

        async def wrong(_: str) -> tuple[str, int]:
            return "127.0.0.1", replica.port

        monkeypatch.setattr(backend._topology._sentinels, "discover_master", wrong)  # type: ignore[attr-defined]
        with pytest.raises(CacheUnavailable, match="have named a replica"):
            await backend.get("k")
    await backend.aclose()


async def test_no_connection_stays_on_a_deposed_master(sentinels: RedisSentinels) -> None:
    """It lives, and goes on taking reads and writes; who was connected to it must not stay.

    That a master is killed is the service's own test.
    """
    here, there = [RedisBackend(sentinels.url) for _ in range(2)]
    old = sentinels.master()
    await store(here, "k", 1)
    assert await there.get("k") == entry_of(1)
    before = here.generation, there.generation
    sentinels.fail_over()
    await until(lambda: here.generation > before[0] and there.generation > before[1])
    assert "role:master" in order(old.port, "INFO replication"), "it does not know yet"
    await there.ping()
    await store(there, "k", 2)
    assert await here.get("k") == entry_of(2)
    await here.fence("k", "w3")
    assert await there.get("k") is None
    sentinels.wait_until_another_is_master(than=old)
    assert [endpoint.name for endpoint in await here.primaries()] == [name_of(sentinels.master())]
    await here.aclose()
    await there.aclose()
