"""A second process on one database, with any backend and under any server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import httpx
import pytest

from app.db import registration
from app.db.database import Database
from app.db.errors import DatabaseUnavailable
from app.db.postgres_lock import LOCK_KEY, PostgresLock
from app.db.process_lock import Hold, ProcessLock
from app.db.sqlite_lock import SqliteLock
from app.devservers import PgBouncerServer, PostgresServer
from jobcache.backends.memory import MemoryBackend
from tests.app.process import serving
from tests.app.running import Service, Start, choosing
from tests.app.servers import PYTHON, served
from tests.pairs import DATABASES

both = pytest.mark.parametrize("database_url", DATABASES, indirect=True)
postgres_only = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
MEMORY = {"JOBCACHE_BACKEND": "memory"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "_INTERVAL", 0.02)
    monkeypatch.setattr(registration, "_ALONE_AGAIN", 0.1)


async def caching(service: Service, job_id: int) -> bool:
    """Whether the second of two polls is a hit."""
    await service.job(job_id)
    answer = await service.http.get(f"/api/v2/jobs/{job_id}")
    return "; hit" in answer.headers["cache-status"]


async def until_caching(service: Service, job_id: int) -> None:
    async with asyncio.timeout(20):
        while not await caching(service, job_id):
            await asyncio.sleep(0.02)


async def in_step(writer: Service, reader: Service, job_id: int) -> None:
    """What one writes, the other reads; and lists, which are cached apart."""
    for percent in range(5):
        reported = await writer.post(f"{job_id}/progress", percent=percent)
        assert await reader.job(job_id) == reported
        assert await writer.job(job_id) == reported
    created = await writer.create(renderer="external")
    listed = (await reader.http.get("/api/v2/jobs?client_id=acme")).json()["items"]
    assert created["id"] in {job["id"] for job in listed}


def lock_of(database: Database) -> ProcessLock:
    if database.is_sqlite:
        return SqliteLock(str(database.connections.url.database))
    return PostgresLock(database.connections, lambda: None)


# --- the lock ---


@both
async def test_the_lock_is_shared_or_held_alone(database: Database) -> None:
    one, another = lock_of(database), lock_of(database)
    try:
        assert await one.try_alone() is Hold.ALONE
        assert await another.try_alone() is Hold.NONE
        assert await another.share(0.05) is Hold.NONE
        waiting = asyncio.create_task(another.share(20))
        async with asyncio.timeout(10):
            while not await one.check():
                await asyncio.sleep(0.01)
        assert await one.share(10) is Hold.SHARED
        assert await waiting is Hold.SHARED
        assert await one.try_alone() is not Hold.ALONE
        assert await one.share(10) is Hold.SHARED
        await another.aclose()
        assert await one.try_alone() is Hold.ALONE
        assert not await one.check()
    finally:
        await one.aclose()
        await another.aclose()


async def test_every_path_to_an_sqlite_file_leads_to_one_lock(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "link.db").symlink_to(tmp_path / "a" / "jobs.db")
    paths = [
        f"{tmp_path}/a/jobs.db",
        f"{tmp_path}/a/../a/jobs.db",
        f"{tmp_path}/b/jobs.db",
        f"{tmp_path}/link.db",
        f"file:{tmp_path}/a/jobs.db?uri=true",
    ]
    assert {SqliteLock(path).path for path in paths} == {tmp_path / "a" / "jobs.db.lock"}


# --- one process, and a second ---


@both
async def test_memory_alone_is_used_at_once(start: Start, database_url: str) -> None:
    async with start(DATABASE_URL=database_url, **MEMORY) as service:
        job = await service.rendering()
        assert await caching(service, job["id"])
        assert (await service.stats())["message"] == "Cache is working normally"
    async with start(DATABASE_URL=database_url, **MEMORY) as service:
        assert await caching(service, job["id"]), "the one before has ended"


@both
@pytest.mark.parametrize(
    ("second", "memory_first"),
    [
        *(("memory", True), ("null", True), ("redis", True), ("tiered", True)),
        *(("null", False), ("redis", False)),
    ],
)
async def test_with_a_second_process_memory_is_not_used(
    start: Start,
    database_url: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    second: str,
    *,
    memory_first: bool,
) -> None:
    environment = {"DATABASE_URL": database_url}
    other = environment | choosing(request, second)
    first, then = (environment | MEMORY, other)[:: 1 if memory_first else -1]
    async with start(**first) as a:
        job = await a.rendering()
        await caching(a, job["id"])
        async with start(**then) as b:
            memory, another = (a, b) if memory_first else (b, a)
            await in_step(another, memory, job["id"])
            if second in {
                "memory",
                "null",
            }:  # only a process that uses Redis announces its writes there
                await in_step(memory, another, job["id"])
            assert not await caching(memory, job["id"])
            stats = await memory.stats()
            assert "another process uses the same database" in stats["message"]
            size = memory.services.cache.info().size  # the statistics are of both services
            assert size is not None
            assert size.entries == 0
        if memory_first:
            await until_caching(a, job["id"])
            await in_step(a, a, job["id"])
    said = [line for line in caplog.messages if "memory cache is not used" in line]
    assert len(said) == (2 if second == "memory" else 1)


@both
async def test_processes_that_come_and_go_never_show_what_is_old(
    start: Start, database_url: str
) -> None:
    environment = {"DATABASE_URL": database_url, **MEMORY}
    async with start(**environment) as a:
        job = await a.rendering()
        acknowledged = job["version"]
        done = asyncio.Event()

        async def poll() -> None:
            while not done.is_set():
                least = acknowledged
                assert (await a.job(job["id"]))["version"] >= least
                await asyncio.sleep(0.001)

        poller = asyncio.create_task(poll())
        for _ in range(3):
            async with start(**environment) as b:
                for _ in range(10):
                    reported = await b.post(f"{job['id']}/progress", percent=1)
                    acknowledged = reported["version"]
                    await asyncio.sleep(0)
            await until_caching(a, job["id"])
        done.set()
        await poller


@both
async def test_a_process_that_makes_no_room_stops_the_next(
    start: Start, database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hangs, or is stopped: it would serve from its memory when it goes on."""
    monkeypatch.setattr(registration, "_PATIENCE", 0.1)
    holder = lock_of(database)
    assert await holder.try_alone() is Hold.ALONE
    with pytest.raises(DatabaseUnavailable, match="does not answer; end it"):
        async with start(DATABASE_URL=database_url, JOBCACHE_BACKEND="null"):
            pass
    await holder.aclose()
    async with start(DATABASE_URL=database_url, JOBCACHE_BACKEND="null") as service:
        await service.create()


