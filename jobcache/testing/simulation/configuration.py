"""The configuration of a simulation: its processes, its faults, and the parts of each process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobcache.backends.postgres.backend import PostgresBackend
from jobcache.backends.tiered import TieredBackend
from jobcache.cache import JobCache
from jobcache.resilience.guarded_backend import GuardedBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobcache.backends.postgres.feed import PostgresFeed

OF_POSTGRES = frozenset({"silence", "failover"})
FAULTS = OF_POSTGRES | {
    *("evict", "age", "die", "cancel", "lose", "late", "slow", "load", "commit", "time", "feed"),
}
"""Every kind of fault. `lose` is of the backend's operations, answered or not; `time` (a deadline
that passes while something is under way, a load's as well) occurs behind a guard only, `slow` there
and behind a local tier. `feed` occurs with two tiers; `lose` and `late` do not, unless it is
guarded: a remote tier is a guarded one. With PostgreSQL as the feed there are `evict` (of a local
cell), `age`, `die`, `cancel`, `load`, `commit`, `lose` (of a notification that a writer sends after
its commit), `feed`, and those of `OF_POSTGRES`: `silence` (time passes for a feed), `failover`."""


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A simulation to explore.

    Attributes:
        processes: for each, its actors: "R" a reader, "M" one that reads many keys at once (this
            one among them), "W" a writer. ("R", "R", "W") is three processes; ("RRW",) is one, in
            which single flight is in play.
        faults: how many faults may happen in one schedule.
        kinds: the kinds of fault that may happen; a subset of `FAULTS`.
        warm: whether the cell holds an entry at the beginning.
        late_fence: writers change the row first and fence before they commit.
        guarded: each process has a `GuardedBackend` between its cache and the store.
        tiered: each process has a local tier before that, and a feed; `warm` warms both tiers.
        postgres: each process has backend "postgres" instead, and a feed from the database; `warm`
            warms the local cells of all processes with readers.
        unnotified: with `postgres`, the statements of writers do not notify.
        unversioned: documents have no version. Readers use `get_or_load`; writers commit, and then
            invalidate the key.
        reads: how many reads each reader makes, in sequence.
    """

    processes: tuple[str, ...] = ("R", "R", "W", "W")
    faults: int = 2
    kinds: frozenset[str] = FAULTS
    warm: bool = False
    late_fence: bool = False
    guarded: bool = False
    tiered: bool = False
    postgres: bool = False
    unnotified: bool = False
    unversioned: bool = False
    reads: int = 1

    def __post_init__(self) -> None:
        if not self.processes or not all(
            actors and set(actors) <= {"R", "M", "W"} for actors in self.processes
        ):
            raise ValueError("a process is a word of R, M and W")
        if self.postgres and (self.tiered or self.guarded):
            raise ValueError("backend postgres has neither a remote tier nor a guard")
        if not self.kinds <= FAULTS:
            raise ValueError(f"no such fault: {', '.join(self.kinds - FAULTS)}")

    def __str__(self) -> str:
        ways = (
            *("warm", "late_fence", "guarded", "tiered"),
            *("postgres", "unnotified", "unversioned"),
        )
        return " ".join([*self.processes, *(way for way in ways if getattr(self, way))])


@dataclass(frozen=True, kw_only=True)
class Components:
    """The parts of each process; a test can replace them by broken ones.

    Attributes:
        cache: takes a backend and the keyword arguments of `JobCache`.
        guard: takes a backend and the keyword arguments of `GuardedBackend`.
        tiered: takes the arguments of `TieredBackend`.
        postgres: takes the arguments of `PostgresBackend`.
        feed: takes the arguments of `PostgresFeed`.
    """

    cache: Callable[..., JobCache] = JobCache
    guard: Callable[..., GuardedBackend] = GuardedBackend
    tiered: Callable[..., TieredBackend] = TieredBackend
    postgres: Callable[..., PostgresBackend] = PostgresBackend
    feed: Callable[..., PostgresFeed] | None = None
