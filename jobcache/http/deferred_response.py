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
    from collections.abc import Awaitable

    from starlette.types import ASGIApp, Receive, Scope, Send

_DEFERRED = "jobcache.http.deferred_response"


class DeferredResponse(Response):
    """A response that is sent after the endpoint and the framework have returned.

    `DeferredResponseMiddleware` sends it, or the route class of `jobcache.http.fastapi`.

    Args:
        answer: sends the response, as an ASGI application. Its scope has `type`, `path` and
            `server` only, so that it keeps nothing of the request that it does not need.
    """

    def __init__(self, answer: ASGIApp) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the answer to `answer_deferred`, or answer where nothing around this does so."""
        deferred = scope.get(_DEFERRED)
        if deferred is None:
            await self._answer(_small(scope), receive, send)
        else:
            deferred.append(self._answer)


async def answer_deferred(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request by an application, and send its deferred response after it has returned."""
    if _DEFERRED in scope:
        await app(scope, receive, send)  # something further out does the same
        return
    deferred: list[ASGIApp] = []
    # A scope of its own, because the framework keeps the parsed request in it.
    await app({**scope, _DEFERRED: deferred}, receive, send)
    for answer in deferred:
        await answer(_small(scope), receive, send)


def _small(scope: Scope) -> Scope:
    return {"type": "http", "path": scope["path"], "server": scope.get("server")}


class DeferredResponseMiddleware:
    """The innermost ASGI middleware: sends the deferred response of an endpoint, if it has one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return the coroutine that answers. This is none itself: held requests would keep it."""
        if scope["type"] == "http":
            return answer_deferred(self._app, scope, receive, send)
        return self._app(scope, receive, send)
