"""Gets of one turn of the event loop fail for those whom the failure concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from jobcache.protocol.entry import Entry
from jobcache.resilience.batched_gets import BatchedGets


class Reader:
    """Finds nothing, or cannot be asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[tuple[str, ...]] = []

    def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
        self.asked.append(tuple(keys))
        if self.error is not None:
            raise self.error
        found: asyncio.Future[Mapping[str, Entry]] = asyncio.get_running_loop().create_future()
        found.set_result({})
        return found


async def test_an_error_of_the_reader_is_raised_to_every_caller() -> None:
    reader = Reader(ZeroDivisionError())
    gets = BatchedGets(reader)
    results = await asyncio.gather(*map(gets.get, "ab"), return_exceptions=True)
    assert results == [reader.error] * 2
    assert reader.asked == [("a", "b")]


async def test_an_error_of_one_conversion_is_raised_to_its_caller_alone() -> None:
    def fail(_: Entry | None) -> int:
        raise ZeroDivisionError

    gets = BatchedGets(Reader())
    failing, other = gets.get("k", fail), gets.get("k", lambda entry: entry is None)
    with pytest.raises(ZeroDivisionError):
        await failing
    assert await other is True
