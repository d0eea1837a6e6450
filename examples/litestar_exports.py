"""Polling endpoints in Litestar: a poll, a long poll, and an event stream.

python examples/litestar_exports.py

Needs `pip install jobcache[http] litestar httpx`. The database is a dictionary, to keep it short.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import httpx
from litestar import Litestar, get
from litestar.params import FromPath  # noqa: TC002 - as below
from litestar.types import ASGIApp, Scope  # noqa: TC002 - Litestar reads the annotations

from jobcache import Document, JobCache
from jobcache.http.event_stream import EventStreams
from jobcache.http.held_requests import HeldRequests
from jobcache.http.json_document import json_document
from jobcache.http.polled_document import PolledDocument
from jobcache.http.polling import Polling

TABLE = {7: {"percent": 40, "version": 1}}


async def load(export_id: int) -> Document | None:
    """Load one export, or return None."""
    row = TABLE.get(export_id)
    if row is None:
        return None
    done = row["percent"] == 100  # noqa: PLR2004
    return json_document(row, version=row["version"], poll_after=None if done else 2, final=done)


def make_app(cache: JobCache) -> Litestar:
    """Return the application."""
    polling = Polling(EventStreams(HeldRequests(10_000, cache.cancel_waiters)))

    def document(export_id: int) -> PolledDocument:
        return PolledDocument(cache, f"export:{export_id}", partial(load, export_id))

    @get("/exports/{export_id:int}")
    async def poll(export_id: FromPath[int], scope: Scope) -> ASGIApp:
        return cast("ASGIApp", await polling.poll(document(export_id), scope["headers"]))

    @get("/exports/{export_id:int}/events")
    async def events(export_id: FromPath[int], scope: Scope) -> ASGIApp:
        return cast("ASGIApp", await polling.stream(document(export_id), scope["headers"]))

    return Litestar([poll, events], logging_config=None)


async def report(cache: JobCache, export_id: int, percent: int) -> None:
    """Commit progress, and publish it."""
    key = f"export:{export_id}"
    async with cache.write(key) as write:
        row = TABLE[export_id]
        TABLE[export_id] = {"percent": percent, "version": row["version"] + 1}
        changed = await load(export_id)
        if changed is not None:
            write.publish(key, changed)


async def main() -> None:
    """Poll an export, and wait for its end."""
    async with JobCache.from_url("memory://") as cache:
        app: Any = make_app(cache)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://exports") as client:
            first = await client.get("/exports/7")
            print(first.status_code, first.text, first.headers["etag"])
            known = {"If-None-Match": first.headers["etag"]}
            print((await client.get("/exports/7", headers=known)).status_code)
            print((await client.get("/exports/8")).status_code)
            waiting = asyncio.create_task(
                client.get("/exports/7", headers={**known, "Prefer": "wait=30"})
            )
            while cache.info().waiting.waiters == 0:  # noqa: ASYNC110 - nobody announces it
                await asyncio.sleep(0.01)
            await report(cache, 7, 100)
            print((await waiting).text)
            events = await client.get("/exports/7/events")
            print(*events.text.splitlines()[2:5], sep="\n")


if __name__ == "__main__":
    asyncio.run(main())
