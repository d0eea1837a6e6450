"""The benchmarks' load generator counts right answers, and takes no others."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.constant import constant_server
from benchmarks.document import DOCUMENT
from benchmarks.drivers import Driver, driver
from benchmarks.generator import WrongAnswer, get, load


# The best that is installed, which is wrk if it can be, and the one that always is.
@pytest.fixture(scope="module", params=["", "processes"])
def asks(request: pytest.FixtureRequest) -> Iterator[Driver]:
    with driver(request.param) as made:
        assert ("generator" in made.words) == (
            request.param == "processes" or shutil.which("wrk") is None
        )
        yield made


class StubServer(ThreadingHTTPServer):
    """A server that keeps the paths and numbers of the requests that it got.

    It keeps them itself: a handler of an earlier test may still be at a request that its client
    sent before it gave up.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.served: list[str] = []
        self.numbers: list[str] = []


class StubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubServer

    def do_GET(self) -> None:
        self.server.served.append(self.path)
        getattr(self, self.path.removeprefix("/"))()

    def right(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def in_pieces(self) -> None:
        for piece in (b"HTTP/1.1 20", b"0 OK\r\nContent-Length: 2\r", b"\n\r\n", b"{", b"}"):
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(0.005)

    def not_modified(self) -> None:
        assert self.headers["If-None-Match"] == '"7-0"'
        self.wfile.write(b"HTTP/1.1 304 Not Modified\r\n\r\n")

    def numbered(self) -> None:
        self.server.numbers.append(self.headers["X-Number"])
        self.right()

    def both(self) -> None:
        assert self.headers["X-Other"] == "b c"
        self.numbered()

    def missing(self) -> None:
        self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    def cut_off(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[StubServer]:
    server = StubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/right", "/in_pieces", "/not_modified"])
def test_every_answer_is_counted_once(server: StubServer, path: str) -> None:
    found = load(server.server_port, [get(path, 'If-None-Match: "7-0"')] * 4, 0.2)
    assert found.answers == len(server.served) >= 4
    assert found.seconds > 0.19
    assert found.per_second == found.answers / found.seconds
    assert found.busy > 0
    assert len(found.latencies_ms) == found.answers
    assert 0 < min(found.latencies_ms) <= max(found.latencies_ms) < 1000 * found.seconds + 1


def test_fewer_connections_than_requests_go_through_them_all(server: StubServer) -> None:
    not_modified = get("/not_modified", 'If-None-Match: "7-0"')
    load(server.server_port, [get("/right"), get("/in_pieces"), not_modified], 0.2, 1)
    assert set(server.served) == {"/right", "/in_pieces", "/not_modified"}


def test_every_driver_says_the_same_of_a_server_of_constant_bytes(asks: Driver) -> None:
    with constant_server() as constant:
        pace = asks.load(
            constant.port, [("/1", ""), ("/2", 'If-None-Match: "7-0"')], connections=4, seconds=0.2
        )
        assert pace.answers > 100
        assert len(DOCUMENT.body) < pace.bytes < len(DOCUMENT.body) + 400
        latencies = list(pace.latency_ms.values())
        assert latencies == sorted(latencies)
        assert latencies[0] > 0
        assert 0 < pace.busy < 2


def test_numbers_are_not_given_twice(server: StubServer, asks: Driver) -> None:
    for _ in range(2):
        asks.load(server.server_port, [("/numbered", "X-Number: a%d")], connections=2, seconds=0.2)
    assert len(set(server.numbers)) == len(server.numbers) > 10
    assert all(number[1:].isdigit() for number in server.numbers)


def test_a_request_has_all_of_its_headers(server: StubServer, asks: Driver) -> None:
    headers = "X-Other: b c\r\nX-Number: %d"
    asks.load(server.server_port, [("/both", headers)], connections=2, seconds=0.2)
    assert len(set(server.numbers)) == len(server.numbers) > 10


def test_no_driver_takes_failures_for_answers(server: StubServer, asks: Driver) -> None:
    with pytest.raises(WrongAnswer):
        asks.load(server.server_port, [("/missing", "")], connections=2, seconds=0.2)


@pytest.mark.parametrize(("path", "reason"), [("/missing", "404"), ("/cut_off", "closed")])
def test_anything_else_ends_the_run(server: StubServer, path: str, reason: str) -> None:
    with pytest.raises(WrongAnswer, match=reason):
        load(server.server_port, [get("/right"), get(path)], 5)
