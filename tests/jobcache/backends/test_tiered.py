"""The backend of two tiers: which tier answers, and which entries the local tier keeps."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from jobcache.backends.memory import MemoryBackend
from jobcache.backends.tiered import TieredBackend
from jobcache.errors import CacheUnavailable
from jobcache.protocol.capabilities import (
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPurgeAll,
    SupportsSize,
    SupportsTiers,
)
from jobcache.testing.simulation import entry_of
from tests.jobcache.backends.hand_tiers import GatedRemote, HandFeed, Tiered
from tests.jobcache.bench import Bench
from tests.subjects import FakeClock


@pytest.fixture
def tiered() -> Tiered:
    return Tiered()


# --- reading ---


async def test_each_tier_answers_under_its_own_name() -> None:
    tiered = Tiered()
    bench = Bench(tiered)
    bench.source.versions["k"] = 1
    read = lambda: bench.cache.read("k", lambda: bench.source.load("k"))  # noqa: E731 - three times
    assert [(await read()).tier for _ in range(4)] == ["far", "far", "memory", "memory"]
    assert bench.cache.info().tier_hits == {"memory": 2, "far": 1}
    assert isinstance(tiered.backend, SupportsTiers)
    assert bench.source.loads == 1


async def test_a_local_hit_asks_no_server(tiered: Tiered) -> None:
    await tiered.fill()
    asked = tiered.remote.asked
    assert await tiered.backend.get("k") == entry_of(1)
    assert await tiered.backend.get_many(["k"]) == {"k": entry_of(1)}
    assert tiered.remote.asked == asked


async def test_many_keys_come_from_both_tiers_and_are_all_local_afterwards(tiered: Tiered) -> None:
    await tiered.fill("a", 1)
    await tiered.remote.hold("b", entry_of(2))
    await tiered.remote.hold("a", entry_of(7))  # not reported yet
    found = await tiered.backend.get_many(["a", "b", "c"])
    assert {key: entry.version for key, entry in found.items()} == {"a": 1, "b": 2}
    assert [tiered.version(key) for key in "abc"] == [1, 2, None]
    assert await tiered.holds_nothing_local("c")


async def test_the_min_version_is_kept_although_the_local_tier_lags() -> None:
    tiered = Tiered()
    bench = Bench(tiered)
    bench.source.versions["k"] = 1
    for _ in range(2):
        await bench.read("k")
    bench.source.versions["k"] = 2
    await tiered.remote.hold("k", replace(entry_of(2), stored_at_ms=bench.now_ms))
    assert (await bench.read("k"))[0] == 1, "the feed has not reported it"
    assert (await bench.read("k", min_version=2))[0] == 2
    assert (await bench.read("k"))[0] == 2, "nobody here steps back"
    assert bench.source.loads == 1


@pytest.mark.parametrize("fresh_ms", [0, -1000])
async def test_an_entry_to_be_confirmed_first_is_not_kept_locally(
    tiered: Tiered, fresh_ms: int
) -> None:
    await tiered.remote.hold("k", replace(entry_of(1), fresh_ms=fresh_ms))
    entry = await tiered.backend.get("k")
    assert entry is not None
    assert entry.fresh_ms == fresh_ms
    assert entry.keep_ms > 0
    assert await tiered.holds_nothing_local()


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_a_fill_that_does_not_end_leaves_no_lease_behind(
    tiered: Tiered, how: str, *, many: bool
) -> None:
    await tiered.remote.hold("k", entry_of(1))
    tiered.remote.gate.clear()
    backend = tiered.backend
    fill = asyncio.ensure_future(backend.get_many(["k", "l"]) if many else backend.get("k"))
    await tiered.remote.at_gate.wait()
    assert not await tiered.holds_nothing_local()
    tiered.remote.away = True
    if how == "cancelled":
        fill.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fill
        tiered.remote.gate.set()  # a batched get goes on without a caller that was cancelled
        async with asyncio.timeout(60):
            while not await tiered.holds_nothing_local("k"):
                await asyncio.sleep(0)
    else:
        tiered.remote.gate.set()
        with pytest.raises(CacheUnavailable):
            await fill
    assert await tiered.holds_nothing_local("k")
    assert await tiered.holds_nothing_local("l")


# --- reports ---


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
@pytest.mark.parametrize("event", ["changed", "cut", "cut and back"])
async def test_a_fill_that_a_report_overtakes_is_not_kept(
    tiered: Tiered, event: str, *, many: bool
) -> None:
    await tiered.remote.hold("k", entry_of(1))
    tiered.remote.gate.clear()
    backend = tiered.backend
    fill = asyncio.ensure_future(backend.get_many(["k"]) if many else backend.get("k"))
    await tiered.remote.at_gate.wait()
    if event == "changed":
        tiered.feed.tell("other", "k")
    else:
        tiered.feed.cut()
        if event == "cut and back":
            tiered.feed.resume()
    tiered.remote.gate.set()
    assert await fill is not None
    assert await tiered.holds_nothing_local()


async def test_a_report_empties_the_keys_that_it_names_and_no_others(tiered: Tiered) -> None:
    for key in ("a", "b", "c"):
        await tiered.fill(key)
    tiered.feed.tell("a", "c", "unheard of")
    assert [tiered.version(key) for key in "abc"] == [None, 1, None]


async def test_a_cut_stops_the_use_of_the_local_tier_and_it_comes_back_empty(
    tiered: Tiered,
) -> None:
    await tiered.fill()
    tiered.feed.cut()
    assert tiered.version() is None
    await tiered.remote.hold("k", entry_of(2))
    assert (await tiered.backend.get("k")) == entry_of(2)
    tiered.feed.resume()
    assert tiered.version() is None
    assert tiered.backend.size() == (0, 0)
    await tiered.fill(version=3)


async def test_without_a_recent_heartbeat_the_local_tier_is_not_used(tiered: Tiered) -> None:
    await tiered.fill()
    tiered.clock.now = tiered.feed.live_until
    assert tiered.version() is None
    starts = tiered.feed.starts
    await tiered.remote.hold("k", entry_of(2))
    assert (await tiered.backend.get_many(["k"])) == {"k": entry_of(2)}
    assert tiered.feed.starts == starts + 1, "whoever needs it starts it"
    tiered.feed.live_until += 2  # changes that were made meanwhile are not reported yet
    assert tiered.version() is None, "what was read meanwhile is known here"


# --- changing ---


@pytest.mark.parametrize("change", ["publish", "purge", "purge all"])
@pytest.mark.parametrize("how", ["made", "failed", "cancelled"])
async def test_a_fill_during_a_change_of_this_process_is_not_kept(
    tiered: Tiered, change: str, how: str
) -> None:
    await tiered.remote.hold("k", entry_of(1))
    changes = {
        "publish": lambda: tiered.backend.publish("k", "w", entry_of(2)),
        "purge": lambda: tiered.backend.purge(["k"]),
        "purge all": tiered.backend.purge_all,
    }
    tiered.remote.gate.clear()
    change_made = asyncio.ensure_future(changes[change]())
    await tiered.remote.at_gate.wait()
    # Read before the change, and kept after it was made.
    await tiered.local.lease("k", "r")
    await tiered.local.publish("k", "r", entry_of(1))
    assert tiered.version() == 1
    if how == "cancelled":
        change_made.cancel()
    tiered.remote.away = how == "failed"
    tiered.remote.gate.set()
    await asyncio.wait({change_made})
    assert change_made.cancelled() == (how == "cancelled")
    assert tiered.version() is None


async def test_a_remembered_version_is_not_hidden_by_the_local_tier(tiered: Tiered) -> None:
    await tiered.fill()
    tiered.backend.remember("k", 2)
    assert tiered.version() is None
    assert tiered.remote.remembered == [("k", 2)]


async def test_a_purge_empties_both_tiers_and_counts_in_the_remote_one(tiered: Tiered) -> None:
    for key in ("a", "b", "c"):
        await tiered.fill(key)
    tiered.feed.tell("b")
    assert await tiered.backend.purge(["a", "b", "nothing"]) == 2
    assert [tiered.version(key) for key in "abc"] == [None, None, 1]
    assert await tiered.backend.purge_all() == 1
    assert await tiered.backend.get_many(["a", "b", "c"]) == {}


# --- the rest ---


async def test_its_health_is_the_remote_tiers_and_its_size_the_local_ones(
    tiered: Tiered,
) -> None:
    await tiered.fill()
    assert tiered.backend.condition().available
    tiered.remote.away = True
    assert not tiered.backend.condition().available
    assert isinstance(tiered.backend, SupportsSize)
    assert tiered.backend.size() == tiered.local.size() != (0, 0)
    assert isinstance(tiered.backend, SupportsChangeFeed)
    assert tiered.backend.feed() is tiered.feed


async def test_it_starts_and_closes_all_of_its_parts(tiered: Tiered) -> None:
    await tiered.fill()
    await tiered.backend.start()
    assert (tiered.feed.starts, tiered.remote.starts) == (1, 1)
    await tiered.backend.aclose()
    await tiered.backend.aclose()
    assert tiered.feed.closed == tiered.remote.closed == 2
    assert tiered.local.size() == (0, 0)


@pytest.mark.parametrize(
    "ability", [SupportsPurgeAll, SupportsBodyCheck, SupportsLeaseTime, SupportsNamespaceOwner]
)
def test_an_optional_ability_is_the_remote_tiers(ability: type) -> None:
    """Also in `isinstance`, by which `JobCache` finds out."""

    class Able(GatedRemote):
        def set_body_check(self, check: object) -> None: ...
        def set_lease_time(self, seconds: float) -> None: ...
        def identify(self, source_id: str) -> None: ...

    class Plain:
        """A remote tier without any optional ability."""

        name = "far"

        def __init__(self, remote: GatedRemote) -> None:
            for each in (
                *("get", "get_many", "lease", "fence", "publish", "purge", "aclose"),
                *("remember", "condition", "start"),
            ):
                setattr(self, each, getattr(remote, each))

    remotes: list[tuple[Any, bool]] = [(Able(), True), (Plain(Able()), False)]
    for remote, expected in remotes:
        tiered = TieredBackend(MemoryBackend(), remote, HandFeed(FakeClock()))
        assert isinstance(tiered, ability) is expected
