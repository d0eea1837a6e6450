"""uvicorn's parser and a constant response: the least that a poll costs in Python.

    python -m benchmarks.parser_only PORT

The request is parsed, and nothing looks at it. No application runs, and no limit is kept.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.devservers import free_port
from benchmarks.asgi import Uvicorn
from benchmarks.constant import constant_response, make, response_settings
from benchmarks.service import HOST

if TYPE_CHECKING:
    from collections.abc import Generator

    import httpx


class ConstantProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which writes the same response to every request."""

    def on_headers_complete(self) -> None:
        """Do nothing: the response does not depend on the request."""

    def on_message_complete(self) -> None:
        """Write the response."""
        self.transport.write(_RESPONSE)


def _encoded() -> bytes:
    headers, body = constant_response()
    every = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"uvicorn"), *headers]
    lines = b"".join(b"%b: %b\r\n" % header for header in every)
    return STATUS_LINE[200] + lines + b"\r\n" + body


_RESPONSE = _encoded()


@contextlib.contextmanager
def parser_server(answer: httpx.Response) -> Generator[Uvicorn, None, None]:
    """Run the protocol in its own process; each response has the body and headers of `answer`."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.parser_only", str(port)]
    with Uvicorn(command, port, response_settings(answer)) as server:
        server.wait_until_it_listens()
        yield server


if __name__ == "__main__":
    uvicorn.run(
        make(),
        host=HOST,
        port=int(sys.argv[1]),
        http=ConstantProtocol,
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
