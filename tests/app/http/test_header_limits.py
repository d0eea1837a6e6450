"""URLs and headers that are too large are refused, and are not held while they come in."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pytest

from app.http.limits import HEAD_BYTES, HEADERS, URL_BYTES
from tests.app.process import Process, serving

MOST = 64 * 1024 * 1024
"""What a client pours into a request at most; a process that holds it all would be seen."""
HELD = 16 * 1024 * 1024
START = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = (
    b"POST /api/v2/cache/invalidate HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with serving(tmp_path_factory.mktemp("heads")) as running:
        yield running


def connected(service: Process) -> closing[socket.socket]:
    host, port = service.url.removeprefix("http://").split(":")
    made = socket.create_connection((host, int(port)), timeout=20)
    return closing(made)


def answer(connection: socket.socket) -> bytes:
    """All that the service says until it hangs up."""
    said = b""
    try:
        while piece := connection.recv(65536):
            said += piece
    except (
        ConnectionResetError
    ):  # the server closed the connection while the client was still sending
        pass
    return said


def ask(service: Process, request: bytes) -> tuple[int, bytes]:
    with connected(service) as connection:
        connection.sendall(request)
        said = answer(connection)
    return int(said.split(b" ", 2)[1]), said


def request(*, url: bytes = b"/healthz", headers: bytes = b"") -> bytes:
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n" % (url, headers)


def test_what_is_within_the_limits_is_answered(service: Process) -> None:
    for inside in (
        request(),
        request(url=b"/healthz?" + b"x" * (URL_BYTES - 9)),
        request(headers=b"X: %b\r\n" % (b"x" * (HEAD_BYTES - 100))),
        request(headers=b"X: x\r\n" * (HEADERS - 2)),
    ):
        assert ask(service, inside)[0] == 200


@pytest.mark.parametrize(
    ("outside", "status"),
    [
        (request(url=b"/healthz?" + b"x" * URL_BYTES), 414),
        (request(headers=b"X: %b\r\n" % (b"x" * HEAD_BYTES)), 431),
        (request(headers=b"%b: x\r\n" % (b"x" * HEAD_BYTES)), 431),
        (request(headers=b"X: x\r\n" * HEADERS), 431),
        (request(headers=b"X: %b\r\n" % (b"x" * 1000) * 20), 431),
        (request(url=b"/healthz?" + b"x" * 8000, headers=b"X: %b\r\n" % (b"x" * 8500)), 431),
    ],
)
def test_what_is_beyond_is_refused_with_a_problem(
    service: Process, outside: bytes, status: int
) -> None:
    answered, said = ask(service, outside)
    assert answered == status
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert b"content-length: %d" % len(body) in head
    assert json.loads(body)["status"] == status


def test_a_refused_request_is_not_run(service: Process) -> None:
    before = service.http.get("/api/v2/jobs").json()
    body = b'{"client_id": "acme", "prompt": "x"}'
    head = b"POST /api/v2/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n" % len(body)
    assert ask(service, head + length + b"X: x\r\n" * HEADERS + b"\r\n" + body)[0] == 431
    assert service.http.get("/api/v2/jobs").json() == before


def test_each_request_of_a_connection_has_the_limit_to_itself(service: Process) -> None:
    connection = HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    with closing(connection):
        for _ in range(5):
            connection.request("GET", "/healthz", headers={"X": "x" * (HEAD_BYTES // 2)})
            kept = connection.sock
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"alive"}')
            assert connection.sock is kept


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (START, b"X: x\r\n" * 1000),
        (START + b"X: ", b"x" * 65536),
        (START, b"x" * 65536),
        (b"GET /healthz?", b"x" * 65536),
        (b"", b"\r\n" * 32768),
        (CHUNKED, b"1;" + b"x" * 65536),
        (CHUNKED + b"2\r\n{}\r\n0\r\n", b"X: x\r\n" * 1000),
    ],
    ids=["headers", "value", "name", "url", "blank-lines", "chunk-extension", "trailers"],
)
def test_what_never_ends_is_cut_off(service: Process, begun: bytes, piece: bytes) -> None:
    process = psutil.Process(service.child.pid)
    before = process.memory_info().rss
    sent = 0
    with connected(service) as connection:
        try:
            connection.sendall(begun)
            while sent < MOST:
                sent += connection.send(piece)
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert sent < MOST, "it hung up"
    assert process.memory_info().rss - before < HELD
    assert service.http.get("/healthz").status_code == 200


def test_a_refusal_does_not_pass_for_the_answer_to_an_earlier_request(service: Process) -> None:
    with connected(service) as connection:
        connection.sendall(START + b"\r\n" + request(headers=b"X: x\r\n" * HEADERS))
        said = answer(connection)
    assert re.findall(rb"HTTP/1\.1 (\d\d\d) ", said) == [b"200", b"431"]


def test_a_body_may_come_slowly_and_in_many_pieces(service: Process) -> None:
    with connected(service) as connection:
        connection.sendall(CHUNKED)
        for byte in b'{"job_id": 1}':
            connection.sendall(b"1\r\n%c\r\n" % byte)
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_where_httptools_is_missing_h11_has_the_limit(tmp_path: Path) -> None:
    (tmp_path / "httptools.py").write_text("raise ImportError('not here')\n")
    root = str(Path(__file__).parents[3])
    with serving(tmp_path, PYTHONPATH=f"{tmp_path}:{root}") as service:
        assert ask(service, request())[0] == 200
        sent = 0
        with connected(service) as connection:
            try:
                connection.sendall(START)
                while sent < MOST:
                    sent += connection.send(b"X: x\r\n" * 1000)
            except (ConnectionResetError, BrokenPipeError):
                pass
        assert sent < MOST
