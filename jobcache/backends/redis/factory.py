"""Make the topology that a URL names: its servers, their pools and their connections."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from jobcache.backends.redis.topology.cluster import Cluster
from jobcache.backends.redis.topology.sentinel import Sentinels
from jobcache.backends.redis.topology.single import SingleServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from jobcache.backends.redis.server import Server
    from jobcache.backends.redis.topology.single import Topology
    from jobcache.backends.redis.url import RedisURL


def topology_of(
    location: RedisURL,
    *,
    serve: Callable[..., Server],
    connections: int,
    pool_wait: float,
    socket_limit: float,
) -> Topology:
    """Return the topology for a URL. Nothing is connected yet.

    Args:
        location: the parsed URL. Its options override the arguments below.
        serve: makes a `Server` from a pool; takes `is_sharded`.
        connections: the largest number of connections in the pool of a server.
        pool_wait: seconds to wait for a free connection of the pool.
        socket_limit: seconds to connect, and to wait for a reply.

    Raises:
        ValueError: no usable connection can be made with these options.
        TypeError: the same.
    """
    common: dict[str, Any] = {
        "socket_connect_timeout": socket_limit,
        "socket_timeout": socket_limit,
        # redis-py repeats nothing: `Server` decides which commands are sent again.
        "retry": Retry(NoBackoff(), 0),
        # Saves two round trips on every new connection.
        "driver_info": None,
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }
    options = {**common, **location.options}
    kind: type[AbstractConnection] = options.pop("connection_class", Connection)
    most = options.pop("max_connections", connections)
    patience = options.pop("timeout", pool_wait)
    # Connections are made later. Make one now, so that a wrong option is an error at once.
    if kind(**options).encoder.decode_responses:
        raise ValueError("decode_responses cannot be used: cells are bytes")
    pool = partial(
        BlockingConnectionPool,
        connection_class=kind,
        max_connections=most,
        timeout=patience,
        **options,
    )
    if location.kind == "cluster":
        return Cluster(
            location.hosts,
            serve=lambda at: serve(pool(**at._asdict()), is_sharded=True),
            connect=lambda at: kind(**options, **at._asdict()),
        )
    if location.kind == "sentinel":
        secrets = {name: value for name, value in options.items() if name.startswith("ssl_")}
        own = {**common, **secrets, **location.sentinel_options}
        clients = [
            Redis.from_pool(ConnectionPool(kind, **own, **at._asdict())) for at in location.hosts
        ]
        sentinels = Sentinels(clients, location.service)
        # (redis-py has not typed this class.)
        to_master = SentinelConnectionPool(  # type: ignore[no-untyped-call]
            location.service,
            sentinels,
            ssl=kind is SSLConnection,
            max_connections=most,  # callers wait for a free one in `PoolFallback`
            **options,
        )
        return SingleServer(serve(to_master), location.service, sentinels)
    server = serve(pool())
    return SingleServer(server, server.name)
