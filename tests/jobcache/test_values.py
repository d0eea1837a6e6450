"""Values without a version: read through every backend, and invalidated by key or by tag."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict

from jobcache import (
    CacheUnavailable,
    Document,
    InvalidDocument,
    JobCache,
    Lifetimes,
    SourceUnavailable,
)
from jobcache.backends.memory import MemoryBackend
from jobcache.errors import InvalidKey, LoadTimeout, RecursiveLoad
from jobcache.protocol.backend import PublishResult
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from tests.subjects import BACKENDS, FakeClock

STORES = [name for name in BACKENDS if name != "null"]


@dataclass
class Source:
    """One value, and the number of times that it was loaded."""

    value: Any = 1
    loads: int = 0
    error: Exception | None = None

    async def load(self) -> Any:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return self.value


@dataclass
class Cached:
    """A cache in memory whose clocks a test moves."""

    clock: FakeClock = field(default_factory=FakeClock)
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        self.backend = MemoryBackend(clock=self.clock)
        self.cache = JobCache(
            self.backend, clock_ms=self.clock.ms, lifetimes=Lifetimes(jitter=0, grace=100)
        )

    async def read(self, **options: Any) -> Any:
        return await self.cache.get_or_load("k", self.source.load, **({"ttl": 10} | options))


@pytest.fixture
def cached() -> Cached:
    return Cached()


@pytest.fixture
async def shared(subject: Any) -> JobCache:
    return JobCache(subject.backend)


@pytest.mark.parametrize("subject", STORES, indirect=True)
async def test_a_value_is_loaded_once_and_again_after_it_is_invalidated(shared: JobCache) -> None:
    source = Source({"name": "ü", "list": [1, None, 2.5, True]})
    for _ in range(3):
        assert await shared.get_or_load("k", source.load, ttl=60) == source.value
    assert source.loads == 1
    source.value = {"name": "new"}
    assert await shared.invalidate("k") == 1
    for _ in range(3):
        assert await shared.get_or_load("k", source.load, ttl=60) == {"name": "new"}
    assert source.loads == 2


@pytest.mark.parametrize("subject", STORES, indirect=True)
async def test_a_load_that_an_invalidation_overtook_is_not_stored(shared: JobCache) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        began.set()
        await go_on.wait()
        return "old"

    source = Source("new")
    old = asyncio.create_task(shared.get_or_load("k", slow, ttl=60))
    await began.wait()
    await shared.invalidate("k")
    new = asyncio.create_task(shared.get_or_load("k", source.load, ttl=60))
    while not source.loads and not go_on.is_set():
        await asyncio.sleep(0)
        go_on.set()  # within one process, the second load begins after the first
    assert await old == "old"
    assert await new == "new"
    for _ in range(2):
        assert await shared.get_or_load("k", source.load, ttl=60) == "new"


@pytest.mark.parametrize("subject", STORES, indirect=True)
async def test_a_tag_invalidates_all_values_that_have_it(shared: JobCache) -> None:
    sources = [Source(f"old {number}") for number in range(3)]
    tags = [("reports", "of:acme"), ("reports",), ("other",)]

    async def read(number: int) -> Any:
        load = sources[number].load
        return await shared.get_or_load(f"k{number}", load, ttl=60, tags=tags[number])

    for _ in range(2):
        assert [await read(number) for number in range(3)] == ["old 0", "old 1", "old 2"]
    assert [source.loads for source in sources] == [1, 1, 1]
    for source in sources:
        source.value = source.value.replace("old", "new")
    assert await shared.invalidate_tags("reports", "unknown") == 1
    for _ in range(2):
        assert [await read(number) for number in range(3)] == ["new 0", "new 1", "old 2"]
    assert [source.loads for source in sources] == [2, 2, 1]
    await shared.invalidate_tags("of:acme")
    assert await read(0) == "new 0"
    assert [source.loads for source in sources] == [3, 2, 1]


async def test_a_load_that_the_invalidation_of_its_tag_overtook_is_not_accepted(
    cached: Cached,
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        began.set()
        await go_on.wait()
        return "old"

    old = asyncio.create_task(cached.cache.get_or_load("k", slow, ttl=60, tags=["t"]))
    await began.wait()
    await cached.cache.invalidate_tags("t")
    go_on.set()
    assert await old == "old"
    assert await cached.read(tags=["t"]) == 1


async def test_a_tag_that_was_evicted_costs_a_load(cached: Cached) -> None:
    await cached.read(tags=["t"])
    cached.backend._remove("jobcache:tag:t")
    cached.source.value = 2
    assert await cached.read(tags=["t"]) == 2
    assert await cached.read(tags=["t"]) == 2
    assert cached.source.loads == 2


async def test_an_invalidated_tag_leaves_nothing_to_serve_while_the_source_is_away(
    cached: Cached,
) -> None:
    await cached.read(tags=["t"])
    cached.clock.now += 11
    cached.source.error = SourceUnavailable("away")
    assert await cached.read(tags=["t"]) == 1, "past its time to live, within its grace"
    await cached.cache.invalidate_tags("t")
    with pytest.raises(SourceUnavailable):
        await cached.read(tags=["t"])


async def test_callers_with_other_tags_do_not_get_the_value(cached: Cached) -> None:
    await cached.read(tags=["t"])
    cached.source.value = 2
    assert await cached.read() == 2
    cached.source.value = 3
    assert await cached.read(tags=["t"]) == 3


async def test_tags_are_names(cached: Cached) -> None:
    with pytest.raises(TypeError, match="several tags are expected"):
        await cached.read(tags="reports")
    with pytest.raises(InvalidKey):
        await cached.read(tags=["x" * 5000])
    with pytest.raises(InvalidKey, match="as the keys of tags do"):
        await cached.cache.get_or_load("jobcache:tag:t", cached.source.load, ttl=1)


async def test_an_expired_value_is_replaced_by_one_load(cached: Cached) -> None:
    await cached.read()
    cached.clock.now += 11
    cached.source.value = 2
    assert [await cached.read() for _ in range(3)] == [2, 2, 2]
    assert cached.source.loads == 2
    assert cached.cache.info().counters.not_stored == 0


class Slow:
    """A load that has begun and waits."""

    def __init__(self, cache: JobCache, value: int) -> None:
        self._began, self._go_on, self._value = asyncio.Event(), asyncio.Event(), value
        self._reading = asyncio.create_task(cache.get_or_load("k", self._load, ttl=10))

    async def _load(self) -> int:
        self._began.set()
        await self._go_on.wait()
        return self._value

    async def began(self) -> None:
        async with asyncio.timeout(60):
            await self._began.wait()

    async def ended(self) -> int:
        self._go_on.set()
        return await self._reading


@pytest.mark.parametrize("subject", STORES, indirect=True)
async def test_a_load_that_did_not_wait_for_another_does_not_remove_its_value(
    subject: Any,
) -> None:
    """As of two processes, whose loads take longer than a reader waits for another's."""
    caches = [JobCache(subject.backend) for _ in range(3)]
    slow = [Slow(cache, number) for number, cache in enumerate(caches)]
    for each in slow:
        await each.began()
    assert [await each.ended() for each in slow] == [await slow[0].ended()] * 3
    source = Source("new")
    for cache in caches:
        assert await cache.get_or_load("k", source.load, ttl=10) == await slow[0].ended()
    assert source.loads == 0


