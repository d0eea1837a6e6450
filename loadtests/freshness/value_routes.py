"""Values without a version, in the service under test: one number for each id.

    GET  /freshness/values/7    the number, through `JobCache.get_or_load`
    POST /freshness/values/7    raises the number, commits, then invalidates; returns the number

A POST is acknowledged with 200 only if the invalidation has succeeded, and with 202 otherwise. Even
ids are invalidated by their key, odd ones by a tag.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import text
from starlette.responses import JSONResponse
from starlette.routing import Route

from jobcache.errors import CacheUnavailable, SourceUnavailable

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

    from app.container import Services

PATH = "/freshness/values"

_CREATE = "CREATE TABLE IF NOT EXISTS freshness_values (id INTEGER PRIMARY KEY, number INTEGER)"
_RAISE = (
    "INSERT INTO freshness_values VALUES (:id, 1) ON CONFLICT (id)"
    " DO UPDATE SET number = freshness_values.number + 1 RETURNING number"
)
_SELECT = text("SELECT number FROM freshness_values WHERE id = :id")


def key_of(value_id: int) -> str:
    """Return the cache key of a value."""
    return f"value:{value_id}"


class ValueRoutes:
    """The routes of the values.

    Args:
        services: the parts of the service.
        ttl: seconds for which a number is served.
        invalidates: whether a change is announced.
    """

    def __init__(self, services: Services, ttl: float, *, invalidates: bool) -> None:
        self._database = services.database
        self._cache = services.cache
        self._ttl = ttl
        self._invalidates = invalidates
        self._created = False

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an application."""
        app.router.routes.insert(
            0, Route(f"{PATH}/{{id:int}}", self._respond, methods=["GET", "POST"])
        )

    async def _respond(self, request: Request) -> Response:
        value_id: int = request.path_params["id"]
        try:
            if request.method == "POST":
                return await self._raise(value_id)
            number = await self._cache.get_or_load(
                key_of(value_id),
                partial(self._load, value_id),
                ttl=self._ttl,
                tags=_tags(value_id),
            )
        except SourceUnavailable:
            return JSONResponse(None, 503)
        return JSONResponse(number)

    async def _load(self, value_id: int) -> int:
        await self._create()
        rows = await self._database.read(_SELECT, "value", id=value_id)
        return int(rows[0][0]) if rows else 0

    async def _raise(self, value_id: int) -> Response:
        await self._create()
        [row] = await self._database.write(text(_RAISE).bindparams(id=value_id))
        try:
            if self._invalidates:
                tags = _tags(value_id)
                if tags:
                    await self._cache.invalidate_tags(*tags)
                else:
                    await self._cache.invalidate(key_of(value_id))
        except CacheUnavailable:
            return JSONResponse(row[0], 202)
        return JSONResponse(row[0])

    async def _create(self) -> None:
        if not self._created:
            await self._database.write(text(_CREATE))
            self._created = True


def _tags(value_id: int) -> list[str]:
    return [f"value:{value_id}"] if value_id % 2 else []
