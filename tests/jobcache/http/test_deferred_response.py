"""A deferred response is sent once, after the application has returned."""

from __future__ import annotations

from typing import Any

from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse

from jobcache.http.deferred_response import DeferredResponse, DeferredResponseMiddleware


async def test_with_the_middleware_twice_the_outer_one_sends_the_response() -> None:
    events: list[str] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            events.append("answered")
            await PlainTextResponse("later")(scope, receive, send)

        await DeferredResponse(answer)(scope, receive, send)
        events.append("endpoint has returned")

    inner = DeferredResponseMiddleware(endpoint)

    async def between(scope: Any, receive: Any, send: Any) -> None:
        await inner(scope, receive, send)
        events.append("inner middleware has returned")

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sent: list[str] = []
    scope = {"type": "http", "path": "/", "headers": [], "method": "GET"}
    await DeferredResponseMiddleware(between)(scope, receive, send)
    assert events == ["endpoint has returned", "inner middleware has returned", "answered"]
    assert sent == ["http.response.start", "http.response.body"]


async def test_headers_and_tasks_of_the_endpoint_belong_to_the_response() -> None:
    events: list[object] = []

    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        response = DeferredResponse(PlainTextResponse("later"))
        response.headers["X-Shown"] = "1"
        response.set_cookie("seen", "yes")
        response.background = BackgroundTask(events.append, "task")
        await response(scope, receive, send)

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        events.append(message)

    for app in (endpoint, DeferredResponseMiddleware(endpoint)):
        events.clear()
        await app({"type": "http", "path": "/", "headers": [], "method": "GET"}, receive, send)
        start, body, task = events
        assert isinstance(start, dict)
        names = [name for name, _ in start["headers"]]
        assert sorted(names) == [b"content-length", b"content-type", b"set-cookie", b"x-shown"]
        assert dict(start["headers"])[b"content-length"] == b"5"
        assert isinstance(body, dict)
        assert body["body"] == b"later"
        assert task == "task"
