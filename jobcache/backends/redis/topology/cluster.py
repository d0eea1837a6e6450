"""A cluster: which server owns each slot.

Several nodes are asked for the map of slots. The first answer from a node that finds the cluster in
order is used. A MOVED reply corrects the map at once. After a failure of a server the map is
learned again, in the background and at a limited rate.

Rejected: redis-py's `RedisCluster`. Its retries pause for longer than any deadline here, it
replaces all connections whenever it learns the map, and it does not say which server sent a reply.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, RedisError

from jobcache.backends._closing import end_all
from jobcache.backends.redis.redis_py import closed_is_lost
from jobcache.backends.redis.url import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from redis.asyncio.connection import AbstractConnection
    from redis.exceptions import AskError

    from jobcache.backends.redis.server import Server

_BETWEEN_REFRESHES = 0.2  # seconds
_NODES_ASKED = 6  # at once

_View = list[tuple[int, int, Address]]
"""The map of slots of one node: first and last slot of each range, and the address of its owner."""


class Cluster:
    """The primaries of a cluster, by slot.

    Args:
        seeds: some of the cluster's nodes.
        serve: makes a `Server` for an address, not yet connected.
        connect: makes a connection to an address, not yet connected.
    """

    is_sharded = True

    def __init__(
        self,
        seeds: Sequence[Address],
        *,
        serve: Callable[[Address], Server],
        connect: Callable[[Address], AbstractConnection],
    ) -> None:
        self.generation = 0
        self._seeds = seeds
        self._serve = serve
        self.connect = connect
        self._slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._tags: dict[Server, str] = {}  # of the servers that own slots
        self._servers: dict[Address, Server] = {}  # and servers that are about to own slots
        self._retired: WeakSet[Server] = WeakSet()
        self._outdated = False
        self._background: asyncio.Task[None] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def owner(self, key: str | bytes) -> Server | None:
        """Return the server that `key` belongs to, or None if it is not known."""
        return self._slots[key_slot(key.encode() if isinstance(key, str) else key)]

    def servers(self) -> Sequence[Server]:
        """Return all known servers that own keys."""
        return list(self._tags)

    def tag_of(self, server: Server) -> str:
        """Return a hash tag: a key that ends with it belongs to `server`."""
        return self._tags.get(server, "")

    def name_of(self, server: Server) -> str:
        """Return the host and port of `server`, for log messages."""
        return server.name

    def redirected(self, error: AskError, server: Server) -> Server:
        """Return the server that an error redirects to, and note a slot that has moved."""
        # An empty host means the host of the server that replied.
        other = self._server_at(Address(error.host or server.host, error.port))
        if isinstance(error, MovedError):
            self._slots[error.slot_id] = other
            self.refresh_soon()  # other slots have probably moved, too
        return other

    def refresh_soon(self) -> None:
        """Learn the map of slots again in the background."""
        self._outdated = True
        if self._background is None or self._background.done():
            self._background = self._keep(self._refresh_until_current())

    async def refresh(self) -> None:
        """Learn the map of slots again. Concurrent callers share one attempt."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = self._keep(self._learn())
        await asyncio.shield(self._refreshing)

    async def aclose(self) -> None:
        """Close the servers."""
        await end_all(list(self._tasks))
        for server in [*self._servers.values(), *self._retired]:
            await server.aclose()

    # --- the map ---

    async def _refresh_until_current(self) -> None:
        # A call of `refresh_soon` during a refresh needs another one:
        #   the nodes are asked; a slot moves; a MOVED reply; the nodes' older map is adopted
        while self._outdated:
            self._outdated = False
            with suppress(RedisError, OSError):
                await self.refresh()
            await asyncio.sleep(_BETWEEN_REFRESHES)

    async def _learn(self) -> None:
        nodes = list({*self._servers, *self._seeds})
        asked = random.sample(nodes, min(len(nodes), _NODES_ASKED))
        views = [asyncio.create_task(self._view_of(node)) for node in asked]
        error: Exception = RedisConnectionError("no node of the cluster finds it in order")
        try:
            for view in asyncio.as_completed(views):
                try:
                    seen = await view
                except (RedisError, OSError) as failure:
                    error = failure
                    continue
                if seen is not None:
                    self._adopt(seen)
                    return
            raise error
        finally:
            await end_all(views)

    async def _view_of(self, node: Address) -> _View | None:
        """Return a node's map of slots, or None if it does not find the cluster in order."""
        connection = self.connect(node)
        try:
            with closed_is_lost():
                # (redis-py has not typed this method.)
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(
                    connection.pack_commands([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
                )
                in_order = b"cluster_state:ok" in await connection.read_response()
                slots = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        if not in_order:
            return None
        # An empty host means the host under which the node was asked.
        return [
            (first, last, Address((host or b"").decode() or node.host, port))
            for first, last, (host, port, *_), *_ in slots
        ]

    def _adopt(self, view: _View) -> None:
        slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, address in view:
            slots[first : last + 1] = [self._server_at(address)] * (last + 1 - first)
        self._slots = slots
        self._find_tags()
        for address, server in list(self._servers.items()):
            if server not in self._tags:
                del self._servers[address]
                self._retired.add(server)
                self._keep(server.retire())

    def _server_at(self, address: Address) -> Server:
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = self._serve(address)
        return server

    def _find_tags(self) -> None:
        """Find a tag for each server that owns slots; keep a tag that is still right."""
        tags = {
            server: self._tag_on(server, self._tags.get(server, ""))
            for server in dict.fromkeys(self._slots)
            if server is not None
        }
        if tags != self._tags:
            for server in {*self._tags, *tags}:
                server.tracked = server in tags
            self._tags = tags
            self.generation += 1

    def _tag_on(self, server: Server, known: str) -> str:
        if known and self._slots[key_slot(known.encode())] is server:
            return known
        tags = (f"{{{number}}}" for number in itertools.count())
        return next(tag for tag in tags if self._slots[key_slot(tag.encode())] is server)

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, because the caller may have been cancelled
