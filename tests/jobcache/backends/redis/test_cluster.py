"""Redis Cluster: each key at its slot's owner, wherever that has gone, and every primary's life."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from app.devservers import RedisServer, free_port
from app.devservers.cluster import SLOTS, RedisCluster
from jobcache import CacheSettings, CacheUnavailable, JobCache
from jobcache.backends.redis.backend import RedisBackend
from jobcache.backends.registry import make_backend
from jobcache.backends.tiered import TieredBackend
from jobcache.errors import UnreadableCell
from jobcache.protocol.backend import CacheBackend, PublishResult
from jobcache.testing import conformance
from jobcache.testing.conformance import Check
from jobcache.testing.simulation import entry_of
from tests.jobcache.at_work import Jobs
from tests.jobcache.testing.test_state_machine import Machine, run_machine
from tests.subjects import REDIS_SERVERS, TieredSubject, shorten

numbers = itertools.count()
FIRST, *_, LAST = [*REDIS_SERVERS, *REDIS_SERVERS]


@pytest.fixture(scope="module", params=REDIS_SERVERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[RedisCluster]:
    program: Path = REDIS_SERVERS[request.param]
    with RedisCluster(program, replicas=1, spares=1, node_timeout=0.6) as cluster:
        yield cluster


class ClusterSubject:
    """A backend on flushed primaries; what `RedisSubject` does, on each of them."""

    def __init__(self, cluster: RedisCluster) -> None:
        self.raw = {node.port: redis.Redis(port=node.port) for node in primaries(cluster)}
        for client in self.raw.values():
            client.flushall()
        self.cluster = cluster
        self.backend = RedisBackend(cluster.url, prefix="test:")

    async def evict(self, key: str) -> None:
        name = f"test:{key}"
        self.raw[self.cluster.owner(key_slot(name.encode())).port].delete(name)

    async def elapse(self, seconds: float) -> None:
        for client in self.raw.values():
            shorten(client, seconds)

    async def aclose(self) -> None:
        await self.backend.aclose()
        for client in self.raw.values():
            client.close()


def primaries(cluster: RedisCluster) -> list[RedisServer]:
    """The owner may be another one after a failover."""
    return list({cluster.owner(slot): None for slot in (0, SLOTS // 2, SLOTS - 1)})


@pytest.fixture
async def subject(cluster: RedisCluster) -> AsyncIterator[ClusterSubject]:
    subject = ClusterSubject(cluster)
    yield subject
    await subject.aclose()


@pytest.fixture
async def backend(subject: ClusterSubject) -> RedisBackend:
    return subject.backend


async def store(backend: CacheBackend, key: str, version: int) -> None:
    await backend.fence(key, f"w{version}")
    assert await backend.publish(key, f"w{version}", entry_of(version)) is PublishResult.STORED


def name_of(node: RedisServer) -> str:
    return f"127.0.0.1:{node.port}"


@asynccontextmanager
async def two_tiered(cluster: RedisCluster) -> AsyncIterator[TieredSubject]:
    """Two instances on flushed primaries, once their feeds report the changes of each primary."""
    client = redis.RedisCluster(host="127.0.0.1", port=cluster.owner(0).port)
    tags = [tag_of(cluster, node) for node in primaries(cluster)]
    subject = TieredSubject(cluster.url, 2, raw=client, tags=tags)
    try:
        await subject.start()
        yield subject
    finally:
        await subject.aclose()


def tag_of(cluster: RedisCluster, node: RedisServer) -> str:
    """A hash tag of a slot that `node` owns, another one each time."""
    tags = (f"{{{next(numbers)}}}" for _ in itertools.count())
    return next(tag for tag in tags if cluster.owner(key_slot(tag.encode())) is node)


@pytest.mark.parametrize(
    "cluster",
    [
        # What a cluster adds is in the client, so a short run takes one of the servers.
        pytest.param(server, marks=[] if server == LAST else pytest.mark.long)
        for server in REDIS_SERVERS
    ],
    indirect=True,
)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_a_cluster_keeps_the_contract(subject: ClusterSubject, check: Check) -> None:
    await check(subject)


@pytest.mark.parametrize("cluster", [FIRST], indirect=True)
@pytest.mark.parametrize("check", conformance.CHECKS, ids=lambda check: check.__name__)
async def test_two_tiered_on_a_cluster_keep_the_contract(
    cluster: RedisCluster, check: Check
) -> None:
    async with two_tiered(cluster) as subject:
        await check(subject)


def test_a_cluster_agrees_with_the_model(cluster: RedisCluster) -> None:
    class OnACluster(Machine):
        def make(self) -> ClusterSubject:
            return ClusterSubject(cluster)

        def teardown(self) -> None:
            assert isinstance(self.subject, ClusterSubject)
            self.run(self.subject.aclose())

    run_machine(OnACluster, 8)


async def test_commands_of_one_turn_take_one_round_trip_to_each_primary(
    subject: ClusterSubject, backend: RedisBackend
) -> None:
    keys = [f"job:{number}:progress" for number in range(60)]
    await asyncio.gather(*(store(backend, key, 3) for key in keys))
    await backend.get_many(keys)  # connections are made for it

    def counted(*what: str) -> dict[int, list[int]]:
        seen = {}
        for port, client in subject.raw.items():
            stats, commands = client.info("stats"), client.info("commandstats")
            seen[port] = [
                stats["total_reads_processed"],
                *(commands.get(f"cmdstat_{name}", {}).get("calls", 0) for name in what),
            ]
        return seen

    def spent(before: dict[int, list[int]], after: dict[int, list[int]]) -> list[list[int]]:
        return [
            [new - old for old, new in zip(before[port], after[port], strict=True)]
            for port in before
        ]

    def one_round_trip(each: list[list[int]], packets: int = 1) -> bool:
        # Two of the reads are of the counting itself, and a few of what nodes tell each other.
        return all(2 < reads <= 4 + packets for reads, *_ in each)

    before = counted("get", "mget", "evalsha")
    found = await backend.get_many(keys)
    assert {entry.version for entry in found.values()} == {3}
    assert len(found) == len(keys)
    each = spent(before, counted("get", "mget", "evalsha"))
    assert one_round_trip(each)
    assert sum(gets for _, gets, *_ in each) == len(keys)
    assert min(gets for _, gets, *_ in each) > 5
    assert [others for *_, mget, evalsha in each for others in (mget, evalsha)] == [0] * 6

    before = counted("get", "evalsha")
    assert len(await backend.get_many([*keys, "nothing"])) == 60
    assert one_round_trip(spent(before, counted("get", "evalsha")))

    before = counted("evalsha")
    await asyncio.gather(*(backend.fence(key, "w") for key in keys[:30]))
    each = spent(before, counted("evalsha"))
    assert one_round_trip(each, packets=2)  # the first script is sent at once
    assert sum(scripts for _, scripts in each) == 30


async def test_a_bad_cell_affects_no_other_poll(
    subject: ClusterSubject, backend: RedisBackend
) -> None:
    await store(backend, "good", 1)
    for key in ("list", "rubbish"):
        client = subject.raw[subject.cluster.owner(key_slot(f"test:{key}".encode())).port]
        if key == "list":
            client.rpush(f"test:{key}", "x")
        else:
            client.set(f"test:{key}", "x")
    keys = ["list", "rubbish", "good", "nothing"]
    found = await asyncio.gather(*map(backend.get, keys), return_exceptions=True)
    assert [type(each) for each in found[:2]] == [UnreadableCell, UnreadableCell]
    assert found[2:] == [entry_of(1), None]
    assert await backend.get_many(keys) == {"good": entry_of(1)}


async def test_the_namespace_is_emptied_on_every_primary(
    subject: ClusterSubject, backend: RedisBackend
) -> None:
    for client in subject.raw.values():
        while True:  # until it is a key of this one's
            theirs = f"theirs:{next(numbers)}"
            try:
                client.set(theirs, "value")
            except redis.ResponseError:
                continue
            break
    await asyncio.gather(*(store(backend, f"k{number}", 1) for number in range(90)))
    assert await backend.purge_all() == 90
    assert [client.dbsize() for client in subject.raw.values()] == [1, 1, 1]


async def test_every_primary_has_a_feed_with_a_key_that_it_owns(
    cluster: RedisCluster, backend: RedisBackend
) -> None:
    before = backend.generation
    endpoints = await backend.primaries()
    assert {endpoint.name for endpoint in endpoints} == {
        name_of(node) for node in primaries(cluster)
    }
    assert backend.generation > before
    before = backend.generation
    for endpoint in endpoints:
        connection = endpoint.connect(protocol=3, socket_timeout=5.0)
        await connection.connect()  # type: ignore[no-untyped-call]
        await connection.send_command("SET", endpoint.heartbeat_key("here"), "1", "PX", 1000)
        assert await connection.read_response() == b"OK"
        await connection.disconnect()
    assert all(
        endpoint.heartbeat_key("here").startswith("test:jobcache:beat:here")
        for endpoint in endpoints
    )
    await backend.ping()
    assert backend.generation == before


async def test_one_node_that_is_up_is_enough_to_find_the_others(cluster: RedisCluster) -> None:
    dead = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    backend = RedisBackend(f"redis+cluster://{','.join([*dead, name_of(cluster.nodes[1])])}")
    await asyncio.gather(*(store(backend, f"k{number}", 1) for number in range(10)))
    await backend.aclose()
    nowhere = RedisBackend(f"redis+cluster://{','.join(dead)}")
    for operation in (nowhere.get("k"), nowhere.ping(), nowhere.primaries(), nowhere.purge_all()):
        with pytest.raises(CacheUnavailable):
            await operation
    await nowhere.aclose()


async def test_a_node_of_a_cluster_taken_for_a_lone_server_is_unavailable(
    cluster: RedisCluster,
) -> None:
    backend = RedisBackend(cluster.owner(0).url)
    with pytest.raises(CacheUnavailable, match="MovedError"):
        await asyncio.gather(*(backend.lease(f"k{number}", "r") for number in range(20)))
    await backend.aclose()


async def test_a_primary_that_hangs_holds_up_its_own_keys_only(
    cluster: RedisCluster, backend: RedisBackend
) -> None:
    keys = [f"k{number}" for number in range(30)]
    await asyncio.gather(*(store(backend, key, 1) for key in keys))
    hanging = cluster.owner(0)
    theirs = [key for key in keys if cluster.owner(key_slot(f"test:{key}".encode())) is hanging]
    hanging.pause()
    gets = {key: asyncio.create_task(backend.get(key)) for key in keys}
    await asyncio.wait([gets[key] for key in keys if key not in theirs])
    assert theirs
    assert not any(gets[key].done() for key in theirs)
    pinging = asyncio.create_task(backend.ping())
    hanging.resume()
    assert [await gets[key] for key in keys] == [entry_of(1)] * 30
    await pinging


# --- slots that move, primaries that go ---


def keys_of(cluster: RedisCluster, node: RedisServer, count: int) -> list[str]:
    """New keys of one slot that `node` owns."""
    tag = tag_of(cluster, node)
    return [f"job:{tag}:{next(numbers)}" for _ in range(count)]


def guarded(cluster: RedisCluster) -> JobCache:
    return JobCache(make_backend(CacheSettings(backend="redis", redis_url=cluster.url)))


async def test_a_slot_moves_while_its_keys_are_read_and_written(cluster: RedisCluster) -> None:
    """To a node that had none, and back: nobody gets an error, or anything old."""
    source, newcomer = cluster.owner(SLOTS // 2), cluster.nodes[-1]
    keys = keys_of(cluster, source, 12)
    slot = key_slot(keys[0].encode())
    caches = [JobCache(RedisBackend(cluster.url)) for _ in range(2)]
    jobs = Jobs(keys, *caches)
    async with jobs.at_work():
        for target in (newcomer, source):
            await asyncio.to_thread(list, steps(cluster.move_slot(slot, target)))
    assert cluster.owner(slot) is source
    assert jobs.errors == 0
    for node in (source, newcomer):
        replies = cluster.order(node, "INFO errorstats")
        assert "errorstat_ASK" in replies
        assert "errorstat_MOVED" in replies
    await jobs.until_all_are_hits()
    for cache in caches:
        await cache.aclose()


def steps(moving: Iterator[str]) -> Iterator[str]:
    """Each with a while before the next."""
    for step in moving:
        time.sleep(0.02)
        yield step


async def test_entries_of_a_node_without_a_feed_are_confirmed(
    cluster: RedisCluster,
) -> None:
    """Another process may change it there without a report, until the slot map shows the node."""
    source, newcomer = cluster.owner(SLOTS // 2), cluster.nodes[-1]
    (key,) = keys_of(cluster, source, 1)
    slot = key_slot(key.encode())
    cluster.order(source, "FLUSHALL")
    backend = RedisBackend(cluster.url)
    await store(backend, key, 1)
    moving = cluster.move_slot(slot, newcomer)
    assert [next(moving), next(moving)] == ["announced", "a key moved"]
    assert await backend.get(key) is None, "it bears the other's id"
    await store(backend, key, 2)
    confirm = entry_of(2).past_its_freshness()
    assert [await backend.get(key), await backend.lease(key, "r")] == [confirm, confirm]
    backend._topology.refresh_soon()
    await asyncio.sleep(0.05)  # it has just looked when it hears of the move, and looks once more
    assert list(moving) == ["done"]
    before = backend.generation
    async with asyncio.timeout(60):
        while await backend.get(key) != entry_of(2):
            await asyncio.sleep(0.01)
    assert backend.generation > before
    assert name_of(newcomer) in {endpoint.name for endpoint in await backend.primaries()}
    list(cluster.move_slot(slot, source))
    await backend.aclose()


async def test_changes_on_a_node_that_gets_its_first_slot_are_reported(
    cluster: RedisCluster,
) -> None:
    source, newcomer = cluster.owner(SLOTS // 2), cluster.nodes[-1]
    async with two_tiered(cluster) as subject:
        here, there = subject.instances
        (key,) = keys_of(cluster, source, 1)
        await store(here, key, 1)
        await until_local(there, key, 1)
        list(cluster.move_slot(key_slot(key.encode()), newcomer))
        await until(lambda: there.peek(key) is None)  # its old owner has reported its removal
        for version in (2, 3):
            await store(here, key, version)
            await until_local(there, key, version)
        assert there.feed().condition().interruptions >= 1
        list(cluster.move_slot(key_slot(key.encode()), source))


async def until_local(tiers: TieredBackend, key: str, version: int) -> None:
    """Until a hit is served from this process, and it is that version."""
    async with asyncio.timeout(60):
        while (local := tiers.peek(key)) is None or local.version < version:
            await tiers.get(key)
            await asyncio.sleep(0.01)


async def test_a_replica_takes_over_while_its_primary_lives(cluster: RedisCluster) -> None:
    """An operator's failover costs nobody anything."""
    slot = SLOTS - 1
    primary = cluster.owner(slot)
    jobs = Jobs(keys_of(cluster, primary, 6), JobCache(RedisBackend(cluster.url)))
    replica = replica_of(cluster, primary)
    async with jobs.at_work():
        await asyncio.sleep(0.1)
        cluster.order(replica, "CLUSTER", "FAILOVER")
        await until(lambda: cluster.owner(slot) is replica)
        await asyncio.sleep(0.1)
    assert jobs.errors == 0
    await jobs.until_all_are_hits()
    await jobs.caches[0].aclose()


