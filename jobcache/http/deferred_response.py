"""Deferred responses: an endpoint returns them, and they run after the framework has returned.

While an endpoint runs, FastAPI and Starlette keep a dozen coroutines, three exit stacks and the
parsed request. That does not matter for a millisecond. For thousands of requests that are held for
a minute it is most of their memory. The garbage collector has to visit all of it, while the process
does nothing else.

So an endpoint checks the request and returns a `DeferredResponse`. The outer parts of the
application, such as the middleware for authentication, stay around it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_DEFERRED = "jobcache.http.deferred_response"


class DeferredResponse(Response):
    """A response that is sent after the endpoint and the framework have returned.

    `DeferredResponseMiddleware` sends it, or the route class of `jobcache.http.fastapi`.

    Args:
        answer: sends the response, as an ASGI application. Its scope has `type`, `path` and
            `server` only, so that it keeps nothing of the request that it does not need.

    Attributes:
        answer: as given.
    """

    def __init__(self, answer: ASGIApp) -> None:
        super().__init__()
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave the answer to `answer_deferred`, or answer where nothing around this does so."""
        deferred = scope.get(_DEFERRED)
        answer = self.answer
        # What the endpoint has added to the response: headers, cookies, tasks for afterwards.
        added = [each for each in self.raw_headers if each[0] != b"content-length"]
        if added or self.background is not None:
            answer = partial(_complete, self, added)
        if deferred is None:
            await answer(_small(scope), receive, send)
        else:
            deferred.append(answer)


async def _complete(
    response: DeferredResponse,
    added: Sequence[tuple[bytes, bytes]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Answer with more headers, and run a task afterwards."""

    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    await response.answer(scope, receive, send_more)
    if response.background is not None:
        await response.background()


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
