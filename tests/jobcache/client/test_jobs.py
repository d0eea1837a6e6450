"""Both clients for jobs, the asynchronous and the synchronous one."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from jobcache.client import AsyncJobs, Job, Jobs, Unavailable, WaitTimeout
from jobcache.client.core.messages import Response
from tests.jobcache.client.job_responses import body, document, error


class Sleeps:
    """Stands in for `sleep`, both kinds, and takes no time."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)

    async def awaited(self, seconds: float) -> None:
        self.taken.append(seconds)


Handler = Callable[[httpx.Request], httpx.Response]


class Either:
    """One client, asynchronous or not, called alike."""

    def __init__(self, kind: str, handler: Handler, key: str | None = None) -> None:
        self.sleeps = Sleeps()
        transport = httpx.MockTransport(handler)
        self.client: AsyncJobs | Jobs
        if kind == "async":
            self.client = AsyncJobs(
                "http://test/",
                key,
                http=httpx.AsyncClient(transport=transport),
                sleep=self.sleeps.awaited,
            )
        else:
            self.client = Jobs(
                "http://test/", key, http=httpx.Client(transport=transport), sleep=self.sleeps
            )

    async def __call__(self, name: str, *arguments: Any, **options: Any) -> Job:
        result = getattr(self.client, name)(*arguments, **options)
        job: Job = await result if asyncio.iscoroutine(result) else result
        return job


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def scripted(replies: list[Response | Exception], seen: list[httpx.Request]) -> Handler:
    left = iter(replies)

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status, headers=dict(reply.headers), content=reply.body)

    return handle


async def test_a_job_is_followed_through_failures(kind: str) -> None:
    seen: list[httpx.Request] = []
    replies = [
        document(1, retry_after="2"),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("closed"),
        error(503, retry_after="3"),
        document(2, "completed"),
    ]
    either = Either(kind, scripted(replies, seen), key="secret")
    versions: list[int] = []
    job = await either("wait_for", 7, on_progress=lambda job: versions.append(job.version))
    assert (job.version, versions) == (2, [1, 2])
    assert len(either.sleeps.taken) == 4
    assert either.sleeps.taken[3] >= 3
    assert {str(request.url) for request in seen} == {"http://test/api/v2/jobs/7"}
    assert {request.headers["Authorization"] for request in seen} == {"Bearer secret"}
    assert seen[1].headers["If-None-Match"] == '"1-0"'
    assert seen[1].extensions["timeout"]["read"] == 35
    assert either.client.counts.failed == 4


async def test_an_error_of_on_progress_ends_the_wait(kind: str) -> None:
    def raise_(job: Job) -> None:
        raise LookupError(job.version)

    seen: list[httpx.Request] = []
    either = Either(kind, scripted([document(1)], seen))
    with pytest.raises(LookupError, match="1"):
        await either("wait_for", 7, on_progress=raise_)


async def test_the_asynchronous_client_awaits_on_progress() -> None:
    order: list[str] = []

    async def on_progress(job: Job) -> None:
        await asyncio.sleep(0)
        order.append(f"version {job.version}")

    replies = [document(1), document(2, "failed", preference_applied="wait=25")]
    handle = scripted(list(replies), [])

    def noted(request: httpx.Request) -> httpx.Response:
        order.append("request")
        return handle(request)

    await Either("async", noted)("wait_for", 7, on_progress=on_progress)
    assert order == ["request", "version 1", "request", "version 2"]


async def test_creating_a_job_is_repeated_under_one_key_and_a_transition_is_not(kind: str) -> None:
    seen: list[httpx.Request] = []
    made = Response(202, {"etag": '"1-0"'}, body(1, "pending"))
    lost = httpx.ReadError("reset")
    either = Either(kind, scripted([lost, made, made, lost, document(1), lost, lost, lost], seen))
    await either("create", "acme", "A cat.", scenes=2)
    await either("create", "acme", "A cat.", idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for request in seen]
    assert keys[0] == keys[1] != keys[2] == "mine"
    assert json.loads(seen[1].content) == {"client_id": "acme", "prompt": "A cat.", "scenes": 2}
    assert (await either("get", 7)).version == 1
    for step in ("approve", "render", "cancel"):
        with pytest.raises(Unavailable, match=step):
            await either(step, 7)
    assert [request.url.path for request in seen[5:]] == [
        f"/api/v2/jobs/7/{step}" for step in ("approve", "render", "cancel")
    ]


async def test_an_address_or_a_key_that_cannot_be_sent_is_not_tried_again(kind: str) -> None:
    seen: list[httpx.Request] = []
    either = Either(kind, scripted([httpx.UnsupportedProtocol("no scheme")], seen))
    with pytest.raises(httpx.UnsupportedProtocol):
        await either("wait_for", 7)
    assert len(seen) == 1


async def test_a_client_of_ones_own_stays_open_and_ours_does_not(kind: str) -> None:
    if kind == "async":
        async with httpx.AsyncClient(base_url="http://test") as http:
            async with AsyncJobs("", http=http):
                pass
            assert not http.is_closed
        async with AsyncJobs("http://test") as ours:
            assert ours.counts.requests == 0
        assert ours._runner.http.is_closed
    else:
        with httpx.Client(base_url="http://test") as http_sync:
            with Jobs("", http=http_sync):
                pass
            assert not http_sync.is_closed
        with Jobs("http://test") as ours_sync:
            assert ours_sync.counts.requests == 0
        assert ours_sync._runner.http.is_closed


@pytest.fixture
def dripping() -> Iterator[str]:
    """A server whose answer never ends, though something always comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"x")
                    except OSError:
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join()


async def test_an_answer_that_drips_does_not_outlast_the_time_to_wait(dripping: str) -> None:
    async with asyncio.timeout(60), AsyncJobs(dripping) as jobs:
        with pytest.raises(WaitTimeout):
            await jobs.wait_for(7, timeout=0.2)


@pytest.mark.timeout(60)
def test_an_answer_that_drips_does_not_hold_a_thread_either(dripping: str) -> None:
    with Jobs(dripping) as jobs, pytest.raises(WaitTimeout):
        jobs.wait_for(7, timeout=0.2)


def test_the_library_needs_no_httpx() -> None:
    program = "import sys, jobcache; sys.exit('httpx' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


async def test_a_storyboard_is_got_by_both(kind: str) -> None:
    either = Either(kind, lambda _: httpx.Response(200, content=b'{"scenes": []}'))
    assert await either("storyboard", 7) == {"scenes": []}
