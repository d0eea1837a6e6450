"""The change feed of Redis: server-assisted tracking, in broadcast mode.

Each primary has one connection of its own, on which it reports every key of the namespace that
changes: written, deleted, expired, evicted or flushed. No other command uses this connection, and
no other connection is tracked.

A *heartbeat* proves that no report is missing: at intervals the feed writes keys of its own and
waits for the reports of these writes. Reports come in the order of changes. So when the heartbeat
comes back, everything that changed before it was sent has been reported, and tracking is on. The
heartbeat is written on the connections on which this process reads and writes cells, one key on
each. So it also proves that these lead to the server that reports:

    the address moves from A to B; A lives on as a replica of B; reads still go to A
    the feed reconnects, to B, and no change of A is reported: but the heartbeat on A is refused

A heartbeat that is refused, or does not come back, makes all these connections suspect. The feed is
live while the last such proof is younger than a limit, counted from when the heartbeat was *sent*.
So a caller that checks `live` before a read gets nothing that was outdated for longer than that
limit, even if the network, the server or a busy event loop delays the reports.

Rejected: PING as a heartbeat. Its reply overtakes reports of commands that the server executed in
the same turn, and it comes even if tracking is off.

Rejected: publishing the changes ourselves. A subscriber that has missed a message does not know.

Rejected: tracking single keys, without broadcast. The server forgets which keys a client has read,
and every read would have to use the tracked connection.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from jobcache.backends._closing import end_all
from jobcache.backends.heartbeat_feed import FeedLost, HeartbeatFeed
from jobcache.backends.redis.tracking.connection import HANDSHAKE, Endpoint, track
from jobcache.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class TrackingFeed(HeartbeatFeed):
    """A `ChangeFeed` of one namespace.

    Args:
        primaries: returns the present primaries.
        generation: returns a number that changes whenever the primaries do. The feed then starts
            again.
        prefix: the prefix of the namespace.
        heartbeat: seconds between two heartbeats.
        silence: seconds that the feed is live after it sent a heartbeat that came back.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        primaries: Callable[[], Awaitable[Sequence[Endpoint]]],
        *,
        generation: Callable[[], int],
        prefix: str = "",
        heartbeat: float = 0.5,
        silence: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__("Redis", heartbeat=heartbeat, silence=silence, clock=clock, sleep=sleep)
        self._primaries = primaries
        self._generation = generation
        self._prefix = prefix.encode("ascii")
        self._token = f"{random.getrandbits(64):016x}"
        # For each primary, until when its last heartbeat counts as proof; 0 before the first one.
        self._confirmed_until: dict[str, float] = {}

    async def _follow(self) -> None:
        """Follow every primary until one of them is lost.

        Raises:
            FeedLost: a primary was lost. There is no other end.
        """
        generation = self._generation()
        try:
            endpoints = await self._primaries()
        except CacheError as error:
            raise FeedLost(str(error)) from error
        _raise_cancellation()
        self._confirmed_until = {endpoint.name: 0.0 for endpoint in endpoints}
        following = {
            asyncio.create_task(self._follow_one(endpoint, generation), name=endpoint.name)
            for endpoint in endpoints
        }
        try:
            await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in following:
                task.cancel()
            await asyncio.wait(following)
        # Of all of them: asyncio reports errors that nobody has looked at.
        ended = [task.exception() for task in following if not task.cancelled()]
        raise next((error for error in ended if error is not None), FeedLost("it was cancelled"))

    async def _follow_one(self, endpoint: Endpoint, generation: int) -> None:
        heartbeats = _Heartbeats(endpoint, self._token, self._heartbeat, self._silence, self._clock)

        def at_once(keys: Sequence[bytes]) -> bool:
            """Report changes as they arrive. The loop below sees those with a heartbeat as well."""
            self._report(keys)
            return heartbeats.names.isdisjoint(keys)

        try:
            async with track(endpoint, self._prefix, at_once) as connection:
                while True:
                    _raise_cancellation()
                    if generation != self._generation():
                        raise FeedLost("the primaries have changed")
                    if heartbeats.send_if_due(connection.wake):
                        await connection.check()
                    keys = await connection.report(heartbeats.patience())
                    if keys is None:
                        # All keys were flushed. The server does not say which ones it held.
                        self._report_anything()
                        continue
                    if keys:
                        # First: a heartbeat among these keys confirms that all were reported.
                        self._report(keys)
                    took = heartbeats.came_back(keys)
                    if took is not None:
                        self._lag.record(round(took * 1e9))
                        self._confirm(endpoint, heartbeats.deadline)
        finally:
            await heartbeats.aclose()

    # --- reports ---

    def _confirm(self, endpoint: Endpoint, until: float) -> None:
        self._confirmed_until[endpoint.name] = until
        earliest = min(self._confirmed_until.values())
        if earliest > 0.0:  # else no heartbeat has come back from another primary yet
            self._prove(earliest)

    def _report(self, keys: Sequence[bytes]) -> None:
        start = len(self._prefix)
        names = [key[start:].decode("utf-8", "replace") for key in keys]
        for listener in self._listeners:
            listener.changed(names)


