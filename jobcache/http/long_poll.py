"""A long poll: a poll that prefers to wait for a newer version, and is held for that long."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from jobcache.errors import CacheClosed, SourceUnavailable
from jobcache.http.conditional_get import respond
from jobcache.http.held_requests import ClientGone, HeldRequest, Revoked, cancel_on_disconnect
from jobcache.http.poll_spans import answering, end_poll
from jobcache.http.polled_document import NotVisible

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from jobcache.http.held_requests import HeldRequests
    from jobcache.http.polled_document import PolledDocument
    from jobcache.http.reply import Headers
    from jobcache.models import ReadResult
    from jobcache.observability.instrumentation import Span


def refused(path: str) -> Response:  # noqa: ARG001 - other services show it
    """Return the answer to a poll whose caller is no longer admitted."""
    return JSONResponse({"detail": "Unauthorized"}, 401)


@dataclass(slots=True)
class LongPoll:
    """A poll that prefers to wait, and waits if there is a slot for it.

    Attributes:
        document: the document.
        result: the result of a read of it, which the client has.
        if_none_match: the header.
        accept_encoding: the header, if there is one.
        seconds: how long to wait at most.
        held: for the slot.
        refused: returns the response, for a request's path, if the caller is no longer admitted.
        span: of the poll; None without an instrumentation.
    """

    document: PolledDocument
    result: ReadResult
    if_none_match: str | None
    accept_encoding: str | None
    seconds: int
    held: HeldRequests
    refused: Callable[[str], Response] = refused
    span: Span | None = None

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait for a newer version if there is a slot, then answer."""
        if self.span is None:
            response = await self._response(scope, receive)
        else:
            with answering(self.span):
                response = await self._response(scope, receive)
            end_poll(self.span, response.status_code, response.raw_headers, long_poll=True)
        await response(scope, receive, send)

    async def _response(self, scope: Scope, receive: Receive) -> Response:
        result = self.result
        applied: Headers = []
        request = HeldRequest(self.document.caller)
        with self.held.slot("waits", self.document.name, scope.get("server"), request) as has_slot:
            if has_slot:
                applied = [(b"preference-applied", b"wait=%d" % self.seconds)]
                try:
                    result = await self._hold(receive, request)
                except Revoked:
                    return self.refused(scope["path"])
                except ClientGone:
                    pass  # nobody will read the answer
        reply = respond(
            result, self.if_none_match, self.accept_encoding, rewrite=self.document.rewrite
        )
        if not applied:
            self.document.cache.statistics.polls.count(reply.status)
        response = reply.response()
        response.raw_headers += applied
        return response

    async def _hold(self, receive: Receive, request: HeldRequest) -> ReadResult:
        """Wait for a newer version, and count how the poll ended."""
        known, document = self.result, self.document
        polls, began = document.cache.statistics.polls, time.perf_counter_ns()
        version = known.entry.version
        waiting = document.wait_for_newer(version, self.seconds)
        try:
            result = await cancel_on_disconnect(receive, waiting, request)
            if result is None:  # the time is up: answer as to a poll that comes now
                result = await document.read(version)
        except ClientGone:
            polls.long_polls_abandoned += 1
            raise
        except Revoked:
            polls.long_polls_ended += 1
            raise
        except (SourceUnavailable, CacheClosed, NotVisible):
            polls.long_polls_ended += 1
            return known  # it was true when the request came
        finally:
            polls.long_poll.record(time.perf_counter_ns() - began)
        if result.entry.version > version:
            polls.long_polls_answered += 1
        elif self.held.shutdown.begun:
            polls.long_polls_ended += 1
        else:
            polls.long_polls_timed_out += 1
        return result
