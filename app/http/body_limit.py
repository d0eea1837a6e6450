"""ASGI middleware that refuses bodies which are too large, under any server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException

from app.http.early_responses import announced
from app.http.limits import BODY_BYTES
from app.http.problems import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Answer 413 to a body over `limit_bytes`, whether its length was announced or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int = BODY_BYTES) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as ASGI middleware."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        detail = f"A body may have {self._limit_bytes} bytes."
        if announced(scope["headers"]) > self._limit_bytes:
            refusal = problem(413, detail, instance=scope["path"])
            await refusal(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                # FastAPI passes this exception on from where it reads a body; others become 400.
                raise HTTPException(413, detail)
            return message

        await self._app(scope, counted, send)
