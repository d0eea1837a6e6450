"""A limit on the size of request bodies, before anything of them is parsed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.problems import problem

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class _TooLarge(Exception):  # noqa: N818 - never leaves this module
    pass


class BodyLimit:
    """ASGI middleware that answers 413 to a body over `limit_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, limit_bytes: int = 64 * 1024) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD"}:
            await self._app(scope, receive, send)
            return
        received = 0
        started = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit_bytes:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        announced = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if announced.isdigit() and int(announced[:20]) > self._limit_bytes:
                raise _TooLarge
            await self._app(scope, counted, watched)
        except _TooLarge:
            if started:
                raise
            refusal = problem(
                413, f"A body may have {self._limit_bytes} bytes.", instance=scope["path"]
            )
            await refusal(scope, receive, send)
