"""What only the memory backend does: its bounds."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from jobcache.backends.memory import MemoryBackend
from jobcache.protocol.backend import LeaseResult, PublishResult
from jobcache.testing.simulation import entry_of
from tests.subjects import FakeClock

NOISE = Random(7).randbytes(60_000)  # bodies that compression does not make smaller


async def store(backend: MemoryBackend, key: str, body: bytes = b"{}") -> PublishResult:
    await backend.lease(key, "r")
    return await backend.publish(key, "r", entry_of(1, body=body))


async def test_it_never_holds_more_entries_than_it_may() -> None:
    backend = MemoryBackend(max_entries=100)
    for number in range(1000):
        await store(backend, f"k{number}")
        assert backend.size()[0] <= 100
    assert backend.peek("k999") is not None
    assert backend.peek("k899") is None


async def test_the_least_recently_used_goes_first() -> None:
    clock = FakeClock()
    backend = MemoryBackend(max_entries=3, clock=clock)
    for key in ("a", "b", "c"):
        await store(backend, key)
    clock.now += 1  # a use is noted at most once a second
    assert backend.peek("a") is not None
    await store(backend, "d")
    assert [key for key in "abcd" if backend.peek(key)] == ["a", "c", "d"]


async def test_it_fills_up_whatever_the_hashes_of_its_keys_are() -> None:
    backend = MemoryBackend(max_entries=9_000)
    for number in range(9_000):
        await backend.lease(f"k{number}", "r")
    assert backend.size()[0] == 9_000
    await backend.lease("one more", "r")
    assert backend.size()[0] == 9_000
    assert await backend.lease("one more", "r1") is LeaseResult.HELD


async def test_it_never_holds_more_bytes_than_it_may() -> None:
    backend = MemoryBackend(max_bytes=1_000_000)
    for number in range(300):
        await store(backend, f"k{number}", NOISE[:20_000])
        assert backend.size()[1] <= 1_000_000
    assert 40 <= backend.size()[0] <= 50


async def test_an_entry_larger_than_everything_is_not_kept_and_leaves_nothing_behind() -> None:
    backend = MemoryBackend(max_bytes=50_000)
    await store(backend, "small")
    await backend.lease("large", "r")
    large = entry_of(1, body=NOISE)
    assert await backend.publish("large", "r", large) is PublishResult.REMOVED
    assert await backend.lease("large", "r2") is LeaseResult.ACQUIRED
    assert await store(backend, "other") is PublishResult.STORED


async def test_a_large_entry_makes_room_without_freeing_every_small_one_at_once() -> None:
    """To free them all would stop the loop."""
    backend = MemoryBackend(max_bytes=2_400_000)
    bodies = [bytes([number % 256, number // 256]) * 50 for number in range(2000)]
    for number in range(len(bodies)):
        await store(backend, f"k{number}", bodies[number])
    await backend.lease("large", "r")
    before = held(bodies)
    large = entry_of(1, body=NOISE * 37)
    assert await backend.publish("large", "r", large) is PublishResult.STORED
    assert backend.peek("large") == large
    assert backend.size()[1] <= 2_400_000
    assert before - held(bodies) <= 1100
    assert backend.size()[0] < 200
    await backend.purge([*(f"k{number}" for number in range(2000)), "large"])
    assert backend.size() == (0, 0)


async def test_a_small_entry_evicts_a_cell_of_another_part_if_its_own_is_empty() -> None:
    backend = MemoryBackend(max_entries=20_000, max_bytes=3_500)
    for number in range(50):
        await store(backend, f"k{number}")
        assert backend.peek(f"k{number}") is not None
        assert backend.size()[0] == min(number + 1, 3)


async def test_the_same_entry_again_does_not_count_twice() -> None:
    backend = MemoryBackend()
    await store(backend, "k", NOISE[:1000])
    held = backend.size()
    for _ in range(10):
        await backend.publish("k", "r", entry_of(1, body=NOISE[:1000]))
    assert backend.size() == held
    await backend.purge(["k"])
    assert backend.size() == (0, 0)


async def test_an_expired_cell_is_dropped_when_it_is_looked_up() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.lease("k", "r")
    await backend.publish("k", "r", replace(entry_of(1), keep_ms=1000))
    clock.now += 1
    assert backend.size()[0] == 1
    assert backend.peek("k") is None
    assert backend.size()[0] == 0


@pytest.mark.parametrize("bounds", [{"max_entries": 0}, {"max_bytes": 0}])
def test_bounds_are_positive(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        MemoryBackend(**bounds)


async def test_after_emptying_old_cells_are_freed_a_few_at_a_time() -> None:
    """To free a million cells at once would stop the loop."""
    backend = MemoryBackend()
    bodies = [bytes([number]) * 99 for number in range(250)]
    for number in range(len(bodies)):
        await store(backend, f"k{number}", bodies[number])
    await backend.purge_all()
    assert backend.size() == (0, 0)
    assert backend.peek("k1") is None
    assert held(bodies) == 250
    steps = [250]
    while steps[-1]:
        await backend.lease(f"new{len(steps)}", "r")
        steps.append(held(bodies))
    assert max(before - after for before, after in pairwise(steps)) <= 20
    assert len(steps) < 50


def held(bodies: list[bytes]) -> int:
    """How many of them somebody beside the list refers to."""
    return sum(sys.getrefcount(bodies[index]) > 2 for index in range(len(bodies)))


async def test_after_a_reset_the_source_confirms_every_entry() -> None:
    backend = MemoryBackend()
    await store(backend, "entry")
    await backend.lease("lease", "r")
    await backend.fence("fence", "w")
    backend.reset()
    assert backend.peek("entry") == await backend.get("entry") == entry_of(1).past_its_freshness()
    assert await backend.publish("entry", "r", entry_of(1)) is PublishResult.PROLONGED
    assert backend.peek("entry") == entry_of(1)
    assert await backend.lease("lease", "r1") is LeaseResult.ACQUIRED
    assert await backend.lease("fence", "r1") is LeaseResult.ACQUIRED


async def test_however_often_an_entry_is_read_it_is_past_its_freshness_in_time_and_expires() -> (
    None
):
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await store(backend, "k")
    began, entry = clock.now, entry_of(1)
    clock.now = began + entry.fresh_ms / 1000 + 0.9  # hosts' clocks may differ by a second
    assert backend.peek("k") == entry
    clock.now += 0.1
    assert backend.peek("k") == entry.past_its_freshness()
    clock.now = began + entry.keep_ms / 1000 - 0.1
    assert backend.peek("k") == entry.past_its_freshness()
    clock.now += 0.1
    assert backend.peek("k") is None


async def test_an_entry_without_grace_expires_however_often_it_is_read() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.lease("k", "r")
    await backend.publish("k", "r", replace(entry_of(1), fresh_ms=3000, keep_ms=3000))
    clock.now += 2.9
    assert backend.peek("k") is not None
    clock.now += 0.1
    assert backend.peek("k") is None


async def test_evictions_are_counted_by_their_reason() -> None:
    clock = FakeClock()
    backend = MemoryBackend(max_entries=3, clock=clock)
    for key in "abcde":
        await store(backend, key)
    assert backend.evictions() == {"capacity": 2, "expired": 0, "invalidated": 0, "cleared": 0}
    await backend.purge(["c", "absent"])
    clock.now += 10**6
    assert await backend.get("d") is None
    await backend.purge_all()
    assert backend.evictions() == {"capacity": 2, "expired": 1, "invalidated": 1, "cleared": 1}


async def test_a_large_entry_evicts_as_many_cells_as_are_missing_afterwards() -> None:
    backend = MemoryBackend(max_bytes=2_400_000)
    for number in range(2000):
        await store(backend, f"k{number}", b"x" * 100)
    await backend.lease("large", "r")
    await backend.publish("large", "r", entry_of(1, body=NOISE * 37))
    assert backend.evictions()["capacity"] == 2001 - backend.size()[0]


@pytest.mark.parametrize("how", ["peek", "get", "get_many", "lease"])
async def test_an_entry_is_used_once_it_is_read_after_it_was_stored(how: str) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    for seconds in (0, 0.5, 5):
        await store(backend, "k")
        clock.now += seconds
        await backend.publish("k", "other", None)  # no read
        assert not backend.was_used("k")
        if how == "peek":
            assert backend.peek("k") is not None
        elif how == "lease":
            await backend.lease("k", "other")
        else:
            await getattr(backend, how)("k")
        assert backend.was_used("k")
        assert backend.drop(["k", "absent"]) == 1
        assert not backend.was_used("k")
    await store(backend, "k")
    backend.peek("k")
    await backend.publish("k", "other", replace(entry_of(2), keep_ms=0))
    assert not backend.was_used("k"), "a lease or nothing is not an entry"
    await backend.lease("k", "r")
    await backend.lease("k", "another reader")
    await backend.publish("k", "r", entry_of(3))
    assert not backend.was_used("k"), "only the lease was seen"
