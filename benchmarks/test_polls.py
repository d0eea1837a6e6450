"""What a whole poll costs over HTTP: the service in a process of its own, asked without pause.

All services run at the same time and are measured in turn, for a second each, many times over. A
machine that grows slower or faster meanwhile does so for all of them, and the ratio of two
neighbours in one turn stays right. So this is one benchmark, and its time is that of one turn.

Two workloads, for one of them hides what a poll costs without a cache: where all ask for the same
job, the service answers many of them with one query even if it caches nothing.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from benchmarks.backends import NEEDS_REDIS
from benchmarks.constant import constant_server
from benchmarks.generator import Load, get, load
from benchmarks.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from app.devservers import PostgresServer
    from benchmarks.conftest import Benchmark

CONNECTIONS = 32
TURNS = 9
SECONDS = 1.0
SUBJECTS = [
    *((backend, "postgres") for backend in NEEDS_REDIS),
    ("null", "sqlite"),
    ("memory", "sqlite"),
]
PROMPT = "A fox crosses a frozen river at night, meets a bear and shares its fish."


@dataclass(frozen=True)
class Series:
    """One server under one workload, and its loads, turn by turn."""

    server: str
    database: str
    workload: str
    port: int
    requests: list[bytes]
    loads: list[Load] = field(default_factory=list)

    def summary(self) -> dict[str, object]:
        """As it goes into the results."""
        return {
            "server": self.server,
            "database": self.database,
            "workload": self.workload,
            "polls_per_second": [load.per_second for load in self.loads],
            "generator_busy": [load.busy for load in self.loads],
        }


@pytest.fixture
def services(redis_url: str, postgres: PostgresServer) -> Iterator[dict[tuple[str, str], Service]]:
    """The service with every backend and database, by their names; all started at once."""
    with ExitStack() as stack:
        started = {}
        for backend, database in SUBJECTS:
            settings = {"JOBCACHE_BACKEND": backend, "REDIS_URL": redis_url}
            if database == "postgres":
                postgres.create_database(backend)
                settings["DATABASE_URL"] = postgres.url(backend)
            started[backend, database] = stack.enter_context(Service(settings))
        for service in started.values():
            service.wait_until_ready()
        yield started


@pytest.fixture
def constant() -> Iterator[int]:
    """The port of the server of constant bytes."""
    with constant_server() as port:
        yield port


def test_polls(
    benchmark: Benchmark, services: dict[tuple[str, str], Service], constant: int
) -> None:
    """Polls per second of every service, and of the load generator alone."""
    seconds = SECONDS if benchmark.enabled else SECONDS / 20
    connections = CONNECTIONS if benchmark.enabled else CONNECTIONS // 8
    measured = [Series("constant bytes", "none", "none", constant, [get("/")] * connections)]
    for (backend, database), service in services.items():
        each = [get(path) for path in made_jobs(service, connections)]
        for workload, requests in {"a job each": each, "one job": each[:1] * connections}.items():
            measured.append(Series(backend, database, workload, service.port, requests))

    def turn() -> None:
        for series in measured:
            series.loads.append(load(series.port, series.requests, seconds))

    for series in measured:  # connections to the database, and whatever else comes with use
        load(series.port, series.requests, seconds / 2)
    benchmark.group = "polls, one turn of all services"
    benchmark.extra_info |= {"connections": connections, "seconds": seconds}
    benchmark.pedantic(turn, rounds=TURNS)
    benchmark.extra_info["polls"] = [series.summary() for series in measured]
    for (backend, _), service in services.items():
        hit_rate = service.stats()["statistics"]["hit_rate"]
        assert hit_rate == 0 if backend == "null" else hit_rate > 90, (backend, hit_rate)


def made_jobs(service: Service, count: int) -> list[str]:
    """Make so many jobs, all of them waiting for approval. Returns their paths."""
    body = {"client_id": "acme", "prompt": PROMPT}
    made = [service.call("POST", "/api/v2/jobs", body) for _ in range(count)]
    paths = [f"/api/v2/jobs/{job['id']}" for job in made]
    deadline = time.monotonic() + 15
    for path in paths:
        while service.call("GET", path)["status"] != "storyboard_ready":
            assert time.monotonic() < deadline, f"{path} has no storyboard"
            time.sleep(0.02)
    return paths
