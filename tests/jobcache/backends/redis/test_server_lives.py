"""A Redis that comes back as another: from an old dump, as a promoted replica, after a demotion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import uvloop
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError

from app.devservers import RedisServer
from jobcache import CacheUnavailable
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.redis.server import Cells, Server
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.testing.simulation import entry_of
from loadtests.freshness.proxy import Proxy
from tests.subjects import REDIS_SERVERS

PROGRAMS = list(REDIS_SERVERS)
AT_ONCE = ("--repl-diskless-sync-delay", "0")
"""A replica is in step at once, rather than after five seconds."""


@pytest.fixture(params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Path:
    path: Path = REDIS_SERVERS[request.param]
    return path


@pytest.fixture
def server(program: Path) -> Iterator[RedisServer]:
    valkey = ("--enable-debug-command", "yes") if "valkey" in program.name else ()
    with RedisServer(program, arguments=("--dbfilename", "old.rdb", *valkey)) as server:
        yield server


def client(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port)


def only_server(backend: RedisBackend) -> Server:
    """What the backend knows it by."""
    [server] = backend._topology.servers()
    assert isinstance(server, Server)
    return server


def cells_of(cells: Cells, _: str) -> Cells:
    """Return the bytes of the cells."""
    return cells


async def drop_connections(backend: RedisBackend) -> None:
    """The next commands need new connections."""
    for way in (only_server(backend)._reads, only_server(backend)._scripted):
        await way.aclose()


async def store(backend: RedisBackend, key: str, version: int) -> None:
    await backend.fence(key, f"w{version}")
    assert await backend.publish(key, f"w{version}", entry_of(version)) is PublishResult.STORED


def until(condition: str, server: RedisServer) -> None:
    """Wait until `INFO replication` says so."""
    deadline = time.monotonic() + 60
    with client(server) as raw:
        while condition not in raw.execute_command("INFO", "replication").__repr__():
            assert time.monotonic() < deadline, raw.info("replication")
            time.sleep(0.01)


def synced(replica: RedisServer, master: RedisServer) -> None:
    with client(replica) as raw:
        raw.replicaof("127.0.0.1", master.port)
    until("'master_link_status': 'up'", replica)


async def test_a_dump_from_before_brings_nothing_back(server: RedisServer) -> None:
    """Neither entries, nor fences whose writers have gone, nor leases that were overtaken."""
    backend = RedisBackend(server.url)
    await store(backend, "entry", 1)
    await backend.fence("fence", "w1")
    await backend.fence("another fence", "dead")
    await backend.lease("lease", "r")
    with client(server) as raw:
        raw.save()
    await store(backend, "entry", 2)
    await backend.fence("fence", "w2")
    await backend.publish("fence", "w2", entry_of(3))
    await backend.publish("fence", "w1", None)
    await store(backend, "lease", 2)
    server.kill()
    server.start()
    with client(server) as raw:
        keys = [b"another fence", b"entry", b"fence", b"lease"]
        assert sorted(raw.keys("*")) == keys, "the dump was loaded"
    assert await backend.get("entry") is None
    assert await backend.get_many(["entry", "fence", "lease"]) == {}
    assert await backend.publish("fence", "w1", entry_of(2)) is PublishResult.NOTHING
    assert await backend.publish("lease", "r", entry_of(1)) is PublishResult.NOTHING
    assert await backend.get_many(["fence", "lease"]) == {}
    await backend.fence("another fence", "w3")
    assert await backend.publish("another fence", "w3", entry_of(4)) is PublishResult.STORED
    assert await backend.lease("entry", "r2") is LeaseResult.ACQUIRED
    assert await backend.publish("entry", "r2", entry_of(2)) is PublishResult.STORED
    assert await backend.get("entry") == entry_of(2)
    await backend.aclose()


async def test_a_process_that_was_not_there_before_the_restart_knows_as_well(
    server: RedisServer,
) -> None:
    before = RedisBackend(server.url)
    await store(before, "k", 1)
    await before.aclose()
    with client(server) as raw:
        raw.save()
    server.kill()
    server.start()
    after = RedisBackend(server.url)
    assert await after.get("k") is None
    await after.fence("k", "w")
    assert await after.publish("k", "w", entry_of(1)) is PublishResult.STORED, (
        "its floor is not the old"
    )
    await after.aclose()


async def test_a_script_that_crosses_a_restart_bears_the_incarnation_of_where_it_arrives(
    server: RedisServer,
) -> None:
    """It is sent again on a new connection, and made anew for it."""
    backend = RedisBackend(server.url)
    await backend.fence("k", "w")
    server.kill()
    server.start()
    await backend.fence("k", "w")
    assert await backend.lease("k", "r") is LeaseResult.FENCED
    server.kill()
    server.start()
    assert await backend.publish("k", "w", entry_of(1)) is PublishResult.NOTHING
    assert await backend.lease("k", "r") is LeaseResult.ACQUIRED, "that fence is nobody's"
    server.kill()
    server.start()
    assert await backend.lease("k", "r") is LeaseResult.ACQUIRED
    assert await backend.publish("k", "r", entry_of(1)) is PublishResult.STORED
    assert await backend.get("k") == entry_of(1)
    await backend.aclose()


async def test_a_promoted_replica_that_lagged_serves_nothing_old(program: Path) -> None:
    with (
        RedisServer(program, arguments=AT_ONCE) as master,
        RedisServer(program, arguments=AT_ONCE) as replica,
    ):
        backend = RedisBackend(master.url)
        await store(backend, "k", 1)
        synced(replica, master)
        with client(replica) as raw:
            raw.replicaof("NO", "ONE")  # before it has heard of the next version
            await store(backend, "k", 2)
            await backend.aclose()
            master.kill()
            assert b"|1|1700000000000|" in (raw.get("k") or b""), "it has the old version"
        promoted = RedisBackend(replica.url)
        assert await promoted.get("k") is None
        await promoted.aclose()


async def test_a_master_that_was_demoted_and_promoted_again_serves_nothing_old(
    program: Path,
) -> None:
    """Its `run_id` is the same, its connections have stayed, and it lacks what came between."""
    with (
        RedisServer(program, arguments=AT_ONCE) as server,
        RedisServer(program, arguments=AT_ONCE) as other,
    ):
        here = RedisBackend(server.url)
        await store(here, "k", 1)
        assert await here.get("k") is not None
        synced(other, server)
        with client(other) as raw:
            raw.replicaof("NO", "ONE")
        synced(server, other)
        with client(server) as raw:
            raw.replicaof("NO", "ONE")  # before it has heard of the next version
        there = RedisBackend(other.url)
        await store(there, "k", 2)
        await there.aclose()
        assert await here.get("k") is not None, "so far it cannot know"
        await here.ping()  # as a guard does that was refused a write meanwhile
        assert await here.get("k") is None
        await here.aclose()


async def test_a_cell_of_another_incarnation_makes_the_server_verify_its_identity(
    server: RedisServer,
) -> None:
    """A master without replicas changes its replication id after a while; nothing else tells."""
    now = 100.0
    backend = RedisBackend(server.url, clock=lambda: now)
    await store(backend, "k", 1)
    assert await backend.get("k") is not None
    elsewhere = RedisBackend(server.url)
    with client(server) as raw:
        raw.execute_command("DEBUG", "CHANGE-REPL-ID")  # under connections that stay
    await store(elsewhere, "k", 2)
    await elsewhere.aclose()
    assert await backend.get("k") is None
    async with asyncio.timeout(60):
        while await backend.get("k") is None:
            await asyncio.sleep(0.001)
    asked: list[float] = []

    async def counted(_: str) -> None:
        asked.append(now)

    only_server(backend).ping = counted  # type: ignore[method-assign]
    with client(server) as raw:
        raw.set("foreign", b"E1|elsewhere|1|")
    for now in (100.0, 100.9, 101.1, 101.9, 102.2):  # noqa: B007 - read by the clock
        for _ in range(3):
            assert await backend.get("foreign") is None
            await asyncio.sleep(0)
    assert asked == [101.1, 102.2], "once a second at most"
    await backend.aclose()


async def test_a_server_that_refuses_info_is_used_with_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with RedisServer() as server:
        with client(server) as raw:
            raw.acl_setuser(
                "app", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"]
            )
        backend = RedisBackend(server.url.replace("redis://", "redis://app:@"), connections=3)
        await asyncio.gather(*(store(backend, f"k{n}", 1) for n in range(200)))
        assert await backend.get("k7") == entry_of(1)
        await backend.aclose()
    assert len(caplog.records) == 1
    assert "does not report its run_id" in caplog.text


async def test_a_connection_that_is_given_up_while_it_is_greeted_answers_nobody_else(
    server: RedisServer,
) -> None:
    backend = RedisBackend(server.url, connections=1)
    with client(server) as raw:
        raw.set("k", "not a cell of ours")
    for steps in range(5, 50, 5):
        await drop_connections(backend)
        server.pause()  # connects, and hears nothing
        fetching = only_server(backend).read(["k"], cells_of)
        for _ in range(steps):
            await asyncio.sleep(0.001)
        fetching.cancel()
        await asyncio.wait({fetching})
        following = only_server(backend).read(["k"], cells_of)
        await asyncio.sleep(0)
        server.resume()
        assert await following == [b"not a cell of ours"]
    await backend.aclose()


async def test_a_connection_that_is_lost_while_it_is_made_is_made_again(
    server: RedisServer,
) -> None:
    backend = RedisBackend(server.url, connections=1)
    learn, losses = backend._namespace.learn_incarnation, 0

    async def lost(connection: AbstractConnection) -> str:
        nonlocal losses
        if losses:
            losses -= 1
            raise RedisConnectionError("reset")
        return await learn(connection)

    only_server(backend).identity.learn = lost
    losses = 1
    await backend.fence("k", "w")
    assert await backend.lease("k", "r") is LeaseResult.FENCED
    losses = 10
    await drop_connections(backend)
    with pytest.raises(CacheUnavailable):
        await backend.fence("k", "w")
    assert losses == 8, "once more, not for ever"
    await backend.aclose()


async def test_a_server_that_takes_no_writes_is_looked_for_on_a_new_connection(
    server: RedisServer,
) -> None:
    """For a name may lead to the next master by then; and there is no third try."""
    backend = RedisBackend(server.url)
    with client(server) as raw:
        await backend.fence("k", "w")
        raw.replicaof("127.0.0.1", "1")
        pipelined = only_server(backend)._scripted._connection
        raw.config_resetstat()
        with pytest.raises(CacheUnavailable, match="read only replica"):
            await backend.fence("k", "other")
        calls = raw.info("commandstats")["cmdstat_evalsha"]["calls"]
        again = only_server(backend)._scripted._connection is not pipelined
        assert (again, calls) == (True, 2)
        raw.replicaof("NO", "ONE")
    await backend.fence("k", "other")
    await backend.aclose()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_operation_survives_that_its_connection_was_closed_meanwhile(
    loop: Callable[[], asyncio.AbstractEventLoop], server: RedisServer
) -> None:
    """Whatever the event loop calls that."""

    async def operate() -> None:
        proxy = Proxy(server.port)
        await proxy.start()
        backend = RedisBackend(f"redis://127.0.0.1:{proxy.port}/0")
        try:
            await store(backend, "k", 1)
            for version in range(2, 60):
                proxy.cut()
                for _ in range(version % 5):
                    await asyncio.sleep(0)  # it is noticed in the pool, or on the way
                await backend.fence("k", f"w{version}")
                proxy.cut()
                for _ in range(version % 3):
                    await asyncio.sleep(0)
                assert (
                    await backend.publish("k", f"w{version}", entry_of(version))
                    is PublishResult.STORED
                )
                proxy.cut()
                assert await backend.get("k") == entry_of(version)
        finally:
            await backend.aclose()
            await proxy.aclose()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(operate())
