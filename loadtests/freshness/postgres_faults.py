"""What can go wrong with PostgreSQL while the backend `postgres` has it as its change feed."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from app.devservers import PostgresServer
from jobcache.backends.postgres.factory import APPLICATION_NAME
from loadtests.freshness.cluster import POSTGRES
from loadtests.freshness.incident import Fault, Incident, NotInjected, network, to_its_end
from loadtests.freshness.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

_UNTIL = 30.0  # seconds for something to come about that should
_NOTICED = 2.5  # seconds until every process has noticed that its address leads elsewhere
_LOOK = 0.01  # seconds between two looks
_TIMES = 8
_CUTS = 40
_TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = $1"
)


# --- the listening connections; all others are served ---


async def listener_cut(incident: Incident) -> None:
    """Reset the listening connections again and again."""
    proxies, cut = incident.cluster.listener_proxies, 0
    for _ in range(_TIMES):
        cut += incident.rng.choice(proxies).cut_one(incident.rng)
        await asyncio.sleep(incident.rng.uniform(0, 0.4))
    if not cut:
        raise NotInjected("nobody listened")


async def listener_terminated(incident: Incident) -> None:
    """Have the server end the listening connections again and again."""
    ended = 0
    async with admin(incident.cluster.postgres) as connection:
        for _ in range(_TIMES):
            ended += await connection.fetchval(_TERMINATE, APPLICATION_NAME)
            await asyncio.sleep(incident.rng.uniform(0, 0.4))
    if not ended:
        raise NotInjected("nobody listened")


async def listener_refused(incident: Incident) -> None:
    """Reset the listening connections and refuse new ones, of one process or of all."""
    await network(_some(incident), Proxy.refuse, incident.rng.uniform(1, 4))


async def listener_black_hole(incident: Incident) -> None:
    """Deliver nothing on the listening connections, of one process or of all."""
    await network(_some(incident), Proxy.hold, incident.rng.uniform(1, 4))


def _some(incident: Incident) -> Sequence[Proxy]:
    proxies = incident.cluster.listener_proxies
    if incident.rng.random() < 1 / 2:
        proxies = [proxies[incident.victim.number]]
    if not any(proxy.connections for proxy in proxies):
        raise NotInjected("nobody listened")
    return proxies


# --- all connections ---


async def database_cut(incident: Incident) -> None:
    """Reset connections to PostgreSQL one by one; new ones are accepted."""
    cluster, cut = incident.cluster, 0
    proxies = [*cluster.database_proxies, *cluster.listener_proxies]
    for _ in range(_CUTS):
        cut += incident.rng.choice(proxies).cut_one(incident.rng)
        await asyncio.sleep(incident.rng.uniform(0, 0.05))
    if not cut:
        raise NotInjected("nobody was connected")


async def database_black_hole(incident: Incident) -> None:
    """Deliver nothing between PostgreSQL and the services; all data arrives afterwards."""
    cluster = incident.cluster
    proxies = [*cluster.database_proxies, *cluster.listener_proxies]
    await network(proxies, Proxy.hold, incident.rng.uniform(1, 4))


async def database_crash(incident: Incident) -> None:
    """Crash PostgreSQL, and start it again with all that was committed."""
    postgres = incident.cluster.postgres
    await to_its_end(postgres.crash)
    await asyncio.sleep(incident.rng.uniform(0, 1))
    await to_its_end(postgres.start)


# --- another server ---


async def failover_stopped(incident: Incident) -> None:
    """Stop PostgreSQL in order, and promote a standby."""
    await _promote(incident, incident.cluster.postgres.stop)


async def failover_crashed(incident: Incident) -> None:
    """Crash PostgreSQL, and promote a standby."""
    await _promote(incident, incident.cluster.postgres.crash)


async def failover_alive(incident: Incident) -> None:
    """Promote a standby while the primary lives on for a moment.

    Connections to it stay open, and it answers reads; its commits wait for a standby. New
    connections lead to the new primary. A process whose connections all lead to the former one
    loads what that has, which no cache can tell from what is true.
    """
    await _promote(incident, None)


async def _promote(incident: Incident, end: Callable[[], None] | None) -> None:
    """Replace the server by a standby that has all that was acknowledged.

    Args:
        incident: what to do it to.
        end: ends the server before; None: it lives on for a moment.
    """
    cluster = incident.cluster
    standby = PostgresServer(settings=POSTGRES, standby_of=cluster.postgres)
    try:
        await to_its_end(standby.start)
        async with admin(cluster.postgres) as connection:
            await _wait_for_standbys(connection)
        if end is not None:
            await to_its_end(end)
        await to_its_end(standby.promote)
        cluster.point_at(standby)
        if end is None:
            await asyncio.sleep(incident.rng.uniform(0.5, 3))
    except BaseException:
        standby.close()
        raise
    cluster.replace_postgres(standby)


async def _wait_for_standbys(primary: asyncpg.Connection) -> None:
    """Have commits wait for the standby, and return when it has all that was committed before."""
    # At first for one that is not there: once a commit waits, every later one will.
    await primary.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    await primary.execute("SELECT pg_reload_conf()")
    await _until_true(
        primary, "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    )
    await primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await primary.execute("SELECT pg_reload_conf()")
    end = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
    await _until_true(
        primary,
        "SELECT count(*) > 0 FROM pg_stat_replication"
        " WHERE sync_state = 'sync' AND flush_lsn >= $1::text::pg_lsn",
        end,
    )


async def _until_true(connection: asyncpg.Connection, query: str, *arguments: str) -> None:
    deadline = time.monotonic() + _UNTIL
    while not await connection.fetchval(query, *arguments):
        if time.monotonic() > deadline:
            raise NotInjected(f"it never came true: {query}")
        await asyncio.sleep(_LOOK)


@asynccontextmanager
async def admin(server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """Open a connection to a server past the proxies."""
    connection = await asyncpg.connect(host=str(server.socket_directory), user="postgres")
    try:
        yield connection
    finally:
        await connection.close()


POSTGRES_FAULTS = {
    "listener-cut": Fault("fresh", listener_cut, needs="notifications"),
    "listener-terminated": Fault("fresh", listener_terminated, needs="notifications"),
    "listener-refused": Fault("fresh", listener_refused, needs="notifications"),
    "listener-black-hole": Fault("fresh", listener_black_hole, needs="notifications"),
    "database-cut": Fault("fresh", database_cut, takes_source=True, needs="notifications"),
    "database-black-hole": Fault(
        "fresh", database_black_hole, takes_source=True, needs="notifications"
    ),
    "database-crash": Fault("fresh", database_crash, takes_source=True, needs="notifications"),
    "failover-stopped": Fault("fresh", failover_stopped, takes_source=True, needs="notifications"),
    "failover-crashed": Fault("fresh", failover_crashed, takes_source=True, needs="notifications"),
    "failover-alive": Fault(
        "bounded",
        failover_alive,
        within=_NOTICED,
        takes_source=True,
        two_sources=True,
        needs="notifications",
    ),
}
"""All of them, by name."""
