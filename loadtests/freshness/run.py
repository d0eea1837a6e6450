"""One run: clients, one fault after the other, and the audit at the end."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loadtests.freshness.audit import audit
from loadtests.freshness.clients import Watch, Writer, list_for_ever, poll_for_ever
from loadtests.freshness.cluster import ServiceEnded
from loadtests.freshness.faults import FAULTS
from loadtests.freshness.incident import Incident, NotInjected
from loadtests.freshness.tally import Scope, Tally
from loadtests.freshness.value_clients import (
    AcknowledgedNumbers,
    change_values_for_ever,
    read_values_for_ever,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from loadtests.freshness.checker import Kind
    from loadtests.freshness.cluster import Cluster

_SKEW = 1.0  # seconds by which clocks may differ unnoticed: part of the bounded promise
_MARGIN = 0.5  # seconds beyond a bound until the next fault
_LISTERS = 2
_VALUE_READERS = 2
_VALUE_WRITERS = 1
_LIST_PAUSE = 0.1  # seconds between two lists of a client, on average
_BACK = 30.0  # seconds for a healed cache to be in use again
_WIND_UP = 30.0  # seconds for the last jobs to be ended
_LOOK = 0.05  # seconds between two looks
_SAMPLE = 0.25  # seconds between two looks at the breakers
_LONGEST_LAG = 2.5  # seconds, of a feed that is silent
_TAGGED = 4  # every fourth poller sends ETags


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The options of a run. Times are in seconds.

    Attributes:
        backend: the cache's backend.
        broken: the rule of the protocol that is removed, or None.
        older: the commit of the version that half of the processes run; None: all run this one.
        faults: names of `FAULTS`.
        rounds: how often each fault is injected, at least.
        reads: how many reads are checked, at least.
        seconds: of load, at least.
        processes: the number of services.
        seed: the seed of all choices.
        jobs: the number of jobs at a time.
        pollers: the number of clients that poll.
        pause: between two reports of a worker, on average.
        freshness: for how long an entry is fresh.
        calm: before each fault, and after it.
        poll_pause: between two polls of a poller.
        until: the kind of violation at the first of which the run ends; None: at none.
        idle: before there is load, for a look at how the feed of changes lags then.
        values: whether there are values without a version, too.
        limit: after which the run ends, whatever it has.
    """

    backend: str
    broken: str | None
    older: str | None
    faults: Sequence[str]
    rounds: int
    reads: int
    seconds: float
    processes: int
    seed: int
    jobs: int
    pollers: int
    pause: float
    freshness: float
    calm: float
    poll_pause: float
    until: Kind | None
    idle: float
    values: bool
    limit: float

    @property
    def lag(self) -> float | None:
        """Return how many seconds the change feed may lag; None if the backend has no feed."""
        return _LONGEST_LAG if self.backend in {"tiered", "postgres"} else None

    @property
    def bound(self) -> float:
        """Return for how many seconds a bounded promise allows a stale response."""
        return self.freshness + _SKEW


