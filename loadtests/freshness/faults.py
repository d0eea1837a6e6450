"""What can go wrong with Redis, the network, the database and the service, and how it is done.

Each fault returns once it is healed. One that did not come about raises `NotInjected`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from loadtests.freshness.cluster import Cluster, Service

_UNTIL = 10.0  # seconds for something to come about that should
_LOOK = 0.01  # seconds between two looks
_JUNK = b"x" * 16_384


class NotInjected(Exception):  # noqa: N818 - says what is the matter
    """A fault that was planned did not happen; says why."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What a fault is given to work with.

    Attributes:
        cluster: what it happens to.
        chance: what its choices follow from.
        victim: the service process that it happens to, where it is one.
        freshness: seconds for which an entry is fresh.
    """

    cluster: Cluster
    chance: random.Random
    victim: Service
    freshness: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and what is promised while it lasts and after it.

    Attributes:
        promise: "fresh": no read is stale. "bounded": what a process that is cut off has written
            may be hidden for as long as entries are fresh, and one second.
        inject: makes it happen, and heals it.
        cuts_one_off: whether it is one process alone that cannot reach Redis; its own answers are
            fresh all the same.
        takes_source: whether the database is away, and 503 a right answer.
        needs_redis: whether it happens to Redis.
    """

    promise: Literal["fresh", "bounded"]
    inject: Callable[[Incident], Awaitable[None]]
    cuts_one_off: bool = False
    takes_source: bool = False
    needs_redis: bool = True


async def kill_service(incident: Incident) -> None:
    """A process dies between a commit and the offer of what it committed; it is started again."""
    victim = incident.victim
    victim.doomed = True
    if incident.cluster.proxies:
        victim.arm()
        await _until(lambda: not victim.alive, "no write came to its offer")
    victim.down = True
    await asyncio.to_thread(victim.kill)
    await asyncio.sleep(incident.chance.uniform(0.1, 0.5))
    victim.start()
    await victim.wait_until_ready()


async def restart(incident: Incident) -> None:
    """Redis dies, and comes back empty."""
    server = incident.cluster.redis
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(incident.chance.uniform(0.05, 1))
    await asyncio.to_thread(server.start)
    async with incident.cluster.admin() as admin:
        if (await admin.info("persistence"))["rdb_last_load_keys_loaded"]:
            raise NotInjected("Redis did not come back empty")


async def pause(incident: Incident) -> None:
    """Redis hangs, then goes on with all the commands that have piled up."""
    server = incident.cluster.redis
    await asyncio.to_thread(server.pause)
    try:
        await asyncio.sleep(incident.chance.uniform(0.5, 1.5))
    finally:
        await asyncio.to_thread(server.resume)


async def flush(incident: Incident) -> None:
    """Redis is emptied, several times within a second."""
    async with incident.cluster.admin() as admin:
        for _ in range(5):
            await admin.flushall()
            await asyncio.sleep(incident.chance.uniform(0, 0.3))


FAULTS: dict[str, Fault] = {
    "kill-service": Fault("fresh", kill_service, needs_redis=False),
    "restart": Fault("fresh", restart),
    "pause": Fault("fresh", pause),
    "flush": Fault("fresh", flush),
}
"""All of them, by name."""


async def _until(condition: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + _UNTIL
    while not condition():
        if time.monotonic() > deadline:
            raise NotInjected(otherwise)
        await asyncio.sleep(_LOOK)
