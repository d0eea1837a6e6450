"""Clients that close the connection before the response has come, or read it late."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.drivers.session import Session

_LATE = 0.2  # seconds


async def drive(session: Session) -> None:
    """Create jobs; of three clients one leaves, one reads late and one polls as usual."""
    jobs = [job.id for job in await session.create_all()]
    async with asyncio.TaskGroup() as group:
        for number in range(session.options.users):
            job = jobs[number % len(jobs)]
            leaves, late = number % 3 == 0, number % 3 == 1
            group.create_task(_poll(session, job, leaves=leaves, pause=_LATE if late else 0.0))
        for job in jobs:
            group.create_task(session.render(job))


async def _poll(session: Session, job: int, *, leaves: bool, pause: float) -> None:
    connection = await session.connect()
    first = last = await session.poll(connection, job, pause=pause)
    polls = 1
    while not last.terminal:
        await asyncio.sleep(session.options.interval)
        if leaves:
            await _leave(session, job)
        last = await session.poll(connection, job, last.version, pause=pause)
        polls += 1
    session.record.followed(polls=polls, updates=last.version - first.version)
    await connection.close()


async def _leave(session: Session, job: int) -> None:
    connection = await session.connect()
    connection.send("GET", f"/api/v2/jobs/{job}")
    await asyncio.sleep(0)  # the request is sent, and its response is not waited for
    await connection.close()
    session.record.cut_off()
