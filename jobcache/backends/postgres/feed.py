"""The change feed of PostgreSQL: LISTEN on a connection of its own, and heartbeats.

A transaction notifies of the keys that it changes. PostgreSQL sends its notifications after the
commit, in the order of the commits, and none if it rolls back. So a report comes when the new
version can be read, and a writer that dies after its commit hides nothing.

A *heartbeat* proves that no report is missing: the feed notifies itself, on a channel of this
process, and waits for that. Everything that was committed before the heartbeat was sent has then
been reported. Heartbeats are sent on the connections on which this process writes. So they also
prove that these lead to the server that reports:

    the address moves from A to B, and A lives on; the feed listens on B; a pooled connection leads
    to A, where R loads v1: but the heartbeats that use this connection do not come back

A heartbeat that is refused or does not come back has these connections replaced. They are replaced,
too, when the feed has connected to another server than before, and before it is live again.

The feed is live while the last proof is younger than a limit, counted from when the heartbeat was
*sent*. So a caller that checks `live` before a read gets nothing that was outdated for longer,
whatever delays the reports.

A heartbeat that waits for a connection of a busy pool, or for a busy event loop, only ends that
time: the feed is live again when it comes back, and nothing is dropped. If it was sent, and does
not come back, then the connection is lost.

The first heartbeat is sent when the connection listens to every channel: asyncpg loses a
notification that arrives before `add_listener` has returned.

A transaction should notify of what it changes. If its report does not come soon, the server or this
event loop may only be slow, so the feed waits for a heartbeat that was sent after the commit. If
the report is still missing then, the transaction has not notified, and the feed does. At once, it
would double the notifications while the server is slow: their commits wait for each other, and
each costs every process a load.

Rejected: heartbeats on the listening connection. Behind a pooler they come back, and nothing else.

Rejected: fences. A report before the commit would empty the cells in time, but the next reader
would store the old version again, and only a second report would remove it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobcache.backends._closing import end_all
from jobcache.backends.heartbeat_feed import FeedLost, HeartbeatFeed
from jobcache.backends.postgres.connection import brief, listen
from jobcache.backends.postgres.owed import Owed
from jobcache.backends.postgres.payloads import decode, encode
from jobcache.backends.postgres.queue_usage import QueueUsage
from jobcache.backends.postgres.writers import NotNow
from jobcache.errors import CacheUnavailable, SettingsError
from jobcache.observability.log_limit import LogLimit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobcache.backends.postgres.connection import Connect, Listening
    from jobcache.backends.postgres.writers import Writers
    from jobcache.protocol.change_feed import FeedStatus

logger = logging.getLogger("jobcache")

_FIRST_ATTEMPT = 2.0  # seconds that `connected` waits
_LONGEST_SENDING = 30.0  # seconds; the writers have shorter limits of their own
_LINES = 5  # a minute


class PostgresFeed(HeartbeatFeed):
    """A `ChangeFeed` of one namespace.

    Args:
        connect: opens the listening connection.
        writers: the connections on which this process writes.
        channel: the channel of the namespace.
        heartbeat: seconds between two heartbeats.
        silence: seconds that the feed is live after it sent a heartbeat that came back.
        own_report: seconds that `arrived` waits.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.

    Attributes:
        channel: as given.
    """

    def __init__(
        self,
        connect: Connect,
        writers: Writers,
        *,
        channel: str = "jobcache",
        heartbeat: float = 0.5,
        silence: float = 2.0,
        own_report: float = 0.25,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(
            "PostgreSQL", heartbeat=heartbeat, silence=silence, clock=clock, sleep=sleep
        )
        self.channel = channel
        self._connect = connect
        self._writers = writers
        self._own_report = own_report
        self._queue = QueueUsage()
        # The process's own channel. Its numbers go on after a reconnection, so that a late
        # heartbeat of the connection before proves nothing.
        self._own_channel = f"jobcache.heartbeat.{secrets.token_hex(8)}"
        self._number = 0
        self._awaited: str | None = None
        self._sent_at = 0.0
        self._due = 0.0
        self._deadline = 0.0
        self._connection: Any = None
        self._incarnation: str | None = None
        self._error: Exception | None = None
        self._wake = asyncio.Event()
        self._expected: dict[str, dict[str, asyncio.Future[bool]]] = {}  # by token and key
        self._on_report: dict[tuple[str, str], Callable[[], object]] = {}  # the same
        self._owed = Owed()
        self._silent = LogLimit(_LINES)

    async def connected(self) -> None:
        """Start, and wait a moment until the feed is live, or the first attempt has failed.

        Raises:
            SettingsError: a pooler stands before the server.
        """
        self.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ATTEMPT):
                await self._attempted.wait()
        if self._state == "unsupported":
            raise SettingsError("DATABASE_DIRECT_URL", "", self._reason)

    def condition(self) -> FeedStatus:
        """Return the present state of the feed."""
        return replace(super().condition(), queue_usage=self._queue.share)

    async def aclose(self) -> None:
        """End the feed."""
        await super().aclose()
        self._forget_expected()
        await self._writers.aclose()

    # --- notifications of this process ---

    def expect(self, key: str, token: str, on_report: Callable[[], object] | None = None) -> None:
        """Note that this process is about to commit a change that notifies with this token.

        Args:
            key: the key.
            token: of the writer.
            on_report: called when the report has come, before any later one is handled.
        """
        expected: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._expected.setdefault(token, {})[key] = expected
        if on_report is not None:
            self._on_report[token, key] = on_report

    async def arrived(self, key: str, token: str) -> bool:
        """Return whether the notification has been reported; wait a moment for it.

        True means that everything which was known of `key` before the commit has been dropped.
        """
        expected = self._expected.get(token, {}).get(key)
        if expected is None:
            return False
        try:
            if not expected.done() and self.live:
                await asyncio.wait((expected,), timeout=self._own_report)
            return expected.done() and expected.result()
        finally:
            self.forget(key, token)

    def forget(self, key: str, token: str) -> None:
        """Wait no longer for a notification."""
        expected = self._expected.get(token)
        if expected is not None:
            expected.pop(key, None)
            if not expected:
                del self._expected[token]
        self._on_report.pop((token, key), None)

    async def notify(self, keys: Sequence[str], token: str = "") -> None:
        """Notify all processes of changed keys; this one is notified later, as any other.

        If that fails, or reaches nobody, it is repeated with a heartbeat.

        Raises:
            CacheUnavailable: the notification may not have been sent.
        """
        token = token or secrets.token_hex(8)
        if self._connected:
            self._owed.sending(token, keys)
        else:
            self._owed.add(keys)  # nothing would be heard
        try:
            await self._writers.notify([(self.channel, each) for each in encode(token, keys)])
        except BaseException as error:
            self._owed.failed(token, keys)
            if isinstance(error, Exception) and not isinstance(error, CacheUnavailable):
                raise CacheUnavailable(brief(error)) from error  # such as a key it cannot encode
            raise
        self._owed.sent(token, keys, self._number + 1)

    def make_good(self, key: str, token: str) -> None:
        """Notify of a key, unless the report of its transaction comes before the next heartbeat."""
        self._owed.committed(token, key, self._number + 1)

    # --- connecting and reconnecting ---

    async def _follow(self) -> None:
        """Follow the changes on one connection until it is lost.

        Raises:
            FeedLost: it was lost. There is no other end.
        """
        self._error, self._awaited = None, None
        channels = self.channel, self._own_channel
        try:
            async with listen(self._connect, channels, self._received, self._on_end) as listening:
                if self._incarnation not in {None, listening.incarnation}:
                    await self._writers.renew()
                self._incarnation = listening.incarnation
                self._connection = listening.connection
                if listening.connection.is_closed():
                    raise FeedLost("the connection was closed")
                await self._beat(listening)
        finally:
            self._connection = None

    async def _beat(self, listening: Listening) -> None:
        """Send heartbeats until one is missing, or the connection is lost."""
        polling = asyncio.create_task(self._queue.poll(listening.connection, self._sleep))
        sending: asyncio.Task[None] | None = None
        self._due = 0.0
        try:
            while True:
                self._wake.clear()
                if self._error is not None:
                    raise self._error
                now = self._clock()
                if sending is not None and sending.done():
                    await self._check_sent(sending)
                    sending = None
                    self._deadline = now + self._silence
                idle = sending is None and self._awaited is None
                if idle and now >= self._due:
                    self._due = now + self._heartbeat
                    sending = self._send(now)
                    self._deadline = now + _LONGEST_SENDING
                    idle = False
                if not idle and now >= self._deadline:
                    await self._writers.renew()
                    raise FeedLost(f"no heartbeat came back for {self._silence:g} s")
                await self._pause((self._due if idle else self._deadline) - now)
        finally:
            await end_all([polling] if sending is None else [polling, sending])

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.001)):
                await self._wake.wait()

    # --- heartbeats ---

    def _send(self, now: float) -> asyncio.Task[None]:
        """Send a heartbeat, behind the notifications that are owed."""
        self._number += 1
        self._awaited, self._sent_at = str(self._number), now
        sending = asyncio.create_task(self._notify_owed(self._awaited))
        sending.add_done_callback(lambda _: self._wake.set())
        return sending

    async def _notify_owed(self, heartbeat: str) -> None:
        notifications = [(self.channel, each) for each in encode("", self._owed.carry())]
        await self._writers.notify([*notifications, (self._own_channel, heartbeat)])

    async def _check_sent(self, sending: asyncio.Task[None]) -> None:
        if sending.cancelled():
            raise FeedLost("the connections of the writers are closed")
        try:
            sending.result()
        except NotNow:
            self._awaited = None
            self._owed.not_sent()
        except CacheUnavailable as error:
            # The connections may lead to a server that was demoted.
            await self._writers.renew()
            raise FeedLost(f"the heartbeat was not sent: {error}") from error
        except Exception:
            self._owed.refused()
            raise

    def _came_back(self, heartbeat: str) -> None:
        if heartbeat != self._awaited:
            return
        self._awaited = None
        self._lag.record(round((self._clock() - self._sent_at) * 1e9))
        self._wake.set()
        for lost in self._owed.came_back(int(heartbeat)):
            self._due = 0.0
            if lost.by_statement:
                self._warn_of_silence(lost.keys[0])
        self._prove(self._sent_at + self._silence)

    def _warn_of_silence(self, key: str) -> None:
        more = self._silent.admit()
        if more is not None:
            logger.warning(
                "the transaction that changed %r has not notified of it, so it is done now: does"
                " the statement call pg_notify?%s",
                key,
                more,
            )

    # --- what the connection reports ---

    def _received(self, connection: object, _: int, channel: str, payload: str) -> None:
        """Handle a notification. asyncpg calls it in the order in which they arrived."""
        if connection is not self._connection or self._error is not None:
            return  # a connection that was given up
        try:
            if channel == self._own_channel:
                self._came_back(payload)
            else:
                self._report(payload)
        except Exception as error:  # noqa: BLE001 - raised by the task, which connects again
            # What the other listeners have missed, they must not trust.
            self._lose(error)

    def _report(self, payload: str) -> None:
        token, keys = decode(payload)
        if keys is not None:
            for listener in self._listeners:
                listener.changed(keys)
        else:
            self._report_anything()
        for key, expected in self._expected.get(token, {}).items():
            if (keys is None or key in keys) and not expected.done():
                expected.set_result(True)
                on_report = self._on_report.pop((token, key), None)
                if on_report is not None:
                    on_report()
        self._owed.heard(token, keys)

    def _on_end(self, connection: object) -> None:
        if connection is self._connection:
            self._lose(FeedLost("the connection was closed"))

    def _lose(self, error: Exception) -> None:
        """Give the connection up, in this turn of the event loop."""
        self._error = error
        self._interrupt(error if isinstance(error, FeedLost) else FeedLost(repr(error)))
        self._wake.set()

    def _interrupt(self, error: FeedLost) -> None:
        super()._interrupt(error)
        self._forget_expected()
        self._owed.doubt()

    def _forget_expected(self) -> None:
        for expected in self._expected.values():
            for each in expected.values():
                if not each.done():
                    each.set_result(False)
