"""A FastAPI application with SQLAlchemy: loads that open sessions of their own.

python examples/sessions.py

Needs `pip install jobcache fastapi httpx sqlalchemy[asyncio] aiosqlite`. It polls a job from twenty
clients, cancels half of them, and prints how many database connections are left in use.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from fastapi import FastAPI, Response
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from jobcache import Document, JobCache, with_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

CREATE = "CREATE TABLE jobs (id INTEGER PRIMARY KEY, percent INTEGER, version INTEGER)"
SELECT = text("SELECT percent, version FROM jobs WHERE id = :id")


async def load_job(session: AsyncSession, job_id: int) -> Document | None:
    """Load one job. The session is this load's own, and not that of a request."""
    row = (await session.execute(SELECT, {"id": job_id})).one_or_none()
    if row is None:
        return None
    return Document(row.version, "acme", b'{"percent": %d}' % row.percent)


def make_app(engine: AsyncEngine, cache: JobCache) -> FastAPI:
    """Return the application."""
    load = with_session(async_sessionmaker(engine), load_job)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await cache.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/jobs/{job_id}")
    async def poll(job_id: int) -> Response:
        result = await cache.read(f"job:{job_id}", partial(load, job_id))
        if result.missing:
            return Response(status_code=404)
        headers = {"X-Cache": result.outcome}
        return Response(result.body, media_type="application/json", headers=headers)

    return app


async def main() -> None:
    """Poll a job, and let half of the clients go away."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(folder) / 'jobs.db'}")
        async with engine.begin() as connection:
            await connection.execute(text(CREATE))
            await connection.execute(text("INSERT INTO jobs VALUES (7, 40, 1)"))
        cache = JobCache.from_url("memory://")
        app = make_app(engine, cache)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://jobs") as client,
        ):
            polls = [asyncio.create_task(client.get("/jobs/7")) for _ in range(20)]
            await asyncio.sleep(0)
            for leaving in polls[::2]:
                leaving.cancel()
            answers = await asyncio.gather(*polls[1::2])
            print({answer.text for answer in answers})
            print((await client.get("/jobs/7")).headers["X-Cache"])
        print(f"{engine.pool.status().rpartition(': ')[2]} connections in use")
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
