"""A held request ends once, even if several events end it at the same time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from jobcache.http.held_requests import (
    ClientGone,
    HeldRequest,
    HeldRequests,
    Revoked,
    cancel_on_disconnect,
)


async def silent() -> Any:
    await asyncio.Event().wait()


async def test_a_request_can_be_ended_while_it_is_ending() -> None:
    """By a revoked key, in the turn of the event loop after its client has gone."""
    request, loop = HeldRequest(), asyncio.get_running_loop()
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    working = asyncio.create_task(
        cancel_on_disconnect(silent, asyncio.Event().wait(), request)  # type: ignore[arg-type]
    )
    await asyncio.sleep(0)
    end = request.end
    assert end is not None
    end()
    loop.call_soon(end)
    loop.call_soon(end)
    with pytest.raises(ClientGone):
        await working
    end()
    await asyncio.sleep(0)
    assert errors == []


async def test_all_requests_of_a_revoked_key_end_although_one_is_ending() -> None:
    admitted = True
    held = HeldRequests(10, lambda: None, lambda _: admitted)
    requests = [HeldRequest("acme") for _ in range(5)]

    async def hold(request: HeldRequest) -> None:
        with held.slot("waits", "acme", None, request):
            await cancel_on_disconnect(silent, asyncio.Event().wait(), request)  # type: ignore[arg-type]

    tasks = [asyncio.create_task(hold(request)) for request in requests]
    await asyncio.sleep(0)
    assert held.counts()["waits"] == 5
    for request in requests[1:3]:
        assert request.end is not None
        request.end()
    admitted = False
    reviewed: list[BaseException | None] = []

    def review() -> None:
        try:
            held.review()
            reviewed.append(None)
        except BaseException as error:  # noqa: BLE001 - compared below
            reviewed.append(error)

    asyncio.get_running_loop().call_soon(review)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert reviewed == [None]
    assert {type(each) for each in ended} == {Revoked}
    assert held.counts()["waits"] == 0
