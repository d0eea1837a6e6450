"""All clients poll at once while the cache is empty, as after a deployment or a flush."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.drivers.connection import Connection
    from loadtests.drivers.session import Session

_CONNECTED_AT_ONCE = 50


async def drive(session: Session) -> None:
    """Empty the cache; let all clients poll at once; complete the jobs; let them poll again."""
    jobs = await session.create_all()
    clients: list[Connection] = []
    while len(clients) < session.options.users:
        left = min(_CONNECTED_AT_ONCE, session.options.users - len(clients))
        clients += await asyncio.gather(*[session.connect() for _ in range(left)])
    operator = await session.connect()
    await session.send(
        operator, "cache: empty", "/api/v2/cache/invalidate", method="POST", body={"all": True}
    )

    async def poll(number: int, seen: int) -> int:
        job = jobs[number % len(jobs)]
        return (await session.poll(clients[number], job.id, seen)).version

    numbers = range(len(clients))
    first = await asyncio.gather(*[poll(number, 1) for number in numbers])
    for job in jobs:
        await session.complete(operator, job.id)
    last = await asyncio.gather(
        *[poll(number, seen) for number, seen in zip(numbers, first, strict=True)]
    )
    for early, late in zip(first, last, strict=True):
        session.record.followed(polls=1, updates=late - early)
    for connection in (operator, *clients):
        await connection.close()
