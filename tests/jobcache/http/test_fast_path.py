"""The outermost wrapper answers plain polls as the route does, and leaves all others to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from jobcache import Entry, JobCache
from jobcache.http.event_stream import EventStreams
from jobcache.http.fast_path import FastPath
from jobcache.http.held_requests import HeldRequests
from jobcache.http.polled_document import PolledDocument
from jobcache.http.polling import Polling
from tests.jobcache.http.exports import Export, Exports, calling

OWN = {"X-Client": "acme"}


class Counted:
    """A plain application of Starlette, whose requests are counted."""

    def __init__(self, exports: Exports) -> None:
        self.requests = 0
        polling = Polling(EventStreams(HeldRequests(10, exports.cache.cancel_waiters)))

        async def export(request: Request) -> Response:
            export_id, client = request.path_params["export_id"], request.headers["x-client"]
            document = PolledDocument(
                exports.cache,
                f"export:{export_id}",
                partial(exports.load, export_id),
                lambda entry: entry.owner == client,
            )
            return await polling.poll(document, request.headers.raw)

        self._app = Starlette(routes=[Route("/exports/{export_id:int}", export)])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        await self._app(scope, receive, send)


def admit(scope: Scope) -> Callable[[Entry], bool] | None:
    client = dict(scope["headers"]).get(b"x-client")
    if client is None:
        return None
    owner = client.decode()
    return lambda entry: entry.owner == owner


def wrapped(app: ASGIApp, exports: Exports) -> FastPath:
    return FastPath(
        app,
        exports.cache,
        "/exports/{export_id:int}",
        key="export:{export_id}",
        load=exports.load,
        admit=admit,
    )


@pytest.fixture(params=["memory", "redis"])
async def exports(request: pytest.FixtureRequest) -> AsyncIterator[Exports]:
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    # Two answers to compare are to be of the same age.
    now_ms = 1_700_000_000_000
    async with JobCache.from_url(url, prefix="fast-path:", clock_ms=lambda: now_ms) as cache:
        await cache.invalidate_all()
        yield Exports(cache)


async def test_plain_polls_do_not_reach_the_application(exports: Exports) -> None:
    exports.rows |= {8: Export(8, text="x" * 5000)}
    counted = Counted(exports)
    fast = wrapped(counted, exports)
    async with calling(fast) as client, calling(counted) as slow:
        for path in ("/exports/7", "/exports/8"):
            await client.get(path, headers=OWN)  # loads it
            for extra in (
                {},
                {"If-None-Match": '"1-0"'},
                {"If-None-Match": '"9-0"'},
                {"Accept-Encoding": "identity"},
            ):
                before = counted.requests
                answer = await client.get(path, headers={**OWN, **extra})
                assert counted.requests == before, (path, extra)
                expected = await slow.get(path, headers={**OWN, **extra})
                assert (answer.status_code, answer.headers, answer.content) == (
                    expected.status_code,
                    expected.headers,
                    expected.content,
                )


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/exports/7", {}, 500),  # not admitted, and the route has no client
        ("/exports/7", {"X-Client": "other"}, 404),
        ("/exports/9", OWN, 404),
        ("/exports/x", OWN, 404),
        ("/exports/7?x=1", OWN, 200),
        ("/exports/7", {**OWN, "Origin": "https://elsewhere"}, 200),
        ("/exports/7", {**OWN, "Prefer": "wait=0"}, 200),
    ],
)
async def test_all_other_requests_are_left_to_it(
    exports: Exports, path: str, headers: dict[str, str], status: int
) -> None:
    counted = Counted(exports)
    fast = wrapped(counted, exports)
    async with calling(fast, raise_app_exceptions=False) as client:
        await exports.cache.read("export:7", partial(exports.load, 7))
        answer = await client.get(path, headers=headers)
        assert (answer.status_code, counted.requests) == (status, 1)
        if status == 200:
            exports.rows[7] = Export(7, version=2, owner="other")
            await exports.change(7, percent=10)
            assert (await client.get(path, headers=headers)).status_code == 404
            assert counted.requests == 2


async def test_paths_are_kept_if_they_are_short_and_few() -> None:
    async with JobCache.from_url("memory://") as cache:
        exports = Exports(cache)
        fast = FastPath(
            Counted(exports),
            cache,
            "/exports/{name}",
            key="export:{name}",
            load=lambda name: exports.load(int(name[:1])),
            admit=lambda _: lambda _: True,
        )
        async with calling(fast) as http:
            for name in ("7", "7" + "0" * 600):
                for _ in range(3):
                    assert (await http.get(f"/exports/{name}")).json()["id"] == 7
        assert list(fast._polls._paths) == ["/exports/7"]


async def test_an_error_of_the_source_is_shown_by_the_application(exports: Exports) -> None:
    counted = Counted(exports)
    fast = wrapped(counted, exports)
    exports.away = True
    async with calling(fast, raise_app_exceptions=False) as client:
        assert (await client.get("/exports/7", headers=OWN)).status_code == 500
        assert counted.requests == 1
        assert (await client.head("/exports/7", headers=OWN)).status_code == 500
        assert counted.requests == 2
