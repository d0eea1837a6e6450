"""The benchmarks' load generator counts right answers, and takes no others."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.generator import WrongAnswer, get, load


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: list[str]

    def do_GET(self) -> None:
        self.served.append(self.path)
        getattr(self, self.path.removeprefix("/"))()

    def right(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def in_pieces(self) -> None:
        for piece in (b"HTTP/1.1 20", b"0 OK\r\nContent-Length: 2\r", b"\n\r\n", b"{", b"}"):
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(0.005)

    def missing(self) -> None:
        self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}")

    def cut_off(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}")
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    Answers.served = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["/right", "/in_pieces"])
def test_every_answer_is_counted_once(port: int, path: str) -> None:
    found = load(port, [get(path)] * 4, 0.2)
    assert found.answers == len(Answers.served) >= 4
    assert found.seconds > 0.19
    assert found.per_second == found.answers / found.seconds
    assert found.busy > 0


@pytest.mark.parametrize(("path", "reason"), [("/missing", "404"), ("/cut_off", "closed")])
def test_anything_else_ends_the_run(port: int, path: str, reason: str) -> None:
    with pytest.raises(WrongAnswer, match=reason):
        load(port, [get("/right"), get(path)], 5)
