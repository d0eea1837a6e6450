"""The service in this process, on every backend and database; and as a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_client
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from app import settings as service_settings
from app.container import Services
from app.devservers import PostgresServer
from app.main import create_app
from app.settings import Settings
from jobcache import settings as cache_settings
from jobcache.backends import registry
from tests.pairs import SERVICE_BACKENDS


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer) -> str:
    """A database on the server, shared by tests that each find it empty."""
    postgres.create_database("tests")
    return postgres.url("tests")


@pytest.fixture
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; parametrize it indirectly with `DATABASES`."""
    return await empty_database(request, getattr(request, "param", "sqlite"), tmp_path)


async def empty_database(request: pytest.FixtureRequest, database: str, folder: Path) -> str:
    """Return the URL of an empty database; one of SQLite is in the folder."""
    if database == "sqlite":
        return f"sqlite+aiosqlite:///{folder / 'jobs.db'}"
    url: str = request.getfixturevalue("postgres_url")
    # A new schema takes a tenth of the time of a new database.
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA public CASCADE"))
        await connection.execute(text("CREATE SCHEMA public"))
    await engine.dispose()
    return url


@dataclass
class Service:
    """A running service, and a client of it."""

    http: httpx.AsyncClient
    services: Services
    settings: Settings

    async def create(self, **fields: Any) -> dict[str, Any]:
        body = {"client_id": "acme", "prompt": "A cat sits. A dog runs.", **fields}
        response = await self.http.post("/api/v2/jobs", json=body)
        assert response.status_code == 202, response.text
        created: dict[str, Any] = response.json()
        return created

    async def job(self, job_id: int) -> dict[str, Any]:
        response = await self.http.get(f"/api/v2/jobs/{job_id}")
        assert response.status_code == 200, response.text
        job: dict[str, Any] = response.json()
        return job

    async def post(self, path: str, status: int = 200, **body: Any) -> dict[str, Any]:
        response = await self.http.post(f"/api/v2/jobs/{path}", json=body or None)
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def until(self, job_id: int, status: str) -> dict[str, Any]:
        """Poll until the job has that status."""
        async with asyncio.timeout(60):
            while (job := await self.job(job_id))["status"] != status:
                assert not job["terminal"], job
                await asyncio.sleep(0.01)
        return job

    async def rendering(self, **fields: Any) -> dict[str, Any]:
        """An external job that is being rendered."""
        job = await self.create(renderer="external", **fields)
        await self.until(job["id"], "storyboard_ready")
        await self.post(f"{job['id']}/approve")
        return await self.post(f"{job['id']}/render", 202)

    async def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = (await self.http.get("/api/v2/cache/stats")).json()
        return stats

    async def storyboards_written(self) -> None:
        """Wait until every job has its storyboard, those of other tests, too."""
        async with asyncio.timeout(60):
            while True:
                page = await self.http.get("/api/v2/jobs", params={"status": "pending"})
                if page.json()["items"] == []:
                    return
                await asyncio.sleep(0.01)


installed = cache(entry_points)
"""What is installed stays the same, and takes longer to find than all of the settings to read."""

Start = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a service with the given environment variables."""
    return starting(tmp_path)


def starting(folder: Path) -> Start:
    """Return what starts services that keep their files in the folder."""

    @asynccontextmanager
    async def start(**environment: str) -> AsyncIterator[Service]:
        defaults = {
            "JOBCACHE_VAR_DIR": str(folder / "var"),
            "JOBCACHE_RENDERER": "simulated",
            "JOBCACHE_SIMULATED_SECONDS": "0.9",
            "JOBCACHE_SIMULATED_UPDATES": "3",
        }
        with pytest.MonkeyPatch.context() as patch:
            for variable, value in (defaults | environment).items():
                patch.setenv(variable, value)
            for module in (cache_settings, registry):
                patch.setattr(module, "entry_points", installed)
            chosen = service_settings.load()
            app = create_app(chosen)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                yield Service(http, app.state.services, chosen)

    return start


@pytest.fixture(params=SERVICE_BACKENDS)
def backend_environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Every backend, as the environment chooses it."""
    return choosing(request, request.param)


def choosing(request: pytest.FixtureRequest, backend: str) -> dict[str, str]:
    """What chooses a backend, an empty one."""
    environment = {"JOBCACHE_BACKEND": backend}
    if backend in {"redis", "tiered"}:
        url: str = next(iter(request.getfixturevalue("redis_urls").values()))
        with redis_client.Redis.from_url(url) as raw:
            raw.flushall()
        environment["REDIS_URL"] = url
    return environment


@pytest.fixture
async def service(
    start: Start, database_url: str, backend_environment: dict[str, str]
) -> AsyncIterator[Service]:
    """The service on every backend, and on the database that `database_url` says."""
    async with start(DATABASE_URL=database_url, **backend_environment) as running:
        yield running
