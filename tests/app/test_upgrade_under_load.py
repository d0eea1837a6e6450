"""The tables of the first version, and of this one, are migrated while clients poll and write."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.migrations.run import VERSIONS, Migrations
from loadtests.freshness.older_version import OlderVersion
from tests.app.db.schemas import NEXT, drop_tables, prepare, query, schema
from tests.app.first_version import serving_first
from tests.app.process import NO_CERTIFICATES
from tests.app.running import Start

JOBS = 3
FINISHED = """
    INSERT INTO jobs (client_id, prompt, seconds_per_scene, renderer, status, version, percent,
        stage, message, created_at, updated_at)
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 3000)
    SELECT 'acme', 'A cat sits.', 1, 'external', 'completed', 9, 100, '', '', n, n FROM numbers
"""


@dataclass
class Load:
    """Clients that poll jobs, report progress and create jobs, and what they were told."""

    http: httpx.AsyncClient
    statuses: Counter[int] = field(default_factory=Counter)
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    clients: list[asyncio.Task[None]] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the clients during the block; none of them must fail."""
        ids = [await self.begin() for _ in range(JOBS)]
        async with asyncio.TaskGroup() as group:
            self.clients = [
                *(
                    group.create_task(self.report(job_id), name=f"report {job_id}")
                    for job_id in ids
                ),
                *(group.create_task(self.poll(job_id), name=f"poll {job_id}") for job_id in ids),
                group.create_task(self.create(), name="create"),
            ]
            yield
            for client in self.clients:
                client.cancel()
                await asyncio.wait([client])
        assert all(status < 300 for status in self.statuses), self.statuses

    async def all_continue(self) -> None:
        """Wait until each client has had several more answers."""
        names = [client.get_name() for client in self.clients]
        before = dict(self.done)
        async with asyncio.timeout(60):
            while any(self.done[name] < before.get(name, 0) + 3 for name in names):
                assert not any(client.done() for client in self.clients)
                await asyncio.sleep(0.01)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to its end; return the document of the answer."""
        sending = asyncio.create_task(self.http.request(method, f"/api/v2/jobs{path}", json=body))
        try:
            response = await asyncio.shield(sending)
        except asyncio.CancelledError:
            self.hear(await sending)
            raise
        return self.hear(response)

    def hear(self, response: httpx.Response) -> Any:
        self.statuses[response.status_code] += 1
        assert response.status_code < 300, response.text
        job = response.json()
        if job["version"] > self.told.get(job["id"], job)["version"] - 1:
            self.told[job["id"]] = job
        return job

    async def begin(self) -> int:
        """Create a job that is being rendered."""
        body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
        job_id: int = (await self.ask("POST", "", body))["id"]
        async with asyncio.timeout(60):
            while (await self.ask("GET", f"/{job_id}"))["status"] != "storyboard_ready":
                await asyncio.sleep(0.01)
        await self.ask("POST", f"/{job_id}/approve")
        await self.ask("POST", f"/{job_id}/render")
        return job_id

    async def report(self, job_id: int) -> None:
        percent = 0.0
        while True:
            percent = min(99.0, percent + 0.01)
            version = self.told[job_id]["version"]
            job = await self.ask("POST", f"/{job_id}/progress", {"percent": percent})
            assert (job["version"], job["progress"]["percent"]) == (version + 1, percent)
            self.done[f"report {job_id}"] += 1

    async def poll(self, job_id: int) -> None:
        while True:
            least = self.told[job_id]["version"]
            assert (await self.ask("GET", f"/{job_id}"))["version"] >= least
            self.done[f"poll {job_id}"] += 1

    async def create(self) -> None:
        while True:
            body = {"client_id": "other", "prompt": "A dog runs.", "renderer": "external"}
            await self.ask("POST", "", body)
            self.done["create"] += 1
            await asyncio.sleep(0.02)

    async def check_kept(self, http: httpx.AsyncClient) -> None:
        """Check that no job has lost what was acknowledged."""
        assert len(self.told) > JOBS
        for job_id, told in self.told.items():
            job = (await http.get(f"/api/v2/jobs/{job_id}")).json()
            assert job["version"] >= told["version"]
            assert (job["prompt"], job["client_id"]) == (told["prompt"], told["client_id"])
            if job["version"] == told["version"]:
                assert (job["status"], job["progress"]) == (told["status"], told["progress"])


@pytest.mark.parametrize(
    "database_url", ["postgres", pytest.param("sqlite", marks=pytest.mark.long)], indirect=True
)
async def test_up_and_down_under_load_nothing_is_lost_and_nothing_fails(
    database_url: str, first_version: OlderVersion, start: Start, tmp_path: Path
) -> None:
    migrations = Migrations(database_url)
    extended = Migrations(database_url, folders=(VERSIONS, NEXT))
    null = {"DATABASE_URL": database_url, "JOBCACHE_BACKEND": "null"}
    with serving_first(first_version, tmp_path, **null) as old:
        async with httpx.AsyncClient(base_url=old.url, timeout=60, verify=NO_CERTIFICATES) as http:
            load = Load(http)
            await load.begin()
            await query(database_url, FINISHED)
            assert await migrations.current() == "base"
            async with load.running():
                await load.all_continue()
                await migrations.upgrade()
                await load.all_continue()
                await extended.upgrade()  # an index and a column
                await load.all_continue()
                for _ in range(3):
                    await extended.downgrade("-1")
                    await load.all_continue()
                await migrations.upgrade()
                await load.all_continue()
            await load.check_kept(http)
    await prepare(database_url)
    async with start(**null) as service:
        await load.check_kept(service.http)
        newer = Load(service.http)
        async with newer.running():
            await newer.all_continue()
            await migrations.downgrade("-1")
            await newer.all_continue()
            await extended.upgrade()
            await newer.all_continue()
            await extended.downgrade("-1")
            await newer.all_continue()
        await newer.check_kept(service.http)
        await load.check_kept(service.http)
    assert await query(database_url, "SELECT count(*) FROM jobs WHERE version = 9") == [(3000,)]
    migrated = await schema(database_url)
    await drop_tables(database_url)
    await prepare(database_url)
    assert await schema(database_url) == migrated, "a new database has the same tables"
