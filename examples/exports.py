"""Exports with FastAPI, SQLAlchemy and a Celery worker, whose commits reach the waiting polls.

    celery --app examples.exports:queue worker &
    uvicorn examples.exports:app &
    curl -X POST localhost:8000/exports
    curl -i -H 'Prefer: wait=20' -H 'If-None-Match: "1"' localhost:8000/exports/1

Needs `pip install jobcache[http,redis,sqlalchemy] fastapi uvicorn celery aiosqlite`, and Redis.
"""

from __future__ import annotations

import asyncio
import os
import time

from celery import Celery
from fastapi import FastAPI, Response
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

import jobcache.sync
from jobcache import Document, JobCache
from jobcache.http.fastapi import PollingRoutes
from jobcache.orm.sqlalchemy import Binding, CoherentSession

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
BROKER = os.environ.get("BROKER_URL", REDIS)
DATABASE = os.environ.get("DATABASE", "exports.db")
DONE = 100


class Base(DeclarativeBase):
    """The tables."""


class Export(Base):
    """An export, as far as it has come."""

    __tablename__ = "exports"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 - SQLAlchemy reads it once
    id: Mapped[int] = mapped_column(primary_key=True)
    percent: Mapped[int] = mapped_column(default=0)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - the same


def document(export: Export) -> Document:
    """Return what a poll is given."""
    body = b'{"id": %d, "percent": %d}' % (export.id, export.percent)
    return Document(export.version, "", body, poll_after=None if export.percent == DONE else 1)


exports = Binding(Export, key="export:{id}", document=document)

cache = JobCache.from_url(f"tiered+{REDIS}")
engine = create_async_engine(f"sqlite+aiosqlite:///{DATABASE}", poolclass=NullPool)
sessions = async_sessionmaker(
    engine, sync_session_class=CoherentSession, cache=cache, bindings=[exports]
)
load = exports.loader(sessions)


async def load_export(export_id: int) -> Document | None:
    """Load an export in a session of the load's own."""
    return await load(export_id)()


polling = PollingRoutes(cache, "/exports/{export_id}", key="export:{export_id}", load=load_export)
app = FastAPI()
app.include_router(polling.router)


@app.post("/exports", status_code=202)
async def create() -> Response:
    """Create an export, and let the worker make it."""
    async with sessions.begin() as session:
        session.add(export := Export())
        await session.flush()
        export_id = export.id
    await asyncio.to_thread(make.delay, export_id)  # it waits for the broker
    return Response(status_code=202, headers={"Location": f"/exports/{export_id}"})


queue = Celery("exports", broker=BROKER)
blocking_cache = jobcache.sync.JobCache.from_url(REDIS)
blocking_engine = create_engine(f"sqlite:///{DATABASE}")
blocking_sessions = sessionmaker(
    blocking_engine, class_=CoherentSession, cache=blocking_cache, bindings=[exports]
)
Base.metadata.create_all(blocking_engine)


@queue.task  # type: ignore[untyped-decorator]
def make(export_id: int) -> None:
    """Make the export, step by step. Each commit is published."""
    for percent in (25, 50, 75, DONE):
        time.sleep(0.05)
        with blocking_sessions.begin() as session:
            session.get_one(Export, export_id).percent = percent
