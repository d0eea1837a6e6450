"""The listening connection of a simulated PostgreSQL, and what it delivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from jobcache.testing.simulation.virtual_loop import VirtualLoop

    _Send = Callable[[Sequence[tuple[str, str]]], None]

CHANNEL = "jobcache"


@dataclass(frozen=True, eq=False, slots=True)
class Sent:
    """A notification that one process has not received yet.

    Attributes:
        channel: the channel.
        payload: the payload.
        since: the first version that it announces; None if it announces none.
        version: the version that the database held when it was sent.
        at: when it was sent, by the clock of the process that receives it.
    """

    channel: str
    payload: str
    since: int | None
    version: int
    at: float


class Connection:
    """What asyncpg's connection does for the feed.

    Args:
        loop: of the process.
        server: the server to which it leads.
        send: sends notifications on this connection.
        waits: whether the answer to LISTEN waits for the explorer.
        pooled: whether there is a pooler in transaction mode on the way: it passes on nothing but
            the notifications that are sent on this connection.
    """

    def __init__(
        self, loop: VirtualLoop, server: int, send: _Send, *, waits: bool, pooled: bool
    ) -> None:
        self._loop = loop
        self._send = send
        self._waits = waits
        self._channels: set[str] = set()
        self._callbacks: dict[str, Callable[[Any, int, str, str], None]] = {}
        self._answer: asyncio.Future[None] | None = None
        self._on_end: list[Callable[[Any], None]] = []
        self._closed = False
        self.server = server
        self.pooled = pooled

    # --- for the feed ---

    def add_termination_listener(self, listener: Callable[[Any], None]) -> None:
        """Call the listener when the connection is lost."""
        self._on_end.append(listener)

    def get_server_pid(self) -> int:
        """Return the process id of the server."""
        return 1

    async def execute(self, _: str) -> str:
        """Say whether the process id is that of the server."""
        return "SELECT 0" if self.pooled else "SELECT 1"

    async def fetchrow(self, _: str) -> tuple[bool, str]:
        """Say that the server is no standby, and which one it is."""
        return False, str(self.server)

    def fetchval(self, _: str) -> Awaitable[float]:
        """Do not say how full the queue is."""
        raise OSError

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        """Send notifications on this connection, as only a broken feed does."""
        self._send(notifications)

    async def add_listener(
        self, channel: str, callback: Callable[[Any, int, str, str], None]
    ) -> None:
        """Listen. Until this has returned, asyncpg loses what the server sends on the channel."""
        self._channels.add(channel)
        if self._waits and channel == CHANNEL:
            self._answer = self._loop.create_future()
            await self._answer
        self._callbacks[channel] = callback

    def is_closed(self) -> bool:
        """Return whether it is closed."""
        return self._closed

    def terminate(self) -> None:
        """Close it."""
        self._closed = True

    # --- for the explorer ---

    def listens_to(self, channel: str) -> set[str]:
        """Return the channels on which the server sends."""
        return set() if self._closed else self._channels & {channel}

    def is_waiting(self) -> bool:
        """Return whether LISTEN was not answered yet."""
        return self._answer is not None

    def register(self) -> None:
        """Answer LISTEN."""
        assert self._answer is not None
        answer, self._answer = self._answer, None
        answer.set_result(None)

    def deliver(self, sent: Sent) -> None:
        """Deliver a notification."""
        callback = self._callbacks.get(sent.channel)
        if callback is not None:
            callback(self, 1, sent.channel, sent.payload)

    def end(self) -> None:
        """Be lost."""
        self._closed = True
        if self._answer is not None:
            self._answer.set_exception(ConnectionResetError())
        for listener in self._on_end:
            listener(self)

    def fingerprint(self) -> Hashable:
        """Return all that decides about the future."""
        return self.server, self.pooled, self._answer is None, len(self._callbacks)
