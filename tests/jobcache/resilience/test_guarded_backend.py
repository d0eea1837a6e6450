"""The guard: deadlines, gets that are sent together, optional abilities, and the end."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from jobcache import CacheUnavailable
from jobcache.protocol.capabilities import (
    SupportsBodyCheck,
    SupportsChangeFeed,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
    SupportsPing,
    SupportsPurgeAll,
)
from jobcache.protocol.entry import Entry
from jobcache.resilience.guarded_backend import GuardedBackend
from jobcache.testing.simulation import entry_of
from tests.jobcache.resilience.rig import FutureStore, Plain, Rig, Store
from tests.subjects import MemorySubject

pytestmark = pytest.mark.usual_limits


ABILITIES = [
    SupportsPurgeAll,
    SupportsChangeFeed,
    SupportsBodyCheck,
    SupportsLeaseTime,
    SupportsNamespaceOwner,
]
"""What a guard passes on."""


async def test_no_caller_waits_longer_than_the_deadline(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await rig.guard.get("k")
    running = rig.store.tasks | rig.guard._running
    assert len(running) == 1, "the operation itself is left to end by itself"
    rig.store.hangs.set()
    await rig.idle()


async def test_an_answer_after_the_deadline_is_dropped(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    reading = rig.guard.get_many_future(["k"])
    with pytest.raises(CacheUnavailable, match=r"no answer within 0\.02 s"):
        await reading
    rig.store.hangs.set()
    await asyncio.sleep(0.01)
    assert str(reading.exception()) == "no answer within 0.02 s"


async def test_a_cancelled_caller_does_not_cancel_others(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.store.hangs = asyncio.Event()
    gone = asyncio.create_task(rig.guard.get("k"))
    stays = asyncio.create_task(rig.guard.get("k"))
    await asyncio.sleep(0)
    gone.cancel()
    rig.store.hangs.set()
    assert await stays is None
    assert gone.cancelled()
    assert rig.guard.condition().available
    assert caplog.text == ""


async def test_a_read_that_cannot_be_begun_without_a_task_is_begun_with_one() -> None:
    class Refusing(FutureStore):
        def get_many_future(self, keys: Sequence[str]) -> asyncio.Future[Mapping[str, Entry]]:
            raise ZeroDivisionError

    rig = Rig(Refusing())
    await rig.store.lease("k", "r")
    await rig.store.publish("k", "r", entry_of(3))
    assert await rig.guard.get("k") == entry_of(3)
    await rig.guard.aclose()


@pytest.mark.parametrize("ability", ABILITIES)
def test_an_optional_ability_is_the_backends(ability: type) -> None:
    """Also in `isinstance`, by which `JobCache` finds out."""

    class Able(Store):
        def feed(self) -> None: ...
        def set_body_check(self, check: object) -> None: ...
        def set_lease_time(self, seconds: float) -> None: ...
        def identify(self, source_id: str) -> None: ...

    assert isinstance(GuardedBackend(Able()), ability)
    assert not isinstance(GuardedBackend(Plain(Able())), ability)


async def test_a_waiter_is_answered_when_the_cache_closes(rig: Rig) -> None:
    rig.store.hangs = asyncio.Event()
    waiting = [asyncio.create_task(rig.guard.get("k"))]
    await asyncio.sleep(0.005)
    waiting.append(asyncio.create_task(rig.guard.get("k")))
    await asyncio.sleep(0)
    await rig.guard.aclose()
    await asyncio.wait(waiting, timeout=60)
    assert {type(task.exception()) for task in waiting} == {CacheUnavailable}
    rig.store.hangs.set()


async def test_gets_of_one_turn_are_one_get_many(rig: Rig) -> None:
    """Else each of many readers would cost a round trip, a deadline and a place at the breaker."""
    await rig.store.fence("a", "w")
    await rig.store.publish("a", "w", entry_of(1))
    before = rig.store.calls
    found = await asyncio.gather(*(rig.guard.get(key) for key in ("a", "b", "a")))
    assert [entry and entry.version for entry in found] == [1, None, 1]
    assert rig.store.calls == before + 1


async def test_a_get_that_is_not_sent_before_the_guard_is_closed_fails(rig: Rig) -> None:
    reading = asyncio.create_task(rig.guard.get("a"))
    closing = asyncio.create_task(rig.guard.aclose())  # before the turn ends that sends the get
    with pytest.raises(CacheUnavailable, match="closed"):
        await reading
    await closing
    assert rig.store.calls == 0


async def test_every_exception_of_a_backend_becomes_a_cache_error(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    async def buggy(keys: Sequence[str]) -> Mapping[str, Entry]:
        raise TypeError(*keys)

    rig.store.get_many = buggy  # type: ignore[method-assign]
    for number in range(2):
        with pytest.raises(CacheUnavailable, match="TypeError"):
            await rig.guard.get(f"k{number}")
    assert caplog.text.count("raised an unexpected error") == 1


async def test_a_closed_guard_starts_nothing_more(rig: Rig) -> None:
    await rig.break_it()
    await rig.guard.aclose()
    with pytest.raises(CacheUnavailable):
        await rig.guard.publish("k", "w", entry_of(2))
    recovery = rig.guard._recovery.task
    assert recovery is None or recovery.done()
    assert rig.guard._running == set()


def test_the_memory_backend_needs_no_guard() -> None:
    assert not isinstance(MemorySubject().backend, SupportsPing)
