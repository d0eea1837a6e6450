"""The service on PostgreSQL's notifications: coherent processes without another store."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text

from app import settings
from app.container import render_worker
from app.db.database import Database
from app.db.notifications import check_listener
from app.devservers import PgBouncerServer, PostgresServer
from app.ops.readiness import Readiness
from jobcache import SettingsError
from tests.app.db.databases import closed
from tests.app.running import Service, Start, empty_database, starting


@pytest.fixture(autouse=True)
def readiness_is_checked_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readiness.__init__, "__defaults__", (0.0, time.monotonic))


@pytest.fixture
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return await empty_database(request, "postgres", tmp_path)


@pytest.fixture
def chosen(database_url: str) -> dict[str, str]:
    return {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": database_url}


async def how(service: Service, job: dict[str, Any]) -> str:
    """How the poll of a job is answered, which must be the newest version."""
    response = await service.http.get(f"/api/v2/jobs/{job['id']}")
    assert response.json() == job
    found = re.search(r"; (hit|fwd=\w+)", response.headers["cache-status"])
    assert found is not None
    return found[1]


async def follows(service: Service, job: dict[str, Any]) -> None:
    """Wait until another process has been notified: until its poll shows this version."""
    async with asyncio.timeout(60):
        while (await service.job(job["id"]))["version"] < job["version"]:
            await asyncio.sleep(0)


async def test_two_processes_share_the_truth_and_load_once_per_change(
    start: Start, tmp_path: Path, chosen: dict[str, str]
) -> None:
    other = starting(tmp_path / "other")
    async with start(**chosen) as one, other(**chosen) as two:
        job = await one.rendering()
        await follows(two, job)
        before = [service.services.cache.statistics.database_loads for service in (one, two)]
        for percent in range(1, 21):
            writer, reader = (one, two) if percent % 2 else (two, one)
            reported = await writer.post(f"{job['id']}/progress", percent=percent)
            assert await how(writer, reported) == "hit"
            await follows(reader, reported)
            assert await how(reader, reported) == "hit"
        for service, loads in zip((one, two), before, strict=True):
            # The changes of the other one: a process keeps what it has written.
            assert service.services.cache.statistics.database_loads - loads == 10
            assert service.services.cache.statistics.errors == 0


async def test_each_kind_of_change_reaches_the_other_process(
    start: Start, tmp_path: Path, chosen: dict[str, str]
) -> None:
    other = starting(tmp_path / "other")
    async with start(**chosen) as one, other(**chosen) as two:
        first = await one.create(renderer="external")
        assert (await two.http.get(f"/api/v2/jobs/{first['id'] + 1}")).status_code == 404
        listed = await two.http.get("/api/v2/jobs?client_id=acme")
        assert [each["id"] for each in listed.json()["items"]] == [first["id"]]
        assert (await two.http.get(f"/api/v2/jobs/{first['id']}/storyboard")).status_code in {
            200,
            409,
        }
        await one.until(first["id"], "storyboard_ready")
        second = await one.create(renderer="external")
        async with asyncio.timeout(60):
            while (await two.http.get(f"/api/v2/jobs/{second['id']}")).status_code == 404:
                await asyncio.sleep(0)
            while (await two.http.get(f"/api/v2/jobs/{first['id']}/storyboard")).status_code != 200:
                await asyncio.sleep(0)
            while len((await two.http.get("/api/v2/jobs?client_id=acme")).json()["items"]) < 2:
                await asyncio.sleep(0)


async def test_a_long_poll_is_answered_by_a_change_of_the_other_process(
    start: Start, tmp_path: Path, chosen: dict[str, str]
) -> None:
    other = starting(tmp_path / "other")
    async with start(**chosen) as one, other(**chosen) as two:
        job = await one.rendering()
        await follows(two, job)
        waiting = asyncio.create_task(
            two.http.get(
                f"/api/v2/jobs/{job['id']}",
                headers={"Prefer": "wait=50", "If-None-Match": f'"{job["version"]}-0"'},
            )
        )
        async with asyncio.timeout(60):
            while not two.services.cache.info().waiting.waiters:
                await asyncio.sleep(0.001)
        reported = await one.post(f"{job['id']}/progress", percent=50)
        assert (await waiting).json() == reported


async def statements(service: Service, changes: Iterator[Awaitable[object]]) -> int:
    """How many a change sends, at the least: the storyboard of a new job is written meanwhile."""
    purposes, counts = service.services.database.purposes, []
    for change in changes:
        await service.storyboards_written()
        before = purposes["write"]
        await change
        counts.append(purposes["write"] - before)
    return min(counts)


async def test_an_update_sends_no_statement_more_than_without_a_cache(
    start: Start, tmp_path: Path, chosen: dict[str, str]
) -> None:
    sent = {}
    for backend in ("null", "postgres"):
        async with starting(tmp_path / backend)(
            **{**chosen, "JOBCACHE_BACKEND": backend}
        ) as service:
            job = await service.rendering()
            path = f"{job['id']}/progress"
            sent[backend] = (
                await statements(service, (service.post(path, percent=n) for n in range(1, 6))),
                await statements(service, (service.create(renderer="external") for _ in range(5))),
            )
    assert sent["postgres"] == sent["null"]


async def test_what_operators_see(start: Start, chosen: dict[str, str]) -> None:
    async with start(**chosen) as service:
        async with asyncio.timeout(60):
            while (ready := (await service.http.get("/readyz")).json()).keys() != {
                "status",
                "feed",
                "notification_queue",
            }:
                await asyncio.sleep(0.01)
        assert ready == {"status": "ready", "feed": "live", "notification_queue": "0.0% full"}
        stats = await service.stats()
        assert stats["statistics"]["backend"] == "postgres"
        assert stats["statistics"]["redis_enabled"] is False
        assert stats["statistics"]["feed"]["queue_usage"] == 0.0
        assert stats["message"] == "Cache is working normally"
        metrics = (await service.http.get("/metrics")).text
        assert 'jobcache_feed_state{state="live"} 1.0' in metrics
        assert "jobcache_feed_queue_usage 0.0" in metrics
        purged = await service.http.post("/api/v2/cache/invalidate", json={"all": True})
        assert purged.status_code == 200


async def test_a_full_queue_is_an_unavailable_database(
    start: Start, chosen: dict[str, str]
) -> None:
    async with start(**chosen) as service:
        job = await service.rendering()
        connection = await asyncpg.connect(scheme(chosen["DATABASE_URL"]))
        # The server's queue takes gigabytes to fill; so the same error is raised by hand.
        await connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                RAISE 'too many notifications in the NOTIFY queue' USING ERRCODE = '54000';
            END $$;
            CREATE CONSTRAINT TRIGGER refuse AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
        response = await service.http.post(
            f"/api/v2/jobs/{job['id']}/progress", json={"percent": 7}
        )
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        await connection.execute("DROP TRIGGER refuse ON jobs; DROP FUNCTION refuse")
        await connection.close()
        assert await service.job(job["id"]) == job
        reported = await service.post(f"{job['id']}/progress", percent=8)
        assert await service.job(job["id"]) == reported


def scheme(url: str) -> str:
    return url.replace("+asyncpg", "")


async def test_the_server_restarts(start: Start, tmp_path: Path) -> None:
    """Cached polls are answered meanwhile, with what is kept past its freshness."""
    with PostgresServer() as server:
        chosen = {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": server.url()}
        other = starting(tmp_path / "other")
        async with start(**chosen) as one, other(**chosen) as two:
            job = await one.rendering()
            await follows(two, job)
            for service in (one, two):
                assert await service.job(job["id"]) == job
                assert await how(service, job) == "hit"
            await asyncio.to_thread(server.stop)
            async with asyncio.timeout(60):
                for service in (one, two):
                    while service.services.cache.info().health.available:
                        await asyncio.sleep(0.001)
            for service in (one, two):
                assert await how(service, job) == "fwd=stale"
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(60):
                for service in (one, two):
                    while await how(service, job) != "hit":
                        await asyncio.sleep(0.01)
            reported = await one.post(f"{job['id']}/progress", percent=50)
            assert await one.job(job["id"]) == reported
            await follows(two, reported)


# --- settings ---


def test_sqlite_is_refused_with_an_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBCACHE_BACKEND", "postgres")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(SettingsError, match="the documents must be in PostgreSQL") as refused:
        settings.load()
    assert str(refused.value).startswith("JOBCACHE_BACKEND=postgres: ")
    monkeypatch.setenv("DATABASE_URL", "postgresql://host/name")
    monkeypatch.setenv("DATABASE_DIRECT_URL", "sqlite:///secret")
    with pytest.raises(SettingsError, match="begins with postgresql://") as refused:
        settings.load()
    assert refused.value.variable == "DATABASE_DIRECT_URL"


# --- poolers, failovers, workers ---


async def test_behind_a_pooler_it_needs_a_direct_url(
    start: Start, tmp_path: Path, pgbouncer: PgBouncerServer, postgres: PostgresServer
) -> None:
    name = f"pooled_{tmp_path.name}"
    postgres.create_database(name)
    chosen = {"JOBCACHE_BACKEND": "postgres", "DATABASE_URL": pgbouncer.url(name)}
    with pytest.raises(SettingsError, match="a pooler such as PgBouncer stands before PostgreSQL"):
        async with start(**chosen):
            """It does not start."""
    chosen["DATABASE_DIRECT_URL"] = postgres.url(name)
    async with start(**chosen) as one, starting(tmp_path / "other")(**chosen) as two:
        assert one.services.database.connections.pooled
        job = await one.rendering()
        await follows(two, job)
        for percent in range(1, 6):
            reported = await one.post(f"{job['id']}/progress", percent=percent)
            await follows(two, reported)
            assert await how(two, reported) == "hit"
        assert one.services.cache.statistics.errors == 0


async def test_app_serve_refuses_a_pooler_before_it_listens(
    pgbouncer: PgBouncerServer, postgres: PostgresServer
) -> None:
    with pytest.raises(SettingsError, match="DATABASE_DIRECT_URL"):
        await check_listener(pgbouncer.url("postgres"))
    await check_listener(postgres.url("postgres"))
    await check_listener("postgresql+asyncpg://postgres@/postgres?host=/nowhere")


async def test_after_a_failover_no_connection_is_left_on_the_old_server(
    start: Start, tmp_path: Path, postgres: PostgresServer
) -> None:
    """The address moves, and the old server lives on: a load there would see what is old."""
    started = text("SELECT pg_postmaster_start_time()::text")

    async def servers(service: Service) -> set[str]:
        read = service.services.database.read
        rows = await asyncio.gather(*(read(started, "test") for _ in range(12)))
        return {found[0][0] for found in rows}

    name = f"moved_{tmp_path.name}"
    with PostgresServer() as new, TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        for server in (postgres, new):
            server.create_database(name)
        database = Database(new.url(name))
        await database.prepare_tables()
        await closed(database)
        address, moved = Path(directory) / "address", Path(directory) / "moved"
        address.symlink_to(postgres.socket_directory)
        url = f"postgresql://postgres@/{name}?host={address}"
        async with start(DATABASE_URL=url, JOBCACHE_BACKEND="postgres") as service:
            (old,) = await servers(service)
            moved.symlink_to(new.socket_directory)
            os.replace(moved, address)  # noqa: PTH105 - atomic, of the link itself
            connection = await asyncpg.connect(scheme(postgres.url(name)))
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'jobcache feed' AND datname = current_database()"
            )
            await connection.close()
            async with asyncio.timeout(60):
                while service.services.cache.info().feed.interruptions == 0:  # type: ignore[union-attr]
                    await asyncio.sleep(0.001)
                while not service.services.cache.info().health.available:
                    await asyncio.sleep(0.001)
            (found,) = await servers(service)
            assert found != old


async def test_a_worker_of_a_queue_notifies_without_a_cache_of_its_own(
    start: Start, chosen: dict[str, str]
) -> None:
    queue = {
        "JOBCACHE_RENDERER": "celery",
        "JOBCACHE_CELERY_RENDERER": "simulated",
        "CELERY_BROKER_URL": "memory://",
        "JOBCACHE_TTL": "3600",  # so nothing but a notification removes an entry
    }
    async with start(**chosen, **queue) as service:
        created = await service.create()
        await service.until(created["id"], "storyboard_ready")
        await service.post(f"{created['id']}/approve")
        job = await service.post(f"{created['id']}/render", 202)
        assert await service.job(job["id"]) == job
        assert await how(service, job) == "hit"

        def work() -> int | None:
            with render_worker(service.settings) as worker:
                return worker.render_next()

        assert await asyncio.to_thread(work) == job["id"]
        await service.until(job["id"], "completed")
