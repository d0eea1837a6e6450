"""Clients that open a stream of server-sent events instead of polling."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING

from jobcache.client.jobs import Job
from loadtests.pollers import rows

if TYPE_CHECKING:
    from loadtests.drivers.session import Session


async def drive(session: Session) -> None:
    """Create jobs; each client follows the stream of one until it ends."""
    jobs = await session.create_all()
    async with asyncio.TaskGroup() as group:
        for number in range(session.options.users):
            group.create_task(_follow(session, jobs[number % len(jobs)].id))
        for job in jobs:
            group.create_task(session.render(job.id))


async def _follow(session: Session, job_id: int) -> None:
    connection = await session.connect()
    versions: list[int] = []
    terminal = False
    async for data in connection.events(f"/api/v2/jobs/{job_id}/events"):
        job = Job.parse(data, None)
        terminal = job.terminal
        if versions:  # the first was committed before this client came
            committed = datetime.fromisoformat(job.document["updated_at"]).timestamp()
            delay = 1000 * (time.time() - committed)
            session.record.delivery(delay)
            session.record.request(rows.EVENT, delay)
            if job.version <= versions[-1]:
                wrong = f"version {job.version} after {versions[-1]}"
                session.record.failure(rows.EVENT, wrong)
        versions.append(job.version)
    session.record.held()
    if terminal:
        session.record.followed(polls=1, updates=versions[-1] - versions[0])
    await connection.close()
