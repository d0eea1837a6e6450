"""A job's status as server-sent events (WHATWG HTML, 9.2): newer versions, until the last.

The id of an event is its version. So a client that reconnects tells any process which version it
has seen. Versions between two events may be skipped: a slow client gets the newest version once it
has read the last event, and no backlog.

A stream ends when its job has ended. It also ends, and the client reconnects, in two other cases:

- after a limited time, which spreads clients over processes that were started later and finds
  revoked keys;
- when the process is about to end.
"""

from __future__ import annotations

import asyncio
import random
import re
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from app.auth.callers import TRUSTED
from app.http.problems import problem
from app.jobs.documents import with_prefix
from app.jobs.held_requests import ClientGone, HeldRequest, Revoked, cancel_on_disconnect
from app.jobs.states import TERMINAL
from jobcache import SourceUnavailable
from jobcache.protocol.document import VERSION_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Message, Receive, Send

    from app.auth.callers import Caller
    from app.jobs.held_requests import HeldRequests
    from app.jobs.service import JobService
    from jobcache import ReadResult

_RETRY_MS = 1000, 3000
"""The range of the time to reconnect: clients whose streams end together reconnect one by one."""

_FULL = "This process holds as many requests as it may; poll instead, or try again."
_FULL_RETRY = "5"  # seconds
_END_SECONDS = 1.0  # to send the end of a stream whose key has been revoked
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}
_ERROR_PAUSE = 2.0  # seconds between two reads while the database is away

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


def is_terminal(answer: ReadResult) -> bool:
    """Return True if there will be no newer version."""
    return answer.entry.status in TERMINAL


def event(answer: ReadResult, root_path: str = "") -> bytes:
    """Return one event: `data` is the body of a poll, which JSON keeps on one line."""
    body = with_prefix(answer.body, root_path)
    return b"id: %d\nevent: status\ndata: %b\n\n" % (answer.entry.version, body)


class JobEvents:
    """The event streams of a process.

    Args:
        service: for the jobs.
        held: for the slots of streams.
        heartbeat: seconds after which a comment shows that a quiet stream is alive.
        lasts: about so many seconds a stream lasts, before the client has to reconnect.
    """

    def __init__(
        self, service: JobService, held: HeldRequests, *, heartbeat: float, lasts: float
    ) -> None:
        self.held = held
        self._service = service
        self._heartbeat = heartbeat
        self._lasts = lasts

    async def of(
        self, job_id: int, caller: Caller, answer: ReadResult, seen: int, *, root_path: str = ""
    ) -> AsyncGenerator[bytes]:
        """Yield the events of a job that are newer than `seen`, and comments between them.

        Args:
            job_id: the job.
            caller: the reader of the stream.
            answer: the result of a poll.
            seen: the version that the client has.
            root_path: the prefix of links.
        """
        now = asyncio.get_running_loop().time
        until = now() + self._lasts * random.uniform(0.9, 1.0)  # noqa: S311 - spreads, hides nothing
        yield b"retry: %d\n\n" % random.randint(*_RETRY_MS)  # noqa: S311 - as above
        newer: ReadResult | None = answer if answer.entry.version > seen else None
        while True:
            if newer is not None:
                seen = newer.entry.version
                yield event(newer, root_path)
                if is_terminal(newer):
                    return
            left = until - now()
            if left <= 0 or self.held.draining:
                return
            try:
                newer = await self._service.wait_for_newer(
                    job_id, caller, seen, min(self._heartbeat, left)
                )
            except SourceUnavailable:
                # The stream survives an outage: an EventSource would not retry after a 503.
                newer = None
                await asyncio.sleep(min(_ERROR_PAUSE, self._heartbeat))
            if newer is None:
                yield b":\n\n"

    async def send(
        self,
        events: AsyncGenerator[bytes],
        name: str,
        path: str,
        receive: Receive,
        send: Send,
        *,
        caller: Caller = TRUSTED,
    ) -> None:
        """Send events until they end or the client disconnects; 503 if there is no slot for it."""
        request = HeldRequest(caller)
        with self.held.slot("streams", name, request) as has_slot:
            if not has_slot:
                headers = {"Retry-After": _FULL_RETRY}
                refusal = problem(503, _FULL, instance=path, headers=headers)
                await refusal({"type": "http"}, receive, send)
                return
            with suppress(ClientGone):
                try:
                    await cancel_on_disconnect(receive, _send_all(events, send), request)
                except Revoked:
                    # The client reconnects and gets 401. If it does not read, it is cut off.
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
