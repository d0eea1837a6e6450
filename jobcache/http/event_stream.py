"""A document as server-sent events (WHATWG HTML, 9.2): newer versions, until the last.

The id of an event is its version. So a client that reconnects tells any process which version it
has seen. Versions between two events may be skipped: a slow client gets the newest version once it
has read the last event, and no backlog.

A stream ends after the final version of its document. It also ends, and the client reconnects, in
other cases:

- after a limited time, which spreads clients over processes that were started later;
- when the process is about to end;
- when the document is no longer visible to the client, or the client no longer admitted.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from jobcache.errors import CacheClosed, SourceUnavailable
from jobcache.http.held_requests import ClientGone, HeldRequest, Revoked, cancel_on_disconnect
from jobcache.http.polled_document import NotVisible
from jobcache.protocol.document import VERSION_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from jobcache.http.conditional_get import Rewrite
    from jobcache.http.held_requests import HeldRequests
    from jobcache.http.polled_document import PolledDocument
    from jobcache.models import ReadResult

_RETRY_MS = 1000, 3000
"""The range of the time to reconnect: clients whose streams end together reconnect one by one."""

FULL = "This process holds as many requests as it may; poll instead, or try again."
FULL_RETRY = "5"  # seconds
_END_SECONDS = 1.0  # to send the end of a stream whose client is no longer admitted
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}
_ERROR_PAUSE = 2.0  # seconds between two reads while the source is away

HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would collect events otherwise
}


def seen_version(last_event_id: str | None) -> int:
    """Return the version that a `Last-Event-ID` names; 0 for any other text."""
    if last_event_id is None or re.fullmatch(r"[0-9]{1,16}", last_event_id, re.ASCII) is None:
        return 0
    version = int(last_event_id)
    return version if version < VERSION_LIMIT else 0


def is_final(result: ReadResult) -> bool:
    """Return True if there will be no newer version."""
    return result.entry.poll_after is None


def event(result: ReadResult, rewrite: Rewrite | None = None) -> bytes:
    """Return one event, whose `data` is the body of a poll."""
    body = result.body if rewrite is None else rewrite(result.body)
    # JSON has line breaks only between its parts; each line of `data` needs its name.
    body = b"\ndata: ".join(body.splitlines()) if b"\n" in body or b"\r" in body else body
    return b"id: %d\nevent: status\ndata: %b\n\n" % (result.entry.version, body)


def nothing_more() -> Response:
    """Return the answer to a client that has seen the final version: do not reconnect."""
    return Response(status_code=204, headers={"Cache-Control": "no-cache"})


def head() -> Response:
    """Return the answer to HEAD."""
    response = Response(headers=HEADERS)
    del response.headers["Content-Length"]  # a stream has none
    return response


def _full(path: str) -> Response:  # noqa: ARG001 - other services show it
    return JSONResponse({"detail": FULL}, 503, headers={"Retry-After": FULL_RETRY})


class EventStreams:
    """The event streams of a process.

    Args:
        held: for the slots of streams.
        heartbeat: seconds after which a comment shows that a quiet stream is alive.
        lasts: about so many seconds a stream lasts, before the client has to reconnect.
        full: returns the response to a stream for which there is no slot, for a request's path.
    """

    def __init__(
        self,
        held: HeldRequests,
        *,
        heartbeat: float = 15.0,
        lasts: float = 300.0,
        full: Callable[[str], Response] = _full,
    ) -> None:
        self.held = held
        self._heartbeat = heartbeat
        self._lasts = lasts
        self._full = full

    async def of(
        self, document: PolledDocument, result: ReadResult, seen: int
    ) -> AsyncGenerator[bytes]:
        """Yield the events of a document that are newer than `seen`, and comments between them.

        Args:
            document: the document.
            result: the result of a read of it.
            seen: the version that the client has.
        """
        now = asyncio.get_running_loop().time
        until = now() + self._lasts * random.uniform(0.9, 1.0)  # noqa: S311 - spreads, hides nothing
        yield b"retry: %d\n\n" % random.randint(*_RETRY_MS)  # noqa: S311 - as above
        newer: ReadResult | None = result if result.entry.version > seen else None
        while True:
            if newer is not None:
                seen = newer.entry.version
                yield event(newer, document.rewrite)
                if is_final(newer):
                    return
            left = until - now()
            if left <= 0 or self.held.shutdown.begun:
                return
            began, longest = now(), min(self._heartbeat, left)
            try:
                newer = await document.wait_for_newer(seen, longest)
                if newer is None and now() - began < longest / 2:
                    return  # somebody has ended all waits, and later ones would end at once
            except (CacheClosed, NotVisible):
                return  # the client reconnects; it gets 404 if the document is hidden from it
            except SourceUnavailable:
                # The stream survives an outage: an EventSource would not retry after a 503.
                newer = None
                await asyncio.sleep(min(_ERROR_PAUSE, self._heartbeat))
            if newer is None:
                yield b":\n\n"

    async def send(
        self,
        document: PolledDocument,
        events: AsyncGenerator[bytes],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Send events until they end or the client disconnects; 503 if there is no slot for it."""
        request = HeldRequest(document.caller)
        with self.held.slot("streams", document.name, scope.get("server"), request) as has_slot:
            if not has_slot:
                await self._full(scope["path"])(scope, receive, send)
                return
            with suppress(ClientGone):
                try:
                    await cancel_on_disconnect(receive, _send_all(events, send), request)
                except Revoked:
                    # The client reconnects and is refused. If it does not read, it is cut off.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_END_SECONDS):
                            await send(_END)


async def _send_all(events: AsyncGenerator[bytes], send: Send) -> None:
    headers = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    async with aclosing(events):  # now, and not at some garbage collection
        async for piece in events:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send(_END)