async def test_of_several_loads_of_an_expired_value_one_is_stored(cached: Cached) -> None:
    await cached.read()
    cached.clock.now += 11
    lifetimes = Lifetimes(jitter=0, grace=100)
    other = JobCache(cached.backend, clock_ms=cached.clock.ms, lifetimes=lifetimes)
    slow = [Slow(cached.cache, 2), Slow(other, 3)]
    for each in slow:
        await each.began()
    assert [await each.ended() for each in slow] == [2, 2]
    assert await cached.read() == 2
    assert cached.source.loads == 1
    assert other.info().counters.not_stored == 0


async def test_while_the_source_is_away_an_expired_value_is_served(cached: Cached) -> None:
    await cached.read(ttl=timedelta(seconds=10))
    cached.clock.now += 11
    cached.source.error = LoadTimeout("away")
    assert await cached.read() == 1
    assert cached.cache.info().counters.stale_served == 1
    cached.clock.now += 100
    with pytest.raises(LoadTimeout):
        await cached.read()


async def test_errors_are_not_cached_and_none_only_on_request(cached: Cached) -> None:
    cached.source.error = KeyError("k")
    for _ in range(2):
        with pytest.raises(KeyError):
            await cached.read()
    cached.source.error, cached.source.value = None, None
    for _ in range(2):
        assert await cached.read() is None
    assert cached.source.loads == 4
    for _ in range(2):
        assert await cached.read(cache_none=True) is None
    assert cached.source.loads == 5
    await cached.cache.invalidate("k")
    cached.source.value = 0
    assert [await cached.read() for _ in range(2)] == [0, 0]
    assert cached.source.loads == 6


async def test_a_bypass_loads_and_leaves_nothing_older(cached: Cached) -> None:
    await cached.read()
    cached.source.value = 2
    assert await cached.read(bypass=True) == 2
    assert cached.cache.info().counters.bypasses == 1
    assert [await cached.read() for _ in range(2)] == [2, 2]
    assert cached.source.loads == 3


