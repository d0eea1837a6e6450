"""The change feed: a store reports to each process which of its cells have changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class ChangeListener(Protocol):
    """Receives the events of a `ChangeFeed`. The feed waits for each call, so it must be quick."""

    def changed(self, keys: Sequence[str]) -> None:
        """Handle a change of these cells. Each is reported at least once, some without a change."""

    def interrupted(self) -> None:
        """Handle the loss of the feed: changes are not reported from now on."""

    def resumed(self) -> None:
        """Handle the return of the feed. Anything may have changed before."""


class ChangeFeed(Protocol):
    """Reports to a process which cells of a shared store change.

    Changes are reported after they were made, later by the lag of the feed, and in their order. A
    feed that cannot guarantee this is not live, and reports that too.
    """

    @property
    def live(self) -> bool:
        """Whether every change from now on will be reported."""

    def listen(self, listener: ChangeListener) -> None:
        """Report to `listener` from now on, after the listeners that were added before."""

    def start(self) -> None:
        """Start in the running event loop. Safe to call again."""

    def condition(self) -> FeedStatus:
        """Return the present status."""

    async def aclose(self) -> None:
        """Close the feed. Safe to call twice."""


@dataclass(frozen=True, slots=True)
class FeedStatus:
    """The status of a change feed.

    Attributes:
        state: "idle" (not started, because no caller needs it), "connecting", "live", or
            "unsupported" (the store has none).
        age: seconds in that state.
        reason: why it is not live, for people; empty while it is live or idle.
        interruptions: how often it was live and stopped being live.
        lag_us: percentiles of the lag in microseconds: the time from each heartbeat, a write of the
            feed itself, to its report.
        lag_counts: the same as `Histogram.counts`.
        queue_usage: the part of the server's queue of reports that is in use, from 0 to 1; None if
            it is unknown, or there is none.
    """

    state: Literal["idle", "connecting", "live", "unsupported"]
    age: float
    reason: str
    interruptions: int
    lag_us: Mapping[str, float]
    lag_counts: Mapping[str, int] = field(default_factory=dict)
    queue_usage: float | None = None
