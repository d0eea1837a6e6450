"""What a load needs, computed from the costs of single operations; pure arithmetic.

All rates are per second, and of one cell. The model describes a steady state: the cold start after
a deploy is simulated, see `loadtests.capacity.simulation`.

The model assumes:

- Polls are spread evenly over time, jobs and processes. Any process may receive any poll.
- The updates of a job are spread evenly over its life.
- A poll that arrives during a change is answered from the cache once the change is published, and
  needs no query.
- Clients poll. Long polls and event streams are not modelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.settings import Settings
from jobcache import CacheSettings, Lifetimes
from loadtests.capacity.workload import WITH_REDIS

if TYPE_CHECKING:
    from loadtests.capacity.coefficients import Coefficients, RedisCost
    from loadtests.capacity.workload import Workload

LIFETIME = Lifetimes().default * (1 - Lifetimes().jitter / 2)
"""Seconds for which an entry of a running job is fresh, on average."""

TERMINAL = float(Settings.model_fields["ttl_terminal"].default)
"""Seconds for which an entry of a finished job is fresh; the default of the service."""

KEPT_AFTER = Lifetimes().grace
"""Seconds for which an entry is kept once it is no longer fresh."""

HEARTBEATS = 4.0
"""Keys that the change feed of one process writes to each primary, each second."""

CHANGES_OF_UPDATE = 2
"""Changes of a key by one update: the fence and the publish."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What happens in one cell, per second.

    Attributes:
        polls: requests of pollers.
        not_modified: of these, answers with status 304.
        updates: committed changes of jobs.
        loads: queries that polls cause.
        refills: entries that processes of tiered read from Redis after a change.
        gets: keys that are read from Redis.
        scripts: scripts that Redis runs, heartbeats included.
        changes: changes of keys in Redis that the feed reports, heartbeats included.
        reports: changes times the processes that they are reported to.
        redis_bytes: bytes that Redis receives and sends.
        response_bytes: bytes of responses to pollers.
    """

    polls: float
    not_modified: float
    updates: float
    loads: float
    refills: float
    gets: float
    scripts: float
    changes: float
    reports: float
    redis_bytes: float
    response_bytes: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one cell needs.

    Attributes:
        rates: what happens each second.
        process_cores: processor time of one service process, per second; above 1 it cannot keep up.
        redis_cores: the same for each primary of Redis; 0 if there is none.
        database_cores: the same for the database server, which may use several cores.
        process_bytes: memory of one service process.
        redis_memory: memory of each primary of Redis, in bytes.
        connections: connections of one service process.
        entries: entries of running jobs that one service process holds, on memory and tiered.
    """

    rates: Rates
    process_cores: float
    redis_cores: float
    database_cores: float
    process_bytes: float
    redis_memory: float
    connections: float
    entries: float


def predict(workload: Workload, coefficients: Coefficients) -> Prediction:
    """Return what each cell needs for its part of the load."""
    rates = count(workload, coefficients)
    sizes = coefficients.sizes
    processes = workload.all_processes
    live, finished = _entries(workload)
    share = _local_share(workload)
    local = min(
        min((live + finished) * share, CacheSettings().max_entries) * (sizes.entry + workload.body),
        CacheSettings().max_bytes,
    )
    connections = workload.pollers / workload.cells / processes
    remote = (live + finished) / workload.redis if workload.backend in WITH_REDIS else 0.0
    process_cores = _process_cores(workload, rates, coefficients)
    redis_cores = redis_memory = 0.0
    if workload.backend in WITH_REDIS:
        redis_cores = _redis_cores(rates, workload.redis, process_cores, coefficients.redis)
        redis_memory = sizes.redis + remote * (sizes.redis_entry + workload.body)
    database = coefficients.database
    return Prediction(
        rates=rates,
        process_cores=process_cores,
        redis_cores=redis_cores,
        database_cores=rates.loads * database.select + rates.updates * database.update,
        process_bytes=sizes.process + connections * sizes.connection + local,
        redis_memory=redis_memory,
        connections=connections,
        entries=live * share,
    )


