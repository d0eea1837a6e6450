"""PostgreSQL restarts, or has a pooler before it, while it is also the change feed of the cache."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from app.devservers import PgBouncerServer, PostgresServer
from jobcache import SettingsError
from tests.app.running import Service, Start, starting

JOBS = 3


class Poller:
    """Polls jobs of one process that do not change, without a pause."""

    def __init__(self, service: Service, jobs: list[dict[str, Any]]) -> None:
        self.service = service
        self.kinds: Counter[str] = Counter()
        self._jobs = jobs

    async def poll(self) -> None:
        while True:
            for job in self._jobs:
                response = await self.service.http.get(f"/api/v2/jobs/{job['id']}")
                assert response.status_code == 200, response.text
                assert response.json() == job
                found = re.search(r"; (hit|fwd=\w+)", response.headers.get("cache-status", ""))
                self.kinds["none" if found is None else found[1]] += 1
            await asyncio.sleep(0.001)

    @property
    def hits(self) -> int:
        """How many hits the service has counted."""
        return self.service.services.cache.statistics.hits


@asynccontextmanager
async def polling(pollers: list[Poller]) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(poller.poll()) for poller in pollers]
        yield
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("crashes", [False, True], ids=["stopped", "crashed"])
async def test_cached_polls_are_answered_while_the_server_restarts(
    start: Start,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
    *,
    crashes: bool,
) -> None:
    with PostgresServer(settings={"synchronous_commit": "on"}) as server:
        chosen = {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": server.url()}
        other = starting(tmp_path / "other")
        async with start(**chosen) as one, other(**chosen) as two:
            jobs = [await one.rendering() for _ in range(JOBS)]
            pollers = [Poller(each, jobs) for each in (one, two)]
            for service in (one, two):
                async with asyncio.timeout(60):
                    for job in jobs:
                        while await service.job(job["id"]) != job:
                            await asyncio.sleep(0.001)
            for poller in pollers:
                poller.hits_before = poller.hits
            async with asyncio.timeout(60), polling(pollers):
                await counted(pollers)
                await asyncio.to_thread(server.crash if crashes else server.stop)
                while not all(poller.kinds["fwd=stale"] for poller in pollers):
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(server.start)
                back = time.monotonic()
                await counted(pollers)
                record_property("seconds_until_hits", time.monotonic() - back)
            reported = await two.post(f"{jobs[0]['id']}/progress", percent=50)
            assert await two.job(jobs[0]["id"]) == reported
            async with asyncio.timeout(60):
                while await one.job(jobs[0]["id"]) != reported:
                    await asyncio.sleep(0.001)


async def counted(pollers: list[Poller]) -> None:
    """Wait until each process has counted hits from now on."""
    before = [poller.hits for poller in pollers]
    while any(poller.hits <= count for poller, count in zip(pollers, before, strict=True)):
        await asyncio.sleep(0.001)


# --- a pooler ---


@pytest.fixture
def behind(postgres: PostgresServer, request: pytest.FixtureRequest) -> str:
    """The name of an empty database, for URLs of the server and of the pooler before it."""
    name: str = request.node.name[:60]
    postgres.create_database(name)
    return name


async def test_behind_a_pooler_the_feed_takes_the_direct_url(
    tmp_path: Path, behind: str, postgres: PostgresServer, pgbouncer: PgBouncerServer
) -> None:
    chosen = {
        "JOBCACHE_BACKEND": "postgres",
        "DATABASE_URL": pgbouncer.url(behind),
        "DATABASE_DIRECT_URL": postgres.url(behind),
    }
    async with AsyncExitStack() as stack:
        one, two = [
            await stack.enter_async_context(starting(tmp_path / name)(**chosen))
            for name in ("one", "two")
        ]
        job = await one.rendering()
        for percent in range(1, 11):
            writer, reader = (one, two) if percent % 2 else (two, one)
            assert writer.services.cache.info().health.available
            job = await writer.post(f"{job['id']}/progress", percent=percent)
            assert await writer.job(job["id"]) == job
            async with asyncio.timeout(60):
                while (await reader.job(job["id"]))["version"] < job["version"]:
                    await asyncio.sleep(0)
            before = reader.services.cache.statistics.hits
            async with asyncio.timeout(60):  # a starved feed has no proof for a while
                while reader.services.cache.statistics.hits == before:
                    assert await reader.job(job["id"]) == job


async def test_a_pooler_without_a_direct_url_is_refused(
    start: Start, behind: str, pgbouncer: PgBouncerServer
) -> None:
    chosen = {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": pgbouncer.url(behind)}
    with pytest.raises(SettingsError, match="DATABASE_DIRECT_URL"):
        async with start(**chosen):
            pass
