"""A change feed on a real server, and the events that it reports."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg

from app.devservers import PgBouncerServer, PostgresServer
from jobcache.backends.postgres.factory import LISTENER
from jobcache.backends.postgres.feed import PostgresFeed
from jobcache.backends.postgres.writers import OwnPool, Writers
from tests.jobcache.backends.feed_events import Events, until

CHANNEL = "jobcache:test"


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
