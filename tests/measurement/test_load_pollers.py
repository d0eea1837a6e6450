"""The load test's users notice wrong answers: a service that makes mistakes is no success."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests.record import percentile

ROOT = Path(__file__).parents[2]

# Status, version and state of one poll after the other.
POLLS = [
    (200, 3, "storyboard_ready"),
    (200, 6, "rendering"),
    (200, 5, "rendering"),  # older than what was shown before
    (500, 0, ""),
    (200, 8, "completed"),
]


class Mistaken(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    polls: Iterator[tuple[int, int, str]]
    asked: list[tuple[str | None, str | None]]

    def do_GET(self) -> None:
        self.asked.append((self.headers.get("If-None-Match"), self.headers.get("Prefer")))
        status, version, state = next(self.polls)
        self.reply(status, version, state, "fwd=miss" if version == 8 else "hit; ttl=3")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        step = self.path.rpartition("/")[2]
        status, version = {"jobs": (202, 1), "approve": (200, 4), "render": (202, 5)}[step]
        self.reply(status, version, "whatever", "")

    def reply(self, status: int, version: int, state: str, how: str) -> None:
        job = {"id": 1, "version": version, "status": state, "terminal": state == "completed"}
        body = json.dumps(job | {"updated_at": "2026-11-24T08:00:00Z"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Status", f"jobcache; {how}")
        self.send_header("ETag", f'"{version}-0"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mistaken_url() -> Iterator[str]:
    Mistaken.asked = []
    Mistaken.polls = itertools.chain(POLLS, itertools.repeat(POLLS[-1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mistaken)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("mode", "asked"),
    [("plain", (None, None)), ("etag", ('"6-0"', None)), ("wait", ('"6-0"', "wait=25"))],
)
def test_wrong_answers_are_failures(
    tmp_path: Path, mistaken_url: str, mode: str, asked: tuple[str | None, str | None]
) -> None:
    report = tmp_path / "report.json"
    options = "OwnJob --headless --only-summary --users 1 --run-time 20s --interval 0.05 --mode"
    subprocess.run(
        [
            *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "pollers.py")),
            *(*options.split(), mode, "--host", mistaken_url, "--report", str(report)),
        ],
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    seen = json.loads(report.read_text())
    assert seen["requests"] == {"create": 1, "poll": 5, "approve": 1, "render": 1}
    assert seen["failures"] == {"poll": 2}
    assert seen["errors"] == ["poll: version 5 after 6", "poll: status 500, not 200"]
    assert (seen["jobs"], seen["completed"], seen["changes"]) == (1, 1, 8)
    assert (seen["first_polls"], seen["first_polls_missed"]) == (3, 1)
    assert Mistaken.asked == [(None, None)] * 2 + [asked] * 3
    assert (seen["update_polls"], seen["updates"]) == (4, 2)  # from version 6 to 8
    assert seen["delay_ms"]["max"] > 0
    assert seen["received_bytes"] > 8 * 100 < seen["sent_bytes"]


def test_percentiles_are_values_that_occurred() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, p) for p in (1, 50, 80, 81, 100)] == [1.0, 3.0, 4.0, 5.0, 5.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None
