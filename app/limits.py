"""How large a request may be: the numbers, and the limit on bodies. Heads: `app/heads.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from app.problems import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


URL_BYTES = 8 * 1024
HEAD_BYTES = 16 * 1024
"""Of URL and headers together."""
HEADERS = 100
BODY_BYTES = 64 * 1024


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
