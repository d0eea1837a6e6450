"""Runs the steps of the rules by asyncio, over httpx."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

import httpx

from jobcache.client import _httpx
from jobcache.client.core.messages import Request, Response, Sleep, T, Update

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from jobcache.client.core.messages import Reply, Steps, TransportError


class AsyncRunner:
    """Sends requests, sleeps and shows documents, as the rules say.

    Args:
        http: sends the requests; None makes a client, which `aclose` closes.
        address: what the URLs of requests follow; empty if they are whole URLs.
        headers: the caller's own, sent with each request that may have them.
        sleep: for tests.
    """

    def __init__(
        self,
        http: httpx.AsyncClient | None,
        address: str,
        headers: Mapping[str, str],
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self._ours = http is None
        self.http = httpx.AsyncClient(limits=_httpx.LIMITS) if http is None else http
        self._address = address
        self._headers = headers
        self._sleep = sleep

    async def aclose(self) -> None:
        """Close the connections, unless the caller made the client."""
        if self._ours:
            await self.http.aclose()

    async def run(self, steps: Steps[T], on_progress: Callable[[T], object] | None = None) -> T:
        """Run the steps to their end, and return their result."""
        reply: Reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as end:
                result: T = end.value
                return result
            reply = None
            if isinstance(step, Request):
                reply = await self._send(step)
            elif isinstance(step, Sleep):
                await self._sleep(step.seconds)
            elif isinstance(step, Update) and on_progress is not None:
                returned = on_progress(step.document)
                if inspect.isawaitable(returned):
                    await returned

    async def _send(self, request: Request) -> Response | TransportError:
        built, options = _httpx.build(self.http, request, self._address, self._headers)
        body = _httpx.Body(request)
        try:
            # httpx limits each read, but not the sum of many small ones.
            async with asyncio.timeout(request.timeout):
                received = await self.http.send(built, **options)
                try:
                    async for part in received.aiter_bytes():
                        body.add(part)
                finally:
                    await received.aclose()
        except _httpx.MISTAKES:
            raise
        except (httpx.RequestError, TimeoutError) as error:
            return _httpx.failure(error)
        return body.response(received)
