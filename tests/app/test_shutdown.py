"""A process that holds requests is stopped: every client gets a complete response at once."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest
import uvicorn

from app.http.h11_protocol import LimitedH11Protocol
from app.http.serving import protocol
from tests.app.connections import HOST, Connection, connected
from tests.app.process import serving
from tests.app.running import Service, Start

LIMIT = 10  # seconds, after which uvicorn cuts off what still runs


async def rest(connection: Connection) -> bytes:
    """All there is until the other side closes the connection; a reset is an error."""
    async with asyncio.timeout(LIMIT):
        return await connection._reader.read()


def check_wait(received: bytes, version: int) -> None:
    head, end, body = received.partition(b"\r\n\r\n")
    assert end
    assert body == b""
    assert head.startswith(b"HTTP/1.1 304 ")
    assert b'\r\netag: "%d-0"' % version in head
    assert b"\r\nretry-after: 2" in head


def check_stream(received: bytes, version: int) -> None:
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nid: %d\n" % version in body or b"id: %d\n" % version in body
    assert body.endswith(b"\r\n0\r\n\r\n"), "the last chunk says that this is all"


async def hold(connections: list[Connection], streams: int, job_id: int, version: int) -> None:
    path = f"/api/v2/jobs/{job_id}"
    for connection in connections[:streams]:
        connection.send("GET", f"{path}/events")
    for connection in connections[streams:]:
        connection.send("GET", path, If_None_Match=f'"{version}-0"', Prefer="wait=60")


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_deploy_does_not_hang_on_held_requests(tmp_path: Path, workers: int) -> None:
    waits, streams = (200, 50) if workers == 1 else (40, 10)
    backend = "memory" if workers == 1 else "null"
    environment = {"JOBCACHE_WORKERS": str(workers), "JOBCACHE_BACKEND": backend}
    with serving(tmp_path, **environment, JOBCACHE_RENDERER="simulated") as process:
        job_id = await asyncio.to_thread(external, process)
        version = process.http.get(f"/api/v2/jobs/{job_id}").json()["version"]
        async with connected([process.port] * (waits + streams)) as connections:
            await hold(connections, streams, job_id, version)
            # whichever worker a connection has come to, in each there is somebody
            deadline, held = time.monotonic() + 60, 0
            while held < waits + streams:
                assert time.monotonic() < deadline, held
                async with asyncio.timeout(60):
                    probe = await Connection.open(process.port)
                    stats = (await probe.request("GET", "/api/v2/cache/stats")).json()
                    await probe.aclose()
                held = stats["held"]["waits"] + stats["held"]["streams"]
            process.http.close()  # a connection that is idle is closed, as well
            began = time.monotonic()
            process.child.send_signal(signal.SIGTERM)
            received = await asyncio.gather(*map(rest, connections))
            status = await asyncio.to_thread(process.child.wait, LIMIT)
            took = time.monotonic() - began
        for answer in received[:streams]:
            check_stream(answer, version)
        for answer in received[streams:]:
            check_wait(answer, version)
            assert b"\r\nconnection: close\r\n" in answer, "so that nobody asks there again"
        log = process.log.read_text()
    assert status == 0
    assert took < LIMIT, "it was not cut off"
    assert "graceful shutdown exceeded" not in log
    assert "Traceback" not in log


def external(process: object) -> int:
    """A job that an external worker renders."""
    http = process.http  # type: ignore[attr-defined]
    body = {"client_id": "acme", "prompt": "A cat sits.", "renderer": "external"}
    job_id: int = http.post("/api/v2/jobs", json=body).raise_for_status().json()["id"]
    process.until(job_id, "storyboard_ready")  # type: ignore[attr-defined]
    http.post(f"/api/v2/jobs/{job_id}/approve").raise_for_status()
    http.post(f"/api/v2/jobs/{job_id}/render").raise_for_status()
    return job_id


async def test_without_httptools_it_is_the_same(start: Start) -> None:
    async with start() as service:
        job = await service.rendering()
        async with asyncio.timeout(60):
            answers = await ended(service, job)
        check_stream(answers[0], job["version"])
        check_wait(answers[1], job["version"])


async def ended(service: Service, job: dict[str, int]) -> list[bytes]:
    """Return the responses to a stream and a long poll of a server on h11 that is stopped."""
    app = service.http._transport.app  # type: ignore[attr-defined]

    config = uvicorn.Config(
        app, host=HOST, port=0, lifespan="off", log_config=None, http=LimitedH11Protocol
    )
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with connected([port] * 2) as connections:
        await hold(connections, 1, job["id"], job["version"])
        while service.services.cache.info().waiting != (2, 1):
            await asyncio.sleep(0.005)
        server.should_exit = True
        received = await asyncio.gather(*map(rest, connections))
        await running
    return received


async def test_during_a_shutdown_no_request_is_held(start: Start) -> None:
    async with start() as service, asyncio.timeout(60):
        job = await service.rendering()
        headers = {"If-None-Match": f'"{job["version"]}-0"', "Prefer": "wait=60"}
        service.services.held.shutdown.begin()
        answer = await service.http.get(f"/api/v2/jobs/{job['id']}", headers=headers)
        assert answer.status_code == 304
        assert "preference-applied" not in answer.headers
        stream = await service.http.get(f"/api/v2/jobs/{job['id']}/events")
        assert stream.status_code == 503


def test_the_fast_path_of_the_protocol_can_be_switched_off() -> None:
    assert protocol().__name__ == "FastPathProtocol"
    assert protocol(fast=False).__name__ == "Exchange"
