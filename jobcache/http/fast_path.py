"""The fast path: plain polls, answered before the framework sees them.

Routing, validating and injecting cost several times as much as a hit. `FastPolls` answers a GET of
one document with no headers of interest beyond `If-None-Match` and `Accept-Encoding`, and leaves
all other requests to the application, untouched. Its answers are those of `Polling.poll`, because
both use `respond`.

    FastPath    puts it around an ASGI application
    FastPolls   its parts, for an application that has its own refusals, and for a server's protocol
                that answers without a task
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.routing import compile_path

from jobcache._key_template import KeyTemplate
from jobcache.errors import CacheUnavailable
from jobcache.http.conditional_get import Representation, conditions, respond
from jobcache.http.poll_spans import end_poll
from jobcache.http.polled_document import PolledDocument
from jobcache.http.reply import NO_HEADERS, Reply

if TYPE_CHECKING:
    import asyncio
    import re
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from starlette.types import ASGIApp, Receive, Scope, Send

    from jobcache.cache import JobCache
    from jobcache.http.reply import AddsHeaders
    from jobcache.models import ReadResult
    from jobcache.observability.instrumentation import Instrumentation, Span
    from jobcache.protocol.document import Document
    from jobcache.protocol.entry import Entry

    CanView = Callable[[Entry], bool]
    Find = Callable[[str], PolledDocument | None]
    Admit = Callable[[Scope], CanView | Reply | None]
    Failed = Callable[[Exception, str], Reply | None]

MATCHED = "jobcache.fast_path"
"""The name of an ASGI extension. It is in the scope of a request that `match` has examined already,
so that the application does not examine it again."""
ADDED_HEADER = "jobcache.added_header"
"""The key of a header in a scope, name and value, that the reply to this one request has besides
its own: replies are sent many times, so it is not among theirs."""
_NOT_MODIFIED = 304
_PATHS = 4096
"""The most paths whose `_PolledPath` is kept."""
_LONGEST_PATH = 512
"""The longest of them, in characters."""
_EXAMINED = frozenset(
    {
        b"prefer",
        b"host",
        b"if-none-match",
        b"accept-encoding",
        b"content-length",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that the fast path reads, and those that leave a request to the application: a wish to be
held, a body, an upgrade, or a second line of a header that is read."""


class _PolledPath:
    """A polled path: all that is the same from one poll to the next.

    Attributes:
        representation: of the entry that was shown last, in the coding that it is stored in.
    """

    __slots__ = (
        "counts",
        "document",
        "failed",
        "path",
        "peek",
        "polls",
        "read_future",
        "representation",
        "rewrite",
    )

    def __init__(self, polls: FastPolls, document: PolledDocument, path: str) -> None:
        self.polls = polls
        self.document = document
        self.rewrite = document.rewrite
        self.path = path
        self.counts = document.cache.statistics.polls
        reads = document.cache.reads
        self.peek = partial(reads.peek, document.key, document.load) if reads.can_peek else None
        self.read_future = partial(reads.read_future, document.key, document.load)
        self.representation: Representation | None = None

    def answer(
        self, can_view: CanView, if_none_match: str | None, accept_encoding: str | None
    ) -> Reply | AdmittedPoll | None:
        """Return the reply to a poll, or the poll if the entry is not in this process.

        None leaves the request to the application.
        """
        min_version = 0 if if_none_match is None else conditions(if_none_match).min_version
        try:
            result = None if self.peek is None else self.peek(min_version)
            if result is not None:
                return self.reply(result, can_view, if_none_match, accept_encoding)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self.polls.failed(error, self.path)
        return AdmittedPoll(self, can_view, if_none_match, accept_encoding, min_version)

    def reply(
        self,
        result: ReadResult,
        can_view: CanView,
        if_none_match: str | None,
        accept_encoding: str | None,
    ) -> Reply:
        """Return the reply to a poll.

        Raises:
            Exception: there is no document for this client (`PolledDocument.not_found`).
        """
        entry = result.entry
        # Not `result.missing`: this is on the path of every poll, and a property is a call.
        if entry.version == 0 or not can_view(entry):
            raise self.document.not_found()
        kept = self.representation
        if kept is None or kept.entry is not entry:  # keep it in the coding it is stored in
            gzip = entry.encoding == "gzip" and self.rewrite is None
            kept = Representation(entry, gzip=gzip, rewrite=self.rewrite)
            self.representation = kept
        reply = respond(result, if_none_match, accept_encoding, kept, self.rewrite)
        counts = self.counts  # as in `PollCounts.count`, without the call
        if reply.status == _NOT_MODIFIED:
            counts.unchanged += 1
        else:
            counts.whole += 1
        return reply


