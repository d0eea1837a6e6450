"""Requests of one turn of the event loop are sent together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from jobcache._concurrency.batching import Batcher


class Sender:
    """Sends requests; the test decides what their replies are."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.replies: asyncio.Future[Sequence[int | Exception]] | None = None
        self.error: Exception | None = None

    def __call__(self, requests: Sequence[int]) -> asyncio.Future[Sequence[int | Exception]]:
        self.sent.append([*requests])
        if self.error is not None:
            raise self.error
        self.replies = asyncio.get_running_loop().create_future()
        return self.replies


async def test_each_caller_gets_its_own_reply_or_error() -> None:
    sender = Sender()
    batcher: Batcher[int, int] = Batcher(sender, 10)
    one, two, three = map(batcher.request, (1, 2, 3))
    await asyncio.sleep(0)
    assert sender.sent == [[1, 2, 3]]
    assert sender.replies is not None
    three.cancel()
    sender.replies.set_result([10, ZeroDivisionError(), 30])
    assert await one == 10
    with pytest.raises(ZeroDivisionError):
        await two
    assert three.cancelled()


async def test_what_cannot_be_sent_fails_for_every_caller() -> None:
    sender = Sender()
    sender.error = ZeroDivisionError()
    batcher: Batcher[int, int] = Batcher(sender, 10)
    requests = [batcher.request(number) for number in (1, 2)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert results == [sender.error] * 2
