"""Progress updates by many writers at once, with commits that the server flushes to disk.

PostgreSQL writes many commits with one flush, unless they notify: those wait for each other.
"""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
from sqlalchemy.engine import make_url

from app import container
from app.auth.callers import TRUSTED
from app.db.database import Database
from app.jobs.states import Status
from app.jobs.storage import NewJob
from app.jobs.triggers import triggers
from app.settings import Settings
from benchmarks.interleaving import Subject, take_turns
from benchmarks.results import Section
from jobcache import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from app.devservers import PostgresServer
    from app.jobs.service import JobService

BACKENDS = ("null", "redis", "tiered", "postgres")
BARE = "bare UPDATE in asyncpg"
NOTIFYING = "the same, RETURNING pg_notify"
TRIGGERED = "the same as bare, with the trigger"
SCALE = (1, 2, 8, 32)

_INSTANCES = 4
"""Of the service, each with its own pool: one of them runs ten writes at once."""
_PATIENCE = 60.0  # seconds for the storyboards
_DATABASE = "writers_{}"
_INSERT = """
INSERT INTO jobs (client_id, prompt, seconds_per_scene, renderer, status, version, percent, stage,
  message, created_at, updated_at)
SELECT 'acme', 'A fox.', 4, 'external', 'rendering', 1, 0, '', '', 0, 0 FROM generate_series(1, $1)
"""
_UPDATE = "UPDATE jobs SET version = version + 1, percent = $2, updated_at = $3 WHERE id = $1"
_NOTIFY = " RETURNING pg_notify('jobcache:bare', 'job:' || id || ':progress')"


async def writers(
    postgres: PostgresServer,
    redis_url: str,
    place: Path,
    *,
    seconds: float,
    turns: int,
    scale: Sequence[int] = SCALE,
) -> Section:
    """The section.

    Args:
        postgres: a server whose commits are durable.
        redis_url: a private server.
        place: a directory for files.
        seconds: of a turn.
        turns: how often each subject is measured.
        scale: numbers of writers.
    """
    subjects = []
    async with AsyncExitStack() as stack:
        for name in ("bare", "triggered"):
            await _jobs(_database(postgres, name), max(scale), triggered=name == "triggered")
        for name in BACKENDS:
            url = _database(postgres, name)
            cache = CacheSettings(backend=name, redis_url=redis_url, prefix=f"writers-{name}:")
            at = {"database_url": url, "database_direct_url": url, "renderer": "simulated"}
            settings = Settings(cache=cache).model_copy(update=at)
            updates = await _service(stack, settings, place / name, max(scale))
            how = f"{_INSTANCES} instances of the service's own code, without HTTP"
            subjects += [
                Subject(name, "ours", how, _turn(updates[:count], seconds), count)
                for count in scale
            ]
        for name, database, statement in (
            (BARE, "bare", _UPDATE),
            (NOTIFYING, "bare", _UPDATE + _NOTIFY),
            (TRIGGERED, "triggered", _UPDATE),
        ):
            url = postgres.url(_DATABASE.format(database))
            updates = await _bare(stack, url, statement, max(scale))
            how = "a connection for each writer, committed by itself"
            subjects += [
                Subject(name, "limit", how, _turn(updates[:count], seconds), count)
                for count in scale
            ]
        series = await take_turns(subjects, turns)
    return Section(
        "writers",
        "Progress updates by many writers",
        "each writer updates a job of its own, without pause, on PostgreSQL with durable commits",
        "updates per second",
        more_is_better=True,
        scale="writers",
        driver="coroutines of one process",
        series=series,
    )


def _database(postgres: PostgresServer, name: str) -> str:
    postgres.create_database(_DATABASE.format(name))
    return postgres.url(_DATABASE.format(name))


async def _service(
    stack: AsyncExitStack, settings: Settings, place: Path, count: int
) -> list[Callable[[int], Awaitable[object]]]:
    """Start the instances; return what updates each of so many jobs."""
    instances = []
    for number in range(_INSTANCES):
        services = container.build(settings.model_copy(update={"var_dir": place / str(number)}))
        await stack.enter_async_context(container.running(services))
        instances.append(services.jobs)
    jobs = [await _rendering(instances[0], f"client-{number}") for number in range(count)]
    return [_reporting(instances[number % _INSTANCES], job) for number, job in enumerate(jobs)]


async def _rendering(service: JobService, client: str) -> int:
    job = await service.create(NewJob(client, "A fox crosses a river.", None, 4.0, "external"))
    deadline = time.monotonic() + _PATIENCE
    while (await service.poll(job.id, TRUSTED)).entry.status != Status.STORYBOARD_READY:
        assert time.monotonic() < deadline, "a job has no storyboard"
        await asyncio.sleep(0.01)  # nobody announces it here
    await service.approve(job.id, TRUSTED)
    await service.render(job.id, TRUSTED)
    return job.id


def _reporting(service: JobService, job: int) -> Callable[[int], Awaitable[object]]:
    def update(number: int) -> Awaitable[object]:
        return service.report_progress(job, float(number % 100), "drawing", "a step", worker=True)

    return update


async def _jobs(url: str, count: int, *, triggered: bool) -> None:
    """Create jobs for the bare statement, and the trigger."""
    database = Database(url)
    await database.prepare_tables()
    await database.aclose()
    connection = await _connect(url)
    await connection.execute("INSERT INTO clients (id, version) VALUES ('acme', 1)")
    await connection.execute(_INSERT, count)
    for statement in triggers("bare:").create if triggered else ():
        await connection.execute(statement)
    await connection.close()


async def _bare(
    stack: AsyncExitStack, url: str, statement: str, count: int
) -> list[Callable[[int], Awaitable[object]]]:
    updates = []
    for job in range(1, count + 1):
        connection = await _connect(url)
        stack.push_async_callback(connection.close)
        updates.append(_executing(await connection.prepare(statement), job))
    return updates


async def _connect(url: str) -> Any:  # noqa: ANN401 - asyncpg has no types
    where = make_url(url)
    return await asyncpg.connect(
        host=where.query["host"], user=where.username, database=where.database
    )


def _executing(
    prepared: Any,  # noqa: ANN401 - asyncpg has no types
    job: int,
) -> Callable[[int], Awaitable[object]]:
    def update(number: int) -> Awaitable[object]:
        found: Awaitable[object] = prepared.fetch(job, float(number % 100), number)
        return found

    return update


def _turn(
    updates: Sequence[Callable[[int], Awaitable[object]]], seconds: float
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    """Return a turn in which each writer updates its job until the time is over."""

    async def writer(update: Callable[[int], Awaitable[object]], until: float) -> int:
        number = 0
        while time.perf_counter() < until:
            await update(number)
            number += 1
        return number

    async def once() -> tuple[float, dict[str, Any]]:
        gc.collect()
        began = time.perf_counter()
        done = await asyncio.gather(*(writer(each, began + seconds) for each in updates))
        return sum(done) / (time.perf_counter() - began), {}

    return once
