"""The feed of one process, which delivers a report when the explorer says so."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from jobcache.protocol.backend import FeedStatus

if TYPE_CHECKING:
    from collections.abc import Hashable

    from jobcache.protocol.backend import ChangeListener


class SteppedFeed:
    """A `ChangeFeed` of one cell.

    Attributes:
        state: "live"; "silent", when by the clock it is not, though nothing is lost: what has
            changed is told late, and some of it perhaps when it is live again; or "cut".
        waiting: the reports to come. Each is the version that was visible before its change.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._listeners: list[ChangeListener] = []
        self.state: Literal["live", "silent", "cut"] = "live"
        self.waiting: deque[int] = deque()

    # --- see `ChangeFeed` ---

    @property
    def live(self) -> bool:
        """See `ChangeFeed`."""
        return self.state == "live"

    def listen(self, listener: ChangeListener) -> None:
        """See `ChangeFeed`."""
        self._listeners.append(listener)

    def start(self) -> None:
        """It has begun."""

    def condition(self) -> FeedStatus:
        """See `ChangeFeed`."""
        state: Literal["live", "connecting"] = "live" if self.live else "connecting"
        return FeedStatus(state, 0.0, "", 0, {})

    async def aclose(self) -> None:
        """There is nothing to end."""

    # --- for the explorer ---

    @property
    def heard(self) -> int | None:
        """The version that was visible before the first change that is yet to be told.

        None if nothing is, or if nobody relies on it.
        """
        return self.waiting[0] if self.live and self.waiting else None

    def report(self, visible: int) -> None:
        """The cell has changed; `visible` was visible before."""
        if self.state != "cut":
            self.waiting.append(visible)

    def deliver(self) -> None:
        """Tell of the next change."""
        self.waiting.popleft()
        for listener in self._listeners:
            listener.changed([self._key])

    def fall_silent(self) -> None:
        """By the clock it is not live any more."""
        self.state = "silent"

    def cut(self) -> None:
        """What has not been told yet never will be."""
        self.state = "cut"
        self.waiting.clear()
        for listener in self._listeners:
            listener.interrupted()

    def come_back(self) -> None:
        """It is live again."""
        was_cut, self.state = self.state == "cut", "live"
        if was_cut:
            for listener in self._listeners:
                listener.resumed()

    def fingerprint(self) -> Hashable:
        """What decides about the future."""
        return self.state, tuple(self.waiting)
