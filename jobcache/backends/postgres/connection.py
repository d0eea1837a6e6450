"""The listening connection: one per process, used by nothing else, and never in a transaction."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg

from jobcache.backends.heartbeat_feed import FeedLost, FeedUnsupported

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    Connect = Callable[[], Awaitable[Any]]
    """Opens a connection of asyncpg. It must not lead through a pooler."""
    Receive = Callable[[Any, int, str, str], None]
    """Is called with the connection, the sender's process id, the channel and the payload."""

HANDSHAKE = 5.0
"""Seconds to connect and to listen."""

ERRORS = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError),
    *(OSError, EOFError, TimeoutError),
)
"""What asyncpg raises while a server is away, or is another one than was wanted."""
_POOLER = (
    "a pooler such as PgBouncer stands before PostgreSQL, and passes on no notifications: set"
    " DATABASE_DIRECT_URL to the URL of the server itself"
)


_KEEPALIVE = ", ".join(
    f"set_config('tcp_keepalives_{name}', '{value}', false)"
    for name, value in (("idle", 5), ("interval", 2), ("count", 3))
)
"""With these the server notices within seconds that this host has died, and keeps no notifications
for it. Not startup parameters: PgBouncer would refuse those, before it is found out."""


class Listening(NamedTuple):
    """A connection that listens.

    Attributes:
        connection: asyncpg's.
        incarnation: differs for each start of each server. A standby that is promoted keeps its
            own, which is not that of the primary before.
    """

    connection: Any
    incarnation: str


@asynccontextmanager
async def listen(
    connect: Connect, channels: Sequence[str], receive: Receive, on_end: Callable[[Any], None]
) -> AsyncIterator[Listening]:
    """Open a connection that listens, and terminate it at the end of the block.

    Args:
        connect: opens a connection.
        channels: the channels.
        receive: called for each notification. It must not raise.
        on_end: called with the connection as soon as it is known to be lost.

    Raises:
        FeedUnsupported: there is a pooler before the server.
        FeedLost: the server cannot be reached, or takes no writes, or a statement failed.
    """
    connection: Any = None
    try:
        async with asyncio.timeout(HANDSHAKE):
            connection = await connect()
            connection.add_termination_listener(on_end)
            incarnation = await _check(connection)
            for channel in channels:
                await connection.add_listener(channel, receive)
        yield Listening(connection, incarnation)
    except ERRORS as error:
        raise FeedLost(brief(error)) from error
    except RuntimeError as error:
        if not is_reset(error):
            raise
        raise FeedLost(brief(error)) from error
    finally:
        if connection is not None:
            # Not `close`, which waits for a server that may hang.
            connection.terminate()


async def _check(connection: Any) -> str:  # noqa: ANN401 - asyncpg has no types
    """Return the incarnation of the server; refuse a pooler and a standby.

    PgBouncer in transaction mode accepts LISTEN, and passes no notification on. It has invented the
    process id that came with the connection. The simple query protocol prepares nothing, and
    asyncpg returns no rows from it, so the answer is their number.

    The feed could do without this check: no heartbeat would come back. The check says why.
    """
    pid = int(connection.get_server_pid())
    if await connection.execute(f"SELECT 1 WHERE pg_backend_pid() = {pid}") != "SELECT 1":
        raise FeedUnsupported(_POOLER)
    standby, started, *_ = await connection.fetchrow(
        f"SELECT pg_is_in_recovery(), pg_postmaster_start_time()::text, {_KEEPALIVE}"
    )
    if standby:
        raise FeedLost("the server is a standby, where nobody can listen")
    return str(started)


def is_reset(error: RuntimeError) -> bool:
    """Return whether it is uvloop's error for a connection that was reset."""
    return "is closed" in str(error)


def brief(error: BaseException) -> str:
    """Return an error in one line, for people."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
