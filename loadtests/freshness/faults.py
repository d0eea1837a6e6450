"""What can go wrong with Redis, the network, the database and the service, and how it is done.

Each fault is a coroutine that returns once it is healed, and raises `NotInjected` if it did not
come about.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from loadtests.freshness.cluster import new_redis
from loadtests.freshness.incident import Fault, Incident, NotInjected, network, to_its_end, until
from loadtests.freshness.postgres_faults import POSTGRES_FAULTS
from loadtests.freshness.proxy import HOST, Proxy

if TYPE_CHECKING:
    from redis.asyncio import Redis

_UNTIL = 30.0  # seconds for something to come about that should
_LOOK = 0.01  # seconds between two looks
_JUNK = b"x" * 16_384
_ROOM = 1024 * 1024  # bytes that are left before Redis is filled
_NOTICED = 2.0  # seconds until every process has noticed that its address leads elsewhere
_UNDER_WAY = 0.5  # seconds for changes that are under way
_CUTS = 40
_KILLS = 8
_BOTH_REMAIN = 3  # processes, of which one can be replaced
_NO_ONE = {"-1", "0"}  # whom reports are redirected to, where they are not


# --- the service ---


async def kill_service(incident: Incident) -> None:
    """Kill a process between a commit and its publish, and start it again."""
    victim = incident.victim
    victim.doomed = True
    if incident.cluster.shares:
        victim.arm()
        await until(lambda: not victim.alive, "no write came to its publish")
    victim.down = True
    await to_its_end(victim.kill)
    await asyncio.sleep(incident.rng.uniform(0.1, 0.5))
    victim.start()
    await victim.wait_until_ready()


async def replace(incident: Incident) -> None:
    """Stop a process in order, and start one of the other version in its place."""
    cluster, victim = incident.cluster, incident.victim
    older = [each for each in cluster.services if each.version is not None]
    newer = [each for each in cluster.services if each.version is None]
    if len(older) + len(newer) < _BOTH_REMAIN:
        raise NotInjected("too few processes: one version would be gone")
    if len(older) != len(newer):
        victim = incident.rng.choice(max(older, newer, key=len))
    victim.doomed = victim.down = True
    await to_its_end(victim.stop)
    victim.version = cluster.older if victim.version is None else None
    victim.start()
    await victim.wait_until_ready()


# --- Redis itself ---


async def restart(incident: Incident) -> None:
    """Kill Redis, and start it again empty."""
    server = incident.cluster.redis
    async with incident.cluster.admin() as admin:
        (await _dump_of(admin)).unlink(missing_ok=True)  # a replica's copy may have left one
    await to_its_end(server.kill)
    await asyncio.sleep(incident.rng.uniform(0.05, 1))
    await to_its_end(server.start)


async def pause(incident: Incident) -> None:
    """Freeze Redis, then let it continue with the commands that have queued up."""
    server = incident.cluster.redis
    await to_its_end(server.pause)
    try:
        await asyncio.sleep(incident.rng.uniform(0.5, 1.5))
    finally:
        await to_its_end(server.resume)


async def flush(incident: Incident) -> None:
    """Flush Redis several times within a second."""
    async with incident.cluster.admin() as admin:
        for _ in range(5):
            await admin.flushall()
            await asyncio.sleep(incident.rng.uniform(0, 0.3))


async def full(incident: Incident) -> None:
    """Fill Redis, without eviction; cells that expire meanwhile free a little memory."""
    async with incident.cluster.admin() as admin:
        used = (await admin.info("memory"))["used_memory"]
        await admin.config_set("maxmemory-policy", "noeviction")
        await admin.config_set("maxmemory", used + _ROOM)
        refused = 0
        try:
            ends = time.monotonic() + incident.rng.uniform(0.8, 1.6)
            while time.monotonic() < ends:
                try:
                    await admin.append("junk", _JUNK)
                except RedisError:
                    refused += 1
                    await asyncio.sleep(_LOOK)
        finally:
            await admin.config_set("maxmemory", 0)
            await admin.delete("junk")
    if not refused:
        raise NotInjected("Redis did not fill up")


async def read_only(incident: Incident) -> None:
    """Make Redis refuse writes, as a replica does, or a master without its replicas."""
    as_replica = incident.rng.random() < 1 / 2
    async with incident.cluster.admin() as admin:
        try:
            if as_replica:
                await admin.replicaof(HOST, 1)  # where nobody is
            else:
                await admin.config_set("min-replicas-to-write", 1)
            await asyncio.sleep(incident.rng.uniform(0.5, 1.5))
            try:
                await admin.set("junk", "")
            except RedisError:
                pass
            else:
                raise NotInjected("Redis took a write")
        finally:
            await admin.replicaof("NO", "ONE")
            await admin.config_set("min-replicas-to-write", 0)


async def old_dump(incident: Incident) -> None:
    """Kill Redis, and start it again with its content of a moment before."""
    server = incident.cluster.redis
    async with incident.cluster.admin() as admin:
        dump = await _dump_of(admin)
        await admin.save()
    # Not for long, or nothing in the dump would be fresh any more.
    await asyncio.sleep(incident.rng.uniform(0.2, 0.4) * incident.freshness)
    await to_its_end(server.kill)
    await to_its_end(server.start)
    dump.unlink()
    async with incident.cluster.admin() as admin:
        if (await admin.info("persistence")).get("rdb_last_load_keys_loaded") == 0:
            raise NotInjected("nothing was in the dump")


async def promote(incident: Incident) -> None:
    """Kill Redis, and replace it by a replica that lags behind."""
    cluster = incident.cluster
    link, replica = Proxy(cluster.redis.port), new_redis()
    try:
        await link.start()
        await to_its_end(replica.start)
        async with cluster.admin(replica) as admin:
            await admin.replicaof(HOST, link.port)
            await _in_step(admin)
            link.hold()
            await asyncio.sleep(incident.rng.uniform(0.2, 0.4) * incident.freshness)
            await to_its_end(cluster.redis.kill)
            link.cut()
            await admin.replicaof("NO", "ONE")
        cluster.replace_redis(replica)
    except BaseException:
        replica.close()
        raise
    finally:
        await link.aclose()


async def repointed(incident: Incident) -> None:
    """Point the address at an empty master; the old one lives on as its replica, and lags.

    As after a change in DNS, or in a managed failover: connections to the old one stay open, and it
    goes on answering reads. Changes go through one process, so the others have no write that it
    would refuse.
    """
    cluster = incident.cluster
    if not any(proxy.connections for proxy in cluster.proxies):
        raise NotInjected("nobody was connected")
    successor = new_redis()
    link = Proxy(0)
    try:
        await to_its_end(successor.start)
        link.target = successor.port
        await link.start()
        link.hold()  # so that the old one does not copy what the new one has
        for service in cluster.services:
            service.reads_only = service is not incident.victim
        await asyncio.sleep(_UNDER_WAY)
        for proxy in cluster.proxies:
            proxy.target = successor.port
        async with cluster.admin() as admin:
            await admin.replicaof(HOST, link.port)
            await asyncio.sleep(incident.rng.uniform(1, 2) * _NOTICED)
        cluster.replace_redis(successor)
    except BaseException:
        successor.close()
        raise
    finally:
        for service in cluster.services:
            service.reads_only = False
        await link.aclose()


# --- the network ---


async def cut(incident: Incident) -> None:
    """Reset the connections to Redis one by one; new ones are accepted."""
    done = 0
    for _ in range(_CUTS):
        done += incident.rng.choice(incident.cluster.proxies).cut_one(incident.rng)
        await asyncio.sleep(incident.rng.uniform(0, 0.05))
    if not done:
        raise NotInjected("there was no connection")


async def unreachable(incident: Incident) -> None:
    """Reset all connections to Redis and refuse new ones; Redis keeps its content."""
    await network(incident.cluster.proxies, Proxy.refuse, incident.rng.uniform(0.3, 1.2))


async def black_hole(incident: Incident) -> None:
    """Deliver nothing between the services and Redis; all data arrives afterwards."""
    await network(incident.cluster.proxies, Proxy.hold, incident.rng.uniform(0.6, 2.5))


async def unreachable_for_one(incident: Incident) -> None:
    """Make Redis unreachable for one process, while the others continue to use it."""
    seconds = incident.bound + incident.rng.uniform(0.2, 1)
    await network([_proxy_of(incident)], Proxy.refuse, seconds)


async def black_hole_for_one(incident: Incident) -> None:
    """Deliver nothing between one process and Redis, while the others continue to use it."""
    seconds = incident.bound + incident.rng.uniform(0.2, 1)
    await network([_proxy_of(incident)], Proxy.hold, seconds)


# --- the feed of changes ---


async def feed_killed(incident: Incident) -> None:
    """Close the connections of the change feed again and again."""
    killed = 0
    async with incident.cluster.admin() as admin:
        for _ in range(_KILLS):
            for number in await _followers(admin):
                killed += await admin.client_kill_filter(_id=number)
            await asyncio.sleep(incident.rng.uniform(0, 0.4))
    if not killed:
        raise NotInjected("nobody followed the changes")


async def feed_black_hole(incident: Incident) -> None:
    """Do not deliver reports of changes, to one process or to all; deliver everything else."""
    proxies = incident.cluster.proxies
    if incident.rng.random() < 1 / 2:
        proxies = [_proxy_of(incident)]
    await network(proxies, Proxy.hold_feed, incident.rng.uniform(1, 4))


async def hello_refused(incident: Incident) -> None:
    """Make Redis refuse RESP3, so that the change feeds must start again."""
    proxies = incident.cluster.proxies
    async with incident.cluster.admin() as admin:
        for proxy in proxies:
            proxy.refuse_hello()
        try:
            for number in await _followers(admin):
                await admin.client_kill_filter(_id=number)
            await asyncio.sleep(incident.rng.uniform(1, 2))
            clients = await admin.client_list()
        finally:
            for proxy in proxies:
                proxy.heal()
    if all(each["redir"] in _NO_ONE for each in clients):
        raise NotInjected("nobody follows the changes in the older form")


async def _followers(admin: Redis) -> list[str]:
    return [each["id"] for each in await admin.client_list() if "t" in each["flags"]]


# --- the database ---


async def database(incident: Incident) -> None:
    """Stop PostgreSQL with all its connections, and start it again."""
    postgres = incident.cluster.postgres
    await to_its_end(postgres.stop)
    # Sometimes for longer than a change feed may lag, where there is one.
    await asyncio.sleep(0.3 + incident.rng.uniform(0, incident.freshness))
    await to_its_end(postgres.start)


FAULTS: dict[str, Fault] = {
    "kill-service": Fault("fresh", kill_service, needs=""),
    "replace": Fault("fresh", replace, needs="older"),
    "restart": Fault("fresh", restart),
    "pause": Fault("fresh", pause),
    "flush": Fault("fresh", flush),
    "full": Fault("fresh", full),
    "read-only": Fault("bounded", read_only),
    "old-dump": Fault("fresh", old_dump),
    "promote": Fault("fresh", promote),
    "repointed": Fault("bounded", repointed, within=_NOTICED),
    "cut": Fault("fresh", cut),
    "unreachable": Fault("fresh", unreachable),
    "black-hole": Fault("fresh", black_hole),
    "unreachable-for-one": Fault("bounded", unreachable_for_one, cuts_one_off=True),
    "black-hole-for-one": Fault("bounded", black_hole_for_one, cuts_one_off=True),
    "feed-killed": Fault("fresh", feed_killed, needs="tracking"),
    "feed-black-hole": Fault("fresh", feed_black_hole, needs="tracking"),
    "hello-refused": Fault("fresh", hello_refused, needs="tracking"),
    "database": Fault("fresh", database, takes_source=True, needs=""),
    **POSTGRES_FAULTS,
}
"""All of them, by name, with what `docs/promises.md` says of each."""


def _proxy_of(incident: Incident) -> Proxy:
    return incident.cluster.proxies[incident.victim.number]


async def _dump_of(admin: Redis) -> Path:
    settings = await admin.config_get("dir", "dbfilename")
    return Path(settings["dir"] or "", settings["dbfilename"] or "dump.rdb")


async def _in_step(replica: Redis) -> None:
    deadline = time.monotonic() + _UNTIL
    while (await replica.info("replication"))["master_link_status"] != "up":
        if time.monotonic() > deadline:
            raise NotInjected("the replica does not come into step")
        await asyncio.sleep(_LOOK)
