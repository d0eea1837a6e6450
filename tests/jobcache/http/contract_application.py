"""Polling endpoints of a few exports, for Schemathesis; streams end soon."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from jobcache import JobCache
from jobcache.http.fastapi import PollingRoutes
from tests.jobcache.http.exports import Export, Exports


class Shown(BaseModel):
    """An export, as polls return it."""

    id: int
    percent: int
    text: str


exports = Exports(
    JobCache.from_url("memory://"),
    {1: Export(1), 2: Export(2, percent=100), 3: Export(3, text="x" * 5000)},
)
app = FastAPI()
app.include_router(
    PollingRoutes(
        exports.cache,
        "/exports/{export_id}",
        key="export:{export_id}",
        load=exports.load,
        load_many=exports.load_many,
        batch="/exports",
        response_model=Shown,
        longest_wait=0,
        stream_seconds=0.05,
    ).router
)
