"""The feed of one process, which delivers a report when the explorer says so."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

from jobcache.protocol.change_feed import FeedStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from jobcache.protocol.change_feed import ChangeListener


class SteppedFeed:
    """A `ChangeFeed` of one cell.

    Attributes:
        state: "live"; "silent", which is not live by the clock, but loses nothing: reports arrive
            late, some of them perhaps when the feed is live again; or "cut".
        through: delivers the next report, on behalf of somebody.
        waiting: the reports to come. Each is the version that was visible before its change.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._listeners: list[ChangeListener] = []
        self.state: Literal["live", "silent", "cut"] = "live"
        self.waiting: deque[int] = deque()
        self.through: Callable[[], None] = self.deliver

    # --- for the backend ---

    @property
    def live(self) -> bool:
        """Whether every change is reported."""
        return self.state == "live"

    def listen(self, listener: ChangeListener) -> None:
        """Report to a listener from now on."""
        self._listeners.append(listener)

    def start(self) -> None:
        """Do nothing: the feed runs from the beginning."""

    def condition(self) -> FeedStatus:
        """Return the status."""
        state: Literal["live", "connecting"] = "live" if self.live else "connecting"
        return FeedStatus(state, 0.0, "", 0, {})

    async def aclose(self) -> None:
        """Do nothing: there is nothing to close."""

    # --- for the explorer ---

    @property
    def reported(self) -> int | None:
        """The version that was visible before the first change that was not reported yet.

        None if there is no such change, or if nobody relies on the feed.
        """
        return self.waiting[0] if self.live and self.waiting else None

    @property
    def behind(self) -> bool:
        """Whether there are changes to report."""
        return bool(self.waiting)

    def report(self, visible: int) -> None:
        """Add a report of a change, before which the version `visible` was visible."""
        if self.state != "cut":
            self.waiting.append(visible)

    def options(self) -> Iterator[tuple[str, str]]:
        """Yield what can be done, and how it is called."""
        if self.waiting:
            yield "report", " is notified"
        if not self.live:
            yield "back", "'s feed is back"

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Yield what can go wrong, how it is called, and the kind of fault."""
        if self.live:
            yield "silent", "'s feed is silent", "feed"
        if self.state != "cut":
            yield "cut", "'s feed is cut", "feed"

    def take(self, kind: str) -> None:
        """Do one of these."""
        if kind == "report":
            self.through()
        elif kind == "cut":
            self.cut()
        elif kind == "silent":
            self.fall_silent()
        else:
            self.come_back()

    def catch_up(self) -> None:
        """Deliver everything, and be live."""
        while self.waiting:
            self.through()
        self.come_back()

    def deliver(self) -> None:
        """Deliver the next report."""
        self.waiting.popleft()
        for listener in self._listeners:
            listener.changed([self._key])

    def fall_silent(self) -> None:
        """Cease to be live, by the clock only."""
        self.state = "silent"

    def cut(self) -> None:
        """Lose all reports that were not delivered."""
        self.state = "cut"
        self.waiting.clear()
        for listener in self._listeners:
            listener.interrupted()

    def come_back(self) -> None:
        """Be live again."""
        was_cut, self.state = self.state == "cut", "live"
        if was_cut:
            for listener in self._listeners:
                listener.resumed()

    def fingerprint(self) -> Hashable:
        """Return all that decides about the future."""
        return self.state, tuple(self.waiting)
