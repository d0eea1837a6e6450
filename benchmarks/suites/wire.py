"""Poll hits through the service's protocol class, without sockets.

This measures the service's own part of a poll. The work of the kernel and the event loop for a
connection is left out; with few connections it is most of the cost.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.server import ServerState

from app.http.fast_path_protocol import FastPathProtocol
from app.http.lifespan_state import FAST_PATH
from app.jobs.cache_keys import progress_key
from app.main import create_app
from app.settings import Settings
from benchmarks.document import DOCUMENT
from benchmarks.interleaving import Subject, cost, take_turns
from benchmarks.results import Section
from jobcache import CacheSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from jobcache import Document

OURS = "memory, without sockets"
SCALE = (1, 8, 32, 128, 512)

_JOB = 41
REQUEST = f"GET /api/v2/jobs/{_JOB} HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n".encode()
"""A poll of the job."""


class Sink(asyncio.Transport):
    """A connection whose other end takes everything, and counts it."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000), "sockname": ("127.0.0.1", 8000)})
        self.answers = 0
        self.last = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Count a response, and keep it."""
        self.answers += 1
        self.last = bytes(data)

    def is_closing(self) -> bool:
        """Return False: the connection stays open."""
        return False

    def get_write_buffer_size(self) -> int:
        """Return 0: everything has been taken."""
        return 0

    def close(self) -> None:
        """Count nothing: nobody is at the other end."""


@asynccontextmanager
async def wired() -> AsyncIterator[Callable[[], tuple[FastPathProtocol, Sink]]]:
    """What connects to an application on `memory` that holds the job of `REQUEST`."""
    with tempfile.TemporaryDirectory(prefix="jobcache-") as place:
        update = {"var_dir": Path(place), "database_url": f"sqlite+aiosqlite:///{place}/none.db"}
        settings = Settings(cache=CacheSettings(backend="memory")).model_copy(update=update)
        app = create_app(settings)

        async def load() -> Document:
            # of a status that lasts longer than all turns
            return replace(DOCUMENT, status="completed")

        await app.state.services.cache.read(progress_key(_JOB), load)
        config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False)
        config.load()

        def connect() -> tuple[FastPathProtocol, Sink]:
            protocol, sink = (
                FastPathProtocol(config, ServerState(), {FAST_PATH: app.fast_path}),
                Sink(),
            )
            protocol.connection_made(sink)
            return protocol, sink

        yield connect


async def wire(*, operations: int, turns: int, scale: Sequence[int] = SCALE) -> Section:
    """The section. `operations` are those of a turn."""
    async with wired() as connect:
        subjects = []
        for count in scale:
            polls = _polls([connect() for _ in range(count)], operations)
            how = "bytes handed to the protocol, in turn to each connection"
            subjects.append(Subject(OURS, "ours", how, cost(operations, polls), count))
        return Section(
            "wire",
            "Our own part of a hit by the number of connections",
            f"{operations} polls of one job, of {len(DOCUMENT.body)} bytes, without sockets",
            "µs",
            more_is_better=False,
            reference=OURS,
            scale="connections",
            series=await take_turns(subjects, turns),
        )


def _polls(
    connections: Sequence[tuple[FastPathProtocol, Sink]], operations: int
) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        before = sum(sink.answers for _, sink in connections)
        for protocol, _ in islice(cycle(connections), operations):
            protocol.data_received(REQUEST)
        assert sum(sink.answers for _, sink in connections) - before == operations
        assert all(sink.last.endswith(DOCUMENT.body) for _, sink in connections[:operations])

    return work
