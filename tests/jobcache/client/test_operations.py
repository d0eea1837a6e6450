"""Waiting for any URL: operations as AIP-151, Azure and plain HTTP have them, on real servers."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from jobcache.client import (
    AsyncPoller,
    BadLocation,
    BodyTooLarge,
    Gone,
    NotFound,
    Poller,
    Refused,
    Unavailable,
    WaitTimeout,
)
from jobcache.client.core.locations import origin, resolve, shown
from tests.app.process import NO_CERTIFICATES
from tests.jobcache.client.loopback import Server, Waits, reply


async def request(method: str, url: str) -> httpx.Response:
    """Send the request that begins an operation."""
    async with httpx.AsyncClient(verify=NO_CERTIFICATES, follow_redirects=method == "GET") as http:
        return await http.request(method, url)


def documents(waits: Waits) -> list[Any]:
    return [each.document for each in waits.shown]


# Plain HTTP


async def test_an_accepted_request_is_followed_to_its_location(
    server: Server, waits: Waits
) -> None:
    server.on("/exports", reply(202, {"id": 7}, location="exports/7?view=full", retry_after="3"))
    url = server.on(
        "/exports/7",
        reply(200, {"at": 1}, retry_after="4", etag='W/"1"'),
        reply(304, etag='W/"1"', retry_after="5"),
        reply(200, {"at": 2}, retry_after="6", etag='"2"'),
        reply(200, {"at": 3}),
    )
    begun = await request("POST", f"{server.url}/exports")
    ended = await waits.wait_for(begun)
    assert (ended.document, ended.is_final, ended.status) == ({"at": 3}, True, 200)
    assert (ended.source, ended.url) == (f"{server.url}/exports", f"{url}?view=full")
    assert documents(waits) == [{"id": 7}, {"at": 1}, {"at": 2}, {"at": 3}]
    assert waits.pauses == [3, 0.1, 5, 6]  # the first request that may be held follows soon
    assert server.headers("If-None-Match", "/exports/7") == [None, 'W/"1"', 'W/"1"', '"2"']
    assert server.headers("Prefer", "/exports/7") == [None, *["wait=25"] * 3]
    assert {each.url.query for each in server.requests("/exports/7")} == {"view=full"}


async def test_a_location_may_answer_202_until_it_has_the_result(
    server: Server, waits: Waits
) -> None:
    url = server.on("/first", reply(202, location="/monitor"))
    server.on("/monitor", reply(202, location="/monitor", retry_after="8"), reply(204))
    server._scripts["/monitor"].insert(0, reply(202, location="/monitor"))
    ended = await waits.wait_for(url)
    assert (ended.status, ended.document, ended.is_final) == (204, None, True)
    assert waits.pauses == [2, 2, 8]
    assert waits.shown == []  # no response had a body
    assert server.paths == ["/first", *["/monitor"] * 3]


async def test_see_other_leads_to_the_result(server: Server, waits: Waits) -> None:
    url = server.on(
        "/status/7", reply(200, {"percent": 5}, retry_after="1"), reply(303, location="/results/7")
    )
    server.on("/results/7", Response(b"a,b\n1,2\n", media_type="text/csv"))
    ended = await waits.wait_for(url)
    assert (ended.body, ended.document) == (b"a,b\n1,2\n", None)
    assert ended.url == f"{server.url}/results/7"
    assert waits.shown[0].percent == 5


async def test_a_temporary_redirect_is_followed_anew_and_a_permanent_one_is_remembered(
    server: Server, waits: Waits
) -> None:
    url = server.on("/old", reply(301, location="/new"))
    server.on("/new", reply(307, location="/node1"), reply(302, location="/node2"))
    server.on("/node1", reply(200, {"at": 1}, retry_after="3"))
    server.on("/node2", reply(500), reply(200, {"at": 2}))
    await waits.wait_for(url)
    assert server.paths == ["/old", "/new", "/node1", "/new", "/node2", "/new", "/node2"]
    assert documents(waits) == [{"at": 1}, {"at": 2}]


async def test_redirects_before_and_after_a_document_count_apart(
    server: Server, waits: Waits
) -> None:
    for at in range(9):
        server.on(f"/to/{at}", reply(307, location=f"/to/{at + 1}"))
        server.on(f"/result/{at}", reply(307, location=f"/result/{at + 1}"))
    server.on("/x", reply(202, operation_location="/to/0"))
    server.on("/to/9", reply(200, {"status": "Succeeded", "resourceLocation": "/result/0"}))
    server.on("/result/9", reply(200, {"at": 1}))
    ended = await waits.wait_for(await request("POST", f"{server.url}/x"))
    assert ended.url == f"{server.url}/result/9"


async def test_what_is_not_yet_known_elsewhere_appears(server: Server, waits: Waits) -> None:
    """The server that answers may not have heard yet what another one has accepted."""
    url = server.on("/begin", reply(202, location="/later"))
    server.on("/later", reply(404), reply(404), reply(200, {"at": 1}, retry_after="1"), reply(404))
    with pytest.raises(NotFound):  # once it was there, 404 is an answer
        await waits.wait_for(url)
    assert server.paths == ["/begin", *["/later"] * 4]


async def test_what_never_appears_is_not_found(server: Server, waits: Waits) -> None:
    waits.chance = 0.99
    with pytest.raises(NotFound):
        await waits.wait_for(server.on("/begin", reply(202, location="/never")))
    assert 8 < sum(waits.pauses[1:]) < 20
    server.seen.clear()
    with pytest.raises(NotFound):
        await waits.wait_for(f"{server.url}/nothing")
    assert server.paths == ["/nothing"]


@pytest.mark.parametrize(("status", "kind"), [(410, Gone), (400, Refused), (300, Refused)])
async def test_other_errors_are_final(
    server: Server, waits: Waits, status: int, kind: type[Refused]
) -> None:
    url = server.on("/x", reply(200, {"at": 1}, retry_after="1"), reply(status, {"detail": "why"}))
    with pytest.raises(kind, match=f"{status}: why") as refused:
        await waits.wait_for(url)
    assert type(refused.value) is kind


async def test_failures_that_pass_are_waited_for(server: Server, waits: Waits) -> None:
    waits.chance = 0.5

    async def cut(_: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b'{"at":'

        return StreamingResponse(parts(), headers={"Content-Length": "100"})

    url = server.on(
        "/x",
        reply(429, retry_after="7"),
        reply(
            503,
            date="Tue, 24 Nov 2026 08:00:00 GMT",  # far from the clock of this machine
            retry_after="Tue, 24 Nov 2026 08:00:20 GMT",
        ),
        cut,
        Response(b"<html>", media_type="application/json"),
        reply(304),  # to a request without a condition
        reply(200, {"at": 1}),
    )
    ended = await waits.wait_for(url)
    assert ended.document == {"at": 1}
    assert waits.pauses == pytest.approx([7.7, 22, 1, 2, 4])
    assert waits.poller.counts.failed == 5


# Google's AIP-151


async def test_an_operation_of_aip_151_ends_when_it_is_done(server: Server, waits: Waits) -> None:
    begun = {"name": "operations/7", "metadata": {"progressPercent": 10}}  # `done` is left out
    ended = {"name": "operations/7", "done": True, "response": {"rows": 3}}
    url = server.on(
        "/v1/operations/7",
        reply(200, begun),
        reply(200, begun),
        reply(200, begun | {"metadata": {"progressPercent": 60}, "done": False}),
        reply(200, ended, retry_after="9"),
    )
    found = await waits.wait_for(url, interval=3)
    assert (found.document, found.is_final, found.error) == (ended, True, None)
    assert [each.percent for each in waits.shown] == [10, 60, None]
    assert waits.pauses == [3, 3, 3]


async def test_an_operation_of_aip_151_may_fail(server: Server, waits: Waits) -> None:
    error = {"code": 5, "message": "no such table"}
    name = "projects/p/operations/7"
    url = server.on("/x", reply(200, {"name": name, "done": True, "error": error}))
    ended = await waits.wait_for(url, until=lambda seen: False)
    assert (ended.is_final, ended.error) == (True, error)


async def test_a_document_that_only_has_a_name_is_no_operation(
    server: Server, waits: Waits
) -> None:
    url = server.on("/x", reply(200, {"name": "report"}))
    assert (await waits.wait_for(url)).is_final
    assert len(server.seen) == 1


# Azure


async def test_a_monitored_operation_ends_with_its_result(server: Server, waits: Waits) -> None:
    server.on(
        "/copies",
        reply(202, operation_location="/monitor/7", location="/copies/7", retry_after="2"),
    )
    server.on(
        "/monitor/7",
        reply(200, {"status": "Queued", "percentComplete": 0}),  # any word, and no Retry-After
        reply(200, {"status": "Running", "percentComplete": 50}, retry_after="3"),
        reply(200, {"status": "Succeeded"}, retry_after="3", operation_location="/monitor/7"),
    )
    server.on("/copies/7", reply(404), reply(200, {"id": 7}))
    ended = await waits.wait_for(await request("POST", f"{server.url}/copies"))
    assert (ended.document, ended.url) == ({"id": 7}, f"{server.url}/copies/7")
    assert [each.percent for each in waits.shown] == [0, 50, None, None]
    assert server.paths == ["/copies", *["/monitor/7"] * 3, *["/copies/7"] * 2]


async def test_a_monitored_put_ends_with_what_was_put(server: Server, waits: Waits) -> None:
    state = {"properties": {"provisioningState": "Creating"}}
    server.on(
        "/accounts/a",
        reply(201, state, azure_asyncoperation="/monitor"),
        reply(200, {"properties": {"provisioningState": "Succeeded"}}),
    )
    server.on("/monitor", reply(200, {"status": "succeeded"}))
    ended = await waits.wait_for(await request("PUT", f"{server.url}/accounts/a"))
    assert server.paths == ["/accounts/a", "/monitor", "/accounts/a"]
    assert ended.document["properties"] == {"provisioningState": "Succeeded"}


async def test_a_put_without_a_monitor_is_polled_itself(server: Server, waits: Waits) -> None:
    creating = {"properties": {"provisioningState": "Creating"}}
    ended = {"properties": {"provisioningState": "Failed"}}
    server.on("/accounts/a", reply(201, creating), reply(200, creating), reply(200, ended))
    found = await waits.wait_for(await request("PUT", f"{server.url}/accounts/a"))
    assert (found.document, found.error) == (ended, "failed")
    assert [each.method for each in server.seen] == ["PUT", "GET", "GET"]


@pytest.mark.parametrize("status", ["Failed", "Canceled"])
async def test_a_monitored_operation_that_failed_has_no_result(
    server: Server, waits: Waits, status: str
) -> None:
    server.on("/x", reply(202, operation_location="/monitor", location="/result"))
    error = {"code": "BadArgument"}
    server.on("/monitor", reply(200, {"status": status, "error": error}))
    ended = await waits.wait_for(await request("POST", f"{server.url}/x"))
    assert (ended.error, ended.is_final) == (error, True)
    assert server.paths == ["/x", "/monitor"]


async def test_the_document_of_a_monitor_may_name_the_result(server: Server, waits: Waits) -> None:
    server.on("/x", reply(202, operation_location="/m/7"))
    server.on("/m/7", reply(200, {"status": "succeeded", "resourceLocation": "../models/7"}))
    server.on("/models/7", reply(200, {"model": 7}))
    assert (await waits.wait_for(await request("POST", f"{server.url}/x"))).document == {"model": 7}


async def test_a_status_in_azures_words_needs_no_header(server: Server, waits: Waits) -> None:
    url = server.on(
        "/m/7",
        reply(200, {"status": "InProgress"}),
        reply(200, {"status": "Canceled"}, retry_after="1"),
    )
    ended = await waits.wait_for(url)
    assert (ended.error, len(server.seen)) == ("canceled", 2)


async def test_a_status_in_other_words_says_nothing(server: Server, waits: Waits) -> None:
    url = server.on(
        "/jobs/7", reply(200, {"status": "failed"}, retry_after="1"), reply(200, {"status": "ok"})
    )
    assert (await waits.wait_for(url)).document == {"status": "ok"}


# Where the caller decides


async def test_a_condition_replaces_the_rule_of_retry_after(server: Server, waits: Waits) -> None:
    url = server.on("/x", *(reply(200, {"at": at}) for at in (1, 1, 2, 3)))
    ended = await waits.wait_for(url, until=lambda seen: seen.document["at"] == 3, interval=5)
    assert ended.document == {"at": 3}
    assert documents(waits) == [{"at": 1}, {"at": 2}, {"at": 3}]
    assert waits.pauses == [5, 5, 5]


async def test_a_condition_that_is_never_met_ends_with_the_operation(
    server: Server, waits: Waits
) -> None:
    url = server.on(
        "/x", reply(200, {"at": 1}, retry_after="1"), reply(200, {"at": 2, "failed": True})
    )
    ended = await waits.wait_for(url, until=lambda seen: seen.document["at"] == 3)
    assert (ended.document, ended.is_final) == ({"at": 2, "failed": True}, True)


async def test_a_condition_may_end_it_before_the_server_does(server: Server, waits: Waits) -> None:
    url = server.on("/x", reply(202, {"at": 1}, location="/y"))
    ended = await waits.wait_for(url, until=lambda seen: seen.document["at"] == 1)
    assert (ended.is_final, server.paths) == (False, ["/x"])


async def test_the_time_is_over(server: Server, waits: Waits) -> None:
    url = server.on("/x", reply(200, {"status": "slow"}, retry_after="4"))
    with pytest.raises(WaitTimeout, match=r"/x: the time to wait is over, last seen slow") as over:
        await waits.wait_for(url, timeout=11)
    assert over.value.seen.document == {"status": "slow"}
    assert sum(waits.pauses) <= 11


# Servers that do not behave


async def test_a_server_that_ignores_the_preference_is_not_polled_without_a_pause(
    server: Server, waits: Waits
) -> None:
    """Its document differs each time, so that each response could be the end of a wait."""
    numbers = iter(range(1000))

    def ticking(_: Request) -> Response:
        number = next(numbers)
        return reply(200, {"at": number}, retry_after="2", etag=f'"{number}"')

    url = server.on("/x", ticking)
    await waits.wait_for(url, until=lambda seen: seen.document["at"] == 20)
    assert len(server.seen) == 21
    assert [pause for pause in waits.pauses if pause == 2] == [2] * 18


async def test_a_server_that_says_it_has_held_and_has_not_is_polled_slowly(
    server: Server, waits: Waits
) -> None:
    numbers = iter(range(1000))

    def ticking(request: Request) -> Response:
        number, asked = next(numbers), request.headers.get("Prefer")
        applied = {} if asked is None else {"preference_applied": asked}
        return reply(200, {"at": number}, retry_after="2", etag=f'"{number}"', **applied)

    url = server.on("/x", ticking)
    await waits.wait_for(url, until=lambda seen: seen.document["at"] == 20)
    assert waits.pauses == pytest.approx([0.1] * 20)


async def test_a_long_poll_is_answered_early_and_the_next_one_is_not_sent_at_once(
    server: Server, waits: Waits
) -> None:
    url = server.on(
        "/x",
        reply(200, {"at": 1}, retry_after="6", etag='"1"'),
        reply(304, retry_after="6", preference_applied="wait=25", etag='"1"'),
        reply(200, {"at": 2}),
    )
    await waits.wait_for(url)
    assert waits.pauses == [0.1, 6]


async def test_a_body_beyond_the_limit_is_not_read(server: Server, waits: Waits) -> None:
    large = gzip.compress(b"0" * 3_000_000)
    url = server.on("/x", Response(large, headers={"Content-Encoding": "gzip"}))
    waits.open(largest_body=1_000_000)
    with pytest.raises(BodyTooLarge, match="larger than 1000000 bytes") as too_large:
        await waits.wait_for(url)
    assert (too_large.value.url, too_large.value.limit) == (url, 1_000_000)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/x", "has redirected 10 times"),
        ("file:///etc/passwd", "must begin with http"),
        ("http://[::1", "location header"),
        ("http://exa\\mple.com/", "no valid host"),
        ("http://exa%20mple/", "no valid host"),
        ("http://127.0.0.1:99999999/", "no URL"),
    ],
)
async def test_a_location_that_cannot_be_followed_is_an_error(
    server: Server, waits: Waits, location: str, reason: str
) -> None:
    with pytest.raises(BadLocation, match=reason):
        await waits.wait_for(server.on("/x", reply(303, location=location)))


async def test_a_response_that_names_no_url_is_an_error(server: Server, waits: Waits) -> None:
    server.on("/x", reply(200, {"name": "operations/7", "done": False}), reply(202), reply(307))
    for _ in range(2):
        with pytest.raises(BadLocation, match="names no URL to poll"):
            await waits.wait_for(await request("POST", f"{server.url}/x"))
    server.on("/x", reply(307, location="/y"))
    with pytest.raises(BadLocation, match="had no effect"):
        await waits.wait_for(await request("POST", f"{server.url}/x"))


async def test_a_request_that_failed_has_begun_nothing(server: Server, waits: Waits) -> None:
    server.on("/x", reply(503, {"detail": "why"}, retry_after="1"))
    with pytest.raises(Unavailable, match=r"POST .*/x: 503: why"):
        await waits.wait_for(await request("POST", f"{server.url}/x"))
    assert [each.method for each in server.seen] == ["POST"]


@pytest.mark.parametrize("url", ["/jobs/7", "ftp://x.example/", "jobs"])
async def test_what_is_no_absolute_url_is_refused_at_once(waits: Waits, url: str) -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        await waits.wait_for(url)


# Credentials

OWN = ("authorization", "x-api-key", "x-of-client", "cookie")


async def test_credentials_do_not_go_to_another_origin(
    server: Server, other: Server, waits: Waits
) -> None:
    waits.open(
        key="secret",
        headers={"X-Api-Key": "secret"},
        http={
            "headers": {"X-Of-Client": "secret"},
            "cookies": {"session": "secret"},
            "params": {"token": "secret"},
        },
    )
    url = server.on(
        "/x", reply(302, location=f"{other.url}/elsewhere"), reply(202, location="/back")
    )
    elsewhere = other.on(
        "/elsewhere", reply(200, {"at": 1}, retry_after="1", etag='"1"'), reply(500)
    )
    server.on("/back", reply(302, location=elsewhere), reply(303, location=f"{other.url}/to"))
    other.on("/to", reply(303, location=f"{server.url}/end"))
    server.on("/end", reply(200, {"at": 2}))
    await waits.wait_for(url)
    assert server.paths == ["/x", "/x", "/back", "/back", "/end"]
    for name in OWN:
        assert None not in server.headers(name)
        assert set(other.headers(name)) == {None}
    assert other.paths == ["/elsewhere", "/elsewhere", "/to"]
    assert {each.url.query for each in server.seen} == {"token=secret"}
    assert {each.url.query for each in other.seen} == {""}
    assert None not in other.headers("user-agent")
    assert other.headers("accept") == server.headers("accept")[:3]


async def test_authentication_of_the_callers_client_does_not_go_to_another_origin(
    server: Server, other: Server, waits: Waits
) -> None:
    waits.open(http={"auth": ("ada", "secret")})
    url = server.on("/x", reply(202, location=f"http://eve:evil@{other.url[7:]}/y"))
    other.on("/y", reply(200, {"at": 1}))
    await waits.wait_for(url)
    assert server.headers("authorization") == ["Basic YWRhOnNlY3JldA=="]
    assert other.headers("authorization") == [None]


async def test_a_response_that_was_redirected_does_not_extend_the_trust(
    server: Server, other: Server, waits: Waits
) -> None:
    waits.open(key="secret")
    server.on("/x", reply(302, location=f"{other.url}/y"))
    other.on("/y", reply(202, location="/z"))
    other.on("/z", reply(200, {"at": 1}))
    await waits.wait_for(await request("GET", f"{server.url}/x"))
    assert other.headers("authorization", "/z") == [None]


def test_urls_are_resolved_and_compared_with_care() -> None:
    assert resolve("../b?c=1#d", "https://u:p@a.example/x/y/z") == "https://u:p@a.example/x/b?c=1"
    assert resolve("https://A.example:443/é b", "https://u:p@a.example/") == (
        "https://u:p@a.example/%C3%A9%20b"
    )
    assert resolve("https://u:p@b.example/", "https://a.example/") == "https://b.example/"
    assert resolve("https://a.example/", "http://a.example/") == "https://a.example/"
    assert origin("HTTPS://A.example") == origin("https://a.EXAMPLE:443/x")
    assert origin("http://[::1]/") == ("http", "[::1]", 80)
    assert origin("http://a.example:8000/") != origin("http://a.example/")
    assert origin("https://a.example@b.example/")[1] == "b.example"
    assert origin("https://b.example/@a.example")[1] == "b.example"
    assert origin("https://b.example?@a.example")[1] == "b.example"
    with pytest.raises(BadLocation, match=r"https://a.example/ leads to .* not encrypted"):
        resolve("http://a.example/", "https://u:p@a.example/")
    assert resolve("https://a.example\\@b.example/", "https://a.example/") == "https://b.example/"
    assert shown("https://u:p@a.example/x@y") == "https://a.example/x@y"


# Callers


async def test_a_caller_that_is_cancelled_leaves_no_request_behind(server: Server) -> None:
    held, left = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hold(request: Request) -> Response:
        loop.call_soon_threadsafe(held.set)
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        loop.call_soon_threadsafe(left.set)
        return reply(304)

    url = server.on("/x", reply(200, {"at": 1}, retry_after="1", etag='"1"'), hold)
    async with asyncio.timeout(60), AsyncPoller() as poller:
        waiting = asyncio.create_task(poller.wait_for(url))
        await held.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await left.wait()


async def test_the_clients_that_the_pollers_make_are_closed_with_them(server: Server) -> None:
    url = server.on("/x", reply(200, {"at": 1}))
    async with AsyncPoller() as poller:
        assert (await poller.wait_for(url)).document == {"at": 1}
    assert poller._runner.http.is_closed
    with Poller() as poller_sync:
        assert poller_sync.wait_for(httpx.URL(url)).document == {"at": 1}
    assert poller_sync._runner.http.is_closed
