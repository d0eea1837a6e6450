"""A request is answered again only if the route has just answered the same one.

Without postponed annotations: those of endpoints refer to local variables.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Response

from jobcache import JobCache
from jobcache.http.fastapi import Poll, PollingRoutes
from jobcache.http.repeated_polls import RepeatedPolls
from tests.jobcache.http.exports import Export, Exports, calling

OWN = {"Authorization": "a", "X-Request-Id": "1"}


class Service:
    """An application behind `RepeatedPolls`.

    Attributes:
        asked: how often its route was asked.
        added: the headers that its route adds to a response.
        now: the time, in seconds.
    """

    def __init__(self, exports: Exports) -> None:
        self.exports = exports
        self.asked = 0
        self.added: dict[str, str] = {}
        self.now = 100.0
        self.revoked = False
        polling = PollingRoutes(exports.cache)
        self.app = FastAPI()

        async def tenant(authorization: Annotated[str, Header()]) -> str:
            self.asked += 1
            if self.revoked:
                raise HTTPException(401)
            return {"a": "acme", "o": "other"}[authorization]

        @polling.router.get("/exports/{export_id}")
        async def export(
            export_id: int,
            owner: Annotated[str, Depends(tenant)],
            poll: Annotated[Poll, Depends(polling.poll)],
        ) -> Response:
            response = await poll(
                f"export:{export_id}",
                partial(exports.load, export_id),
                lambda entry: entry.owner == owner,
            )
            for name, value in self.added.items():
                response.headers[name] = value
            return response

        self.app.include_router(polling.router)
        self.app.add_middleware(RepeatedPolls, seconds=5, clock=lambda: self.now)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with JobCache.from_url("memory://") as cache:
        yield Service(Exports(cache))


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with calling(service.app) as client:
        await client.get("/exports/7", headers=OWN)
        assert service.asked == 1
        yield client


async def test_the_same_request_is_not_asked_of_the_route_for_some_seconds(
    service: Service, client: httpx.AsyncClient
) -> None:
    for _ in range(3):
        answer = await client.get("/exports/7", headers=OWN)
        assert answer.json() == {"id": 7, "percent": 0, "text": ""}
        tagged = await client.get("/exports/7", headers={**OWN, "If-None-Match": '"1-0"'})
        assert (tagged.status_code, tagged.content) == (304, b"")
    assert service.asked == 1
    service.now += 5
    assert (await client.get("/exports/7", headers=OWN)).status_code == 200
    assert service.asked == 2


async def test_it_is_answered_as_the_route_would(
    service: Service, client: httpx.AsyncClient
) -> None:
    service.exports.rows[8] = Export(8, text="x" * 5000)
    service.added = {"X-Added": "1", "X-Request-Id": "9"}
    await client.get("/exports/8", headers=OWN)
    for extra in ({}, {"Accept-Encoding": "identity"}, {"If-None-Match": '"1-1"'}):
        service.now += 10
        expected = await client.get("/exports/8", headers={**OWN, **extra})
        before = service.asked
        answer = await client.get("/exports/8", headers={**OWN, **extra, "X-Request-Id": "2"})
        assert service.asked == before
        assert answer.content == expected.content
        del expected.headers["x-request-id"]  # it belongs to one request
        assert answer.headers == expected.headers


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/exports/7", {"Authorization": "o"}),
        ("/exports/7", {**OWN, "X-Other": "1"}),
        ("/exports/7", {**OWN, "Prefer": "wait=0"}),
        ("/exports/7?x=1", OWN),
        ("/exports/07", OWN),
    ],
)
async def test_another_request_is_asked_of_the_route(
    service: Service, client: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    await client.get(path, headers=headers)
    assert service.asked == 2


async def test_another_client_is_asked_of_the_route(
    service: Service, client: httpx.AsyncClient
) -> None:
    async with calling(service.app, client=("10.0.0.9", 1)) as other:
        await other.get("/exports/7", headers=OWN)
        assert service.asked == 2
    async with calling(service.app, client=("127.0.0.1", 9)) as again:
        await again.get("/exports/7", headers=OWN)
        assert service.asked == 2, "a port is no client"


async def test_changes_are_seen_at_once_and_so_is_a_new_owner(
    service: Service, client: httpx.AsyncClient
) -> None:
    await service.exports.change(7, percent=10)
    assert (await client.get("/exports/7", headers=OWN)).json()["percent"] == 10
    assert service.asked == 1
    await service.exports.change(7, owner="other")
    assert (await client.get("/exports/7", headers=OWN)).status_code == 404
    assert service.asked == 2


async def test_a_revoked_client_is_refused_within_the_time(
    service: Service, client: httpx.AsyncClient
) -> None:
    service.revoked = True
    assert (await client.get("/exports/7", headers=OWN)).status_code == 200
    service.now += 5
    assert (await client.get("/exports/7", headers=OWN)).status_code == 401
    assert (await client.get("/exports/7", headers=OWN)).status_code == 401


@pytest.mark.parametrize(
    "added", [{"Set-Cookie": "a=b"}, {"Vary": "Cookie"}, {"Cache-Control": "no-store"}]
)
async def test_a_response_that_depends_on_more_confirms_nothing(
    service: Service, client: httpx.AsyncClient, added: dict[str, str]
) -> None:
    service.added = added
    service.now += 5
    for asked in (2, 3):
        await client.get("/exports/7", headers=OWN)
        assert service.asked == asked
    service.exports.rows.clear()
    await service.exports.cache.invalidate("export:7")
    for asked in (4, 5):
        assert (await client.get("/exports/7", headers=OWN)).status_code == 404
        assert service.asked == asked


async def test_the_requests_that_are_remembered_are_limited(service: Service) -> None:
    repeated: Any = RepeatedPolls(service.app, seconds=5, most=2)
    service.app.user_middleware.clear()
    async with calling(repeated) as client:
        for number in range(5):
            await client.get(f"/exports/7?x={number}", headers=OWN)
            assert len(repeated._confirmed) <= 2


async def test_another_certificate_of_the_client_is_asked_of_the_route(service: Service) -> None:
    certificate = {"client_cert_name": "CN=one"}

    async def over_tls(scope: Any, receive: Any, send: Any) -> None:
        await service.app({**scope, "extensions": {"tls": dict(certificate)}}, receive, send)

    async with calling(over_tls) as client:
        for asked in (1, 1):
            await client.get("/exports/7", headers=OWN)
            assert service.asked == asked
        certificate["client_cert_name"] = "CN=two"
        await client.get("/exports/7", headers=OWN)
        assert service.asked == 2


async def test_a_backend_without_entries_in_this_process_is_read_each_time() -> None:
    async with JobCache.from_url("null://") as cache:
        service = Service(Exports(cache))
        async with calling(service.app) as client:
            for _ in range(3):
                answer = await client.get("/exports/7", headers=OWN)
                assert answer.json()["id"] == 7
        assert service.asked == 1
        assert service.exports.loads == [7, 7, 7]


async def test_an_error_of_the_source_is_shown_as_the_route_shows_it() -> None:
    async with JobCache.from_url("null://") as cache:
        service = Service(Exports(cache))
        async with calling(service.app) as client:
            await client.get("/exports/7", headers=OWN)
            service.exports.away = True
            assert (await client.get("/exports/7", headers=OWN)).status_code == 503
            assert service.asked == 2
            service.exports.away = False
            assert (await client.get("/exports/7", headers=OWN)).status_code == 200


async def test_another_method_is_asked_of_the_route(
    service: Service, client: httpx.AsyncClient
) -> None:
    for asked in (2, 3):
        assert (await client.head("/exports/7", headers=OWN)).status_code == 200
        assert service.asked == asked
