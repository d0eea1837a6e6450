"""The processes of a simulation, and the readers and writers in them."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable, Iterator

    from jobcache.backends.memory import MemoryBackend
    from jobcache.backends.postgres.backend import PostgresBackend
    from jobcache.backends.tiered import TieredBackend
    from jobcache.cache import JobCache


class ProcessFeed(Protocol):
    """The feed of a process, as the explorer sees it."""

    @property
    def live(self) -> bool:
        """Whether every change is reported."""

    @property
    def behind(self) -> bool:
        """Whether there are changes to report."""

    def options(self) -> Iterator[tuple[str, str]]:
        """Yield what can be done, and how it is called."""

    def faults(self) -> Iterator[tuple[str, str, str]]:
        """Yield what can go wrong, how it is called, and the kind of fault."""

    def take(self, kind: str) -> None:
        """Do one of these."""

    def catch_up(self) -> None:
        """Be live, and deliver everything."""

    def fingerprint(self) -> Hashable:
        """Return all that decides about the future."""


@dataclass(eq=False, slots=True)
class Load:
    """A load that has begun.

    Attributes:
        server: the server to which its connection leads.
        known: the version that had been reported to the process, or acknowledged by it, when the
            load began, if the process needs only one load of it.
    """

    server: int
    known: int


class DatabaseLine(ProcessFeed, Protocol):
    """What one process hears of the database, and reads from it."""

    def begin_load(self) -> Load:
        """Return a load, which has taken a connection."""

    def select(self, load: Load) -> int:
        """Return the version in the database to which the connection of a load leads."""

    def end_load(self, load: Load, *, completed: bool) -> None:
        """Note that a load has ended."""

    def acknowledged(self, version: int) -> None:
        """Note that a writer of this process has acknowledged a version without a fault."""

    def lost_entry(self) -> None:
        """Note that the entry was lost, or is past its freshness."""

    def min_version(self, own: int) -> int:
        """Return the least version that a read which begins now may return."""


@dataclass(frozen=True, eq=False, slots=True)
class TierStack:
    """The cells of a process, and the feed that reports to them.

    Attributes:
        local: the local tier.
        feed: the change feed that reports to the local tier, as the explorer sees it.
        backend: the local tier and the feed, in front of the remote tier if there is one.
    """

    local: MemoryBackend
    feed: ProcessFeed
    backend: TieredBackend | PostgresBackend

    def held(self, key: str) -> Hashable:
        """Return the content of the local cell, which may be a lease."""
        return self.local._cell(key)  # noqa: SLF001 - nobody else may look at a lease

    def ahead(self, key: str) -> Hashable:
        """Return what decides whether the cell is read ahead."""
        tiered: Any = self.backend
        return self.local.was_used(key), tiered._ahead.state()  # noqa: SLF001 - as above


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
    line: DatabaseLine | None = None
    """With PostgreSQL as the feed, what the process hears of the server."""
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
    hurried: bool = False
    """It did not wait for the report of its own change, or may not have."""

    @property
    def writes(self) -> bool:
        """Whether it is a writer."""
        return self.name[0] == "W"


ACTOR: contextvars.ContextVar[Actor] = contextvars.ContextVar("actor")
"""On whose behalf a task runs."""
