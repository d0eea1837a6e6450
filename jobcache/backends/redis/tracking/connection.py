"""A line to one primary, on which it reports what changes.

In RESP3 reports come between the replies on the tracked connection itself. Where a server, or our
own parser, will not have that, the older form does: one connection is tracked, and its reports are
redirected to a second one that subscribes to them. Where that is refused, too, there is no line.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from redis.exceptions import RedisError, ResponseError

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

_AWAKE = 0.1  # seconds that a report is waited for at a time, where nothing can end the wait
_CHANNEL = b"__redis__:invalidate"


@dataclass(frozen=True)
class Endpoint:
    """A primary: a server that cells are written on.

    Attributes:
        name: its host and port, for people.
        connect: makes a new connection to it, not yet connected. Takes redis-py's options of one,
            which win over the backend's own.
        heartbeat_key: a key that lives there, with a word of the caller's in it; no cell is ever
            there.
        heartbeat: writes two such keys, one through the connection for reads, the other through the
            one
            for scripts. Raises `CacheUnavailable`.
        doubt: has these two connections made anew before they are used again.
    """

    name: str
    connect: Callable[..., AbstractConnection]
    heartbeat_key: Callable[[str], str]
    heartbeat: Callable[[str, str], Coroutine[Any, Any, None]]
    doubt: Callable[[], None]


class Lost(Exception):  # noqa: N818 - says what has happened
    """The feed may miss reports from now on."""


class Untracked(Lost):
    """The server does not report changes in this way."""


class Line(Protocol):
    """What `opened` opens."""

    async def check(self) -> None:
        """Raise `RedisError` or `OSError` if a connection that only listens is lost."""

    def wake(self) -> None:
        """Have `report` return soon."""

    async def report(self, patience: float) -> list[bytes] | None:
        """The keys of the next report, None for all there are.

        None of them if that was no report, or none came within `patience` seconds.
        """


@asynccontextmanager
async def opened(endpoint: Endpoint, prefix: bytes, at_once: AtOnce) -> AsyncIterator[Line]:
    """A line to a primary.

    Args:
        endpoint: the primary.
        prefix: of the keys whose changes are to be reported.
        at_once: may be given a report where it comes in, before those that wait to be asked for.
            Returns whether that was all; else the report waits, too. It must not raise.

    Raises:
        Untracked: it will not.
        Lost: it cannot be reached, or the line was cut.
    """
    async with AsyncExitStack() as stack:
        try:
            try:
                async with asyncio.timeout(HANDSHAKE):
                    line = await _handshake(endpoint, prefix, at_once, stack)
            except TimeoutError as error:
                raise Lost(f"{endpoint.name} does not answer") from error
            yield line
        except (RedisError, OSError, CacheError) as error:
            raise Lost(f"{endpoint.name}: {error}") from error
        except RuntimeError as error:
            if "is closed" not in str(error):
                raise
            raise Lost(
                f"{endpoint.name}: {error}"
            ) from error  # uvloop's word for a reset connection


async def _handshake(
    endpoint: Endpoint, prefix: bytes, at_once: AtOnce, stack: AsyncExitStack
) -> Line:
    track: Command = ("CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", prefix)
    own = endpoint.connect()
    stack.push_async_callback(_let_go, own)
    if str(own.protocol) != "2":
        with suppress(ResponseError, NotPipelinable):  # an old server, or a proxy; or no hiredis
            await _connect(own)
            pushed = Pushed(own, at_once)
            stack.callback(pushed.close)
            await pushed.order(track)
            return pushed
        await _let_go(own)
    tracked, subscribed = endpoint.connect(protocol=2), endpoint.connect(protocol=2)
    for connection in (tracked, subscribed):
        stack.push_async_callback(_let_go, connection)
    try:
        await _connect(subscribed)
        number = await _order(subscribed, "CLIENT", "ID")
        await subscribed.send_command("SUBSCRIBE", _CHANNEL)
        await subscribed.read_response()
        await _connect(tracked)
        await _order(tracked, *track[:3], "REDIRECT", number, *track[3:])
    except ResponseError as error:
        raise Untracked(f"{endpoint.name}: {error}") from error
    return Redirected(tracked, subscribed)


async def _connect(connection: AbstractConnection) -> None:
    await connection.connect()  # type: ignore[no-untyped-call] # redis-py has not typed it


async def _let_go(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError, RuntimeError):
        await connection.disconnect(nowait=True)


async def _order(connection: AbstractConnection, *words: str | int | bytes) -> Any:  # noqa: ANN401 - any reply
    await connection.send_command(*words)
    return await connection.read_response()


class Pushed:
    """RESP3. Most reports are passed on as they arrive, without a turn of the event loop.

    Args:
        connection: connected; nobody else uses it.
        at_once: see `opened`.

    Raises:
        NoLane: there is none.
    """

    def __init__(self, connection: AbstractConnection, at_once: AtOnce) -> None:
        self._at_once = at_once
        self._reports: deque[list[bytes] | None] = deque()
        self._error: BaseException | None = None
        self._news = asyncio.Event()
        self._connection = PipelinedConnection(connection, math.inf, self._heard)

    async def order(self, command: Command) -> None:
        """Give the server a command. Raises `ResponseError` if it refuses."""
        (reply,) = await self._connection.request([command])
        if isinstance(reply, Exception):
            raise reply

    async def check(self) -> None:
        """Do nothing: `report` raises an error if the connection is lost."""

    def wake(self) -> None:
        """Have `report` return soon."""
        self._news.set()

    async def report(self, patience: float) -> list[bytes] | None:
        """Return the keys of the next report, as the protocol says."""
        if not self._reports and self._error is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(patience, 0.001)):
                    await self._news.wait()
        self._news.clear()
        if self._error is not None:
            raise self._error
        return self._reports.popleft() if self._reports else []

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _heard(self, message: list[Any] | BaseException) -> None:
        if isinstance(message, BaseException):
            self._end(message)
        elif message[0] == b"invalidate":
            keys = message[1]
            if keys is None or not self._at_once(keys):
                self._reports.append(keys)
                self._news.set()

    def _end(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._news.set()


class Redirected:
    """RESP2: reports come as messages, on another connection than the tracked one."""

    def __init__(self, tracked: AbstractConnection, subscribed: AbstractConnection) -> None:
        self._tracked = tracked
        self._subscribed = subscribed

    async def check(self) -> None:
        """Ping the tracked connection: no report would show that it is lost."""
        await _order(self._tracked, "PING")

    def wake(self) -> None:
        """Do nothing: `report` returns soon anyway."""

    async def report(self, patience: float) -> list[bytes] | None:
        """Return the keys of the next report, as the protocol says."""
        patience = min(max(patience, 0.001), _AWAKE)
        message = await self._subscribed.read_response(timeout=patience)
        if isinstance(message, list) and message[:2] == [b"message", _CHANNEL]:
            return message[2]  # type: ignore[no-any-return] # a list of keys, or None
        return []