class _Heartbeats:
    """Sends the heartbeats of one primary, and notices when one comes back.

    Args:
        endpoint: the primary.
        token: makes the keys of this feed unique.
        every: seconds between two heartbeats.
        silence: seconds after a heartbeat was sent until the next one must have come back.
        clock: monotonic time in seconds.

    Attributes:
        names: the keys that a heartbeat writes, as they are reported.
        deadline: the time by which the next heartbeat must have come back.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        token: str,
        every: float,
        silence: float,
        clock: Callable[[], float],
    ) -> None:
        self._endpoint = endpoint
        self._keys = endpoint.heartbeat_key(f"{token}r"), endpoint.heartbeat_key(f"{token}s")
        self._every = every
        self._silence = silence
        self._clock = clock
        self.names = frozenset(key.encode("ascii") for key in self._keys)
        self.deadline = clock() + HANDSHAKE
        self._due = 0.0
        self._sent: float | None = None
        self._awaited: set[bytes] = set()
        self._writing: asyncio.Task[None] | None = None

    def send_if_due(self, wake: Callable[[], object]) -> bool:
        """Send a heartbeat if it is due; return whether it was sent.

        Args:
            wake: called when the heartbeat has been written or refused.

        Raises:
            FeedLost: the last heartbeat was refused, or did not come back in time.
        """
        now = self._clock()
        if self._writing is not None and self._writing.done():
            self._check_written(self._writing)
            self._writing = None
        if now >= self.deadline:
            self._endpoint.mark_suspect()
            raise FeedLost(f"{self._endpoint.name} has been silent for {self._silence:g} s")
        if self._sent is not None or now < self._due:
            return False
        self._sent, self._due, self._awaited = now, now + self._every, set(self.names)
        self._writing = asyncio.create_task(self._endpoint.heartbeat(*self._keys))
        self._writing.add_done_callback(lambda _: wake())
        return True

    def _check_written(self, writing: asyncio.Task[None]) -> None:
        if writing.cancelled():
            raise FeedLost(f"{self._endpoint.name} is not used any more")
        error = writing.exception()
        if error is not None:
            raise FeedLost(f"{self._endpoint.name}: {error}") from error

    def patience(self) -> float:
        """Return the seconds until a heartbeat is due or overdue."""
        return (self._due if self._sent is None else self.deadline) - self._clock()

    def came_back(self, keys: Sequence[bytes]) -> float | None:
        """Return the seconds that the heartbeat took, if these keys complete it, or None."""
        if self._sent is None or self._awaited.isdisjoint(keys):
            return None
        self._awaited.difference_update(keys)
        if self._awaited:
            return None
        took = self._clock() - self._sent
        self.deadline, self._sent = self._sent + self._silence, None
        return took

    async def aclose(self) -> None:
        """Cancel a heartbeat that is being written."""
        if self._writing is not None:
            await end_all({self._writing})


def _raise_cancellation() -> None:
    """Raise a cancellation that redis-py has swallowed.

    redis-py sends through `asyncio.wait_for`. Before Python 3.12, that returns a result which is
    already there, instead of raising the cancellation. `aclose` would then wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
