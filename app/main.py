"""The application: `create_app(settings)`, and what uvicorn's processes call."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from app import contract, problems, settings, wiring
from app.access.document import describe
from app.access.gate import Gate
from app.jobs import routes as jobs
from app.limits import BodyLimit
from app.ops import routes as ops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.settings import Settings


def create_app(chosen: Settings) -> FastAPI:
    """The service, set up as chosen. Connects to nothing until it is started.

    Raises:
        SettingsError: the cache backend cannot be set up so, or the keys cannot be read.
    """
    parts = wiring.build(chosen)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with wiring.running(parts):
            yield

    app = FastAPI(
        title="jobcache",
        version="2",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # it would send people to whatever host their Host header names
    )
    app.state.parts = parts
    app.add_middleware(BodyLimit)
    app.add_middleware(Gate, keys=parts.keys, rate=parts.rate)  # outside of the one above
    problems.install(app)
    app.include_router(jobs.router(parts.jobs, chosen.videos))
    app.include_router(ops.router(parts.cache, parts.database))
    contract.publish(app)
    describe(app, keyed=parts.keys is not None, limited=parts.rate is not None)
    return app


def from_environment() -> FastAPI:
    """The service as the environment sets it up: the factory for uvicorn."""
    settings.configure_logging()
    return create_app(settings.load())
