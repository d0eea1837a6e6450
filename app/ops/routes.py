"""The routes for operators: statistics, invalidation, health checks."""

from __future__ import annotations

import asyncio
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
from app.ops.metrics import CONTENT_TYPE, JobCounter, page
from app.ops.readiness import Readiness
from app.ops.statistics import document

if TYPE_CHECKING:
    from app.auth.key_file import KeyFile
    from app.db.database import Database
    from app.ops.process_reports import ProcessReports
    from jobcache import JobCache


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


def _feed_of(cache: JobCache) -> dict[str, str]:
    """Return the state of the change feed, and of the database's queue of notifications."""
    feed = cache.info().feed
    if feed is None or cache.info().backend != "postgres":
        return {}
    found: dict[str, str] = {"feed": feed.state}
    if feed.queue_usage is not None:
        found["notification_queue"] = f"{feed.queue_usage:.1%} full"
    return found


_METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The metrics in the text format of Prometheus",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}


def router(
    cache: JobCache,
    database: Database,
    reports: ProcessReports,
    unfinished: JobCounter,
    keys: KeyFile | None = None,
) -> APIRouter:
    """Return the routes for operators."""
    routes = APIRouter(tags=["operations"], generate_unique_id_function=name_of)
    readiness = Readiness(database.check)

    @routes.get("/api/v2/cache/stats", **only())
    async def stats() -> dict[str, Any]:
        """Return statistics since the start: the sums of all workers, and each of them."""
        return document(await reports.gather())

    @routes.get("/metrics", response_class=Response, **only(answers=_METRICS))
    async def metrics() -> Response:
        """Return the metrics of all workers for Prometheus."""
        gathered, counted = await asyncio.gather(reports.gather(), unfinished.unfinished())
        return Response(page(gathered, counted), media_type=CONTENT_TYPE)

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

        The database is checked at most once a second. With the backend `postgres`, the response
        has the state of the change feed, too: while it is not live, each poll is a query.
        """
        if keys is not None and keys.problem:
            detail = f"The file of API keys cannot be used: {keys.problem}."
            headers = {"Retry-After": "2"}
            return problem(503, detail, instance=request.url.path, headers=headers)
        await readiness.check()
        return JSONResponse({"status": "ready", **_feed_of(cache)})

    return routes
