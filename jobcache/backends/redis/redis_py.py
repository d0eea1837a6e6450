"""Helps to use redis-py's own connections, which are not pipelined."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.asyncio.connection import AbstractConnection

    from jobcache.backends.redis.pipelined_connection import Command

_CLOSED = "handler is closed"


@contextmanager
def closed_is_lost() -> Iterator[None]:
    """Translate uvloop's error for a connection that the peer has closed, a `RuntimeError`.

    Raises:
        RedisConnectionError: the error that redis-py raises for other lost connections.
    """
    try:
        yield
    except RuntimeError as error:
        if _CLOSED not in str(error):
            raise
        raise RedisConnectionError(str(error)) from error


async def connect(connection: AbstractConnection) -> None:
    """Connect, and make the connection ready."""
    await connection.connect()  # type: ignore[no-untyped-call] # redis-py has not typed it


async def replies_to(connection: AbstractConnection, commands: Sequence[Command]) -> list[Any]:
    """Send commands together, and return their replies, errors among them.

    Raises:
        RedisError: the connection is lost, or a reply is overdue.
    """
    await connection.send_packed_command(connection.pack_commands(commands))
    return [await _reply(connection) for _ in commands]


async def _reply(connection: AbstractConnection) -> Any:  # noqa: ANN401 - redis-py's replies
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