async def test_concurrent_callers_share_a_load(cached: Cached) -> None:
    assert await asyncio.gather(*(cached.read() for _ in range(50))) == [1] * 50
    assert cached.source.loads == 1
    counters = cached.cache.info().counters
    assert (counters.misses, counters.coalesced, counters.hits) == (50, 49, 0)
    assert await cached.read() == 1
    assert cached.cache.info().counters.hits == 1


async def test_a_load_that_waits_for_itself_is_refused(cached: Cached) -> None:
    async def load() -> int:
        return await cached.cache.get_or_load("k", load, ttl=1)

    with pytest.raises(RecursiveLoad):
        await cached.cache.get_or_load("k", load, ttl=1)


async def test_one_key_may_have_no_version_here_and_a_version_there(cached: Cached) -> None:
    async def document() -> Document:
        return Document(7, "acme", b'{"version": 7}')

    for _ in range(3):
        assert await cached.read() == 1
        assert (await cached.cache.read("k", document)).version == 7
    assert await cached.cache.wait_for_newer("k", document, 7, 0) is None


@pytest.mark.parametrize("ttl", [-1, float("nan"), 1e12, timedelta(seconds=-1)])
async def test_a_time_to_live_is_a_time(cached: Cached, ttl: Any) -> None:
    with pytest.raises(ValueError, match="ttl="):
        await cached.read(ttl=ttl)


async def test_a_value_with_no_time_to_live_is_not_stored(cached: Cached) -> None:
    assert [await cached.read(ttl=0) for _ in range(2)] == [1, 1]
    assert cached.source.loads == 2


# --- an outage ---


class Away(MemoryBackend):
    away = False

    async def ping(self) -> None:
        if self.away:
            raise CacheUnavailable("away")

    async def purge(self, keys: Any) -> int:
        await self.ping()
        return await super().purge(keys)

    async def lease(self, key: str, token: str) -> Any:
        await self.ping()
        return await super().lease(key, token)

    async def get_many(self, keys: Any) -> dict[str, Entry]:
        await self.ping()
        return await super().get_many(keys)

    async def publish(self, key: str, token: str, entry: Entry | None) -> PublishResult:
        await self.ping()
        return await super().publish(key, token, entry)


async def test_an_invalidation_in_an_outage_is_repeated_before_the_store_is_used() -> None:
    store, source = Away(), Source("old")
    cache = JobCache(GuardedBackend(store, probe_after=0.001))
    assert await cache.get_or_load("k", source.load, ttl=60) == "old"
    assert await cache.get_or_load("t", source.load, ttl=60, tags=["t"]) == "old"
    store.away = True
    with pytest.raises(CacheUnavailable):
        await cache.invalidate("k")
    with pytest.raises(CacheUnavailable):
        await cache.invalidate_tags("t")
    source.value = "new"
    assert await cache.get_or_load("k", source.load, ttl=60) == "new"
    assert await cache.get_or_load("t", source.load, ttl=60, tags=["t"]) == "new"
    store.away = False
    for _ in range(1000):
        assert await cache.get_or_load("k", source.load, ttl=60) == "new"
        assert await cache.get_or_load("t", source.load, ttl=60, tags=["t"]) == "new"
        if cache.info().health.available and cache.info().counters.hits > 10:
            break
        await asyncio.sleep(0.001)
    assert cache.info().counters.hits > 10
    await cache.aclose()


# --- what comes back ---


class Model(BaseModel):
    number: int
    names: list[str] = []


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)
    number: int


class Struct(msgspec.Struct):
    number: int


class FrozenStruct(msgspec.Struct, frozen=True):
    number: int


@pytest.mark.parametrize("kind", [Model, FrozenModel, Struct, FrozenStruct])
async def test_models_and_structs_come_back_by_the_annotation(cached: Cached, kind: Any) -> None:
    loads = count(1)

    async def load() -> Any:
        return [kind(number=next(loads))]

    load.__annotations__["return"] = list[kind]
    values = [await cached.cache.get_or_load("k", load, ttl=60) for _ in range(3)]
    assert values == [[kind(number=1)]] * 3

    async def load_one() -> Any:
        return kind(number=next(loads))

    load_one.__annotations__["return"] = kind
    one, two, three = [await cached.cache.get_or_load("one", load_one, ttl=60) for _ in range(3)]
    assert one == two == three == kind(number=2)
    assert (two is three) is (kind in {FrozenModel, FrozenStruct})


