"""The processes of a simulation, and the readers and writers in them."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable

    from jobcache.backends.memory import MemoryBackend
    from jobcache.backends.tiered import TieredBackend
    from jobcache.cache import JobCache
    from jobcache.testing.simulation.stepped_feed import SteppedFeed


@dataclass(frozen=True, eq=False, slots=True)
class TierStack:
    """The tiers of a process in front of the store.

    Attributes:
        local: the local tier.
        feed: the change feed that reports to the local tier.
        backend: the local tier and the feed in front of the remote tier.
    """

    local: MemoryBackend
    feed: SteppedFeed
    backend: TieredBackend

    def held(self, key: str) -> Hashable:
        """Return the content of the local cell, which may be a lease."""
        return self.local._cell(key)  # noqa: SLF001 - nobody else may look at a lease

    def ahead(self, key: str) -> Hashable:
        """Return what decides whether the cell is read ahead."""
        return self.local.was_used(key), self.backend._ahead.state()  # noqa: SLF001 - as above


@dataclass(eq=False, slots=True)
class Process:
    """One process: a cache of its own."""

    name: str
    reads: bool
    """Whether there are readers in it."""
    dead: bool = False
    failed: set[int] = field(default_factory=set)
    """The versions of its publishes that failed."""
    front: TierStack | None = None
    ahead: Actor = field(init=False)
    """On whose behalf the process reads ahead."""
    cache: JobCache = field(init=False)


@dataclass(eq=False, slots=True)
class Memory:
    """A hash of all results that some actors were given, in order. Their next steps depend on it.

    The readers of a process share one, for they share flights, and each writer has its own; behind
    a guard all actors of a process share one. Once all is done that it decides, it is empty again.
    """

    actors: list[Actor] = field(default_factory=list)
    hash: int = 0


@dataclass(eq=False, slots=True)
class Actor:
    """A reader or a writer."""

    name: str
    process: Process
    turns_left: int
    memory: Memory
    task: asyncio.Task[int] | None = None
    min_version: int = 0
    errors: int = 0
    begun: bool = False
    fenced: bool = False
    """Whether its fence has ever stood."""
    cancelled: bool = False
    unknown: bool = False
    """Nobody can say whether its commit happened."""
    unannounced: bool = False
    """Its invalidation failed."""

    @property
    def writes(self) -> bool:
        """Whether it is a writer."""
        return self.name[0] == "W"


ACTOR: contextvars.ContextVar[Actor] = contextvars.ContextVar("actor")
"""On whose behalf a task runs."""
