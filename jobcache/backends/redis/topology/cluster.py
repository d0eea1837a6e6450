"""A cluster: each slot's owner.

The map of slots is learned from whichever node answers first and finds the cluster well; where a
server no longer owns a slot, its own words mend the map at once. A server that fails is reason to
learn it anew, in the background and not too often.

Rejected: redis-py's `RedisCluster`. Its retries pause for longer than any deadline here, it makes
all connections anew whenever it learns the map, and nothing tells which server gave a reply.
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

_BETWEEN_LOOKS = 0.2  # seconds
_ASKED = 6  # nodes at once

_View = list[tuple[int, int, Address]]
"""A cluster as one of its nodes sees it: the first and the last slot of a range, and its owner."""


class Cluster:
    """The primaries of a cluster, by slot.

    Args:
        seeds: some of its nodes.
        serve: makes a server of an address, not yet connected.
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
        self._tags: dict[Server, str] = {}  # of those that own slots
        self._servers: dict[Address, Server] = {}  # and those that are about to
        self._retired: WeakSet[Server] = WeakSet()
        self._doubtful = False
        self._mending: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def owner(self, key: str | bytes) -> Server | None:
        """Return the server that `key` belongs to; None where that is not known."""
        return self._slots[key_slot(key.encode() if isinstance(key, str) else key)]

    def servers(self) -> Sequence[Server]:
        """Return all servers that own keys, as far as is known."""
        return list(self._tags)

    def tag_of(self, server: Server) -> str:
        """Return what at the end of a key makes it belong to `server`."""
        return self._tags.get(server, "")

    def name_of(self, server: Server) -> str:
        """Return the host and port of `server`, for people."""
        return server.name

    def redirected(self, error: AskError, server: Server) -> Server:
        """Return the server that an error refers to, and note a slot that has moved."""
        # A node that does not know the other's name means the one it has itself.
        other = self._server_at(Address(error.host or server.host, error.port))
        if isinstance(error, MovedError):
            self._slots[error.slot_id] = other
            self.doubt()  # others will have moved with it
        return other

    def doubt(self) -> None:
        """Learn the topology anew, soon, because a server has failed."""
        self._doubtful = True
        if self._mending is None or self._mending.done():
            self._mending = self._keep(self._mend())

    async def refresh(self) -> None:
        """Learn the map of slots anew, now; callers that come meanwhile share the attempt."""
        if self._looking is None or self._looking.done():
            self._looking = self._keep(self._learn())
        await asyncio.shield(self._looking)

    async def aclose(self) -> None:
        """Close the servers."""
        await end_all(list(self._tasks))
        for server in [*self._servers.values(), *self._retired]:
            await server.aclose()

    # --- the map ---

    async def _mend(self) -> None:
        # A doubt that comes while the nodes are asked is not put to rest by what they say:
        # they may have been asked before the slot moved, and its new owner would stay unlisted.
        while self._doubtful:
            self._doubtful = False
            with suppress(RedisError, OSError):
                await self.refresh()
            await asyncio.sleep(_BETWEEN_LOOKS)

    async def _learn(self) -> None:
        nodes = list({*self._servers, *self._seeds})
        asked = random.sample(nodes, min(len(nodes), _ASKED))
        views = [asyncio.create_task(self._view_of(node)) for node in asked]
        error: Exception = RedisConnectionError("no node of the cluster finds it well")
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
        """A node's view; None if it does not find the cluster well."""
        connection = self.connect(node)
        try:
            with closed_is_lost():
                # (redis-py has not typed this method.)
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(
                    connection.pack_commands([("CLUSTER", "INFO"), ("CLUSTER", "SLOTS")])
                )
                well = b"cluster_state:ok" in await connection.read_response()
                slots = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        if not well:
            return None
        # A node that does not know its own name means the one it was asked under.
        return [
            (first, last, Address((host or b"").decode() or node.host, port))
            for first, last, (host, port, *_), *_ in slots
        ]

    def _adopt(self, view: _View) -> None:
        slots: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, address in view:
            slots[first : last + 1] = [self._server_at(address)] * (last + 1 - first)
        self._slots = slots
        self._name_tags()
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

    def _name_tags(self) -> None:
        """Find a tag for each server that owns slots, the one it has had if that still serves."""
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
            task.exception()  # seen: whoever asked for it may have gone
