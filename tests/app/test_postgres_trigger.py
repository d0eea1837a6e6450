"""Jobs that are changed by hand reach the pollers of all processes, with the trigger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from app.db.revisions import HEAD
from jobcache.backends.postgres.payloads import channel_of, decode
from tests.app.process import Process, run, serving
from tests.app.running import Start, empty_database


@pytest.fixture
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return await empty_database(request, "postgres", tmp_path)


@pytest.fixture
def chosen(database_url: str) -> dict[str, str]:
    return {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": database_url}


@asynccontextmanager
async def connected(chosen: dict[str, str]) -> AsyncIterator[Any]:
    """A connection as that of psql: the service knows nothing of it."""
    connection = await asyncpg.connect(chosen["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


async def command(directory: Path, *words: str, **environment: str) -> tuple[int, str]:
    return await asyncio.to_thread(
        run, directory, "db", *words, anew=False, workers=False, **environment
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.01)


def poll(service: Process, job: int, **headers: str) -> httpx.Response:
    return service.http.get(f"/api/v2/jobs/{job}", headers=headers)


def is_hit(response: httpx.Response) -> bool:
    return "; hit" in response.headers["cache-status"]


def waiters(service: Process) -> int:
    found: int = service.http.get("/api/v2/cache/stats").json()["held"]["waiters"]
    return found


async def test_a_row_changed_by_hand_reaches_pollers_and_waiters_of_all_processes(
    tmp_path: Path, chosen: dict[str, str]
) -> None:
    with ExitStack() as stack:
        services = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            started = serving(tmp_path / name, **chosen)
            services.append(await asyncio.to_thread(stack.enter_context, started))
        assert await command(tmp_path, "trigger", "install", **chosen) == (0, "")
        job = await asyncio.to_thread(_external, services[0])
        async with connected(chosen) as connection:
            seen = {}
            for service in services:
                await until(lambda service=service: is_hit(poll(service, job)))
                seen[service.url] = poll(service, job)
            waiting = [
                asyncio.create_task(
                    asyncio.to_thread(
                        poll,
                        service,
                        job,
                        Prefer="wait=50",
                        **{"If-None-Match": seen[service.url].headers["etag"]},
                    )
                )
                for service in services
            ]
            for service in services:
                await until(lambda service=service: waiters(service) == 1)
            await connection.execute("UPDATE jobs SET stage = 'by hand' WHERE id = $1", job)
            for answered in await asyncio.gather(*waiting):
                assert answered.status_code == 200
                assert _stage(answered) == "by hand"
            for service in services:
                await until(
                    lambda service=service: (
                        poll(service, job).json()["progress"]["stage"] == "by hand"
                    )
                )
                await until(lambda service=service: is_hit(poll(service, job)))
                before = seen[service.url].json()["version"]
                assert poll(service, job).json()["version"] == before + 1
            await connection.execute("DELETE FROM jobs WHERE id = $1", job)
            for service in services:
                await until(lambda service=service: poll(service, job).status_code == 404)


def _stage(response: httpx.Response) -> str:
    stage: str = response.json()["progress"]["stage"]
    return stage


def _external(service: Process) -> int:
    body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
    job: int = service.http.post("/api/v2/jobs", json=body).raise_for_status().json()["id"]
    service.until(job, "storyboard_ready")
    return job


async def test_without_the_trigger_it_does_not(start: Start, chosen: dict[str, str]) -> None:
    async with start(**chosen) as service, connected(chosen) as connection:
        job = await service.rendering()
        async with asyncio.timeout(60):
            while "; hit" not in (await _poll(service.http, job)).headers["cache-status"]:
                await asyncio.sleep(0.01)
        await connection.execute("UPDATE jobs SET stage = 'by hand'")
        # What is committed later is reported later, so a report of the change would be here.
        other = await service.rendering()
        assert await service.job(other["id"]) == other
        assert (await _poll(service.http, job)).json() == job


async def _poll(http: httpx.AsyncClient, job: dict[str, Any]) -> httpx.Response:
    return await http.get(f"/api/v2/jobs/{job['id']}")


async def test_the_service_notifies_once_whether_there_is_a_trigger_or_not(
    start: Start, tmp_path: Path, chosen: dict[str, str]
) -> None:
    prefix = {**chosen, "JOBCACHE_PREFIX": "triggered:"}
    channel = channel_of("triggered:")
    async with start(**prefix) as service, connected(chosen) as connection:
        payloads: list[str] = []
        ended = asyncio.Event()

        def receive(_: object, __: int, ___: str, payload: str) -> None:
            (ended.set() if payload == "end" else payloads.append(payload))

        await connection.add_listener(channel, receive)
        sent = []
        for installed in (False, True):
            if installed:
                status = await command(tmp_path, "trigger", "install", **prefix)
                assert status == (0, "")
            job = await service.rendering()
            await service.post(f"{job['id']}/progress", percent=50)
            await service.post(f"{job['id']}/progress", percent=100)
            ended.clear()
            await connection.execute("SELECT pg_notify($1, 'end')", channel)
            async with asyncio.timeout(60):
                await ended.wait()
            sent.append(len(payloads))
            assert all(decode(each).token for each in payloads)
            payloads.clear()
        assert sent[0] == sent[1] >= 7
        # The list of the client's jobs has the version that stands in the table of clients.
        listed = await service.http.get("/api/v2/jobs?client_id=acme")
        assert len(listed.json()["items"]) == 2
        await connection.execute("UPDATE clients SET version = version + 1")
        await connection.execute("SELECT pg_notify($1, 'end')", channel)
        async with asyncio.timeout(60):
            while not payloads:
                await asyncio.sleep(0.01)
        assert decode(payloads[0]).keys == ["jobs:acme"]


TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'jobcache%'"


async def test_the_command_shows_installs_and_removes_it(
    tmp_path: Path, chosen: dict[str, str]
) -> None:
    status, said = await command(tmp_path, "trigger", "install", **chosen)
    assert (status, said.count("\n")) == (5, 1)
    assert "db upgrade" in said
    status, said = await command(tmp_path, "upgrade", **chosen)
    assert (status, said) == (0, f"postgresql+asyncpg://: {HEAD} (head)\n")
    async with connected(chosen) as connection:
        status, shown = await command(tmp_path, "trigger", **chosen)
        assert status == 0
        await connection.execute(shown)
        installed = await connection.fetchval(TRIGGERS)
        assert installed == 10
        assert await command(tmp_path, "trigger", "install", **chosen) == (0, "")
        assert await connection.fetchval(TRIGGERS) == installed
        for _ in range(2):
            assert await command(tmp_path, "trigger", "remove", **chosen) == (0, "")
            assert await connection.fetchval(TRIGGERS) == 0


async def test_sqlite_has_nobody_to_notify(tmp_path: Path) -> None:
    for action in ("install", "remove", "show"):
        status, said = await command(tmp_path, "trigger", action)
        assert (status, said.count("\n")) == (2, 1), said
        assert "PostgreSQL" in said
