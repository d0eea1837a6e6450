"""Deferred responses: an endpoint returns them, and they run after the framework has returned.

While an endpoint runs, FastAPI and Starlette keep a dozen coroutines, three exit stacks and the
parsed request. That does not matter for a millisecond. For thousands of requests that are held for
a minute it is most of their memory. The garbage collector has to visit all of it, while the process
does nothing else.

So an endpoint checks the request and returns a `DeferredResponse`. The outer parts of the
application, such as the middleware for authentication, stay around it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_DEFERRED = "jobcache.http.deferred_response"


class DeferredResponse(Response):
    """A response that `DeferredResponseMiddleware` sends.

    Args:
        answer: sends the response. It should keep nothing of the request that it does not need.
    """

    def __init__(self, answer: ASGIApp) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Leave the answer to `DeferredResponseMiddleware`."""
        scope[_DEFERRED].append(self._answer)


class DeferredResponseMiddleware:
    """The innermost ASGI middleware: sends the deferred response of an endpoint, if it has one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request as ASGI middleware."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        deferred: list[ASGIApp] = []
        # A scope of its own, because the framework keeps the parsed request in it.
        await self._app({**scope, _DEFERRED: deferred}, receive, send)
        for answer in deferred:
            await answer(scope, receive, send)
