"""A plain ASGI function that sends the bytes and headers of a poll from a constant.

It shows the speed of the load generator, and the cost of a poll without the service.
"""

from __future__ import annotations

import base64
import contextlib
import os
from typing import TYPE_CHECKING

from benchmarks.asgi import Uvicorn
from benchmarks.document import DOCUMENT

if TYPE_CHECKING:
    from collections.abc import Generator

    import httpx
    from starlette.types import ASGIApp, Receive, Scope, Send

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
_ANSWER = "BENCHMARK_ANSWER"
_OF_THE_SERVER = {b"date", b"server"}  # which sends them itself


def constant_response() -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body that this process sends."""
    if _ANSWER not in os.environ:
        return _HEADERS, DOCUMENT.body
    head, _, body = base64.b64decode(os.environ[_ANSWER]).partition(b"\n\n")
    lines = (line.partition(b": ") for line in head.split(b"\n"))
    return [(name, text) for name, _, text in lines], body


def response_settings(answer: httpx.Response) -> dict[str, str]:
    """Return the environment of a process that sends the body and headers of a response."""
    head = [
        name.lower() + b": " + text
        for name, text in answer.headers.raw
        if name.lower() not in _OF_THE_SERVER
    ]
    raw = b"\n".join(head) + b"\n\n" + answer.content
    return {_ANSWER: base64.b64encode(raw).decode()}


def make() -> ASGIApp:
    """Return the ASGI application, for `uvicorn --factory`."""
    headers, body = constant_response()

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


@contextlib.contextmanager
def constant_server(answer: httpx.Response | None = None) -> Generator[Uvicorn, None, None]:
    """Run the function under uvicorn, in its own process.

    Args:
        answer: the response to a poll, whose body and headers are sent; None: similar ones.
    """
    environment = {} if answer is None else response_settings(answer)
    with Uvicorn.factory("benchmarks.constant:make", environment) as server:
        server.wait_until_it_listens()
        yield server
