"""One request of a client, as a dependency hands it to an endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobcache.errors import CacheError, InvalidKey, SourceUnavailable
from jobcache.http.polled_document import PolledDocument, everybody

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import Response

    from jobcache.cache import JobCache
    from jobcache.http.polling import Polling
    from jobcache.http.request_headers import RequestHeaders
    from jobcache.models import Load
    from jobcache.protocol.entry import Entry


class Responder:
    """What all requests of one `PollingRoutes` need.

    Args:
        cache: where documents are read.
        polling: answers the requests.
        not_found: returns the exception to raise if there is no document for a client.
        unavailable: returns the exception to raise instead of a `SourceUnavailable` or
            `CacheError`. It may return the error itself.
    """

    __slots__ = ("_not_found", "_unavailable", "cache", "polling")

    def __init__(
        self,
        cache: JobCache,
        polling: Polling,
        not_found: Callable[[], Exception],
        unavailable: Callable[[Exception], Exception],
    ) -> None:
        self.cache = cache
        self.polling = polling
        self._not_found = not_found
        self._unavailable = unavailable

    def document(
        self, key: str, load: Load, can_view: Callable[[Entry], bool], name: str
    ) -> PolledDocument:
        """Return the document of a request."""
        if not isinstance(key, str):
            raise TypeError(f"a key is a str; this one is a {type(key).__name__}")
        if not callable(can_view):
            raise TypeError(
                "`authorize` must return a function that gets an entry and returns a bool;"
                f" it returned a {type(can_view).__name__}"
            )
        return PolledDocument(self.cache, key, load, can_view, self._not_found, name=name)

    async def respond(self, response: Awaitable[Response]) -> Response:
        """Return a response; if the source or the cache is away, raise what the user wants."""
        try:
            return await response
        except InvalidKey:
            raise self._not_found() from None  # the client has sent what no document can be called
        except (SourceUnavailable, CacheError) as error:
            raised = self._unavailable(error)
            if raised is error:
                raise
            raise raised from error


class Poll:
    """A poll. Call it with the document that the client asks for, and return its response.

    An endpoint gets it from the dependency `PollingRoutes.poll`.
    """

    __slots__ = ("_headers", "_responder")

    def __init__(self, responder: Responder, headers: RequestHeaders) -> None:
        self._responder = responder
        self._headers = headers

    async def __call__(
        self,
        key: str,
        load: Load,
        can_view: Callable[[Entry], bool] = everybody,
        *,
        name: str = "",
    ) -> Response:
        """Return the response to the poll.

        Args:
            key: the key of the document.
            load: reads the document; it is shared by all requests, so it may use nothing that
                belongs to this one, such as a database session.
            can_view: tells whether the client may see an entry. It is called for each version,
                before anything of it is sent.
            name: of the client. One with a name gets at most half of the held requests.

        Raises:
            HTTPException: 404, there is no document that the client may see; 503, the source is
                away, and the cache has no entry.
        """
        return await self.respond(self._responder.document(key, load, can_view, name))

    async def respond(self, document: PolledDocument) -> Response:
        """Return the response to the poll of a document; see `__call__`."""
        return await self._responder.respond(self._responder.polling.poll(document, self._headers))


class EventStream:
    """A request for an event stream. Call it with the document, and return its response.

    An endpoint gets it from the dependency `PollingRoutes.events`.
    """

    __slots__ = ("_head", "_headers", "_responder")

    def __init__(self, responder: Responder, headers: RequestHeaders, *, head: bool) -> None:
        self._responder = responder
        self._headers = headers
        self._head = head

    async def __call__(
        self,
        key: str,
        load: Load,
        can_view: Callable[[Entry], bool] = everybody,
        *,
        name: str = "",
    ) -> Response:
        """Return the response that streams the document; the arguments are as for `Poll`."""
        return await self.respond(self._responder.document(key, load, can_view, name))

    async def respond(self, document: PolledDocument) -> Response:
        """Return the response that streams a document; see `Poll`."""
        return await self._responder.respond(
            self._responder.polling.stream(document, self._headers, head=self._head)
        )
