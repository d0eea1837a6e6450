"""A connection on which commands follow each other without waiting for the answers before them.

Redis answers in the order in which it was asked. So whoever asks leaves a callback at the end of a
line and bytes in the transport, and an answer goes to whoever is first: no connection is taken from
a pool for it, no task is made, and nobody waits for anybody. redis-py makes the connection (with
address, TLS, credentials, database) and brings the parser; from then on its transport is ours.

Only what can be asked again travels here. Where an answer is overdue, all that was asked after it
is, too, and the lane is closed; a new one is made for whoever asks next.

Rejected: a reader task on redis-py's own streams, which costs two switches of tasks for every
answer, and several times what is done here.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobcache._concurrency.batching import resolve_future

try:
    from hiredis import PushNotification, pack_command
except ImportError:  # then there is no lane
    PushNotification = list  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

Command = tuple["str | int | bytes", ...]

# Told of the replies; of an error of redis-py's; or of a `CancelledError`, if it was closed.
Then: TypeAlias = "Callable[[list[Any] | BaseException], None]"

_GRACE = 0.05
"""Seconds for an answer that may have come while the loop was busy, but has not been read yet."""


class NotPipelinable(RedisConnectionError):  # noqa: N818 - says what is the matter
    """The connection has another parser than hiredis', or another encoding, and can be no lane."""


class _Asked:
    """A number of commands that were sent together, and their replies so far."""

    __slots__ = ("at", "count", "replies", "then")

    def __init__(self, count: int, at: float, then: Then) -> None:
        self.count = count
        self.at = at
        self.then = then
        self.replies: list[Any] = []


class PipelinedConnection(asyncio.Protocol):
    """A lane on a connection that redis-py has made, and that nobody else uses.

    Args:
        connection: connected; nothing is under way on it.
        limit: seconds to wait for an answer; infinite, if somebody else keeps watch.
        on_push: is told what the server says of its own accord, and at last why this was closed.
            It must not raise.

    Raises:
        NoLane: it cannot be one.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        limit: float,
        on_push: Callable[[list[Any] | BaseException], None] = lambda _: None,
    ) -> None:
        # Private, and pinned by tests: redis-py hands neither of them out.
        parser: Any = connection._parser  # noqa: SLF001
        writer: Any = connection._writer  # noqa: SLF001
        reader = getattr(parser, "_reader", None)
        if reader is None or connection.encoder.encoding.lower() not in {"utf-8", "utf8"}:
            raise NotPipelinable  # hiredis packs ten times as fast as redis-py
        self._reader = reader
        # What it says when an answer is not all there yet.
        self._nothing = self._reader.gets()
        self._open = True
        self._ending = False
        self._connection = connection
        self._limit = limit
        self._overhears = on_push
        self._loop = asyncio.get_running_loop()
        self._line: deque[_Asked] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._late: _Asked | None = None
        self._transport: asyncio.Transport = writer.transport
        self._transport.set_protocol(self)

    @property
    def open(self) -> bool:
        """Whether anything can be asked."""
        return self._open and not self._transport.is_closing()

    def ask(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """The replies, errors of the server among them.

        Raises (in the future):
            RedisError: the connection is lost, or an answer was overdue.
        """
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.open:
            self.send(commands, partial(resolve_future, done))
        else:
            done.set_exception(RedisConnectionError("the connection is closed"))
        return done

    def send(self, commands: Sequence[Command], then: Then) -> None:
        """As `ask`, while it is open; `then` is called when the replies come in, and not before.

        It is called from where bytes are received: it must not raise.
        """
        pack: Any = pack_command  # whose types know of one word only
        packed = b"".join([pack(command) for command in commands])  # which may raise
        self._line.append(_Asked(len(commands), self._loop.time(), then))
        self._transport.write(packed)
        if self._timer is None and self._limit < math.inf:
            self._timer = self._loop.call_later(self._limit, self._refresh)

    def close_when_idle(self) -> None:
        """Close the connection as soon as all that has been asked is answered."""
        self._ending = True
        if not self._line:
            self.close()

    def close(self, error: Exception | None = None) -> None:
        """Close the connection. Whoever waits is told why; cancelled, if there is no reason."""
        if not self._open:
            return
        self._open = False
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        closing: Any = self._connection
        closing._close()  # noqa: SLF001 - or it would complain that nobody has closed it
        why = asyncio.CancelledError() if error is None else error
        while self._line:
            self._line.popleft().then(why)
        self._overhears(why)

    # --- what the transport says ---

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        reader, line = self._reader, self._line
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not self._nothing:
                if isinstance(reply, PushNotification):
                    self._overhears(reply)  # it answers nobody
                    continue
                if not line:
                    raise RedisConnectionError("an answer that nobody has asked for")
                first = line[0]
                first.replies.append(reply)
                if len(first.replies) == first.count:
                    line.popleft()
                    first.then(first.replies)
            if self._ending and not line:
                self.close()
        except RedisError as error:  # no answer after this one could be trusted
            self.close(RedisConnectionError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self.close(RedisConnectionError(f"the connection was lost: {error or 'closed'}"))

    def _refresh(self) -> None:
        """Whether the first in line has waited for too long."""
        self._timer = None
        if not self._line:
            return
        first = self._line[0]
        left = first.at + self._limit - self._loop.time()
        if left > 0:
            self._late = None
        elif self._late is not first:
            self._late, left = first, _GRACE
        else:
            self.close(RedisTimeoutError("an answer is overdue"))
            return
        self._timer = self._loop.call_later(left, self._refresh)
