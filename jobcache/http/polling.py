"""The answers to requests that poll a document: once, held, or as an event stream."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from jobcache.http import event_stream, long_poll
from jobcache.http.conditional_get import conditions, may_wait, respond
from jobcache.http.deferred_response import DeferredResponse
from jobcache.http.long_poll import LongPoll
from jobcache.http.poll_spans import answering, end_poll
from jobcache.http.polled_document import NotVisible
from jobcache.http.polled_response import PolledResponse
from jobcache.http.prefer import LONGEST, requested_wait
from jobcache.http.request_headers import header

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response

    from jobcache.http.event_stream import EventStreams
    from jobcache.http.polled_document import PolledDocument
    from jobcache.http.request_headers import RequestHeaders
    from jobcache.models import ReadResult
    from jobcache.observability.instrumentation import Span


class Polling:
    """Answers polls of documents, and streams their versions.

    Args:
        streams: for event streams; its `held` is for all held requests.
        longest_wait: the most seconds that a poll is held.
        refused: returns the response to a held poll whose caller is no longer admitted, for a
            request's path.
    """

    def __init__(
        self,
        streams: EventStreams,
        *,
        longest_wait: int = LONGEST,
        refused: Callable[[str], Response] = long_poll.refused,
    ) -> None:
        self._streams = streams
        self._longest_wait = longest_wait
        self._refused = refused

    async def poll(
        self,
        document: PolledDocument,
        headers: RequestHeaders,
    ) -> Response:
        """Return the response to a poll, which may be a `DeferredResponse`.

        Args:
            document: the document.
            headers: of the request, as `scope["headers"]` of ASGI has them.

        Raises:
            Exception: there is no document for this client (`PolledDocument.not_found`), or as
                `JobCache.read`.
        """
        instrumentation = document.cache.instrumentation
        if instrumentation is None:
            return await self._poll(document, headers, None)
        span = instrumentation.begin("poll", "", header(headers, b"traceparent"))
        with answering(span):
            response = await self._poll(document, headers, span)
        if not isinstance(response, DeferredResponse):  # which ends the span itself
            end_poll(span, response.status_code, response.raw_headers)
        return response

    async def _poll(
        self, document: PolledDocument, headers: RequestHeaders, span: Span | None
    ) -> Response:
        if_none_match = header(headers, b"if-none-match")
        accept_encoding = header(headers, b"accept-encoding")
        result = await _read(document, conditions(if_none_match).min_version)
        seconds = requested_wait(header(headers, b"prefer"), self._longest_wait)
        if seconds is None or not may_wait(result, if_none_match):
            reply = respond(result, if_none_match, accept_encoding, rewrite=document.rewrite)
            document.cache.statistics.polls.count(reply.status)
            return PolledResponse(reply, document)
        waiting = LongPoll(
            document,
            result,
            if_none_match,
            accept_encoding,
            seconds,
            self._streams.held,
            self._refused,
            span,
        )
        return DeferredResponse(waiting.answer)

    async def stream(
        self,
        document: PolledDocument,
        headers: RequestHeaders,
        *,
        head: bool = False,
    ) -> Response:
        """Return the response that streams the versions of a document.

        Args:
            document: the document.
            headers: of the request, as `scope["headers"]` of ASGI has them.
            head: whether the request is HEAD.

        Raises:
            Exception: as `poll`.
        """
        seen = event_stream.seen_version(header(headers, b"last-event-id"))
        result = await _read(document, seen)
        if result.entry.version < seen:
            seen = 0  # the id is not one of this document
        if seen == result.entry.version and event_stream.is_final(result):
            return event_stream.nothing_more()
        if head:
            return event_stream.head()
        events = self._streams.of(document, result, seen)
        return DeferredResponse(partial(self._streams.send, document, events))


async def _read(document: PolledDocument, min_version: int) -> ReadResult:
    try:
        return await document.read(min_version)
    except NotVisible:
        raise document.not_found() from None
