"""An application of FastAPI with `PollingRoutes`, which hold polls and event streams."""

import os

from fastapi import FastAPI

from benchmarks.shutdown import signs
from benchmarks.shutdown.application import LIMIT
from jobcache import Document, JobCache
from jobcache.http.fastapi import PollingRoutes
from jobcache.http.json_document import json_document


async def load() -> Document:
    """Return a document that never changes."""
    return json_document({"version": 1}, version=1, status="running", poll_after=2)


signs.restrict()
polling = PollingRoutes(
    JobCache.from_url("memory://"),
    "/poll",
    key="poll",
    load=load,
    longest_wait=LIMIT,
    stream_seconds=LIMIT,
)
app = FastAPI()
app.include_router(polling.router)


@app.get("/")
async def state() -> dict[str, int]:
    """Return the process and the number of its held requests."""
    counts = polling.held.counts()
    return {"process": os.getpid(), "held": counts["waits"] + counts["streams"], "requests": 0}
