"""`PollingRoutes`: polling endpoints in an application of FastAPI."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from inspect import Parameter, Signature
from types import GenericAlias
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError, create_model

from jobcache._key_template import KeyTemplate
from jobcache.http.batch import items_body, read_visible
from jobcache.http.event_stream import EventStreams
from jobcache.http.fastapi import responses
from jobcache.http.fastapi.loaders import path_parameters
from jobcache.http.fastapi.parameters import POLL, STREAM, ids_parameter, reads
from jobcache.http.fastapi.requests import EventStream, Poll, Responder
from jobcache.http.fastapi.route import PollingRoute, is_head
from jobcache.http.held_requests import HeldRequests
from jobcache.http.polled_document import everybody
from jobcache.http.polling import Polling

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from jobcache.cache import JobCache
    from jobcache.protocol.document import Document
    from jobcache.protocol.entry import Entry

    CanView = Callable[[Entry], bool]

_RETRY_AFTER = "2"  # seconds: about how long a database takes to restart
MOST_IDS = 100
"""The most ids in one batch."""


def _not_found() -> Exception:
    return HTTPException(404)


def _unavailable(_: Exception) -> Exception:
    detail = "The source of the document cannot be reached; try again soon."
    return HTTPException(503, detail, {"Retry-After": _RETRY_AFTER})


class PollingRoutes:
    """Polling endpoints of documents, for `app.include_router(polling.router)`.

    With a path, it makes the routes. Without, use its dependencies in your own routes:

        polling = PollingRoutes(cache)

        @polling.router.get("/exports/{export_id}", response_model=Export)
        async def export(export_id: int, poll: Annotated[Poll, Depends(polling.poll)]):
            return await poll(f"export:{export_id}", partial(load_export, export_id))

    The router starts the cache with the application and closes it at the end, unless something else
    has used the cache before.

    Args:
        cache: where documents are read.
        path: of the polls, with the parameters of `load`. The event stream is at `/events` below.
        key: the template of keys, such as `export:{export_id}`. Writers make the same keys with
            `PollingRoutes.key`.
        load: reads one document, or returns None. It is called with the parameters of the path, by
            name, and nothing else: loads are shared by requests. Their types are declared here.
        load_many: reads many documents: called with ids, returns documents by id.
        batch: the path of batches, such as `/exports?ids=1,2,3`.
        authorize: a dependency that returns a function. The function gets the entry, and returns
            True if the client may see it. None: every client sees every document.
        client: a dependency that returns the name of the client; one client gets at most half of
            the held requests. None: they are limited together only.
        response_model: of a document, for the OpenAPI document. Nothing is validated.
        held: the held requests of this process; share one between all `PollingRoutes`. None: a new
            one, with `most_held`.
        most_held: the most requests that are held at once.
        longest_wait: the most seconds that a poll is held.
        heartbeat: seconds after which a comment shows that a quiet stream is alive.
        stream_seconds: about so many seconds a stream lasts, before the client has to reconnect.
        polling: answers the requests, in place of one with the settings above.
        not_found: returns the exception to raise if there is no document for a client.
        unavailable: returns the exception to raise if the source or the cache is away.

    Attributes:
        router: the router.
        held: the held requests. `held.shutdown.begin()` ends them.
        key: the template of keys, if a path was given.

    Raises:
        TypeError: the loader's parameters are not those of the path, or one is a dependency.
        ValueError: the key does not contain all parameters of the path.
    """

    key: KeyTemplate

    def __init__(
        self,
        cache: JobCache,
        path: str | None = None,
        *,
        key: str = "",
        load: Callable[..., Awaitable[Document | None]] | None = None,
        load_many: Callable[[Sequence[Any]], Awaitable[Mapping[Any, Document]]] | None = None,
        batch: str | None = None,
        authorize: Callable[..., Any] | None = None,
        client: Callable[..., Any] | None = None,
        response_model: Any = None,  # noqa: ANN401 - anything that FastAPI takes
        held: HeldRequests | None = None,
        most_held: int = 10_000,
        longest_wait: int = 55,
        heartbeat: float = 15.0,
        stream_seconds: float = 300.0,
        polling: Polling | None = None,
        not_found: Callable[[], Exception] = _not_found,
        unavailable: Callable[[Exception], Exception] = _unavailable,
    ) -> None:
        self.held = HeldRequests(most_held, cache.cancel_waiters) if held is None else held
        if polling is None:
            streams = EventStreams(self.held, heartbeat=heartbeat, lasts=stream_seconds)
            polling = Polling(streams, longest_wait=longest_wait)
        self._authorize = authorize
        self._client = client
        self._responder = Responder(cache, polling, not_found, unavailable)
        self.router = APIRouter(route_class=PollingRoute, lifespan=self._lifespan)
        if path is None:
            if load is not None or load_many is not None or batch is not None:
                raise TypeError("`load`, `load_many` and `batch` need a `path`")
            return
        if load is None:
            raise TypeError("a `path` needs `load`")
        parameters = path_parameters(path, load)
        self.key = KeyTemplate(key, [*parameters])
        self._add_document(path, parameters, load, response_model)
        if batch is not None:
            if load_many is None or len(parameters) != 1:
                raise TypeError("`batch` needs `load_many`, and a path with one parameter")
            self._add_batch(batch, parameters, load_many, response_model)

    @asynccontextmanager
    async def _lifespan(self, _: object) -> AsyncIterator[None]:
        cache = self._responder.cache
        is_owner = not cache.in_use
        if is_owner:
            await cache.start()
        try:
            yield
        finally:
            self.held.shutdown.close()
            if is_owner:
                await cache.aclose()

    # --- dependencies ---

    @reads(POLL)
    async def poll(self, request: Request) -> Poll:
        """Return the poll of this request: a dependency."""
        return Poll(self._responder, request.scope["headers"])

    @reads(STREAM)
    async def events(self, request: Request) -> EventStream:
        """Return the event stream of this request: a dependency."""
        return EventStream(self._responder, request.scope["headers"], head=is_head(request))

    # --- routes ---

    def _add_document(
        self,
        path: str,
        parameters: Mapping[str, Any],
        load: Callable[..., Awaitable[Document | None]],
        response_model: Any,  # noqa: ANN401 - anything that FastAPI takes
    ) -> None:
        poll = self._endpoint(parameters, load, Poll, self.poll)
        stream = self._endpoint(parameters, load, EventStream, self.events)
        poll.__doc__, stream.__doc__ = _POLL_TEXT, _STREAM_TEXT
        self.router.get(
            path,
            response_model=response_model,
            responses=responses.polled(),
            name=f"poll_{_name(path)}",
        )(poll)
        self.router.get(
            f"{path}/events",
            response_class=Response,
            responses=responses.streamed(),
            name=f"stream_{_name(path)}",
        )(stream)

    def _endpoint(
        self,
        parameters: Mapping[str, Any],
        load: Callable[..., Awaitable[Document | None]],
        kind: type,
        request: Callable[..., Any],
    ) -> Callable[..., Any]:
        """Return an endpoint with the parameters of its path and its dependencies.

        Args:
            parameters: of the path, with their types.
            load: reads the document.
            kind: what the next argument returns: `Poll` or `EventStream`.
            request: the dependency that returns the client's request.
        """
        key = self.key

        async def endpoint(
            *,
            polling_request: Poll | EventStream,
            polling_can_view: CanView = everybody,
            polling_client: str = "",
            **values: Any,  # noqa: ANN401 - of any type that paths can have
        ) -> Response:
            return await polling_request(
                key(**values), partial(load, **values), polling_can_view, name=polling_client
            )

        declared = [_parameter(name, hint) for name, hint in parameters.items()]
        for name, result, dependency in (
            ("polling_request", kind, request),
            ("polling_can_view", Any, self._authorize),
            ("polling_client", str, self._client),
        ):
            if dependency is not None:
                declared.append(_parameter(name, Annotated[result, Depends(dependency)]))
        endpoint.__signature__ = Signature(declared)  # type: ignore[attr-defined]
        return endpoint

    def _add_batch(
        self,
        path: str,
        parameters: Mapping[str, Any],
        load_many: Callable[[Sequence[Any]], Awaitable[Mapping[Any, Document]]],
        response_model: Any,  # noqa: ANN401 - anything that FastAPI takes
    ) -> None:
        ((name, hint),) = parameters.items()
        adapter: TypeAdapter[Any] = TypeAdapter(hint)
        key, responder = self.key, self._responder

        async def batch(ids: str, polling_can_view: CanView = everybody) -> Response:
            wanted = _read_ids(ids, adapter)
            keys = {key(**{name: each}): each for each in wanted}

            async def respond() -> Response:
                found = await read_visible(responder.cache, keys, load_many, polling_can_view)
                missing = [
                    adapter.dump_python(each, mode="json") for each in wanted if each not in found
                ]
                body = items_body(found.values(), "missing", missing)
                headers = {"Cache-Control": "private, no-cache"}
                return Response(body, headers=headers, media_type="application/json")

            return await responder.respond(respond())

        listed = Query(max_length=MOST_IDS * 60, include_in_schema=False)
        declared = [_parameter("ids", Annotated[str, listed])]
        if self._authorize is not None:
            depends = Depends(self._authorize)
            declared.append(_parameter("polling_can_view", Annotated[Any, depends]))
        batch.__signature__ = Signature(declared)  # type: ignore[attr-defined]
        model: Any = None
        if response_model is not None:
            item = getattr(response_model, "__name__", "Document")
            members: dict[str, Any] = {
                "items": (GenericAlias(list, response_model), ...),
                "missing": (GenericAlias(list, hint), ...),
            }
            model = create_model(f"{item}Batch", **members)
        batch.__doc__ = "Return many documents at once, from the cache."
        self.router.get(
            path,
            response_model=model,
            responses=responses.batched(),
            openapi_extra={"parameters": [ids_parameter(adapter.json_schema(), MOST_IDS)]},
            name=f"batch_{_name(path)}",
        )(batch)


_POLL_TEXT = """Return a document, from the cache. `Retry-After` says when to poll again.

