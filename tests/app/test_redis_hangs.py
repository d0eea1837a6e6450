"""Redis hangs while many poll, and comes back: no error, nothing old, no needless query."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from app.devservers import RedisServer
from jobcache.resilience.guarded_backend import GuardedBackend
from tests.app.running import Service, Start
from tests.pairs import DATABASES

pytestmark = pytest.mark.usual_limits

JOBS = 6
POLLERS = 4  # of each job


def guard_of(service: Service) -> GuardedBackend:
    guard = service.services.cache.backend
    assert isinstance(guard, GuardedBackend)
    return guard


def counted(service: Service) -> Counter[str]:
    """Count the operations that are sent to Redis from now on."""
    backend: Any = guard_of(service)._backend
    asked: Counter[str] = Counter()

    def count(name: str, operate: Callable[..., Any], *arguments: Any) -> Any:
        asked[name] += 1
        return operate(*arguments)

    for name in (
        *("get", "get_many", "get_many_future", "lease", "purge", "ping"),
        *("fence", "fence_future", "publish", "publish_future"),
    ):
        setattr(backend, name, partial(count, name, getattr(backend, name)))
    return asked


class Clients:
    """Clients that poll and change some jobs, through one service or several.

    No response may be older than an earlier response or acknowledgement of the same job.
    """

    def __init__(self, jobs: list[dict[str, Any]]) -> None:
        self.known = {job["id"]: job["version"] for job in jobs}

    async def poll(self, service: Service, job_id: int) -> bool:
        """Whether it was a hit."""
        known = self.known[job_id]
        response = await service.http.get(f"/api/v2/jobs/{job_id}")
        assert response.status_code == 200, response.text
        version = response.json()["version"]
        assert version >= known, f"job {job_id}: version {version} after {known}"
        self.known[job_id] = max(version, self.known[job_id])
        return "; hit;" in response.headers["cache-status"]

    async def report(self, service: Service, job_id: int, percent: int) -> None:
        job = await service.post(f"{job_id}/progress", percent=percent)
        self.known[job_id] = max(job["version"], self.known[job_id])

    async def until_all_are_hits(self, service: Service) -> None:
        async with asyncio.timeout(60):
            while not all([await self.poll(service, job_id) for job_id in self.known]):
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def polling(self, service: Service) -> AsyncIterator[None]:
        """Poll all jobs meanwhile, each by several at a time."""
        over = False

        async def keep_polling(job_id: int) -> None:
            while not over:
                await self.poll(service, job_id)
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for job_id in self.known:
                for _ in range(POLLERS):
                    group.create_task(keep_polling(job_id))
            yield
            over = True


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)


async def until_fences_are_given_up(service: Service) -> None:
    """A while longer than reads they are waited for, for other processes may not know yet."""
    guard = guard_of(service)
    await until(lambda: guard._breaker.open_for() > 2 * guard._fence_deadline)


async def jobs_in_the_cache(service: Service) -> Clients:
    clients = Clients([await service.rendering() for _ in range(JOBS)])
    await clients.until_all_are_hits(service)
    return clients


async def test_while_redis_hangs_many_pollers_are_answered_as_without_a_cache(start: Start) -> None:
    """None is stale, none fails, and once the breaker is open only probes and writes are sent."""
    with RedisServer() as server:
        async with start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as service:
            guard = guard_of(service)
            busy, quiet, idle = [await jobs_in_the_cache(service) for _ in range(3)]
            server.pause()
            asked = counted(service)
            async with busy.polling(service):
                await until(lambda: guard._breaker.unresponsive)
                await asyncio.gather(*(quiet.poll(service, job_id) for job_id in quiet.known))
                await until(lambda: guard.condition().state == "open")
                assert 0 < asked["get_many_future"] <= JOBS, (
                    "it was asked again although it owed an answer"
                )
                await asyncio.gather(*(busy.report(service, job_id, 30) for job_id in busy.known))
                await until_fences_are_given_up(service)
                asked.clear()
                for percent in (60, 90):
                    for job_id in busy.known:
                        await busy.report(service, job_id, percent)
            statements = await statements_of_polls(service, idle)
            await until(lambda: asked["ping"] >= 2)
            assert set(asked) == {"ping", "fence_future", "publish_future"}
            server.resume()
            for clients in (busy, quiet, idle):
                await clients.until_all_are_hits(service)
            assert guard.condition().available
        var_dir = str(service.settings.var_dir.with_name("null"))
        async with start(JOBCACHE_BACKEND="null", JOBCACHE_VAR_DIR=var_dir) as null:
            without = Clients([await null.rendering() for _ in range(JOBS)])
            assert statements == await statements_of_polls(null, without)


async def statements_of_polls(service: Service, clients: Clients) -> int:
    """How many it takes to answer some polls, a few of each job."""
    loads = service.services.database.purposes
    before = loads["load"]
    for job_id in 3 * [*clients.known]:
        assert not await clients.poll(service, job_id)
    return loads["load"] - before


@pytest.mark.parametrize("database_url", DATABASES, indirect=True)
async def test_writes_that_wait_for_redis_leave_polls_a_connection_to_the_database(
    start: Start, database_url: str, redis_url: str
) -> None:
    """They fence late, so with a transaction open: more of them than there are connections."""
    async with start(
        JOBCACHE_BACKEND="redis", REDIS_URL=redis_url, DATABASE_URL=database_url
    ) as service:
        guard, fencing, answered = guard_of(service), 0, asyncio.Event()

        async def fence(key: str, token: str) -> None:
            nonlocal fencing
            fencing += 1
            await answered.wait()

        clients = Clients([await service.rendering() for _ in range(20)])
        guard.fence = fence  # type: ignore[method-assign]
        guard._breaker.trip("so that every poll needs the database")
        async with asyncio.TaskGroup() as group:
            writes = [group.create_task(clients.report(service, job, 9)) for job in clients.known]
            try:
                await until(lambda: fencing > 0)
                async with asyncio.timeout(60):
                    await asyncio.gather(*(clients.poll(service, job) for job in clients.known))
                assert not any(write.done() for write in writes)
            finally:
                answered.set()


async def test_hits_come_back_and_hide_no_write_of_a_process_that_is_still_cut_off(
    start: Start,
) -> None:
    """Two services on one Redis, which comes back with entries from before the writes.

    The service that wrote meanwhile cannot replay its publishes before the other one reads.
    """
    with RedisServer() as server:
        async with (
            start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as late,
            start(JOBCACHE_BACKEND="redis", REDIS_URL=server.url) as early,
        ):
            may_probe = asyncio.Event()
            guard_of(late)._recovery._sleep = lambda _: may_probe.wait()  # between its probes
            watched, written = [await jobs_in_the_cache(late) for _ in range(2)]
            await written.until_all_are_hits(early)
            server.pause()
            async with watched.polling(early), written.polling(late):
                for service in (early, late):
                    await until_fences_are_given_up(service)  # so that none of them gets through
                for job_id in written.known:
                    await written.report(late, job_id, 50)
            server.resume()
            await until(lambda: guard_of(early).condition().available)
            async with written.polling(early), watched.polling(early):
                await written.until_all_are_hits(early)
                assert not guard_of(late).condition().available
                for job_id in written.known:
                    await written.report(late, job_id, 60)
                    await written.poll(early, job_id)
                for job_id in written.known:
                    assert not await written.poll(late, job_id)
                may_probe.set()
                await until(lambda: guard_of(late).condition().available)
                await written.until_all_are_hits(late)
            await written.until_all_are_hits(early)
