"""The table of backends for benchmarks and load tests; a new backend is a line here."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from jobcache import CacheSettings
from jobcache.backends.registry import make_backend
from jobcache.protocol.capabilities import (
    SupportsChangeFeed,
    SupportsHealth,
    SupportsStart,
    SupportsTiers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobcache.protocol.backend import CacheBackend

NEEDS_REDIS = {
    "null": False,
    "memory": False,
    "redis": True,
    "tiered": True,
    "postgres": False,
}
"""The backends of the load tests by their names, and whether they need a Redis server."""

ONE_PROCESS_ONLY = frozenset({"memory"})
"""Those that are wrong with several processes: a write in one leaves the entries of the others."""

ONE_DATABASE_ONLY = frozenset({"postgres"})
"""Those that need PostgreSQL as the database of the jobs."""

EVERY_BACKEND = ("null", "memory", "memcached", "redis", "tiered", "postgres")
"""The backends that `ready_backend` knows."""

_LIVE = 5.0  # seconds for a feed to become live


@asynccontextmanager
async def ready_backend(
    name: str, *, redis_url: str = "", memcached_url: str = "", postgres_url: str = ""
) -> AsyncGenerator[CacheBackend]:
    """Return a backend as the service creates it, guard included, ready in the running loop.

    Args:
        name: one of `EVERY_BACKEND`.
        redis_url: a private server, for backends that need one.
        memcached_url: the same.
        postgres_url: the same.
    """
    backend = make_backend(
        CacheSettings(
            backend=name,
            redis_url=redis_url,
            memcached_url=memcached_url,
            postgres_url=postgres_url,
        )
    )
    try:
        if isinstance(backend, SupportsStart):
            await backend.start()
        if isinstance(backend, SupportsHealth):
            assert backend.condition().available, f"{name} does not reach its server"
        if isinstance(backend, SupportsTiers) and isinstance(backend, SupportsChangeFeed):
            async with asyncio.timeout(_LIVE):  # before that it does not use its local tier
                while (feed := backend.feed()) is None or not feed.live:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        yield backend
    finally:
        await backend.aclose()
