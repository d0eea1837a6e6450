"""Responses to requests that are refused before the application, or answered before their end."""

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
    501: "The only transfer coding that is understood is chunked.",
    503: "This process has as many connections as it may; try again soon.",
}
_CLOSE = (b"connection", b"close")


def refusal(status: int) -> bytes:
    """Return a whole response, after which the connection is closed."""
    document = problem(status, DETAILS[status], instance="")
    headers = [*document.raw_headers, NOSNIFF, _CLOSE]
    if status == 503:  # noqa: PLR2004 - HTTP's number
        headers.append((b"retry-after", b"5"))
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    return line + head + b"\r\n" + bytes(document.body)


def log_refusal(status: int) -> None:
    """Log that a connection was refused or cut off; `log_limit` limits the lines."""
    what = "Invalid HTTP request received." if status == 400 else "Refused a request."  # noqa: PLR2004 - HTTP's number
    logger.warning(f"{what} {status}: {DETAILS[status]}")  # noqa: G004 - told apart by how it begins


class _Cycle(Protocol):
    disconnected: bool
    more_body: bool
    waiting_for_100_continue: bool


class _Connection(Protocol):
    @property
    def cycle(self) -> _Cycle: ...


class EarlyResponses:
    """ASGI wrapper for one connection: close it after a response that comes before a large body.

    Refusals come so early: 401, 404, 413. The client may go on sending for a long time. If it
    expects 100, it may never send its body, so nobody can tell where the next request begins. The
    rest of a small body is dropped, and the connection is kept.

    Args:
        app: the application.
        connection: has uvicorn's record of the current request.
        body_size: returns the number of bytes of its body that have come.
    """

    __slots__ = ("_app", "_body_size", "_connection")

    def __init__(self, app: ASGIApp, connection: _Connection, body_size: Callable[[], int]) -> None:
        self._app = app
        self._connection = connection
        self._body_size = body_size

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers. This is none itself: held requests would keep it."""
        cycle = self._connection.cycle
        if cycle.disconnected:
            return _nothing()  # refused in the same turn of the loop
        headers = scope["headers"]
        if cycle.more_body:
            send = partial(self._send, cycle, announced(headers) > BODY_BYTES, send)
        # A loop, and no generator: every request pays for it.
        for name, value in headers:
            if name != b"upgrade" or value.lower() != b"websocket":
                continue
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
    """Return the announced length of a request's body; -1 if it comes in chunks, or not at all.

    A number with more than 20 digits counts as the first 20, which are beyond every limit, too.
    """
    for name, value in headers:
        if name == b"content-length" and (digits := value.strip()).isdigit():
            # `int` refuses thousands of digits, even if they are zeros in front of the number.
            return int(digits.lstrip(b"0")[:20] or b"0")
    return -1


async def _nothing() -> None:
    pass
