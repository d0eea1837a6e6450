"""A change feed on a real server, and the events that it reports."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg

from app.devservers import PgBouncerServer, PostgresServer
from jobcache.backends.postgres.factory import LISTENER
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.postgres.writers import OwnPool, Writers

CHANNEL = "jobcache:test"


class Events:
    """The events that a feed has reported."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.gaps = 0
        self.resumptions = 0

    def changed(self, keys: Sequence[str]) -> None:
        self.keys += keys

    def interrupted(self) -> None:
        self.gaps += 1

    def resumed(self) -> None:
        self.resumptions += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


def dsn(server: PostgresServer | PgBouncerServer) -> str:
    return server.url().replace("+asyncpg", "")


def connecting(url: str) -> Callable[[], Any]:
    return partial(asyncpg.connect, url, **LISTENER)


@asynccontextmanager
async def following(
    url: str,
    *,
    connect: Callable[[], Any] | None = None,
    writers: Writers | None = None,
    silence: float = 30,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[tuple[PostgresFeed, Events]]:
    """A feed that is live."""
    feed = PostgresFeed(
        connecting(url) if connect is None else connect,
        OwnPool(url) if writers is None else writers,
        channel=CHANNEL,
        heartbeat=0.02,
        silence=silence,
        clock=clock,
    )
    events = Events()
    feed.listen(events)
    feed.start()
    try:
        await until(lambda: feed.live)
        yield feed, events
    finally:
        await feed.aclose()
