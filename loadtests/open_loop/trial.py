"""One trial: start the servers and one service process, load it, and compare the counts."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from app.devservers import PostgresServer, RedisServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.service import Service
from loadtests.open_loop import jobs
from loadtests.open_loop.load import Load, Plan, Seen
from loadtests.open_loop.processors import ProcessorMeter
from loadtests.open_loop.record import summary

if TYPE_CHECKING:
    from collections.abc import Iterator

_SPARE_CONNECTIONS = 1000
_COUNTED = ("hits", "misses", "bypasses", "stale_served", "coalesced")


@contextmanager
def running_service(
    backend: str, database: str, connections: int
) -> Iterator[tuple[Service, dict[str, int]]]:
    """Run a service with servers of its own; yield it, and the first process of each server.

    Args:
        backend: one of `benchmarks.backends.NEEDS_REDIS`.
        database: "postgres" or "sqlite".
        connections: how many will be open at the same time.

    Raises:
        ServerFailed: a server did not start.
        ServiceFailed: the service did not start.
    """
    settings = {
        "JOBCACHE_BACKEND": backend,
        "JOBCACHE_MAX_CONNECTIONS": str(connections + _SPARE_CONNECTIONS),
        "JOBCACHE_MAX_UNFINISHED_JOBS": "0",
    }
    roles: dict[str, int] = {}
    with ExitStack() as stack:
        if NEEDS_REDIS[backend]:
            redis = stack.enter_context(RedisServer())
            settings["REDIS_URL"] = redis.url
            roles["redis"] = redis.pid
        if database == "postgres":
            postgres = stack.enter_context(PostgresServer())
            settings["DATABASE_URL"] = postgres.url()
            roles["database"] = postgres.pid
        service = stack.enter_context(Service(settings))
        service.wait_until_ready()
        yield service, {"service": service.stats()["process"], **roles}


def run(plan: Plan, backend: str, database: str, seconds: float, warm_up: float) -> dict[str, Any]:
    """Run the trial; return the figures, as `loadtests.open_loop.report` shows them.

    Args:
        plan: the load.
        backend: as for `running_service`.
        database: as for `running_service`.
        seconds: how long the load is measured.
        warm_up: how long the service is loaded before.

    Raises:
        ServerFailed: a server did not start.
        ServiceFailed: the service did not start, or refused to create the jobs.
    """
    with running_service(backend, database, plan.pollers) as (service, roles):
        versions = jobs.create(service.port, plan.jobs)
        with Load(service.port, versions, plan) as load:
            load.run(warm_up)
            before = service.stats()
            meter = ProcessorMeter(roles)
            seen = load.run(seconds)
            usage = meter.usage()
            after = service.stats()
    return {
        "plan": asdict(plan),
        "backend": backend,
        "database": database,
        "seconds": seconds,
        **figures_of(seen),
        "service": {
            "counts": {name: _grown(before, after, "statistics", name) for name in _COUNTED},
            "hit_us": after["statistics"]["latency_us"]["hit"],
            "statements": {
                name: _grown(before, after, "database", "purposes", name)
                for name in after["database"]["purposes"]
            },
        },
        "processors": {
            "roles": dict(usage.roles),
            "others": usage.others,
            "stolen": usage.stolen,
        },
    }


def figures_of(seen: Seen) -> dict[str, Any]:
    """Return the part of the figures that the load itself has shown."""
    record = seen.record
    return {
        "took": seen.took,
        "polls": {
            "planned": seen.planned,
            "sent": record.sent,
            "answered": record.answered,
            "unanswered": seen.unanswered,
            "backwards": record.backwards,
            "outdated": record.outdated,
            "errors": dict(record.errors),
        },
        "rows": record.rows(),
        "delay": summary(seen.delays),
        "counts": {
            **{source.value: number for source, number in record.sources.items()},
            "coalesced": record.coalesced,
        },
        "updates": {
            "planned": seen.planned_updates,
            "acknowledged": len(seen.updates),
            "times": summary(seen.updates),
            "errors": dict(seen.update_errors),
        },
    }


def _grown(before: dict[str, Any], after: dict[str, Any], *path: str) -> int:
    values = []
    for found in (before, after):
        value: Any = found
        for name in path:
            value = value.get(name, 0)
        values.append(int(value))
    return values[1] - values[0]
