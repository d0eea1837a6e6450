"""A FastAPI route without a cache, as one would write it by hand.

It uses the statement, the document and the pool of the service. The difference to the service is
the cost of the cache, the validators and the limits where nothing is cached.
"""

from __future__ import annotations

import json
import os
from typing import Any

from fastapi import FastAPI, HTTPException, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from app.db.tables import jobs
from app.jobs.documents import job_document
from app.jobs.states import Status
from app.jobs.storage import Job

DATABASE = "BENCHMARK_DATABASE"
"""The environment variable that names the database."""

PATH = "/jobs/{job_id}"


class Jobs:
    """The jobs of a database."""

    def __init__(self, url: str) -> None:
        engine = create_async_engine(url, pool_size=15, max_overflow=0)
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._select = select(*(column for column in jobs.c if column is not jobs.c.storyboard))

    async def body(self, job_id: int) -> bytes:
        """Return a job's document, as a poll returns it."""
        async with self._engine.connect() as connection:
            result = await connection.execute(self._select.where(jobs.c.id == job_id))
            row = result.one_or_none()
        if row is None:
            raise HTTPException(404)
        values = dict(row._mapping)  # noqa: SLF001 - the public name of a row's mapping
        return job_document(Job(**values | {"status": Status(values["status"])})).body

    async def document(self, job_id: int) -> dict[str, Any]:
        """Return a job's document as a dictionary."""
        document: dict[str, Any] = json.loads(await self.body(job_id))
        return document


def make() -> FastAPI:
    """Return the application, for `uvicorn --factory`."""
    app = FastAPI()
    stored = Jobs(os.environ[DATABASE])

    @app.get(PATH)
    async def job(job_id: int) -> Response:
        return Response(await stored.body(job_id), media_type="application/json")

    return app
