"""Answers that come later: made by an endpoint, sent when the framework has let go of the request.

While an endpoint runs, FastAPI and Starlette keep a dozen coroutines, three exit stacks and what
they have parsed. That is nothing for a millisecond. For thousands of requests that are held for a
minute it is most of their memory, and most of what the garbage collector has to walk through while
the process does nothing else.

So an endpoint decides, checks, and returns a `DeferredResponse`; the outer parts of the
application, such as the gate, stay around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from starlette.types import ASGIApp, Receive, Scope, Send

    ReadResult = Callable[[str, Receive, Send], Coroutine[Any, Any, None]]

_PLACE = "app.http.deferred_response"


class DeferredResponse(Response):
    """A response that `DeferredResponseMiddleware` sends.

    Args:
        answer: sends it; given the request's path, and what ASGI gives. Should hold nothing of the
            request that it does not need.
    """

    def __init__(self, answer: ReadResult) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """See ASGI."""
        scope[_PLACE].append(self._answer)


class DeferredResponseMiddleware:
    """ASGI middleware, the innermost: sends what an endpoint has left for later."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left: list[ReadResult] = []
        # A scope of its own, for the framework keeps in it what it has made of the request.
        await self._app({**scope, _PLACE: left}, receive, send)
        for answer in left:
            await answer(scope["path"], receive, send)
