"""A progress update through the service's own code, beside the bare statement and round trips."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
from redis.asyncio import Redis
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from app import container
from app.auth.callers import TRUSTED
from app.jobs.states import WORKER_PROGRESS, Status
from app.jobs.storage import NewJob, transition_statement
from app.settings import Settings
from benchmarks.interleaving import Subject, cost, take_turns
from benchmarks.results import Section
from jobcache import CacheSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from app.devservers import PostgresServer
    from app.jobs.service import JobService

OURS = "progress update, {}"
BARE = "UPDATE … RETURNING in SQLAlchemy, and 2 round trips to Redis"
BAREST = "UPDATE … RETURNING in asyncpg, and 2 round trips to Redis"
BACKENDS = ("redis", "tiered", "postgres", "memory", "null")
STATEMENTS = "{}_statements_per_update"
OTHERS = "{}_statements_that_are_no_update"

_PATIENCE = 15.0  # seconds for a storyboard
_DATABASE = "updates_{}"


async def updates(
    postgres: PostgresServer, redis_url: str, place: Path, *, operations: int, turns: int
) -> Section:
    """The section. `operations` are those of a turn; `place` is a directory for files."""
    subjects = []
    facts: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        counted = {}
        for name in BACKENDS:
            # On a database that another service uses, the memory backend is replaced by null.
            postgres.create_database(_DATABASE.format(name))
            url = postgres.url(_DATABASE.format(name))
            cache = CacheSettings(backend=name, redis_url=redis_url, prefix=f"update-{name}:")
            settings = Settings(cache=cache).model_copy(
                update={
                    "database_url": url,
                    "database_direct_url": url,
                    "var_dir": place,
                    "renderer": "simulated",
                }
            )
            services = container.build(settings)
            await stack.enter_async_context(container.running(services))
            job = await _rendering(services.jobs)
            work = _reports(services.jobs, job, operations)
            how = "the service's own code, without HTTP"
            subjects.append(Subject(OURS.format(name), "ours", how, cost(operations, work)))
            counted[name] = services.database, work
        client = Redis.from_url(redis_url)
        stack.push_async_callback(client.aclose)
        await client.set("bare", b"x" * 700)
        bare = await _bare(stack, url, await _rendering(services.jobs), client)
        subjects.append(
            Subject(
                BARE,
                "limit",
                "the same statement, built once; its transaction included",
                _many(bare, operations),
            )
        )
        barest = await _barest(stack, url, await _rendering(services.jobs), client)
        how = "prepared, committed by itself: no BEGIN and COMMIT"
        subjects.append(Subject(BAREST, "limit", how, _many(barest, operations)))
        series = await take_turns(subjects, turns)
        for name, (database, work) in counted.items():
            # What reads says so, and is counted as such: the runner's looks for work to do.
            sent, verbs = database.purposes["write"], database.statements["update"]
            await work()
            sent, verbs = database.purposes["write"] - sent, database.statements["update"] - verbs
            facts[STATEMENTS.format(name)] = sent / operations
            facts[OTHERS.format(name)] = float(sent - verbs)
    return Section(
        "updates",
        "A progress update",
        f"{operations} updates of one job, one after the other, on PostgreSQL",
        "µs",
        more_is_better=False,
        reference=BARE,
        series=series,
        facts=facts,
    )


async def _rendering(service: JobService) -> int:
    """Make a job that an external worker is rendering."""
    new = NewJob("acme", "A fox crosses a frozen river.", None, 4.0, "external")
    job = await service.create(new)
    deadline = time.monotonic() + _PATIENCE
    while (await service.poll(job.id, TRUSTED)).entry.status != Status.STORYBOARD_READY:
        assert time.monotonic() < deadline, "a job has no storyboard"
        await asyncio.sleep(0.02)  # nobody announces it here
    await service.approve(job.id, TRUSTED)
    await service.render(job.id, TRUSTED)
    return job.id


def _reports(service: JobService, job: int, count: int) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        for number in range(count):
            await service.report_progress(
                job, float(number % 100), "drawing scene 3 of 6", "step 7 of 20", worker=True
            )

    return work


def _many(
    one: Callable[[int], Awaitable[None]], count: int
) -> Callable[[], Awaitable[tuple[float, dict[str, Any]]]]:
    async def work() -> None:
        for number in range(count):
            await one(number)

    return cost(count, work)


async def _bare(
    stack: AsyncExitStack, url: str, job: int, client: Redis
) -> Callable[[int], Awaitable[None]]:
    engine = create_async_engine(url)
    stack.push_async_callback(engine.dispose)
    changed = frozenset({"percent", "stage", "message", "progress_at"})
    statement = transition_statement(WORKER_PROGRESS, changed)

    async def one(number: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        values = {
            "job_id": job,
            "to_percent": float(number % 100),
            "to_stage": "drawing scene 3 of 6",
            "to_message": "step 7 of 20",
            "to_progress_at": now_ms,
            "to_updated_at": now_ms,
        }
        async with engine.begin() as connection:
            (await connection.execute(statement, values)).one()
        await client.get("bare")
        await client.get("bare")

    return one


_UPDATE = """
UPDATE jobs SET version = version + 1, percent = $2, stage = $3, message = $4, progress_at = $5,
  updated_at = $5, pace_ms = (coalesce(pace_ms, 0) * 3 + $5 - coalesce(progress_at, $5)) / 4
WHERE id = $1 AND status = 'rendering'
RETURNING id, client_id, prompt, scenes, seconds_per_scene, renderer, status, version, percent,
  stage, message, progress_at, pace_ms, storyboard_version, video_url, error, created_at,
  updated_at, idempotency_key, request_hash
"""


async def _barest(
    stack: AsyncExitStack, url: str, job: int, client: Redis
) -> Callable[[int], Awaitable[None]]:
    where = make_url(url)
    connection = await asyncpg.connect(
        host=where.query["host"], user=where.username, database=where.database
    )
    stack.push_async_callback(connection.close)
    statement = await connection.prepare(_UPDATE)

    async def one(number: int) -> None:
        now_ms = time.time_ns() // 1_000_000
        row = await statement.fetchrow(
            job, float(number % 100), "drawing scene 3 of 6", "step 7 of 20", now_ms
        )
        assert row is not None
        await client.get("bare")
        await client.get("bare")

    return one
