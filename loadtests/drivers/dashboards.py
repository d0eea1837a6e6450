"""Dashboards: each shows the list of a client's jobs, and asks for all of them by id."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from loadtests.pollers import rows

if TYPE_CHECKING:
    from jobcache.client.core.messages import Response
    from loadtests.drivers.session import Session

_JOBS_EACH = 10
"""Jobs of one client, which one list and one batch show."""


async def drive(session: Session) -> None:
    """Create jobs of several clients; poll lists and batches until all jobs are done."""
    options = session.options
    connection = await session.connect()
    jobs = [
        (await session.create(connection, f"client-{number // _JOBS_EACH}")).id
        for number in range(options.jobs)
    ]
    await connection.close()
    groups = [jobs[at : at + _JOBS_EACH] for at in range(0, len(jobs), _JOBS_EACH)]
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(session.render(job))
        for number in range(options.users):
            place = number % len(groups)
            group.create_task(_watch(session, f"client-{place}", groups[place]))


async def _watch(session: Session, client_id: str, jobs: list[int]) -> None:
    connection = await session.connect()
    ids = ",".join(map(str, jobs))
    seen: dict[int, int] = {}
    polls = updates = 0
    while True:
        listed = await session.send(
            connection, rows.LIST, f"/api/v2/jobs?client_id={client_id}&limit=100"
        )
        batch = await session.send(connection, rows.BATCH, f"/api/v2/jobs?ids={ids}")
        # The service reads the list, each job of it, and each job of the batch.
        session.record.reads_without_outcome(1 + len(_items(listed)) + len(jobs))
        polls += 2
        for item in (items := _items(batch)):
            before = seen.get(item["id"], item["version"])
            if item["version"] < before:
                session.record.failure(rows.BATCH, f"version {item['version']} after {before}")
            updates += item["version"] - before
            seen[item["id"]] = item["version"]
        if len(items) == len(jobs) and all(item["terminal"] for item in items):
            break
        await asyncio.sleep(session.options.interval)
    session.record.followed(polls=polls, updates=updates)
    await connection.close()


def _items(response: Response) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(response.body)["items"]
    return items
