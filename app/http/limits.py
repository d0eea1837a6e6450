"""How large a request may be, and how long a connection may take: the numbers, and two guards.

The limits on heads, trailers and time are enforced where bytes are read: `app/http/exchange.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from app.http.problems import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


URL_BYTES = 8 * 1024
HEAD_BYTES = 16 * 1024
"""Of URL and headers together."""
HEADERS = 100
BODY_BYTES = 64 * 1024
BACKLOG_BYTES = 16 * 1024
"""Of requests that are not yet parsed; beyond it a connection is not read from, for a while."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What each connection may take. Times are in seconds.

    Attributes:
        connections: how many there may be in a process.
        head_seconds: to send URL and headers, from their first byte on.
        body_seconds: between two reads of a body.
        send_seconds: to accept what is written to it.
        discard_bytes: how much of a refused request is read before the connection is closed.
        discard_seconds: for how long it is read.
    """

    connections: int = 11_000
    head_seconds: float = 20.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    discard_bytes: int = 16 * 1024 * 1024
    discard_seconds: float = 10.0


class BodyLimit:
    """ASGI middleware that answers 413 to a body over `limit_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int = BODY_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        detail = f"A body may have {self._limit_bytes} bytes."
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced[:20]) > self._limit_bytes:
            refusal = problem(413, detail, instance=scope["path"])
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                # FastAPI lets this one through from where it reads a body; any other becomes 400.
                raise HTTPException(413, detail)
            return message

        await self._app(scope, counted, send)
