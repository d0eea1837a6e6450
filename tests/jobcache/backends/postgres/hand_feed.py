"""A feed whose connection is a test: it delivers notifications when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jobcache.backends.heartbeat_feed import FeedLost
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.errors import CacheUnavailable


class HandWriters:
    """Writers whose notifications a test delivers."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.error: CacheUnavailable | None = None
        self.on_sent: Callable[[str], object] = self.sent.append

    async def notify(self, notifications: Sequence[tuple[str, str]]) -> None:
        if self.error is not None:
            raise self.error
        for channel, payload in notifications:
            if not channel.startswith("jobcache.heartbeat."):
                self.on_sent(payload)

    async def renew(self) -> None:
        raise AssertionError("nobody asked for it")

    async def aclose(self) -> None:
        """There is nothing to close."""


class HandFeed(PostgresFeed):
    """A feed that is live, and cut, when a test says so."""

    def __init__(self, own_report: float = 60.0) -> None:
        self.writers = HandWriters()
        super().__init__(self._never, self.writers, own_report=own_report)
        self._connected = True
        self.up()

    async def _never(self) -> object:
        raise AssertionError("a test does not connect")

    def start(self) -> None:
        """There is nothing to follow."""

    async def connected(self) -> None:
        """There is nothing to wait for."""

    def up(self) -> None:
        """A heartbeat has come back."""
        self._live_until = float("inf")
        if not self._connected:
            self._connected = True
            for listener in self._listeners:
                listener.resumed()

    async def send_heartbeat(self) -> None:
        """Send a heartbeat with what is owed; it comes back."""
        self._number += 1
        self._awaited = str(self._number)
        await self._notify_owed(self._awaited)
        self._came_back(self._awaited)
        self.up()

    def lapse(self) -> None:
        """The proof is too old; the connection may be whole."""
        self._live_until = 0.0

    def cut(self) -> None:
        """The connection is lost."""
        self._interrupt(FeedLost("cut"))

    def time_out(self) -> None:
        """Nobody waits any longer for a report of this process."""
        self._forget_expected()

    def deliver(self, *payloads: str) -> None:
        for payload in payloads:
            self._report(payload)