@dataclass(slots=True)
class AdmittedPoll:
    """An admitted poll of an entry that is not in this process, as an ASGI application for it.

    Attributes:
        polled: the path.
        can_view: tells whether the client may see an entry.
        if_none_match: the header, if there is one.
        accept_encoding: the header, if there is one.
        min_version: the version that the client has seen.
        span: of the poll; None without an instrumentation.
        finish: called with each reply before it is sent.
    """

    polled: _PolledPath
    can_view: CanView
    if_none_match: str | None
    accept_encoding: str | None
    min_version: int
    span: Span | None = None
    finish: Callable[[Reply], object] | None = None

    def begin(self) -> Reply | asyncio.Future[ReadResult | None] | None:
        """Begin to answer, without a task.

        Returns:
            If the entry may be in a store elsewhere, a future for `reply_to`. A reply if that
            failed. None: call this as an application.
        """
        try:
            return self.polled.read_future(self.min_version)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self._failed(error)

    def reply_to(self, reading: asyncio.Future[ReadResult | None]) -> Reply | None:
        """Return the reply, once the store has been read; None: call this as an application."""
        try:
            result = None if reading.cancelled() else reading.result()
            if result is None:
                return None
            # `_reply` without the call.
            reply = self.polled.reply(
                result, self.can_view, self.if_none_match, self.accept_encoding
            )
            return reply if self.span is None and self.finish is None else self._finished(reply)
        except CacheUnavailable:
            return None
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self._failed(error)

    async def read(self) -> Reply | None:
        """Return the reply: after a load from the source if necessary, or for an error."""
        document = self.polled.document
        try:
            with nullcontext() if self.span is None else self.span.active():
                result = await document.cache.read(
                    document.key, document.load, min_version=self.min_version
                )
            return self._reply(result)
        except Exception as error:  # noqa: BLE001 - answered as the route would
            return self._failed(error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by ASGI, instead of the whole application and with the headers that it adds."""
        polls = self.polled.polls
        with polls.within(scope):
            reply = await self.read()
        if reply is None:
            if self.span is not None:
                self.span.end({})  # the application begins another one
            await polls.app(scope, receive, send)
        else:
            await reply.send(send, polls.common_headers, scope.get(ADDED_HEADER))

    def _reply(self, result: ReadResult) -> Reply:
        reply = self.polled.reply(result, self.can_view, self.if_none_match, self.accept_encoding)
        return reply if self.span is None and self.finish is None else self._finished(reply)

    def _failed(self, error: Exception) -> Reply | None:
        reply = self.polled.polls.failed(error, self.polled.path)
        return None if reply is None else self._finished(reply)

    def _finished(self, reply: Reply) -> Reply:
        if self.span is not None:
            end_poll(self.span, reply.status, reply.headers)
        if self.finish is not None:
            self.finish(reply)
        return reply


def _follow(span: Span, poll: AdmittedPoll | Reply | None) -> None:
    """End the span of a poll with its reply, or when there is one."""
    if isinstance(poll, AdmittedPoll):
        poll.span = span
    elif poll is not None:
        end_poll(span, poll.status, poll.headers)
    else:
        span.end({})  # the application begins another one


def _leave(error: Exception, path: str) -> None:
    """Leave a request to the application, which makes the error anew and shows it its own way."""


class FastPolls:
    """Answers plain polls of an application.

    Args:
        app: the application, for polls that cannot be answered after all.
        find: returns the document of a path, or None for any other path.
        admit: called last with the scope of a poll. It returns a function that tells whether the
            client may see an entry; or a refusal; or None, which leaves the request to the
            application.
        failed: returns the reply to a poll that raised an error, for its path; or None, which
            leaves the request to the application.
        within: entered, with its scope, while the answer to a poll takes time: it may be a load.
        common_headers: those that the application adds to each response.
        hosts: tells which values of `Host` may be answered; None: any.
        left: names of headers with which a request is left to the application.
        echoed: the name of a header that each reply repeats, such as `x-request-id`.
        may_echo: tells whether a value of that header may be repeated. A request with another value
            is left to the application.
        root_path: the only `root_path` of a scope that may be answered, besides none.
        instrumentation: follows polls.

    Attributes:
        app: as given.
        failed: as given.
        within: as given.
        common_headers: as given.
    """

    def __init__(
        self,
        app: ASGIApp,
        find: Find,
        admit: Admit,
        *,
        failed: Failed = _leave,
        within: Callable[[Scope], AbstractContextManager[object]] = nullcontext,
        common_headers: AddsHeaders = NO_HEADERS,
        hosts: Mapping[bytes, bool] | None = None,
        left: Iterable[bytes] = (),
        echoed: bytes = b"",
        may_echo: Callable[[bytes], object] = bool,
        root_path: str = "",
        instrumentation: Instrumentation | None = None,
    ) -> None:
        self.app = app
        self.failed = failed
        self.within = within
        self.common_headers = common_headers
        self._find = find
        self._admit = admit
        self._hosts = hosts
        self._instrumentation = instrumentation
        traced = () if instrumentation is None else (b"traceparent",)
        self._examined = _EXAMINED.union(left, traced, (echoed,))
        self._echoed = echoed
        self._may_echo = may_echo
        self._root_path = root_path
        self._paths: dict[str, _PolledPath] = {}

    def answer(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None] | None:
        """Return what answers a request if it is a plain poll, to be awaited; else None."""
        if scope["type"] != "http" or MATCHED in (scope.get("extensions") or ()):
            return None
        poll = self.match(scope)
        if poll is None:
            return None
        if isinstance(poll, Reply):
            return poll.send(send, self.common_headers, scope.get(ADDED_HEADER))
        return poll(scope, receive, send)

    def match(  # noqa: C901, PLR0911, PLR0912 - one pass over the headers, for every poll
        self, scope: Scope
    ) -> AdmittedPoll | Reply | None:
        """Return the reply to a poll, or the poll if its entry is not in this process.

        None for any other request. One that is not None has been admitted, which may have counted
        it against its client's rate; so it must not be admitted again.

        Args:
            scope: of ASGI; of it `path`, `method`, `query_string`, `root_path`, `headers`, and what
                `admit` reads are used. It gets `ADDED_HEADER`, if there is one.
        """
        path = scope["path"]
        polled = self._paths.get(path) or self._polled(path)
        if polled is None or scope["method"] != "GET" or scope["query_string"]:
            return None
        root_path = scope.get("root_path")
        if root_path and root_path != self._root_path:
            return None
        host = if_none_match = accept_encoding = traceparent = added = None
        examined = self._examined
        for name, value in scope["headers"]:
            if name not in examined:
                continue
            if name == b"host" and host is None:
                host = value
            elif name == b"if-none-match" and if_none_match is None:
                if_none_match = value.decode("latin-1")
            elif name == b"accept-encoding" and accept_encoding is None:
                accept_encoding = value.decode("latin-1")
            elif name == b"traceparent" and traceparent is None:
                traceparent = value.decode("latin-1")
            elif name == self._echoed and added is None and self._may_echo(value):
                added = scope[ADDED_HEADER] = (name, value)
            else:
                return None
        hosts = self._hosts
        if hosts is not None and (host is None or not hosts[host]):
            return None
        can_view = self._admit(scope)
        if can_view is None or isinstance(can_view, Reply):
            return can_view
        instrumentation = self._instrumentation
        if instrumentation is None:
            return polled.answer(can_view, if_none_match, accept_encoding)
        span = instrumentation.begin("poll", "", traceparent)
        answer = polled.answer(can_view, if_none_match, accept_encoding)
        if span.followed or type(answer) is not Reply:  # neither is the usual case
            _follow(span, answer)
        return answer

    def _polled(self, path: str) -> _PolledPath | None:
        """Return the poll of a path, and keep it, whether its document exists or not."""
        document = self._find(path)
        if document is None:
            return None
        polled = _PolledPath(self, document, path)
        if len(path) <= _LONGEST_PATH:  # strangers choose paths, and not every server limits them
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            self._paths[path] = polled
        return polled


class FastPath:
    """An ASGI application that answers plain polls itself, and passes on all other requests.

        app = FastPath(
            app, cache, "/exports/{export_id:int}", key="export:{export_id}", load=load_export,
            admit=admit,
        )

    Put it outermost. A poll that it answers **bypasses everything inside of it**:

    - all middleware: authentication, CORS, sessions, rate limits, logs, metrics, tracing, added
      headers, checks of the host;
    - routing, and the prefix under which a router is included;
    - dependencies of the application, the router and the route; their exceptions, too;
    - validation of parameters, and background tasks.

    So `admit` has to decide alone whether a request may be answered. Whatever is unusual goes to
    the application: other methods, a query, `Prefer`, a body, `Origin` (a page of another origin),
    a document that does not exist or that the client may not see, and every error.

    Args:
        app: the application.
        cache: where documents are read.
        path: of the polls, with the parameters of `load` as Starlette writes them.
        key: the template of keys, such as `export:{export_id}`.
        load: reads a document. It is called with the parameters of the path, by name.
        admit: called with the scope of a poll. It returns a function that tells whether the client
            may see an entry, or None to leave the request to the application.

    Raises:
        ValueError: the key does not contain all parameters of the path.
    """

    def __init__(
        self,
        app: ASGIApp,
        cache: JobCache,
        path: str,
        *,
        key: str,
        load: Callable[..., Awaitable[Document | None]],
        admit: Callable[[Scope], CanView | None],
    ) -> None:
        self._app = app
        find = _Paths(cache, path, key, load)
        self._polls = FastPolls(
            app, find, admit, left=(b"origin",), instrumentation=cache.instrumentation
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or anything else, by ASGI."""
        await (self._polls.answer(scope, receive, send) or self._app(scope, receive, send))


class _Paths:
    """Returns the document of a path, or None for any other path."""

    def __init__(
        self,
        cache: JobCache,
        path: str,
        key: str,
        load: Callable[..., Awaitable[Document | None]],
    ) -> None:
        regex, _, self._convertors = compile_path(path)
        self._regex: re.Pattern[str] = regex
        self._cache = cache
        self._load = load
        self._key = KeyTemplate(key, [*self._convertors])

    def __call__(self, path: str) -> PolledDocument | None:
        match = self._regex.match(path)
        if match is None:
            return None
        found = match.groupdict()
        values: dict[str, Any] = {
            name: convertor.convert(found[name]) for name, convertor in self._convertors.items()
        }
        return PolledDocument(self._cache, self._key(**values), partial(self._load, **values))
