"""What both protocols say to requests that reach no application, or reach it too early."""

from __future__ import annotations

import logging
import time
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from app.limits import BODY_BYTES, HEAD_BYTES, HEADERS, URL_BYTES
from app.problems import problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("app")

DETAILS = {
    400: "The request is not valid HTTP.",
    408: "The request took too long to arrive.",
    413: f"A body may have {BODY_BYTES} bytes.",
    414: f"A URL may have {URL_BYTES} bytes.",
    431: f"URL and headers may have {HEAD_BYTES} bytes together, and the headers be {HEADERS}.",
    503: "This process has as many connections as it may; try again soon.",
}
_CLOSE = (b"connection", b"close")
_QUIET = 10.0  # seconds


def refusal(status: int) -> bytes:
    """A whole response, after which the connection is closed."""
    said = problem(status, DETAILS[status], instance="")
    headers = [*said.raw_headers, _CLOSE]
    if status == 503:  # noqa: PLR2004 - HTTP's number
        headers.append((b"retry-after", b"5"))
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    line = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode()
    return line + head + b"\r\n" + bytes(said.body)


class RefusalLog:
    """Log refusals: the first at once, further ones with their number, once in a while.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: float | None = None
        self._unsaid = 0

    def note(self, status: int) -> None:
        """A connection was refused or cut off with this status."""
        now = self._clock()
        self._unsaid += 1
        if self._last is not None and now - self._last < _QUIET:
            return
        logger.warning(
            "refused a connection's request: %d %s Such requests since the last such line: %d",
            status,
            DETAILS[status],
            self._unsaid,
        )
        self._last, self._unsaid = now, 0


LOG = RefusalLog()
"""Of this process."""


class _Cycle(Protocol):
    more_body: bool


class EarlyResponses:
    """ASGI wrapper for one connection: close it behind a response that comes before the body has.

    Whatever refuses a request without reading it does so: 401, 404, 413. The client may be sending
    for a long time, or, if it expects 100, may never send; nobody can tell where the next request
    begins.

    Args:
        app: the application.
        cycle: returns uvicorn's record of the current request.
    """

    __slots__ = ("_app", "_cycle")

    def __init__(self, app: ASGIApp, cycle: Callable[[], _Cycle]) -> None:
        self._app = app
        self._cycle = cycle

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """See ASGI. Not a coroutine: thousands of held requests would keep it."""
        cycle = self._cycle()
        if cycle.more_body:
            send = partial(_send, cycle, send)
        if any(
            name == b"upgrade" and value.lower() == b"websocket" for name, value in scope["headers"]
        ):
            return problem(400, "There are no WebSockets here.", instance=scope["path"])(
                scope, receive, send
            )
        return self._app(scope, receive, send)


async def _send(cycle: _Cycle, send: Send, message: Message) -> None:
    if message["type"] == "http.response.start" and cycle.more_body:
        headers: list[Any] = [*message.get("headers", ()), _CLOSE]
        message = {**message, "headers": headers}
    await send(message)
