"""Pipeline commands on one connection: each is sent without waiting for the replies before it.

Redis replies in the order of the commands. So a request puts its callback at the end of a queue and
its bytes into the transport. Each reply belongs to the request at the head of the queue. No
connection is taken from a pool, no task is made, and no request waits for another. redis-py makes
the connection (address, TLS, credentials, database) and its parser. From then on this class owns
the transport.

Only commands that can be repeated are sent here. If a reply is overdue, so are all replies behind
it. The connection is then closed, and the next request opens another one.

Rejected: a reader task on redis-py's own streams, which costs two task switches for each reply, and
several times the work done here.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from jobcache._concurrency.batching import resolve_future
from jobcache.backends.redis.write_coalescing import CoalescedWrites

try:
    from hiredis import PushNotification
    from hiredis import pack_command as _pack
except ImportError:  # without hiredis no connection is pipelined
    PushNotification = list  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

Command = tuple["str | int | bytes", ...]

OnReplies: TypeAlias = "Callable[[list[Any] | BaseException], None]"
"""Called with the replies, or with a `RedisError`, or after `close` with a `CancelledError`."""

_GRACE = 0.05
"""Seconds for a reply that came while the loop was busy, and has not been read yet."""


class NotPipelinable(RedisConnectionError):  # noqa: N818 - a property of the connection
    """The connection has another parser than hiredis', or another encoding than UTF-8."""


class _Pending(NamedTuple):
    """Commands that were sent together, and their replies so far."""

    size: int
    sent_at: float
    on_replies: OnReplies
    replies: list[Any]


class PipelinedConnection(asyncio.Protocol):
    """Pipeline commands on a connection that redis-py has made, and that nothing else uses.

    Args:
        connection: a connection that is connected, with no pending command.
        limit: seconds to wait for a reply; infinite if the caller notices a silent server itself.
        on_push: called with each message that is not a reply, and at the end with the reason why
            the connection was closed. It must not raise.
        coalesces: whether several writes of one turn of the event loop are coalesced.

    Attributes:
        is_closing: returns True if no more commands can be sent.

    Raises:
        NotPipelinable: commands cannot be pipelined on it.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        limit: float,
        on_push: Callable[[list[Any] | BaseException], None] = lambda _: None,
        *,
        coalesces: bool = False,
    ) -> None:
        # Private attributes of redis-py, which has no public access to them. Tests check them.
        parser: Any = connection._parser  # noqa: SLF001
        writer: Any = connection._writer  # noqa: SLF001
        reader = getattr(parser, "_reader", None)
        if reader is None or connection.encoder.encoding.lower() not in {"utf-8", "utf8"}:
            raise NotPipelinable  # hiredis packs ten times as fast as redis-py
        self._reader = reader
        self._incomplete = reader.gets()  # what the parser returns while a reply is incomplete
        self._open = True
        self._closes_when_idle = False
        self._connection = connection
        self._limit = limit
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Pending] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._late: _Pending | None = None
        self._transport: asyncio.Transport = writer.transport
        # The transport's own methods: they are called for each request.
        self.is_closing: Callable[[], bool] = self._transport.is_closing
        self._write: Callable[[bytes], None] = self._transport.write
        if coalesces:
            self._write = CoalescedWrites(self._transport, self._loop).write
        self._transport.set_protocol(self)

    def request(self, commands: Sequence[Command]) -> asyncio.Future[list[Any]]:
        """Return a future of the replies, errors of the server among them.

        Raises (in the future):
            RedisError: the connection is lost, or a reply was overdue.
        """
        done: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.is_closing():
            done.set_exception(RedisConnectionError("the connection is closed"))
        else:
            self.send(commands, partial(resolve_future, done))
        return done

    def send(self, commands: Sequence[Command], on_replies: OnReplies) -> None:
        """Send commands while the connection is open; `on_replies` is called later.

        It is called while bytes are received, so it must not raise.
        """
        pack: Any = _pack  # its type hints allow only one word
        packed = b"".join(map(pack, commands))  # may raise; so nothing is queued before
        self._queue.append(_Pending(len(commands), self._loop.time(), on_replies, []))
        self._write(packed)
        if self._timer is None and self._limit < math.inf:
            self._timer = self._loop.call_later(self._limit, self._check_overdue)

    def close_when_idle(self) -> None:
        """Close the connection as soon as all commands have their replies."""
        self._closes_when_idle = True
        if not self._queue:
            self.close()

    def close(self, error: Exception | None = None) -> None:
        """Close the connection. Pending requests fail with `error`, or are cancelled without."""
        if not self._open:
            return
        self._open = False
        self.is_closing = _always
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        closing: Any = self._connection
        closing._close()  # noqa: SLF001 - without it, redis-py warns of an unclosed connection
        reason = asyncio.CancelledError() if error is None else error
        while self._queue:
            self._queue.popleft().on_replies(reason)
        self._on_push(reason)

    # --- what the transport calls ---

    def data_received(self, data: bytes) -> None:
        """Pass replies to their requests."""
        reader, queue = self._reader, self._queue
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not self._incomplete:
                if isinstance(reply, PushNotification):
                    self._on_push(reply)
                    continue
                if not queue:
                    raise RedisConnectionError("a reply without a request")
                first = queue[0]
                first.replies.append(reply)
                if len(first.replies) == first.size:
                    queue.popleft()
                    first.on_replies(first.replies)
            if self._closes_when_idle and not queue:
                self.close()
        except RedisError as error:  # later replies could belong to other requests
            self.close(RedisConnectionError(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the pending requests."""
        self.close(RedisConnectionError(f"the connection was lost: {error or 'closed'}"))

    def _check_overdue(self) -> None:
        """Close the connection if the first reply is overdue."""
        self._timer = None
        if not self._queue:
            return
        first = self._queue[0]
        left = first.sent_at + self._limit - self._loop.time()
        if left > 0:
            self._late = None
        elif self._late is not first:
            self._late, left = first, _GRACE
        else:
            self.close(RedisTimeoutError("a reply is overdue"))
            return
        self._timer = self._loop.call_later(left, self._check_overdue)


def _always() -> bool:
    return True
