"""Commands on redis-py's connection pool, for connections that cannot be pipelined.

Without hiredis every command takes a connection from a small pool. If none is free, callers wait
for a moment instead of failing: a burst of polls is not an outage.
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
        pool: the pool of redis-py.
        identity: the identity of the server that its connections lead to.
        proof: makes the `Proof` of a connection.
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
        """Send commands, and return the replies, as `ConnectionSlot.exchange` does."""
        # First come, first served. The pool's own queue is not fair: a caller that has just
        # returned a connection can take it again before the callers that wait.
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
                    # Later replies must not be read as those of another command.
                    await connection.disconnect(nowait=True)
                    raise
                finally:
                    if self._retired:
                        await connection.disconnect(nowait=True)
                    await self._pool.release(connection)

    def forget(self, connection: AbstractConnection) -> None:
        """Forget the proofs of a connection, because it has been reconnected."""
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
        """Reconnect a suspect connection; return the incarnation that the connection leads to."""
        incarnation = self._identity.of(connection)
        if incarnation is None or incarnation != self._identity.current:
            await connection.disconnect(nowait=True)
            await connect(connection)
            incarnation = self._identity.of(connection)
            assert incarnation is not None  # noqa: S101 - each new connection is recorded
        return incarnation
