"""Applications that embed the library, for any ASGI server: one document, answered in four ways.

Each way sends the same body: a constant, the fast path's wrapper, the middleware for repeated
polls, and routes of FastAPI.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI

from benchmarks import constant
from benchmarks.document import DOCUMENT
from jobcache import JobCache, Lifetimes
from jobcache.http.fast_path import FastPath
from jobcache.http.fastapi import PollingRoutes
from jobcache.http.repeated_polls import RepeatedPolls

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Scope

    from jobcache import Document, Entry

PATH = "/exports/{}"
_HOUR = 3600.0


async def load(export_id: int) -> Document:  # noqa: ARG001 - all exports are alike
    """Return the document."""
    return DOCUMENT


def _admit(_: Scope) -> Callable[[Entry], bool]:
    return lambda entry: entry.owner == DOCUMENT.owner


def _cache() -> JobCache:
    return JobCache.from_url("memory://", lifetimes=Lifetimes(default=_HOUR))


def _routes(cache: JobCache) -> FastAPI:
    app = FastAPI()
    polling = PollingRoutes(cache, "/exports/{export_id}", key="export:{export_id}", load=load)
    app.include_router(polling.router)
    return app


def _wrapped() -> ASGIApp:
    cache = _cache()
    path = "/exports/{export_id:int}"
    return FastPath(_routes(cache), cache, path, key="export:{export_id}", load=load, admit=_admit)


plain = constant.make()
wrapped = _wrapped()
repeated = RepeatedPolls(_routes(_cache()), seconds=5)
routes = _routes(_cache())
