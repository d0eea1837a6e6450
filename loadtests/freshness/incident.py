"""What a fault is given to work with, the promise that holds meanwhile, and steps of faults."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from loadtests.freshness.cluster import Cluster, Service
    from loadtests.freshness.proxy import Proxy

T = TypeVar("T")

Needs = Literal["", "redis", "tracking", "notifications", "older"]
"""What a fault happens to: Redis, its change feed, that of PostgreSQL, or processes of an older
version beside those of this one; "" for what every run has."""

_UNTIL = 30.0  # seconds for something to come about that should
_LOOK = 0.01  # seconds between two looks


class NotInjected(Exception):  # noqa: N818 - says what is the matter
    """A fault that was planned did not happen; says why."""


@dataclass(frozen=True, slots=True)
class Incident:
    """What a fault is given to work with.

    Attributes:
        cluster: what it happens to.
        rng: what its choices follow from.
        victim: the service process that it happens to, where it is one.
        freshness: seconds for which an entry is fresh.
        bound: the most seconds for which a bounded promise lets something old be shown.
    """

    cluster: Cluster
    rng: random.Random
    victim: Service
    freshness: float
    bound: float


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, and the promise that holds during and after it.

    Attributes:
        invariants: "fresh": no read is stale. "bounded": a change that could not be
            reported to Redis may be hidden for as long as entries are fresh, and one second.
        within: of a bounded promise, seconds for which something old may be shown, if that is less.
        inject: makes it happen, and heals it.
        cuts_one_off: whether it is one process alone that cannot reach Redis; its own answers are
            fresh all the same.
        takes_source: whether the database is away, and 503 a right answer.
        two_sources: whether two databases answer for a while.
        needs: what must be there for it.
    """

    invariants: Literal["fresh", "bounded"]
    inject: Callable[[Incident], Awaitable[None]]
    within: float | None = None
    cuts_one_off: bool = False
    takes_source: bool = False
    two_sources: bool = False
    needs: Needs = "redis"


async def network(proxies: Sequence[Proxy], fail: Callable[[Proxy], None], seconds: float) -> None:
    """Have proxies fail for some seconds."""
    try:
        for proxy in proxies:
            fail(proxy)
        await asyncio.sleep(seconds)
    finally:
        for proxy in proxies:
            proxy.heal()


async def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for a condition.

    Raises:
        NotInjected: it did not come true; the message is `otherwise`.
    """
    deadline = time.monotonic() + _UNTIL
    while not condition():
        if time.monotonic() > deadline:
            raise NotInjected(otherwise)
        await asyncio.sleep(_LOOK)


async def to_its_end(call: Callable[[], T]) -> T:
    """Run a blocking call in a thread; an interrupt waits for it, so no server is left behind."""
    task = asyncio.create_task(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
