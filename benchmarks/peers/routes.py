"""The FastAPI applications in which peers cache the answer to a poll.

All load from the same database as `benchmarks.handwritten`, and keep what they have loaded for an
hour. None of them is coherent: a cached value stays until it expires.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fastapi import FastAPI, Response

from benchmarks.handwritten import DATABASE, PATH, Jobs

if TYPE_CHECKING:
    from collections.abc import Callable

ROUTE = "BENCHMARK_ROUTE"
"""The environment variable that names one of `benchmarks.peers.table.ROUTES`."""
REDIS = "BENCHMARK_REDIS"
"""The environment variable with the URL of Redis."""

_KEEP = 3600  # seconds
_ENTRIES = 10_000


def make() -> FastAPI:
    """Return the application, for `uvicorn --factory`."""
    app = FastAPI()
    _MAKERS[os.environ[ROUTE]](app, Jobs(os.environ[DATABASE]), os.environ[REDIS])
    return app


def _fastapi_cache(store: str) -> _Maker:
    def build(app: FastAPI, jobs: Jobs, redis_url: str) -> None:
        from fastapi_cache import FastAPICache  # noqa: PLC0415 - each needs its own peer only
        from fastapi_cache.backends.inmemory import InMemoryBackend  # noqa: PLC0415
        from fastapi_cache.backends.redis import RedisBackend  # noqa: PLC0415
        from fastapi_cache.decorator import cache  # noqa: PLC0415
        from redis.asyncio import Redis  # noqa: PLC0415

        memory = store == "memory"
        FastAPICache.init(
            InMemoryBackend() if memory else RedisBackend(Redis.from_url(redis_url)),
            prefix="fastapi-cache",
        )
        app.get(PATH)(cache(expire=_KEEP)(_document(jobs)))

    return build


def _cashews(store: str, *, raw: bool = False) -> _Maker:
    def build(app: FastAPI, jobs: Jobs, redis_url: str) -> None:
        from cashews import Cache  # noqa: PLC0415

        cache = Cache()
        cache.setup("mem://" if store == "memory" else redis_url)
        # the two share a Redis
        cached = cache(ttl=_KEEP, key=("bytes" if raw else "cashews") + ":{job_id}")
        if raw:
            app.get(PATH)(_sent(cached(_body(jobs))))
        else:
            app.get(PATH)(cached(_document(jobs)))

    return build


def _aiocache(store: str, *, raw: bool = False) -> _Maker:
    def build(app: FastAPI, jobs: Jobs, redis_url: str) -> None:
        from aiocache import Cache, cached  # noqa: PLC0415
        from aiocache.serializers import JsonSerializer, NullSerializer  # noqa: PLC0415

        def key(_function: object, *arguments: object, **named: object) -> str:
            return f"aiocache{'-bytes' * raw}:{named.get('job_id', arguments)}"

        options: dict[str, Any] = {"cache": Cache.MEMORY}
        if store == "redis":
            where = urlsplit(redis_url)
            options = {
                "cache": Cache.REDIS,
                "endpoint": where.hostname,
                "port": where.port,
                "serializer": NullSerializer(encoding=None) if raw else JsonSerializer(),
            }
        keeps = cached(ttl=_KEEP, key_builder=key, **options)
        if raw:
            app.get(PATH)(_sent(keeps(_body(jobs))))
        else:
            app.get(PATH)(keeps(_document(jobs)))

    return build


def _cachebox(app: FastAPI, jobs: Jobs, _redis_url: str) -> None:
    from cachebox import TTLCache, cached  # noqa: PLC0415

    app.get(PATH)(cached(TTLCache(_ENTRIES, _KEEP))(_document(jobs)))


def _cachetools(*, raw: bool = False) -> _Maker:
    def build(app: FastAPI, jobs: Jobs, _redis_url: str) -> None:
        from cachetools import TTLCache  # noqa: PLC0415

        cache: TTLCache[int, Any] = TTLCache(_ENTRIES, _KEEP)

        async def document(job_id: int) -> dict[str, Any]:
            found: dict[str, Any] | None = cache.get(job_id)
            if found is None:
                found = cache[job_id] = await jobs.document(job_id)
            return found

        async def body(job_id: int) -> bytes:
            found: bytes | None = cache.get(job_id)
            if found is None:
                found = cache[job_id] = await jobs.body(job_id)
            return found

        app.get(PATH)(_sent(body) if raw else document)

    return build


def _dogpile(app: FastAPI, jobs: Jobs, _redis_url: str) -> None:
    from dogpile.cache import make_region  # noqa: PLC0415
    from dogpile.cache.api import NO_VALUE  # noqa: PLC0415

    region = make_region().configure("dogpile.cache.memory", expiration_time=_KEEP)

    async def document(job_id: int) -> dict[str, Any]:
        found: Any = region.get(str(job_id))
        if found is NO_VALUE:
            found = await jobs.document(job_id)
            region.set(str(job_id), found)
        return found  # type: ignore[no-any-return]

    app.get(PATH)(document)


def _dogpile_redis(app: FastAPI, jobs: Jobs, redis_url: str) -> None:
    from dogpile.cache import make_region  # noqa: PLC0415
    from dogpile.cache.api import NO_VALUE  # noqa: PLC0415

    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=_KEEP,
        arguments={"url": redis_url, "redis_expiration_time": 2 * _KEEP},
    )

    async def document(job_id: int) -> dict[str, Any]:
        found: Any = await asyncio.to_thread(region.get, f"dogpile:{job_id}")
        if found is NO_VALUE:
            found = await jobs.document(job_id)
            await asyncio.to_thread(region.set, f"dogpile:{job_id}", found)
        return found  # type: ignore[no-any-return]

    app.get(PATH)(document)


def _diskcache(app: FastAPI, jobs: Jobs, _redis_url: str) -> None:
    from diskcache import Cache  # noqa: PLC0415

    cache = Cache(tempfile.mkdtemp(dir="."))  # where this process goes, its files do

    async def document(job_id: int) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        found: Any = await loop.run_in_executor(None, cache.get, job_id)
        if found is None:
            found = await jobs.document(job_id)
            await loop.run_in_executor(None, cache.set, job_id, found, _KEEP)
        return found  # type: ignore[no-any-return]

    app.get(PATH)(document)


def _document(jobs: Jobs) -> Callable[..., Any]:
    async def document(job_id: int) -> dict[str, Any]:
        return await jobs.document(job_id)

    return document


def _body(jobs: Jobs) -> Callable[..., Any]:
    async def body(job_id: int) -> bytes:
        return await jobs.body(job_id)

    return body


def _sent(body: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(job_id: int) -> Response:
        return Response(await body(job_id=job_id), media_type="application/json")

    # FastAPI reads annotations where the function was written, and so would miss local ones.
    answer.__annotations__ = {"job_id": int, "return": Response}
    return answer


if TYPE_CHECKING:
    _Maker = Callable[[FastAPI, Jobs, str], None]

_MAKERS: dict[str, _Maker] = {
    "fastapi-cache2, memory": _fastapi_cache("memory"),
    "cashews, memory": _cashews("memory"),
    "aiocache, memory": _aiocache("memory"),
    "cachebox": _cachebox,
    "cachetools": _cachetools(),
    "dogpile.cache, memory": _dogpile,
    "diskcache": _diskcache,
    "cashews, memory, bytes": _cashews("memory", raw=True),
    "aiocache, memory, bytes": _aiocache("memory", raw=True),
    "cachetools, bytes": _cachetools(raw=True),
    "fastapi-cache2, Redis": _fastapi_cache("redis"),
    "cashews, Redis": _cashews("redis"),
    "aiocache, Redis": _aiocache("redis"),
    "dogpile.cache, Redis": _dogpile_redis,
    "cashews, Redis, bytes": _cashews("redis", raw=True),
    "aiocache, Redis, bytes": _aiocache("redis", raw=True),
}