With `Prefer: wait` and the known version in `If-None-Match`, the request is answered when there is
a newer version, or when the time is up. `Preference-Applied` confirms that."""
_STREAM_TEXT = """Send a document as server-sent events, until its final version.

The name of each event is `status`, its `id` the version, and its `data` the document as a poll
returns it. A slow client misses versions in between, but never the last one. A stream may end
before. The client then reconnects with `Last-Event-ID`, as browsers do."""


def _parameter(name: str, annotation: Any) -> Parameter:  # noqa: ANN401 - of any kind
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation)


def _name(path: str) -> str:
    """Return a path as part of a name: `/exports/{export_id}` is `exports`."""
    words = (part for part in path.split("/") if part and not part.startswith("{"))
    return "_".join(words) or "document"


def _read_ids(text: str, adapter: TypeAdapter[Any]) -> list[Any]:
    """Return the ids of a batch, each once, in their order.

    Raises:
        RequestValidationError: a part is not an id, or there are too many.
    """
    parts = text.split(",")
    if len(parts) > MOST_IDS:
        raise _invalid(f"at most {MOST_IDS} ids")
    try:
        return list(dict.fromkeys(map(adapter.validate_python, parts)))
    except ValidationError as error:
        raise _invalid(error.errors()[0]["msg"]) from None


def _invalid(message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": ("query", "ids"), "msg": message, "type": "value"}])
