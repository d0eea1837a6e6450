"""Polling endpoints in plain Starlette: a poll, a long poll, and an event stream.

python examples/starlette_exports.py

Needs `pip install jobcache[http] httpx`. The database is a dictionary, to keep the example short.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import httpx
from starlette.applications import Starlette
from starlette.routing import Route

from jobcache import JobCache
from jobcache.http.event_stream import EventStreams
from jobcache.http.held_requests import HeldRequests
from jobcache.http.json_document import json_document
from jobcache.http.polled_document import PolledDocument
from jobcache.http.polling import Polling

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from jobcache import Document

TABLE = {7: {"percent": 40, "version": 1}}


async def load(export_id: int) -> Document | None:
    """Load one export, or return None."""
    row = TABLE.get(export_id)
    if row is None:
        return None
    done = row["percent"] == 100  # noqa: PLR2004
    return json_document(
        row, version=row["version"], poll_after=None if done else 2, final=done, owner="acme"
    )


def make_app(cache: JobCache) -> Starlette:
    """Return the application."""
    polling = Polling(EventStreams(HeldRequests(10_000, cache.cancel_waiters)))

    def document(request: Request) -> PolledDocument:
        export_id, tenant = request.path_params["export_id"], request.headers.get("x-tenant")
        return PolledDocument(
            cache,
            f"export:{export_id}",
            partial(load, export_id),
            can_view=lambda entry: entry.owner == tenant,
        )

    async def poll(request: Request) -> Response:
        return await polling.poll(document(request), request.headers.raw)

    async def events(request: Request) -> Response:
        return await polling.stream(
            document(request), request.headers.raw, head=request.method == "HEAD"
        )

    return Starlette(
        routes=[
            Route("/exports/{export_id:int}", poll),
            Route("/exports/{export_id:int}/events", events),
        ]
    )


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
        transport = httpx.ASGITransport(make_app(cache))
        tenant = {"X-Tenant": "acme"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://exports", headers=tenant
        ) as client:
            first = await client.get("/exports/7")
            print(first.status_code, first.text, first.headers["etag"])
            known = {"If-None-Match": first.headers["etag"]}
            print((await client.get("/exports/7", headers=known)).status_code)
            missing = await client.get("/exports/8")
            print(missing.status_code, missing.text)
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
