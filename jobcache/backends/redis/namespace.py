"""A namespace on the servers of Redis: the keys under a prefix, and the checks of each connection.

Every cell carries the incarnation id of the server on which it was written. The id is made of the
server's `run_id` and its replication id. A server may restart from an old dump, or be a replica
that was promoted. Its incarnation id is then another one than that of its old cells, so these count
as empty:

    W commits v2, publishes it; Redis dies, and comes back with a dump that holds v1
    every connection has died with it; each new one asks for the incarnation id before it is used

A cell that a slot's migration has moved to another node counts as empty there, too.

The incarnation id also names the namespace: a prefix adds its hash. Keys alone cannot do that:
`app2:job:1` is the key `job:1` of the prefix `app2:`, and the key `2:job:1` of the prefix `app`.

Rejected: remembering the `run_id`, and emptying the namespace when it changes. That takes time in
proportion to the keys, removes the fences of other processes, and does not help a process that was
started together with Redis.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from hashlib import sha1
from typing import TYPE_CHECKING

from redis.exceptions import AskError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache.backends.redis.factory import topology_of
from jobcache.backends.redis.namespace_owner import Source
from jobcache.backends.redis.refused_commands import (
    CommandRefused,
    cluster_node,
    is_unknown,
    named,
)
from jobcache.backends.redis.script_calls import script_texts
from jobcache.backends.redis.server import Server
from jobcache.errors import NamespaceConflict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from jobcache.backends.redis.pipelined_connection import Command
    from jobcache.backends.redis.url import RedisURL

logger = logging.getLogger("jobcache")

_NO_INCARNATION = "none"


class Namespace:
    """The namespace of a prefix, on all servers that a URL names.

    Args:
        location: the parsed URL.
        prefix: put before every key.
        source_id: the identity of the source, as for `Source`.
        connections: the largest number of connections in the pool of a server.
        pool_wait: seconds to wait for a free connection of the pool.
        socket_limit: seconds to connect, and to wait for a reply.
        clock: monotonic time in seconds.

    Attributes:
        topology: the servers.
        source: the source whose documents are under the prefix.

    Raises:
        ValueError: the prefix cannot be used in a cluster, or the options of the URL are wrong.
        TypeError: the options of the URL are wrong.
    """

    def __init__(
        self,
        location: RedisURL,
        *,
        prefix: str,
        source_id: str,
        connections: int,
        pool_wait: float,
        socket_limit: float,
        clock: Callable[[], float],
    ) -> None:
        if location.kind == "cluster" and "{" in prefix:
            raise ValueError("a prefix with a hash tag would put all keys on one server")
        self.source = Source(prefix, source_id)
        self._prefix = prefix
        # Empty without a prefix, so that the cells of older versions can still be read.
        self._hash = sha1(prefix.encode(), usedforsecurity=False).hexdigest()[:8] if prefix else ""
        self._needs_master = location.kind == "sentinel"
        self._warned = False
        self._warned_of_first_version = False
        self.topology = topology_of(
            location,
            serve=partial(
                Server,
                scripts=script_texts(),
                learn=self.learn_incarnation,
                proof=self._proof,
                check=self._check,
                clock=clock,
            ),
            connections=connections,
            pool_wait=pool_wait,
            socket_limit=socket_limit,
        )

    def key_on(self, server: Server, word: str) -> str:
        """Return a key for our own use that belongs to a server. No cell has such a key."""
        return f"{self._prefix}jobcache:{word}{self.topology.tag_of(server)}"

    def on_foreign_cell(self, server: Server, cell: bytes, incarnation_id: str) -> None:
        """Find out why a cell has another incarnation id than the server's.

        The first version put no hash of the prefix into the id. It reads the cells of this version
        as empty, and this version reads those of the first as empty:

            W (first version) fences; R (this version) takes the lease, loads v1, stores it
            W commits v2, and dies before it publishes; R serves v1 until it expires
        """
        written = cell[3:].partition(b"|")[0].decode("ascii", "replace")
        if not self._hash or written + self._hash != incarnation_id:
            self._verify_identity(server)
        elif not self._warned_of_first_version:
            self._warned_of_first_version = True
            logger.warning(
                "The first version of jobcache has written entries under the prefix %r. With a"
                " prefix its processes must not run beside those of this version: reads may be"
                " stale. Stop them; their entries then do no harm",
                self._prefix,
            )

    def _verify_identity(self, server: Server) -> None:
        server.verify_identity(self.key_on(server, "ping"))

    async def learn_incarnation(self, connection: AbstractConnection) -> str:
        """Return the incarnation id of the server that a new connection leads to.

        Raises:
            NamespaceConflict: the prefix on that server belongs to another source.
            RedisError: as raised by redis-py.
        """
        try:
            incarnation = await _incarnation_on(connection, master=self._needs_master)
        except ResponseError as error:
            await self._without_incarnation(connection, error)
            incarnation = _NO_INCARNATION
        if self.source.source_id:
            await self.source.claim(connection, self.topology.connect)
        return incarnation + self._hash

    async def _without_incarnation(
        self, connection: AbstractConnection, error: ResponseError
    ) -> None:
        """Accept a server that refuses INFO, with one warning; but not behind a proxy.

        A proxy may replace the server while the connection stays. Neither the incarnation id nor a
        lost connection would show that.
        """
        if is_unknown(error) and await _has_no_scripts(connection):
            raise CommandRefused(
                "Redis refuses INFO and SCRIPT, as proxies do: nothing would tell if the server"
                " behind it came back with old data"
            )
        if not self._warned:
            self._warned = True
            logger.warning(
                "Redis does not report its run_id (%s): one that comes back with old data may"
                " have it served until it expires",
                error,
            )

    def _proof(self, server: Server) -> list[Command]:
        """Return the commands with which a connection proves that it leads to a primary of ours.

        Deleting a key that does not exist changes nothing, and only a primary accepts it. A former
        primary of a cluster redirects to the new one.
        """
        commands: list[Command] = []
        if not self.topology.is_sharded:
            commands.append(("DEL", self.key_on(server, "absent")))
        if self.source.source_id and self.topology.owner(self.source.key) is server:
            commands.append(("GET", self.source.key))
        return commands

    def _check(
        self, server: Server, proof: Sequence[Command], replies: Sequence[object]
    ) -> Exception | None:
        """Return an error if the replies to `_proof` prove nothing."""
        for (word, *_), reply in zip(proof, replies, strict=False):
            if isinstance(reply, AskError):
                if not self.topology.is_sharded:
                    return cluster_node(reply)
            elif isinstance(reply, Exception):
                return named(str(word), reply)
            elif word == "GET":
                try:
                    if not self.source.owns(reply):
                        self._verify_identity(server)  # evicted or flushed: the ping sets it again
                except NamespaceConflict as error:
                    server.identity.invalidate()
                    return error
        return None


async def _incarnation_on(connection: AbstractConnection, *, master: bool) -> str:
    """Return the id of the incarnation at the other end of a connection.

    It has eight characters of either id, enough to make a collision very unlikely. The replication
    id changes whenever a replica is promoted, even if that replica was the master before.

    Raises:
        RedisConnectionError: a master is needed, and this is a replica, whose data may lag.
    """
    parts = []
    for section, field in (("server", b"run_id"), ("replication", b"master_replid")):
        await connection.send_command("INFO", section)
        reply = await connection.read_response()
        found = re.search(rb"^%b:(\w{8})" % field, reply, re.MULTILINE)
        if found is None:
            raise ResponseError(f"INFO {section} has no {field.decode()}")
        if master and b"\nrole:slave" in reply:
            raise RedisConnectionError("the sentinels have named a replica")
        parts.append(found[1].decode())
    return "".join(parts)


async def _has_no_scripts(connection: AbstractConnection) -> bool:
    await connection.send_command("SCRIPT", "EXISTS", "0" * 40)
    try:
        await connection.read_response()
    except ResponseError as error:
        return is_unknown(error)
    return False
