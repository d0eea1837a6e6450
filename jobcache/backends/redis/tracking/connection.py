"""Tracking of one primary: a connection on which the server reports the keys that change.

In RESP3 the reports arrive on the tracked connection itself, between the replies. If the server or
our parser does not support that, RESP2 is used: one connection is tracked, and its reports are
redirected to a second connection that subscribes to them. If the server refuses that too, it cannot
be tracked.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError, ResponseError

from jobcache.backends.heartbeat_feed import FeedLost, FeedUnsupported
from jobcache.backends.redis.pipelined_connection import (
    Command,
    NotPipelinable,
    PipelinedConnection,
)
from jobcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from redis.asyncio.connection import AbstractConnection

    AtOnce = Callable[[Sequence[bytes]], bool]

HANDSHAKE = 2.0
"""Seconds to connect and to turn tracking on."""

_LONGEST_READ = 0.1  # seconds that one read waits for a report, where `wake` cannot end it
_CHANNEL = b"__redis__:invalidate"


@dataclass(frozen=True)
class Endpoint:
    """A primary: a server on which cells are written.

    Attributes:
        name: the host and port, for log messages.
        connect: makes a new connection, not yet connected. Takes redis-py's options for one, which
            override those of the backend.
        heartbeat_key: makes a key that belongs to this server and contains the given word. No cell
            has such a key.
        heartbeat: writes two heartbeat keys, the first through the connection for reads, the second
            through the one for scripts. Raises `CacheUnavailable`.
        mark_suspect: has these two connections replaced before they are used again.
    """

    name: str
    connect: Callable[..., AbstractConnection]
    heartbeat_key: Callable[[str], str]
    heartbeat: Callable[[str, str], Coroutine[Any, Any, None]]
    mark_suspect: Callable[[], None]


class TrackingConnection(Protocol):
    """A primary's reports of changed keys."""

    async def check(self) -> None:
        """Raise `RedisError` or `OSError` if a connection that receives nothing is lost."""

    def wake(self) -> None:
        """Make `report` return soon."""

    async def report(self, patience: float) -> list[bytes] | None:
        """Return the keys of the next report.

        None means all keys: the server was flushed. The list is empty if no report came within
        `patience` seconds, or if the message was not a report.
        """


@asynccontextmanager
async def track(
    endpoint: Endpoint, prefix: bytes, at_once: AtOnce
) -> AsyncIterator[TrackingConnection]:
    """Open tracking on a primary.

    Args:
        endpoint: the primary.
        prefix: the prefix of the keys whose changes are reported.
        at_once: called with the keys of a report as soon as it arrives, on RESP3 only. If it
            returns True, the report is done; else `report` returns it, too. It must not raise.

    Raises:
        FeedUnsupported: the server refuses tracking.
        FeedLost: the server cannot be reached, or a connection was lost.
    """
    async with AsyncExitStack() as stack:
        try:
            try:
                async with asyncio.timeout(HANDSHAKE):
                    connection = await _handshake(endpoint, prefix, at_once, stack)
            except TimeoutError as error:
                raise FeedLost(f"{endpoint.name} does not answer") from error
            yield connection
        except (RedisError, OSError, CacheError) as error:
            raise FeedLost(f"{endpoint.name}: {error}") from error
        except RuntimeError as error:
            if "is closed" not in str(error):
                raise
            # uvloop's error for a connection that was reset.
            raise FeedLost(f"{endpoint.name}: {error}") from error


async def _handshake(
    endpoint: Endpoint, prefix: bytes, at_once: AtOnce, stack: AsyncExitStack
) -> TrackingConnection:
    command: Command = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", prefix)
    own = endpoint.connect()
    stack.push_async_callback(_disconnect, own)
    if str(own.protocol) != "2":
        with suppress(ResponseError, NotPipelinable):  # an old server, or a proxy; or no hiredis
            await _connect(own)
            pushed = PushedReports(own, at_once)
            stack.callback(pushed.close)
            await pushed.execute(command)
            return pushed
        await _disconnect(own)
    tracked, subscribed = endpoint.connect(protocol=2), endpoint.connect(protocol=2)
    for connection in (tracked, subscribed):
        stack.push_async_callback(_disconnect, connection)
    try:
        await _connect(subscribed)
        number = await _execute(subscribed, "CLIENT", "ID")
        await subscribed.send_command("SUBSCRIBE", _CHANNEL)
        await subscribed.read_response()
        await _connect(tracked)
        await _execute(tracked, *command[:3], "REDIRECT", number, *command[3:])
    except ResponseError as error:
        raise FeedUnsupported(f"{endpoint.name}: {error}") from error
    return RedirectedReports(tracked, subscribed)


async def _connect(connection: AbstractConnection) -> None:
    await connection.connect()  # type: ignore[no-untyped-call] # redis-py has not typed it


async def _disconnect(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError, RuntimeError):
        await connection.disconnect(nowait=True)


async def _execute(connection: AbstractConnection, *words: str | int | bytes) -> Any:  # noqa: ANN401 - any reply
    await connection.send_command(*words)
    return await connection.read_response()


class PushedReports:
    """Receive reports by RESP3. Most are handled as they arrive, without a turn of the event loop.

    Args:
        connection: connected, and used by nothing else.
        at_once: as for `track`.

    Raises:
        NotPipelinable: the connection cannot be read in this way.
    """

    def __init__(self, connection: AbstractConnection, at_once: AtOnce) -> None:
        self._at_once = at_once
        self._reports: deque[list[bytes] | None] = deque()
        self._error: BaseException | None = None
        self._arrived = asyncio.Event()
        self._connection = PipelinedConnection(connection, math.inf, self._on_push)

    async def execute(self, command: Command) -> None:
        """Send a command, and wait for its reply. Raises `ResponseError` if it is refused."""
        (reply,) = await self._connection.request([command])
        if isinstance(reply, Exception):
            raise reply

    async def check(self) -> None:
        """Do nothing: `report` raises an error if the connection is lost."""

    def wake(self) -> None:
        """Make `report` return soon."""
        self._arrived.set()

    async def report(self, patience: float) -> list[bytes] | None:
        """Return the keys of the next report."""
        if not self._reports and self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(patience, 0.001)):
                    await self._arrived.wait()
        self._arrived.clear()
        if self._error is not None:
            raise self._error
        return self._reports.popleft() if self._reports else []

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _on_push(self, message: list[Any] | BaseException) -> None:
        if isinstance(message, BaseException):
            self._on_close(message)
        elif message[0] == b"invalidate":
            keys = message[1]
            if keys is None or not self._at_once(keys):
                self._reports.append(keys)
                self._arrived.set()

    def _on_close(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._arrived.set()


class RedirectedReports:
    """Receive reports by RESP2: as messages, on another connection than the tracked one."""

    def __init__(self, tracked: AbstractConnection, subscribed: AbstractConnection) -> None:
        self._tracked = tracked
        self._subscribed = subscribed

    async def check(self) -> None:
        """Ping the tracked connection: no report would show that it is lost."""
        await _execute(self._tracked, "PING")

    def wake(self) -> None:
        """Do nothing: `report` returns soon anyway."""

    async def report(self, patience: float) -> list[bytes] | None:
        """Return the keys of the next report."""
        patience = min(max(patience, 0.001), _LONGEST_READ)
        message = await self._subscribed.read_response(timeout=patience)
        if isinstance(message, list) and message[:2] == [b"message", _CHANNEL]:
            return message[2]  # type: ignore[no-any-return] # a list of keys, or None
        return []
