"""A step that an actor waits for, and an option of the explorer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobcache.errors import CacheUnavailable, SourceUnavailable
from jobcache.protocol.entry import Entry
from jobcache.testing.scenarios import version_in
from jobcache.testing.simulation.configuration import FAULTS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from jobcache.testing.simulation.actors import Actor

WORDS = {
    "lost": "is lost",
    "unanswered": "unanswered",
    "late": "is late",
    "slow": "is slow",
}
"""How a schedule says that a step fails, by its fate."""


@dataclass(eq=False, slots=True)
class Choice:
    """A step that an actor waits for."""

    label: str
    identity: str
    """The label with the details that it leaves out."""
    actor: Actor
    act: Callable[[], Any]
    reply: asyncio.Future[Any] | None
    """Where the result goes; None if nobody waits for it any more."""
    error: type[Exception] | None = None
    """The type of error that a failure raises; None if the step cannot fail."""
    faults: tuple[str, ...] = ()
    changes: bool = False
    """Whether it changes the store or the source."""
    version: int | None = None
    """Of a publish."""
    ready: Callable[[], bool] | None = None
    abandon: Callable[[], None] = lambda: None
    """Called if it will never happen."""
    content_before: Hashable = None
    """Of a pause: the cell when it began."""

    def kind(self, fate: str) -> str:
        """Return the kind of fault that `fate` is."""
        if self.error is CacheUnavailable:
            return fate if fate in FAULTS else "lose"
        return "load" if self.error is SourceUnavailable else "commit"

    @property
    def pause(self) -> bool:
        """Whether this is a reader's pause, which changes nothing."""
        return self.label.endswith(" pause")


@dataclass(frozen=True, slots=True)
class Option:
    """One way to go on.

    Attributes:
        label: as it stands in a schedule.
        kind: its kind, such as "step" or "evict".
        whose: the name of its step, actor or process.
        fate: how a step fails, or what happens to the operation that is cancelled.
        fault: the kind of fault; empty if it is none.
    """

    label: str
    kind: str
    whose: str = ""
    fate: str = ""
    fault: str = ""

    @property
    def actor(self) -> str:
        """The actor that takes this step; empty if no actor does."""
        word = self.label.partition(" ")[0]
        return word if self.kind in {"step", "begin", "look", "wait"} and word != "late" else ""


def summarize(result: object) -> Hashable:
    """Return what a result says about the future."""
    if isinstance(result, Entry):
        return version_in(result), result.token, result.stored_at_ms, result.keep_ms
    return result if isinstance(result, Hashable) else repr(result)
