"""One scenario on one backend: servers, service, clients and samples."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from app.devservers import RedisServer
from benchmarks.backends import NEEDS_REDIS
from benchmarks.service import Service
from loadtests.report.document import Measurement, Outcomes
from loadtests.run.checks import problems
from loadtests.run.clients import Clients
from loadtests.run.outage import RedisOutage
from loadtests.sampling.postgres import database_counters
from loadtests.sampling.sampler import Sampler

if TYPE_CHECKING:
    from app.devservers import PostgresServer
    from loadtests.scenario import Scenario


def measure(
    scenario: Scenario,
    backend: str,
    postgres: PostgresServer | None,
    *,
    workers: int = 1,
    every: float = 1.0,
) -> Measurement:
    """Run a scenario.

    Args:
        scenario: what the clients do.
        backend: one of `benchmarks.backends.NEEDS_REDIS`.
        postgres: where the jobs are, in a database of this run's own; None for SQLite.
        workers: how many processes the service has.
        every: seconds between two samples.

    Raises:
        ServerFailed: Redis did not start.
        ServiceFailed: the service did not start, or could not be asked for its statistics.
        ClientsFailed: the clients have not reported what they saw.
    """
    settings = {
        "JOBCACHE_BACKEND": backend,
        "JOBCACHE_WORKERS": str(workers),
        "JOBCACHE_RENDERER": "simulated",
        "JOBCACHE_SIMULATED_SECONDS": str(scenario.job_seconds),
        "JOBCACHE_SIMULATED_UPDATES": str(scenario.updates),
    }
    database = f"{scenario.name}-{backend}"
    processes = {}
    redis = None
    with ExitStack() as stack:
        if NEEDS_REDIS[backend]:
            redis = stack.enter_context(RedisServer())
            settings["REDIS_URL"] = redis.url
            processes["redis"] = redis.pid
        if postgres is not None:
            postgres.create_database(database)
            stack.callback(postgres.drop_database, database)
            settings["DATABASE_URL"] = postgres.url(database)
            processes["database"] = postgres.pid
        with Service(settings) as service:
            service.wait_until_ready()
            before = service.stats_of_all()
            began = time.monotonic()
            with Clients(scenario, service.url) as clients:
                watched = {**processes, "service": service.pid, "clients": clients.pid}
                with (
                    Sampler(service, watched, every) as sampler,
                    RedisOutage(scenario, redis, sampler.has_reads) as outage,
                ):
                    seen = clients.wait()
            seconds = time.monotonic() - began
            after = service.stats_of_all()
        # Only now, as the connections have been closed, has PostgreSQL counted all of them.
        counted = {}
        if postgres is not None:
            counted = database_counters(postgres.socket_directory, database)
    run = Measurement(
        scenario=scenario.name,
        backend=backend,
        users=scenario.users,
        seconds=round(seconds, 3),
        requests=seen.requests,
        polls_ms=seen.polls_ms,
        clients=seen.outcomes,
        held=seen.held,
        service=_outcomes(before, after),
        process_reads=_reads_of_each(before, after),
        not_modified=seen.counts["not_modified"],
        delay_ms=seen.delay_ms,
        polls=seen.counts["polls"],
        jobs=seen.counts["jobs"],
        completed=seen.counts["completed"],
        ends_seen=seen.counts["ends_seen"],
        first_polls=seen.counts["first_polls"],
        first_polls_missed=seen.counts["first_polls_missed"],
        updates=seen.counts["updates"],
        update_polls=seen.counts["update_polls"],
        received_bytes=seen.counts["received_bytes"],
        sent_bytes=seen.counts["sent_bytes"],
        cut_off=seen.counts["cut_off"],
        reads_without_outcome=seen.counts["reads_without_outcome"],
        cache_errors=_growth(before["statistics"], after["statistics"])["errors"],
        statements=_growth(before["database"]["purposes"], after["database"]["purposes"]),
        database=counted,
        inside_us=after["statistics"]["latency_us"],
        samples=sampler.samples,
        faults=outage.faults,
    )
    return replace(run, problems=problems(run, seen.errors))


def _outcomes(before: dict[str, Any], after: dict[str, Any]) -> Outcomes:
    grown = _growth(before["statistics"], after["statistics"])
    return Outcomes(
        hits=grown["hits"],
        misses=grown["misses"],
        bypasses=grown["bypasses"],
        stale=grown["stale_served"],
        coalesced=grown["coalesced"],
    )


def _reads_of_each(before: dict[str, Any], after: dict[str, Any]) -> list[int]:
    earlier = {each["process"]: _reads(each) for each in before["processes"]}
    return [_reads(each) - earlier.get(each["process"], 0) for each in after["processes"]]


def _reads(each: dict[str, Any]) -> int:
    reads: int = each["statistics"]["total_requests"]
    return reads


def _growth(before: dict[str, Any], after: dict[str, Any]) -> dict[str, int]:
    return {
        name: value - before.get(name, 0) for name, value in after.items() if type(value) is int
    }
