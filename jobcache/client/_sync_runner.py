"""Runs the steps of the rules in the caller's thread, over httpx."""

from __future__ import annotations

import math
import threading
import time
from contextlib import closing, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import httpx

from jobcache.client import _httpx
from jobcache.client.core.messages import Completed, Request, Response, Sleep, T, Update
from jobcache.client.core.scheduler import Send, none_completed

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from jobcache.client.core.messages import Reply, Steps, TransportError
    from jobcache.client.core.scheduler import Scheduler


class SyncRunner:
    """Sends requests, sleeps and shows documents, as the rules say.

    Args:
        http: sends the requests; None makes a client, which `close` closes.
        address: what the URLs of requests follow; empty if they are whole URLs.
        headers: the caller's own, sent with each request that may have them.
        sleep: for tests.
    """

    THREAD = "jobcache.client request"
    """The name of a thread that sends one request."""

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
        self._lock = threading.Lock()
        self._in_flight = 0  # requests in threads of their own
        self._closing = False

    def close(self) -> None:
        """Close the connections, unless the caller made the client.

        If requests that nobody needs any more are in flight, the connections are closed after the
        last of them: one that is opened after httpx's client was closed would stay open.
        """
        with self._lock:
            self._closing = True
            last = self._in_flight == 0
        if last and self._ours:
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

    def as_completed(
        self,
        scheduler: Scheduler[T],
        on_progress: Callable[[T], object] | None = None,
    ) -> Generator[Completed[T]]:
        """Run many waits, and yield each as it ends.

        Only requests run in threads of their own. One that nobody needs any more, because the
        caller has stopped, ends with its response or its time limit.
        """
        replies: SimpleQueue[tuple[int, Reply | Exception]] = SimpleQueue()
        sending = 0
        while (step := scheduler.next()) is not None:
            if isinstance(step, Send):
                if scheduler.is_sequential:
                    scheduler.replied(step.wait, self._attempt(step.request))
                    continue
                sending += 1
                with self._lock:
                    self._in_flight += 1
                threading.Thread(
                    target=self._send_apart,
                    args=(step, replies),
                    name=self.THREAD,
                    daemon=True,
                ).start()
            elif isinstance(step, Completed):
                yield step
            elif isinstance(step, Update):
                if on_progress is not None:
                    on_progress(step.document)
            elif sending:
                with suppress(Empty):
                    number, reply = replies.get(
                        timeout=None if math.isinf(step.seconds) else step.seconds
                    )
                    sending -= 1
                    scheduler.replied(number, reply)
            else:
                self._sleep(step.seconds)

    def collect(self, completed: Generator[Completed[T]]) -> list[T]:
        """Return the results of all waits in their order, or raise the first error."""
        with closing(completed):
            results = {each.number: each.result() for each in completed}
        return [results[number] for number in sorted(results)]

    def first(self, completed: Generator[Completed[T]]) -> T:
        """Return the first result."""
        errors = []
        with closing(completed):
            for each in completed:
                if each.error is None:
                    return each.result()
                errors.append(each.error)
        raise none_completed(errors)

    def _send_apart(self, send: Send, replies: SimpleQueue[tuple[int, Reply | Exception]]) -> None:
        reply = self._attempt(send.request)
        with self._lock:
            self._in_flight -= 1
            last = self._closing and self._in_flight == 0
        if last and self._ours:
            self.http.close()
        replies.put((send.wait, reply))

    def _attempt(self, request: Request) -> Response | TransportError | Exception:
        try:
            return self._send(request)
        except Exception as error:  # noqa: BLE001 - it ends the wait of this request
            return error

    def _send(self, request: Request) -> Response | TransportError:
        built, options = _httpx.build(self.http, request, self._address, self._headers)
        body = _httpx.Body(request)
        due = time.monotonic() + request.timeout
        try:
            received = self.http.send(built, **options)
            try:
                receiver, headers = request.receiver, _httpx.lowered(received.headers)
                written = receiver is not None and receiver.accepts(received.status_code, headers)
                for piece in received.iter_bytes():
                    if receiver is not None and written:
                        receiver.write(piece)
                    else:
                        body.add(piece)
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