@dataclass(slots=True)
class RunResult:
    """The result of a run.

    Attributes:
        tallies: by the fault's name; "" for what was between faults, and the end.
        seconds: of load.
        busy: the part of that time, from 0 to 1, that this process was computing.
        jobs: how many were made.
        compared: how many answers were compared with the database at the end.
        idle_lag: percentiles of the feed's lag in microseconds, by process, before there was load.
        lag: the same at the end, of all that process has measured.
        complaints: why the run failed, other than by violations.
        explanations: what led to the first violations.
    """

    tallies: dict[str, Tally]
    seconds: float = 0.0
    busy: float = 0.0
    jobs: int = 0
    compared: int = 0
    idle_lag: list[dict[str, float]] = field(default_factory=list)
    lag: list[dict[str, float]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    explanations: list[str] = field(default_factory=list)


async def run(plan: Plan, cluster: Cluster) -> RunResult:
    """Run the check; an interrupt ends the load, and the result covers the time until then.

    Raises:
        CancelledError: it was interrupted before there was any load, or for a second time.
        ServiceEnded: a service did not start.
    """
    loop, whole = asyncio.get_running_loop(), asyncio.current_task()
    driving: asyncio.Task[None] | None = None

    def interrupt() -> None:
        if driving is not None and not driving.done():
            driving.cancel()
        elif whole is not None:
            whole.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    async with cluster:
        watch = Watch(cluster.services)
        outcome = RunResult(watch.tallies)
        watch.scope = Scope(lag=plan.lag)
        if plan.lag is not None:
            await asyncio.sleep(plan.idle)
            outcome.idle_lag = await _lags(cluster)
        driving = asyncio.create_task(_drive(plan, cluster, watch, outcome))
        if await _load(plan, cluster, watch, outcome, driving):
            watch.scope = Scope()
            outcome.compared = await audit(watch, cluster)
            outcome.lag = await _lags(cluster)
        await watch.history.finish()
        watch.close()
    outcome.jobs = len(watch.ledger.job_ids)
    outcome.explanations = watch.history.explanations
    if not _found(plan, watch):
        _complain(plan, watch, outcome)
    return outcome


async def _load(
    plan: Plan, cluster: Cluster, watch: Watch, outcome: RunResult, driving: asyncio.Task[None]
) -> bool:
    """Run the clients while faults are injected, then end the last jobs.

    Return whether it was complete: an interrupt or a violation may end it before.
    """
    began, computed = time.monotonic(), time.process_time()
    stop = asyncio.Event()
    clients = [
        *(
            poll_for_ever(
                watch,
                number,
                plan.seed,
                tags=number % _TAGGED == _TAGGED - 1,
                stays=plan.lag is not None,
                poll_pause=plan.poll_pause,
            )
            for number in range(plan.pollers)
        ),
        *(list_for_ever(watch, number, plan.seed, _LIST_PAUSE) for number in range(_LISTERS)),
        *(_value_clients(plan, watch) if plan.values else ()),
        watch.sweep(),
        _watch_breakers(cluster, watch),
    ]
    writing = [Writer(watch, n, plan.seed, plan.pause, stop).write() for n in range(plan.jobs)]
    reading = [asyncio.create_task(client) for client in clients]
    writers = [asyncio.create_task(writer) for writer in writing]
    finding = asyncio.create_task(_until_found(plan, watch))
    try:
        done, _ = await asyncio.wait(
            [driving, finding, *reading, *writers], return_when=asyncio.FIRST_COMPLETED
        )
        _raise_errors([*reading, *writers])
        if finding in done:
            return False
        try:
            await driving
        except (asyncio.CancelledError, ServiceEnded) as error:
            outcome.complaints.append(str(error) or "interrupted")
            return False
        stop.set()
        await asyncio.wait(writers, timeout=_WIND_UP)
        _raise_errors([*reading, *writers])
        return True
    finally:
        outcome.seconds = time.monotonic() - began
        outcome.busy = (time.process_time() - computed) / outcome.seconds
        for task in [driving, finding, *reading, *writers]:
            task.cancel()
        await asyncio.wait([driving, finding, *reading, *writers])


def _value_clients(plan: Plan, watch: Watch) -> list[Coroutine[None, None, None]]:
    numbers = AcknowledgedNumbers()
    return [
        *(
            read_values_for_ever(watch, numbers, number, plan.seed, plan.poll_pause)
            for number in range(_VALUE_READERS)
        ),
        *(
            change_values_for_ever(watch, numbers, number, plan.seed, plan.pause)
            for number in range(_VALUE_WRITERS)
        ),
    ]


def _found(plan: Plan, watch: Watch) -> bool:
    """Return whether a violation was found that ends the run."""
    return plan.until is not None and any(
        tally.violations[plan.until] for tally in watch.tallies.values()
    )


async def _until_found(plan: Plan, watch: Watch) -> None:
    while True:
        if _found(plan, watch):
            return
        await asyncio.sleep(_LOOK)


def _raise_errors(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled():
            task.result()  # a client that failed has checked nothing since


def _complain(plan: Plan, watch: Watch, outcome: RunResult) -> None:
    if watch.reads < plan.reads:
        outcome.complaints.append(f"{watch.reads} reads were checked, of {plan.reads}")
    counted = [(tally.value_reads, tally.value_changes) for tally in watch.tallies.values()]
    if plan.values and not all(map(sum, zip(*counted, strict=True))):
        outcome.complaints.append("no value without a version was read, or none was changed")
    older = [(each.older_hits, each.older_writes) for each in watch.tallies.values()]
    if plan.older is not None and not all(map(sum, zip(*older, strict=True))):
        outcome.complaints.append("the older version has answered no hit, or no write")
    for name in plan.faults:
        injected = watch.tallies[name].injected
        if injected < plan.rounds:
            outcome.complaints.append(f"{name} was injected {injected} times, of {plan.rounds}")


async def _drive(plan: Plan, cluster: Cluster, watch: Watch, outcome: RunResult) -> None:
    rng = random.Random(f"{plan.seed} faults")  # noqa: S311 - to be repeatable
    began = time.monotonic()
    deadline = began + plan.limit

    def enough() -> bool:
        injected = all(watch.tallies[name].injected >= plan.rounds for name in plan.faults)
        now = time.monotonic()
        done = injected and watch.reads >= plan.reads and now - began >= plan.seconds
        return done or now > deadline

    for number in itertools.count(1):
        names = list(plan.faults)
        rng.shuffle(names)
        for name in names:
            if enough():
                return
            sys.stderr.write(f"round {number}: {name}, {watch.reads} reads so far\n")
            await _one(name, plan, cluster, watch, rng, outcome)
        if enough():
            return
        await asyncio.sleep(_LOOK)


async def _one(  # noqa: PLR0917 - each is another thing
    name: str,
    plan: Plan,
    cluster: Cluster,
    watch: Watch,
    rng: random.Random,
    outcome: RunResult,
) -> None:
    fault = FAULTS[name]
    victim = rng.choice(cluster.services)
    bound = None
    if fault.invariants == "bounded":
        bound = plan.bound if fault.within is None else fault.within
    tally = watch.tallies[name]
    tally.bound = max((each for each in (bound, plan.lag) if each is not None), default=None)
    watch.scope = Scope(name, lag=plan.lag)
    await asyncio.sleep(plan.calm)
    watch.scope = Scope(
        name,
        "during",
        bound=bound,
        lag=plan.lag,
        spared=victim.number if fault.cuts_one_off else None,
        source_away=fault.takes_source,
        two_sources=fault.two_sources,
    )
    watch.history.fault(f"{name} begins")
    try:
        await fault.inject(Incident(cluster, rng, victim, plan.freshness, plan.bound))
        tally.injected += 1
    except NotInjected as error:
        outcome.complaints.append(f"{name} was not injected: {error}")
    watch.history.fault(f"{name} is over")
    watch.scope = replace(watch.scope, phase="after")
    async with asyncio.TaskGroup() as group:
        group.create_task(_until_back(name, cluster, tally, outcome))
        await asyncio.sleep(plan.calm if bound is None else bound + _MARGIN)
        await _until_read(name, watch, outcome)
    watch.scope = Scope(lag=plan.lag)
    for service in cluster.services:
        if not service.alive:
            raise ServiceEnded(f"process {service.number} has ended:\n{service.log_tail()}")


async def _lags(cluster: Cluster) -> list[dict[str, float]]:
    found = [(await service.statistics())["feed"] for service in cluster.services]
    return [feed["lag_us"] for feed in found if feed is not None]


async def _watch_breakers(cluster: Cluster, watch: Watch) -> None:
    """Record how long breakers are open, by phase; in calm, only a busy machine opens them."""
    while cluster.shares:
        await asyncio.sleep(_SAMPLE)
        for service in cluster.services:
            if not (service.down or await service.uses_cache()):
                watch.tallies[watch.scope.fault].away[watch.scope.phase] += _SAMPLE
    await asyncio.Event().wait()  # there is none


async def _until_read(name: str, watch: Watch, outcome: RunResult) -> None:
    """Wait until a read has been checked; on a busy machine it may take longer than the fault."""
    deadline = time.monotonic() + _BACK
    while not watch.tallies[name].reads:
        if time.monotonic() > deadline:
            outcome.complaints.append(f"no read was checked within {_BACK:g} s of {name}")
            return
        await asyncio.sleep(_LOOK)


async def _until_back(name: str, cluster: Cluster, tally: Tally, outcome: RunResult) -> None:
    """Wait until every process uses its cache again, so that the next fault has an effect."""
    if not cluster.shares:
        return
    healed = time.monotonic()
    deadline = healed + _BACK
    for service in cluster.services:
        while not await service.uses_cache():
            if time.monotonic() > deadline:
                outcome.complaints.append(
                    f"process {service.number} does not use its cache {_BACK:g} s after {name}"
                )
                return
            await asyncio.sleep(_LOOK)
    tally.back = max(tally.back, time.monotonic() - healed)
