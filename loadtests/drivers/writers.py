"""Workers that report progress as fast as the service takes it, while clients poll."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.drivers.session import Session

_STEP = 0.001  # percent; reports of a job never go backwards


async def drive(session: Session) -> None:
    """Create jobs with a worker each; poll them until the workers stop."""
    jobs = await session.create_all()
    async with asyncio.TaskGroup() as group:
        for number in range(session.options.users):
            group.create_task(_poll(session, jobs[number % len(jobs)].id))
        for job in jobs:
            group.create_task(_write(session, job.id))


async def _write(session: Session, job_id: int) -> None:
    connection = await session.connect()
    ends = time.monotonic() + session.options.job_seconds
    percent = 0.0
    while time.monotonic() < ends:
        percent = min(99.0, percent + _STEP)
        await session.report(connection, job_id, percent)
    await session.complete(connection, job_id)
    await connection.close()


async def _poll(session: Session, job_id: int) -> None:
    connection = await session.connect()
    first = last = await session.poll(connection, job_id)
    polls = 1
    while not last.terminal:
        await asyncio.sleep(session.options.interval)
        last = await session.poll(connection, job_id, last.version)
        polls += 1
    session.record.followed(polls=polls, updates=last.version - first.version)
    await connection.close()
