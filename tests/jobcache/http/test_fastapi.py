"""Polling endpoints in somebody's application of FastAPI.

Without postponed annotations: those of endpoints refer to local variables.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from jobcache import Document, Entry, JobCache, with_session
from jobcache.http.fastapi import EventStream, Poll, PollingRoutes
from jobcache.http.fastapi.loaders import path_parameters
from jobcache.http.held_requests import HeldRequests
from jobcache.http.json_document import json_document
from tests.jobcache.http.exports import Export, Exports, calling, frames

CanView = Callable[[Entry], bool]
OWN = {"X-Client": "acme"}


class Shown(BaseModel):
    id: int
    percent: int
    text: str


async def may_view(x_client: Annotated[str, Header()]) -> CanView:
    """Refuse a request without a client, and hide the exports of others."""
    if x_client == "banned":
        raise HTTPException(401)
    return lambda entry: entry.owner == x_client


async def client_name(x_client: Annotated[str, Header()]) -> str:
    return x_client


@pytest.fixture
async def exports() -> AsyncIterator[Exports]:
    async with JobCache.from_url("memory://") as cache:
        yield Exports(cache)


def application(exports: Exports, **options: Any) -> FastAPI:
    app = FastAPI()
    polling = PollingRoutes(
        exports.cache,
        "/exports/{export_id}",
        key="export:{export_id}",
        load=exports.load,
        load_many=exports.load_many,
        batch="/exports",
        authorize=may_view,
        client=client_name,
        response_model=Shown,
        **options,
    )
    app.include_router(polling.router, prefix="/v1")
    app.state.polling = polling
    return app


async def test_a_document_is_polled_and_not_sent_twice(exports: Exports) -> None:
    app = application(exports)
    async with calling(app) as client:
        first = await client.get("/v1/exports/7", headers=OWN)
        assert first.json() == {"id": 7, "percent": 0, "text": ""}
        assert first.headers["etag"] == '"1-0"'
        assert first.headers["cache-status"].startswith("jobcache; fwd=miss")
        assert first.headers["retry-after"] == "2"
        again = {**OWN, "If-None-Match": first.headers["etag"]}
        second = await client.get("/v1/exports/7", headers=again)
        assert (second.status_code, second.content) == (304, b"")
        assert second.headers["cache-status"].startswith("jobcache; hit")
        assert second.headers["age"] == "0"
        head = await client.head("/v1/exports/7", headers=OWN)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == first.headers["content-length"]
        assert exports.loads == [7]
        newer = await client.get("/v1/exports/7", headers={**OWN, "If-None-Match": '"2-0"'})
        assert (newer.status_code, exports.loads) == (200, [7, 7])
        await exports.change(7, percent=100)
        last = await client.get("/v1/exports/7", headers=again)
        assert last.json()["percent"] == 100
        assert "retry-after" not in last.headers


async def test_a_large_document_goes_out_as_it_is_stored(exports: Exports) -> None:
    exports.rows[7] = Export(7, text="x" * 5000)
    async with calling(application(exports)) as client:
        request = client.build_request(
            "GET", "/v1/exports/7", headers={**OWN, "Accept-Encoding": "gzip"}
        )
        response = await client.send(request, stream=True)
        raw = b"".join([piece async for piece in response.aiter_raw()])
        assert response.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(raw))["text"] == "x" * 5000
        entry = await exports.cache.backend.get("export:7")
        assert entry is not None
        assert raw == entry.encoded_body


async def test_the_owner_is_checked_on_a_hit_as_on_a_miss(exports: Exports) -> None:
    async with calling(application(exports)) as client:
        answers = [
            await client.get(f"/v1/exports/{export}{events}", headers={"X-Client": name})
            for name in ("other", "acme", "other")
            for export in (7, 8)
            for events in ("", "/events")
            if (name, export, events) != ("acme", 7, "/events")
        ]
        assert [each.status_code for each in answers] == [404] * 4 + [200] + [404] * 6
        assert {each.text for each in answers if each.status_code == 404} == {
            '{"detail":"Not Found"}'
        }
        assert (
            await client.get("/v1/exports/7", headers={"X-Client": "banned"})
        ).status_code == 401
        assert (await client.get("/v1/exports/7")).status_code == 422
        assert (await client.get("/v1/exports/x", headers=OWN)).status_code == 422


async def test_errors_take_the_form_that_the_application_gives_them(exports: Exports) -> None:
    app = application(exports)

    @app.exception_handler(HTTPException)
    async def problem(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse({"code": error.status_code}, error.status_code, error.headers)

    async with calling(app) as client:
        missing = await client.get("/v1/exports/8", headers=OWN)
        assert (missing.status_code, missing.json()) == (404, {"code": 404})
        exports.away = True
        away = await client.get("/v1/exports/7", headers=OWN)
        assert (away.status_code, away.json()) == (503, {"code": 503})
        assert away.headers["retry-after"] == "2"


async def test_what_cannot_be_a_key_does_not_exist(exports: Exports) -> None:
    app = FastAPI()

    async def load(name: str) -> Document | None:
        return await exports.load(int(name))

    own = PollingRoutes(exports.cache)

    @own.router.get("/exports/{name}")
    async def export(name: str, poll: Annotated[Poll, Depends(own.poll)]) -> Any:
        return await poll(f"export:{name}", partial(load, name))

    @own.router.get("/exports/{name}/events")
    async def events(name: str, stream: Annotated[EventStream, Depends(own.events)]) -> Any:
        return await stream(f"export:{name}", partial(load, name))

    @own.router.get("/mistakes/{name}")
    async def mistake(name: int, poll: Annotated[Poll, Depends(own.poll)]) -> Any:
        return await poll(name, partial(load, "7"))  # type: ignore[arg-type]

    app.include_router(own.router)
    async with calling(app) as client:
        assert (await client.get("/exports/7")).status_code == 200
        for name in ("7" * 5000, "%00" * 5000):
            for path in (f"/exports/{name}", f"/exports/{name}/events"):
                assert (await client.get(path)).status_code == 404
        with pytest.raises(TypeError, match="a key is a str"):
            await client.get("/mistakes/7")


async def test_a_poll_waits_for_the_next_version(exports: Exports) -> None:
    async with calling(application(exports)) as client:
        waiting = {**OWN, "If-None-Match": '"1-0"', "Prefer": "wait=50"}
        held = [
            asyncio.create_task(client.request(method, "/v1/exports/7", headers=waiting))
            for method in ("GET", "HEAD")
        ]
        await exports.waited(2)
        await exports.change(7, percent=10)
        get, head = await asyncio.gather(*held)
        assert (get.status_code, get.json()["percent"]) == (200, 10)
        assert (head.status_code, head.content) == (200, b"")
        for answer in (get, head):
            assert answer.headers["etag"] == '"2-0"'
            assert answer.headers["preference-applied"] == "wait=50"


async def test_a_later_version_is_authorised_again(exports: Exports) -> None:
    """Nothing of a version that belongs to another client is sent to one that waits for it."""
    app = application(exports)
    async with calling(app) as client:
        waiting = {**OWN, "If-None-Match": '"1-0"', "Prefer": "wait=50"}
        held = asyncio.create_task(client.get("/v1/exports/7", headers=waiting))
        stream = frames(app, "/v1/exports/7/events", (b"x-client", b"acme"))
        assert (await anext(stream)).startswith(b"retry: ")
        assert b'"percent": 0' in await anext(stream)
        following = asyncio.ensure_future(anext(stream, None))
        await exports.waited(2)
        await exports.change(7, owner="other", text="secret")
        answer = await held
        assert (answer.status_code, answer.content) == (304, b"")
        assert await following is None
        assert (await client.get("/v1/exports/7", headers=waiting)).status_code == 404


async def test_a_stream_is_resumed_and_ends_with_the_final_version(exports: Exports) -> None:
    app = application(exports, heartbeat=0.01)
    own = (b"x-client", b"acme")
    async with aclosing(frames(app, "/v1/exports/7/events", own)) as stream:
        pieces = [await anext(stream), await anext(stream), await anext(stream)]
        assert pieces[1].startswith(b"id: 1\nevent: status\ndata: {")
        assert pieces[2] == b":\n\n", "a heartbeat"
    await exports.change(7, percent=50)
    await exports.change(7, percent=100)
    resumed = frames(app, "/v1/exports/7/events", own, (b"last-event-id", b"2"))
    events = [piece async for piece in resumed if piece.startswith(b"id")]
    assert [event.partition(b"\n")[0] for event in events] == [b"id: 3"]
    async with calling(app) as client:
        for ask in (client.get, client.head):
            ended = await ask("/v1/exports/7/events", headers={**OWN, "Last-Event-ID": "3"})
            assert (ended.status_code, ended.content) == (204, b"")
        head = await client.head("/v1/exports/7/events", headers=OWN)
        assert head.headers["content-type"] == "text/event-stream"


async def test_a_batch_is_one_load(exports: Exports) -> None:
    exports.rows |= {8: Export(8), 9: Export(9, owner="other")}
    async with calling(application(exports)) as client:
        await client.get("/v1/exports/7", headers=OWN)
        answer = await client.get("/v1/exports?ids=8,7,9,8,10", headers=OWN)
        assert [item["id"] for item in answer.json()["items"]] == [8, 7]
        assert answer.json()["missing"] == [9, 10]
        assert exports.loads == [7, 8, 9, 10]
        for ids in ("", "x", "8,,7", ",".join(map(str, range(101)))):
            assert (await client.get(f"/v1/exports?ids={ids}", headers=OWN)).status_code == 422


async def test_held_requests_are_limited(exports: Exports) -> None:
    app = application(exports, most_held=2)
    waiting = {"If-None-Match": '"1-0"', "Prefer": "wait=50"}
    async with calling(app) as client:
        held = asyncio.create_task(client.get("/v1/exports/7", headers={**OWN, **waiting}))
        await exports.waited()
        more = await client.get("/v1/exports/7", headers={**OWN, **waiting})
        assert (more.status_code, "preference-applied" in more.headers) == (304, False)
        refused = await client.get("/v1/exports/7/events", headers=OWN)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        app.state.polling.held.shutdown.begin()
        assert (await held).status_code == 304


async def test_dependencies_are_released_before_a_request_is_held(exports: Exports) -> None:
    opened = 0

    async def session() -> AsyncIterator[None]:
        nonlocal opened
        opened += 1
        yield
        opened -= 1

    app, polling = FastAPI(), PollingRoutes(exports.cache)

    @polling.router.get("/own/{export_id}", dependencies=[Depends(session)])
    async def own(export_id: int, poll: Annotated[Poll, Depends(polling.poll)]) -> Any:
        assert opened == 1
        return await poll(f"export:{export_id}", partial(exports.load, export_id))

    @polling.router.get("/own/{export_id}/events", dependencies=[Depends(session)])
    async def stream(
        export_id: int, events: Annotated[EventStream, Depends(polling.events)]
    ) -> Any:
        return await events(f"export:{export_id}", partial(exports.load, export_id))

    outer = APIRouter()
    outer.include_router(polling.router)
    app.include_router(outer, prefix="/nested", dependencies=[Depends(session)])
    async with calling(app) as client:
        waiting = {"If-None-Match": '"1-0"', "Prefer": "wait=50"}
        held = asyncio.create_task(client.get("/nested/own/7", headers=waiting))
        streamed = frames(app, "/nested/own/7/events")
        await anext(streamed)
        await anext(streamed)
        following = asyncio.ensure_future(anext(streamed))
        await exports.waited(2)
        assert opened == 0
        await exports.change(7, percent=10)
        assert (await held).json()["percent"] == 10
        assert b'"percent": 10' in await following
        assert (await client.head("/nested/own/7")).status_code == 200
        await streamed.aclose()


async def test_the_router_starts_the_cache_and_ends_what_is_held() -> None:
    cache = JobCache.from_url("memory://")
    exports = Exports(cache)
    app = application(exports)
    async with calling(app) as client:
        async with app.router.lifespan_context(app):
            assert cache.in_use
            waiting = {**OWN, "If-None-Match": '"1-0"', "Prefer": "wait=50"}
            held = asyncio.create_task(client.get("/v1/exports/7", headers=waiting))
            await exports.waited()
        assert (await held).status_code == 304
    assert not cache.in_use


async def test_a_cache_that_was_in_use_is_left_open(exports: Exports) -> None:
    await exports.cache.read("export:7", partial(exports.load, 7))
    app = application(exports)
    async with app.router.lifespan_context(app):
        pass
    assert exports.cache.in_use


def test_the_openapi_document_describes_them() -> None:
    exports = Exports(JobCache.from_url("memory://"))
    document = application(exports).openapi()
    poll = document["paths"]["/v1/exports/{export_id}"]
    assert set(poll) == {"get"}
    names = {each["name"]: each["schema"].get("type") for each in poll["get"]["parameters"]}
    assert names == {
        "export_id": "integer",
        "if-none-match": "string",
        "accept-encoding": "string",
        "prefer": "string",
        "x-client": "string",
    }
    shown = poll["get"]["responses"]["200"]
    assert shown["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Shown"}
    assert {"ETag", "Retry-After", "Cache-Status"} <= shown["headers"].keys()
    assert "304" in poll["get"]["responses"]
    stream = document["paths"]["/v1/exports/{export_id}/events"]["get"]["responses"]
    assert set(stream) == {"200", "204", "404", "422", "503"}
    batch = document["components"]["schemas"]["ShownBatch"]["properties"]
    assert batch["items"]["items"] == {"$ref": "#/components/schemas/Shown"}
    assert batch["missing"]["items"] == {"type": "integer"}


async def nothing(export_id: int) -> Document | None:
    raise NotImplementedError


async def of_session(session: object, export_id: int) -> Document | None:
    raise NotImplementedError


async def with_dependency(export_id: int, session: Annotated[Any, Depends(may_view)]) -> None:
    raise NotImplementedError


async def with_more(export_id: int, other: int) -> None:
    raise NotImplementedError


async def without(other: int = 0) -> None:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"load": with_dependency}, "a load is shared by requests"),
        ({"load": with_more}, "'other', which '/exports/{export_id}' does not have"),
        ({"load": without}, "no parameter 'export_id'"),
        ({"load": lambda *_: None}, "by name"),
        ({"key": "export"}, "must contain {export_id}"),
        ({"key": "{export_id}:{x}"}, "no other fields"),
        ({"batch": "/exports"}, "`load_many`"),
        ({"load": None}, "needs `load`"),
        ({"path": None}, "need a `path`"),
    ],
)
def test_a_mistake_is_found_when_the_routes_are_made(
    arguments: dict[str, Any], message: str
) -> None:
    right = {"path": "/exports/{export_id}", "key": "export:{export_id}", "load": nothing}
    cache = JobCache.from_url("memory://")
    with pytest.raises((TypeError, ValueError), match=message.replace("{", r"\{")):
        PollingRoutes(cache, **(right | arguments))


def test_a_loader_may_open_its_own_session() -> None:
    load = with_session(lambda: None, of_session)  # type: ignore[arg-type, return-value]
    routes = PollingRoutes(
        JobCache.from_url("memory://"), "/x/{export_id}", key="x:{export_id}", load=load
    )
    assert routes.key(export_id=7) == "x:7"


def test_no_two_documents_share_a_key() -> None:
    async def load(tenant: str, name: str) -> None:
        raise NotImplementedError

    routes = PollingRoutes(
        JobCache.from_url("memory://"), "/{tenant}/{name}", key="{tenant}:{name}", load=load
    )
    assert routes.key(tenant="a:b", name="c") != routes.key(tenant="a", name="b:c")
    assert routes.key(tenant="acme", name="report") == "acme:report"


async def test_what_authorises_returns_a_function(exports: Exports) -> None:
    routes = PollingRoutes(
        exports.cache,
        "/exports/{export_id}",
        key="export:{export_id}",
        load=exports.load,
        authorize=lambda: True,
    )
    app = FastAPI()
    app.include_router(routes.router)
    async with calling(app) as client:
        with pytest.raises(TypeError, match="`authorize` must return a function"):
            await client.get("/exports/7")


@pytest.mark.parametrize("arguments", [{}, {"poll_after": 2, "final": True}])
def test_a_document_says_whether_it_is_final(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="poll_after"):
        json_document({}, version=1, **arguments)


def test_a_model_is_a_document() -> None:
    document = json_document(Shown(id=7, percent=1, text=""), version=1, final=True)
    assert document.body == b'{"id":7,"percent":1,"text":""}'


async def test_routes_can_share_their_held_requests(exports: Exports) -> None:
    held = HeldRequests(1, exports.cache.cancel_waiters)
    assert PollingRoutes(exports.cache, held=held).held is held


def test_a_loader_may_be_a_partial_function_or_a_callable_object() -> None:
    class Table:
        async def __call__(self, export_id: int) -> Document | None:
            raise AssertionError(export_id)

    async def load(table: str, export_id: int) -> Document | None:
        raise AssertionError(table, export_id)

    loaders: list[Callable[..., Any]] = [Table(), partial(load, "exports")]
    for loader in loaders:
        assert path_parameters("/exports/{export_id}", loader) == {"export_id": int}