@both
async def test_while_a_process_makes_no_room_the_log_says_that_the_next_waits(
    start: Start,
    database: Database,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(registration, "_WARN_AFTER", 0)
    holder = lock_of(database)
    assert await holder.try_alone() is Hold.ALONE

    async def release() -> None:
        async with asyncio.timeout(60):
            while "does not answer; waiting up to 30 s for it" not in caplog.text:
                await asyncio.sleep(0.01)
        await holder.aclose()

    releasing = asyncio.create_task(release())
    async with start(DATABASE_URL=database_url, JOBCACHE_BACKEND="null") as service:
        await releasing
        await service.create()


# --- the lock is lost ---


async def kill_locks(url: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks"
        " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    await connection.close()


@postgres_only
async def test_a_lost_lock_is_taken_again_and_entries_are_confirmed_first(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distrusted = asyncio.Event()
    reset = MemoryBackend.reset

    def noted(memory: MemoryBackend) -> None:
        reset(memory)
        distrusted.set()

    monkeypatch.setattr(MemoryBackend, "reset", noted)
    async with start(DATABASE_URL=database_url, **MEMORY) as service:
        job = await service.rendering()
        for _ in range(3):
            assert await caching(service, job["id"])
            distrusted.clear()
            await kill_locks(database_url)
            async with asyncio.timeout(20):
                await distrusted.wait()
            answer = await service.http.get(f"/api/v2/jobs/{job['id']}")
            assert "; hit" not in answer.headers["cache-status"], "it was not taken for fresh"
            assert await caching(service, job["id"])
            await in_step(service, service, job["id"])
        assert (await service.stats())["message"] == "Cache is working normally"


@postgres_only
@pytest.mark.parametrize("second", ["memory", "null"])
async def test_while_locks_are_lost_again_and_again_nothing_old_is_shown(
    start: Start, database_url: str, second: str
) -> None:
    environment = {"DATABASE_URL": database_url}
    async with (
        start(**environment, **MEMORY) as a,
        start(**environment, JOBCACHE_BACKEND=second) as b,
    ):
        job = await a.rendering()
        for _ in range(5):
            await kill_locks(database_url)
            await in_step(b, a, job["id"])
            await in_step(a, b, job["id"])


@postgres_only
async def test_without_its_lock_a_process_writes_nothing(
    start: Start, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registration, "_PATIENCE_LATER", 0.3)
    async with start(DATABASE_URL=database_url, JOBCACHE_BACKEND="null") as service:
        job = await service.rendering()
        plain = database_url.replace("+asyncpg", "")
        faster, observer = await asyncpg.connect(plain), await asyncpg.connect(plain)
        waiting = asyncio.create_task(faster.execute(f"SELECT pg_advisory_lock({LOCK_KEY})"))
        ours = (
            "FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        async with asyncio.timeout(10):
            while not await observer.fetchval(f"SELECT count(*) {ours} AND NOT granted"):
                await asyncio.sleep(0.01)
        await observer.execute(f"SELECT pg_terminate_backend(pid) {ours} AND granted")
        await waiting
        async with asyncio.timeout(10):
            while service.services.registration._hold is not Hold.NONE:
                await asyncio.sleep(0.005)
        path = f"/api/v2/jobs/{job['id']}"
        response = await service.http.post(f"{path}/progress", json={"percent": 1})
        assert response.status_code == 503
        assert await service.job(job["id"]) == job
        await faster.close()
        await observer.close()
        reported = await service.post(f"{job['id']}/progress", percent=2)
        assert reported["version"] == job["version"] + 1


# --- behind a pooler ---


async def test_behind_a_pooler_memory_is_not_used(
    start: Start, postgres: PostgresServer, pgbouncer: PgBouncerServer
) -> None:
    postgres.create_database("behind")
    async with start(DATABASE_URL=pgbouncer.url("behind"), **MEMORY) as service:
        job = await service.rendering()
        assert not await caching(service, job["id"])
        assert "the database is behind a pooler" in (await service.stats())["message"]


async def test_a_write_through_a_pooler_ends_the_use_of_memory_of_another_process(
    start: Start, postgres: PostgresServer, pgbouncer: PgBouncerServer
) -> None:
    postgres.create_database("beside")
    async with (
        start(DATABASE_URL=postgres.url("beside"), **MEMORY) as direct,
        start(DATABASE_URL=pgbouncer.url("beside"), JOBCACHE_BACKEND="null") as pooled,
    ):
        job = await direct.rendering()
        for _ in range(3):
            await until_caching(direct, job["id"])
            await in_step(pooled, direct, job["id"])
            await in_step(direct, pooled, job["id"])


# --- processes, as people start them ---

SERVERS = {
    "uvicorn": (*PYTHON, "uvicorn", "app.main:app", "--workers", "2", "--port", "{port}"),
    "gunicorn": (
        *(*PYTHON, "gunicorn", "app.main:app", "-w", "2", "--bind", "127.0.0.1:{port}"),
        *("-k", "uvicorn_worker.UvicornWorker"),
    ),
}


@pytest.mark.parametrize(
    ("server", "database_url"),
    [("uvicorn", "sqlite"), ("gunicorn", "postgres")],
    indirect=["database_url"],
)
def test_workers_of_any_server_answer_alike(tmp_path: Path, database_url: str, server: str) -> None:
    environment = {"DATABASE_URL": database_url, "JOBCACHE_VAR_DIR": str(tmp_path), **MEMORY}
    anew = server == "uvicorn"  # which starts Python for its workers
    with (
        served(tmp_path, SERVERS[server], anew=anew, **environment) as process,
        # A connection for each request: whichever worker takes it.
        httpx.Client(base_url=process.url, headers={"Connection": "close"}) as http,
    ):
        new = {"client_id": "acme", "prompt": "A cat.", "renderer": "external"}
        job = http.post("/api/v2/jobs", json=new).raise_for_status().json()
        path = f"/api/v2/jobs/{job['id']}"
        process.until(job["id"], "storyboard_ready")
        http.post(f"{path}/approve").raise_for_status()
        http.post(f"{path}/render").raise_for_status()
        seen = set()
        for _ in range(30):
            reported = http.post(f"{path}/progress", json={"percent": 1}).json()
            for _ in range(4):
                assert http.get(path).json() == reported
            seen.add(http.get("/api/v2/cache/stats").json()["process"])
        for _ in range(2000):
            if len(seen) == 2:
                break
            seen.add(http.get("/api/v2/cache/stats").json()["process"])
        assert len(seen) == 2, "both workers were asked"
    assert "the memory cache is not used" in process.log.read_text()


@both
def test_after_a_crash_the_next_process_uses_memory_at_once(
    tmp_path: Path, database_url: str
) -> None:
    environment = {"DATABASE_URL": database_url, "JOBCACHE_VAR_DIR": str(tmp_path), **MEMORY}
    with serving(tmp_path, **environment) as process:
        created = process.http.post("/api/v2/jobs", json={"client_id": "a", "prompt": "x"})
        path = f"/api/v2/jobs/{created.json()['id']}"
        process.child.send_signal(signal.SIGKILL)
        process.child.wait()
        with serving(tmp_path, **environment) as restarted:
            restarted.http.get(path)
            assert "; hit" in restarted.http.get(path).headers["cache-status"]
            assert "not used" not in restarted.log.read_text()


@postgres_only
def test_a_rolling_restart_shows_nothing_old_and_a_stopped_process_keeps_its_lock(
    tmp_path: Path, database_url: str
) -> None:
    environment = {"DATABASE_URL": database_url, "JOBCACHE_VAR_DIR": str(tmp_path), **MEMORY}
    with serving(tmp_path, **environment) as old:
        job_id = old.rendering(renderer="external")
        path = f"/api/v2/jobs/{job_id}"
        with serving(tmp_path, **environment) as new:
            for writer, reader in ((old, new), (new, old)) * 5:
                reported = writer.http.post(f"{path}/progress", json={"percent": 1}).json()
                assert reader.http.get(path).json() == reported
            # Stopped, and with a share only: the other goes on alone, without its memory.
            old.child.send_signal(signal.SIGSTOP)
            try:
                reported = new.http.post(f"{path}/progress", json={"percent": 2}).json()
                assert new.http.get(path).json() == reported
            finally:
                old.child.send_signal(signal.SIGCONT)
            assert old.http.get(path).json() == reported
