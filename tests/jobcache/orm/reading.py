"""Reads of the tests: what the cache answers, and what it should."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from jobcache import CacheOutcome, Document, JobCache
from tests.jobcache.orm.exports import EXPORTS

Seen = tuple[int, CacheOutcome]


async def stored(engine: AsyncEngine, export_id: int) -> Document | None:
    """Return the document of a row as the database has committed it."""
    return await EXPORTS.loader(async_sessionmaker(engine))(export_id)()


async def poll(cache: JobCache, engine: AsyncEngine, export_id: int = 1) -> Seen:
    """Read a row through the cache; it must be as in the database. Return version and outcome."""
    load = EXPORTS.loader(async_sessionmaker(engine))
    result = await cache.read(EXPORTS.key(export_id), load(export_id))
    expected = await stored(engine, export_id)
    if expected is None:
        assert result.missing
    else:
        assert (result.version, result.body) == (expected.version, expected.body)
    return result.version, result.outcome


def hit(version: int) -> Seen:
    return version, CacheOutcome.HIT


def miss(version: int) -> Seen:
    return version, CacheOutcome.MISS


def bypass(version: int) -> Seen:
    return version, CacheOutcome.BYPASS
