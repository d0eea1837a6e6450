"""Every schedule of one read with a tag and one change that invalidates the tag.

The read is made of operations of the backend. Before each of them, and between the load and the
publish, the change may be committed and announced, or the cell of the tag may be evicted. A read
that begins after that must return the new value, and the read after it must be a hit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest

from jobcache import JobCache
from jobcache._engine.storing import TAG_PREFIX
from jobcache._engine.values import Values
from jobcache.backends.memory import MemoryBackend
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.protocol.entry import Entry

MOMENTS = 9
"""More than the operations of a read: the last one is after its end."""


class Stepped(MemoryBackend):
    """Calls a function before each operation. It has no `peek`, as a store elsewhere."""

    peek = None  # type: ignore[assignment]

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self.before = before

    async def get(self, key: str) -> Entry | None:
        self.before()
        return self._get(key)

    async def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        self.before()
        return {key: entry for key in keys if (entry := self._get(key)) is not None}

    async def lease(self, key: str, token: str) -> Entry | LeaseResult:
        self.before()
        return await super().lease(key, token)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        self.before()
        return await super().publish(key, token, entry)


class Schedule:
    """One read, in which the change and the eviction have their moments.

    Args:
        changed_at: the moment of the change; before it are as many operations of the read.
        evicted_at: the moment of the eviction.
        warm: what is cached at the beginning: nothing, the tag, or the tag and an old value.
    """

    def __init__(self, changed_at: int, evicted_at: int, warm: str) -> None:
        self.backend = Stepped(self._moment)
        self.cache = JobCache(self.backend)
        self.value = "old"
        self.loads = 0
        self._at = {changed_at: [self._change]}
        self._at.setdefault(evicted_at, []).append(self._evict)
        self._now = -100  # not before `run`
        self._warm = warm

    def _moment(self) -> None:
        for act in self._at.get(self._now, ()):
            act()
        self._now += 1

    def _change(self) -> None:
        self.value = "new"
        self.backend.drop([TAG_PREFIX + "t"])  # what `invalidate_tags` does, in one step

    def _evict(self) -> None:
        if self.backend._cell(TAG_PREFIX + "t") is not None:
            self.backend._remove(TAG_PREFIX + "t")

    async def _load(self) -> str:
        self.loads += 1
        value = self.value
        self._moment()
        return value

    async def read(self, key: str = "k") -> str:
        return await self.cache.get_or_load(key, self._load, ttl=60, tags=["t"])

    async def run(self) -> None:
        if self._warm == "tag":
            await self.read("another")
        elif self._warm == "value":
            await self.read()
        self._now = 0
        await self.read()
        while self._now <= MOMENTS:
            self._moment()
        for _ in range(2):
            assert await self.read() == "new"
        loads = self.loads
        assert await self.read() == "new"
        assert self.loads == loads, "it is a hit"
        await self.cache.aclose()


async def run_all() -> None:
    for changed_at, evicted_at in product(range(MOMENTS + 1), range(MOMENTS + 1)):
        for warm in ("", "tag", "value"):
            try:
                await Schedule(changed_at, evicted_at, warm).run()
            except AssertionError as error:
                raise AssertionError(
                    f"changed at {changed_at}, evicted at {evicted_at}, warm: {warm!r}"
                ) from error


async def test_no_schedule_serves_what_its_tag_has_outdated() -> None:
    await run_all()


async def test_a_generation_that_is_always_the_same_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def constant(self: Values, tag: str) -> str:
        return "g"

    def known(self: Values, tags: Sequence[str], cells: Mapping[str, Entry]) -> Any:
        return tuple((tag, "g") for tag in tags)

    monkeypatch.setattr(Values, "_generation", constant)
    monkeypatch.setattr(Values, "_generations", known)
    with pytest.raises(AssertionError, match="changed at"):
        await run_all()


async def test_a_generation_that_is_read_after_the_load_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fetch = Values._fetch

    async def late(self: Values, key: str, load: Any, storing: Any, failed: Any) -> Any:
        value = await load()

        async def loaded() -> Any:
            return value

        return await fetch(self, key, loaded, storing, failed)

    monkeypatch.setattr(Values, "_fetch", late)
    with pytest.raises(AssertionError, match="changed at"):
        await run_all()


async def test_concurrent_readers_of_a_cold_tag_agree_on_its_generation() -> None:
    cache = JobCache(MemoryBackend())

    async def load() -> int:
        await asyncio.sleep(0)
        return 1

    keys = [f"k{number}" for number in range(20)]

    async def read(key: str) -> int:
        return await cache.get_or_load(key, load, ttl=60, tags=["t"])

    await asyncio.gather(*map(read, keys))
    await asyncio.gather(*map(read, keys))
    assert cache.info().counters.hits == len(keys)
    await cache.aclose()
