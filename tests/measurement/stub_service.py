"""A service whose responses a test chooses: it makes the mistakes that a real one must not make."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class PollAnswer(NamedTuple):
    """The response to a poll."""

    status: int
    version: int
    state: str
    cache_status: str = "hit; ttl=3"


class StubService(ThreadingHTTPServer):
    """Answers each poll as a function says, and each change with the next version.

    Args:
        answer: called for each poll.

    Attributes:
        asked: `If-None-Match` and `Prefer` of the polls.
        changes: the paths of the other requests.
        refused: the last parts of paths of changes that are answered 409.
    """

    daemon_threads = True

    def __init__(self, answer: Callable[[], PollAnswer]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.asked: list[tuple[str | None, str | None]] = []
        self.changes: list[str] = []
        self.refused: set[str] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StubService

    def do_GET(self) -> None:
        self.server.asked.append((self.headers.get("If-None-Match"), self.headers.get("Prefer")))
        self.reply(self.server.answer())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.changes.append(self.path)
        step = self.path.rpartition("/")[2]
        status, version = {
            "jobs": (202, 1),
            "approve": (200, 4),
            "render": (202, 5),
            "progress": (200, 6),
            "complete": (200, 7),
        }[step]
        if step in self.server.refused:
            status = 409
        self.reply(PollAnswer(status, version, "whatever"))

    def reply(self, answer: PollAnswer) -> None:
        terminal = answer.state == "completed"
        job = {"id": 1, "version": answer.version, "status": answer.state, "terminal": terminal}
        body = json.dumps(job | {"updated_at": "2026-11-24T08:00:00Z"}).encode()
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Status", f"jobcache; {answer.cache_status}")
        self.send_header("ETag", f'"{answer.version}-0"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def stub_service(answer: Callable[[], PollAnswer]) -> Iterator[StubService]:
    """Run the service while the block runs."""
    server = StubService(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
