"""The least a web server can do: the same bytes to everybody, with the headers of a poll.

It shows how fast the load generator can be, and what a poll costs that is not the service's doing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from app.devservers import free_port
from benchmarks.document import DOCUMENT
from benchmarks.process import Process
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Generator

    from starlette.types import Receive, Scope, Send

_START = 15.0  # seconds to listen
_PAUSE = 0.02  # seconds between two looks
_HEADERS = [
    (b"etag", b'"7-0"'),
    (b"cache-control", b"private, no-cache"),
    (b"vary", b"Accept-Encoding"),
    (b"cache-status", b"jobcache; hit; ttl=20; detail=memory"),
    (b"retry-after", b"6"),
    (b"age", b"3"),
    (b"content-type", b"application/json"),
    (b"content-length", str(len(DOCUMENT.body)).encode()),
]


async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
    """An ASGI application."""
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": DOCUMENT.body})


@contextlib.contextmanager
def constant_server() -> Generator[int, None, None]:
    """Run it under uvicorn, in a process of its own. Gives its port."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "uvicorn", "benchmarks.constant:app"),
        *("--app-dir", str(Path(__file__).parents[1]), "--host", HOST, "--port", str(port)),
        *("--lifespan", "off", "--no-access-log"),
    ]
    with Process(command, os.environ) as process:
        deadline = time.monotonic() + _START
        while not _listens(port):
            assert process.alive, process.last_words()
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(_PAUSE)
        yield port


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
