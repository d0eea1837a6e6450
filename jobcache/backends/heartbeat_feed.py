"""What change feeds that prove themselves by heartbeats have in common: their state, and the loop.

A feed of this kind is live while its last proof is younger than a limit. Each feed decides what a
proof is, and how it receives the changes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jobcache.backends._closing import end_all
from jobcache.observability.statistics import Histogram
from jobcache.protocol.change_feed import FeedStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Literal

    from jobcache.protocol.change_feed import ChangeListener

logger = logging.getLogger("jobcache")

_PAUSES = (0.05, 1.0)  # seconds between two attempts to connect: the first, and the longest
_LONG = 10.0  # seconds after which it is logged that the feed has never been live
_UNSUPPORTED_PAUSE = 30.0  # seconds until the next attempt where there is no feed


class FeedLost(Exception):  # noqa: N818 - says what has happened
    """The feed may miss changes from now on."""


class FeedUnsupported(FeedLost):
    """The store does not report changes, and another attempt would end in the same way."""


class HeartbeatFeed(ABC):
    """The base class of a `ChangeFeed` that proves itself by heartbeats.

    A subclass implements `_follow`. It calls `_prove` for each heartbeat that came back, and
    reports changes to `_listeners`.

    Args:
        store: the name of the store, for log messages.
        heartbeat: seconds between two heartbeats.
        silence: seconds that the feed is live after it sent a heartbeat that came back.
        clock: monotonic time in seconds.
        sleep: waits for the given seconds.
    """

    def __init__(
        self,
        store: str,
        *,
        heartbeat: float,
        silence: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._store = store
        self._heartbeat = heartbeat
        self._silence = silence
        self._clock = clock
        self._sleep = sleep
        self._listeners: list[ChangeListener] = []
        self._live_until = 0.0
        self._connected = False
        self._state: Literal["idle", "connecting", "live", "unsupported"] = "idle"
        self._since = clock()
        self._reason = ""
        self._next_pause = _PAUSES[0]
        self._interruptions = 0
        self._lag = Histogram()
        self._attempted = asyncio.Event()
        self._warn_at = math.inf
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    # --- the protocol `ChangeFeed` ---

    @property
    def live(self) -> bool:
        """Whether every change from now on will be reported. Read on every hit."""
        return self._clock() < self._live_until

    def listen(self, listener: ChangeListener) -> None:
        """Report changes to `listener` from now on."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Start to follow the changes, in the running loop."""
        if self._task is None and not self._closed:
            self._enter("connecting", "not connected yet")
            self._warn_at = self._clock() + _LONG
            self._task = asyncio.create_task(self._run())

    def condition(self) -> FeedStatus:
        """Return the present state of the feed."""
        late = self._state == "live" and not self.live
        return FeedStatus(
            state="connecting" if late else self._state,
            age=self._clock() - self._since,
            reason="the last heartbeat is late" if late else self._reason,
            interruptions=self._interruptions,
            lag_us=self._lag.summary(),
            lag_counts=self._lag.counts(),
        )

    async def aclose(self) -> None:
        """End the feed."""
        self._closed = True
        self._live_until = 0.0
        if self._task is not None:
            await end_all({self._task})
        self._live_until = 0.0  # a heartbeat may have come back meanwhile

    # --- connecting and reconnecting ---

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except FeedLost as error:
                self._interrupt(error)
            except Exception as error:
                # If this task ended, no change would be reported any more.
                logger.exception("following the changes in %s failed", self._store)
                self._interrupt(FeedLost(repr(error)))
            self._attempted.set()
            unsupported = self._state == "unsupported"
            pause = _UNSUPPORTED_PAUSE if unsupported else self._next_pause
            self._next_pause = min(2 * self._next_pause, _PAUSES[1])
            await self._sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - spreads them

    @abstractmethod
    async def _follow(self) -> None:
        """Follow the changes until the feed is lost.

        Raises:
            FeedLost: it was lost. There is no other end.
        """

    # --- state ---

    def _prove(self, until: float) -> None:
        """Note that every change is reported, and that this is certain until the given time."""
        self._live_until = until
        if self._connected:
            return
        self._connected, self._next_pause = True, _PAUSES[0]
        if self._interruptions:
            away = self._clock() - self._since
            logger.warning("the feed of changes in %s is back after %.1f s", self._store, away)
        self._enter("live", "")
        self._attempted.set()
        for listener in self._listeners:
            listener.resumed()

    def _report_anything(self) -> None:
        """Report that anything may have changed."""
        if self._connected:
            for listener in self._listeners:
                listener.interrupted()
                listener.resumed()

    def _interrupt(self, error: FeedLost) -> None:
        """End the proof, and tell the listeners."""
        self._live_until = 0.0
        if self._connected:
            self._connected = False
            self._interruptions += 1
            for listener in self._listeners:
                listener.interrupted()
        if isinstance(error, FeedUnsupported):
            if self._state != "unsupported":
                logger.warning(
                    "%s reports no changes (%s): reads ask it every time", self._store, error
                )
            self._enter("unsupported", str(error))
        else:
            if not self._interruptions and self._clock() >= self._warn_at:
                self._warn_at = math.inf
                logger.warning("the feed of changes in %s cannot connect (%s)", self._store, error)
            if self._state == "live":
                logger.warning("the feed of changes in %s is interrupted (%s)", self._store, error)
            self._enter("connecting", str(error))

    def _enter(self, state: Literal["connecting", "live", "unsupported"], reason: str) -> None:
        if state != self._state:
            self._state, self._since = state, self._clock()
        self._reason = reason