async def test_what_another_version_of_the_program_stored_is_loaded_again(cached: Cached) -> None:
    async def load_old() -> dict[str, str]:
        return {"title": "no number"}

    async def load_new() -> Model:
        return Model(number=7)

    await cached.cache.get_or_load("k", load_old, ttl=60)
    for _ in range(2):
        assert await cached.cache.get_or_load("k", load_new, ttl=60) == Model(number=7)
    assert cached.cache.info().counters.database_loads == 2


@pytest.mark.parametrize(
    "value", [(1, 2), {1: "one"}, {"a": {1, 2}}, object(), Model(number=1), float("nan"), b"bytes"]
)
async def test_a_value_that_json_would_change_is_refused(cached: Cached, value: Any) -> None:
    cached.source.value = value
    for options in ({}, {"bypass": True}):
        with pytest.raises(InvalidDocument, match="give a serializer"):
            await cached.read(**options)
    assert cached.backend.size()[0] == 0, "its lease was withdrawn"


async def test_nobody_can_change_the_value_of_the_others(cached: Cached) -> None:
    cached.source.value = {"list": [1, {"deep": []}]}
    await cached.read()
    value = await cached.read()
    changes: list[Callable[[], object]] = [
        lambda: value.update(x=1),
        lambda: value.__setitem__("x", 1),
        lambda: value.pop("list"),
        lambda: value["list"].append(2),
        lambda: value["list"][1]["deep"].append(2),
        value["list"].sort,
    ]
    for change in changes:
        with pytest.raises(TypeError, match=r"copy\.deepcopy"):
            change()
    for mine in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):  # noqa: S301 - our own
        mine["list"][1]["deep"].append("mine")
        mine["list"].append(2)
    part = value["list"]
    for mine in (copy.deepcopy(part), pickle.loads(pickle.dumps(part))):  # noqa: S301 - our own
        mine[1]["deep"].append("mine")
    assert json.loads(json.dumps(value)) == await cached.read() == {"list": [1, {"deep": []}]}
    assert isinstance(value, dict)


class Text:
    """A serializer of the caller's own."""

    def dumps(self, value: str) -> bytes:
        return value.encode("utf-16")

    def loads(self, data: bytes) -> str:
        return data.decode("utf-16")


async def test_a_serializer_of_the_callers_own_is_used(cached: Cached) -> None:
    cached.source.value = "text"
    text = Text()
    assert [await cached.read(serializer=text) for _ in range(2)] == ["text", "text"]
    assert cached.source.loads == 1


async def test_a_large_value_is_stored_compressed(cached: Cached) -> None:
    cached.source.value = ["text"] * 10_000
    assert await cached.read() == await cached.read() == cached.source.value
    assert cached.backend.size()[1] < 100_000
    with suppress(AttributeError):
        assert cached.backend.peek("k").encoding == "gzip"  # type: ignore[union-attr]


async def test_callers_who_share_a_load_may_have_different_serializers(cached: Cached) -> None:
    cached.source.value = "text"
    texts = await asyncio.gather(cached.read(serializer=Text()), cached.read())
    assert texts == ["text", "text"]
    assert await cached.read() == "text"


async def test_a_clock_that_is_slewed_costs_no_load(cached: Cached) -> None:
    await cached.read()
    for step in (-0.2, 0.1, -0.2):
        cached.clock.now += step
        assert await cached.read() == 1
    assert cached.source.loads == 1
    assert cached.cache.info().counters.hits == 3


async def test_after_the_clock_was_set_back_no_value_is_served_for_longer() -> None:
    clock, source = FakeClock(), Source("old")
    cache = JobCache(GuardedBackend(Away()), clock_ms=clock.ms)

    async def read() -> Any:
        return await cache.get_or_load("k", source.load, ttl=60)

    assert await read() == "old"
    clock.now += 50
    assert await read() == "old"
    clock.now -= 40  # now the value looks as if it were fresh for another 50 seconds
    source.value = "new"
    assert [await read() for _ in range(3)] == ["new"] * 3
    assert source.loads == 2
    await cache.aclose()


async def test_while_its_tags_cannot_be_read_a_value_is_not_stored() -> None:
    class TagsAway(Away):
        async def lease(self, key: str, token: str) -> Any:
            if key.startswith("jobcache:tag:"):
                raise CacheUnavailable("away")
            return await super().lease(key, token)

    source, store = Source(), TagsAway()
    cache = JobCache(store)
    for _ in range(2):
        assert await cache.get_or_load("k", source.load, ttl=60, tags=["t"]) == 1
    assert source.loads == 2
    assert await store.get("k") is None
    assert cache.info().counters.read_errors == 0
