"""Runs the steps of the rules in the caller's thread, over httpx."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx

from jobcache.client import _httpx
from jobcache.client.core.messages import Request, Response, Sleep, T, Update

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobcache.client.core.messages import Reply, Steps, TransportError


class SyncRunner:
    """Sends requests, sleeps and shows documents, as the rules say.

    Args:
        http: sends the requests; None makes a client, which `close` closes.
        address: what the URLs of requests follow; empty if they are whole URLs.
        headers: the caller's own, sent with each request that may have them.
        sleep: for tests.
    """

    def __init__(
        self,
        http: httpx.Client | None,
        address: str,
        headers: Mapping[str, str],
        sleep: Callable[[float], object],
    ) -> None:
        self._ours = http is None
        self.http = httpx.Client(limits=_httpx.LIMITS) if http is None else http
        self._address = address
        self._headers = headers
        self._sleep = sleep

    def close(self) -> None:
        """Close the connections, unless the caller made the client."""
        if self._ours:
            self.http.close()

    def run(self, steps: Steps[T], on_progress: Callable[[T], object] | None = None) -> T:
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
                reply = self._send(step)
            elif isinstance(step, Sleep):
                self._sleep(step.seconds)
            elif isinstance(step, Update) and on_progress is not None:
                on_progress(step.document)

    def _send(self, request: Request) -> Response | TransportError:
        built, options = _httpx.build(self.http, request, self._address, self._headers)
        body = _httpx.Body(request)
        due = time.monotonic() + request.timeout
        try:
            received = self.http.send(built, **options)
            try:
                for part in received.iter_bytes():
                    body.add(part)
                    # httpx limits each read, but not the sum of many small ones.
                    if time.monotonic() > due:
                        raise httpx.ReadTimeout("the response came too slowly", request=built)
            finally:
                received.close()
        except _httpx.MISTAKES:
            raise
        except httpx.RequestError as error:
            return _httpx.failure(error)
        return body.response(received)
