"""Simulates many service processes on one Redis, or on a cluster; the same for the same seed.

The cells of Redis follow the transition table of the library, `jobcache.protocol.cell`, and readers
wait for others' loads as long as `jobcache._engine.fetching` says. So a simulated stampede is held
back by the same leases as a real one. What things cost is taken from the coefficients of the model.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING

from jobcache._engine.fetching import ATTEMPTS, PAUSES
from jobcache.protocol import cell as table
from jobcache.protocol.backend import LeaseResult
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from loadtests.capacity.events import Queue, Signal, Timeline
from loadtests.capacity.workload import WITH_REDIS, InvalidWorkload

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from typing import TypeVar

    from jobcache.protocol.cell import Cell
    from loadtests.capacity.coefficients import Coefficients
    from loadtests.capacity.events import Task
    from loadtests.capacity.workload import Workload

    T = TypeVar("T")
    Wait = Generator[float | Signal, None, T]

DEADLINE: float = signature(GuardedBackend).parameters["deadline"].default
"""Seconds that a process waits for Redis."""

JITTER = 0.1
"""The part of the interval by which a poll comes sooner or later."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is simulated, beside the workload.

    Attributes:
        cold: whether the cache is empty at the beginning, as after a restart of everything.
        seconds: how long the pollers poll.
        delay: seconds that a message takes to Redis, or back.
        load_seconds: time that a query takes in the database.
        update_seconds: time that a transaction takes in the database.
        connections: queries and transactions that the database works on at the same time.
        patience: seconds after which a query is given up.
        seed: of all random choices.

    Raises:
        InvalidWorkload: a value is not valid.
    """

    cold: bool = True
    seconds: float = 10.0
    delay: float = 0.00025
    load_seconds: float = 0.001
    update_seconds: float = 0.002
    connections: int = 16
    patience: float = 5.0
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("seconds", "load_seconds", "update_seconds", "patience"):
            if not getattr(self, name) > 0:
                raise InvalidWorkload(name, f"is {getattr(self, name):g}; it must be above 0")
        if not self.delay >= 0:
            raise InvalidWorkload("delay", f"is {self.delay:g}; it must be at least 0")
        if self.connections < 1:
            raise InvalidWorkload("connections", f"is {self.connections}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What was counted in a simulation of one cell.

    Attributes:
        polls: polls that were answered.
        failed: polls that were not, because the database took too long.
        loads: queries that polls caused, failed ones included.
        loads_of_job: the most queries for one job.
        loads_of_job_and_process: the most queries of one process for one job.
        gets: keys that were read from Redis.
        scripts: scripts that Redis ran.
        refills: entries that processes of tiered stored.
        changes: changes of cells that Redis reported.
        reports: changes times processes.
        updates: committed updates.
        stale: polls that were answered with an older version than was acknowledged when they began.
        warm_after: seconds until the last query caused by a poll had its answer; 0 without any.
        slowest: the longest time of a poll, in seconds.
        redis_wait: the longest time that a command waited for its turn in Redis.
        late: commands that took longer than a process waits for Redis. It would ask the database
            instead, which is not simulated.
        database_wait: the longest time that a query waited for its turn in the database.
    """

    polls: int
    failed: int
    loads: int
    loads_of_job: int
    loads_of_job_and_process: int
    gets: int
    scripts: int
    refills: int
    changes: int
    reports: int
    updates: int
    stale: int
    warm_after: float
    slowest: float
    redis_wait: float
    late: int
    database_wait: float


class LoadFailed(Exception):  # noqa: N818 - says what is the matter
    """A query took too long."""


def simulate(workload: Workload, scene: Scene, coefficients: Coefficients) -> Counted:
    """Simulate one cell; return what was counted."""
    world = _World(workload, scene, coefficients)
    world.run()
    return world.outcome()


