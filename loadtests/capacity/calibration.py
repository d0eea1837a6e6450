"""Measures the costs of single operations on this machine, and checks the model on other loads."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.machine import surroundings
from loadtests.capacity import fit, sizes
from loadtests.capacity.coefficients import Coefficients, ServiceCost, Sizes
from loadtests.capacity.laboratory import Laboratory, Point
from loadtests.capacity.workload import BACKENDS, WITH_REDIS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadtests.capacity.laboratory import Bench
    from loadtests.capacity.observation import Observation

FEW = "few polls"
JOBS = 120
"""Jobs that are made; loads poll them all, or some of them."""

MANY_CHANGES = Point(name="many changes", polls=200, jobs=60, changes=20_000, batch=200)
"""Shows what a report costs a process, without the wake-up: so many are reported together."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long the calibration measures.

    Attributes:
        seconds: each load.
        connections: that are opened to measure their memory.
        entries: that are stored to measure their memory.
    """

    seconds: float
    connections: int
    entries: int


FULL = Length(seconds=1.5, connections=1000, entries=20_000)
QUICK = Length(seconds=0.4, connections=200, entries=20_000)


@dataclass
class Measured:
    """All loads of one calibration.

    Attributes:
        coefficients: fitted to the first kind of loads.
        fitted: the loads that the coefficients were fitted to.
        held_back: the loads that the coefficients were not fitted to, with their points.
        body: bytes of the documents.
    """

    coefficients: Coefficients
    fitted: list[Observation] = field(default_factory=list)
    held_back: list[tuple[Point, Observation]] = field(default_factory=list)
    body: int = 0


def fitted_points(backend: str) -> list[Point]:
    """Return the loads that the costs of a backend are fitted to."""
    few, more, many = (100, 250, 500) if backend == "null" else (200, 1000, 2500)
    updates = (20, 50) if backend == "null" else (30, 90)
    points = [
        Point(name=FEW, polls=few, jobs=60),
        Point(name="more polls", polls=more, jobs=60),
        Point(name="many polls", polls=many, jobs=60),
        Point(name="as many as possible", polls=None, jobs=60),
        Point(name="ETags", polls=more, jobs=60, etags=True),
        Point(name="few updates", polls=few, jobs=60, updates=updates[0]),
        Point(name="more updates", polls=few, jobs=60, updates=updates[1]),
    ]
    if backend != "null":
        points.append(Point(name="loads", polls=2 * few, jobs=60, purges=True))
    if backend == "tiered":
        points += [
            Point(name="changes by others", polls=few, jobs=60, changes=1000),
            # Each update makes a process read the entry again once it is polled for it. With few
            # polls this is rarer than updates, and shows what each of the two costs.
            Point(name="updates and hardly any polls", polls=20, jobs=60, updates=90),
        ]
    return points


def held_back_points(backend: str) -> list[Point]:
    """Return other loads: other numbers of pollers, jobs and updates, and of processes."""
    if backend == "null":
        return [
            Point(name="120 jobs", polls=180, jobs=120, updates=30),
            Point(name="ETags, 90 jobs", polls=350, jobs=90, updates=10, etags=True),
        ]
    points = [
        Point(name="120 jobs", polls=600, jobs=120, updates=50),
        Point(name="ETags, 90 jobs", polls=1800, jobs=90, updates=20, etags=True),
    ]
    if backend in WITH_REDIS:
        points.append(Point(name="two processes", polls=900, jobs=100, updates=40, processes=2))
    return points


def calibrate(length: Length, note: Callable[[str], object] = sys.stderr.write) -> Measured:
    """Measure all backends, fit the costs, and measure the loads that are held back.

    Args:
        length: how long to measure.
        note: told the progress.

    Raises:
        ServerFailed: a server did not start.
        ServiceFailed: the service did not start, or polls failed.
    """
    origin = surroundings()
    fitted: list[Observation] = []
    held: list[tuple[Point, Observation]] = []
    note("starting PostgreSQL, and making jobs\n")
    with Laboratory(JOBS) as laboratory:
        job = min(laboratory.versions)
        for backend in BACKENDS:
            with laboratory.bench(backend) as bench:
                if backend == "memory":
                    service = bench.services[0]
                    head, body, unchanged = sizes.response_sizes(service.port, job)
                    process, connection = sizes.connection_bytes(
                        service, laboratory.versions, length.connections
                    )
                fitted += [
                    _measure(bench, backend, point, length, note)
                    for point in fitted_points(backend)
                ]
                if backend == "tiered":
                    many_changes = _measure(bench, backend, MANY_CHANGES, length, note)
                if backend == "redis":
                    cell = bench.cell(job)
                for point in held_back_points(backend):
                    if point.processes == 1:
                        observation = _measure(bench, backend, point, length, note)
                        held.append((point, observation))
            for point in held_back_points(backend):
                if point.processes > 1:
                    with laboratory.bench(backend, point.processes) as bench:
                        observation = _measure(bench, backend, point, length, note)
                        held.append((point, observation))
    note("measuring memory, and reports of changes\n")
    local, remote, empty = sizes.entry_bytes(cell, body, length.entries)
    report, report_bytes = sizes.report_cost()
    on_redis = [each for each in fitted if each.backend == "redis"]
    one_get, script = sizes.message_bytes(on_redis, body)
    foreign = sum(each.foreign for each in fitted) / len(fitted)
    coefficients = Coefficients(
        services=_services(fitted, many_changes),
        redis=fit.redis_cost([each for each in fitted if each.backend in WITH_REDIS], report),
        database=fit.database_cost(fitted),
        sizes=Sizes(
            response=head,
            not_modified=unchanged,
            get=one_get,
            script=script,
            report=report_bytes,
            process=process,
            connection=connection,
            entry=local,
            redis=empty,
            redis_entry=remote,
        ),
        origin={**origin, "other processes": f"{foreign:.2f} cores busy meanwhile"},
    )
    return Measured(coefficients, fitted, held, body)


def _services(fitted: Sequence[Observation], many_changes: Observation) -> dict[str, ServiceCost]:
    costs: dict[str, ServiceCost] = {}
    for backend in BACKENDS:
        known: dict[str, float] = {}
        if backend in WITH_REDIS:
            # HTTP is the same on each backend, and memory has the fewest other costs beside it.
            known["conditional"] = costs["memory"].conditional
        loads = [each for each in fitted if each.backend == backend]
        if backend == "tiered":
            without = next(each for each in loads if each.name == FEW)
            more = many_changes.process_cores - without.process_cores
            known["report"] = max(0.0, more / many_changes.changes)
        costs[backend] = fit.service_cost(loads, known)
    return costs


def _measure(
    bench: Bench, backend: str, point: Point, length: Length, note: Callable[[str], object]
) -> Observation:
    observation = bench.measure(point, length.seconds)
    note(f"{backend}: {point.name}: {observation.polls:,.0f} polls/s\n")
    return observation
