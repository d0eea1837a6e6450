"""The routes for operators: statistics, invalidation, health checks."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, model_validator

from app.auth.rules import only
from app.http.openapi import problems, without_null
from app.http.problems import problem
from app.http.request_body import RequestBody
from app.http.routing import name_of
from app.jobs.cache_keys import jobs_key, progress_key, storyboard_key
from app.jobs.schemas import ClientId, JobId
from app.ops.readiness import Readiness

if TYPE_CHECKING:
    from app.auth.key_file import KeyFile
    from app.db.database import Database
    from jobcache import JobCache
    from jobcache.http.held_requests import HeldRequests
    from jobcache.protocol.change_feed import FeedStatus

_WITH_REDIS = {"redis", "tiered"}


def _one_and_no_null(schema: dict[str, Any]) -> None:
    schema |= {"minProperties": 1, "maxProperties": 1}
    for each in schema["properties"].values():
        without_null(each)


class Invalidate(RequestBody):
    """What to remove from the cache: one job, one client's list, or everything."""

    model_config = ConfigDict(json_schema_extra=_one_and_no_null)

    job_id: JobId | None = None
    client_id: ClientId | None = None
    all: Literal[True] | None = None

    @model_validator(mode="after")
    def _one(self) -> Invalidate:
        # A null counts as missing, and a missing value must never mean everything.
        given = [value for value in (self.job_id, self.client_id, self.all) if value is not None]
        if len(self.model_fields_set) != 1 or not given:
            raise ValueError("give one of job_id, client_id and all")
        return self


class Purged(BaseModel):
    """How many entries were removed."""

    purged: int


def router(
    cache: JobCache, database: Database, held: HeldRequests, keys: KeyFile | None = None
) -> APIRouter:
    """Return the routes for operators."""
    routes = APIRouter(tags=["operations"], generate_unique_id_function=name_of)
    readiness = Readiness(database.check)

    @routes.get("/api/v2/cache/stats", **only())
    async def stats() -> dict[str, Any]:
        """Return statistics of this process since its start."""
        return snapshot(cache, database, held)

    @routes.post("/api/v2/cache/invalidate", **only(answers=problems(413, 422, 503)))
    async def invalidate(body: Invalidate) -> Purged:
        """Remove entries from the cache; the next polls query the database."""
        if body.job_id is not None:
            keys = progress_key(body.job_id), storyboard_key(body.job_id)
            return Purged(purged=await cache.invalidate(*keys))
        if body.client_id is not None:
            return Purged(purged=await cache.invalidate(jobs_key(body.client_id)))
        return Purged(purged=await cache.invalidate_all())

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Return 200 while the process is alive."""
        return {"status": "alive"}

    @routes.get("/readyz", responses={200: {"model": dict[str, str]}, **problems(503)})
    async def readyz(request: Request) -> Response:
        """Return 200 if the database accepts reads and writes and the API keys can be read.

        The database is checked at most once a second.
        """
        if keys is not None and keys.problem:
            detail = f"The file of API keys cannot be used: {keys.problem}."
            headers = {"Retry-After": "2"}
            return problem(503, detail, instance=request.url.path, headers=headers)
        await readiness.check()
        return JSONResponse({"status": "ready"})

    return routes


def snapshot(cache: JobCache, database: Database, held: HeldRequests) -> dict[str, Any]:
    """Return the document of `/api/v2/cache/stats`."""
    info = cache.info()
    enabled = info.backend != "null"
    remote = info.backend in _WITH_REDIS
    entries, held_bytes = (None, None) if info.size is None else info.size
    return {
        "cache_enabled": enabled,
        "statistics": {
            **asdict(info.counters),
            "hit_rate": info.counters.hit_rate,
            "total_requests": info.counters.total_requests,
            "latency_us": info.latency_us,
            "redis_enabled": remote,
            "redis_available": remote and info.health.available,
            "ttl_seconds": _shortest(cache.lifetimes.default),
            "backend": info.backend,
            "tier_hits": info.tier_hits,
            "feed": _feed(info.feed),
            "breaker": {
                "state": info.health.state,
                "age_seconds": round(info.health.age, 3),
                "pending": info.health.pending,
            },
            "entries": entries,
            "bytes": held_bytes,
        },
        "database": {
            "statements": dict(database.statements),
            "purposes": dict(database.purposes),
        },
        "held": {**held.counts(), **info.waiting._asdict()},
        "process": os.getpid(),
        "message": _message(
            enabled=enabled, away=not info.health.available, why=info.health.reason
        ),
    }


def _feed(condition: FeedStatus | None) -> dict[str, Any] | None:
    if condition is None:
        return None
    return {
        "state": condition.state,
        "age_seconds": round(condition.age, 3),
        "reason": condition.reason,
        "interruptions": condition.interruptions,
        "lag_us": condition.lag_us,
    }


def _shortest(number: float) -> float:
    # The first version of the service showed whole numbers without a fraction.
    return int(number) if number == int(number) else number


def _message(*, enabled: bool, away: bool, why: str) -> str:
    if not enabled:
        return "Cache is off: every poll is a database query"
    if away:
        return f"Cache is away ({why}): every poll is a database query until it is back"
    return "Cache is working normally"