class _World:
    def __init__(self, workload: Workload, scene: Scene, coefficients: Coefficients) -> None:
        self.time = Timeline()
        self.random = random.Random(scene.seed)  # noqa: S311 - the same in every run
        self.scene = scene
        self.workload = workload
        self.costs = coefficients.redis
        self.jobs = max(1, workload.jobs // workload.cells)
        self.committed = [1] * self.jobs
        self.acknowledged = [1] * self.jobs
        self.database = Queue(self.time, scene.connections)
        self.counts: Counter[str] = Counter()
        self.loads: Counter[tuple[int, int]] = Counter()
        self.warm_after = 0.0
        self.slowest = 0.0
        self.cells: dict[int, Cell] = {}
        self.primaries = [Queue(self.time, 1) for _ in range(workload.redis)]
        self.processes = [_Process(self, number) for number in range(workload.all_processes)]
        self._tokens = 0
        if not scene.cold:
            self._warm()

    def run(self) -> None:
        """Let pollers poll and jobs be updated, and wait for the last responses."""
        workload, scene = self.workload, self.scene
        for number in range(max(1, workload.pollers // workload.cells)):
            first = self.random.uniform(0, workload.interval)
            if first < scene.seconds:
                self.time.at(first, partial(self.time.start, self._poller(number % self.jobs)))
        if workload.updates:
            gap = workload.seconds / workload.updates
            for job in range(self.jobs):
                first = self.random.uniform(0, gap)
                if first < scene.seconds:
                    self.time.at(first, partial(self.time.start, self._worker(job, gap)))
        self.time.run(scene.seconds + 2 * scene.patience)

    def outcome(self) -> Counted:
        """Return the counts."""
        of_jobs: Counter[int] = Counter()
        for (_, job), count in self.loads.items():
            of_jobs[job] += count
        counts = self.counts
        return Counted(
            polls=counts["polls"],
            failed=counts["failed"],
            loads=counts["loads"],
            loads_of_job=max(of_jobs.values(), default=0),
            loads_of_job_and_process=max(self.loads.values(), default=0),
            gets=counts["gets"],
            scripts=counts["scripts"],
            refills=counts["refills"],
            changes=counts["changes"],
            reports=counts["changes"] * len(self.processes)
            if self.workload.backend == "tiered"
            else 0,
            updates=counts["updates"],
            stale=counts["stale"],
            warm_after=self.warm_after,
            slowest=self.slowest,
            redis_wait=max(queue.longest_wait for queue in self.primaries),
            late=self.counts["late"],
            database_wait=self.database.longest_wait,
        )

    def token(self) -> str:
        """Return a new token."""
        self._tokens += 1
        return str(self._tokens)

    def entry(self, version: int) -> Entry:
        """Return an entry of a version, which outlasts the simulation."""
        return Entry(version, "acme", "rendering", 3, b"", "identity", 0, 1 << 40, 1 << 40)

    def on_redis(self, job: int, cost: float, operate: Callable[[], tuple[T, bool]]) -> Wait[T]:
        """Send a command to the primary of a job; return its reply.

        `operate` returns the reply, and whether a cell has changed.
        """
        began = self.time.now
        yield self.scene.delay
        tiered = self.workload.backend == "tiered"
        primary = self.primaries[job % len(self.primaries)]
        yield primary.add(cost) or 0.0
        reply, changed = operate()
        if changed:
            self.counts["changes"] += 1
            if tiered:
                primary.add(self.costs.report * len(self.processes))
                self.time.at(self.time.now + self.scene.delay, partial(self._report, job))
        yield self.scene.delay
        self.counts["late"] += self.time.now - began > DEADLINE
        return reply

    def load(self, process: int, job: int) -> Wait[int]:
        """Query the database; return the version.

        Raises:
            LoadFailed: it took too long.
        """
        self.counts["loads"] += 1
        self.loads[process, job] += 1
        took = self.database.add(self.scene.load_seconds, self.scene.patience)
        if took is None:
            yield self.scene.patience
            raise LoadFailed
        # The snapshot is taken when the query begins, just before its work is done.
        yield max(0.0, took - self.scene.load_seconds)
        version = self.committed[job]
        yield self.scene.load_seconds
        self.warm_after = self.time.now
        return version

    def _report(self, job: int) -> None:
        for process in self.processes:
            process.reported(job)

    def _poller(self, job: int) -> Task:
        interval, ends = self.workload.interval, self.scene.seconds
        while self.time.now < ends:
            process = self.random.choice(self.processes)
            self.time.start(self._poll(process, job))
            yield interval * self.random.uniform(1 - JITTER, 1 + JITTER)

    def _poll(self, process: _Process, job: int) -> Task:
        began, least = self.time.now, self.acknowledged[job]
        try:
            version = yield from process.read(job)
        except LoadFailed:
            self.counts["failed"] += 1
        else:
            self.counts["polls"] += 1
            self.counts["stale"] += version < least
        self.slowest = max(self.slowest, self.time.now - began)

    def _worker(self, job: int, gap: float) -> Task:
        while self.time.now < self.scene.seconds:
            self.time.start(self._update(self.random.choice(self.processes), job))
            yield gap

    def _update(self, process: _Process, job: int) -> Task:
        token = self.token()
        yield from process.fence(job, token)
        took = self.database.add(self.scene.update_seconds, self.scene.patience)
        if took is not None:
            yield took
            self.committed[job] += 1
            version = self.committed[job]
            self.counts["updates"] += 1
            yield from process.publish(job, token, self.entry(version))
            self.acknowledged[job] = max(self.acknowledged[job], version)
        else:
            yield self.scene.patience
            yield from process.publish(job, token, None)

    def _warm(self) -> None:
        for job in range(self.jobs):
            entry = self.entry(1)
            self.cells[job] = entry
            for process in self.processes:
                process.local[job] = entry


class _Process:
    """One service process.

    Attributes:
        local: cells of this process, on memory and tiered.
    """

    def __init__(self, world: _World, number: int) -> None:
        self.local: dict[int, Cell] = {}
        self._world = world
        self._number = number
        self._backend = world.workload.backend
        self._flights: dict[int, _Flight] = {}
        self._changed: dict[int, Signal] = {}

    def read(self, job: int) -> Wait[int]:
        """Return the version of a job, from the cache or the database.

        Raises:
            LoadFailed: the database took too long.
        """
        if self._backend in {"memory", "tiered"}:
            cell = self.local.get(job)
            if isinstance(cell, Entry):
                return cell.version
        if self._backend in WITH_REDIS:
            entry = yield from self._read_redis(job)
            if entry is not None:
                return entry.version
        flight = self._flights.get(job)
        if flight is None:
            flight = self._flights[job] = _Flight()
            try:
                flight.version = yield from self._fetch(job)
            finally:
                del self._flights[job]
                flight.landed.fire()
        else:
            yield flight.landed
        if flight.version is None:
            raise LoadFailed
        return flight.version

    def _read_redis(self, job: int) -> Wait[Entry | None]:
        if self._backend != "tiered":
            return (yield from self._get(job))
        token = self._world.token()
        self._apply_local(job, partial(table.lease, token=token))
        entry = yield from self._get(job)
        self._apply_local(job, partial(table.publish, token=token, entry=entry))
        self._world.counts["refills"] += entry is not None
        return entry

    def _fetch(self, job: int) -> Wait[int]:
        token = self._world.token()
        if self._backend != "null":
            found = yield from self._lease(job, token)
            for number, pause in enumerate(PAUSES):
                if isinstance(found, Entry) or number >= ATTEMPTS[found]:
                    break
                found = yield from self._lease_again(job, token, pause)
            if isinstance(found, Entry):
                return found.version
        try:
            version = yield from self._world.load(self._number, job)
        except LoadFailed:
            yield from self.publish(job, token, None)
            raise
        yield from self.publish(job, token, self._world.entry(version))
        return version

    def _lease(self, job: int, token: str) -> Wait[Entry | LeaseResult]:
        transition = partial(table.lease, token=token)
        if self._backend == "memory":
            return self._apply_local(job, transition)
        return (yield from self._script(job, transition))

    def _lease_again(self, job: int, token: str, pause: float) -> Wait[Entry | LeaseResult]:
        """Lease at each change, until others have left the cell or the pause is over."""
        time = self._world.time
        over = time.now + pause
        while True:
            change = self._changed[job] = Signal()
            time.at(over, change.fire)
            yield change
            ended = time.now >= over
            found = yield from self._lease(job, token)
            if ended or found is LeaseResult.ACQUIRED or isinstance(found, Entry):
                return found

    def fence(self, job: int, token: str) -> Wait[None]:
        """Fence a cell before a change."""
        if self._backend in WITH_REDIS:
            yield from self._script(job, partial(table.fence, token=token))
        elif self._backend == "memory":
            self._apply_local(job, partial(table.fence, token=token))

    def publish(self, job: int, token: str, entry: Entry | None) -> Wait[None]:
        """Publish a version, or withdraw."""
        if self._backend in WITH_REDIS:
            yield from self._script(job, partial(table.publish, token=token, entry=entry))
            self.local.pop(job, None)
        elif self._backend == "memory":
            self._apply_local(job, partial(table.publish, token=token, entry=entry))
        self._wake(job)

    def reported(self, job: int) -> None:
        """Take note of a change that the feed reports."""
        self.local.pop(job, None)
        self._wake(job)

    def _wake(self, job: int) -> None:
        signal = self._changed.pop(job, None)
        if signal is not None:
            signal.fire()

    def _get(self, job: int) -> Wait[Entry | None]:
        world = self._world
        world.counts["gets"] += 1

        def get() -> tuple[Entry | None, bool]:
            cell = world.cells.get(job)
            return (cell if isinstance(cell, Entry) else None), False

        return (yield from world.on_redis(job, world.costs.get, get))

    def _script(self, job: int, transition: Callable[[Cell], table.CellStep[T]]) -> Wait[T]:
        world = self._world
        world.counts["scripts"] += 1

        def run() -> tuple[T, bool]:
            step = transition(world.cells.get(job))
            world.cells[job] = step.cell
            return step.result, step.effect is not table.Effect.NONE

        return (yield from world.on_redis(job, world.costs.script, run))

    def _apply_local(self, job: int, transition: Callable[[Cell], table.CellStep[T]]) -> T:
        step = transition(self.local.get(job))
        self.local[job] = step.cell
        return step.result


class _Flight:
    """A load that several polls of one process share.

    Attributes:
        landed: fired when it has ended.
        version: that it has found; None if it failed.
    """

    def __init__(self) -> None:
        self.landed = Signal()
        self.version: int | None = None