def count(workload: Workload, coefficients: Coefficients) -> Rates:
    """Return what happens in one cell each second."""
    processes, sizes = workload.all_processes, coefficients.sizes
    jobs = workload.jobs / workload.cells
    polls = workload.pollers / workload.cells / workload.interval
    updates = jobs * workload.updates / workload.seconds
    new = min(1.0, workload.updates / workload.seconds * workload.interval)
    not_modified = polls * workload.etags * (1 - new)
    loads = _loads(workload, polls, jobs)
    refills = gets = scripts = changes = reports = 0.0
    stored = 0.0  # bodies that Redis sends or receives
    if workload.backend in WITH_REDIS:
        gets = polls
        # Before a load the lease is tried, and finds the old entry; then the document is published.
        scripts = CHANGES_OF_UPDATE * updates + 2 * loads
        stored = updates + loads
    if workload.backend == "tiered":
        refills = gets = _refills(workload, polls, updates, jobs) + loads
        beats = HEARTBEATS * processes * workload.redis
        scripts += beats
        changes = CHANGES_OF_UPDATE * updates + loads + beats
        reports = changes * processes
    return Rates(
        polls=polls,
        not_modified=not_modified,
        updates=updates,
        loads=loads,
        refills=refills,
        gets=gets,
        scripts=scripts,
        changes=changes,
        reports=reports,
        redis_bytes=(
            gets * sizes.get
            + scripts * sizes.script
            + reports * sizes.report
            + (gets + stored) * workload.body
        ),
        response_bytes=(
            not_modified * sizes.not_modified
            + (polls - not_modified) * (sizes.response + workload.body)
        ),
    )


def busy(work: float, wakeups: float, wakeup: float) -> float:
    """Return the busy part of a component that handles events in turn; above 1, it cannot keep up.

    An event that arrives while the component waits costs a wake-up; one that arrives while it is
    busy does not. So the busy part b satisfies b = work + wakeups * (1 - b) * wakeup.

    Args:
        work: processor seconds per second, without wake-ups.
        wakeups: events per second.
        wakeup: processor seconds of a wake-up.
    """
    if work >= 1:
        return work
    return (work + wakeups * wakeup) / (1 + wakeups * wakeup)


def spread(events: float, places: int) -> float:
    """Return how many of the places get at least one of so many evenly distributed events."""
    reached: float = places * (1 - (1 - 1 / places) ** events)
    return min(reached, events)


def _loads(workload: Workload, polls: float, jobs: float) -> float:
    if workload.backend == "null":
        return polls
    # An entry is loaded again by the first poll after its lifetime, unless an update comes first.
    renewal = LIFETIME + jobs / polls
    gap = math.inf if workload.updates == 0 else workload.seconds / workload.updates
    if gap == math.inf:
        return jobs / renewal
    return jobs / gap * int(gap / renewal)


def _refills(workload: Workload, polls: float, updates: float, jobs: float) -> float:
    """Return the refills of tiered: one for each update and each process that polls the job."""
    if updates == 0:
        return 0.0
    between = polls / jobs * workload.seconds / workload.updates  # polls of a job, per update
    return updates * spread(between, workload.all_processes)


def _entries(workload: Workload) -> tuple[float, float]:
    """Return the entries of running jobs and of finished jobs."""
    if workload.backend == "null":
        return 0.0, 0.0
    jobs = workload.jobs / workload.cells
    return jobs, jobs / workload.seconds * (TERMINAL + KEPT_AFTER)


def _local_share(workload: Workload) -> float:
    """Return the part of all jobs whose entries one process holds."""
    if workload.backend == "memory":
        return 1.0
    if workload.backend != "tiered":
        return 0.0
    polls = workload.pollers / workload.jobs * workload.seconds / workload.interval
    return spread(polls, workload.all_processes) / workload.all_processes


def _process_cores(workload: Workload, rates: Rates, coefficients: Coefficients) -> float:
    cost = coefficients.services[workload.backend]
    processes = workload.all_processes
    loads = 0.0 if workload.backend == "null" else rates.loads
    shared = (
        rates.polls * (cost.poll + workload.etags * cost.conditional)
        + loads * cost.load
        + rates.refills * cost.refill
        + rates.updates * cost.update
    )
    work = cost.idle + shared / processes + rates.changes * cost.report
    return busy(work, rates.polls / processes + rates.changes, cost.wakeup)


def _redis_cores(rates: Rates, primaries: int, process_cores: float, cost: RedisCost) -> float:
    # A process that is busy reads the keys of several polls by one command.
    wakeups = rates.gets * max(0.0, 1 - process_cores) + rates.scripts
    work = rates.gets * cost.get + rates.scripts * cost.script + rates.reports * cost.report
    return busy(cost.idle + work / primaries, wakeups / primaries, cost.wakeup)
