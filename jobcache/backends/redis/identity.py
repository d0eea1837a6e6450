"""The identity of the server behind an address: the incarnation that answers there now.

Every cell carries the incarnation id of the server on which it was written. So each command is made
for the connection on which it is sent:

    W's fence is sent to A, which dies; the next connection leads to B: a new fence is made for B

If a new connection finds another incarnation, all older connections become suspect: they may lead
to the server that had this address before. Each is replaced before it is used, and its pending
commands are sent again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from jobcache.errors import NamespaceConflict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from redis.asyncio.connection import AbstractConnection

_BETWEEN_SUSPICIONS = 0.2
"""Seconds. Connections to a server that refuses writes are not replaced for each command."""


class Incarnation(NamedTuple):
    """The incarnation of the server that a connection leads to.

    Attributes:
        incarnation_id: the id of the incarnation, learned when the connection was made.
        generation: a number that `Identity.invalidate` raises. Connections of an older generation
            are replaced.
    """

    incarnation_id: str | None
    generation: int


class Identity:
    """Remembers which incarnation of a server its connections lead to.

    Args:
        learn: asks a new connection for the incarnation id of the server that it leads to.
        clock: monotonic time in seconds.

    Attributes:
        current: the incarnation, and the generation of connections that are not suspect. An older
            connection is replaced before it is used, even if it leads to the same incarnation.
        incarnations: how often the incarnation has changed.
    """

    def __init__(
        self, learn: Callable[[AbstractConnection], Awaitable[str]], clock: Callable[[], float]
    ) -> None:
        self.learn = learn
        self.current = Incarnation(None, 0)
        self.incarnations = 0
        self._clock = clock
        self._last_id: str | None = None
        self._suspicious_from = -math.inf
        self._known: WeakKeyDictionary[AbstractConnection, Incarnation] = WeakKeyDictionary()

    def of(self, connection: AbstractConnection) -> Incarnation | None:
        """Return the incarnation that a connection leads to; None if it was not recorded."""
        return self._known.get(connection)

    def invalidate(self) -> None:
        """Have every connection replaced before its next use."""
        self.current = Incarnation(None, self.current.generation + 1)

    def mark_suspect(self) -> None:
        """Invalidate, because the server has refused a write; at most once in 0.2 s."""
        if self._clock() >= self._suspicious_from:
            self._suspicious_from = self._clock() + _BETWEEN_SUSPICIONS
            self.invalidate()

    async def record(self, connection: AbstractConnection, generation: int) -> None:
        """Learn which incarnation a new connection leads to.

        Args:
            connection: a connection that is ready except for this.
            generation: the generation that was current when the connection was started.

        Raises:
            NamespaceConflict: the namespace on that server belongs to another source.
            RedisError: as raised by redis-py.
        """
        try:
            incarnation_id = await self.learn(connection)
        except NamespaceConflict:
            self.invalidate()  # older connections may lead to the same server
            raise
        self._known[connection] = Incarnation(incarnation_id, generation)
        self.current = Incarnation(incarnation_id, self.current.generation)
        if incarnation_id != self._last_id:
            self.incarnations += self._last_id is not None
            self._last_id = incarnation_id
