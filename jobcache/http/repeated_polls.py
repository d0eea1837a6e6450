"""Polls that the application has just answered, answered again without asking it.

A client polls with the same request every few seconds. If the route has answered that request a
moment ago, then its prefix, authentication, dependencies and validation have let it through, and
nobody has to know how. So the middleware answers it from the cache, for a few seconds:

    GET /exports/7, Authorization: A    the route answers, and so confirms this request
    GET /exports/7, Authorization: A    answered here, with the newest version
    GET /exports/7, Authorization: B    asked of the route: no request like this was confirmed

Documents are never older for it: each request reads the cache, and the route's own predicate looks
at the owner of each entry.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING

from jobcache.http.conditional_get import Representation, conditions, respond
from jobcache.http.poll_spans import answering, end_poll
from jobcache.http.polled_response import CONFIRMATION, PollConfirmation
from jobcache.http.request_headers import header
from jobcache.loaders import uses_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from jobcache.http.polled_document import PolledDocument
    from jobcache.http.reply import Headers, Reply
    from jobcache.http.request_headers import RequestHeaders

REQUEST_IDS = (
    "x-request-id",
    "x-correlation-id",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "traceparent",
    "tracestate",
    "cf-ray",
)
"""Headers that differ from request to request, and that no route should decide by."""

_LEFT = frozenset({b"content-length", b"prefer", b"range", b"transfer-encoding", b"upgrade"})
"""With these headers, a request is not plain."""
_NEVER = frozenset({b"set-cookie", b"vary"})
"""A response that adds one of these depends on more than this module knows."""


class _Confirmed:
    """A request that the route has answered.

    Args:
        document: the document.
        until: the time until which the request is answered again.
        added_headers: the headers that the application has added to its response.
    """

    __slots__ = ("_added", "_document", "_peek", "_representation", "until")

    def __init__(self, document: PolledDocument, until: float, added_headers: Headers) -> None:
        self.until = until
        self._document = document
        self._added = added_headers
        reads = document.cache.reads
        self._peek = partial(reads.peek, document.key, document.load) if reads.can_peek else None
        self._representation: Representation | None = None

    def added(self, headers: Headers) -> Headers:
        """Return the headers of a reply and the headers that the application has added."""
        return [*headers, *self._added]

    async def reply(
        self, if_none_match: str | None, accept_encoding: str | None, headers: RequestHeaders
    ) -> Reply | None:
        """Return the reply to the request; None if the route has to answer it."""
        instrumentation = self._document.cache.instrumentation
        if instrumentation is None:
            return await self._reply(if_none_match, accept_encoding)
        span = instrumentation.begin("poll", "", header(headers, b"traceparent"))
        with answering(span):
            reply = await self._reply(if_none_match, accept_encoding)
        if reply is None:
            span.end({})  # the route begins another one
        else:
            end_poll(span, reply.status, reply.headers)
        return reply

    async def _reply(self, if_none_match: str | None, accept_encoding: str | None) -> Reply | None:
        document = self._document
        min_version = 0 if if_none_match is None else conditions(if_none_match).min_version
        try:
            result = None if self._peek is None else self._peek(min_version)
            if result is None:
                result = await document.read(min_version)
            elif result.entry.version == 0 or not document.can_view(result.entry):
                return None
        except Exception:  # noqa: BLE001 - the route meets the error, and shows it its own way
            return None
        kept, entry = self._representation, result.entry
        if kept is None or kept.entry is not entry:
            gzip = entry.encoding == "gzip" and document.rewrite is None
            kept = self._representation = Representation(entry, gzip=gzip, rewrite=document.rewrite)
        reply = respond(result, if_none_match, accept_encoding, kept, document.rewrite)
        document.cache.statistics.polls.count(reply.status)
        return reply


class RepeatedPolls:
    """ASGI middleware that answers polls which the application has just answered.

        app.add_middleware(RepeatedPolls, seconds=5)  # last, so that it is the outermost one

    A GET is answered here only if the application has answered an equal one within the last
    `seconds`, by `Poll` or `Polling.poll`. Equal requests have the same path, query, client address
    and headers. All other requests go to the application, and so does every error.

    - Whatever the application decides by its own state lags by `seconds`: revoked credentials, rate
      limits, maintenance modes. So do headers that it adds to its responses.
    - Middleware, dependencies and background tasks inside of it do not see the repeated requests:
      logs and metrics do not count them.
    - A response that is not 200 or 304, sets a cookie, or varies by more than `Accept-Encoding`
      confirms nothing.
    - `can_view` and `load` of the confirmed request are used for the following ones, so they may
      use nothing that ends with the request. If `load` refers to a database session, nothing is
      confirmed.

    Args:
        app: the application.
        seconds: for how long an answer of the route confirms its request.
        ignored: names of further headers that differ from request to request. They count neither
            in the request nor in the response, where they are not repeated.
        most: the most requests that are remembered. Of each, a keyed hash is kept, no credentials.
        clock: the time in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        seconds: float = 5.0,
        ignored: Iterable[str] = (),
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._seconds = seconds
        self._ignored = frozenset(each.lower().encode() for each in (*REQUEST_IDS, *ignored))
        self._most = most
        self._clock = clock
        self._secret = secrets.token_bytes(16)
        self._confirmed: dict[bytes, _Confirmed] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or anything else, by ASGI."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        if_none_match = accept_encoding = None
        ignored, kept = self._ignored, []
        for each in scope["headers"]:
            name = each[0]
            if name in ignored:
                continue
            if name == b"if-none-match" and if_none_match is None:
                if_none_match = each[1].decode("latin-1")
            elif name == b"accept-encoding" and accept_encoding is None:
                accept_encoding = each[1].decode("latin-1")
            elif name in _LEFT:
                await self._app(scope, receive, send)
                return
            else:
                kept.append(each)  # and so is a second line of one of the two above
        request = self._hash(scope, kept)
        confirmed = self._confirmed.get(request)
        if confirmed is not None:
            if self._clock() < confirmed.until:
                reply = await confirmed.reply(if_none_match, accept_encoding, scope["headers"])
                if reply is not None:
                    await reply.send(send, confirmed)
                    return
            self._confirmed.pop(request, None)
        await self._ask(request, scope, receive, send)

    def _hash(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> bytes:
        client = scope.get("client")
        tls = (scope.get("extensions") or {}).get("tls")  # with the certificate of the client
        parts = (
            scope["path"],
            scope["query_string"],
            scope.get("root_path", ""),
            scope.get("scheme", ""),
            None if client is None else client[0],
            None if tls is None else repr(tls),
            [(bytes(name), bytes(value)) for name, value in headers],
        )
        text = repr(parts).encode("utf-8", "backslashreplace")
        return hashlib.blake2b(text, digest_size=16, key=self._secret).digest()

    async def _ask(self, request: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer a request, and remember it if its response confirms it."""
        confirmation = PollConfirmation()

        async def confirm(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._confirm(request, confirmation, message)
            await send(message)

        await self._app({**scope, CONFIRMATION: confirmation}, receive, confirm)

    def _confirm(self, request: bytes, confirmation: PollConfirmation, message: Message) -> None:
        document, reply = confirmation.document, confirmation.reply
        if document is None or reply is None or message["status"] != reply.status:
            return
        sent = [(name.lower(), value) for name, value in message.get("headers", ())]
        added = [each for each in sent if each not in reply.headers]
        names = {name for name, _ in added}
        # An inner middleware that changed the body has changed its length, or its coding.
        changed = any(each not in sent for each in reply.headers)
        if changed or names & (_NEVER | dict(reply.headers).keys()) or uses_session(document.load):
            return
        if len(self._confirmed) >= self._most:
            self._confirmed.clear()
        self._confirmed[request] = _Confirmed(
            document,
            self._clock() + self._seconds,
            [each for each in added if each[0] not in self._ignored],
        )
