"""Round trips to one server: commands are sent, and sent again after a lost connection.

Commands are retried once after a lost connection, or after one that led to an older incarnation.
All of them can be repeated, and a lost fence would let other processes serve an old version. There
is no retry after a time-out, which would double the wait. redis-py itself retries nothing.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache._concurrency.batching import copy_outcome
from jobcache.backends._closing import end_all
from jobcache.backends.redis.refused_commands import is_suspect
from jobcache.errors import CacheUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from jobcache.backends.redis.connection_slot import ConnectionSlot
    from jobcache.backends.redis.identity import Identity
    from jobcache.backends.redis.pipelined_connection import Command
    from jobcache.backends.redis.pool_fallback import PoolFallback

T = TypeVar("T")

_ASKING: Command = ("ASKING",)


class RoundTrips:
    """Exchange commands and replies with one server, in tasks.

    Args:
        identity: the identity of the server.
        fallback: the pool of connections that cannot be pipelined.

    Attributes:
        uses_pool: whether all commands use the pool.
    """

    def __init__(self, identity: Identity, fallback: PoolFallback) -> None:
        self.uses_pool = False
        self._identity = identity
        self._fallback = fallback
        self._closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Return a future of `work`, which runs in a task."""
        if self._closed:
            work.close()
            refused: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            refused.set_exception(CacheUnavailable("the connections to Redis have been closed"))
            return refused
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def retry(self, *again: Any) -> None:  # noqa: ANN401 - a coroutine function and its arguments
        """Send commands again, in a task, and copy the outcome to the future."""
        send, *arguments, future = again
        if self._closed:
            future.cancel()
            return
        self.start(send(*arguments)).add_done_callback(partial(copy_outcome, future))

    async def exchange(
        self, slot: ConnectionSlot, make: Callable[[str], list[Command]], *, asking: bool = False
    ) -> tuple[list[Any], str]:
        """Send commands together, twice if necessary.

        Args:
            slot: the connection to use.
            make: makes the commands for the server's incarnation id.
            asking: whether the keys' slot is migrating to this server. Then ASKING is sent before
                each command.

        Returns:
            The replies, errors among them, and the incarnation id.

        Raises:
            RedisError: as `ConnectionSlot.exchange`.
        """
        if asking:
            make = partial(_with_asking, make)
        try:
            replies, incarnation_id = await self._exchange_once(slot, make)
        except RedisConnectionError:
            replies, incarnation_id = await self._exchange_once(slot, make)
        return (replies[1::2] if asking else replies), incarnation_id

    async def _exchange_once(
        self, slot: ConnectionSlot, make: Callable[[str], list[Command]]
    ) -> tuple[list[Any], str]:
        generation = self._identity.current.generation
        sender = self._fallback if self.uses_pool else slot
        replies, incarnation = await sender.exchange(make)
        if any(map(is_suspect, replies)):
            self._identity.mark_suspect()
        elif (incarnation.incarnation_id, generation) != self._identity.current:
            raise RedisConnectionError("the server is not the one it was")
        return replies, str(incarnation.incarnation_id)

    def close(self) -> None:
        """Refuse to start further tasks."""
        self.uses_pool = self._closed = True

    async def aclose(self) -> None:
        """Cancel all tasks, and wait for their end."""
        await end_all(list(self._tasks))


def _with_asking(make: Callable[[str], list[Command]], incarnation_id: str) -> list[Command]:
    return [word for command in make(incarnation_id) for word in (_ASKING, command)]