@pytest.mark.parametrize("cluster", [FIRST], indirect=True)
async def test_a_primary_is_killed_and_its_replica_promoted(cluster: RedisCluster) -> None:
    """With the first program; with the last, the service's tests do it."""
    cluster.wait_until_well()
    slot = 0
    primary = cluster.owner(slot)
    others = cluster.owner(SLOTS // 2)
    keys = [*keys_of(cluster, primary, 5), *keys_of(cluster, others, 5)]
    jobs = Jobs(keys, guarded(cluster), guarded(cluster))
    async with jobs.at_work():
        await asyncio.sleep(0.1)
        primary.kill()
        await until(lambda: cluster.owner(slot) is not primary)
        await until(lambda: all(cache.info().health.available for cache in jobs.caches))
    await jobs.until_all_are_hits()
    primary.start()
    cluster.wait_until_well()
    async with jobs.at_work():
        await asyncio.sleep(0.1)
    await jobs.until_all_are_hits()
    for cache in jobs.caches:
        await cache.aclose()


def replica_of(cluster: RedisCluster, primary: RedisServer) -> RedisServer:
    lines = cluster.order(cluster.nodes[0], "CLUSTER", "NODES").splitlines()
    mine = next(line for line in lines if line.split()[3] == cluster.id_of(primary))
    port = int(mine.split()[1].partition("@")[0].rpartition(":")[2])
    return next(node for node in cluster.nodes if node.port == port)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)
