"""One attempt to send commands on an open connection, without a task."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError

from jobcache._concurrency.batching import resolve_future
from jobcache.backends.redis.refused_commands import is_suspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.backends.redis.identity import Identity, Incarnation

T = TypeVar("T")


class SendAgain(Exception):  # noqa: N818 - an instruction
    """The replies have no result: the commands must be sent again, in another form."""


class Attempt(Generic[T]):
    """Turn the replies to commands into a result, or have the commands sent again.

    They are sent again if the connection is lost, if it leads to an older incarnation of the
    server, or if `read` raises `SendAgain`. All commands can be repeated.

    Args:
        identity: the identity of the server.
        incarnation: the incarnation that the connection leads to.
        read: makes the result from the replies and the incarnation id.
        retry: sends the commands again; called with the future to resolve.
        translate: returns the error to raise in place of the given one.

    Attributes:
        future: the future of the result.
    """

    __slots__ = ("_identity", "_incarnation", "_read", "_retry", "_translate", "future")

    def __init__(
        self,
        identity: Identity,
        incarnation: Incarnation,
        read: Callable[[list[Any], str], T],
        retry: Callable[[asyncio.Future[T]], None],
        translate: Callable[[BaseException], BaseException],
    ) -> None:
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._identity = identity
        self._incarnation = incarnation
        self._read = read
        self._retry = retry
        self._translate = translate

    def on_replies(self, replies: list[Any] | BaseException) -> None:
        """Resolve the future, or send the commands again; see `PipelinedConnection.send`."""
        try:
            if isinstance(replies, BaseException):
                if not isinstance(replies, RedisConnectionError):
                    raise replies  # noqa: TRY301 - translated like any other error
                raise SendAgain  # noqa: TRY301
            for reply in replies:
                if isinstance(reply, Exception) and is_suspect(reply):
                    self._identity.mark_suspect()
            if self._incarnation != self._identity.current:
                raise SendAgain  # noqa: TRY301
            result = self._read(replies, str(self._incarnation.incarnation_id))
        except SendAgain:
            self._retry(self.future)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - raised to the caller
            resolve_future(self.future, self._translate(error))
        else:
            if not self.future.done():
                self.future.set_result(result)
