"""Runs the steps of the rules by asyncio, over httpx."""

from __future__ import annotations

import asyncio
import inspect
import math
from contextlib import aclosing
from typing import TYPE_CHECKING

import httpx

from jobcache.client import _httpx
from jobcache.client.core.messages import Completed, Request, Response, Sleep, T, Update
from jobcache.client.core.scheduler import Send, none_completed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from jobcache.client.core.messages import Reply, Steps, TransportError
    from jobcache.client.core.scheduler import Scheduler


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
                await _show(step, on_progress)

    async def as_completed(
        self,
        scheduler: Scheduler[T],
        on_progress: Callable[[T], object] | None = None,
    ) -> AsyncGenerator[Completed[T]]:
        """Run many waits, and yield each as it ends."""
        sending: dict[asyncio.Task[Response | TransportError], int] = {}
        try:
            while (step := scheduler.next()) is not None:
                if isinstance(step, Send):
                    sending[asyncio.create_task(self._send(step.request))] = step.wait
                elif isinstance(step, Completed):
                    yield step
                elif isinstance(step, Update):
                    if on_progress is not None:
                        await _show(step, on_progress)
                elif sending:
                    timeout = None if math.isinf(step.seconds) else step.seconds
                    first = asyncio.FIRST_COMPLETED
                    done, _ = await asyncio.wait(sending, timeout=timeout, return_when=first)
                    for task in done:
                        error = task.exception()
                        if error is not None and not isinstance(error, Exception):
                            raise error
                        scheduler.replied(sending.pop(task), error or task.result())
                else:
                    await self._sleep(step.seconds)
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)

    async def collect(self, completed: AsyncGenerator[Completed[T]]) -> list[T]:
        """Return the results of all waits in their order, or raise the first error."""
        async with aclosing(completed):
            results = {each.number: each.result() async for each in completed}
        return [results[number] for number in sorted(results)]

    async def first(self, completed: AsyncGenerator[Completed[T]]) -> T:
        """Return the first result."""
        errors = []
        async with aclosing(completed):
            async for each in completed:
                if each.error is None:
                    return each.result()
                errors.append(each.error)
        raise none_completed(errors)

    async def _send(self, request: Request) -> Response | TransportError:
        built, options = _httpx.build(self.http, request, self._address, self._headers)
        body = _httpx.Body(request)
        try:
            # httpx limits each read, but not the sum of many small ones.
            limit = None if math.isinf(request.timeout) else request.timeout
            async with asyncio.timeout(limit):
                received = await self.http.send(built, **options)
                try:
                    write = await self._write(request, received)
                    async for piece in received.aiter_bytes():
                        if write is None:
                            body.add(piece)
                        else:
                            await asyncio.to_thread(write, piece)
                finally:
                    await received.aclose()
        except _httpx.MISTAKES:
            raise
        except (httpx.RequestError, TimeoutError) as error:
            return _httpx.failure(error)
        return body.response(received)

    async def _write(
        self, request: Request, received: httpx.Response
    ) -> Callable[[bytes], None] | None:
        """Return what takes the pieces of the body; None if it is read into memory."""
        receiver, status = request.receiver, received.status_code
        if receiver is None:
            return None
        headers = _httpx.lowered(received.headers)
        return (
            receiver.write if await asyncio.to_thread(receiver.accepts, status, headers) else None
        )


async def _show(update: Update[T], on_progress: Callable[[T], object]) -> None:
    returned = on_progress(update.document)
    if inspect.isawaitable(returned):
        await returned
