"""Servers and service processes on this machine, and the loads that are measured on them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from redis import Redis

from app.devservers import PostgresServer, RedisServer
from app.jobs.cache_keys import progress_key
from benchmarks.generator import get, load
from benchmarks.service import Service, ServiceFailed
from loadtests.capacity.observation import Observation, Observer
from loadtests.capacity.workload import WITH_REDIS
from loadtests.open_loop import jobs
from loadtests.open_loop.load import Load, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WARM_UP = 0.5  # seconds
_CONNECTIONS = 32  # of the load that keeps a process busy all the time
_TIMES, _MOST_TIMES = 2, 4
_TOLERATED = 0.005  # failures for each poll
_PURGE_EVERY = 0.25  # seconds


@dataclass(frozen=True, kw_only=True)
class Point:
    """One load.

    Attributes:
        name: for people.
        polls: a second; None: as many as one process answers.
        jobs: how many of the jobs are polled.
        updates: a second.
        etags: whether polls name the version that they have seen.
        purges: whether the cache is emptied again and again, so that polls load.
        changes: a second, of keys in Redis that no process uses.
        batch: how many of these changes come together, so that they are reported together.
        processes: of the service.
    """

    name: str
    polls: float | None
    jobs: int
    updates: float = 0.0
    etags: bool = False
    purges: bool = False
    changes: float = 0.0
    batch: int = 1
    processes: int = 1


class Laboratory:
    """One PostgreSQL server with jobs, for all backends in turn; a context manager.

    Args:
        job_count: jobs that are made, for an external worker to render.
    """

    def __init__(self, job_count: int) -> None:
        self._job_count = job_count
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._postgres = stack.enter_context(PostgresServer())
            with Service(self._settings("memory")) as service:
                service.wait_until_ready()
                self.versions = jobs.create(service.port, self._job_count)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def bench(self, backend: str, processes: int = 1) -> Iterator[Bench]:
        """Run service processes on a backend while the block runs.

        Raises:
            ServerFailed: a server did not start.
            ServiceFailed: the service did not start.
        """
        with ExitStack() as stack:
            redis = None
            settings = self._settings(backend)
            if backend in WITH_REDIS:
                server = stack.enter_context(RedisServer())
                settings["REDIS_URL"] = server.url
                redis = stack.enter_context(Redis(port=server.port)), server.pid
            services = [stack.enter_context(Service(settings)) for _ in range(processes)]
            for service in services:
                service.wait_until_ready()
            observer = Observer(backend, services, redis, self._postgres.pid)
            yield Bench(services, observer, None if redis is None else redis[0], self.versions)

    def _settings(self, backend: str) -> dict[str, str]:
        return {
            "DATABASE_URL": self._postgres.url(),
            "JOBCACHE_BACKEND": backend,
            "JOBCACHE_MAX_UNFINISHED_JOBS": "0",
            # Entries outlast the measurement. Those of jobs that are not updated would all expire
            # in one of the loads, whichever that is.
            "JOBCACHE_TTL": "3600",
        }


class Bench:
    """Services under measurement.

    Args:
        services: one for each process.
        observer: reads their counters.
        redis: the client of their Redis server, if there is one.
        versions: the jobs, and their versions.
    """

    def __init__(
        self,
        services: Sequence[Service],
        observer: Observer,
        redis: Redis | None,
        versions: dict[int, int],
    ) -> None:
        self.services = services
        self._observer = observer
        self._redis = redis
        self._versions = versions

    def measure(self, point: Point, seconds: float) -> Observation:
        """Run a load twice for so many seconds; return what it has cost when it was disturbed less.

        Raises:
            ServiceFailed: polls or updates failed, or there were none.
        """
        if point.polls is None:
            return self._measure_busy(point, seconds)
        versions = dict(list(self._versions.items())[: point.jobs])
        pollers = 2 * point.jobs
        plans = [
            Plan(
                pollers=pollers,
                interval=pollers * len(self.services) / point.polls,
                jobs=point.jobs,
                update_interval=point.jobs / point.updates if point.updates and not n else None,
                conditional=point.etags,
                seed=n,
            )
            for n in range(len(self.services))
        ]
        with ExitStack() as stack:
            loads = [
                stack.enter_context(Load(service.port, versions, plan))
                for service, plan in zip(self.services, plans, strict=True)
            ]
            pool = stack.enter_context(ThreadPoolExecutor(len(loads)))
            list(pool.map(lambda each: each.run(_WARM_UP + plans[0].interval), loads))
            observations: list[Observation] = []
            # The later ones are for a machine that was too busy for the limits of the cache.
            while len(observations) < _TIMES or (
                len(observations) < _MOST_TIMES and all(map(_failed, observations))
            ):
                observations.append(self._observe(point, loads, pool, seconds))
        return min(observations, key=lambda each: (_failed(each), each.waiting))

    def _observe(
        self, point: Point, loads: Sequence[Load], pool: ThreadPoolExecutor, seconds: float
    ) -> Observation:
        with self._disturbing(point):
            self._observer.start()
            seen = list(pool.map(lambda each: each.run(seconds), loads))
            observation = self._observer.finish(
                point.name,
                polls=sum(each.record.answered for each in seen),
                updates=sum(len(each.updates) for each in seen),
                conditional=point.etags,
            )
        problems = [
            problem for each in seen for problem in (*each.record.errors, *each.update_errors)
        ] + [f"{each.unanswered} requests were not answered" for each in seen if each.unanswered]
        if problems or not observation.polls:
            raise ServiceFailed(f"{point.name}: {'; '.join(problems) or 'nothing was polled'}")
        return observation

    def cell(self, job: int) -> bytes:
        """Return what Redis holds for a job.

        Raises:
            ServiceFailed: it holds nothing.
        """
        self.services[0].call("GET", f"/api/v2/jobs/{job}")
        found = None if self._redis is None else self._redis.get(progress_key(job))
        if not isinstance(found, bytes):
            raise ServiceFailed(f"Redis holds nothing for job {job}")
        return found

    def _measure_busy(self, point: Point, seconds: float) -> Observation:
        """Measure a process that is busy all the time: each connection repeats its request."""
        ids = list(self._versions)[: point.jobs]
        requests = [get(f"/api/v2/jobs/{job}") for job in ids[:_CONNECTIONS]]
        port = self.services[0].port
        load(port, requests, _WARM_UP)
        self._observer.start()
        done = load(port, requests, seconds)
        return self._observer.finish(point.name, polls=done.answers, updates=0)

    @contextmanager
    def _disturbing(self, point: Point) -> Iterator[None]:
        """Empty the cache, or change keys, while the block runs."""
        ended = threading.Event()

        def purge() -> None:
            while not ended.wait(_PURGE_EVERY):
                self.services[0].call("POST", "/api/v2/cache/invalidate", {"all": True})

        def change() -> None:
            began, number = time.perf_counter(), 0
            while self._redis is not None and not ended.wait(
                max(0.0, began + number / point.changes - time.perf_counter())
            ):
                with self._redis.pipeline(transaction=False) as commands:
                    for _ in range(point.batch):
                        commands.set(f"jobcache:calibration:{number}", "", px=10_000)
                        number += 1
                    commands.execute()

        threads = [
            threading.Thread(target=work)
            for work, wanted in ((purge, point.purges), (change, point.changes > 0))
            if wanted
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def _failed(observation: Observation) -> bool:
    return observation.failures > _TOLERATED * observation.polls
