"""`JobCache.read` and `read_many` on every backend: the source of results, and their cost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from jobcache import CacheOutcome, Document, DocumentMissing, JobCache, SourceUnavailable
from jobcache.protocol.codec import identity_body
from tests.jobcache.bench import Bench, document
from tests.subjects import BACKENDS, KEEPING, make_subject


@pytest.fixture
async def bench(request: pytest.FixtureRequest, redis_urls: dict[str, str]) -> AsyncIterator[Bench]:
    async for subject in make_subject(request.param, redis_urls):
        yield Bench(subject)


on_every = pytest.mark.parametrize("bench", BACKENDS, indirect=True)
on_keeping = pytest.mark.parametrize("bench", KEEPING, indirect=True)


@on_keeping
async def test_the_first_read_loads_and_the_second_hits(bench: Bench) -> None:
    bench.source.versions["k"] = 1
    assert await bench.read("k") == (1, CacheOutcome.MISS)
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    assert bench.source.loads == 1


async def test_null_loads_every_time() -> None:
    async for subject in make_subject("null", {}):
        bench = Bench(subject)
        bench.source.versions["k"] = 1
        assert [await bench.read("k") for _ in range(3)] == [(1, CacheOutcome.MISS)] * 3
        assert bench.source.loads == 3


@on_every
async def test_a_read_after_an_acknowledged_write_is_fresh(bench: Bench) -> None:
    for version in range(1, 6):
        assert await bench.write("k") == version
        assert (await bench.read("k"))[0] == version


@on_keeping
async def test_a_write_warms_the_cache(bench: Bench) -> None:
    await bench.write("k")
    await bench.write("k")
    assert await bench.read("k") == (2, CacheOutcome.HIT)
    assert bench.source.loads == 0


@on_keeping
async def test_a_missing_document_is_remembered_until_it_exists(bench: Bench) -> None:
    assert await bench.read("k") == (0, CacheOutcome.MISS)
    assert await bench.read("k") == (0, CacheOutcome.HIT)
    await bench.write("k")
    assert await bench.read("k") == (1, CacheOutcome.HIT)


@on_every
async def test_a_burst_costs_one_load(bench: Bench) -> None:
    bench.source.versions["k"] = 1
    answers = await asyncio.gather(*(bench.read("k") for _ in range(200)))
    assert {version for version, _ in answers} == {1}
    assert bench.source.loads == 1
    assert bench.cache.statistics.coalesced == 199


@on_every
async def test_a_read_does_not_share_a_load_that_began_before_it(bench: Bench) -> None:
    """Otherwise it would get the version from before a write that ended before it began."""
    bench.source.versions["k"] = 1
    bench.source.gate.clear()
    early = asyncio.create_task(bench.read("k"))
    while not bench.source.loads:
        await asyncio.sleep(0.001)
    await bench.write("k")
    # The write's entry is lost, so that the late read has to load, too.
    await bench.subject.evict("k")
    late = asyncio.create_task(bench.read("k"))
    await asyncio.sleep(0)
    bench.source.gate.set()
    assert (await early)[0] == 1
    assert (await late)[0] == 2


@on_keeping
async def test_a_slow_reader_does_not_bring_the_old_version_back(bench: Bench) -> None:
    bench.source.versions["k"] = 1
    bench.source.gate.clear()
    slow = asyncio.create_task(bench.read("k"))
    while not bench.source.loads:
        await asyncio.sleep(0.001)
    await bench.write("k")
    bench.source.gate.set()
    assert await slow == (1, CacheOutcome.MISS)
    assert await bench.read("k") == (2, CacheOutcome.HIT)


@on_keeping
async def test_an_entry_past_its_freshness_is_read_again_and_prolonged(bench: Bench) -> None:
    await bench.write("k")
    await bench.elapse(31)
    assert await bench.read("k") == (1, CacheOutcome.EXPIRED)
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    await bench.elapse(31)
    bench.source.versions["k"] = 7  # behind the cache's back
    assert await bench.read("k") == (7, CacheOutcome.EXPIRED)
    assert (await bench.read("k"))[0] == 7


@on_keeping
async def test_while_the_source_is_away_a_fresh_entry_hits_and_an_old_one_is_stale(
    bench: Bench,
) -> None:
    await bench.write("k")
    bench.source.away = True
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    await bench.elapse(40)
    assert await bench.read("k") == (1, CacheOutcome.STALE)
    assert bench.cache.statistics.stale_served == 1
    await bench.elapse(300)  # the grace is over
    with pytest.raises(SourceUnavailable):
        await bench.read("k")
    bench.source.away = False
    assert (await bench.read("k"))[0] == 1


@on_every
async def test_while_the_source_is_away_what_is_not_cached_is_an_error(bench: Bench) -> None:
    bench.source.away = True
    with pytest.raises(SourceUnavailable):
        await bench.read("k")
    bench.source.away = False
    bench.source.versions["k"] = 1
    assert await bench.read("k") == (1, CacheOutcome.MISS), "the failed load left no lease behind"


@on_keeping
async def test_the_cache_never_returns_less_than_min_version(bench: Bench) -> None:
    await bench.write("k")
    bench.source.versions["k"] = (
        5  # a write of another process, which was not reported to this cache
    )
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    assert await bench.read("k", min_version=5) == (5, CacheOutcome.EXPIRED)
    assert (await bench.read("k"))[0] == 5, "and the older entry is gone for everyone"
    assert (await bench.read("k", min_version=999))[0] == 5, "the source's word stands"


@on_keeping
async def test_min_version_holds_when_callers_with_lower_ones_ask_first(bench: Bench) -> None:
    await bench.write("k")
    bench.source.versions["k"] = 3
    answers = await asyncio.gather(bench.read("k"), bench.read("k", min_version=3), bench.read("k"))
    assert answers[1][0] == 3


@on_keeping
async def test_below_its_floor_nothing_is_served_stale_either(bench: Bench) -> None:
    await bench.write("k")
    await bench.elapse(40)
    bench.source.away = True
    with pytest.raises(SourceUnavailable):
        await bench.read("k", min_version=2)


@on_keeping
async def test_a_missing_document_is_not_served_stale(bench: Bench) -> None:
    await bench.read("k")
    bench.now_ms += 6000  # past its freshness, while the backend still holds it
    bench.source.away = True
    with pytest.raises(SourceUnavailable):
        await bench.read("k")


@on_keeping
async def test_an_age_is_never_understated(bench: Bench) -> None:
    """It counts from before the load, whose snapshot may be as old as that."""
    bench.source.versions["k"] = 1
    bench.source.gate.clear()
    reading = asyncio.create_task(bench.cache.read("k", lambda: bench.source.load("k")))
    while not bench.source.loads:
        await asyncio.sleep(0.001)
    bench.now_ms += 7000
    bench.source.gate.set()
    assert (await reading).age_ms == 7000


@on_keeping
async def test_an_entry_from_the_future_is_not_trusted(bench: Bench) -> None:
    """Its clock differs from ours, so nobody knows when its freshness ends."""
    bench.source.versions["k"] = 1
    await bench.read("k")
    bench.now_ms -= 500
    assert await bench.read("k") == (1, CacheOutcome.HIT)
    bench.now_ms -= 3_600_000
    bench.source.versions["k"] = 2
    assert await bench.read("k") == (2, CacheOutcome.EXPIRED)


@on_keeping
async def test_keys_that_look_alike_share_nothing(bench: Bench) -> None:
    bench.source.versions = {"jobs:a": 1, "jobs:a 5": 7}
    answers = await asyncio.gather(bench.read("jobs:a", min_version=5), bench.read("jobs:a 5"))
    assert [version for version, _ in answers] == [1, 7]


@on_keeping
async def test_a_cached_entry_does_not_wait_behind_a_load_that_hangs(bench: Bench) -> None:
    bench.source.versions["k"] = 1
    bench.source.gate.clear()
    hanging = asyncio.create_task(bench.read("k"))
    while not bench.source.loads:
        await asyncio.sleep(0.001)
    await bench.write("k")  # as another process would, which is not held up
    async with asyncio.timeout(60):
        assert await bench.read("k") == (2, CacheOutcome.HIT)
    bench.source.gate.set()
    await hanging


async def test_closing_ends_loads_that_hang() -> None:
    async for subject in make_subject("memory", {}):
        cache = JobCache(subject.backend)

        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        reading = asyncio.create_task(cache.read("a", never))
        batch = asyncio.create_task(cache.read_many(["b"], never))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            await cache.aclose()
        results = await asyncio.gather(reading, batch, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2


async def test_a_batch_whose_caller_has_gone_still_gives_back_its_leases() -> None:
    async for subject in make_subject("memory", {}):
        cache = JobCache(subject.backend)
        loading, gate = asyncio.Event(), asyncio.Event()

        async def load(
            _: object, loading: asyncio.Event = loading, gate: asyncio.Event = gate
        ) -> dict[str, Document]:
            loading.set()
            await gate.wait()
            return {"k": document(1)}

        batch = asyncio.create_task(cache.read_many(["k"], load))
        await loading.wait()
        batch.cancel()
        await asyncio.sleep(0)
        gate.set()
        async with asyncio.timeout(60):
            while await subject.backend.get("k") is None:
                await asyncio.sleep(0)


@on_every
async def test_an_error_of_the_loader_is_passed_on_and_leaves_no_lease(bench: Bench) -> None:
    async def fails() -> Document:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await bench.cache.read("k", fails)
    bench.source.versions["k"] = 1
    assert await bench.read("k") == (1, CacheOutcome.MISS)


@on_keeping
async def test_behind_the_lease_of_another_a_reader_waits_then_loads(bench: Bench) -> None:
    await bench.subject.backend.lease("k", "deadprocess")
    bench.source.versions["k"] = 1
    assert await bench.read("k") == (1, CacheOutcome.MISS)
    assert (await bench.read("k"))[0] == 1
    assert await bench.read("k") == (1, CacheOutcome.HIT), (
        "the dead reader's lease was cleared away"
    )


@on_keeping
async def test_behind_the_lease_of_another_a_reader_gets_the_entry_that_it_stores(
    bench: Bench,
) -> None:
    backend = bench.subject.backend
    await backend.lease("k", "other")
    waiting = asyncio.create_task(bench.read("k"))
    await asyncio.sleep(0.005)
    entry = bench.cache.lifetimes.entry(document(4), bench.now_ms)
    await backend.publish("k", "other", entry)
    assert await waiting == (4, CacheOutcome.HIT)
    assert bench.source.loads == 0


@on_keeping
async def test_many_keys_cost_one_load(bench: Bench) -> None:
    bench.source.versions = {"a": 1, "b": 2, "d": 4}
    await bench.read("a")
    loads = bench.source.loads
    answers = await bench.cache.read_many(["d", "a", "nothing", "b", "a"], bench.source.load_many)
    assert {key: answer.entry.version for key, answer in answers.items()} == {
        "d": 4,
        "a": 1,
        "nothing": 0,
        "b": 2,
    }
    assert list(answers) == ["d", "a", "nothing", "b"]
    assert answers["a"].outcome is CacheOutcome.HIT
    assert bench.source.loads == loads + 1
    again = await bench.cache.read_many(["a", "b", "d", "nothing"], bench.source.load_many)
    assert {answer.outcome for answer in again.values()} == {CacheOutcome.HIT}
    assert bench.source.loads == loads + 1


@on_keeping
async def test_many_stale_keys_are_served_while_the_source_is_away(bench: Bench) -> None:
    await bench.write("a")
    await bench.write("b")
    await bench.elapse(40)
    bench.source.away = True
    answers = await bench.cache.read_many(["a", "b"], bench.source.load_many)
    assert {answer.outcome for answer in answers.values()} == {CacheOutcome.STALE}
    with pytest.raises(SourceUnavailable):
        await bench.cache.read_many(["a", "unknown"], bench.source.load_many)


@on_every
async def test_many_of_nothing_is_nothing(bench: Bench) -> None:
    assert await bench.cache.read_many([], bench.source.load_many) == {}


@on_every
async def test_one_text_in_place_of_many_keys_is_refused(bench: Bench) -> None:
    with pytest.raises(TypeError, match=r"several keys .* \['export:7'\]"):
        await bench.cache.read_many("export:7", bench.source.load_many)


@on_keeping
async def test_invalidation_makes_the_next_read_load(bench: Bench) -> None:
    await bench.write("k")
    assert await bench.cache.invalidate("k") == 1
    assert await bench.read("k") == (1, CacheOutcome.MISS)
    assert await bench.cache.invalidate_all() == 1
    assert await bench.read("k") == (1, CacheOutcome.MISS)


@on_every
async def test_every_read_is_counted_once(bench: Bench) -> None:
    await asyncio.gather(*(bench.read(f"k{n % 7}") for n in range(50)))
    for _ in range(3):
        await bench.read("k1")
    assert bench.cache.info().counters.total_requests == 53
    statistics = bench.cache.statistics
    assert statistics.hit.count == statistics.hits
    assert statistics.hit.count + statistics.miss.count == 53
    assert statistics.database_loads == bench.source.loads


async def test_a_large_body_is_stored_compressed_and_read_back() -> None:
    async for subject in make_subject("memory", {}):
        cache = JobCache(subject.backend)
        body = b'{"scene":"' + b"a cat " * 1000 + b'"}'

        async def load(body: bytes = body) -> Document:
            return Document(1, "acme", body, "storyboard")

        result = await cache.read("k", load)
        entry = result.entry
        assert entry.encoding == "gzip"
        assert len(entry.encoded_body) < len(body) / 10
        assert result.body == body, "decoded by default"
        assert result.json() == {"scene": "a cat " * 1000}
        assert identity_body(entry) == body


async def test_a_missing_document_is_not_taken_for_an_empty_one() -> None:
    async for subject in make_subject("memory", {}):
        cache = JobCache(subject.backend)

        async def missing() -> None:
            return None

        async def empty() -> Document:
            return Document(1, "acme", b"")

        for _ in range(2):  # loaded, and from the cache
            result = await cache.read("missing", missing)
            assert (result.missing, result.version) == (True, 0)
            with pytest.raises(DocumentMissing, match="look at `missing`"):
                _ = result.body
            with pytest.raises(DocumentMissing):
                result.json()
            result = await cache.read("empty", empty)
            assert (result.missing, result.version, result.body) == (False, 1, b"")
        assert result.outcome is CacheOutcome.HIT
        await cache.aclose()
