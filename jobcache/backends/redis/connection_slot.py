"""The place of one pipelined connection to a server: opened when needed, replaced when suspect.

A server has two: one for reads, one for scripts. Reads of large bodies do not hold up a fence.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache.backends._closing import end_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobcache.backends.redis.identity import Identity, Incarnation
    from jobcache.backends.redis.pipelined_connection import (
        Command,
        OnReplies,
        PipelinedConnection,
    )
    from jobcache.backends.redis.proof import Proof

    Opened = tuple[PipelinedConnection, Incarnation | None]


class ConnectionSlot:
    """Hold a pipelined connection to the current incarnation of a server.

    Args:
        identity: the identity of the server.
        connect: opens a connection.
        proof: makes the `Proof` of a new connection.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        identity: Identity,
        connect: Callable[[], Awaitable[Opened]],
        proof: Callable[[], Proof],
        clock: Callable[[], float],
    ) -> None:
        self._identity = identity
        self._clock = clock
        self._connect = connect
        self._new_proof = proof
        self._proof = proof()
        self._connection: PipelinedConnection | None = None
        self._incarnation: Incarnation | None = None
        self._connecting: asyncio.Task[Opened] | None = None

    def incarnation(self) -> Incarnation | None:
        """Return the incarnation that the open connection leads to; None if it cannot be used."""
        connection = self._connection
        if (
            connection is None
            or connection.is_closing()
            or self._incarnation != self._identity.current
        ):
            return None
        return self._incarnation

    def send(self, commands: list[Command], on_replies: OnReplies) -> None:
        """Send commands on the open connection; see `PipelinedConnection.send`.

        Call it only right after `incarnation` has returned one.
        """
        if self._clock() >= self._proof.due_at:
            proof = self._proof.due()
            on_replies = partial(_strip, self._proof, proof, on_replies)
            commands = proof + commands
        connection = self._connection
        assert connection is not None  # noqa: S101 - for the type checker
        connection.send(commands, on_replies)

    async def exchange(self, make: Callable[[str], list[Command]]) -> tuple[list[Any], Incarnation]:
        """Connect if necessary, send commands, and return the replies, errors among them.

        Args:
            make: makes the commands for the server's incarnation id.

        Raises:
            RedisError: the server cannot be reached, the connection is lost, or a reply is
                overdue.
        """
        incarnation = self.incarnation()
        connection, proof = self._connection, self._proof
        if incarnation is None or connection is None:
            connection, incarnation = await self._open()
            proof = self._proof
        if incarnation is None:
            raise RedisConnectionError("the connection leads to no known server")
        first = proof.due()
        replies = await connection.request([*first, *make(str(incarnation.incarnation_id))])
        return proof.strip(first, replies), incarnation

    def close_when_idle(self) -> None:
        """Close the connection as soon as all commands have their replies."""
        if self._connection is not None:
            self._connection.close_when_idle()

    async def aclose(self) -> None:
        """Close the connection. Pending requests are cancelled."""
        if self._connecting is not None:
            await end_all({self._connecting})
        if self._connection is not None:
            self._connection.close()

    async def _open(self) -> Opened:
        """Connect. Concurrent callers share the attempt, and its error."""
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._replace())
            self._connecting.add_done_callback(_retrieve_error)
        connecting = self._connecting
        await asyncio.wait({connecting})  # the attempt goes on if this caller is cancelled
        if connecting.cancelled():
            raise asyncio.CancelledError
        return connecting.result()

    async def _replace(self) -> Opened:
        if self._connection is not None:
            self._connection.close(RedisConnectionError("the server is not the one it was"))
        self._connection, self._incarnation = await self._connect()
        self._proof = self._new_proof()
        return self._connection, self._incarnation


def _strip(
    proof: Proof,
    first: Sequence[Command],
    on_replies: OnReplies,
    replies: list[Any] | BaseException,
) -> None:
    if not isinstance(replies, BaseException):
        replies = proof.strip(first, replies)
    on_replies(replies)


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """Retrieve the error of a task, because its callers may have been cancelled."""
    if not task.cancelled():
        task.exception()
