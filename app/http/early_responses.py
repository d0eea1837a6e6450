"""What both protocols say to requests that reach no application, or reach it too early."""

from __future__ import annotations

import logging
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from app.http.common_headers import NOSNIFF
from app.http.limits import BODY_BYTES, HEAD_BYTES, HEADERS, URL_BYTES
from app.http.problems import problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("uvicorn.error")

DETAILS = {
    400: "The request is not valid HTTP.",
    408: "The request took too long to arrive.",
    413: f"A body may have {BODY_BYTES} bytes.",
    414: f"A URL may have {URL_BYTES} bytes.",
    431: f"URL and headers may have {HEAD_BYTES} bytes together, and the headers be {HEADERS}.",
    503: "This process has as many connections as it may; try again soon.",
}
_CLOSE = (b"connection", b"close")


def refusal(status: int) -> bytes:
    """A whole response, after which the connection is closed."""
    said = problem(status, DETAILS[status], instance="")
    headers = [*said.raw_headers, NOSNIFF, _CLOSE]
    if status == 503:  # noqa: PLR2004 - HTTP's number
        headers.append((b"retry-after", b"5"))
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    return line + head + b"\r\n" + bytes(said.body)


def log_refusal(status: int) -> None:
    """Log that a connection was refused or cut off; `log_limit` limits the lines."""
    what = "Invalid HTTP request received." if status == 400 else "Refused a request."  # noqa: PLR2004 - HTTP's number
    logger.warning(f"{what} {status}: {DETAILS[status]}")  # noqa: G004 - told apart by how it begins


class _Cycle(Protocol):
    disconnected: bool
    more_body: bool
    waiting_for_100_continue: bool


class EarlyResponses:
    """ASGI wrapper for one connection: close it behind a response that comes before a large body.

    Whatever refuses a request without reading it does so: 401, 404, 413. The client may be sending
    for a long time; and if it expects 100, it may never send, so nobody can tell where the next
    request begins. What remains of a small body is dropped, and the connection is kept.

    Args:
        app: the application.
        cycle: returns uvicorn's record of the current request.
        body_size: returns how much of its body has come.
    """

    __slots__ = ("_app", "_body_size", "_cycle")

    def __init__(
        self, app: ASGIApp, cycle: Callable[[], _Cycle], body_size: Callable[[], int]
    ) -> None:
        self._app = app
        self._cycle = cycle
        self._body_size = body_size

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """See ASGI. Not a coroutine: thousands of held requests would keep it."""
        cycle = self._cycle()
        if cycle.disconnected:
            return _nothing()  # it was refused in the same turn
        headers = scope["headers"]
        if cycle.more_body:
            send = partial(self._send, cycle, announced(headers) > BODY_BYTES, send)
        if any(name == b"upgrade" and value.lower() == b"websocket" for name, value in headers):
            refused = problem(400, "There are no WebSockets here.", instance=scope["path"])
            refused.raw_headers.append(NOSNIFF)
            return refused(scope, receive, send)
        return self._app(scope, receive, send)

    async def _send(
        self,
        cycle: _Cycle,
        large: bool,  # noqa: FBT001 - only this class calls it
        send: Send,
        message: Message,
    ) -> None:
        if message["type"] == "http.response.start" and cycle.more_body:
            large = large or self._body_size() > BODY_BYTES
            if large or cycle.waiting_for_100_continue:
                headers: list[Any] = [*message.get("headers", ()), _CLOSE]
                message = {**message, "headers": headers}
        await send(message)


def announced(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Return the length that a request's body has announced; -1: it comes in chunks, or not."""
    lengths = [value for name, value in headers if name == b"content-length"]
    return int(lengths[0]) if lengths else -1


async def _nothing() -> None:
    pass
