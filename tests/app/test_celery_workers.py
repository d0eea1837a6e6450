"""Celery's workers on a real broker: processes that are killed while they render."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from app.db.database import Database
from app.db.tables import claims
from tests.app.process import clean_environment
from tests.app.running import Service, Start

JOBS = {"short": 20, "long": 200}
KILLS = {"short": 1, "long": 3}
WORKER = ("-m", "celery", "--app", "app.worker", "worker", "--loglevel", "WARNING")
QUIET = ("--without-mingle", "--without-gossip", "--without-heartbeat")
"""What workers tell each other of themselves takes a second of each start."""

RECORD = """
CREATE TABLE changes (job_id bigint, version bigint, status text, percent float);
CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO changes VALUES (NEW.id, NEW.version, NEW.status, NEW.percent);
    RETURN NEW;
END $$;
CREATE TRIGGER record AFTER UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION record();
"""
"""Keeps every committed change of a job: the database's own word on what was done."""


class Worker:
    """A worker in a process group of its own: killed and started again."""

    def __init__(self, folder: Path, pool: tuple[str, ...], environment: dict[str, str]) -> None:
        self.log = folder / "workers.txt"
        self._pool = pool
        self._environment = clean_environment() | environment
        # Counting lines would take longer than the work.
        self._environment.pop("COVERAGE_PROCESS_CONFIG", None)
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-W", "ignore", *WORKER, *QUIET, *self._pool],
                cwd=self._folder,
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def has(self, runner: str) -> bool:
        """Whether a claim belongs to this worker: its name contains the process."""
        try:
            return os.getpgid(int(runner.split("-")[-2])) == self._process.pid
        except ProcessLookupError:
            return False

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._child is not None
        return self._child

    async def kill(self) -> None:
        if self._child is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    async def stop(self) -> int:
        self._process.terminate()
        return await asyncio.to_thread(self._process.wait, 60)


@asynccontextmanager
async def working(workers: list[Worker]) -> AsyncIterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
        assert [await worker.stop() for worker in workers] == [0, 0], workers[0].log.read_text()
    except BaseException:
        for worker in workers:
            await worker.kill()
        raise


class Poller:
    """Polls jobs until they have ended, and checks that they never go back."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.outcomes: Counter[str] = Counter()
        self.ended: dict[int, dict[str, Any]] = {}
        self._seen: dict[int, tuple[int, float]] = {}

    async def until_all_ended(self, ids: list[int]) -> None:
        left = list(ids)
        while left:
            for job_id in left:
                await self._poll(job_id)
            left = [job_id for job_id in left if job_id not in self.ended]
            await asyncio.sleep(0.2)

    async def _poll(self, job_id: int) -> None:
        response = await self._service.http.get(f"/api/v2/jobs/{job_id}")
        assert response.status_code == 200
        job = response.json()
        now = job["version"], job["progress"]["percent"]
        version, percent = self._seen.get(job_id, (0, 0.0))
        assert now[0] >= version
        assert now[1] >= percent
        self._seen[job_id] = now
        self.outcomes[response.headers["Cache-Status"].split(";")[1].strip()] += 1
        if job["terminal"]:
            self.ended[job_id] = job


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(120):
        while not await condition():
            await asyncio.sleep(0.01)


async def create(service: Service, count: int) -> list[int]:
    ids = [(await service.create())["id"] for _ in range(count)]
    for job_id in ids:
        await service.until(job_id, "storyboard_ready")
        await service.post(f"{job_id}/approve")
    return ids


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_jobs_survive_the_death_of_their_worker(
    start: Start, database_url: str, redis_url: str, tmp_path: Path, *, long: bool
) -> None:
    length = "long" if long else "short"
    environment = {
        "JOBCACHE_RENDERER": "celery",
        "JOBCACHE_BACKEND": "tiered",
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "JOBCACHE_CELERY_RENDERER": "simulated",
        "JOBCACHE_SIMULATED_SECONDS": "0.4",
        "JOBCACHE_SIMULATED_UPDATES": "8",
        "JOBCACHE_CLAIM_SECONDS": "1",
        "JOBCACHE_VAR_DIR": str(tmp_path / "var"),
    }
    pool = ("--concurrency", "2") if long else ("--pool", "solo")
    workers = [Worker(tmp_path, pool, environment) for _ in range(2)]
    async with start(**environment) as service, working(workers):
        database = service.services.database
        await record_changes(database)
        ids = await create(service, JOBS[length])
        poller = Poller(service)
        loads = database.purposes["load"]
        async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
            for job_id in ids:
                await service.post(f"{job_id}/render", 202)
            tasks.create_task(poller.until_all_ended(ids))
            cut_short = set()
            for _ in range(KILLS[length]):
                cut_short |= await kill_at_work(workers[0], database, ids, cut_short)
                workers[0].start()
        loads = database.purposes["load"] - loads
        changes = await changes_of(database)
    assert {job["status"] for job in poller.ended.values()} == {"completed"}
    for job_id in ids:
        percents = [percent for _, percent in changes[job_id]]
        assert percents == sorted(percents)
        statuses = Counter(status for status, _ in changes[job_id])
        assert statuses["completed"] == 1
    polls = poller.outcomes.total()
    print(dict(poller.outcomes), "loads", loads, "cut short", sorted(cut_short))  # noqa: T201
    # A worker that dies between its fence and its commit leaves the fence: the polls of this job
    # ask the database until another worker reports.
    assert poller.outcomes["hit"] > 0.9 * polls
    assert loads < 0.1 * polls


async def record_changes(database: Database) -> None:
    async with database.transaction() as connection:
        for statement in RECORD.strip().split(";\nCREATE "):
            kind = "" if statement.startswith("CREATE") else "CREATE "
            await connection.execute(text(kind + statement))


async def changes_of(database: Database) -> dict[int, list[tuple[str, float]]]:
    rows = await database.read(
        text("SELECT job_id, status, percent FROM changes ORDER BY job_id, version"), "test"
    )
    changes: dict[int, list[tuple[str, float]]] = {}
    for job_id, status, percent in rows:
        changes.setdefault(job_id, []).append((status, percent))
    return changes


async def kill_at_work(
    worker: Worker, database: Database, ids: list[int], before: set[int]
) -> set[int]:
    """Kill a worker while it renders; return the jobs that it had."""
    while True:
        rows = await database.read(select(claims.c.job_id, claims.c.runner), "test")
        held = {row.job_id for row in rows if worker.has(row.runner)} - before
        if held:
            await worker.kill()
            return held
        await asyncio.sleep(0.02)


def test_a_worker_that_cannot_work_does_not_start(redis_url: str, tmp_path: Path) -> None:
    worker = Worker(
        tmp_path,
        ("--pool", "solo"),
        {
            "JOBCACHE_BACKEND": "redis",
            "REDIS_URL": redis_url,
            "DATABASE_URL": "postgresql://127.0.0.1:1/none",
        },
    )
    worker.start()
    assert worker._process.wait(60) == 2
    assert "The worker cannot start: " in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
