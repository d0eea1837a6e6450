"""Connections that are silent, slow or do not read are closed; held requests are not."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from tests.app.http.test_exchange import connected, rest, statuses, without_httptools
from tests.app.process import Process, serving

SHORT = {
    "JOBCACHE_RENDERER": "simulated",
    "JOBCACHE_SIMULATED_SECONDS": "600",
    "JOBCACHE_HEADER_TIMEOUT": "0.6",
    "JOBCACHE_BODY_TIMEOUT": "0.6",
    "JOBCACHE_SEND_TIMEOUT": "0.6",
    "JOBCACHE_DISCARD_TIMEOUT": "0.6",
    "JOBCACHE_KEEP_ALIVE": "1.2",
    "JOBCACHE_MAX_CONNECTIONS": "60",
    "JOBCACHE_HEARTBEAT_SECONDS": "0.9",
}
HEAD = (
    b"POST /api/v2/cache/invalidate HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\n"
)


IMPLEMENTATIONS = ["httptools", "h11"]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """A service for each implementation of HTTP, to be waited for together."""
    with ExitStack() as stack:
        running = []
        for implementation in IMPLEMENTATIONS:
            directory = tmp_path_factory.mktemp("timeouts")
            other = without_httptools(directory) if implementation == "h11" else {}
            running.append(stack.enter_context(serving(directory, **SHORT, **other)))
        yield running


@pytest.fixture(params=IMPLEMENTATIONS)
def service(request: pytest.FixtureRequest, services: list[Process]) -> Process:
    return services[IMPLEMENTATIONS.index(request.param)]


def new_job(service: Process) -> int:
    body = {"client_id": "acme", "prompt": "A cat sits. " * 60, "renderer": "external"}
    job_id: int = service.http.post("/api/v2/jobs", json=body).json()["id"]
    service.until(job_id, "storyboard_ready")
    return job_id


BEGUN: dict[str, tuple[bytes, list[int]]] = {
    "silent": (b"", []),
    "head": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", [408]),
    "body": (HEAD + b"Content-Length: 20\r\n\r\n{", [408]),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", [408]),
    "idle": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", [200]),
    "next head": (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET", [200, 408]),
    "rest": (b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n", [404]),
}


def test_a_client_that_falls_silent_is_closed(services: list[Process]) -> None:
    """Clients that fall silent at different places, all at once."""
    with ExitStack() as stack:
        clients = []
        for service in services:
            for place, (begun, _) in BEGUN.items():
                client = stack.enter_context(connected(service))
                client.sendall(begun)
                clients.append((place, client))
        answers = [(place, statuses(rest(client))) for place, client in clients]
    expected = [(place, answer) for place, (_, answer) in BEGUN.items()]
    assert answers == expected * len(services)


def test_a_head_does_not_get_more_time_with_each_byte(service: Process) -> None:
    with connected(service) as connection:
        connection.settimeout(0.1)
        said, sent = b"", 0
        connection.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                connection.send(b"x")
                sent += 1
                piece = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not piece:
                break
            said += piece
        else:
            raise AssertionError("still open")
    assert statuses(said) == [408]
    assert sent > 1


def test_a_body_that_keeps_coming_is_given_its_time(services: list[Process]) -> None:
    body = b'{"job_id": 1}'
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(service)) for service in services]
        for client in clients:
            client.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 2):
            time.sleep(0.12)
            for client in clients:
                client.sendall(body[at : at + 2])
        assert [statuses(rest(client)) for client in clients] == [[200]] * len(services)


def test_held_requests_are_not_ended(services: list[Process]) -> None:
    """All limits in time are shorter than what these last."""
    poll = (
        b"GET /api/v2/jobs/%d HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=2\r\n"
        b"If-None-Match: %b\r\n\r\n"
    )
    stream = b"GET /api/v2/jobs/%d/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        held = []
        for service in services:
            job = new_job(service)
            version = service.http.get(f"/api/v2/jobs/{job}").headers["etag"].encode()
            polling = stack.enter_context(connected(service))
            streaming = stack.enter_context(connected(service))
            polling.sendall(poll % (job, version))
            streaming.sendall(stream % job)
            held.append((polling, streaming))
        for polling, streaming in held:
            assert statuses(polling.recv(65536)) == [304]
            said = b""
            while said.count(b"\n:\n\n") + said.count(b"\r\n:\n\n") < 2:
                piece = streaming.recv(65536)
                assert piece, said
                said += piece


def test_a_client_that_does_not_read_is_cut_off(service: Process) -> None:
    job = new_job(service)
    polls = b"GET /api/v2/jobs/%d/storyboard HTTP/1.1\r\nHost: localhost\r\n\r\n" % job
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        connection.connect(("127.0.0.1", service.port))
        connection.settimeout(30)  # longer than it takes, shorter than for ever
        cut_off = False
        while not cut_off:
            try:
                connection.sendall(polls * 1000)
            except (ConnectionResetError, BrokenPipeError):
                cut_off = True


def test_connections_over_the_limit_are_refused_and_others_served(service: Process) -> None:
    with ExitStack() as stack:
        ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        stop = threading.Event()
        stack.callback(stop.set)
        said: list[int] = []
        for _ in range(90):
            connection = stack.enter_context(connected(service))
            with suppress(OSError):
                connection.sendall(ask)
                said += statuses(connection.recv(65536))
        assert 40 <= said.count(200) <= 60
        assert said.count(503) >= 20
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # their places are free again
        with connected(service) as connection:
            connection.sendall(ask)
            if statuses(connection.recv(65536)) == [200]:
                return
    raise AssertionError("no place became free")


def test_few_descriptors_leave_some_free(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard not in (-1, soft) and hard < 4096:
        pytest.skip("the limit is low already")
    environment = {"JOBCACHE_RENDERER": "simulated"}
    script = "import resource,sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
    (tmp_path / "sitecustomize.py").write_text(script)
    environment["PYTHONPATH"] = f"{tmp_path}:{Path(__file__).parents[2]}"
    with serving(tmp_path, measured=False, **environment) as service:
        assert re.search(r"only 256 files may be open: 128 connections", service.log.read_text())
        with ExitStack() as stack:
            for _ in range(220):
                with suppress(OSError):
                    stack.enter_context(connected(service))
            made = service.http.post(
                "/api/v2/jobs", json={"client_id": "acme", "prompt": "A cat sits."}
            )
            assert made.status_code == 202
            assert service.http.get("/readyz").status_code == 200
