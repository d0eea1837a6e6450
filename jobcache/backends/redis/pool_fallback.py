"""Commands by redis-py's connection pool, where none can be pipelined.

Without hiredis every command takes a connection of the pool, which is small, and makes callers wait
a moment rather than fail: a burst of polls is not an outage.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from jobcache.backends.redis.redis_py import closed_is_lost, connect, replies_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection, ConnectionPool

    from jobcache.backends.redis.identity import Identity, Incarnation
    from jobcache.backends.redis.pipelined_connection import Command
    from jobcache.backends.redis.proof import Proof


class PoolFallback:
    """Exchange commands on connections of a pool.

    Args:
        pool: redis-py's.
        identity: of the server that its connections lead to.
        proof: makes what each connection proves itself with.
    """

    def __init__(
        self, pool: ConnectionPool, identity: Identity, proof: Callable[[], Proof]
    ) -> None:
        self._pool = pool
        self._identity = identity
        self._new_proof = proof
        self._proofs: WeakKeyDictionary[AbstractConnection, Proof] = WeakKeyDictionary()
        self._queue = asyncio.Semaphore(pool.max_connections)
        self._retired = False

    async def exchange(self, make: Callable[[str], list[Command]]) -> tuple[list[Any], Incarnation]:
        """Send commands, and return the replies; see `ConnectionSlot.exchange`."""
        # First come, first served. The pool's own queue is not: a caller that has just returned a
        # connection can take it again before those that wait, for as long as it likes.
        async with self._queue:
            with closed_is_lost():
                # (redis-py has not typed this method.)
                connection: AbstractConnection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
                try:
                    incarnation = await self._prepare(connection)
                    proof = self._proofs.setdefault(connection, self._new_proof())
                    first = proof.due()
                    commands = [*first, *make(str(incarnation.incarnation_id))]
                    replies = await replies_to(connection, commands)
                    return proof.strip(first, replies), incarnation
                except BaseException:
                    # Replies that are still to come belong to no other command.
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    if self._retired:
                        await connection.disconnect(nowait=True)
                    await self._pool.release(connection)

    def forget(self, connection: AbstractConnection) -> None:
        """Have a connection prove itself, for it has been made anew."""
        self._proofs.pop(connection, None)

    async def retire(self) -> None:
        """Close each connection as soon as it is not in use."""
        self._retired = True
        await self._pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Close the connections."""
        self._retired = True
        await self._pool.disconnect()

    async def _prepare(self, connection: AbstractConnection) -> Incarnation:
        """Make a suspect connection anew; return what it leads to."""
        incarnation = self._identity.of(connection)
        if incarnation is None or incarnation != self._identity.current:
            await connection.disconnect(nowait=True)
            await connect(connection)
            incarnation = self._identity.of(connection)
            assert incarnation is not None  # noqa: S101 - each new connection is recorded
        return incarnation
