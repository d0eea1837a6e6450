"""The version in `Last-Event-ID`, and how a stream ends."""

from __future__ import annotations

import asyncio

import pytest

from jobcache import JobCache
from jobcache.http.event_stream import EventStreams, seen_version
from jobcache.http.held_requests import HeldRequests
from jobcache.http.polled_document import PolledDocument
from tests.jobcache.http.exports import Exports


@pytest.mark.parametrize(
    ("text", "version"),
    [(None, 0), ("", 0), ("7", 7), (" 7", 0), ("7x", 0), ("\u0667", 0), ("9007199254740992", 0)],
)
def test_an_id_is_a_version_or_nothing(text: str | None, version: int) -> None:
    assert seen_version(text) == version


async def test_a_stream_ends_if_somebody_else_has_ended_all_waits() -> None:
    """Such as another `PollingRoutes` of the same cache, whose server shuts down first."""
    async with JobCache.from_url("memory://") as cache, asyncio.timeout(60):
        exports = Exports(cache)
        document = PolledDocument(cache, "export:7", lambda: exports.load(7))
        streams = EventStreams(HeldRequests(10, lambda: None), heartbeat=3600)
        events = streams.of(document, await document.read(0), 0)
        sent = [await anext(events), await anext(events)]
        waiting = asyncio.ensure_future(anext(events, None))
        await exports.waited()
        cache.cancel_waiters()
        assert await waiting is None
        assert [b"id: 1" in each for each in sent] == [False, True]
