"""Polls have spans, whichever way they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp

from jobcache import JobCache
from jobcache.http.deferred_response import DeferredResponseMiddleware
from jobcache.http.repeated_polls import RepeatedPolls
from tests.jobcache.http.exports import Exports, calling
from tests.jobcache.http.test_fast_path import OWN, Counted, wrapped
from tests.spans import CLIENT, Recording, attributes, dice, is_part_of, names

WAYS = ["the route", "the fast path", "repeated"]


@asynccontextmanager
async def polled(
    recording: Recording, way: str, url: str = "memory://"
) -> AsyncIterator[tuple[Exports, httpx.AsyncClient]]:
    """A client of exports whose polls are answered in one of the ways."""
    async with JobCache.from_url(
        url, prefix="spans:", instrumentation=recording.instrumentation
    ) as cache:
        await cache.invalidate_all()
        exports = Exports(cache)
        app: ASGIApp = DeferredResponseMiddleware(Counted(exports))
        if way == "the fast path":
            app = wrapped(app, exports)
        elif way == "repeated":
            app = RepeatedPolls(app)
        async with calling(app) as client:
            client.headers.update(OWN)
            yield exports, client


def poll_of(status: int, result: str, *, long_poll: bool = False) -> dict[str, Any]:
    return {
        "http.response.status_code": status,
        "long_poll": long_poll,
        "tier": "memory",
        "result": result,
        "coalesced": False,
    }


@pytest.mark.parametrize("way", WAYS)
async def test_a_poll_says_how_it_was_answered(way: str) -> None:
    recording = Recording()
    async with polled(recording, way) as (_, client):
        await client.get("/exports/7")
        loaded, read, poll = recording.taken()
        assert names([loaded, read, poll]) == ["load", "read", "poll"]
        assert is_part_of(loaded, read)
        assert is_part_of(read, poll)
        assert attributes(poll) == poll_of(200, "miss")
        for headers, status in (({}, 200), ({"If-None-Match": '"1-0"'}, 304)):
            response = await client.get("/exports/7", headers=headers)
            assert response.status_code == status
            *_, poll = recording.taken()
            assert attributes(poll) == poll_of(status, "hit")


async def test_a_hit_of_a_store_elsewhere_has_a_span(redis_url: str) -> None:
    recording = Recording()
    async with polled(recording, "the fast path", redis_url) as (_, client):
        await client.get("/exports/7")
        recording.taken()
        await client.get("/exports/7")
        *_, poll = recording.taken()
        assert attributes(poll) == poll_of(200, "hit") | {"tier": "redis"}


@pytest.mark.parametrize("way", WAYS)
async def test_a_poll_that_is_not_followed_has_no_part_that_is(way: str) -> None:
    recording = Recording(sample_rate=0.5, random=dice(0.6, 0.7, 0.8))
    async with polled(recording, way) as (exports, client):
        for _ in range(2):
            assert (await client.get("/exports/7")).status_code == 200
        await exports.cache.invalidate("export:7")
        await client.get("/exports/7")
        assert recording.taken() == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_poll_is_a_part_of_its_clients_trace(way: str) -> None:
    recording = Recording(sample_rate=0.0)
    async with polled(recording, way) as (_, client):
        for flags, spans in (("00", 0), ("01", 1), ("00", 0), ("01", 1)):
            await client.get("/exports/7", headers={"traceparent": CLIENT.format(flags=flags)})
            polls = [each for each in recording.taken() if each.name == "jobcache.poll"]
            assert len(polls) == spans
            assert all(f"{each.context.trace_id:x}" in CLIENT for each in polls)


async def test_a_long_poll_has_one_span_for_all_of_its_time() -> None:
    recording = Recording()
    async with polled(recording, "the fast path") as (exports, client):
        await client.get("/exports/7")
        recording.taken()
        held = {"If-None-Match": '"1-0"', "Prefer": "wait=50"}
        waiting = asyncio.create_task(client.get("/exports/7", headers=held))
        await exports.waited()
        assert "poll" not in names(recording.taken())
        await exports.change(7, percent=50)
        assert (await waiting).json()["percent"] == 50
        (poll,) = (each for each in recording.taken() if each.name == "jobcache.poll")
        assert attributes(poll) == poll_of(200, "hit", long_poll=True)


@pytest.mark.parametrize("way", WAYS)
async def test_every_span_ends_once_when_there_is_no_document(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    recording = Recording()
    async with polled(recording, way) as (_, client):
        for _ in range(2):
            assert (await client.get("/exports/8")).status_code == 404
        assert "poll" in names(recording.taken())
    assert caplog.text == "", "the SDK complains of a span that ends twice"
