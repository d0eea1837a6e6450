"""How many Python functions of our own a poll and a progress update call, counted and printed.

A call is the entry of a function, comprehension or generator whose file is in `jobcache/` or
`app/`; that a coroutine goes on is none. Counts repeat where times do not.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

import pytest
import uvicorn
from uvicorn.server import ServerState

import app
import jobcache
from app.http.fast_path_protocol import FastPathProtocol
from app.http.lifespan_state import FAST_PATH
from app.jobs import documents
from app.jobs.schemas import JobBody
from jobcache.backends.redis.tracking.feed import TrackingFeed
from jobcache.backends.tiered import TieredBackend
from tests.app.running import Service, choosing, starting

OWN = tuple(f"{Path(str(package.__file__)).parent}/" for package in (jobcache, app))
TRIES = 12
"""Some of the calls are made twice a second only; the fewest of so many tries have none of them."""


class Calls:
    """Counts calls while the block runs."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        # The operand of RESUME is 0 where a function begins, and not where it goes on.
        if event == "call" and code.co_filename.startswith(OWN):
            self.count += code.co_code[frame.f_lasti + 1] == 0


async def fewest(
    work: Callable[[], Awaitable[object]], before: Callable[[], Awaitable[object]]
) -> int:
    """The fewest calls of `work` in several tries."""
    counts = []
    for _ in range(TRIES):
        await before()
        with Calls() as calls:
            await work()
        counts.append(calls.count)
    return min(counts)


class Poller(asyncio.Protocol):
    """A client with one connection, in this very loop and thread."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[bytes] | None = None
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
        if body and len(body) == length and self._answer is not None:
            self._answer.set_result(self._received)

    async def poll(self, path: str) -> bytes:
        self._answer, self._received = asyncio.get_running_loop().create_future(), b""
        self._transport.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        async with asyncio.timeout(60):
            return await self._answer

    def close(self) -> None:
        self._transport.close()


class Served:
    """A service on one backend, with a job that is rendered, and a poller."""

    def __init__(self, service: Service, poller: Poller, job_id: int) -> None:
        self.service = service
        self._poller = poller
        self.job_id = job_id
        self._percent = 0.0

    async def poll(self) -> None:
        answer = await self._poller.poll(f"/api/v2/jobs/{self.job_id}")
        assert b"jobcache; hit;" in answer

    async def update(self) -> None:
        self._percent += 1
        jobs = self.service.services.jobs
        await jobs.report_progress(self.job_id, self._percent, "stage", "message", worker=True)

    async def local_tier_is_empty(self) -> None:
        """Change the job, and wait until the feed has told of everything."""
        await self.update()
        backend = self.service.services.cache.backend
        assert isinstance(backend, TieredBackend)
        feed = backend.feed()
        assert isinstance(feed, TrackingFeed)
        async with asyncio.timeout(60):
            while not feed.live:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.02)  # a report that is late costs a try, and no more


@pytest.fixture(params=["memory", "redis", "tiered"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    async with starting(tmp_path)(**choosing(request, request.param)) as service:
        transport: Any = service.http._transport
        config = uvicorn.Config(transport.app, lifespan="off", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        state.default_headers = [(b"server", b"test")]

        def protocol() -> FastPathProtocol:
            made = FastPathProtocol(config, state, {FAST_PATH: transport.app.fast_path})
            made.access_log = False  # pytest listens to every logger
            return made

        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        _, poller = await loop.create_connection(Poller, "127.0.0.1", port)
        job = await service.rendering()
        await service.job(job["id"])
        yield Served(service, poller, job["id"])
        poller.close()
        server.close()


def check(capsys: pytest.CaptureFixture[str], what: str, count: int, most: int) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: {count} calls of our own, at most {most}\n")
    assert count <= most


@pytest.mark.parametrize(
    ("served", "most"), [("memory", 25), ("redis", 45), ("tiered", 25)], indirect=["served"]
)
async def test_a_hit(served: Served, most: int, capsys: pytest.CaptureFixture[str]) -> None:
    count = await fewest(served.poll, served.poll)
    check(capsys, f"a hit on {served.service.services.cache.backend.name}", count, most)


@pytest.mark.parametrize("served", ["tiered"], indirect=True)
async def test_the_first_poll_after_a_change(
    served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    await served.poll()
    count = await fewest(served.poll, served.local_tier_is_empty)
    hit = await fewest(served.poll, served.poll)
    assert count > hit, "it was answered by the local tier"
    check(capsys, "the first poll after a change on tiered", count, 80)


@pytest.mark.parametrize("served", ["redis"], indirect=True)
async def test_a_progress_update(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    tasks: list[str] = []
    loop = asyncio.get_running_loop()

    def create(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        if work.cr_code.co_filename.startswith(OWN):  # the database's driver makes one, too
            tasks.append(str(work))
        return asyncio.Task(work, loop=loop, **options)

    count = await fewest(served.update, served.poll)
    check(capsys, "a progress update on redis", count, 150)
    loop.set_task_factory(create)
    await served.update()
    loop.set_task_factory(None)
    assert len(tasks) <= 1, tasks


@pytest.mark.parametrize("served", ["redis"], indirect=True)
async def test_a_progress_update_builds_its_document_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One document is published to the cache and sent to the worker."""
    made: list[int] = []

    def counted(**fields: Any) -> JobBody:
        made.append(fields["version"])
        return JobBody(**fields)

    monkeypatch.setattr(documents, "JobBody", counted)
    job = await served.service.post(f"{served.job_id}/progress", percent=50)
    assert made == [job["version"]]
