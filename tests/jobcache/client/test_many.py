"""Waiting for many URLs over few connections, on real servers; and whose turn it is."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response as StarletteResponse

from jobcache.client import AllFailed, AsyncPoller, NotFound, Poller, Snapshot, WaitTimeout
from jobcache.client._sync_runner import SyncRunner
from jobcache.client.core.messages import Completed, Request, Response, Sleep, Steps, Update
from jobcache.client.core.scheduler import Scheduler, Send, completing
from tests.jobcache.client.loopback import Server, Waits, reply
from tests.subjects import PATIENCE


def finishing_after(server: Server, polls: int, **headers: str) -> str:
    """A URL whose operation ends after so many polls."""
    pending = [reply(200, {"at": at}, retry_after="2", **headers) for at in range(polls)]
    return server.on(f"/after/{polls}", *pending, reply(200, {"at": polls}))


async def test_each_is_reported_as_it_ends(server: Server, waits: Waits) -> None:
    urls = [finishing_after(server, polls) for polls in (3, 0, 2, 1)]
    gone = f"{server.url}/gone"
    shown: list[Snapshot] = []
    completed = await waits.as_completed([*urls, gone], on_progress=shown.append, connections=1)
    assert [each.source for each in completed] == [urls[1], gone, urls[3], urls[2], urls[0]]
    assert [each.number for each in completed] == [1, 4, 3, 2, 0]
    assert isinstance(completed[1].error, NotFound)
    with pytest.raises(NotFound):
        completed[1].result()
    assert completed[4].result().document == {"at": 3}
    assert [each.document["at"] for each in shown if each.source == urls[0]] == [0, 1, 2, 3]
    assert waits.pauses == [2, 2, 2]  # they sleep side by side


async def test_all_results_come_in_the_order_of_the_sources(server: Server, waits: Waits) -> None:
    urls = [finishing_after(server, polls) for polls in (2, 0, 1)]
    found = await waits.call("wait_all", urls)
    assert [each.document["at"] for each in found] == [2, 0, 1]
    assert await waits.call("wait_all", []) == []
    with pytest.raises(NotFound):
        await waits.call("wait_all", [*urls, f"{server.url}/gone"])


async def test_the_first_result_ends_the_wait_for_any(server: Server, waits: Waits) -> None:
    urls = [finishing_after(server, polls) for polls in (9, 2)]
    found = await waits.call("wait_any", [f"{server.url}/gone", *urls])
    assert (found.source, found.document) == (urls[1], {"at": 2})


async def test_where_all_fail_the_errors_are_raised(server: Server, waits: Waits) -> None:
    gone = f"{server.url}/gone"
    with pytest.raises(AllFailed, match=r"404: .*; 404: ") as failed:
        await waits.call("wait_any", [gone, gone])
    assert [type(each) for each in failed.value.errors] == [NotFound, NotFound]
    with pytest.raises(NotFound):
        await waits.call("wait_any", [gone])
    with pytest.raises(WaitTimeout):
        await waits.call("wait_any", [gone, finishing_after(server, 9)], timeout=5)
    with pytest.raises(ValueError, match="nothing to wait for"):
        await waits.call("wait_any", [])


async def test_the_number_of_requests_at_a_time_is_bounded(server: Server, waits: Waits) -> None:
    together, inside, most = asyncio.Barrier(3), 0, 0

    async def count(_: StarletteRequest) -> StarletteResponse:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await together.wait()
        inside -= 1
        return reply(200, {})

    urls = [server.on(f"/{number}", count) for number in range(12)]
    assert len(await waits.call("wait_all", urls, connections=3)) == 12
    assert most == 3


@pytest.mark.parametrize(("connections", "preferred"), [(1, None), (2, "wait=25")])
async def test_requests_are_held_only_if_each_has_a_connection(
    server: Server, waits: Waits, connections: int, preferred: str | None
) -> None:
    urls = [finishing_after(server, polls, etag='"1"') for polls in (1, 2)]
    await waits.call("wait_all", urls, connections=connections)
    assert server.headers("Prefer", "/after/1") == [None, preferred]


def test_a_request_that_nobody_needs_any_more_closes_the_client_at_its_end(
    server: Server,
) -> None:
    """A connection that is opened after the client was closed would stay open."""
    resume = threading.Event()

    async def hold(_: StarletteRequest) -> StarletteResponse:
        await asyncio.to_thread(resume.wait, PATIENCE)
        return reply(200, {})

    try:
        with Poller() as poller:
            poller.wait_any([server.on("/held", hold), finishing_after(server, 0)])
            threads = [each for each in threading.enumerate() if each.name == SyncRunner.THREAD]
        assert not poller._runner.http.is_closed
    finally:
        resume.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert poller._runner.http.is_closed


async def test_an_error_of_on_progress_ends_all_waits(server: Server, waits: Waits) -> None:
    def raise_(snapshot: Snapshot) -> None:
        raise LookupError(snapshot.document)

    with pytest.raises(LookupError):
        await waits.call("wait_all", [finishing_after(server, 9)] * 2, on_progress=raise_)


async def test_arguments_are_checked_before_anything_is_sent(server: Server, waits: Waits) -> None:
    url = finishing_after(server, 0)
    for wrong in ({"connections": 0}, {"timeout": 0}, {"wait": 61}, {"interval": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            await waits.call("wait_all", [url], **wrong)
    with pytest.raises(ValueError, match="must begin with http"):
        await waits.call("wait_all", [url, "/relative"])
    assert server.seen == []


async def test_waits_that_are_left_end_their_requests(server: Server) -> None:
    held, left = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def hold(request: StarletteRequest) -> StarletteResponse:
        loop.call_soon_threadsafe(held.set)
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        loop.call_soon_threadsafe(left.set)
        return reply(304)

    async def soon(_: StarletteRequest) -> StarletteResponse:
        while not held.is_set():
            await asyncio.sleep(0.01)
        return reply(200, {})

    urls = [server.on("/hold", hold), server.on("/soon", soon)]
    async with asyncio.timeout(60), AsyncPoller() as poller:
        assert (await poller.wait_any(urls)).url == urls[1]
        await left.wait()


def test_a_caller_may_leave_the_loop_while_a_thread_waits(server: Server) -> None:
    held, released = threading.Event(), threading.Event()

    async def hold(_: StarletteRequest) -> StarletteResponse:
        held.set()
        await asyncio.to_thread(released.wait)
        return reply(200, {})

    async def soon(_: StarletteRequest) -> StarletteResponse:
        await asyncio.to_thread(held.wait)
        return reply(200, {})

    urls = [server.on("/hold", hold), server.on("/soon", soon)]
    with Poller() as poller:
        for each in poller.as_completed(urls):
            assert each.source == urls[1]
            break
        assert poller.wait_for(urls[1]).status == 200
        (left,) = (each for each in threading.enumerate() if each.name.endswith("client request"))
        assert left.daemon
        released.set()
        left.join(60)
        assert not left.is_alive()


# Whose turn it is

OK = Response(200, {}, b"")


def polling(number: int, pauses: list[float]) -> Steps[Any]:
    for pause in pauses:
        yield Request("GET", f"/{number}", {}, None, 10)
        yield Update(number)
        if pause:
            yield Sleep(pause)
    return number


@given(
    pauses=st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.5]), max_size=5), max_size=6),
    connections=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
def test_every_wait_ends_and_no_more_requests_are_sent_than_may_be(
    pauses: list[list[float]], connections: int, order: Any
) -> None:
    now, sending, ended = 0.0, [], []
    waits = [
        completing(number, number, polling(number, each)) for number, each in enumerate(pauses)
    ]
    scheduler: Scheduler[int] = Scheduler(waits, lambda: now, connections)
    while (step := scheduler.next()) is not None:
        match step:
            case Send(number):
                sending.append(number)
                assert len(sending) <= connections
                assert len(set(sending)) == len(sending)
            case Completed():
                ended.append(step.result())
            case Sleep(seconds) if sending:
                assert seconds > 0
                scheduler.replied(sending.pop(order.randrange(len(sending))), OK)
            case Sleep(seconds):
                assert 0 < seconds < math.inf
                now += seconds
    assert sorted(ended) == list(range(len(pauses)))
    assert sending == []
    assert now <= max((sum(each) for each in pauses), default=0)  # they slept side by side


def test_an_error_of_a_request_ends_its_wait_only() -> None:
    waits = [completing(number, number, polling(number, [0.0])) for number in range(2)]
    scheduler: Scheduler[int] = Scheduler(waits, lambda: 0.0, 2)
    assert [scheduler.next(), scheduler.next()] == [
        Send(number, Request("GET", f"/{number}", {}, None, 10)) for number in range(2)
    ]
    assert scheduler.next() == Sleep(math.inf)
    wrong = LookupError("no scheme")
    scheduler.replied(0, wrong)
    assert scheduler.next() == Completed(0, 0, None, wrong)
    scheduler.replied(1, OK)
    assert [scheduler.next(), scheduler.next(), scheduler.next()] == [
        Update(1),
        Completed(1, 1, 1, None),
        None,
    ]


def test_the_time_limit_of_a_request_begins_when_there_is_a_connection() -> None:
    now = 0.0

    def asking(number: int) -> Steps[Any]:
        yield Request("GET", f"/{number}", {}, None, 100 - now)
        return number

    waits = [completing(number, number, asking(number)) for number in range(2)]
    scheduler: Scheduler[int] = Scheduler(waits, lambda: now, 1)
    first = scheduler.next()
    now = 30
    assert scheduler.next() == Sleep(math.inf)
    scheduler.replied(0, OK)
    assert isinstance(scheduler.next(), Completed)
    second = scheduler.next()
    assert isinstance(first, Send)
    assert isinstance(second, Send)
    assert (first.request.timeout, second.request.timeout) == (100, 70)
