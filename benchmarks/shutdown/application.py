"""A plain Starlette application that holds requests until its process begins to shut down."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from benchmarks.shutdown import signs
from jobcache.http.shutdown import Shutdown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

LIMIT = 600  # seconds that a request is held at most

signs.restrict()
ended = asyncio.Event()
shutdown = Shutdown(ended.set)
count = held = 0


@contextmanager
def holding(request: Request) -> Iterator[None]:
    """Count a held request while the block runs, and watch for the shutdown."""
    global held  # noqa: PLW0603 - of this process
    held += 1
    try:
        with shutdown.watched(request.scope.get("server")):
            yield
    finally:
        held -= 1


async def poll(request: Request) -> Response:
    """Hold a request."""
    with holding(request):
        async with asyncio.timeout(LIMIT):
            await ended.wait()
    return JSONResponse({"version": 1})


async def events(request: Request) -> Response:
    """Hold a stream."""

    async def pieces() -> AsyncIterator[bytes]:
        with holding(request):
            yield b"data: 1\n\n"
            async with asyncio.timeout(LIMIT):
                await ended.wait()

    return StreamingResponse(pieces(), media_type="text/event-stream")


async def state(_: Request) -> Response:
    """Return the process and the numbers of its held requests and of all requests."""
    global count  # noqa: PLW0603 - of this process
    count += 1
    return JSONResponse({"process": os.getpid(), "held": held, "requests": count})


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    """Restore the signal handlers at the end."""
    yield
    shutdown.close()


app = Starlette(
    routes=[Route("/poll", poll), Route("/poll/events", events), Route("/", state)],
    lifespan=lifespan,
)
